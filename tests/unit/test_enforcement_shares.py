"""Who is entitled to how much CPU, who runs into debt, and which weights follow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from accel_dask.model.ids import TenantId
from accel_dask.worker_plugin.enforcement.shares import (
    DEMOTION,
    FULL_WEIGHT,
    MAX_DEBT_SECONDS,
    CpuAccount,
    CpuShare,
    entitlements,
    kernel_weights,
    settle,
)

CALM, NOISY = TenantId("calm"), TenantId("noisy")
EQUAL = {CALM: CpuShare(weight=100), NOISY: CpuShare(weight=100)}
TICK = 0.1


def after(
    seconds: float,
    cores_used: dict[TenantId, float],
    *,
    before: dict[TenantId, CpuAccount] | None = None,
    shares: dict[TenantId, CpuShare] = EQUAL,
    is_contended: bool = True,
) -> dict[TenantId, CpuAccount]:
    accounts = before or {}
    for _ in range(round(seconds / TICK)):
        accounts = settle(
            accounts,
            shares,
            {tenant: cores * TICK for tenant, cores in cores_used.items()},
            seconds=TICK,
            cores=2.0,
            is_contended=is_contended,
        )
    return accounts


def test_a_tenant_beyond_its_share_is_demoted_within_three_looks_while_another_works() -> None:
    accounts = after(0.3, {CALM: 0.2, NOISY: 1.8})
    assert accounts[NOISY].is_demoted
    assert not accounts[CALM].is_demoted


def test_loaders_of_a_low_weight_make_no_debt_but_their_tenant_is_one_to_share_with() -> None:
    accounts: dict[TenantId, CpuAccount] = {}
    for _ in range(10):
        accounts = settle(
            accounts,
            EQUAL,
            {NOISY: 1.4 * TICK},
            {CALM: 0.6 * TICK},
            seconds=TICK,
            cores=2.0,
            is_contended=True,
        )
    assert accounts[CALM] == CpuAccount(used_cores=accounts[CALM].used_cores)
    assert accounts[CALM].used_cores > 0.5
    assert accounts[NOISY].is_demoted


def test_two_tenants_that_both_want_all_are_both_left_alone() -> None:
    accounts = after(30, {CALM: 1.05, NOISY: 0.95})
    assert not any(account.is_demoted for account in accounts.values())


def test_who_works_alone_makes_no_debt() -> None:
    assert after(30, {NOISY: 2.0}) == {CALM: CpuAccount(), NOISY: CpuAccount(used_cores=2.0)}


def test_nobody_makes_debt_while_no_one_waits() -> None:
    accounts = after(30, {CALM: 0.2, NOISY: 1.7}, is_contended=False)
    assert accounts[NOISY].debt == 0


def test_a_demoted_tenant_stays_so_while_it_takes_what_is_idle_and_pays_by_pausing() -> None:
    demoted = after(10, {CALM: 0.2, NOISY: 1.8})
    still = after(1.0, {CALM: 0.2, NOISY: 1.8}, before=demoted)
    assert still[NOISY].is_demoted
    paid = after(MAX_DEBT_SECONDS + TICK, {CALM: 0.2, NOISY: 0.0}, before=still)
    assert not paid[NOISY].is_demoted


def test_a_small_burst_is_not_held_against_anybody() -> None:
    assert not after(0.1, {CALM: 0.2, NOISY: 1.8})[NOISY].is_demoted


def test_a_demoted_tenant_gives_way_while_it_is_at_work_and_never_stands_still() -> None:
    at_work = after(1.0, {CALM: 0.2, NOISY: 1.8})
    assert at_work[NOISY].gives_way
    assert not at_work[CALM].gives_way
    stands_still = after(TICK, {CALM: 2.0, NOISY: 0.05}, before=at_work)
    assert stands_still[NOISY].is_demoted
    assert not stands_still[NOISY].gives_way  # so that it has its low weight at least
    got_some = after(TICK, {CALM: 1.8, NOISY: 0.12}, before=stands_still)
    assert got_some[NOISY].gives_way
    paid = after(MAX_DEBT_SECONDS + TICK, {CALM: 2.0, NOISY: 0.0}, before=got_some)
    assert not paid[NOISY].gives_way


def test_guarantees_come_first_and_weights_share_the_rest() -> None:
    shares = {
        CALM: CpuShare(weight=100, guarantee_cores=1.0),
        NOISY: CpuShare(weight=300, guarantee_cores=0.2),
    }
    assert entitlements(shares, 2.0) == {CALM: 1.0 + 0.8 / 4, NOISY: 0.2 + 0.8 * 3 / 4}


def test_weights_follow_entitlements_and_demotion() -> None:
    shares = {CALM: CpuShare(weight=100), NOISY: CpuShare(weight=50)}
    assert kernel_weights(shares, (), 2.0) == {CALM: FULL_WEIGHT, NOISY: FULL_WEIGHT // 2}
    assert kernel_weights(shares, [NOISY], 2.0) == {
        CALM: FULL_WEIGHT,
        NOISY: round(FULL_WEIGHT / 2 / DEMOTION),
    }
    assert kernel_weights({}, (), 2.0) == {}


TENANTS = st.dictionaries(
    st.integers(1, 40).map(lambda n: TenantId(f"t{n}")),
    st.builds(
        CpuShare,
        weight=st.integers(1, 10_000),
        guarantee_cores=st.floats(0, 8, allow_nan=False),
    ),
    min_size=1,
    max_size=12,
)


@given(shares=TENANTS, cores=st.integers(1, 64))
def test_entitlements_share_out_all_cores_and_keep_every_guarantee_that_can_be(
    shares: dict[TenantId, CpuShare], cores: int
) -> None:
    entitled = entitlements(shares, cores)
    assert abs(sum(entitled.values()) - cores) < 1e-6
    guaranteed = sum(share.guarantee_cores for share in shares.values())
    if guaranteed <= cores:
        for tenant, share in shares.items():
            assert entitled[tenant] >= share.guarantee_cores - 1e-9
    weights = kernel_weights(shares, (), cores)
    assert all(1 <= weight <= FULL_WEIGHT for weight in weights.values())


@given(
    shares=TENANTS,
    use=st.lists(st.tuples(st.floats(0, 3), st.booleans()), min_size=1, max_size=30),
)
def test_debts_stay_within_bounds_and_idleness_pays_every_one(
    shares: dict[TenantId, CpuShare], use: list[tuple[float, bool]]
) -> None:
    accounts: dict[TenantId, CpuAccount] = {}
    for cores_used, is_contended in use:
        used = dict.fromkeys(shares, cores_used * TICK)
        accounts = settle(
            accounts, shares, used, seconds=TICK, cores=2.0, is_contended=is_contended
        )
        entitled = entitlements(shares, 2.0)
        for account in accounts.values():
            assert 0 <= account.debt <= 2.0 * MAX_DEBT_SECONDS
        assert set(entitled) == set(accounts)
    for _ in range(round((MAX_DEBT_SECONDS + 1) / TICK)):
        accounts = settle(accounts, shares, {}, seconds=TICK, cores=2.0, is_contended=True)
    owing = {t for t, a in accounts.items() if a.is_demoted}
    assert all(entitlements(shares, 2.0)[tenant] < 1e-3 for tenant in owing)
