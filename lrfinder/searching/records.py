"""Records: each trial has its run, below that of the search, and the two know each other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lrfinder.delivering.runs import CLOCKS_APART
from lrfinder.searching.confirming import best_trials

if TYPE_CHECKING:
    from lrfinder.tracking.recorders import Recorder

TOP = 10  # trials that the pages of MLflow are linked for
LOOK = 1.0  # seconds between two looks for the runs of trials


class Records:
    """The runs of a study's trials.

    Args:
        recorder: Of the search; None where nothing is recorded.
        metrics: The objective, and what else has a page that compares trials.
        grace_period: Seconds after which others take a trial over, and make its run if there is none.
    """

    def __init__(
        self, recorder: Recorder | None, metrics: Sequence[str], *, grace_period: float
    ) -> None:
        self.recorder = recorder
        self.grace_period = grace_period
        self.metrics = metrics
        # Those of trials that do not know their runs yet, by number.
        self._unlinked: dict[int, tuple[optuna.Trial, Recorder]] = {}
        self._look_at = 0.0

    @contextmanager
    def of(self, trial: optuna.Trial) -> Iterator[Recorder | None]:
        """The recorder of a trial, which ends with the block."""
        if self.recorder is None:
            yield None
            return
        tags = _tags(trial.study, trial.number)
        alone = self.grace_period / 2  # the trial may have begun a while before its record
        with self.recorder.child(
            f"trial {trial.number}", wait=False, unique_for=alone, **tags
        ) as recorder:
            self._unlinked[trial.number] = trial, recorder
            recorder.log_params({f"trial/{name}": value for name, value in trial.params.items()})
            try:
                yield recorder
            finally:
                self._link(trial, recorder.run_id)

    def link_soon(self) -> None:
        """Let trials know their runs, if these are made by now: their worker may be lost later.

        To be called as often as one likes: it looks once in `LOOK` seconds.
        """
        if not self._unlinked or (now := time.monotonic()) < self._look_at:
            return
        self._look_at = now + LOOK
        for trial, recorder in list(self._unlinked.values()):
            run_id = recorder.known_run_id
            if run_id is not None:
                self._link(trial, run_id)

    def _link(self, trial: optuna.Trial, run_id: str | None) -> None:
        if self._unlinked.pop(trial.number, None) is not None:
            with suppress(UpdateFinishedTrialError):  # another worker has taken it
                trial.set_user_attr("mlflow_run_id", run_id)

    def of_lost(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A trial whose worker was lost before it made the run has one too: every trial has its run."""
        if self.recorder is None or "mlflow_run_id" in trial.user_attrs:
            return
        tags = _tags(study, trial.number)
        began = trial.datetime_start.timestamp() - CLOCKS_APART if trial.datetime_start else 0.0
        found = self.recorder.find_run(tags, since=began)
        if found is not None:
            reason = "Its worker was lost while it made this run, or soon after."
            self.recorder.end_lost_run(found, reason)
        else:
            child = self.recorder.child(f"trial {trial.number}", unique_for=0.0, **tags)
            child.set_tags({"error": "Its worker was lost before it began to train."})
            child.close("KILLED")
            found = child.run_id
        optuna.Trial(study, trial._trial_id).set_user_attr("mlflow_run_id", found)

    def link(self, study: optuna.Study) -> None:
        """Keep the addresses of the pages that compare the best trials with the study's own run."""
        if self.recorder is None:
            return
        run_ids = [trial.user_attrs.get("mlflow_run_id") for trial in best_trials(study)[:TOP]]
        self.recorder.log_links(
            [run_id for run_id in run_ids if run_id is not None],
            self.metrics,
            filter=f"tags.`optuna.study_name` = '{study.study_name}'",
        )

    def after_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Record the best so far on the study's own run."""
        if self.recorder is not None and trial.state is TrialState.COMPLETE:
            best = best_trials(study)[0].values[0]
            self.recorder.log_metrics(trial.number, {f"search/best {self.metrics[0]}": best})


def _tags(study: optuna.Study, number: int) -> dict[str, Any]:
    """What a trial's run is found by."""
    return {"optuna.trial_number": number, "optuna.study_name": study.study_name}
