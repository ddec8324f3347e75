"""Workers: processes that share a study. Each trial is one worker's; one that is lost gives it to the others.

Optuna's own heartbeat runs inside `Study.optimize` alone and through a database alone. Here a trial
carries a number that its worker raises while it lives, in whatever storage; who looks twice, a
grace period apart by its own clock, and finds the same number, takes the worker for lost. So no two
clocks are compared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import Self

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lrfinder.searching.budgets import Budget
from lrfinder.searching.counting import is_counted
from lrfinder.searching.storages import Behind, StorageError
from lrfinder.searching.studies import trials_now

GRACE_PERIOD = 60.0  # seconds without a sign of life after which a worker is taken for lost
MAX_RETRIES = 5  # a trial whose workers are lost again and again may be what kills them
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds between two looks at what other workers do

# User attributes of a trial.
HEARTBEAT = "lrfinder.heartbeat"
RETRIED = "lrfinder.retried"  # how often it was begun before
RETRY_OF = "lrfinder.retry_of"  # the number of the trial that was lost

OnLost = Callable[[optuna.Study, FrozenTrial], None]


class Worker:
    """One process that takes trials of a study.

    Law: trials in all = those that run or have ended, without those that were interrupted or lost,
    and spend the budget exactly, where it is `n_trials`, however many workers there are and whichever of them end.

    Args:
        study: What is shared.
        lock: As of `lrfinder.searching.storages.lock`, of this study.
        grace_period: Seconds without a sign of life after which a worker is lost, > 0.
        on_lost: Called with each trial that is about to be taken from a worker that is lost.

    Raises:
        ValueError: If `grace_period` is not positive.
    """

    def __init__(
        self,
        study: optuna.Study,
        lock: AbstractContextManager[object],
        *,
        grace_period: float = GRACE_PERIOD,
        on_lost: OnLost = lambda study, trial: None,
    ) -> None:
        if not grace_period > 0:
            raise ValueError(f"`grace_period > 0` must hold, but got grace_period={grace_period}.")
        self.study = study
        self._lock = lock
        self._grace = grace_period
        self._interval = grace_period / 6
        self._on_lost = on_lost
        self._under_way: dict[int, optuna.Trial] = {}
        self._seen: dict[int, tuple[int, float]] = {}  # of others: heartbeat, and since when
        self._look_at = 0.0  # when those of others are to be looked at again
        self._outages = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lrfinder-heartbeat", daemon=True)
        storage = study._storage
        self._behind = storage if isinstance(storage, Behind) else None
        self._writing: AbstractContextManager[None] = nullcontext()
        if self._behind is not None:
            self._writing = self._behind.writing(study._study_id, study.study_name)

    def trials(self, budget: Budget) -> Iterator[optuna.Trial | None]:
        """The trials that this worker is to train, until the budget is spent.

        It waits for those of other workers, since one of them may be lost.

        Yields:
            A trial that is running, to be ended with `end`; None where there is none now, and those
            of this worker that are under way are to be gone on with.
        """
        wait, look_at = FIRST_WAIT, 0.0
        while True:
            if self._under_way and time.monotonic() < look_at:
                yield None
                continue
            trial, is_done = self._ask(budget)
            if trial is not None:
                wait = FIRST_WAIT
                yield trial
            elif is_done:
                return
            elif self._under_way:
                look_at = time.monotonic() + self._interval
                yield None
            else:
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT, self._interval)

    @property
    def under_way(self) -> int:
        """Trials of this worker that have begun and not ended."""
        return len(self._under_way)

    def end(self, trial: optuna.Trial) -> None:
        """The trial has ended, or is to be left to other workers."""
        self._under_way.pop(trial.number, None)

    def claim(self, budget: Budget) -> None:
        """Have the next trial begun meanwhile, for one of this worker's is about to end."""
        if self._behind is not None and budget.is_of_trials_alone:
            assert budget.n_trials is not None
            self._behind.claim(budget.n_trials)

    def _ask(self, budget: Budget) -> tuple[optuna.Trial | None, bool]:
        claimed = None if self._behind is None else self._behind.claimed()
        if claimed is None:
            found, is_done = self._ask_now(budget)
            if found is None:
                return None, is_done
            trial = found
        else:
            if time.monotonic() > self._look_at:
                with self._lock:
                    self._give_up_lost(trials_now(self.study))
            trial = optuna.Trial(self.study, claimed)
        self._under_way[trial.number] = trial
        most = budget.n_trials
        if most is not None and trial.number >= most and self._is_surplus(trial, most):
            self._withdraw(trial)
            return None, False
        return trial, False

    def _ask_now(self, budget: Budget) -> tuple[optuna.Trial | None, bool]:
        with self._lock:
            trials = trials_now(self.study)
            if self._give_up_lost(trials):
                trials = trials_now(self.study)
            counted = [trial for trial in trials if is_counted(trial)]
            if budget.is_spent(self.study, counted):
                return None, all(trial.state.is_finished() for trial in counted)
            return self.study.ask(), False

    def _is_surplus(self, trial: optuna.Trial, n_trials: int) -> bool:
        """Whether others were quicker; it happens where no lock reaches from machine to machine."""
        before = trials_now(self.study)[: trial.number]
        return sum(map(is_counted, before)) >= n_trials

    def _withdraw(self, trial: optuna.Trial) -> None:
        trial.set_user_attr("interrupted", True)
        trial.set_user_attr("reason", "The study had all its trials: another worker was quicker.")
        self.study.tell(trial, state=TrialState.FAIL)
        self.end(trial)

    # -- those that are lost ----------------------------------------------------------------------

    def _give_up_lost(self, trials: Sequence[FrozenTrial]) -> bool:
        now = time.monotonic()
        self._look_at = now + self._interval
        outages = getattr(self.study._storage, "outages", 0)
        if outages != self._outages:
            # Nobody could tell that it lives while the storage was away.
            self._outages = outages
            self._seen.clear()
        lost = []
        for trial in trials:
            if trial.state is not TrialState.RUNNING or trial.number in self._under_way:
                continue
            beat = trial.user_attrs.get(HEARTBEAT, 0)
            before, since = self._seen.get(trial.number, (None, now))
            if beat != before:
                self._seen[trial.number] = beat, now
            elif now - since > self._grace:
                lost.append(trial)
        for trial in lost:
            with suppress(UpdateFinishedTrialError):  # its worker lives, and has just ended it
                self._give_up(trial)
        return bool(lost)

    def _give_up(self, trial: FrozenTrial) -> None:
        """Take a trial from a worker that is lost, and put it in the queue again."""
        reason = f"Its worker was lost: no sign of life for {self._grace:g} s."
        retried = trial.user_attrs.get(RETRIED, 0)
        live = optuna.Trial(self.study, trial._trial_id)
        if retried < MAX_RETRIES:
            live.set_user_attr("interrupted", True)
            requeue(self.study, trial)
        else:
            reason += f" It is not tried again: that happened {retried + 1} times."
        live.set_user_attr("reason", reason)
        self._on_lost(self.study, trial)
        self.study.tell(live, state=TrialState.FAIL, skip_if_finished=True)

    # -- the thread -------------------------------------------------------------------------------

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self._interval):
            count += 1
            try:
                for trial in list(self._under_way.values()):
                    with suppress(UpdateFinishedTrialError):  # it has just ended
                        trial.set_user_attr(HEARTBEAT, count)
                if self._behind is not None:
                    self._behind.send(HEARTBEAT, count)
            except StorageError:
                return  # the search itself meets it too, and says so

    def __enter__(self) -> Self:
        self._writing.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        # One that waits for a storage that is away is nobody's to wait for.
        self._thread.join(timeout=self._interval)
        self._writing.__exit__(kind, error, traceback)


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put the parameters of a trial that was interrupted or lost in the queue, once."""
    trials = trials_now(study)
    if any(other.user_attrs.get(RETRY_OF) == trial.number for other in trials):
        return
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    marks = {RETRY_OF: trial.number, RETRIED: trial.user_attrs.get(RETRIED, 0) + 1}
    study.enqueue_trial(params, user_attrs=marks)
