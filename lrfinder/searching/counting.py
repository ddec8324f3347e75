"""Counting: which trials are a study's `n_trials`."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState


def is_counted(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the study's `n_trials`: it runs, or has ended and is not to be made up."""
    if trial.state is TrialState.WAITING:
        return False
    return not trial.user_attrs.get("interrupted", False)


def count_done(study: optuna.Study) -> int:
    """Trials that have ended, without those that are to be made up: interrupted, or lost."""
    return sum(
        trial.state.is_finished() and is_counted(trial)
        for trial in study.get_trials(deepcopy=False)
    )
