"""What the tests of searching share."""

from __future__ import annotations

from pathlib import Path

import pytest

import lrfinder
from tests.searching.test_searching import tiny_task


@pytest.fixture(scope="session")
def measured_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A range test of the tiny task, in a file that other processes can load."""
    task = tiny_task()
    started = task.start(0, device="cpu")
    result = lrfinder.range_test(
        started.model,
        started.optimizer,
        task.loss_fn,
        started.train_loader,
        effort="quick",
        replicas=1,
    )
    path = tmp_path_factory.mktemp("measured") / "measured.json"
    result.save(path)
    return path
