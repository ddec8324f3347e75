"""What the tests of searching share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.workers import quick_range_test
from tests.searching.test_searching import tiny_task


@pytest.fixture(scope="session")
def measured_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A range test of the tiny task, in a file that other processes can load."""
    path = tmp_path_factory.mktemp("measured") / "measured.json"
    quick_range_test(tiny_task()).save(path)
    return path
