"""Arms: configurations trained on the same seeds, and whether one is better than another.

A seed changes the weights that a training starts from and the order of its batches, and this moves
the loss more than many a choice of learning rates does. So configurations are compared seed by
seed: the spread that they share cancels, and what is left has a standard error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Verdict = Literal["better", "unclear", "not better"]

# A mean improvement counts where it exceeds so many of its standard errors.
CLEAR = 2.0


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something measured at the end of a training.

    Args:
        name: As recorded, "val/loss" or "val/<metric>".
        direction: Whether it is better low or high; None where nobody said so, and no verdict is
            given.
        relative: Whether a difference is told as a share of the baseline's mean; else in its own
            unit.
    """

    name: str
    direction: Literal["minimize", "maximize"] | None
    relative: bool = True

    @classmethod
    def named(cls, name: str) -> Measure:
        """The measure of a recorded name: a loss is better low, an accuracy is better high.

        Example:
            >>> Measure.named("val/accuracy").direction, Measure.named("val/entropy").direction
            ('maximize', None)
        """
        if "loss" in name:
            return cls(name=name, direction="minimize")
        return cls(name=name, direction="maximize" if "accuracy" in name else None, relative=False)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One configuration, trained once for each seed.

    Args:
        name: Short, for tables.
        note: What it is, in words.
        lrs: The LR of each group.
        schedule: The schedule's spec; None for a constant LR.
        seeds: Of its trainings.
        values: Measure -> its value at the end of each training, in the order of `seeds`; NaN
            where that training diverged.
        steps: Optimizer steps, summed over the trainings.
        seconds: Time of all of them.
    """

    name: str
    note: str = ""
    lrs: Mapping[str, float] = field(default_factory=dict)
    schedule: Mapping[str, Any] | None = None
    seeds: tuple[int, ...]
    values: Mapping[str, Sequence[float]]
    steps: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            if len(values) != len(self.seeds):
                raise ValueError(
                    f"An arm has one value for each seed, but {self.name!r} has {len(values)} "
                    f"of {name!r} and {len(self.seeds)} seeds."
                )

    def mean(self, measure: str) -> float:
        """Mean over the seeds whose training did not diverge; NaN where all did."""
        finite = self._finite(measure)
        return float(np.mean(finite)) if finite else math.nan

    def spread(self, measure: str) -> float:
        """Standard deviation (n - 1) over the seeds that did not diverge; NaN below two."""
        finite = self._finite(measure)
        return float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan

    def diverged(self, measure: str) -> int:
        """The number of seeds whose value is not finite."""
        return len(self.seeds) - len(self._finite(measure))

    def _finite(self, measure: str) -> list[float]:
        return [value for value in self.values[measure] if math.isfinite(value)]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better one arm is than a baseline, seed by seed.

    Args:
        measure: What is compared.
        baseline: The other arm's name.
        improvement: Mean of the paired differences, positive where the arm is better.
        error: Standard error of that mean; NaN below two pairs.
        verdict: "better" where the improvement exceeds two standard errors, "unclear" where it is
            positive and does not, else "not better".
        words: The verdict as a sentence's end, with the numbers.
    """

    measure: Measure
    baseline: str
    improvement: float
    error: float
    verdict: Verdict
    words: str


