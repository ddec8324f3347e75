"""Curves: what one ramp shows, when it should stop, and why it sometimes shows nothing.

Everything here is scale-free: the answers stay the same when the loss is multiplied by a positive
number or shifted, and move with the LRs when these are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrfinder.suggestions.smoothing import START_STEPS, in_own_range, noise_of, start_steps
from lrfinder.traces import Trace

BracketStatus = Literal[
    "ok", "flat", "monotone", "edge", "noisy", "diverged", "too_short", "bracket_only"
]

MIN_STEPS = 12  # a ramp of fewer steps shows no curve
# Of white noise of sd 1 the start is known to 0.4, and the lowest point of the smoothed curve lies
# some 0.5 below its mean: the "drop" of a flat curve is 0.5 with an sd of 0.5, over R curves of
# 0.5 / sqrt(R). So much more is no accident.
FLAT_DROP, FLAT_SPREAD = 0.5, 0.8
DOUBTED = ("flat", "monotone", "diverged")  # statuses of curves that did not fall, by their noise
STOP_RANGES, STOP_NOISE = 2.0, 10.0
BEGIN_SHARE, RISE_SHARE = 0.1, 0.3


# -- reading one curve ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What one ramp shows.

    Args:
        low: Smallest LR from which on the loss is a tenth of the whole drop below its start.
        minimum: LR after which the smoothed loss is lowest.
        steepest: LR at which it falls fastest in log LR.
        high: LR at which it has risen by 3/10 of the drop above its lowest, or the ramp ended.
        drop: From the start to the lowest, in the unit of the loss.
        noise: Standard deviation of white noise that would sway the smoothed curve of a ramp of
            the usual steepness as much as its noise sways this one, in the unit of the loss.
        status: "ok", or why nothing can be read: the LRs above then say little.
        message: The status in words, with what to do.
    """

    low: float
    minimum: float
    steepest: float
    high: float
    drop: float
    noise: float
    status: BracketStatus
    message: str


def read_ramp(lrs: ArrayLike, losses: ArrayLike, *, stopped: bool = False) -> Reading:
    """Read one ramp.

    The loss of row i was measured before update i, so what LR i did shows in row i + 1: LRs and
    losses are aligned so. Smoothing leaves no lag, slopes are in log LR, and the loss counts from
    the start's median in units of its own range and noise.

    Args:
        lrs: LRs of the ramp, rising, shape (n,).
        losses: Loss before each step, shape (n,); what follows the first that is not finite is
            not looked at.
        stopped: Whether the ramp was ended early since the loss rose.

    Example:
        >>> x = np.linspace(-5, 1, 100)
        >>> losses = 1 / (1 + 10 ** (x + 3)) + 10 ** (2 * x)
        >>> reading = read_ramp(10**x, losses)
        >>> reading.status, round(math.log10(reading.minimum), 1)
        ('ok', -1.4)
    """
    rates = np.asarray(lrs, dtype=np.float64)[:-1]
    curve = np.asarray(losses, dtype=np.float64)[1:]
    finite = np.isfinite(curve)
    ended = stopped or not bool(finite.all())
    usable = len(curve) if finite.all() else int(finite.argmin())
    if usable < MIN_STEPS:
        return _too_short(np.asarray(lrs, dtype=np.float64), usable, ended=ended)
    x, curve = np.log10(rates[:usable]), curve[:usable]
    smooth, start, noise = in_own_range(curve, x)
    first_steps = start_steps(x)
    lowest = int(smooth.argmin())
    # A curve that is lowest among the steps that tell its start has not fallen.
    drop = float(start - smooth[lowest]) if lowest >= first_steps else 0.0
    rose = _fell(float(np.median(curve[-first_steps:])) - start, noise)
    fell = _fell(drop, noise)
    edge = lowest >= usable - 3 and not ended
    first, last = rates[0], rates[usable - 1]
    status, message = _judge(first, last, fell=fell, rose=rose, edge=edge, ended=ended)
    enough = np.flatnonzero(smooth <= start - BEGIN_SHARE * drop)
    slopes = np.gradient(smooth, x)[: max(lowest, 1)]
    rise = max(RISE_SHARE * drop, FLAT_DROP * noise)
    risen = lowest + np.flatnonzero(smooth[lowest:] > smooth[lowest] + rise)
    high = int(risen[0]) if len(risen) else usable - 1
    return Reading(
        low=float(rates[min(int(enough[0]), lowest) if len(enough) else 0]),
        minimum=float(rates[lowest]),
        steepest=float(rates[int(slopes.argmin())]),
        high=float(rates[high]),
        drop=max(drop, 0.0),
        noise=noise,
        status=status,
        message=message,
    )


def _fell(drop: float, noise: float, curves: int = 1) -> bool:
    """Whether a drop, averaged over curves, is more than flat curves show by their noise."""
    return drop > (FLAT_DROP + FLAT_SPREAD / math.sqrt(curves)) * noise


