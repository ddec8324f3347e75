"""Smoothing: a curve without its noise and without a lag, and how large the noise is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Weight of the past where LRs rise by 0.06 decades a step, as in 100 steps over 6 decades. Steeper
# ramps are smoothed over as many decades, so over fewer steps, but never over less than a few.
SMOOTHING, SMOOTHING_STEP, LEAST_SMOOTHING = 0.85, 0.06, 0.5
MOST_SMOOTHED = 60  # steps of a curve for each multiple of the usual density
MOST_CORRELATED = 0.9
CAP_RANGES, CAP_NOISE = 0.5, 3.0
CUT_NOISE = 3.0
START_STEPS = 8  # the loss at the start is the median of so many, where a step is as long as usual


def smoothed(values: ArrayLike, *, weight: float = SMOOTHING) -> NDArray[np.float64]:
    """Smooth a curve without a lag: an exponential mean forwards, and one backwards over it.

    Law: s_i = sum_{j<=i} w^(i-j) v_j / sum_{j<=i} w^(i-j), and the same from the other end. The
    weights add up to 1 at every point, so a constant stays as it is and there is no bias to undo.

    Args:
        values: Shape (n,), finite.
        weight: w, 0 <= w < 1.

    Example:
        >>> smoothed([2.0, 2.0, 2.0]).tolist()
        [2.0, 2.0, 2.0]
    """
    curve = np.asarray(values, dtype=np.float64)
    if len(curve) == 0:
        return curve.copy()
    # From the first value on, so that a constant is exact and a large offset costs no digits.
    offset = curve[0]
    forwards = _mean_of_past(curve - offset, weight)
    both: NDArray[np.float64] = _mean_of_past(forwards[::-1], weight)[::-1] + offset
    return both


def _mean_of_past(values: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    means = np.empty_like(values)
    total = share = 0.0
    for index, value in enumerate(values):
        total, share = weight * total + value, weight * share + 1.0
        means[index] = total / share
    return means


def weight_of(x: NDArray[np.float64]) -> float:
    """The weight of the past that smooths over the usual number of decades."""
    step = float(x[-1] - x[0]) / (len(x) - 1)
    return float(max(SMOOTHING ** (step / SMOOTHING_STEP), LEAST_SMOOTHING))


def density_of(x: NDArray[np.float64]) -> float:
    """How many steps a decade has, over the usual number; 1 at least, and what a curve can be smoothed by at most."""
    dense = SMOOTHING_STEP * (len(x) - 1) / float(x[-1] - x[0])
    return max(min(dense, len(x) / MOST_SMOOTHED), 1.0)


def start_steps(x: NDArray[np.float64]) -> int:
    """Steps whose median is the start: as many decades as usual where a decade has more of them."""
    return round(START_STEPS * density_of(x))


def in_own_range(
    curve: NDArray[np.float64], x: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, float]:
    """The smoothed curve, its start and its noise.

    The noise is told as that of the usual number of steps in a decade: more of them are smoothed
    together, and so sway the curve less by their root.

    What rises far above the start is cut off before smoothing: backwards, a divergence would push
    the minimum to the left. How far is told by the curve's own range, so in two passes.
    """
    weight = weight_of(x)
    start = float(np.median(curve[: start_steps(x)]))
    below = smoothed(np.minimum(curve, start), weight=weight)
    drop = float(start - below.min())
    noise = noise_of(curve - smoothed(curve, weight=weight))
    cap = start + max(CAP_RANGES * drop, CAP_NOISE * noise)
    smooth = smoothed(np.minimum(curve, cap), weight=weight)
    residuals = np.minimum(curve, cap) - smooth
    noise = _slow_noise(residuals[: max(40, len(curve) // 2)])
    return smooth, start, noise / math.sqrt(density_of(x))


def _slow_noise(residuals: NDArray[np.float64]) -> float:
    """The sd of white noise that sways a smoothed curve as much as this noise does.

    Law: sd sqrt((1 + r) / (1 - r)) of noise in which each step keeps r of the last one's, with
    v_k = 2 sd^2 (1 - r^k) the variance of differences over k steps, so r = v_2 / v_1 - 1. Spikes
    are cut at three times the median deviation.
    """
    sd = noise_of(residuals)
    centred = residuals - np.median(residuals)
    cut = np.clip(centred, -CUT_NOISE * sd, CUT_NOISE * sd)
    one = float(np.mean(np.diff(cut) ** 2))
    if one == 0:
        return sd
    kept = float(np.mean((cut[2:] - cut[:-2]) ** 2)) / one - 1.0
    kept = min(max(kept, 0.0), MOST_CORRELATED)
    return sd * math.sqrt((1 + kept) / (1 - kept))


def noise_of(residuals: NDArray[np.float64]) -> float:
    """Standard deviation of a normal distribution with these residuals' median deviation."""
    return float(1.4826 * np.median(np.abs(residuals - np.median(residuals))))
