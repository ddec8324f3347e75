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
    RUNGS,
    Candidate,
    Race,
    Standing,
    box,
    line,
    measure_evidence,
    middle_of_best,
    num_race_steps,
    race,
    scores_of,
    sobol_seeds,
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
    assert len(candidates) == 9
    for candidate in candidates:
        assert candidate.lrs["b"] == pytest.approx(0.5 * candidate.lrs["a"])
        assert candidate.lrs["c"] == 7.0
    assert candidates[0].lrs["a"] == pytest.approx(0.1 * 10**-1.25)
    assert candidates[-1].lrs["a"] == pytest.approx(0.1 * 10**0.75)


@pytest.mark.parametrize(("kind", "low", "high"), [("joint", -2, 1), ("group", -2.25, 0.5)])
def test_boxes_are_covered_and_seeded(kind: str, low: float, high: float) -> None:
    minima = {"a": 0.1, "b": 10.0}
    candidates = box(kind, minima, {}, count=64, seed=3)  # type: ignore[arg-type]
    decades = np.array([[math.log10(c.lrs[g] / m) for g, m in minima.items()] for c in candidates])
    assert (decades >= low).all()
    assert (decades <= high).all()
    cells = np.floor((decades - low) / (high - low) * 8).astype(int)
    assert len({tuple(cell) for cell in cells.tolist()}) >= 56  # evenly: nearly one in each cell
    assert box(kind, minima, {}, count=64, seed=3) == candidates  # type: ignore[arg-type]
    assert box(kind, minima, {}, count=64, seed=4) != candidates  # type: ignore[arg-type]


def test_a_box_is_scaled_with_its_minima() -> None:
    one, ten = (box("joint", {"a": m}, {}, count=8, seed=0) for m in (1.0, 10.0))
    assert [c.lrs["a"] * 10 for c in one] == pytest.approx([c.lrs["a"] for c in ten])


def test_seeds_of_the_boxes_differ() -> None:
    assert len({*sobol_seeds(0), *sobol_seeds(1)}) == 4


def test_the_best_learning_rates_of_a_quadratic_win() -> None:
    # |1 - lr h| is smallest at 1 / h, which differs by 30 between the groups.
    runner = engine(a=30.0, b=1.0)
    minima = {"a": 0.05, "b": 1.0}
    candidates = line(0.05, {"a": 1.0, "b": 1.0}, {}) + box("group", minima, {}, count=40, seed=0)
    result = race(runner, candidates, num_orders=1)
    lrs = middle_of_best(result)
    assert lrs["a"] == pytest.approx(1 / 30, rel=0.8)
    assert lrs["b"] == pytest.approx(1.0, rel=0.8)
    assert result.control is not None
    assert result.control.kind == "equal"
    assert result.control.lrs["a"] == result.control.lrs["b"] < 2 / 30
    assert result.best[0].score < result.control.score
    evidence = measure_evidence(runner, lrs, result.control.lrs, orders=[5, 6])
    assert evidence.advantage > 0
    assert evidence.num_orders == 2


def test_rungs_keep_the_better_and_the_line() -> None:
    runner = engine(a=1.0)
    lrs = [1.9, 0.5, 0.7, 1.0, 1.2, 1.4, 0.9, 0.8, 0.6, 1.1, 1.3, 1.5, 0.4]
    kinds = ["equal"] + ["joint"] * 12
    candidates = [Candidate(k, {"a": lr}) for k, lr in zip(kinds, lrs, strict=True)]  # type: ignore[arg-type]
    told: list[int] = []
    result = race(runner, candidates, num_orders=2, on_steps=told.append)
    rungs = [standing.rung for standing in result.standings]
    assert rungs == sorted(rungs, reverse=True)
    # 6 and then 4 of 12 go on, and with them the line, which is the worst.
    assert [rungs.count(rung) for rung in RUNGS] == [6, 2, 5]
    assert result.standings[4].kind == "equal"
    assert result.best[0].lrs["a"] == 1.0
    assert sum(told) == runner.steps == num_race_steps(1, 12, 2)
    assert runner.steps == 2 * (13 * 15 + 7 * 15 + 5 * 30)
    assert runner._state_bytes == 0


def test_candidates_that_diverge_are_told_and_come_last() -> None:
    runner = engine(a=1.0)
    candidates = [Candidate("joint", {"a": lr}) for lr in (1e9, 1.0, 0.5, 0.2)]
    result = race(runner, candidates, num_orders=1)
    assert [standing.diverged for standing in result.standings] == [False, False, False, True]
    assert math.isfinite(result.standings[-1].score)
    assert [standing.lrs["a"] for standing in result.best] == [1.0, 0.5, 0.2]
    assert result.control is None


def test_nothing_is_best_where_nothing_falls() -> None:
    result = race(engine(a=1.0), [Candidate("equal", {"a": 1e9})], num_orders=1)
    assert result.best == ()
    assert result.control is None


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


def test_the_line_is_read_with_its_neighbours() -> None:
    def standing(number: int, score: float, *, diverged: bool = False) -> Standing:
        return Standing(number, "equal", {"a": float(number)}, 60, score, diverged)

    cliff = [5.0, 4.0, 3.0, 2.0, 1.5, 9.0]
    standings = [standing(number, score) for number, score in enumerate(cliff)]
    best = Race(tuple(standings[::-1]), start=6.0, num_orders=1).control
    assert best is not None
    assert best.candidate == 3  # not the winner, which stands beside the cliff
    alone = Race((standing(0, 1.0),), start=6.0, num_orders=1)
    assert alone.control == alone.standings[0]
    for bad in (standing(0, 7.0), standing(0, 1.0, diverged=True)):
        assert Race((bad,), start=6.0, num_orders=1).control is None


def test_evidence_where_one_diverges() -> None:
    runner = engine(a=1.0)
    assert measure_evidence(runner, {"a": 1e9}, {"a": 1.0}, orders=[0, 1]).advantage == -math.inf
    assert measure_evidence(runner, {"a": 1.0}, {"a": 1e9}, orders=[0, 1]).advantage == math.inf
    assert math.isnan(measure_evidence(runner, {"a": 1e9}, {"a": 1e9}, orders=[0]).advantage)


def test_cost_is_known_before() -> None:
    assert num_race_steps(9, 48, 1) == 57 * 15 + 33 * 15 + 21 * 30 == 1980
    assert num_race_steps(9, 48, 2) == 2 * 1980
    assert num_race_steps(9, 0, 1) == 540