def _judge(
    first: float, last: float, *, fell: bool, rose: bool, edge: bool, ended: bool
) -> tuple[BracketStatus, str]:
    """What to say of a ramp from the first LR to the last."""
    if not fell and ended:
        return "diverged", (
            f"The loss only rose, until the ramp ended at LR {last:.2g}. Lower `start_lr` "
            f"(it was {first:.2g}); if that does not help, check the loss and the data."
        )
    if not fell and rose:
        return "monotone", (
            f"The loss only rose, from LR {first:.2g} on. Lower `start_lr`, by a factor of 100."
        )
    if not fell:
        return "flat", (
            f"The loss fell by no more than its noise between LR {first:.2g} and {last:.2g}. Widen "
            "the range with `end_lr`, take more steps, or check that these parameters matter."
        )
    if edge:
        return "edge", (
            f"The loss was still falling at the ramp's end, LR {last:.2g}. Raise `end_lr`, by a "
            "factor of 100."
        )
    return "ok", ""


def _too_short(lrs: NDArray[np.float64], usable: int, *, ended: bool) -> Reading:
    status: BracketStatus = "diverged" if ended else "too_short"
    first = float(lrs[0]) if len(lrs) else math.nan
    message = (
        f"The loss rose or was not finite after {usable} steps, at LR {lrs[usable]:.2g}: too soon "
        f"for a curve. Lower `start_lr` (it was {first:.2g})."
        if ended
        else f"A ramp shows a curve from some {MIN_STEPS} steps on, but got {usable + 1}. Raise "
        "`num_steps`; 100 is usual."
    )
    end = float(lrs[min(usable, len(lrs) - 1)])
    return Reading(first, first, first, end, 0.0, math.nan, status, message)


# -- when to stop a ramp --------------------------------------------------------------------------


def stop_rule(trace: Trace) -> str | None:
    """Why a ramp should stop now, or None: the loss has risen far above its start.

    Law: stop once two losses in a row exceed each of the first 8, and start + max(2 (start -
    lowest), 10 noise), with the start the median of these 8 and the noise that of the differences.
    So neither the sign nor the unit of the loss matters. A loss that is not finite ends a run by
    itself.
    """
    losses = trace.settled_losses
    if len(losses) < START_STEPS + 2:
        return None
    last = min(losses[-1], losses[-2])
    if not last > max(losses[:START_STEPS]):
        return None  # at most steps, and quickly
    start = float(np.median(losses[:START_STEPS]))
    curve = np.asarray(losses)
    # The middle of three, so that one lucky batch does not count as the lowest.
    middle = np.sort(np.lib.stride_tricks.sliding_window_view(curve, 3), axis=1)[:, 1]
    fallen = max(start - float(middle.min()), 0.0)
    noise = noise_of(np.diff(curve)) / math.sqrt(2)
    limit = start + max(STOP_RANGES * fallen, STOP_NOISE * noise)
    if last <= limit:
        return None
    return (
        f"The loss rose to {last:.4g}, above the limit of {limit:.4g}, at step {len(trace) - 1}."
    )


# -- several ramps of the same -------------------------------------------------------------------


def combined(readings: Sequence[Reading]) -> Reading:
    """The readings of one ramp on several batch orders as one: means in log LR.

    Whether the loss fell is told by all of them together, for noise that hides it in one curve
    rarely hides it in their mean. Those that are "ok" speak where they are at least half;
    otherwise the most frequent of the other statuses does.
    """
    good = [reading for reading in readings if reading.status == "ok"]
    doubted = [reading for reading in readings if reading.status in DOUBTED]
    if doubted and len(good) + len(doubted) == len(readings):
        drop, noise = (
            float(np.mean([getattr(r, key) for r in readings])) for key in ("drop", "noise")
        )
        fell = _fell(drop, noise, len(readings))
        good = [r for r in readings if r.drop > FLAT_DROP * r.noise] if fell else []
    status: BracketStatus = "ok"
    if 2 * len(good) < len(readings):
        statuses: list[BracketStatus] = [r.status for r in readings if r.status != "ok"]
        status = max(statuses, key=statuses.count)
        good = [reading for reading in readings if reading.status == status]
    message = good[0].message if status != "ok" else ""
    return Reading(
        low=log_mean([reading.low for reading in good]),
        minimum=log_mean([reading.minimum for reading in good]),
        steepest=log_mean([reading.steepest for reading in good]),
        high=log_mean([reading.high for reading in good]),
        drop=float(np.mean([reading.drop for reading in good])),
        noise=float(np.mean([reading.noise for reading in good])),
        status=status,
        message=message,
    )


def spread_of(readings: Sequence[Reading]) -> float:
    """Decades between the lowest and highest minimum; NaN for fewer than two readings."""
    if len(readings) < 2:
        return math.nan
    x = [math.log10(reading.minimum) for reading in readings]
    return max(x) - min(x)


def log_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers.

    Example:
        >>> round(log_mean([0.01, 1.0]), 6)
        0.1
    """
    return float(10 ** np.mean(np.log10(values)))
