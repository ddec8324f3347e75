"""Tests of what a whole race shows: known answers, and what moves with what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfinder.racing import LINE, RUNGS, Landscape, Standing, box, drawn_to_one, horizon, line

Loss = Callable[[float, float, int], float]


def bowl(x: float, y: float, steps: int) -> float:
    """Lowest at 0.1 and 1.0, whatever the steps; a group's LR matters as far as it is off."""
    return 1.0 + min((x + 1.0) ** 2 + y**2, 4.0)


def drifting(x: float, y: float, steps: int) -> float:
    """The best LRs fall by a decade while the steps grow tenfold."""
    moved = math.log10(steps / RUNGS[-1])
    return bowl(x + moved, y + moved, steps)


def standings(
    loss: Loss, *, noise: float = 0.0, shift: float = 0.0, seed: int = 0
) -> list[Standing]:
    random = np.random.default_rng(seed)
    minimum = 10**shift
    candidates = line(minimum, {"a": 1.0, "b": 1.0}, {})
    candidates += box(minimum, ["a", "b"], {}, count=40, seed=seed)
    found = []
    for number, candidate in enumerate(candidates):
        x, y = (math.log10(candidate.lrs[name]) - shift for name in "ab")
        scores = tuple(loss(x, y, rung) + noise * random.normal() for rung in RUNGS)
        found.append(Standing(number, candidate.kind, candidate.lrs, scores, diverged=False))
    return sorted(found, key=lambda standing: standing.score)


def test_the_lowest_place_of_a_bowl_is_found_between_the_candidates() -> None:
    found = standings(bowl)
    lrs = Landscape(found, ["a", "b"], start=5.0).best(RUNGS[-1])
    assert math.log10(lrs["a"]) == pytest.approx(-1.0, abs=0.15)
    assert math.log10(lrs["b"]) == pytest.approx(0.0, abs=0.15)


def test_noise_moves_it_less_than_the_winner() -> None:
    def off(lrs: dict[str, float]) -> float:
        return math.hypot(math.log10(lrs["a"]) + 1, math.log10(lrs["b"]))

    ours, winners = [], []
    for seed in range(12):
        found = standings(bowl, noise=0.4, seed=seed)
        ours.append(off(Landscape(found, ["a", "b"], start=5.0).best(RUNGS[-1], seed=seed)))
        winners.append(off(dict(found[0].lrs)))
    assert float(np.median(ours)) < 0.7 * float(np.median(winners))
    assert max(ours) < max(winners)


def test_a_line_gives_one_learning_rate() -> None:
    found = [standing for standing in standings(bowl) if standing.kind == "equal"]
    assert len(found) == len(LINE)
    lrs = Landscape(found, ["a", "b"], start=5.0).best(RUNGS[-1])
    assert lrs["a"] == lrs["b"]
    assert math.log10(lrs["a"]) == pytest.approx(-0.5, abs=0.1)  # in the middle of -1 and 0


def test_a_line_keeps_the_ratios() -> None:
    found = [
        Standing(number, "equal", {"a": 0.01 * lr, "b": lr}, (lr,) * len(RUNGS), diverged=False)
        for number, lr in enumerate((1.0, 2.0, 4.0, 8.0))
    ]
    lrs = Landscape(found, ["a", "b"], start=9.0).best(RUNGS[-1])
    assert lrs["a"] == pytest.approx(0.01 * lrs["b"])
    assert lrs["b"] < 2.0


def test_a_drift_goes_on_for_longer_trainings() -> None:
    landscape = Landscape(standings(drifting), ["a", "b"], start=5.0)
    near, far = landscape.best(60.0), landscape.best(200.0)
    for name in "ab":
        assert math.log10(far[name] / near[name]) == pytest.approx(-math.log10(200 / 60), abs=0.3)


