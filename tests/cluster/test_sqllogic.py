"""The files of `tests/sqllogic`: plain DuckDB, one executor, and several with some shards cold
give the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from answers import GatewayClient, gateway_client, hosts_of, publish_all
from sqllogic_runner import LogicFile, Plain, read_files, run_file

from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.dataset import ColdPolicy, Dataset, Spread
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.tenant import MIB, Quota

FILES: Final = read_files(Path(__file__).parent.parent / "sqllogic")
HOSTS: Final = {"one": 1, "several": 3}
QUOTA: Final = Quota(executor_memory_bytes=256 * MIB, memory_bytes_per_host=384 * MIB)
HOT_SHARDS: Final = 3
MAY_REFUSE: Final = {"one": 0.0, "several": 0.1}
"""Share of a file's queries that may be refused, by way."""

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.path.stem)


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    plain = Plain(FILES)
    yield plain
    plain.engine.close()


@contextmanager
def served(way: str, plain: Plain, directory: Path) -> Iterator[GatewayClient]:
    """All tables on a cluster of this way's hosts."""
    with LocalAccelCluster(LocalOptions(workers=HOSTS[way])) as cluster:
        token = cluster.create_tenant("logic", QUOTA)
        datasets = plain.datasets("logic", directory)
        publish_all(cluster, map(partly_cold, datasets) if way == "several" else datasets)
        assert len(hosts_of(cluster, "logic", "sales")) == HOSTS[way]
        assert has_cold_shards(cluster, "sales") == (way == "several")
        with gateway_client(cluster, "logic", token) as client:
            yield client


def partly_cold(dataset: Dataset) -> Dataset:
    """Of what is spread, the last shards are in memory, and the others at the source."""
    if dataset.spread is not Spread.SPREAD:
        return dataset
    return replace(dataset, cold=ColdPolicy.ALLOW, hot_shards=HOT_SHARDS)


def has_cold_shards(cluster: LocalAccelCluster, name: str) -> bool:
    dataset = DatasetId(TenantId("logic"), name)
    epoch = cluster.view.serving_epoch(dataset)
    assert epoch is not None
    placement = cluster.view.placement(dataset, epoch.number)
    return placement is not None and bool(placement.cold_shards)


@pytest.fixture(scope="module")
def one(plain: Plain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayClient]:
    with served("one", plain, tmp_path_factory.mktemp("one")) as client:
        yield client


@pytest.fixture(scope="module")
def several(plain: Plain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayClient]:
    with served("several", plain, tmp_path_factory.mktemp("several")) as client:
        yield client


@each_file
def test_plain_duckdb_gives_the_rows_that_are_written_down(file: LogicFile, plain: Plain) -> None:
    for record in file.records:
        if record.kind == "query" and "plain" in record.ways:
            plain.check(record)


@pytest.mark.cluster
@each_file
def test_one_executor_gives_the_same_rows(
    file: LogicFile, plain: Plain, one: GatewayClient
) -> None:
    check(file, plain, one, "one")


@pytest.mark.cluster
@each_file
def test_several_executors_with_some_shards_cold_give_the_same_rows(
    file: LogicFile, plain: Plain, several: GatewayClient
) -> None:
    check(file, plain, several, "several")


def check(file: LogicFile, plain: Plain, client: GatewayClient, way: str) -> None:
    score = run_file(file, plain, client, way)
    print(f"{file.path.stem}, {way}: {score.answered} answered, {len(score.refused)} refused")
    for refused in score.refused:
        print(f"  {refused}")
    assert not score.wrong, "\n".join(score.wrong)
    assert len(score.refused) <= MAY_REFUSE[way] * (score.answered + len(score.refused))
