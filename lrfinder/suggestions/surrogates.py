"""Surrogates: a race read as one landscape, from which the best LRs and their advantage follow.

A race measures some dozens of candidates, most of them for a few steps only, each with the noise of
its batches. The winner is the luckiest of them. A Gaussian process over the LRs and the number of
steps uses them all: neighbours steady each other, and what happened after 15 and 30 steps tells how
the best LR moves while a training grows longer.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

NOISES = (0.02, 0.5)  # variance of the noise as a share of the variance of what was measured
CAUTION = 0.5  # standard errors by which a place is taken for worse than it is expected to be
NUM_POINTS = 2000  # at which the landscape is looked at
MARGIN = 0.2  # decades around the best candidates within which it is looked at


class Surrogate:
    """How far a loss is from the best after a number of steps, as a function of the LRs.

    Law: y = sqrt(gap), with gap = (s - s_best) / (s_start - s_best) in 0 .. 1 among the candidates of
    one rung, is a Gaussian process with a squared exponential kernel over (log10 lr_1, ..,
    log10 lr_G, log10 steps, c), a length scale for each, and independent noise; its parameters
    maximise the likelihood. So it depends neither on the unit nor on the sign of the loss.

    Args:
        lrs: log10 of the LRs, shape (N, G).
        steps: After which each was judged, shape (N,), > 0.
        gaps: Shape (N,), in 0 .. 1 and finite.
        cooled: c, shape (N,): 1 where the loss is that of the mean of the weights, which is as of a
            training that has cooled down; 0 where it is that of a constant LR, as which the
            landscape is read.
        length_scales: The shortest and the longest that is looked at, in decades, of an LR and of
            the number of steps.

    Source: Rasmussen and Williams, 2006, section 2.2; the number of steps as an input: Kandasamy et
    al., 2017, arXiv 1703.06240.
    """

    def __init__(
        self,
        lrs: Points,
        steps: NDArray[np.float64],
        gaps: NDArray[np.float64],
        *,
        cooled: NDArray[np.float64],
        length_scales: tuple[float, float],
    ) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        inputs = np.column_stack([lrs, np.log10(steps), cooled])
        count = inputs.shape[1]
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * RBF(
            np.ones(count), [length_scales] * count
        ) + WhiteKernel(0.05, NOISES)
        self._process = GaussianProcessRegressor(
            kernel, alpha=1e-6, normalize_y=True, random_state=0
        )
        with warnings.catch_warnings():
            # An LR that does not matter has the longest length scale: an answer, not a failure.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(inputs, np.sqrt(gaps))

    def best(
        self, steps: float, near: Points, *, softness: float, seed: int = 0
    ) -> NDArray[np.float64]:
        """The log10 LRs, shape (G,), that are expected to be best after `steps`.

        Law: sum_i w_i x_i / sum_i w_i with w_i = exp(-(v_i - min v) / (softness sd(v))), where v is the
        expected y and half its standard error, over points x_i that cover the box which `near`
        spans, and 0.2 decades more on each side: a soft minimum, which lies in the middle of a flat
        valley and keeps away from where little is known.

        Args:
            steps: > 0; more than were measured is an extrapolation.
            near: log10 LRs of good candidates, shape (M, G).
            softness: Of the minimum, in standard deviations of the landscape there, > 0.
            seed: Of the points.
        """
        low, high = near.min(axis=0) - MARGIN, near.max(axis=0) + MARGIN
        spread = np.random.default_rng(seed).uniform(low, high, (NUM_POINTS, near.shape[1]))
        points = np.concatenate([spread, near])
        mean, error = self._process.predict(self._inputs(points, steps), return_std=True)
        values = mean + CAUTION * error
        weights = np.exp(-(values - values.min()) / (softness * values.std() + 1e-12))
        return np.asarray(weights @ points / weights.sum(), dtype=np.float64)

    def advantage(self, first: Points, second: Points, steps: float) -> tuple[float, float]:
        """By how much `first` is expected to be better than `second`, and the standard error.

        Law: gap(second) - gap(first), as a share of the drop of the best, with gap = y |y| of the
        expected y (below 0: better than all that raced). With v the variance of
        y(second) - y(first), the error is the root of (|y(first)| + |y(second)|)^2 v + 2 v^2.

        Args:
            first: log10 LRs, shape (G,).
            second: The same.
            steps: After which they are compared.
        """
        inputs = self._inputs(np.stack([first, second]), steps)
        mean, covariance = self._process.predict(inputs, return_cov=True)
        ours, theirs = np.minimum(mean, 1.0).tolist()
        # The covariance is that of two measurements; their noise says nothing of what is expected.
        noise = self._process.kernel_.k2.noise_level * float(self._process._y_train_std) ** 2
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1] - 2 * noise
        variance = max(float(variance), 0.0)
        error = math.sqrt((abs(ours) + abs(theirs)) ** 2 * variance + 2 * variance**2)
        return theirs * abs(theirs) - ours * abs(ours), error

    @staticmethod
    def _inputs(lrs: Points, steps: float) -> Points:
        """At constant LRs."""
        count = len(lrs)
        return np.column_stack([lrs, np.full(count, math.log10(steps)), np.zeros(count)])
