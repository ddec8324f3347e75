"""The groups' learning rates in a study of one's own."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrfinder
from lrfinder.ranging.results import Cost

optuna.logging.set_verbosity(optuna.logging.WARNING)


def result_of(
    brackets: dict[str, tuple[float, float]], groups: str = "each", status: str = "ok"
) -> lrfinder.RangeTest:
    made = {
        name: lrfinder.Bracket(
            low=low, suggested=low, high=high, spread=0.0, status=status, message="Why."
        )
        for name, (low, high) in brackets.items()
    }
    suggestion = lrfinder.Suggestion({name: low for name, (low, _) in brackets.items()}, made)
    return lrfinder.RangeTest(suggestion, (), None, Cost(0, 0.0), {"groups": groups})


@settings(max_examples=25, deadline=None)
@given(
    low=st.floats(1e-8, 1e-2),
    width=st.floats(1.5, 1e4),
    ratio=st.floats(1e-2, 1e2),
    seed=st.integers(0, 99),
)
def test_lrs_are_inside_the_brackets(low: float, width: float, ratio: float, seed: int) -> None:
    brackets = {"body": (low, low * width), "head": (ratio * low, ratio * low * width)}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for groups in ("each", "together"):
        result = result_of(brackets, groups)
        trial = study.ask()
        lrs = lrfinder.suggest_lrs(trial, result)
        assert list(lrs) == ["body", "head"]
        for name, lr in lrs.items():
            at_least, at_most = brackets[name]
            assert at_least * (1 - 1e-9) <= lr <= at_most * (1 + 1e-9)
        if groups == "together":
            assert set(trial.params) == {"lr/body"}
            assert lrs["head"] / lrs["body"] == pytest.approx(ratio)
        else:
            assert trial.params == {f"lr/{name}": lr for name, lr in lrs.items()}


def test_a_trial_that_was_enqueued_and_another_prefix() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"body": 0.2})
    assert lrfinder.suggest_lrs(study.ask(), result_of({"body": (0.1, 1.0)}), prefix="") == {
        "body": 0.2
    }


@pytest.mark.parametrize("status", ["flat", "diverged", "edge"])
def test_a_group_without_a_bracket_is_refused(status: str) -> None:
    with pytest.raises(lrfinder.RefusedSuggestion, match=rf"group 'a' has none \({status}\): Why"):
        lrfinder.suggest_lrs(
            optuna.create_study().ask(), result_of({"a": (0.1, 1.0)}, "each", status)
        )