def difference(arm: Arm, baseline: Arm, measure: Measure) -> Difference:
    """Compare two arms that were trained on the same seeds.

    Law: d_s = baseline_s - arm_s for each seed s (the other way round where high is better);
    improvement = mean(d), error = sd(d) / sqrt(n), both divided by |mean(baseline)| where the
    measure is relative. A diverged training is worse than any that did not diverge; its seed is
    left out of the mean.

    Raises:
        ValueError: If the seeds differ, or the measure has no direction.

    Example:
        >>> found = Arm(name="found", seeds=(1, 2, 3), values={"val/loss": (0.10, 0.12, 0.11)})
        >>> other = Arm(name="one-lr", seeds=(1, 2, 3), values={"val/loss": (0.20, 0.23, 0.20)})
        >>> difference(found, other, Measure.named("val/loss")).words
        'better by 47.6 % ± 2.7 %'
    """
    if arm.seeds != baseline.seeds:
        raise ValueError(
            f"Arms must be trained on the same seeds to be compared, but {arm.name!r} has "
            f"{arm.seeds} and {baseline.name!r} has {baseline.seeds}."
        )
    if measure.direction is None:
        raise ValueError(
            f"`direction` of {measure.name!r} must be known to compare it, but got None."
        )
    sign = 1.0 if measure.direction == "minimize" else -1.0
    pairs = [
        (b, sign * (b - a))
        for a, b in zip(arm.values[measure.name], baseline.values[measure.name], strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    scale = abs(float(np.mean([b for b, _ in pairs]))) if measure.relative and pairs else 1.0
    gains = np.array([gain for _, gain in pairs]) / (scale or 1.0)
    improvement = float(gains.mean()) if len(gains) else math.nan
    error = float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.nan
    verdict, words = _judge(arm, baseline, measure, improvement, error)
    return Difference(
        measure=measure,
        baseline=baseline.name,
        improvement=improvement,
        error=error,
        verdict=verdict,
        words=words,
    )


def _judge(
    arm: Arm, baseline: Arm, measure: Measure, improvement: float, error: float
) -> tuple[Verdict, str]:
    unit = "%" if measure.relative else "points"
    size = f"{abs(improvement) * 100:.1f} {unit}"
    if math.isfinite(error):
        size += f" ± {error * 100:.1f} {unit}"
    own, theirs, count = (
        arm.diverged(measure.name),
        baseline.diverged(measure.name),
        len(arm.seeds),
    )
    if own:
        also = f", {baseline.name} on {theirs}" if theirs else ""
        return "not better", f"not better: it diverged on {own} of {count} seeds{also}"
    if theirs:
        rest = (
            ""
            if theirs == count
            else f"; on the other seeds {'better' if improvement > 0 else 'worse'} by {size}"
        )
        return "better", f"better: {baseline.name} diverged on {theirs} of {count} seeds{rest}"
    if improvement > 0 and improvement > CLEAR * error:
        return "better", f"better by {size}"
    if improvement > 0:
        return "unclear", f"not clearly better ({size})"
    return (
        "not better",
        f"not better (worse by {size})" if improvement < 0 else "not better (the same)",
    )


@dataclass(frozen=True, kw_only=True)
class ArmComparison:
    """The arm that was found, beside its baselines.

    Args:
        found: The arm in question.
        baselines: At least one, trained on the same seeds.
        measures: What is compared; each arm has a value of it.
    """

    found: Arm
    baselines: tuple[Arm, ...]
    measures: tuple[Measure, ...]

    def _repr_html_(self) -> str:
        """The answer, the arms and their figure, as a notebook shows them."""
        from lrfinder.reporting import make_report  # which is made of this room

        return make_report("", comparison=self)._repr_html_()

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms, the found one first."""
        return (self.found, *self.baselines)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Each baseline under each measure that has a direction."""
        return tuple(
            difference(self.found, baseline, measure)
            for measure in self.measures
            if measure.direction is not None
            for baseline in self.baselines
        )

    @property
    def headline(self) -> str:
        """One sentence: which baselines are beaten in the first measure, and which are not."""
        first = self.measures[0]
        by_verdict: dict[str, list[str]] = {"better": [], "unclear": [], "not better": []}
        for item in self.differences:
            if item.measure == first:
                by_verdict[item.verdict].append(item.baseline)
        parts = [
            f"{words} {_enumerate(names)}"
            for words, names in (
                ("is better than", by_verdict["better"]),
                ("is not clearly better than", by_verdict["unclear"]),
                ("is not better than", by_verdict["not better"]),
            )
            if names
        ]
        *before, last = parts
        answer = f"{', '.join(before)}, and {last}" if before else last
        return f"In {first.name}, {self.found.name} {answer}."


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
