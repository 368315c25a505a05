"""Options that several commands have, and how the text of an option is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accel_dask.errors import ConfigError
from accel_dask.model.ids import DatasetId, TenantId

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file of the cluster (default: the local one's)."),
]
DatasetArgument = Annotated[str, typer.Argument(help="TENANT.DATASET")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
UserOption = Annotated[str | None, typer.Option(help="Default: the only user known here.")]
TokenOption = Annotated[
    str | None, typer.Option(envvar="ACCEL_TOKEN", help="Default: the one kept here.")
]


def dataset_id_of(text: str) -> DatasetId:
    """TENANT.DATASET. Raises ConfigError: it is none."""
    tenant, dot, name = text.partition(".")
    if not (tenant and dot and name):
        raise ConfigError(f"{text!r} does not name a dataset; write TENANT.DATASET")
    return DatasetId(TenantId(tenant), name)


def key_value(text: str) -> tuple[str, str]:
    """KEY=VALUE; the value may have further "=". Raises ConfigError: it has none."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r}: write KEY=VALUE")
    return key, value


def names_of(text: str) -> tuple[str, ...]:
    """A list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def number_of(field: str, value: str) -> int:
    """The value of a field. Raises ConfigError: it is no whole number."""
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"{field} must be a whole number, not {value!r}") from error
