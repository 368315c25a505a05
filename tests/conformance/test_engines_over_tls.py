"""Engines over TLS, with certificates of a CA of one's own: trusted by name, refused otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
from gateway_world import World, flights

from accel_dask.config import GatewaySettings
from accel_dask.connectors.olap.base import RunLimits
from accel_dask.connectors.olap.registry import open_engine
from accel_dask.connectors.olap.servers.mariadb import MariaDbServer
from accel_dask.connectors.olap.servers.postgresql import PostgresServer
from accel_dask.connectors.olap.servers.processes import NotInstalled
from accel_dask.connectors.olap.settings import EngineSettings
from accel_dask.errors import AccelError, ConfigError, EngineFailed, EngineUnavailable

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="makes its certificates with openssl"
)
LIMITS = RunLimits(seconds=20.0, max_rows=10, max_bytes=10_000)
PASSWORD = "ACCEL_ENGINE_TEST_PASSWORD"


@dataclass(frozen=True)
class Certificates:
    """Of a server at 127.0.0.1, and two authorities, of which one signed it."""

    directory: Path

    def __post_init__(self) -> None:
        (self.directory / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        for name in ("ca", "other"):
            self._make("req", "-x509", *KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem",
                       "-subj", f"/CN={name}")  # fmt: skip
        self._make(
            "req", *KEY, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"
        )
        self._make("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                   "-CAcreateserial", "-extfile", "names", "-out", "server.pem")  # fmt: skip

    def _make(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)

    def path(self, name: str) -> str:
        return str(self.directory / name)


KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@dataclass
class Secured:
    """A server that wants TLS and a password."""

    settings: EngineSettings
    dialect: str
    sql: str
    close: Callable[[], None]
    password: str = "s3cret"


def postgres(certificates: Certificates) -> Secured:
    server = PostgresServer()
    data = server.process.directory / "data"
    owner = data.stat()
    for name in ("server.pem", "server.key"):
        copied = shutil.copy(certificates.path(name), data / name)
        os.chown(copied, owner.st_uid, owner.st_gid)
        Path(copied).chmod(0o600)
    (data / "pg_hba.conf").write_text(
        "local all all trust\nhostssl all safe 127.0.0.1/32 scram-sha-256\n"
        "host all accel 127.0.0.1/32 trust\n"
    )
    server.execute(
        "CREATE ROLE safe LOGIN PASSWORD 's3cret'",
        "ALTER SYSTEM SET ssl_cert_file = 'server.pem'",
        "ALTER SYSTEM SET ssl_key_file = 'server.key'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    )
    uri = server.uri.replace("postgresql://", "postgresql+tls://")
    sql = "SELECT CAST(ssl AS INTEGER) AS n FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    return Secured(
        EngineSettings(kind="postgresql", uri=uri, user="safe"), "postgres", sql, server.close
    )


def mariadb(certificates: Certificates) -> Secured:
    server = MariaDbServer(
        f"--ssl-cert={certificates.path('server.pem')}",
        f"--ssl-key={certificates.path('server.key')}",
    )
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE USER safe@'%' IDENTIFIED BY 's3cret' REQUIRE SSL")
        cursor.execute("GRANT SELECT ON accel.* TO safe@'%'")
    uri = server.uri.replace("mysql://", "mysql+tls://")
    sql = (
        "SELECT CAST(variable_value <> '' AS SIGNED) AS n "
        "FROM information_schema.session_status WHERE variable_name = 'Ssl_cipher'"
    )
    return Secured(EngineSettings(kind="mysql", uri=uri, user="safe"), "mariadb", sql, server.close)


def flight_sql(certificates: Certificates) -> Secured:
    """A gateway of our own: Flight SQL with TLS and passwords, which Sail does not have."""
    world = World(
        settings=GatewaySettings(
            port=0,
            tls_cert_file=certificates.path("server.pem"),
            tls_key_file=certificates.path("server.key"),
        )
    )
    world.tenant("safe")
    world.serve("safe", {"flights": (1, [flights()])})
    url = world.start()
    sql = "SELECT CAST(count(*) - 99 AS INTEGER) AS n FROM flights"
    settings = EngineSettings(kind="flightsql", uri=url, user="safe")
    return Secured(settings, "spark", sql, world.close, password="secret-of-safe")


@pytest.fixture(scope="module", params=[postgres, mariadb, flight_sql])
def secured(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Secured]:
    try:
        found = request.param(certificates)
    except NotInstalled as error:
        pytest.skip(str(error))
    yield found
    found.close()


def ask(secured: Secured, **changes: str) -> list[int]:
    settings = replace(secured.settings, password_env=PASSWORD, **changes)
    schema = pa.schema([pa.field("n", pa.int32())])
    with (
        closing(open_engine(settings, secured.dialect)) as engine,
        closing(engine.run(secured.sql, schema, LIMITS)) as stream,
    ):
        found = stream.read()
        return found.column(0).to_pylist() if found is not None else []


def test_an_engine_is_spoken_to_by_tls_with_the_ca_that_is_trusted(
    secured: Secured, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, secured.password)
    assert ask(secured, tls_ca_file=certificates.path("ca.pem")) == [1]


@pytest.mark.parametrize("case", ["another CA", "no CA", "another name", "no such file"])
def test_a_server_that_is_not_certainly_the_right_one_is_told_nothing(
    case: str, secured: Secured, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, secured.password)
    changes = {"tls_ca_file": certificates.path("ca.pem")}
    match case:
        case "another CA":
            changes["tls_ca_file"] = certificates.path("other.pem")
        case "no CA":
            changes["tls_ca_file"] = ""
        case "another name":
            changes["uri"] = secured.settings.uri.replace("127.0.0.1", "localhost")
        case _:
            changes["tls_ca_file"] = certificates.path("none.pem")
    with pytest.raises((EngineUnavailable, ConfigError)) as refused:
        ask(secured, **changes)
    assert secured.password not in str(refused.value)


def test_a_wrong_password_is_no_way_in(
    secured: Secured, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "guessed")
    with pytest.raises((EngineUnavailable, EngineFailed)) as refused:
        ask(secured, tls_ca_file=certificates.path("ca.pem"))
    assert "guessed" not in str(refused.value)


def test_without_tls_a_server_that_wants_it_is_not_reached(
    secured: Secured, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, secured.password)
    plain = secured.settings.uri.replace("+tls", "")
    if secured.settings.kind == "postgresql":  # its client takes the TLS that is offered
        assert ask(secured, uri=plain) == [1]
        return
    with pytest.raises(AccelError):
        ask(secured, uri=plain)
