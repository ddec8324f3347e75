"""Tests of ramps: what rises, what is held, and that known critical learning rates are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lrfinder
from lrfinder.engines import SteppingEngine
from lrfinder.snapshots import Snapshot
from lrfinder.stepping import Replica
from lrfinder.suggestions.curves import combined
from lrfinder.sweeping import default_range, ramp_groups, ramp_lrs, ramp_together
from tests.helpers import Quadratic, quadratic_groups, quadratic_loss


def engine(**curvatures: float) -> SteppingEngine:
    model = Quadratic(**curvatures)
    optimizer = torch.optim.SGD(lrfinder.param_groups(model, quadratic_groups(model)), lr=0.1)
    return SteppingEngine(
        Replica(model, optimizer, quadratic_loss), Snapshot(model, optimizer), [None]
    )


LRS = ramp_lrs(1e-4, 1e4, 160)


def test_a_ramp_is_exponential_and_uses_both_ends() -> None:
    lrs = ramp_lrs(1e-7, 10, 100)
    assert (lrs[0], lrs[-1], len(lrs)) == (1e-7, 10.0, 100)
    assert np.diff(np.log(lrs)) == pytest.approx(np.log(lrs[1] / lrs[0]))


@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0])
def test_the_critical_learning_rate_of_a_quadratic_is_found(curvature: float) -> None:
    ramps = ramp_together(engine(a=curvature), {"a": 1.0}, {}, LRS, replicas=2)
    critical = 2 / curvature
    reading = combined([ramp.read() for ramp in ramps])
    assert reading.status == "ok"
    assert critical / 1000 < reading.low < reading.steepest < critical
    assert critical / 5 < reading.minimum < critical * 1.5
    assert critical < reading.high < critical * 10
    assert [ramp.trace.status for ramp in ramps] == ["stopped"] * 2
    assert "above the limit" in ramps[0].trace.message


def test_each_group_has_its_own_critical_learning_rate() -> None:
    highs = {}
    for name in ("a", "b"):
        held = {other: 1e-5 for other in ("a", "b") if other != name}
        (ramp,) = ramp_groups(engine(a=100.0, b=1.0), {name: held}, LRS, replicas=1)[name]
        assert ramp.group == name
        assert set(ramp.trace.lrs[next(iter(held))].tolist()) == {1e-5}
        assert ramp.trace.lrs[name].tolist() == list(ramp.lrs[: len(ramp.trace)])
        highs[name] = ramp.read().high
    assert 0.02 < highs["a"] < 0.1
    # Where the steep group hardly moves, its loss is a floor under the other's: still past 2 / h.
    assert highs["b"] > 2


def test_ratios_are_kept_and_others_held() -> None:
    (ramp,) = ramp_together(
        engine(a=1.0, b=1.0, c=1.0), {"c": 1.0, "a": 0.01}, {"b": 0.5}, LRS, replicas=1
    )
    lrs = ramp.trace.lrs
    assert list(lrs) == ["a", "b", "c"]
    assert lrs["a"].tolist() == (0.01 * LRS[: len(ramp.trace)]).tolist()
    assert set(lrs["b"].tolist()) == {0.5}


def test_progress_is_told() -> None:
    told: list[int] = []
    ramps = ramp_together(
        engine(a=1.0), {"a": 1.0}, {}, LRS, replicas=3, on_ramp=lambda steps: told.append(steps)
    )
    assert told == [len(ramp.trace) for ramp in ramps]
    assert [ramp.replica for ramp in ramps] == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("SGD", 10.0),
        ("ASGD", 10.0),
        ("LBFGS", 10.0),
        ("Adam", 3.0),
        ("AdamW", 3.0),
        ("RMSprop", 3.0),
    ],
)
def test_ranges_by_family(kind: str, end: float) -> None:
    make: Any = getattr(torch.optim, kind)
    own = type("Mine", (make,), {})
    for cls in (make, own):
        assert default_range(cls([torch.zeros(1)], lr=0.1))[1] == end
