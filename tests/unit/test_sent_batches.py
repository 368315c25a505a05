"""Schemas of answers are kept for the next, and only the very same are taken for them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from accel_dask.errors import UnsupportedQuery
from accel_dask.worker_plugin.executor import batches
from accel_dask.worker_plugin.executor.batches import SentSchemas, read_some, slices

DICTIONARY = pa.dictionary(pa.int8(), pa.string())


def test_what_is_kept_is_for_the_very_same_schema_alone() -> None:
    known = SentSchemas()
    alike = [
        pa.schema([("a", kind)])
        for kind in (pa.int32(), pa.int64(), pa.timestamp("us", "UTC"), pa.timestamp("us", "CET"))
    ]
    alike += [
        pa.schema([pa.field("a", pa.int32(), nullable=False)]),
        pa.schema([pa.field("a", pa.int32(), metadata={"kind": "x"})]),
        pa.schema([("a", pa.int32())], metadata={"kind": "x"}),
        pa.schema([("a", pa.list_(pa.field("item", pa.int32(), nullable=False)))]),
        pa.schema([("a", pa.list_(pa.int32()))]),
        pa.schema([("a", DICTIONARY)]),
        pa.schema([("a", pa.string())]),
        pa.schema([("a", pa.int32()), ("a", pa.int32())]),
        pa.schema([("a", pa.int32()), ("a", pa.int64())]),
    ]
    for _ in range(2):
        for schema in alike:
            sent = known.of(schema)
            again = known.of(pa.ipc.read_schema(schema.serialize()))
            assert again is sent
            expected = schema
            if schema.types == [DICTIONARY]:
                expected = pa.schema([("a", pa.string())])
                assert not sent.is_read
            assert sent.schema.equals(expected, check_metadata=True)
            assert pa.ipc.read_schema(sent.message).equals(expected, check_metadata=True)


def test_few_and_small_schemas_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MAX_KEPT", 3)
    known = SentSchemas()
    wide = known.of(pa.schema([(f"column_{n}", pa.int64()) for n in range(200)]))
    assert wide.schema.names[199] == "column_199"
    assert len(known._kept) == 0
    schemas = [pa.schema([(f"c{n}", pa.int64())]) for n in range(10)]
    for schema in schemas:
        assert known.of(schema).schema.equals(schema)
    assert [sent.schema for sent in known._kept.values()] == schemas[-3:]


def test_what_cannot_be_sent_is_refused_every_time() -> None:
    known = SentSchemas()
    kind = DICTIONARY
    for _ in range(40):
        kind = pa.list_(kind)
    for _ in range(2):
        with pytest.raises(UnsupportedQuery, match="nested deeper"):
            known.of(pa.schema([("a", kind)]))


@pytest.mark.parametrize("kind", [DICTIONARY, pa.string()])
def test_batches_are_read_in_the_form_that_is_sent_with_their_bytes(kind: pa.DataType) -> None:
    given = [
        pa.record_batch({"a": pa.array(["x", None, "yy"] * n, pa.string()).cast(kind)})
        for n in (3, 5)
    ]
    sent = SentSchemas().of(given[0].schema)
    expected = pa.table({"a": pa.array(["x", None, "yy"] * 8)})
    for count in (1, 2):
        reader = pa.RecordBatchReader.from_batches(given[0].schema, given[:count])
        batch, size, is_last = read_some(reader, sent, 1 << 20)
        assert batch is not None
        assert is_last
        assert size == batch.nbytes
        parts = list(slices(batch, 20))
        assert len(parts) > 1
        assert pa.Table.from_batches(parts).equals(expected.slice(0, batch.num_rows))
