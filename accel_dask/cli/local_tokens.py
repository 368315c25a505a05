"""The tokens of users of the local cluster, kept for its commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accel_dask.current import find_current, require_current, write_current
from accel_dask.errors import ConfigError


def credentials(gateway: str | None, user: str | None, token: str | None) -> tuple[str, str, str]:
    """Gateway, user and token: what is given, else what is known of the local cluster.

    Raises ConfigError: no cluster runs here, or it has not one user, or keeps no token of this one.
    """
    current = find_current() if gateway is None or token is None else None
    known = current.tokens if current else {}
    if gateway is None:
        gateway = require_current().gateways[0]
    if user is None:
        if len(known) != 1:
            raise ConfigError(f"name the --user (known here: {', '.join(known) or 'none'})")
        user = next(iter(known))
    token = token or known.get(user)
    if token is None:
        raise ConfigError(f"no token of user {user} is kept here; give --token or ACCEL_TOKEN")
    return gateway, user, token


def keep_token(user: str, token: str) -> None:
    """Keep a user's token for commands on this machine, in a file that its owner alone reads."""
    current = require_current()
    tokens = {**current.tokens, user: token}
    write_current(replace(current, tokens=tokens))
    _write_tokens(Path(current.directory), tokens)


def forget_tokens(users: Sequence[str]) -> None:
    current = require_current()
    tokens = {user: token for user, token in current.tokens.items() if user not in users}
    write_current(replace(current, tokens=tokens))
    _write_tokens(Path(current.directory), tokens)


def _write_tokens(directory: Path, tokens: dict[str, str]) -> None:
    file = directory / "tokens"
    file.touch(mode=0o600)
    file.write_text("".join(f"{user} {token}\n" for user, token in tokens.items()))


def read_tokens(directory: Path) -> dict[str, str]:
    """By user, the tokens that the cluster of this directory keeps."""
    file = directory / "tokens"
    if not file.exists():
        return {}
    pairs = (line.split(maxsplit=1) for line in file.read_text().splitlines())
    return {user: token.strip() for user, token in pairs}
