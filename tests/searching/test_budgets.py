"""Tests of budgets: trials, steps and seconds are counted, those of earlier calls too."""

from __future__ import annotations

import datetime
import functools
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from lrfinder.searching.budgets import RANGE_TEST_KEY, Budget, seconds_spent, steps_spent
from tests.searching.test_searching import quiet_search, tiny_task

cold = functools.partial(quiet_search, warm_start=False, pruner="NopPruner")
TRIAL_STEPS = 18  # of the tiny task


def study_of(*trials: optuna.trial.FrozenTrial, tested: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    study.add_trials(list(trials))
    study.set_user_attr(RANGE_TEST_KEY, {"steps": tested, "seconds": 2.0})
    return study


def ended(steps: int, start: float = 0.0, end: float = 1.0) -> optuna.trial.FrozenTrial:
    trial = create_trial(value=1.0, user_attrs={"steps": steps})
    day = datetime.datetime(2026, 1, 1)
    trial.datetime_start = day + datetime.timedelta(seconds=start)
    trial.datetime_complete = day + datetime.timedelta(seconds=end)
    return trial


def test_steps_are_those_of_the_range_test_and_the_trials() -> None:
    study = study_of(ended(30), ended(50), tested=100)
    assert steps_spent(study, study.trials) == 180
    study.ask()  # one that runs counts as a full one
    assert steps_spent(study, study.trials, 60) == 240


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1, max_size=6))
def test_seconds_are_the_length_of_the_union(spans) -> None:
    trials = [ended(1, start, start + length) for start, length in spans]
    covered, until = 0.0, -1.0
    for start, length in sorted(spans):
        covered += max(0.0, start + length - max(start, until))
        until = max(until, start + length)
    study = study_of()
    assert seconds_spent(study, trials) == pytest.approx(2.0 + covered, abs=1e-3)


def test_no_trial_begins_once_the_steps_are_spent() -> None:
    study = cold(tiny_task(), n_steps=3 * TRIAL_STEPS)
    assert [trial.user_attrs["steps"] for trial in study.trials] == [TRIAL_STEPS] * 3
    study = cold(tiny_task(), 2, n_steps=3 * TRIAL_STEPS + 1)
    assert len(study.trials) == 2  # whichever is spent first


def test_steps_of_an_earlier_call_count(tmp_path: Path) -> None:
    options: dict[str, Any] = {"storage": f"sqlite:///{tmp_path / 's.db'}", "study_name": "s"}
    cold(tiny_task(), 2, **options)
    study = cold(tiny_task(), n_steps=4 * TRIAL_STEPS, **options)
    assert len(study.trials) == 4
    assert len(cold(tiny_task(), n_steps=4 * TRIAL_STEPS, **options).trials) == 4


def test_no_trial_begins_once_the_time_is_spent() -> None:
    def slow(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        time.sleep(0.01)

    study = cold(tiny_task(), timeout=0.2, confirm=0, on_trial=slow, engine="stepping")
    assert study.trials
    assert seconds_spent(study, study.trials) >= 0.2
    assert seconds_spent(study, study.trials[:-1]) < 0.2  # when the last one began


def test_progress_tells_what_is_done_of_what_is_spent_first() -> None:
    seen: list[tuple[str, int, int]] = []
    cold(tiny_task(), 3, n_steps=1000, confirm=2, at_once=1,
         progress=lambda *told: seen.append(told))  # fmt: skip
    searched = [told for told in seen if told[0].startswith("search")]
    assert [told[1:] for told in searched] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert "best" in searched[-1][0]
    # Those of a round are trained together: two of each of two trials, then three more of the best.
    confirmed = [told for told in seen if told[0] == "confirming"]
    assert confirmed == [("confirming", 4, 7), ("confirming", 7, 7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must have a budget: give `n_trials`, `n_steps` or `timeout`"),
        ({"n_steps": 0}, "`n_steps >= 1` must hold, but got n_steps=0"),
        ({"timeout": 0.0}, "`0 < timeout < inf` must hold, but got timeout=0.0"),
        ({"timeout": float("nan")}, "`0 < timeout < inf` must hold, but got timeout=nan"),
    ],
)
def test_a_budget_that_is_none_is_told(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        quiet_search(tiny_task(), **options)


def test_a_trial_that_failed_is_spent_too() -> None:
    study = study_of(create_trial(state=TrialState.FAIL), ended(10))
    assert Budget(n_trials=2).is_spent(study, study.trials)
    assert not Budget(n_trials=3).is_spent(study, study.trials)
    assert Budget(n_trials=3).progress(study, study.trials) == (2, 3)