@settings(max_examples=10, deadline=None)
@given(st.floats(-3.0, 3.0))
def test_it_moves_with_the_learning_rates(shift: float) -> None:
    here = Landscape(standings(bowl), ["a", "b"], start=5.0).best(60.0)
    there = Landscape(standings(bowl, shift=shift), ["a", "b"], start=5.0).best(60.0)
    for name, lr in here.items():
        assert there[name] == pytest.approx(lr * 10**shift, rel=0.02)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 100.0), st.floats(-100.0, 100.0))
def test_the_unit_and_sign_of_the_loss_do_not_matter(scale: float, offset: float) -> None:
    plain = Landscape(standings(bowl), ["a", "b"], start=5.0).best(60.0)

    def moved(x: float, y: float, steps: int) -> float:
        return scale * bowl(x, y, steps) + offset

    found = Landscape(standings(moved), ["a", "b"], start=scale * 5.0 + offset).best(60.0)
    assert found == pytest.approx(plain, rel=1e-3)


def test_the_advantage_has_the_right_sign_size_and_error() -> None:
    landscape = Landscape(standings(bowl, noise=0.05), ["a", "b"], start=5.0)
    best, single = {"a": 0.1, "b": 1.0}, {"a": 10**-0.5, "b": 10**-0.5}
    share, error = landscape.advantage(best, single, RUNGS[-1])
    assert share == pytest.approx((bowl(-0.5, -0.5, 0) - bowl(-1, 0, 0)) / 4, abs=0.06)
    assert 0 < error < share
    backwards, same = landscape.advantage(single, best, RUNGS[-1])
    assert backwards == pytest.approx(-share)
    assert same == pytest.approx(error)


def test_longer_trainings_are_read_later_and_then_lowered() -> None:
    readings = [horizon(planned, "joint") for planned in (1, 100, 400, 1000, 10_000, 10**7)]
    assert readings == sorted(readings)
    assert readings[0] == (RUNGS[1], 0.0)
    assert readings[2] == (100.0, 0.0)
    assert {steps for steps, _ in readings[3:]} == {RUNGS[-1]}
    # Half a decade for each decade of length.
    assert readings[4][1] - readings[3][1] == pytest.approx(0.5)
    assert horizon(100, "equal") > horizon(100, "joint")


@pytest.mark.parametrize(("is_proportional", "most"), [(True, 1.0), (False, 0.75)])
def test_the_longer_a_training_the_nearer_its_groups_come_to_one_lr(
    is_proportional: bool, most: float
) -> None:
    raced, single = {"a": 0.01, "b": 1.0}, {"a": 0.05, "b": 0.05}

    def ways(decades: float) -> list[float]:
        drawn = drawn_to_one(raced, single, decades, is_proportional=is_proportional)
        return [math.log(drawn[n] / single[n]) / math.log(raced[n] / single[n]) for n in raced]

    assert ways(0.0) == pytest.approx([most] * 2)
    assert ways(0.4) == pytest.approx([10**-0.2] * 2)
    assert ways(1.0) == ways(5.0) == pytest.approx([0.5] * 2)
    alike = drawn_to_one(single, single, 1.0, is_proportional=is_proportional)
    assert alike == pytest.approx(single)


def test_the_means_of_the_weights_steady_what_is_read() -> None:
    def off(lrs: dict[str, float]) -> float:
        return math.hypot(math.log10(lrs["a"]) + 1, math.log10(lrs["b"]))

    alone, both = [], []
    for seed in range(8):
        found = standings(bowl, noise=0.5, seed=seed)
        clean = {one.candidate: one.scores for one in standings(bowl, seed=seed)}
        with_means = [replace(one, averaged=clean[one.candidate][1:]) for one in found]
        alone.append(off(Landscape(found, ["a", "b"], start=5.0).best(RUNGS[-1], seed=seed)))
        both.append(off(Landscape(with_means, ["a", "b"], start=5.0).best(RUNGS[-1], seed=seed)))
    assert float(np.mean(both)) < 0.7 * float(np.mean(alone))
