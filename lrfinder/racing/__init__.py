"""Racing: candidates from one state on the same batches, the worse half dropped at each rung.

A ramp says where to look, a race decides: every candidate is trained for a few steps from the same
start. What is suggested is where the landscape that the whole race shows is lowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lrfinder.engines import Engine, Plan
from lrfinder.engines.averaging import AVERAGED_LOSS
from lrfinder.racing.candidates import (
    AVERAGED_RUNGS,
    JOINT_BOX,
    LINE,
    RUNGS,
    Candidate,
    Kind,
    Lrs,
    box,
    line,
    num_alive,
    num_race_steps,
)
from lrfinder.racing.landscapes import Landscape, drawn_to_one, horizon, lowered
from lrfinder.racing.standings import Race, Standing
from lrfinder.traces import Trace

__all__ = [
    "JOINT_BOX",
    "LINE",
    "RUNGS",
    "Candidate",
    "Kind",
    "Landscape",
    "Race",
    "Standing",
    "box",
    "drawn_to_one",
    "holds",
    "horizon",
    "line",
    "lowered",
    "num_race_steps",
    "race",
    "scores_of",
]

SLACK = 0.1  # of the drop
LEAST_SCORED = 7  # steps whose losses a score is the mean of, at least


def race(
    engine: Engine,
    candidates: Sequence[Candidate],
    *,
    num_orders: int,
    on_steps: Callable[[int], None] | None = None,
) -> Race:
    """Train every candidate, drop the worse at each rung, and rank them.

    Of those in the box a half goes on after 15 steps, a quarter after 30 and an eighth after 60, to
    120; of those on the line 6, 4 and 3 in 10, so that the best single LR is known too, and all of
    them where there is no box. A loss that is not finite ends its candidate. From the second rung on
    the mean of each candidate's weights is evaluated too: a look ahead to a training that cools down.

    Args:
        engine: What trains them: all from one start, those of an order on the same batches.
        candidates: At least one.
        num_orders: Batch orders over which scores are averaged, >= 1.
        on_steps: Called with the steps that were taken, now and then.
    """
    plans = [
        [
            _plan(engine, candidate, order, f"candidate {number} {order}")
            for order in range(num_orders)
        ]
        for number, candidate in enumerate(candidates)
    ]
    kinds: tuple[Kind, ...] = ("equal", "joint")
    counts = {kind: sum(one.kind == kind for one in candidates) for kind in kinds}
    alive = list(range(len(candidates)))
    scores: list[list[float]] = [[] for _ in candidates]
    averaged: list[list[float]] = [[] for _ in candidates]
    start, taken = 0.0, 0
    for rung_number, rung in enumerate(RUNGS):
        before = engine.steps
        # All at once, so that an engine may take their steps together.
        engine.advance([plan for number in alive for plan in plans[number]], rung - taken)
        if on_steps is not None:
            on_steps(engine.steps - before)
        curves = [[plan.trace.losses for plan in plans[number]] for number in alive]
        start = float(np.mean([curve[0] for curve in curves[0]]))
        for number, value in zip(alive, scores_of(curves, rung), strict=True):
            scores[number].append(value)
        if rung in AVERAGED_RUNGS:
            found = averaged_of([[plan.trace for plan in plans[number]] for number in alive], rung)
            for number, value in zip(alive, found, strict=True):
                averaged[number].append(value)
        ranked = sorted(alive, key=lambda number: scores[number][-1])
        kept: list[int] = []
        if rung != RUNGS[-1]:
            for kind in kinds:
                of_kind = [number for number in ranked if candidates[number].kind == kind]
                kept += of_kind[: num_alive(kind, counts, rung_number + 1)]
        engine.release(plan for number in alive if number not in kept for plan in plans[number])
        alive, taken = kept, rung
    standings = [
        Standing(
            number,
            candidate.kind,
            dict(candidate.lrs),
            tuple(scores[number]),
            diverged=any(plan.trace.status == "diverged" for plan in plans[number]),
            averaged=tuple(averaged[number]),
        )
        for number, candidate in enumerate(candidates)
    ]
    standings.sort(key=lambda standing: (-standing.rung, standing.diverged, standing.score))
    return Race(tuple(standings), start)


def scores_of(curves: Sequence[Sequence[NDArray[np.float64]]], rung: int) -> list[float]:
    """Mean of each candidate's last losses, averaged over the orders; small is good.

    Law: score = mean over orders of min(mean of the last rung / 2 losses, 7 at least, cap), where
    the cap, which a candidate that diverged gets, is as far above the start as twice the best fell
    below it. So the ranking does not depend on the unit or the sign of the loss.

    Args:
        curves: Candidate -> order -> losses, which are shorter than `rung` where it diverged.
        rung: Steps after which to judge.
    """
    scored = max(LEAST_SCORED, rung // 2)
    tails = np.array(
        [
            [
                float(np.mean(curve[rung - scored : rung]))
                if len(curve) >= rung and np.isfinite(curve[:rung]).all()
                else np.inf
                for curve in orders
            ]
            for orders in curves
        ]
    )
    return _capped(tails, np.array([curve[0] for curve in curves[0]]))


def averaged_of(traces: Sequence[Sequence[Trace]], rung: int) -> list[float]:
    """The loss of the mean of each candidate's weights, averaged over the orders and capped as scores are.

    Args:
        traces: Candidate -> order -> its trace.
        rung: Steps after which the means were evaluated; one without a value counts as diverged.
    """
    found = np.array([[_averaged(trace, rung) for trace in orders] for orders in traces])
    return _capped(found, np.array([trace.losses[0] for trace in traces[0]]))


def _averaged(trace: Trace, rung: int) -> float:
    steps, values = trace.metrics.get(AVERAGED_LOSS, ((), ()))
    value = dict(zip(steps, values, strict=True)).get(rung - 1, math.inf)
    return value if math.isfinite(value) else math.inf


def _capped(losses: NDArray[np.float64], starts: NDArray[np.float64]) -> list[float]:
    """Means over the orders of losses, shape (candidates, orders), each capped."""
    lowest = np.minimum(losses.min(axis=0), starts)
    caps = starts + 2 * (starts - lowest)
    return [float(value) for value in np.minimum(losses, caps).mean(axis=1)]


def holds(engine: Engine, lrs: Lrs, race: Race) -> bool:
    """Whether LRs that were not raced themselves fare about as well as those that won.

    Law: trained on the race's first batch order up to the second rung, their score is at most a
    tenth of the drop above the worst of those that went on from there.
    """
    rung = 1
    plan = _plan(engine, Candidate("joint", lrs), 0, "suggestion")
    engine.advance([plan], RUNGS[rung])
    engine.release([plan])
    if plan.trace.status == "diverged":
        return False
    losses = plan.trace.losses
    (score,) = scores_of([[losses]], RUNGS[rung])
    went_on = [one.scores[rung] for one in race.standings if len(one.scores) > rung + 1]
    return score <= max(went_on) + SLACK * (race.start - min(went_on))


def _plan(engine: Engine, candidate: Candidate, order: int, name: str) -> Plan:
    lrs = {group: candidate.lrs[group] for group in engine.group_names}
    return Plan.constant(lrs, RUNGS[-1], order=order, name=name, averaged_after=AVERAGED_RUNGS)
