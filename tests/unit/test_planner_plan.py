"""Resolving, routing and caching of plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accel_dask.errors import InvalidQuery, NotResident, UnknownTable
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute, RoutingTable
from accel_dask.model.snapshot import Column
from accel_dask.model.tenant import Quota
from accel_dask.query_planner.cache import PlanCache
from accel_dask.query_planner.pipeline import explain, plan_query
from accel_dask.query_planner.plan import FragmentKind, PlanContext

ACME, RIVAL = TenantId("acme"), TenantId("rival")


def shard(tenant: str, name: str, number: int, index: int) -> ShardId:
    return ShardId(f"{tenant}{name}{number}{index}".encode().hex()[:32].ljust(32, "0"))


def executor(
    tenant: TenantId, worker: str, *attached: tuple[str, int, int], generation: int = 1
) -> ExecutorRoute:
    return ExecutorRoute(
        worker=WorkerId(worker),
        tenant=tenant,
        generation=generation,
        incarnation=f"{worker}{generation}",
        address=f"grpc://{worker}:{generation}",
        attachments=frozenset(
            Attachment(name, EpochNumber(number), shard(tenant, name, number, index))
            for name, number, index in attached
        ),
    )


def route(
    tenant: TenantId, name: str, number: int, shards: int, *executors: ExecutorRoute
) -> DatasetRoute:
    return DatasetRoute(
        dataset_id=DatasetId(tenant, name),
        epoch=EpochNumber(number),
        snapshot_id=None,
        columns=(Column(name="x", type="BIGINT"), Column(name="Day", type="DATE")),
        shards=tuple(
            ShardSummary(shard_id=shard(tenant, name, number, i), rows=1, source_bytes=1)
            for i in range(shards)
        ),
        executors=executors,
    )


def table(*routes: DatasetRoute, revision: int = 1, declared: tuple[DatasetId, ...] = ()):  # type: ignore[no-untyped-def]
    return RoutingTable(revision, {r.dataset_id: r for r in routes}, {}, {}, b"", declared)


def context(routing: RoutingTable, tenant: TenantId = ACME, **fields: object) -> PlanContext:
    return PlanContext(tenant=tenant, routing=routing, **fields)  # type: ignore[arg-type]


BOTH = executor(ACME, "w1", ("flights", 3, 0), ("flights", 3, 1), ("carriers", 5, 0))
FLIGHTS_ONLY = executor(ACME, "w2", ("flights", 3, 0), ("flights", 3, 1))
HALF = executor(ACME, "w3", ("flights", 3, 0))
RIVALS = executor(RIVAL, "w1", ("secrets", 1, 0))
ROUTING = table(
    route(ACME, "flights", 3, 2, BOTH, FLIGHTS_ONLY, HALF),
    route(ACME, "carriers", 5, 1, BOTH),
    route(RIVAL, "secrets", 1, 1, RIVALS),
)


def test_a_plan_names_epochs_shards_and_only_executors_that_have_all() -> None:
    plan = plan_query("select * from flights", context(ROUTING))
    (fragment,) = plan.fragments
    assert fragment.kind is FragmentKind.HOT
    assert {found.worker for found in fragment.candidates} == {"w1", "w2"}
    (token,) = fragment.tokens
    assert (token.dataset, token.epoch, len(token.shards)) == ("flights", 3, 2)
    (used,) = plan.datasets
    assert (used.shards, used.total_shards) == (2, 2)


def test_a_join_runs_where_all_its_datasets_are() -> None:
    plan = plan_query("select * from flights join carriers using (x)", context(ROUTING))
    assert [found.worker for found in plan.fragments[0].candidates] == ["w1"]
    assert [token.dataset for token in plan.fragments[0].tokens] == ["carriers", "flights"]


def test_the_order_of_candidates_depends_on_the_seed_alone() -> None:
    def order(seed: str) -> list[str]:
        plan = plan_query("select x from flights", context(ROUTING, seed=seed))
        return [found.worker for found in plan.fragments[0].candidates]

    assert order("a") == order("a")
    assert {tuple(order(f"seed {i}")) for i in range(20)} == {("w1", "w2"), ("w2", "w1")}


def test_a_query_that_no_executor_has_whole_is_not_resident() -> None:
    routing = table(route(ACME, "flights", 3, 2, HALF))
    with pytest.raises(NotResident, match=r"1 of the 2 shards of acme\.flights@3"):
        plan_query("select 1 from flights", context(routing))


def test_datasets_on_different_hosts_are_joined_by_one_that_asks_the_other() -> None:
    alone = executor(ACME, "w9", ("carriers", 5, 0))
    routing = table(
        route(ACME, "flights", 3, 2, FLIGHTS_ONLY), route(ACME, "carriers", 5, 1, alone)
    )
    (fragment,) = plan_query("select 1 from flights, carriers", context(routing)).fragments
    # Whoever has most of it itself.
    assert [found.worker for found in fragment.candidates] == ["w2"]
    (one,) = fragment.inputs
    (part,) = one.parts
    assert [found.worker for found in part.candidates] == ["w9"]
    assert [token.dataset for token in part.tokens] == ["carriers"]
    assert [token.dataset for token in fragment.tokens] == ["flights"]


def test_a_query_without_tables_runs_on_any_executor_of_the_tenant() -> None:
    plan = plan_query("select 1", context(ROUTING))
    assert {found.worker for found in plan.fragments[0].candidates} == {"w1", "w2", "w3"}
    assert plan.fragments[0].tokens == ()
    with pytest.raises(NotResident, match="has no executor"):
        plan_query("select 1", context(ROUTING, TenantId("newcomer")))


@pytest.mark.parametrize(
    "name", ["secrets", "rival.secrets", "accel.rival.secrets", "nothing", "rival.nothing"]
)
def test_another_tenants_dataset_reads_like_one_that_does_not_exist(name: str) -> None:
    with pytest.raises(UnknownTable) as refused:
        plan_query(f"select * from {name}", context(ROUTING))
    absent = name.replace("secrets", "absent1")
    with pytest.raises(UnknownTable) as also_refused:
        plan_query(f"select * from {absent}", context(ROUTING))
    assert str(refused.value).replace("secrets", "absent1") == str(also_refused.value)


def test_a_typing_error_is_answered_with_the_tenants_own_names_only() -> None:
    with pytest.raises(UnknownTable, match=r"did you mean flights\?.*carriers, flights") as refused:
        plan_query("select * from fligts", context(ROUTING))
    assert "secret" not in str(refused.value)
    with pytest.raises(UnknownTable) as refused:
        plan_query("select * from secret", context(ROUTING))
    assert "mean" not in str(refused.value)


def test_names_that_differ_in_their_case_only_are_never_guessed_at() -> None:
    flights = route(ACME, "flights", 3, 2, BOTH)
    routing = table(flights, declared=(DatasetId(ACME, "Flights"),))
    with pytest.raises(InvalidQuery, match="datasets Flights, flights, which SQL does not tell"):
        plan_query("select count(*) from FLIGHTS", context(routing))
    others = table(flights, declared=(DatasetId(RIVAL, "FLIGHTS"),))
    assert plan_query("select count(*) from FLIGHTS", context(others)).datasets


def test_a_declared_dataset_without_an_epoch_is_not_resident() -> None:
    routing = table(declared=(DatasetId(ACME, "coming"), DatasetId(RIVAL, "theirs")))
    with pytest.raises(NotResident, match=r"acme\.coming has no READY epoch yet"):
        plan_query("select * from coming", context(routing))
    with pytest.raises(UnknownTable):
        plan_query("select * from theirs", context(routing))


def test_names_are_found_whatever_their_case_and_qualification() -> None:
    for name in ("FLIGHTS", '"Flights"', "acme.flights", '"Acme"."FLIGHTS"', "accel.acme.flights"):
        assert plan_query(f"select 1 from {name}", context(ROUTING)).datasets


def test_the_quota_bounds_the_query() -> None:
    quota = Quota(deadline_ms=123, max_result_rows=45)
    plan = plan_query("select 1", context(ROUTING, quota=quota))
    assert (plan.limits.deadline_ms, plan.limits.max_result_rows) == (123, 45)


def test_parameters_are_counted_and_related_to_columns() -> None:
    plan = plan_query(
        "select x + ? from flights where day = ? and x in (?, ?) and f(x) = 1".replace(
            "f(x)", "abs(x)"
        ),
        context(ROUTING),
    )
    assert plan.parameters == 4
    assert plan.parameter_columns == ("", "day", "x", "x")
    plan = plan_query("select $2 from flights where $1 < Day", context(ROUTING))
    assert plan.parameter_columns == ("day", "")


def test_a_plan_explains_itself() -> None:
    text = explain(plan_query("select 1 from flights", context(ROUTING)))
    assert "prune: acme.flights@3" in text
    assert "2 of 2 shards" in text


# The cache


def test_a_plan_is_kept_while_the_datasets_it_uses_are_unchanged() -> None:
    cache = PlanCache()
    plan = cache.plan("select 1 from flights", context(ROUTING))
    assert cache.plan("select 1 from flights", context(ROUTING)) is plan
    other = table(*ROUTING.datasets.values(), route(ACME, "more", 1, 1), revision=2)
    assert cache.plan("select 1 from flights", context(other)) is plan
    same = table(
        *(replace(r, executors=tuple(r.executors)) for r in ROUTING.datasets.values()), revision=3
    )
    assert cache.plan("select 1 from flights", context(same)) is plan


@pytest.mark.parametrize(
    "changed",
    [
        route(ACME, "flights", 4, 2, executor(ACME, "w1", ("flights", 4, 0), ("flights", 4, 1))),
        route(ACME, "flights", 3, 2, FLIGHTS_ONLY),
        route(
            ACME, "flights", 3, 2, replace(BOTH, incarnation="restarted", address="grpc://new:1")
        ),
    ],
    ids=["new epoch", "executor gone", "executor restarted"],
)
def test_a_plan_is_made_anew_when_what_it_uses_has_changed(changed: DatasetRoute) -> None:
    cache = PlanCache()
    before = cache.plan("select 1 from flights", context(ROUTING))
    now = table(changed, revision=2)
    after = cache.plan("select 1 from flights", context(now))
    assert after is not before
    assert after.fragments[0].candidates == changed.executors
    assert after.datasets[0].epoch == changed.epoch


def test_a_plan_is_made_anew_when_the_quota_has_changed() -> None:
    cache = PlanCache()
    cache.plan("select 1 from flights", context(ROUTING))
    newer = table(*ROUTING.datasets.values(), revision=2)
    plan = cache.plan("select 1 from flights", context(newer, quota=Quota(max_result_rows=7)))
    assert plan.limits.max_result_rows == 7


@pytest.mark.parametrize(
    "form",
    [
        "select x from flights where x > {} and x < 77",
        'select "Day" from flights where "Day" > DATE \'2020-01-{}\' order by 1 limit 5',
        "select 1 from flights f join carriers c on f.x = c.x where c.\"Day\" < '2021-01-{}'",
        "with late as (select * from flights where x > {}) select max(late.x) from late",
        "select flights from flights where x = {}",
        "select x from flights where \"Day\" = '20-{}-x' or x in (select x from carriers)",
    ],
)
def test_what_is_known_of_a_form_gives_the_plan_of_a_first_look(form: str) -> None:
    cache = PlanCache()
    routings = (ROUTING, table(*ROUTING.datasets.values(), revision=2))
    for number in range(10, 20):
        now = context(routings[number % 2], seed="same")
        assert cache.plan(form.format(number), now) == plan_query(form.format(number), now)


def test_plans_of_tenants_are_kept_apart() -> None:
    routing = table(
        route(ACME, "t", 1, 1, executor(ACME, "w1", ("t", 1, 0))),
        route(RIVAL, "t", 1, 1, executor(RIVAL, "w1", ("t", 1, 0))),
    )
    cache = PlanCache()
    ours = cache.plan("select * from t", context(routing, ACME))
    theirs = cache.plan("select * from t", context(routing, RIVAL))
    assert ours.fragments[0].tokens != theirs.fragments[0].tokens


def test_the_cache_forgets_the_least_used() -> None:
    cache = PlanCache(capacity=3)
    for number in range(10):
        cache.plan(f"select {number} from flights", context(ROUTING))
    assert len(cache) == 3


def test_a_refused_statement_is_not_kept() -> None:
    cache = PlanCache()
    for _ in range(2):
        with pytest.raises(UnknownTable):
            cache.check("select * from nothing", context(ROUTING))
    with pytest.raises(UnknownTable):
        cache.plan("select * from nothing", context(ROUTING))
    served = table(route(ACME, "nothing", 1, 1, executor(ACME, "w", ("nothing", 1, 0))), revision=2)
    assert cache.plan("select * from nothing", context(served)).datasets
