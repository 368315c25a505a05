"""Fixtures that tests of several folders use."""

from __future__ import annotations

from pathlib import Path

import pytest
from whole_cluster import Lakehouse


@pytest.fixture
def lakehouse(tmp_path: Path) -> Lakehouse:
    return Lakehouse(tmp_path / "lakehouse")
