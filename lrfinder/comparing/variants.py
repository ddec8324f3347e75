"""Variants: runs that differ in their seed alone, taken together: a mean and a spread."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrfinder.comparing.histories import Curve, RecordedRun

SEEDS = ("cfg/seed", "seed")  # the hparams that make no variant
TRIAL = "cfg/trial/"  # Optuna's own numbers, of which the hparams are made


@dataclass(frozen=True)
class Variant:
    """Runs whose hparams are equal but for their seed.

    Attributes:
        name: What their names have in common.
        runs: At least one.
    """

    name: str
    runs: tuple[RecordedRun, ...]

    def band(self, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """The metric over the runs: steps that all have, and mean, lowest and highest at each.

        Returns:
            Steps, shape (steps,), and values, shape (3, steps); None where the runs have no step
            in common. Non-finite values stay non-finite.
        """
        curves = [run.curves[metric] for run in self.runs if metric in run.curves]
        if not curves:
            return None
        steps = curves[0][0]
        for other, _ in curves[1:]:
            steps = np.intersect1d(steps, other)
        if not len(steps):
            return None
        values = np.array([_at(curve, steps) for curve in curves])
        return steps, np.array([values.mean(axis=0), values.min(axis=0), values.max(axis=0)])


def _at(curve: Curve, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    return curve[1][np.searchsorted(curve[0], steps)]


def find_variants(runs: Iterable[RecordedRun]) -> list[Variant]:
    """Runs grouped by all hparams but the seed, in the order of their first run.

    Runs of which no hparams are recorded stay alone.
    """
    groups: dict[object, list[RecordedRun]] = {}
    for run in runs:
        kept = {
            name: text
            for name, text in run.hparams.items()
            if name not in SEEDS and not name.startswith(TRIAL)
        }
        key = (tuple(sorted(kept.items())), tuple(sorted(run.lrs))) if kept else run.run_id
        groups.setdefault(key, []).append(run)
    return [Variant(_common_name(group), tuple(group)) for group in groups.values()]


def _common_name(runs: Sequence[RecordedRun]) -> str:
    """What the names begin with, without a seed's number.

    Example:
        >>> def named(name):
        ...     return RecordedRun(run_id="", name=name, status="", hparams={}, curves={})
        >>> _common_name([named("found seed 1"), named("found seed 12")])
        'found'
    """
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    # What the first and the last in order have in common, all have.
    pairs = zip(min(names), max(names), strict=False)
    shared = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    common = re.sub(r"[\s_-]*(seed)?[\s_=-]*\d*$", "", shared)
    return common or names[0]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample: n - 1) of the finite values; NaN where undefined.

    Example:
        >>> mean_and_spread([1.0, 3.0, float("nan")])
        (2.0, 1.4142135623730951)
    """
    finite = np.array([value for value in values if np.isfinite(value)])
    mean = float(finite.mean()) if len(finite) else float("nan")
    spread = float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
    return mean, spread
