"""Tests of the race: who enters, who is dropped, and that the best known LR wins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lrfinder
from lrfinder.engines import SteppingEngine
from lrfinder.racing import (
    LINE,
    RUNGS,
    Candidate,
    box,
    holds,
    line,
    num_race_steps,
    race,
    scores_of,
)
from lrfinder.snapshots import Snapshot
from lrfinder.stepping import Replica
from tests.helpers import Quadratic, quadratic_groups, quadratic_loss


def engine(**curvatures: float) -> SteppingEngine:
    model = Quadratic(**curvatures)
    optimizer = torch.optim.SGD(lrfinder.param_groups(model, quadratic_groups(model)), lr=0.1)
    return SteppingEngine(
        Replica(model, optimizer, quadratic_loss), Snapshot(model, optimizer), [None]
    )


def test_the_line_keeps_ratios_and_holds_the_rest() -> None:
    candidates = line(0.1, {"a": 1.0, "b": 0.5}, {"c": 7.0})
    assert len(candidates) == len(LINE) == 9
    for candidate in candidates:
        assert candidate.lrs["b"] == pytest.approx(0.5 * candidate.lrs["a"])
        assert candidate.lrs["c"] == 7.0
    assert candidates[0].lrs["a"] == pytest.approx(0.1 * 10**-1.5)
    assert candidates[-1].lrs["a"] == pytest.approx(0.1 * 10**0.5)


def test_the_box_is_covered_seeded_and_moves_with_the_minimum() -> None:
    candidates = box(0.1, ["a", "b"], {"c": 7.0}, count=64, seed=3)
    decades = np.array([[math.log10(c.lrs[g] / 0.1) for g in "ab"] for c in candidates])
    assert (decades >= -2).all()
    assert (decades <= 1).all()
    cells = np.floor((decades + 2) / 3 * 8).astype(int)
    assert len({tuple(cell) for cell in cells.tolist()}) >= 56  # evenly: nearly one in each cell
    assert {c.lrs["c"] for c in candidates} == {7.0}
    assert box(0.1, ["a", "b"], {"c": 7.0}, count=64, seed=3) == candidates
    assert box(0.1, ["a", "b"], {"c": 7.0}, count=64, seed=4) != candidates
    ten = box(1.0, ["a", "b"], {"c": 7.0}, count=64, seed=3)
    assert [c.lrs["a"] * 10 for c in candidates] == pytest.approx([c.lrs["a"] for c in ten])


def test_rungs_keep_the_better_and_the_line() -> None:
    runner = engine(a=1.0)
    lrs = [1.9, 0.5, 0.7, 1.0, 1.2, 1.4, 0.9, 0.8, 0.6, 1.1, 1.3, 1.5, 0.4]
    kinds = ["equal"] + ["joint"] * 12
    candidates = [Candidate(k, {"a": lr}) for k, lr in zip(kinds, lrs, strict=True)]  # type: ignore[arg-type]
    told: list[int] = []
    result = race(runner, candidates, num_orders=2, on_steps=told.append)
    rungs = [standing.rung for standing in result.standings]
    assert rungs == sorted(rungs, reverse=True)
    # 6, 3 and then 2 of 12 go on, and with them the line, which is the worst.
    assert [rungs.count(rung) for rung in RUNGS] == [6, 3, 1, 3]
    assert result.standings[2].kind == "equal"
    assert result.best[0].lrs["a"] == 1.0
    assert all(
        one.rung == RUNGS[len(one.scores) - 1] and one.score == one.scores[-1]
        for one in result.standings
    )
    assert sum(told) == runner.steps == num_race_steps(1, 12, 2)
    assert runner.steps == 2 * (13 * 15 + 7 * 15 + 4 * 30 + 3 * 60)
    assert runner.courses.state_bytes == 0


def test_on_a_line_alone_all_go_on() -> None:
    runner = engine(a=1.0)
    lrs = (1.9, 0.5, 0.1, 0.01, 0.001, 1e-4)
    result = race(runner, [Candidate("equal", {"a": lr}) for lr in lrs], num_orders=1)
    assert [standing.rung for standing in result.standings] == [RUNGS[-1]] * 6
    assert runner.steps == num_race_steps(6, 0, 1) == 6 * 120


def test_candidates_that_diverge_are_told_and_come_last() -> None:
    runner = engine(a=1.0)
    candidates = [Candidate("joint", {"a": lr}) for lr in (1e9, 1.0, 0.5, 0.2)]
    result = race(runner, candidates, num_orders=1)
    assert [standing.diverged for standing in result.standings] == [False, False, False, True]
    assert math.isfinite(result.standings[-1].score)
    assert [standing.lrs["a"] for standing in result.best] == [1.0, 0.5]  # of four, two go on


def test_nothing_is_best_where_nothing_falls() -> None:
    result = race(engine(a=1.0), [Candidate("equal", {"a": 1e9})], num_orders=1)
    assert result.best == ()


@settings(max_examples=40, deadline=None)
@given(st.integers(-10, 10).map(lambda k: 2.0**k), st.integers(-1000, 1000), st.integers(0, 1000))
def test_the_ranking_knows_no_unit_and_no_sign(scale: float, shift: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    curves = [[random.normal(size=15) for _ in range(2)] for _ in range(6)]
    for orders in curves:
        for order, curve in enumerate(orders):
            curve[0] = 1.0 + order
    curves[2][1] = curves[2][1][:5]  # diverged
    plain = scores_of(curves, 15)
    moved = scores_of([[scale * (c + shift) for c in orders] for orders in curves], 15)
    assert moved == pytest.approx([scale * (score + shift) for score in plain], rel=1e-6, abs=1e-6)
    assert np.argsort(plain, kind="stable").tolist() == np.argsort(moved, kind="stable").tolist()


def test_with_many_groups_all_move_together_and_none_strays_far() -> None:
    names = [f"g{i}" for i in range(12)]
    candidates = box(1.0, names, {}, count=64, seed=0)
    decades = np.array([[math.log10(c.lrs[name]) for name in names] for c in candidates])
    middles = decades.mean(axis=1)
    assert middles.min() < -1.9
    assert middles.max() > 0.9
    apart = decades - middles[:, None]
    assert 0.3 < apart.std() < 0.5  # sqrt(3 / 12) of what a box of three decades has
    assert np.abs(apart).max() < 1.5


def test_what_was_not_raced_must_hold_its_own() -> None:
    runner = engine(a=1.0)
    candidates = [Candidate("joint", {"a": lr}) for lr in (0.5, 0.01, 0.05, 0.02)]
    result = race(runner, candidates, num_orders=1)
    before = runner.steps
    assert holds(runner, {"a": 0.06}, result)
    assert runner.steps - before == 30
    assert not holds(runner, {"a": 0.001}, result)  # hardly learns
    assert not holds(runner, {"a": 1e9}, result)  # diverges
    assert runner.courses.state_bytes == 0


def test_cost_is_known_before() -> None:
    assert num_race_steps(9, 0, 1) == 9 * 120  # on a line alone none is dropped
    on_line = 9 * 15 + 5 * 15 + 4 * 30 + 3 * 60
    in_box = 22 * 15 + 11 * 15 + 6 * 30 + 3 * 60
    assert num_race_steps(9, 22, 1) == on_line + in_box == 1365
    assert num_race_steps(9, 22, 2) == 2 * 1365
