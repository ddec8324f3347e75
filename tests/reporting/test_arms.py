"""Tests of the statistics by which arms are compared."""

from __future__ import annotations

import math

import pytest

from lrfinder.reporting.arms import Arm, ArmComparison, Measure, difference

LOSS, ACCURACY = Measure.named("val/loss"), Measure.named("val/accuracy")
NAN = math.nan


def arm(name: str, losses: tuple[float, ...], accuracies: tuple[float, ...] | None = None) -> Arm:
    values = {"val/loss": losses}
    if accuracies is not None:
        values["val/accuracy"] = accuracies
    return Arm(name=name, seeds=tuple(range(len(losses))), values=values)


@pytest.mark.parametrize(
    ("found", "baseline", "verdict", "words"),
    [
        ((0.8, 0.9, 0.7), (1.0, 1.1, 0.9), "better", "better by 20.0 % ± 0.0 %"),
        ((1.2, 1.1, 1.3), (1.0, 0.9, 1.1), "not better", "not better (worse by 20.0 % ± 0.0 %)"),
        ((1.0, 2.0), (1.0, 2.0), "not better", "not better (the same)"),
        ((0.5, 1.4, 1.0), (1.0, 1.0, 1.0), "unclear", "not clearly better (3.3 % ± 26.0 %)"),
        ((0.5,), (1.0,), "unclear", "not clearly better (50.0 %)"),
        ((0.5, 0.6), (NAN, NAN), "better", "better: base diverged on 2 of 2 seeds"),
        ((NAN, 0.6), (1.0, 1.0), "not better", "not better: it diverged on 1 of 2 seeds"),
        ((NAN, 0.6), (NAN, 1.0), "not better", "it diverged on 1 of 2 seeds, base on 1"),
        (
            (0.5, 0.6),
            (1.0, math.inf),
            "better",
            "diverged on 1 of 2 seeds; on the other seeds better",
        ),
        ((0.0, 0.0), (0.0, 0.0), "not better", "not better (the same)"),
    ],
)
def test_a_verdict_says_what_the_numbers_say(found, baseline, verdict, words) -> None:
    result = difference(arm("found", found), arm("base", baseline), LOSS)
    assert result.verdict == verdict
    assert words in result.words


def test_the_error_is_that_of_the_paired_differences() -> None:
    # The seeds move both arms alike, which must not count: the error of the pairs is small.
    result = difference(arm("found", (1.0, 5.0, 9.0)), arm("base", (1.9, 6.1, 10.0)), LOSS)
    gains, mean = [0.9, 1.1, 1.0], 6.0
    assert result.improvement == pytest.approx(sum(gains) / 3 / mean)
    assert result.error == pytest.approx(0.1 / math.sqrt(3) / mean)


def test_an_accuracy_is_better_high_and_told_in_points() -> None:
    result = difference(
        arm("found", (1.0, 1.0), (0.95, 0.96)), arm("base", (1.0, 1.0), (0.90, 0.91)), ACCURACY
    )
    assert result.words == "better by 5.0 points ± 0.0 points"


def test_arms_of_other_seeds_and_measures_without_direction_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        difference(arm("found", (1.0,)), arm("base", (1.0, 2.0)), LOSS)
    with pytest.raises(ValueError, match="direction"):
        difference(arm("found", (1.0,)), arm("base", (1.0,)), Measure.named("val/entropy"))
    with pytest.raises(ValueError, match="one value for each seed"):
        Arm(name="found", seeds=(1, 2), values={"val/loss": (0.1,)})


def test_mean_and_spread_leave_diverged_seeds_out_and_count_them() -> None:
    some = arm("some", (1.0, 3.0, NAN))
    assert some.mean("val/loss") == 2.0
    assert some.spread("val/loss") == pytest.approx(math.sqrt(2))
    assert some.diverged("val/loss") == 1
    assert math.isnan(arm("none", (NAN,)).mean("val/loss"))
    assert math.isnan(arm("one", (1.0,)).spread("val/loss"))


def test_the_headline_names_each_baseline_under_its_verdict() -> None:
    comparison = ArmComparison(
        found=arm("found", (0.8, 0.9, 0.7)),
        baselines=(
            arm("default", (NAN, NAN, NAN)),
            arm("one-lr", (1.0, 1.1, 0.9)),
            arm("lucky", (0.1, 0.1, 0.1)),
        ),
        measures=(LOSS,),
    )
    assert comparison.headline == (
        "In val/loss, found is better than default and one-lr, and is not better than lucky."
    )
    assert [item.verdict for item in comparison.differences] == ["better", "better", "not better"]
