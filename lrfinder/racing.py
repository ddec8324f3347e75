"""Racing: candidates from one state on the same batches, the worse half dropped at each rung.

A ramp says where to look, a race decides: every candidate is trained for a few steps from the same
start, and what is suggested is what made the loss fall most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lrfinder.engines import Engine, Plan
from lrfinder.engines.batches import derived_seed
from lrfinder.suggestions import Evidence
from lrfinder.suggestions.curves import log_mean

Kind = Literal["equal", "joint", "group"]
Lrs = Mapping[str, float]

RUNGS = (15, 30, 60)  # steps after which candidates are judged
KEPT = (1 / 2, 1 / 4)  # share that goes on after the first and the second
KEPT_AT_LEAST = 4
SCORED_STEPS = 7
LINE = np.arange(-1.25, 0.76, 0.25)  # decades around the joint minimum
JOINT_BOX = (-2.0, 1.0)
GROUP_BOX = (-2.25, 0.5)
TOP = 3


@dataclass(frozen=True)
class Candidate:
    """LRs that are tried.

    Args:
        kind: "equal": on the line of one LR for all groups; "joint": in the box around the joint
            minimum; "group": in the box around the minimum of each group's own ramp.
        lrs: Group -> LR, of every group of the engine.
    """

    kind: Kind
    lrs: Lrs


@dataclass(frozen=True)
class Standing:
    """How a candidate fared.

    Args:
        candidate: Its number, in the order in which candidates were made.
        kind: As in `Candidate`.
        lrs: Group -> LR.
        rung: Steps after which it was judged last.
        score: Mean of its last losses there, averaged over the batch orders; the cap where it
            diverged.
        diverged: Whether it diverged in any order.
    """

    candidate: int
    kind: Kind
    lrs: Lrs
    rung: int
    score: float
    diverged: bool


@dataclass(frozen=True)
class Race:
    """A race that was run.

    Args:
        standings: Every candidate, the best first: by the rung that it reached, then its score.
        start: Mean loss at the start, which all candidates share.
        num_orders: Batch orders.
    """

    standings: tuple[Standing, ...]
    start: float
    num_orders: int

    @property
    def best(self) -> tuple[Standing, ...]:
        """The best three that went to the end and made the loss fall; fewer where there are not."""
        last = self.standings[0].rung
        return tuple(
            standing
            for standing in self.standings[:TOP]
            if standing.rung == last and not standing.diverged and standing.score < self.start
        )

    @property
    def control(self) -> Standing | None:
        """The best of the line, its neighbours taken into account; None if none made the loss fall.

        Law: argmin_i of s_(i-1) / 4 + s_i / 2 + s_(i+1) / 4 over the scores s of the line, and of
        2/3 s_i and 1/3 of the one neighbour at an end. A cliff lies next to the fastest, and one
        step of the line away is safe: so the winner alone is worse, and a mean of the best too.
        """
        on_line = [standing for standing in self.standings if standing.kind == "equal"]
        on_line.sort(key=lambda standing: standing.candidate)
        scores = np.array([standing.score for standing in on_line])
        if len(scores) > 1:
            ends = np.array([2 * scores[0] + scores[1], 2 * scores[-1] + scores[-2]]) / 3
            middle = (scores[:-2] + 2 * scores[1:-1] + scores[2:]) / 4
            scores = np.concatenate([ends[:1], middle, ends[1:]])
        good = [
            (score, number)
            for number, (score, standing) in enumerate(zip(scores.tolist(), on_line, strict=True))
            if not standing.diverged and standing.score < self.start
        ]
        return on_line[min(good)[1]] if good else None


# -- who races ------------------------------------------------------------------------------------


def line(minimum: float, ratios: Lrs, held: Lrs) -> list[Candidate]:
    """One LR for all groups, or one multiple of their ratios.

    Args:
        minimum: Of the joint ramp.
        ratios: Group -> its LR over the one that is varied.
        held: Group -> LR of those that are not tested.
    """
    return [
        Candidate("equal", {name: ratio * lr for name, ratio in ratios.items()} | dict(held))
        for lr in minimum * 10**LINE
    ]


def box(
    kind: Literal["joint", "group"],
    minima: Lrs,
    held: Lrs,
    *,
    count: int,
    seed: int,
) -> list[Candidate]:
    """Candidates spread evenly over a box in log LR.

    Args:
        kind: "joint": [m / 100, 10 m] for each group; "group": [m / 178, 3.2 m].
        minima: Group -> m.
        held: Group -> LR of those that are not tested.
        count: Candidates, a scrambled Sobol sequence.
        seed: Of the scrambling.

    Source: Sobol', 1967; scrambling of Owen, 1995; as `torch.quasirandom.SobolEngine`.
    """
    low, high = JOINT_BOX if kind == "joint" else GROUP_BOX
    engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
        len(minima), scramble=True, seed=seed
    )
    points = engine.draw(count, dtype=torch.float64).numpy() * (high - low) + low
    return [
        Candidate(
            kind,
            {name: m * 10**x for (name, m), x in zip(minima.items(), point, strict=True)}
            | dict(held),
        )
        for point in points.tolist()
    ]


def sobol_seeds(seed: int) -> tuple[int, int]:
    """Seeds of the joint and of the group box."""
    return derived_seed(seed, 0, 2), derived_seed(seed, 1, 2)


def num_race_steps(num_line: int, num_boxes: int, num_orders: int) -> int:
    """Optimizer steps of a race in which none diverges."""
    steps, taken, alive = 0, 0, num_boxes
    for rung, share in zip(RUNGS, (*KEPT, 0.0), strict=True):
        steps += (num_line + alive) * (rung - taken)
        taken, alive = rung, _num_kept(num_boxes, share)
    return steps * num_orders


def _num_kept(num_candidates: int, share: float) -> int:
    return min(num_candidates, max(int(num_candidates * share), KEPT_AT_LEAST))


# -- the race -------------------------------------------------------------------------------------


def race(
    engine: Engine,
    candidates: Sequence[Candidate],
    *,
    num_orders: int,
    on_steps: Callable[[int], None] | None = None,
) -> Race:
    """Train every candidate, drop the worse at each rung, and rank them.

    Of those in the boxes the better half goes on after 15 steps, and a quarter of all after 30, to
    60. The line always goes on, so that the control is the best that one LR can be. A loss that is
    not finite ends its candidate.

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
    num_boxes = sum(candidate.kind != "equal" for candidate in candidates)
    alive = list(range(len(candidates)))
    scores: dict[int, tuple[int, float]] = {}
    start, taken = 0.0, 0
    for rung, share in zip(RUNGS, (*KEPT, 0.0), strict=True):
        for number in alive:
            before = engine.steps
            engine.advance(plans[number], rung - taken)
            if on_steps is not None:
                on_steps(engine.steps - before)
        curves = [[plan.trace.losses for plan in plans[number]] for number in alive]
        start = float(np.mean([curve[0] for curve in curves[0]]))
        values = scores_of(curves, rung)
        scores |= {number: (rung, value) for number, value in zip(alive, values, strict=True)}
        ranked = sorted(alive, key=lambda number: scores[number][1])
        in_boxes = [number for number in ranked if candidates[number].kind != "equal"]
        kept = [number for number in ranked if candidates[number].kind == "equal"]
        kept += in_boxes[: _num_kept(num_boxes, share)]
        engine.release(plan for number in alive if number not in kept for plan in plans[number])
        alive, taken = kept, rung
    standings = [
        Standing(
            number,
            candidate.kind,
            dict(candidate.lrs),
            *scores[number],
            diverged=any(plan.trace.status == "diverged" for plan in plans[number]),
        )
        for number, candidate in enumerate(candidates)
    ]
    standings.sort(key=lambda standing: (-standing.rung, standing.diverged, standing.score))
    return Race(tuple(standings), start, num_orders)


