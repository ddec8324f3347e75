"""Trials: one training for each trial of a study, with its reports, its pruning and its record."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lrfinder.engines.jobs import Job
from lrfinder.searching.budgets import Budget
from lrfinder.searching.proposals import Hparams, UserHparams
from lrfinder.searching.recipes import Recipe
from lrfinder.searching.records import Records
from lrfinder.searching.samplers import trials_before_pruning
from lrfinder.searching.spaces import Space
from lrfinder.searching.storages import StorageError
from lrfinder.searching.workers import Worker, requeue
from lrfinder.stepping import Steps
from lrfinder.traces import Trace
from lrfinder.training import StepRecorder, StopTraining, Training
from lrfinder.training.together import make_job

if TYPE_CHECKING:
    import torch

    from lrfinder.tracking.recorders import Recorder

AHEAD = 0.25  # seconds that a trial is about to take when the next one is begun


class Trials:
    """One training for each trial of a study."""

    def __init__(
        self,
        recipe: Recipe,
        space: Space,
        *,
        user: UserHparams | None,
        metrics: Sequence[str],
        seed: int,
        device: str | torch.device,
        recorder: Recorder | None,
        grace_period: float,
        on_trial: Callable[[optuna.Study, FrozenTrial], None] | None = None,
    ) -> None:
        self.recipe = recipe
        self.space = space
        self.user = user
        self.metrics = tuple(metrics)
        self.seed = seed
        self.device = device
        self.records = Records(
            recorder,
            [metrics[0], *(f"lr/{name}" for name in space.group_names)],
            grace_period=grace_period,
        )
        self.on_trial = on_trial
        self._worker: Worker | None = None
        self._budget: Budget | None = None
        self._began: dict[int, float] = {}  # when the trainings under way did, by number
        self._needed = 0  # trials that must be complete before others can be pruned
        self._asked: deque[tuple[optuna.Trial, Hparams]] = deque()  # of other groups, not begun

    def groups(
        self, worker: Worker, budget: Budget, at_once: int
    ) -> Iterator[Iterator[Job | None]]:
        """The jobs of all trials until the budget is spent, in groups that one stack can hold.

        Trials whose options differ (batch size, width) are of different groups. Each is to be taken
        to its end before the next is asked for.

        Args:
            worker: Asks for trials, as there is room.
            budget: Of the search.
            at_once: The most trials that are asked for and not begun.
        """
        self._worker, self._budget = worker, budget
        self._needed = trials_before_pruning(worker.study.pruner) if self.is_single else 0
        self._look_for_needed(worker.study)
        source = self._hparams(worker, budget)
        for trial in source:
            if trial is not None:
                self._asked.append(trial)
                while self._asked:
                    yield self._jobs(worker.study, source, at_once)

    def _hparams(
        self, worker: Worker, budget: Budget
    ) -> Iterator[tuple[optuna.Trial, Hparams] | None]:
        """What each trial proposes; one that cannot be read has failed."""
        for trial in worker.trials(budget):
            if trial is None:
                yield None
                continue
            hparams: Hparams | None = None
            with self._failing(worker.study, trial):
                hparams = self.space.hparams(trial, self.user)
                trial.set_user_attr("hparams", hparams)
            if hparams is not None:
                yield trial, hparams

    def _jobs(
        self,
        study: optuna.Study,
        source: Iterator[tuple[optuna.Trial, Hparams] | None],
        at_once: int,
    ) -> Iterator[Job | None]:
        """The jobs of the group of the trial that has waited longest; None where there is none for now."""
        options = self._asked[0][1].get("options", {})
        waiting, self._asked = self._asked, deque()
        while True:
            if waiting:
                found: tuple[optuna.Trial, Hparams] | None = waiting.popleft()
            elif self._must_wait:
                found = None
            elif len(self._asked) < at_once:
                try:
                    found = next(source)
                except StopIteration:
                    return
            else:
                return
            if found is None:
                yield None
                continue
            trial, hparams = found
            if hparams.get("options", {}) != options:
                self._asked.append(found)
                continue
            job: Job | None = None
            with self._failing(study, trial):
                job = self._job(study, trial, hparams)
            if job is not None:
                yield job
                del job  # and its model, which the next one may need the memory of

    @property
    def _must_wait(self) -> bool:
        """Whether as many are under way as must be complete before any can be pruned.

        More of them would all be trained to their ends, having nothing to be compared with.
        """
        assert self._worker is not None
        return 0 < self._needed <= self._worker.under_way

    def _look_for_needed(self, study: optuna.Study) -> None:
        """Look whether enough are complete: as trials end, since a look at each step is one at the storage."""
        if self._needed:
            done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(done) >= self._needed:
                self._needed = 0

    @contextlib.contextmanager
    def _failing(
        self, study: optuna.Study, trial: optuna.Trial, *, has_run: bool = False
    ) -> Iterator[None]:
        """What is raised in here ends the trial, and the search goes on.

        Not so an interrupt, which ends both; and a storage that fails has nobody to be told by:
        what the study knows is kept.

        Args:
            study: Is told.
            trial: That is ended.
            has_run: Whether it has its run; else it gets one, for one that could not begin has too.
        """
        try:
            yield
        except StorageError:
            raise
        except BaseException as error:
            # One that another worker has taken has got its run there.
            if not has_run and not isinstance(error, UpdateFinishedTrialError):
                with contextlib.suppress(type(error)), self.records.of(trial):
                    raise error
            self._end(study, trial, failed=error)
            if not isinstance(error, Exception):
                raise

    def _job(self, study: optuna.Study, trial: optuna.Trial, hparams: Hparams) -> Job:
        return make_job(
            self.recipe.task(hparams.get("options", {})),
            lambda started: self._course(study, trial, started),
            lrs=hparams["lrs"],
            schedule=hparams["schedule"],
            seed=self.seed,
            device=self.device,
            num_epochs=self.space.num_epochs,
            on_epoch=lambda epoch, values, trace: self._after_epoch(trial, epoch, values),
        )

    def _after_epoch(self, trial: optuna.Trial, epoch: int, values: Mapping[str, float]) -> None:
        """Judge a trial, and have the next one begun where it is about to end, so that it need not wait."""
        assert self._worker is not None
        assert self._budget is not None
        self.records.link_soon()
        left = self.space.num_epochs - epoch - 1
        took = time.monotonic() - self._began[trial.number]
        if left * took < AHEAD * (epoch + 1) and not self._asked and not self._must_wait:
            self._worker.claim(self._budget)
        self._judge(trial, epoch, values)

    def _course(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        started: Callable[[StepRecorder | None], Training],
    ) -> Steps:
        """Train as the trial proposes, and tell the study what came of it."""
        began = self._began[trial.number] = time.monotonic()
        trace: Trace | None = None
        with self._failing(study, trial, has_run=True):
            with self.records.of(trial) as recorder:
                training = started(recorder)
                yield from training.steps()
            trace = training.trace
        if trace is not None:
            self._end(study, trial, trace=trace, seconds=time.monotonic() - began)

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
            values: list[float] | None = None
            if trace is not None:
                trial.set_user_attr("steps", len(trace))
                trial.set_user_attr("seconds", seconds)
                values, state = self._judgement(trial, trace, seconds)
            else:
                state = TrialState.FAIL
                trial.set_user_attr("reason", f"{type(failed).__name__}: {failed}")
                trial.set_user_attr("interrupted", not isinstance(failed, Exception))
            frozen = study.tell(trial, values, state=state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            # The answer to being told was lost on its way; or this worker was taken for lost, and
            # another has the trial.
            frozen = study.get_trials(deepcopy=False)[trial.number]
        self._began.pop(trial.number, None)
        if self._worker is not None:
            self._worker.end(trial)
        self._look_for_needed(study)
        if frozen.user_attrs.get("interrupted", False):
            requeue(study, frozen)
        self.records.after_trial(study, frozen)
        if self.on_trial is not None:
            self.on_trial(study, frozen)

    def _judgement(
        self, trial: optuna.Trial, trace: Trace, seconds: float
    ) -> tuple[list[float] | None, TrialState]:
        """What a training comes to."""
        if trace.status == "completed":
            costs = {"seconds": seconds, "steps": float(len(trace))}
            values = [costs[m] if m in costs else trace.last(m) for m in self.metrics]
            unfit = [m for m, v in zip(self.metrics, values, strict=True) if not math.isfinite(v)]
            if not unfit:
                return values, TrialState.COMPLETE
            trial.set_user_attr("reason", f"{', '.join(unfit)} was not finite at the end.")
            return None, TrialState.FAIL
        if trace.status == "diverged" and self.is_single:
            # NaN is what Optuna's samplers take for the worst of the trials that were pruned at
            # this epoch.
            epoch = len(trace.metrics.get(self.metrics[0], ((), ()))[0])
            trial.report(math.nan, epoch)
        trial.set_user_attr("reason", trace.message)
        return None, TrialState.PRUNED

    @property
    def is_single(self) -> bool:
        """Whether there is one objective: Optuna neither prunes nor takes reports of several."""
        return len(self.metrics) == 1

    def _judge(self, trial: optuna.Trial, epoch: int, values: Mapping[str, float]) -> None:
        """Report an epoch, and end a training that is not worth going on with."""
        metric = self.metrics[0]
        value = values.get(metric, 0.0)  # a cost is known at the end
        if not math.isfinite(value):
            if self.is_single:
                trial.report(value, epoch)
            raise StopTraining(
                f"{metric} was not finite after epoch {epoch + 1}.", status="pruned"
            )
        if not self.is_single or metric not in values:
            return
        try:
            trial.report(value, epoch)
        except UpdateFinishedTrialError:
            raise StopTraining("Its worker was taken for lost: another has the trial.") from None
        if epoch + 1 < self.space.num_epochs and trial.should_prune():
            raise StopTraining(
                f"Pruned after epoch {epoch + 1}: {metric} was {value:.4g}.", status="pruned"
            )
