"""Which of a source's columns a dataset holds; shared by the connectors."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence

from accel_dask.errors import ConfigError, SchemaUnsupported
from accel_dask.model.dataset import Dataset


def check_options(dataset: Dataset, known: frozenset[str], prefixes: tuple[str, ...] = ()) -> None:
    """Raise `ConfigError` for an option that the connector does not have."""
    for name, _ in dataset.source.options:
        if name not in known and not name.startswith(prefixes or ("\0",)):
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{dataset.dataset_id}: the {dataset.source.connector} connector has no option "
                f"{name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" It has {', '.join(sorted(known))}"
            )


def held_columns(dataset: Dataset, available: Sequence[str], source: str) -> tuple[str, ...]:
    """The dataset's columns, else all of them.

    Raises:
        SchemaUnsupported: one is not there, or two of them differ only in case.
    """
    for name in dataset.columns:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(available)}"
            raise SchemaUnsupported(
                f"{dataset.dataset_id}: {source} has no column {name!r}; {hint}"
            )
    held = dataset.columns or tuple(available)
    if not held:
        raise SchemaUnsupported(f"{dataset.dataset_id}: {source} has no columns")
    twice = [name for name, count in Counter(name.lower() for name in held).items() if count > 1]
    if twice:
        raise SchemaUnsupported(
            f"{dataset.dataset_id}: {source} has columns called {twice[0]!r} that differ only in "
            "case, which SQL cannot tell apart; name the one to hold in the dataset's columns"
        )
    return held
