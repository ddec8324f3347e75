"""Trials: one training for each trial of a study, with its reports, its pruning and its record."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lrfinder.engines.lockstep import Job
from lrfinder.groups import set_learning_rate
from lrfinder.schedules import Spec
from lrfinder.searching.spaces import Space
from lrfinder.searching.storages import StorageError
from lrfinder.searching.workers import Worker, requeue
from lrfinder.stepping import Steps
from lrfinder.tasks import Task
from lrfinder.traces import Trace
from lrfinder.training import OnEpoch, StepRecorder, StopTraining, Training, train
from lrfinder.training.together import make_job

if TYPE_CHECKING:
    import torch

    from lrfinder.tracking.recorders import Recorder

CLOCKS_APART = 3600.0  # seconds; of machines that share a study
TOP = 10  # trials that the pages of MLflow are linked for


def train_task(
    task: Task,
    *,
    lrs: float | Mapping[str, float] | None = None,
    schedule: Spec | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    num_epochs: int | None = None,
    recorder: StepRecorder | None = None,
    checkpoint: str | Path | None = None,
    on_epoch: OnEpoch | None = None,
    verbose: bool = False,
) -> Trace:
    """Train a task, made afresh from a seed, and return what happened.

    Args:
        task: What to train.
        lrs: One LR for all groups, or one for each or for some; None for the optimizer's own.
        schedule: A spec of `lrfinder.build_scheduler`; None for constant LRs.
        seed: Of the weights, the order of the batches and all else that is random.
        device: As in `Task.start`.
        num_epochs: By default the task's.
        recorder: As in `lrfinder.train`.
        checkpoint: As in `lrfinder.train`.
        on_epoch: As in `lrfinder.train`.
        verbose: As in `lrfinder.train`.
    """
    started = task.start(seed, device=device)
    if lrs is not None:
        set_learning_rate(started.optimizer, lrs)
    return train(
        started.model,
        started.optimizer,
        task.loss_fn,
        started.train_loader,
        num_epochs=task.num_epochs if num_epochs is None else num_epochs,
        scheduler=schedule,
        val_loader=started.val_loader,
        metrics=task.metrics,
        recorder=recorder,
        checkpoint=checkpoint,
        options=task.options,
        seed=seed,
        on_epoch=on_epoch,
        verbose=verbose,
    )


class Trials:
    """One training for each trial of a study."""

    def __init__(
        self,
        task: Task,
        space: Space,
        *,
        metric: str,
        seed: int,
        device: str | torch.device,
        recorder: Recorder | None,
        on_trial: Callable[[optuna.Study, FrozenTrial], None] | None = None,
    ) -> None:
        self.task = task
        self.space = space
        self.metric = metric
        self.seed = seed
        self.device = device
        self.recorder = recorder
        self.on_trial = on_trial
        self._worker: Worker | None = None

    def jobs(self, worker: Worker, n_trials: int) -> Iterator[Job | None]:
        """A job for each trial that is missing to `n_trials`; trials are asked for as there is room.

        None where those that are under way are to be gone on with.
        """
        study, self._worker = worker.study, worker
        for trial in worker.trials(n_trials):
            if trial is None:
                yield None
                continue
            try:
                job = self._job(study, trial)
            except StorageError:
                raise
            except BaseException as error:
                self._fail(study, trial, error)
                if not isinstance(error, Exception):
                    raise
            else:
                yield job

    def _fail(self, study: optuna.Study, trial: optuna.Trial, error: BaseException) -> None:
        """A trial that could not begin has its run too."""
        with contextlib.suppress(type(error)), self._child(trial) as recorder:
            if recorder is not None:
                trial.set_user_attr("mlflow_run_id", recorder.run_id)
            raise error
        self._end(study, trial, failed=error)

    def _job(self, study: optuna.Study, trial: optuna.Trial) -> Job:
        hparams = self.space.hparams(trial)
        trial.set_user_attr("hparams", hparams)
        return make_job(
            self.task,
            lambda started: self._course(study, trial, started),
            lrs=hparams["lrs"],
            schedule=hparams["schedule"],
            seed=self.seed,
            device=self.device,
            num_epochs=self.space.num_epochs,
            on_epoch=lambda epoch, values, trace: self._judge(trial, epoch, values),
        )

    def _course(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        started: Callable[[StepRecorder | None], Training],
    ) -> Steps:
        """Train as the trial proposes, and tell the study what came of it."""
        began = time.monotonic()
        try:
            with self._child(trial) as recorder:
                if recorder is not None:
                    trial.set_user_attr("mlflow_run_id", recorder.run_id)
                    recorder.log_params(
                        {f"trial/{name}": value for name, value in trial.params.items()}
                    )
                training = started(recorder)
                yield from training.steps()
        except StorageError:
            raise  # there is nobody to tell; what the study has been told is kept
        except BaseException as error:
            self._end(study, trial, failed=error)
            if not isinstance(error, Exception):
                raise
            return
        self._end(study, trial, trace=training.trace, seconds=time.monotonic() - began)

    def _end(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        *,
        trace: Trace | None = None,
        seconds: float = 0.0,
        failed: BaseException | None = None,
    ) -> None:
        """Tell the study how a trial ended."""
        try:
            if trace is not None:
                trial.set_user_attr("steps", len(trace))
                trial.set_user_attr("seconds", seconds)
                value, state = self._judgement(trial, trace)
            else:
                value, state = None, TrialState.FAIL
                trial.set_user_attr("reason", f"{type(failed).__name__}: {failed}")
                trial.set_user_attr("interrupted", not isinstance(failed, Exception))
            frozen = study.tell(trial, value, state=state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            # The answer to being told was lost on its way; or this worker was taken for lost, and
            # another has the trial.
            frozen = study.get_trials(deepcopy=False)[trial.number]
        if self._worker is not None:
            self._worker.end(trial)
        if frozen.user_attrs.get("interrupted", False):
            requeue(study, frozen)
        for callback in (self.after_trial, self.on_trial):
            if callback is not None:
                callback(study, frozen)

    def _judgement(self, trial: optuna.Trial, trace: Trace) -> tuple[float | None, TrialState]:
        """What a training comes to."""
        if trace.status == "completed":
            value = trace.last(self.metric)
            return (
                (value, TrialState.COMPLETE) if math.isfinite(value) else (None, TrialState.FAIL)
            )
        if trace.status == "diverged":
            # NaN is what Optuna's samplers take for the worst of the trials that were pruned at
            # this epoch.
            epoch = len(trace.metrics.get(self.metric, ((), ()))[0])
            trial.report(math.nan, epoch)
        trial.set_user_attr("reason", trace.message)
        return None, TrialState.PRUNED

    def _judge(self, trial: optuna.Trial, epoch: int, values: Mapping[str, float]) -> None:
        """Report an epoch, and end a training that is not worth going on with."""
        value = values[self.metric]
        try:
            trial.report(value, epoch)
        except UpdateFinishedTrialError:
            raise StopTraining("Its worker was taken for lost: another has the trial.") from None
        if not math.isfinite(value):
            raise StopTraining(
                f"{self.metric} was not finite after epoch {epoch + 1}.", status="pruned"
            )
        if epoch + 1 < self.space.num_epochs and trial.should_prune():
            raise StopTraining(
                f"Pruned after epoch {epoch + 1}: {self.metric} was {value:.4g}.", status="pruned"
            )

    def _child(self, trial: optuna.Trial) -> AbstractContextManager[Any]:
        if self.recorder is None:
            return nullcontext()
        return self.recorder.child(f"trial {trial.number}", **_tags(trial.study, trial.number))

    def record_lost(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A trial whose worker was lost before it made the run has one too: every trial has its run."""
        if self.recorder is None or "mlflow_run_id" in trial.user_attrs:
            return
        tags = _tags(study, trial.number)
        began = trial.datetime_start.timestamp() - CLOCKS_APART if trial.datetime_start else 0.0
        found = self.recorder.find_run(tags, since=began)
        if found is None:
            child = self.recorder.child(f"trial {trial.number}", **tags)
            child.set_tags({"error": "Its worker was lost before it began to train."})
            child.close("KILLED")
            found = child.run_id
        optuna.Trial(study, trial._trial_id).set_user_attr("mlflow_run_id", found)

    def record_links(self, study: optuna.Study) -> None:
        """Keep the addresses of the pages that compare the trials with the study's own run."""
        if self.recorder is None:
            return
        done = [t for t in study.get_trials(deepcopy=False) if t.state is TrialState.COMPLETE]
        done.sort(key=lambda t: t.value or 0.0, reverse=study.direction.name == "MAXIMIZE")
        run_ids = [t.user_attrs.get("mlflow_run_id") for t in done[:TOP]]
        self.recorder.log_links(
            [run_id for run_id in run_ids if run_id is not None],
            [*(f"lr/{name}" for name in self.task.groups), self.metric],
            filter=f"tags.`optuna.study_name` = '{study.study_name}'",
        )

    def after_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Record the best so far on the study's own run."""
        if self.recorder is not None and trial.state is TrialState.COMPLETE:
            self.recorder.log_metrics(
                trial.number, {f"search/best {self.metric}": study.best_value}
            )


def _tags(study: optuna.Study, number: int) -> dict[str, Any]:
    """What a trial's run is found by."""
    return {"optuna.trial_number": number, "optuna.study_name": study.study_name}
