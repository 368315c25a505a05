"""The groups in which tests run when two processes share them."""

from __future__ import annotations

from pathlib import Path

from scheduling import CLUSTERS, ENGINES, TOGETHER, group_of, order_of

ROOT = Path(__file__).parent.parent.parent
FILES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in (ROOT / "tests").glob("*/test_*.py")
    if file != Path(__file__)
}


def users_of(text: str) -> set[str]:
    """The groups of the files that have `text`."""
    return {group_of(file) for file, found in FILES.items() if text in found}


def test_no_group_is_empty() -> None:
    for start in TOGETHER:
        assert any(file.startswith(start) for file in FILES), start


def test_whole_clusters_run_one_after_the_other() -> None:
    assert users_of("pytest.mark.cluster") == {CLUSTERS}


def test_the_engines_of_a_run_are_started_in_as_few_processes_as_may_be() -> None:
    assert users_of("worlds: Worlds") == users_of("engine_world: EngineWorld") | {CLUSTERS}
    assert users_of("engine_world: EngineWorld") == {ENGINES}


def test_any_other_file_is_a_group_of_its_own() -> None:
    file = "tests/unit/test_scheduling.py"
    assert group_of(f"{file}::test_x[a::b]") == file


def test_clusters_come_first_and_what_has_deadlines_last() -> None:
    files = sorted(FILES, key=order_of)
    assert [group_of(file) for file in files[:3]] == [CLUSTERS] * 3
    assert order_of("tests/property/test_pruning_property.py") < order_of(
        "tests/unit/test_imports.py"
    )
