"""Landscapes: what a whole race shows of the LRs, beyond who won it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lrfinder.racing.candidates import AVERAGED_RUNGS, RUNGS, Kind, Lrs
from lrfinder.racing.standings import Standing
from lrfinder.suggestions.surrogates import Surrogate

NEAR = 8  # candidates around which the landscape is looked at

# How a landscape is read, by measurement (docs/log.md). A line is known well enough to follow the cliff
# at its upper end, a box is not: it is taken for smoother. A soft minimum lies in the middle of a
# valley: where all of a line was followed that is steadier than its lowest place, and with many LRs the
# lowest place is an accident.
LENGTH_SCALES = {"equal": (0.3, 3.0), "joint": (1.0, 5.0)}
SOFTNESS_OF_WHOLE_LINE = 0.6
SOFTNESS_OF_LINE = 0.3
SOFTNESS_OF_TWO = 0.25
SOFTNESS_OF_MORE = 0.6

# A training of T steps is best served by what is best after c sqrt(T) steps at a constant LR: it has
# time for lower LRs, and its schedule forgives higher ones. Several LRs at once have more ways to be
# fast early, so they are read earlier than one.
HORIZON = {"equal": 8.0, "joint": 5.0}
# Beyond the last rung nothing was seen. There the best LR of a training falls by some half a decade
# for each decade of its length.
BACK_OFF = 0.5
# The way from the single LR to that of each group that is gone at most where an optimizer is
# adaptive, and at least however long a training is.
ADAPTIVE_SHARE, LEAST_SHARE = 0.75, 0.5


class Landscape:
    """What a race shows: the LRs that are best after a number of steps, and how sure that is.

    Args:
        standings: Of the candidates, the best first.
        groups: Whose LRs vary, independently of each other or, on a line, all by one factor.
        start: Mean loss at the start.
    """

    def __init__(self, standings: Sequence[Standing], groups: Sequence[str], start: float) -> None:
        self._groups = tuple(groups)
        self._line = all(standing.kind == "equal" for standing in standings)
        self._standings = standings
        self._start = start

    @cached_property
    def _surrogate(self) -> Surrogate:
        points, steps, cooled, gaps = [], [], [], []
        # What the means of the weights come to is another reading of the same landscape, which says
        # something of the first.
        steady = [(one.lrs, one.scores) for one in self._standings]
        means = [(one.lrs, one.averaged) for one in self._standings]
        for flag, rungs, judged in ((0.0, RUNGS, steady), (1.0, AVERAGED_RUNGS, means)):
            for number, rung in enumerate(rungs):
                reached = [(lrs, scores[number]) for lrs, scores in judged if len(scores) > number]
                points += [self._point(lrs) for lrs, _ in reached]
                steps += [rung] * len(reached)
                cooled += [flag] * len(reached)
                gaps += self._gaps([score for _, score in reached])
        return Surrogate(
            np.array(points),
            np.array(steps, dtype=float),
            np.array(gaps),
            cooled=np.array(cooled),
            length_scales=LENGTH_SCALES["equal" if self._line else "joint"],
        )

    def _gaps(self, scores: Sequence[float]) -> list[float]:
        """How far each is from the best, as a share of the drop of the best."""
        if not scores:
            return []
        values = np.array(scores)
        drop = self._start - values.min()
        share = (values - values.min()) / drop if drop > 0 else np.ones(len(values))
        gaps: list[float] = np.clip(share, 0.0, 1.0).tolist()
        return gaps

    def best(self, steps: float, *, seed: int = 0) -> dict[str, float]:
        """Group -> the LR that is expected to be best after `steps`."""
        before_last = [one for one in self._standings if len(one.scores) >= len(RUNGS) - 1]
        near = (before_last or list(self._standings))[:NEAR]
        point = self._surrogate.best(
            steps,
            np.array([self._point(s.lrs) for s in near]),
            softness=self._softness,
            seed=seed,
        )
        if not self._line:
            return dict(zip(self._groups, (10**point).tolist(), strict=True))
        lrs = self._standings[0].lrs
        factor = 10 ** float(point[0] - self._point(lrs)[0])
        return {name: lrs[name] * factor for name in self._groups}

    @property
    def _softness(self) -> float:
        if self._line:
            whole = all(one.rung == RUNGS[-1] or one.diverged for one in self._standings)
            return SOFTNESS_OF_WHOLE_LINE if whole else SOFTNESS_OF_LINE
        return SOFTNESS_OF_TWO if len(self._groups) == 2 else SOFTNESS_OF_MORE

    def advantage(self, first: Lrs, second: Lrs, steps: float) -> tuple[float, float]:
        """As `Surrogate.advantage`."""
        return self._surrogate.advantage(self._point(first), self._point(second), steps)

    def _point(self, lrs: Lrs) -> NDArray[np.float64]:
        names = self._groups[:1] if self._line else self._groups
        return np.array([math.log10(lrs[name]) for name in names])


def lowered(lrs: Lrs, decades: float) -> dict[str, float]:
    """LRs lowered by so many decades: the back-off of `horizon`.

    Example:
        >>> lowered({"head": 0.5}, 1.0)
        {'head': 0.05}
    """
    return {name: lr * 10**-decades for name, lr in lrs.items()}


def drawn_to_one(
    lrs: Lrs, single: Lrs, decades: float, *, is_proportional: bool
) -> dict[str, float]:
    """LRs drawn towards those of a single LR, since a short race makes too much of their ratios.

    Law: log lr = log single + w (log lr_raced - log single), with w = 10^(-d / 2) for a back-off of d
    decades, and 1/2 at least: three quarters where a training is three times as long as the race can
    tell of. No more than 3/4 where the optimizer scales each parameter's step itself, as Adam does.

    Example:
        >>> raced, single = {"body": 0.001, "head": 10.0}, {"body": 0.1, "head": 0.1}
        >>> lrs = drawn_to_one(raced, single, 2.0, is_proportional=True)
        >>> {name: round(lr, 6) for name, lr in lrs.items()}
        {'body': 0.01, 'head': 1.0}
    """
    share = max(min(10 ** (-decades / 2), 1.0 if is_proportional else ADAPTIVE_SHARE), LEAST_SHARE)
    return {name: single[name] * (lr / single[name]) ** share for name, lr in lrs.items()}


def horizon(planned_steps: int | None, kind: Kind) -> tuple[float, float]:
    """The number of steps after which the race is read, for a training to come, and a back-off.

    Law: h = c sqrt(T), at least the second and at most the last rung, with c = 8 for one LR and 5 for
    several; where c sqrt(T) is more than the last rung h_last, the LRs are lowered by
    0.5 log10(T / T_last) decades, with c sqrt(T_last) = h_last. The last rung, and none, where T is
    not known.

    Example:
        >>> horizon(None, "joint"), horizon(400, "joint"), horizon(57_600, "joint")
        ((120.0, 0.0), (100.0, 0.0), (120.0, 1.0))
    """
    last = float(RUNGS[-1])
    if planned_steps is None:
        return last, 0.0
    steps = HORIZON[kind] * math.sqrt(planned_steps)
    decades = 2 * BACK_OFF * math.log10(max(steps / last, 1.0))
    return min(max(steps, float(RUNGS[1])), last), decades