def scores_of(curves: Sequence[Sequence[NDArray[np.float64]]], rung: int) -> list[float]:
    """Mean of each candidate's last losses, averaged over the orders; small is good.

    Law: score = mean over orders of min(mean of the last 7 losses, cap), where the cap, which a
    candidate that diverged gets, is as far above the start as twice the best fell below it. So
    the ranking does not depend on the unit or the sign of the loss.

    Args:
        curves: Candidate -> order -> losses, which are shorter than `rung` where it diverged.
        rung: Steps after which to judge.
    """
    tails = np.array(
        [
            [
                float(np.mean(curve[rung - SCORED_STEPS : rung]))
                if len(curve) >= rung and np.isfinite(curve[:rung]).all()
                else np.inf
                for curve in orders
            ]
            for orders in curves
        ]
    )
    starts = np.array([curve[0] for curve in curves[0]])
    lowest = np.minimum(tails.min(axis=0), starts)
    caps = starts + 2 * (starts - lowest)
    return [float(value) for value in np.minimum(tails, caps).mean(axis=1)]


def middle_of_best(race: Race) -> dict[str, float]:
    """The mean in log LR of the best three: steadier than the winner, group by group."""
    best = race.best
    return {name: log_mean([standing.lrs[name] for standing in best]) for name in best[0].lrs}


def measure_evidence(
    engine: Engine,
    lrs: Lrs,
    control: Lrs,
    *,
    orders: Sequence[int],
    on_steps: Callable[[int], None] | None = None,
) -> Evidence:
    """Compare LRs with the control, pair by pair on batch orders that the race has not seen.

    Its advantage is infinite in size, with the right sign, where only one of the two diverged, and
    NaN where both did.
    """
    differences, shares = [], []
    for order in orders:
        before = engine.steps
        pair = [_plan(engine, Candidate("joint", lrs), order, "suggestion")]
        pair += [_plan(engine, Candidate("equal", control), order, "control")]
        engine.advance(pair, RUNGS[-1])
        ours, theirs = (_tail(plan) for plan in pair)
        differences.append(theirs - ours)
        shares.append(pair[1].trace.losses[0] - theirs)
        if on_steps is not None:
            on_steps(engine.steps - before)
    with np.errstate(invalid="ignore"):
        advantage = float(np.mean(differences))
        error = float(np.std(differences, ddof=1)) if len(orders) > 1 else np.nan
        share = advantage / float(np.mean(shares)) if np.mean(shares) > 0 else np.nan
    return Evidence(
        advantage=advantage,
        standard_error=error / len(orders) ** 0.5,
        share=share,
        num_orders=len(orders),
        num_steps=RUNGS[-1],
    )


def _tail(plan: Plan) -> float:
    if plan.trace.status == "diverged":
        return np.inf
    return float(np.mean(plan.trace.losses[-SCORED_STEPS:]))


def _plan(engine: Engine, candidate: Candidate, order: int, name: str) -> Plan:
    lrs = {group: candidate.lrs[group] for group in engine.group_names}
    return Plan.constant(lrs, RUNGS[-1], order=order, name=name)
