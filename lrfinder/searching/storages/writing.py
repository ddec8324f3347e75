"""Writing: the process that tells a study's storage what a search has done, in order, while the search goes on.

It reads until the search closes the pipe or is killed, so what was in it is written all the same. It
loads Optuna and what a database needs, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from multiprocessing.connection import Connection
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from lrfinder.searching.counting import is_counted
from lrfinder.searching.storages.locks import lock
from lrfinder.searching.storages.opening import open_twice
from lrfinder.searching.storages.urls import first_reason
from lrfinder.searching.storages.waiting import StorageError

ENDS = "set_trial_state_values"


def write(url: str, study_name: str) -> None:
    """Do what standard input says, until it ends.

    Args:
        url: Of the storage.
        study_name: Whose lock a trial is claimed under.
    """
    said = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # nobody else writes there
    _Writing(said, url, study_name).run(Connection(os.dup(0), writable=False))
    os._exit(0)  # all is committed, and the search waits for the end


class _Writing:
    def __init__(self, said: Connection, url: str, study_name: str) -> None:
        self._said = said
        self._url = url
        self._study_name = study_name
        self._failure: Exception | None = None
        self._known: set[int] = set()  # ids of trials that the search knows the end of
        self._claimed: set[int] = set()  # of those that it trains, and knows best

    def run(self, told: Connection) -> None:
        try:
            self._lasting, self._rest = open_twice(
                self._url, lambda error: self._say("away", first_reason(error))
            )
            self._lock = lock(self._url, self._study_name)
        except Exception:
            return  # the search goes on by itself
        self._say("ready", None)
        while True:
            try:
                message = pickle.loads(told.recv_bytes())
            except EOFError:
                return
            for number, name, args, kwargs in message:
                self._do(number, name, args, kwargs)

    def _do(self, number: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = {"look": self._look, "claim": self._claim}
        storage = self._lasting if name == ENDS else self._rest
        try:
            if self._failure is not None:
                raise self._failure
            method: Any = own.get(name) or getattr(storage, name)
            found = method(*args, **kwargs)
        except UpdateFinishedTrialError:  # somebody else has ended it
            trial_id = args[0] if args else kwargs["trial_id"]
            if trial_id not in self._known:
                self._known.add(trial_id)
                self._say("seen", [self._rest.get_trial(trial_id)])
        except Exception as error:
            self._failure = _sendable(error)
            self._say("failed", self._failure)
        else:
            if name in own:
                self._say("answer", (number, found))
            elif name == ENDS:
                self._known.add(args[0] if args else kwargs["trial_id"])

    def _look(self, study_id: int) -> list[FrozenTrial]:
        """The trials that may have changed since the last look."""
        return self._seen(study_id)[1]

    def _claim(self, study_id: int, n_trials: int) -> tuple[int | None, list[FrozenTrial]]:
        """Begin a trial where the study has room for one; None where it has not."""
        with self._lock:
            trials, new = self._seen(study_id)
            if sum(map(is_counted, trials)) >= n_trials:
                return None, new
            claimed = self._begun(study_id, trials)
        self._claimed.add(claimed)
        return claimed, [*new, self._rest.get_trial(claimed)]

    def _seen(self, study_id: int) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """All trials, and those of them that may have changed."""
        trials = self._lasting.get_all_trials(study_id, deepcopy=False)
        new = [
            trial
            for trial in trials
            if trial._trial_id not in self._known
            and (trial.state.is_finished() or trial._trial_id not in self._claimed)
        ]
        self._known |= {trial._trial_id for trial in new if trial.state.is_finished()}
        return trials, new

    def _begun(self, study_id: int, trials: list[FrozenTrial]) -> int:
        """As `Study.ask` does: the first that waits, or a new one."""
        for trial in trials:
            if trial.state is TrialState.WAITING:
                with contextlib.suppress(UpdateFinishedTrialError):
                    if self._lasting.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                        return trial._trial_id
        return self._lasting.create_new_trial(study_id)

    def _say(self, kind: str, value: Any) -> None:
        with contextlib.suppress(OSError):  # the search is gone: what it has told is written
            self._said.send_bytes(pickle.dumps((kind, value)))


def _sendable(error: Exception) -> Exception:
    """The error, or what it says where it cannot travel or is none of the storage's."""
    if isinstance(error, StorageError):
        return StorageError(str(error))
    return StorageError(f"The study's storage must take what it is told, but {error!r}.")
