"""Checks that every store makes of a transaction before it sends or applies it."""

from __future__ import annotations

from accel_dask.errors import StoreError
from accel_dask.store.base import (
    MAX_REQUEST_BYTES,
    MAX_TRANSACTION_OPS,
    DeleteOp,
    PutOp,
    Transaction,
)


def check_transaction(transaction: Transaction) -> None:
    """Raise `StoreError` if no store would take `transaction`."""
    _check_limits(transaction)
    puts = [op.key for op in transaction.ops if isinstance(op, PutOp)]
    if len(set(puts)) != len(puts):
        twice = sorted(key for key in set(puts) if puts.count(key) > 1)
        raise StoreError(f"a transaction may write a key once; this one writes {twice} twice")
    for op in transaction.ops:
        if isinstance(op, DeleteOp):
            clash = [key for key in puts if covers(op, key)]
            if clash:
                raise StoreError(f"a transaction may not both write and delete {clash}")


def covers(op: DeleteOp, key: str) -> bool:
    """Whether `op` deletes `key`."""
    return key.startswith(op.key) if op.prefix else key == op.key


def _check_limits(transaction: Transaction) -> None:
    count = max(len(transaction.compares), len(transaction.ops))
    if count > MAX_TRANSACTION_OPS:
        raise StoreError(
            f"the transaction has {len(transaction.compares)} compares and "
            f"{len(transaction.ops)} operations; the limit is {MAX_TRANSACTION_OPS} of each: "
            "split it, or keep bulky content in a blob"
        )
    size = sum(
        len(op.key) + (len(op.value) if isinstance(op, PutOp) else 0) for op in transaction.ops
    )
    if size > MAX_REQUEST_BYTES:
        raise StoreError(
            f"the transaction has {size} bytes; the limit is {MAX_REQUEST_BYTES}: "
            "split it, or keep bulky content in a blob"
        )
