"""Behind: what a search tells of its trials is written by another process, behind its back.

Optuna makes some forty calls of its storage for a trial of twenty epochs, each of which is a
transaction that the training would wait for. Law: what this process has told of a trial it reads
at once; the storage has it in the same order, and all of it before the next trial is claimed and
before the search returns. A search that is killed loses nothing of it: the other process reads its
pipe to the end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Container, Iterator
from typing import Any, cast

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lrfinder.searching.storages.copies import Copies
from lrfinder.searching.storages.urls import shown
from lrfinder.searching.storages.waiting import INTERFACE, Forwarding, Patient, StorageError, say
from lrfinder.searching.storages.writers import GoneError, Writer

# A search whose storage takes less of its time than this share gains nothing by another process.
WORTH = 0.01
AFTER = 1.0  # seconds of a search before that is judged
FRESH = 2.0  # seconds for which what was seen of other workers' trials is believed

TOLD = (
    "set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_state_values",
)


class Behind(Forwarding):
    """A storage that is told of this process's own trials by another one, where that saves time.

    Args:
        inner: Takes all else, and all of it outside of `writing`.
        url: Of it.
    """

    def __init__(self, inner: Patient, url: str) -> None:
        self._inner = inner
        self._url = url
        self._lock = threading.RLock()
        self._own: set[int] = set()  # ids of trials that this process has begun
        self._outages = 0
        self._study: tuple[int, str] | None = None  # the one that is searched; None outside of it
        self._began = self._waited = 0.0  # since when, and seconds of it that the storage took
        self._writer: Writer | None = None
        self._is_ready = False
        self._is_alone = False  # for good
        self._copies: Copies | None = None  # while the writer writes
        self._claim: int | None = None
        self._looked_at = float("-inf")
        self._failure: StorageError | None = None

    @property
    def outages(self) -> int:
        """How often it was waited for, here and by who writes."""
        return self._inner.outages + self._outages

    @contextlib.contextmanager
    def writing(self, study_id: int, study_name: str) -> Iterator[None]:
        """In here a study is searched. What was told of its trials is in the storage after it.

        Raises:
            StorageError: At its end, where the storage did not take what it was told.
        """
        self._study, self._began, self._waited = (study_id, study_name), time.monotonic(), 0.0
        try:
            yield
        except BaseException:
            with contextlib.suppress(StorageError):  # what is raised says it already
                self._end()
            raise
        else:
            self._end()
        finally:
            self._study = None

    def look_again(self) -> None:
        """Whoever asks for all trials next gets them as they are now."""
        self._looked_at = float("-inf")

    def send(self, key: str, sign: int) -> None:
        """What was told is on its way now, for others are to see it: that this worker lives.

        A trial that was claimed, and not asked for yet, is given the sign as well.
        """
        with self._lock:
            if self._writer is not None and self._copies is not None:
                try:
                    self._writer.listen()
                    if self._claim is not None and self._claim in self._writer.answers:
                        trial_id, _ = self._writer.answers[self._claim]
                        if trial_id is not None:
                            self._writer.tell("set_trial_user_attr", trial_id, key, sign)
                    self._writer.send(at_once=True)
                except GoneError:
                    self._go_on_alone()

    def claim(self, n_trials: int) -> None:
        """Have the next trial begun meanwhile, under the study's lock, if it has less than `n_trials`.

        It is this process's from then on. `claimed` is to be asked for it before that lock is taken.
        """
        with self._lock:
            if self._copies is not None and self._claim is None and self._failure is None:
                assert self._writer is not None
                try:
                    self._claim = self._writer.tell("claim", self._study_id, n_trials)
                    self._writer.send(at_once=True)
                except GoneError:
                    self._go_on_alone()

    def claimed(self) -> int | None:
        """The id of the trial that was claimed; None where there is none."""
        with self._lock:
            number, self._claim = self._claim, None
            if number is None or self._copies is None or self._writer is None:
                return None
            try:
                trial_id, seen = self._writer.answer(number)
            except GoneError:  # one that was begun is found as one whose worker was lost
                self._go_on_alone()
                return None
            self._take(seen)
            self._looked_at = time.monotonic()
            if trial_id is not None:
                self._own.add(trial_id)
            return cast("int | None", trial_id)

    # -- calls ------------------------------------------------------------------------------------

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What the storage does, or is told later."""
        with self._lock:
            if self._copies is not None:
                if self._failure is not None:
                    raise self._failure
                try:
                    return self._behind(name, *args, **kwargs)
                except GoneError:
                    self._go_on_alone()
                    if name in TOLD:  # the storage has just been told
                        return True
            began = time.monotonic()
            result = self._directly(name, *args, **kwargs)
            if self._study is not None:
                self._waited += time.monotonic() - began
                self._consider()
            return result

    def _directly(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self._inner, name)(*args, **kwargs)
        begun = None
        if name == "create_new_trial" and len(args) + len(kwargs) == 1:
            begun = result
        elif name == "set_trial_state_values" and result:
            values = {**dict(zip(("trial_id", "state"), args, strict=False)), **kwargs}
            begun = values["trial_id"] if values["state"] is TrialState.RUNNING else None
        if begun is not None:
            if self._copies is not None:
                self._copies.take([self._inner.get_trial(begun)])
            self._own.add(begun)
        return result

    def _behind(self, name: str, *args: Any, **kwargs: Any) -> Any:
        assert self._copies is not None
        assert self._writer is not None
        if name in TOLD and self._is_told(name, *args, **kwargs):
            getattr(self._copies, name)(*args, **kwargs)
            self._writer.tell(name, *args, **kwargs)
            self._writer.send(at_once=name == "set_trial_state_values")
            return True
        if name == "get_trial":
            return self._copies.get(*args, **kwargs) or self._inner.get_trial(*args, **kwargs)
        if name == "get_all_trials":
            return self._get_all_trials(*args, **kwargs)
        if name != "remove_session" and not INTERFACE[name]:
            # Optuna's own way, which reads trials.
            return getattr(BaseStorage, name)(self, *args, **kwargs)
        return self._directly(name, *args, **kwargs)

    def _is_told(self, name: str, trial_id: int, *args: Any, **kwargs: Any) -> bool:
        """Whether the other process is to be told: of a trial of this process that goes on, or ends."""
        if name == "set_trial_state_values":
            state: TrialState = kwargs["state"] if "state" in kwargs else args[0]
            return trial_id in self._own and state.is_finished()
        return trial_id in self._own

    def _get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        assert self._copies is not None
        if study_id != self._study_id:
            return self._inner.get_all_trials(study_id, deepcopy, states)
        if time.monotonic() - self._looked_at > FRESH:
            self._look()
        return self._copies.all(deepcopy=deepcopy, states=states)

    # -- who writes -------------------------------------------------------------------------------

    @property
    def _study_id(self) -> int:
        assert self._study is not None
        return self._study[0]

    def _consider(self) -> None:
        """Start who writes where that is worth it, and let it write once it can; nobody waits for its start."""
        if self._is_alone:
            return
        try:
            if self._writer is not None:
                self._writer.listen()
            elif self._is_worth_it():
                assert self._study is not None
                self._writer = Writer(self._url, self._study[1], self._hear)
            if self._is_ready:
                self._copies = Copies(self._own)
                self._look()
        except OSError:
            self._is_alone = True  # no process can be started
        except GoneError:
            self._go_on_alone()

    def _is_worth_it(self) -> bool:
        seconds = time.monotonic() - self._began
        return seconds >= AFTER and self._waited > WORTH * seconds

    def _hear(self, kind: str, value: Any) -> None:
        """What the other process says of itself."""
        if kind == "ready":
            self._is_ready = True
        elif kind == "away":
            self._outages += 1
            say(shown(self._url), value)
        elif kind == "seen":
            self._take(value)
        else:
            self._failure = value
            self._inner.gave_up = True
            raise value

    def _take(self, seen: list[FrozenTrial]) -> None:
        if self._copies is not None:
            self._copies.take(seen)

    def _look(self) -> None:
        assert self._writer is not None
        self._take(self._writer.answer(self._writer.tell("look", self._study_id)))
        self._looked_at = time.monotonic()

    def _go_on_alone(self) -> None:
        """Without the other process, which is gone: the storage is told here what it may not know."""
        writer = self._let_go()
        self._is_alone = True
        for _, name, args, kwargs in writer.pending:
            if name in TOLD:
                with contextlib.suppress(UpdateFinishedTrialError):  # it knows
                    getattr(self._inner, name)(*args, **kwargs)

    def _let_go(self) -> Writer:
        assert self._writer is not None
        writer, self._writer = self._writer, None
        self._copies, self._claim, self._is_ready = None, None, False
        writer.end()
        return writer

    def _end(self) -> None:
        """All that was told is in the storage; a trial that was claimed and not asked for waits in the queue."""
        with self._lock:
            claimed = None
            try:
                if self._copies is not None and self._failure is None:
                    claimed = self.claimed()
                    if self._copies is not None:
                        self._look()
                        self._let_go()
            except GoneError:
                self._go_on_alone()
            finally:
                if self._writer is not None:  # it has not begun, or cannot go on
                    self._writer.stop()
                    self._let_go()
            if claimed is not None:
                self._inner.set_trial_state_values(claimed, TrialState.WAITING)
