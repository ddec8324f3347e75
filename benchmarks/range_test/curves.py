"""Curves with known answers: what a ramp may show, and where its minimum is, or that it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NUM_STEPS = 100
FIRST, LAST = -5.0, 1.0  # log10 LR
WITHIN = 0.05  # share of the drop: LRs whose loss is so near to the lowest are right too


@dataclass(frozen=True)
class Curve:
    """A ramp without noise.

    Args:
        decades: log10 LR of each step, rising.
        losses: Loss after each of these steps.
        drop: What noise is measured in: the fall from the start, or the level where it has none.
        answer: Lowest and highest log10 LR that are right; None where no LR must be suggested.
    """

    decades: Array
    losses: Array
    drop: float
    answer: tuple[float, float] | None


Family = Callable[[np.random.Generator], Curve]


def _grid(steps: int = NUM_STEPS, first: float = FIRST, last: float = LAST) -> Array:
    return np.linspace(first, last, steps)


def _answered(x: Array, losses: Array) -> Curve:
    """A curve whose answer is where it is lowest."""
    finite = np.where(np.isfinite(losses), losses, np.inf)
    drop = float(losses[0] - finite.min())
    right = np.flatnonzero(finite <= finite.min() + WITHIN * drop)
    return Curve(x, losses, drop, (float(x[right[0]]), float(x[right[-1]])))


def _fall(x: Array, at: float, width: float) -> Array:
    """From 0 to -1 around `at`."""
    fall: Array = -1 / (1 + np.exp(-(x - at) / width))
    return fall


def falls_then_rises(rng: np.random.Generator) -> Curve:
    """The textbook's curve, in any unit: falls around some LR, explodes 1 to 2.5 decades above."""
    x = _grid()
    at = rng.uniform(-3.5, -1.7)
    shape = _fall(x, at, rng.uniform(0.1, 0.4)) + 10 ** (2 * (x - at - rng.uniform(1.0, 2.5)))
    return _answered(x, 10 ** rng.uniform(-3, 3) * (rng.uniform(1, 3) + shape))


def negative_losses(rng: np.random.Generator) -> Curve:
    """The same below zero, as of a log density."""
    curve = falls_then_rises(rng)
    return Curve(curve.decades, curve.losses - 10 * curve.drop, curve.drop, curve.answer)


def breaks_off(rng: np.random.Generator) -> Curve:
    """Falls, and is not a number from one step on."""
    x = _grid()
    at = rng.uniform(-3.5, -1.7)
    losses = 2.3 + 2 * _fall(x, at, rng.uniform(0.1, 0.4))
    losses[x > at + rng.uniform(1.0, 2.5)] = np.nan
    return _answered(x, losses)


def bump_before(rng: np.random.Generator) -> Curve:
    """A small hump before the fall, which is no reason to stop."""
    curve = falls_then_rises(rng)
    at = curve.decades[int(np.argmin(np.gradient(curve.losses)))] - 0.7
    hump = 0.3 * curve.drop * np.exp(-(((curve.decades - at) / 0.2) ** 2))
    return _answered(curve.decades, curve.losses + hump)


def edge(rng: np.random.Generator) -> Curve:
    """Still falling where the range ends."""
    x = _grid()
    return Curve(x, 2.3 + 2 * _fall(x, rng.uniform(0.6, 1.2), 0.4), 1.0, None)


def flat(rng: np.random.Generator) -> Curve:
    """Nothing happens at any LR."""
    return Curve(_grid(), np.full(NUM_STEPS, rng.uniform(-3, 3)), 1.0, None)


def flat_then_explodes(rng: np.random.Generator) -> Curve:
    """Nothing, then divergence: no LR helps."""
    x = _grid()
    return Curve(x, 2.3 + 10 ** (3 * (x - rng.uniform(-3, 0))), 1.0, None)


def monotone(rng: np.random.Generator) -> Curve:
    """Rises from the first LR on: the range begins too high."""
    x = _grid()
    return Curve(x, 2.3 + 0.5 * (x - FIRST) ** rng.uniform(1.0, 2.0), 1.0, None)


def too_short(rng: np.random.Generator) -> Curve:
    """The textbook's curve in 9 steps."""
    x = _grid(9)
    at = rng.uniform(-3.5, -1.7)
    return Curve(x, 2.3 + 2 * _fall(x, at, 0.3) + 10 ** (2 * (x - at - 2)), 2.0, None)


FAMILIES: dict[str, Family] = {
    family.__name__.replace("_", " "): family
    for family in (
        falls_then_rises, negative_losses, breaks_off, bump_before,
        edge, flat, flat_then_explodes, monotone, too_short,
    )
}  # fmt: skip


# -- noise ----------------------------------------------------------------------------------------


def independent(rng: np.random.Generator, count: int) -> Array:
    """Normal, sd 1."""
    return rng.normal(size=count)


def correlated(rng: np.random.Generator, count: int) -> Array:
    """Each step keeps 0.8 of the last one's; sd 1. As where what is learned drifts."""
    values = rng.normal(size=count)
    for index in range(1, count):
        values[index] = 0.8 * values[index - 1] + 0.6 * values[index]
    return values


def spiky(rng: np.random.Generator, count: int) -> Array:
    """Normal, sd 1/2, and one step in 20 is 5 to 15 higher."""
    spikes = (rng.random(count) < 0.05) * rng.uniform(5, 15, count)
    return 0.5 * rng.normal(size=count) + spikes


NOISES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "independent": independent,
    "correlated": correlated,
    "spiky": spiky,
}
