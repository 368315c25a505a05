"""How to reach an engine: a fallback's options, checked; credentials are named, never held."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from accel_dask.errors import ConfigError
from accel_dask.model.fallback import FallbackSpec

PASSWORD_PREFIX: Final = "ACCEL_ENGINE_"  # noqa: S105 - a prefix of names
"""Environment variables that may hold an engine's password all begin so: a dataset's options
must not be a way to read others."""

_SCHEMES: Final = {
    "flightsql": ("grpc", "grpc+tcp", "grpc+tls"),
    "mysql": ("mysql", "mysql+tls"),
    "postgresql": ("postgresql", "postgresql+tls"),
}
_DEFAULT_PORTS: Final = {"flightsql": 0, "mysql": 3306, "postgresql": 5432}
_OPTIONS: Final = {
    "uri": "where it listens, without credentials: " + ", ".join(
        f"{schemes[0]}://host:port" for schemes in _SCHEMES.values()
    ),
    "user": "the user name",
    "password_env": f"the environment variable of the gateway that has the password, "
    f"{PASSWORD_PREFIX}...",
    "password_file": "a file of the gateway's host that has the password",
    "tls_ca_file": "certificates to trust",
    "dialect": "how it reads SQL",
    "table": "the dataset's table there, as schema.table",
    "time_travel": "iceberg: the table is the dataset's own, read as of its snapshot; "
    "never: whatever it has now",
    "unverified_dialect": "accept: use a dialect that the project could not test",
    "pool_size": "most connections of one gateway",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What tells one engine from another. Two datasets with equal settings share it."""

    kind: str
    uri: str
    user: str = ""
    password_env: str = ""
    password_file: str = ""
    tls_ca_file: str = ""
    pool_size: int = 8

    @property
    def host(self) -> str:
        return urlsplit(self.uri).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        return urlsplit(self.uri).port or _DEFAULT_PORTS[self.kind]

    @property
    def database(self) -> str:
        return urlsplit(self.uri).path.strip("/")

    @property
    def is_tls(self) -> bool:
        return urlsplit(self.uri).scheme.endswith("+tls")

    def __str__(self) -> str:
        return f"{self.kind} engine at {self.host}:{self.port}"

    def password(self, environ: Mapping[str, str] | None = None) -> str:
        """
        Raises:
            ConfigError: it is not where the options say.
        """
        if self.password_env:
            found = (os.environ if environ is None else environ).get(self.password_env)
            if found is None:
                raise ConfigError(f"{self}: the environment has no {self.password_env}")
            return found
        if self.password_file:
            try:
                return Path(self.password_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(f"{self}: cannot read its password: {error}") from error
        return ""


def engine_settings(spec: FallbackSpec, whose: str) -> EngineSettings:
    """
    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    if spec.engine not in _SCHEMES:
        raise ConfigError(
            f"{whose}: unknown fallback engine {spec.engine!r}; there are {', '.join(_SCHEMES)}"
        )
    for name, _ in spec.options:
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_OPTIONS)}"
            raise ConfigError(f"{whose}: a fallback has no option {name!r}; {hint}")
    parts = urlsplit(spec.option("uri"))
    if parts.scheme not in _SCHEMES[spec.engine]:
        raise ConfigError(
            f"{whose}: the fallback's uri must begin with one of "
            f"{', '.join(scheme + '://' for scheme in _SCHEMES[spec.engine])}"
        )
    if parts.username or parts.password:
        raise ConfigError(
            f"{whose}: no credentials in the fallback's uri; use user and password_env "
            "or password_file"
        )
    variable = spec.option("password_env")
    if variable and not variable.startswith(PASSWORD_PREFIX):
        raise ConfigError(f"{whose}: password_env must begin with {PASSWORD_PREFIX}")
    size = spec.option("pool_size", "8")
    if not size.isdecimal() or not 1 <= int(size) <= 64:
        raise ConfigError(f"{whose}: pool_size is a number from 1 to 64, not {size!r}")
    return EngineSettings(
        kind=spec.engine,
        uri=spec.option("uri"),
        user=spec.option("user"),
        password_env=variable,
        password_file=spec.option("password_file"),
        tls_ca_file=spec.option("tls_ca_file"),
        pool_size=int(size),
    )
