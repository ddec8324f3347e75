"""What the fine-tunes of the benchmark rest on, and what it found."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks import fine_tune
from benchmarks.markdown import read


def test_weights_in_other_units_are_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tune, "FINE_TUNE_STEPS", 5)
    as_usual = fine_tune.Case(False, None, str(tmp_path))
    in_units = fine_tune.Case(False, None, str(tmp_path), unit=100.0)
    for case in (as_usual, in_units):
        case.val_data = case.val_data[::10]
    first, second = as_usual.loss(1e-3, 0), in_units.loss(1e-5, 0)
    assert second == pytest.approx(first, rel=1e-5)
    assert second != pytest.approx(in_units.loss(1e-3, 0), rel=1e-3)


def test_suggestions_are_near_the_best_of_the_grid() -> None:
    data = read("fine_tune")
    assert len(data["rows"]) == 3
    for row in data["rows"]:
        assert len(row["found"]) == data["seeds"] >= 2
        assert row["best_loss"] == min(point["loss"] for point in row["grid"])
        errors = [abs(one["error"]) for one in row["found"] if one["suggested"] is not None]
        assert len(errors) >= 2
        assert statistics.median(errors) <= data["bar"]
    best = [row["best"] for row in data["rows"]]
    assert best[1] == pytest.approx(best[0] / fine_tune.UNIT, rel=1.0)
