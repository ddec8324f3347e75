"""Budgets: when a search has done enough: by trials, by optimizer steps, by wall time."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

RANGE_TEST_KEY = "lrfinder.range_test"  # of a study: what its range test took and refused


@dataclass(frozen=True, kw_only=True)
class Budget:
    """No trial begins once one of these is spent. What was done before, by any process, counts.

    Args:
        n_trials: Trials; None for any number.
        n_steps: Optimizer steps, those of the range test included; None for any number. A trial
            under way counts as a full one.
        timeout: Seconds of wall time in which a trial or the range test was under way; None for any.
        trial_steps: Optimizer steps of a full trial; 0 where they are not known.
    """

    n_trials: int | None = None
    n_steps: int | None = None
    timeout: float | None = None
    trial_steps: int = 0

    def __post_init__(self) -> None:
        given: Mapping[str, Any] = {"n_trials": self.n_trials, "n_steps": self.n_steps}
        for name, value in given.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name} >= 1` must hold, but got {name}={value}.")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise ValueError(f"`0 < timeout < inf` must hold, but got timeout={self.timeout}.")
        if self.n_trials is None and self.n_steps is None and self.timeout is None:
            raise ValueError(
                "A search must have a budget: give `n_trials`, `n_steps` or `timeout`."
            )

    @property
    def is_of_trials_alone(self) -> bool:
        """Whether their number alone says when it is spent."""
        return self.n_steps is None and self.timeout is None

    def is_spent(self, study: optuna.Study, counted: Sequence[FrozenTrial]) -> bool:
        """Whether no further trial may begin.

        Args:
            study: What is searched.
            counted: The trials that run or have ended, without those that are to be made up.
        """
        return any(done >= total for done, total in self._shares(study, counted))

    def progress(self, study: optuna.Study, counted: Sequence[FrozenTrial]) -> tuple[int, int]:
        """What is done and all that there is, of that which will be spent first."""
        finished = [trial for trial in counted if trial.state.is_finished()]
        done, total = max(self._shares(study, finished), key=lambda share: share[0] / share[1])
        return math.floor(done), math.ceil(total)

    def _shares(
        self, study: optuna.Study, trials: Sequence[FrozenTrial]
    ) -> list[tuple[float, float]]:
        shares: list[tuple[float, float]] = []
        if self.n_trials is not None:
            shares.append((len(trials), self.n_trials))
        if self.n_steps is not None:
            shares.append((steps_spent(study, trials, self.trial_steps), self.n_steps))
        if self.timeout is not None:
            shares.append((seconds_spent(study, trials), self.timeout))
        return shares


def steps_spent(study: optuna.Study, trials: Sequence[FrozenTrial], trial_steps: int = 0) -> int:
    """Optimizer steps of the range test and the trials; one that runs counts as `trial_steps`."""
    taken: list[int] = [t.user_attrs.get("steps", 0) for t in trials if t.state.is_finished()]
    running = sum(trial.state is TrialState.RUNNING for trial in trials)
    tested: int = study.user_attrs.get(RANGE_TEST_KEY, {}).get("steps", 0)
    return tested + sum(taken) + running * trial_steps


def seconds_spent(study: optuna.Study, trials: Sequence[FrozenTrial]) -> float:
    """Seconds in which a trial was under way, whoever trained it, and those of the range test.

    Law: the length of the union of the trials' intervals from start to end, or to now.
    """
    now = datetime.datetime.now()
    spans = sorted(
        (trial.datetime_start, trial.datetime_complete or now)
        for trial in trials
        if trial.datetime_start is not None
    )
    seconds: float = study.user_attrs.get(RANGE_TEST_KEY, {}).get("seconds", 0.0)
    until = datetime.datetime.min
    for start, end in spans:
        if end > until:
            seconds += (end - max(start, until)).total_seconds()
            until = end
    return seconds
