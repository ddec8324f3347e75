"""Sessions: one recorder and its children: the thread that writes their spools, and who delivers.

The thread writes twice a second, so that a kill loses less than a second. A process that
follows delivers while the training goes on; it is started once the session has lasted for some
seconds, since it takes as long to start. A flush delivers from here.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import threading
import time
from pathlib import Path

from filelock import FileLock
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from lrfinder.delivering.following import ALL, RUN, remove_session, start_following, wake
from lrfinder.delivering.sending import BusyError, Courier
from lrfinder.delivering.spools import RECORDING, Header, Spool, find_spools
from lrfinder.delivering.stores import RecordError, first_line, is_final, without_password
from lrfinder.tracking.facts import SlowFacts
from lrfinder.tracking.folders import new_session, unwritable
from lrfinder.tracking.outboxes import Outbox
from lrfinder.tracking.systems import SystemMonitor

INTERVAL = 0.5  # seconds between two writings of the spools
FOLLOW_AFTER = 2.0  # seconds; what is shorter is delivered at its end
FACTS_TIMEOUT = 5.0  # seconds that the end of a run waits for what git says
THREAD_TIMEOUT = 10.0  # seconds that the end waits for a thread that a disk keeps waiting
SAMPLE_AFTER = 1.0  # seconds of a run that the load of the machine is measured of
RUN_TIMEOUT = 10.0  # seconds that whoever asks for the id of a run waits for its making
RUN_POLL = 0.005  # seconds between two looks whether somebody else has made it
PATIENCE = 60.0  # seconds without an answer after which a flush without a timeout gives up

_log = logging.getLogger("lrfinder")


class Session:
    """The spools of one recorder and its children, in a folder of their own.

    Args:
        folder: Where sessions lie; None for the default.

    Raises:
        RecordError: If the folder cannot be written.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.path = new_session(folder)
        self._lock = FileLock(self.path / RECORDING)
        self._lock.acquire(timeout=0)
        self._follow_at = time.monotonic() + FOLLOW_AFTER
        self._outboxes: list[Outbox] = []
        self._changed = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._courier = Courier(self.path)
        self._delivering: _Delivering | None = None
        self._follower: subprocess.Popen[bytes] | None = None
        self._said: set[str] = set()
        self._process = os.getpid()
        self._number = 0
        self._monitor: SystemMonitor | None = None
        self._slow_facts = SlowFacts()
        self._untold: list[Outbox] = []  # whose slow facts are still looked for

    # -- spools -----------------------------------------------------------------------------------

    def open(self, header: Header) -> Outbox:
        """An outbox with a new spool, written from now on until `close`.

        Where the header has no run yet, whoever delivers makes it.
        """
        with self._changed:
            self._number += 1
            try:
                outbox = Outbox(Spool.create(self.path / str(self._number), header))
            except OSError as error:
                raise unwritable(self.path, error) from error
            self._outboxes.append(outbox)
            self._untold.append(outbox)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="lrfinder-spool", daemon=True
                )
                self._thread.start()
        return outbox

    def follow_now(self) -> None:
        """Have the runs of new spools made by the process that follows, which is started if it was not."""
        self._follow_soon()
        if self._follower is not None:
            wake(self._follower, RUN)

    def _follow_soon(self) -> None:
        if self._follow_at < math.inf:
            self._follow_at = 0.0

    def header(self, outbox: Outbox) -> Header:
        """The header of an outbox, with its run, which is made here where nobody else is at it.

        Raises:
            RecordError: If the store refuses it, or does not answer.
        """
        until = time.monotonic() + RUN_TIMEOUT
        while (header := outbox.spool.header()).run_id is None:
            try:
                return self._courier.make_run(outbox.spool)
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(RUN_POLL)
            except RecordError:
                raise
            except Exception as error:
                raise RecordError(
                    f"The store must make a run, but it answered: {error}"
                ) from error
        return header

    @property
    def is_here(self) -> bool:
        """Whether this is the process whose thread writes; a fork has none."""
        return os.getpid() == self._process

    @property
    def is_open(self) -> bool:
        """Whether it takes more spools; it ends with its last recorder."""
        return not self._ended.is_set()

    def finish(self, outbox: Outbox) -> None:
        """The last that is recorded by itself: what is known of the machine by now."""
        if outbox in self._untold:
            self._tell_facts(timeout=FACTS_TIMEOUT)
        self._write(outbox)  # or raise, while what the recorder holds can be closed once more
        # Of a shorter time it would say nothing.
        if self._monitor is not None and outbox.since_sample >= SAMPLE_AFTER:
            self._sample([outbox])

    def close(self, outbox: Outbox) -> None:
        """Write it no more. With the last one the session ends."""
        with self._changed:
            self._outboxes.remove(outbox)
            outbox.close()
            if self._outboxes:
                return
        self.end()

    def leave(self, outbox: Outbox) -> None:
        """Write it no more, and let who follows deliver it; a later `flush` of it waits for that."""
        self._write(outbox)
        with self._changed:
            self._outboxes.remove(outbox)
            outbox.close()
            self._follow_soon()  # a process that is killed leaves nobody else to deliver it
        if self._follower is not None:
            wake(self._follower, ALL)

    def end(self) -> None:
        """Stop writing, and leave what is not delivered to whoever delivers it later."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(THREAD_TIMEOUT)  # it may be starting who follows
        self._lock.release()
        if self._follower is not None:
            assert self._follower.stdin is not None
            self._follower.stdin.close()
        if find_spools(self.path):
            # The process that follows goes on, and waits for the store. It is nobody's to wait for.
            if self._follower is not None:
                self._follower.returncode = 0
            return
        if self._follower is not None:
            self._follower.terminate()  # it has nothing more to do
            # That takes a hundredth of a second, in which its memory is given back.
            threading.Thread(target=self._follower.wait, daemon=True).start()
        remove_session(self.path)

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._tell_facts()
            for outbox in list(self._outboxes):
                try:
                    outbox.write()
                except Exception as error:  # whatever it is: the next `flush` raises it
                    self._say(
                        f"The spool {outbox.spool.path} cannot be written: {error}. What is "
                        "recorded is kept in memory, and lost if this process is killed. Make room."
                    )
            if time.monotonic() > self._follow_at:
                self._follow()
            if self._monitor is None:
                self._monitor = SystemMonitor()
            elif self._monitor.is_due():
                self._sample(list(self._outboxes))

    def _sample(self, outboxes: list[Outbox]) -> None:
        assert self._monitor is not None
        try:
            sample = self._monitor.sample()
        except Exception as error:  # of a driver that went away, or a system that hides its state
            self._say(f"The load of the machine could not be measured: {error}")
            sample = {}
        for outbox in outboxes:
            outbox.put_sample(sample)

    def _tell_facts(self, *, timeout: float = 0.0) -> None:
        if self._untold and (found := self._slow_facts.get(timeout=timeout)) is not None:
            untold, self._untold = self._untold, []
            for outbox in untold:
                outbox.put({"tags": found})

    def _follow(self) -> None:
        try:
            self._follower = start_following(self.path)
        except OSError as error:
            self._say(
                f"No process could be started to send the record of {self.path}: {error}. "
                "It is sent when it is flushed or closed."
            )
        self._follow_at = math.inf  # not again and again

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _log.warning(message)

    # -- flushing ---------------------------------------------------------------------------------

    def flush(self, outbox: Outbox, timeout: float | None) -> None:
        """Wait until all that the outbox was told up to now has been acknowledged.

        Raises:
            RecordError: If it was not: after `timeout` seconds, or where that is None once the
                store has not answered for a minute; at once if it refuses.
        """
        if not self.is_here:
            raise RecordError(
                f"A recorder belongs to the process that made it (here {self._process}), but "
                f"process {os.getpid()} uses it. Make a recorder, or a `child`, in each process."
            )
        self._write(outbox)
        policy = Retrying(
            stop=_Patience(outbox.spool, timeout),
            wait=wait_exponential(multiplier=0.1, max=1.0),
            retry=retry_if_exception(lambda error: not is_final(error)),
            reraise=True,
        )
        try:
            policy(self._attempt, outbox, timeout, time.monotonic())
        except Exception as error:
            spool = outbox.spool
            if left := spool.left() or ("its end" if spool.is_there and not self.is_open else ""):
                raise _incomplete(spool, left, error) from error
        if outbox.unreadable is not None:
            lost, outbox.unreadable = outbox.unreadable, None
            raise RecordError(
                f"All that was recorded must be in the store, but values of {outbox.spool.path} "
                f"could not be read from their device, and are NaN there: {lost}"
            ) from lost

    def _write(self, outbox: Outbox) -> None:
        try:
            outbox.write()
        except OSError as error:
            raise RecordError(
                f"All that was recorded must be in the spool {outbox.spool.path}, but "
                f"{outbox.in_memory()} are in the memory of this process alone: {error}. Make "
                "room, and call `flush()` again."
            ) from error

    def _attempt(self, outbox: Outbox, timeout: float | None, began: float) -> None:
        """One delivery, in a thread, since MLflow may wait for minutes for what does not answer."""
        if self._delivering is None or not self._delivering.is_alive():
            self._delivering = _Delivering(self._courier)
            self._delivering.start()
        delivering, patience = self._delivering, _Patience(outbox.spool, None)
        while delivering.is_alive():
            left = 1.0 if timeout is None else began + timeout - time.monotonic()
            if left <= 0 or patience.is_over():
                raise TimeoutError(
                    f"no answer within {PATIENCE if timeout is None else timeout:g} s"
                )
            delivering.join(min(left, 1.0))
        if delivering.failure is not None:
            raise delivering.failure
        if error := delivering.errors.get(outbox.spool.path):
            raise error
        if not outbox.spool.is_delivered():
            # Written after that delivery had passed by.
            raise TimeoutError("the store has not answered yet")


class _Delivering(threading.Thread):
    """One delivery of all spools of a session."""

    def __init__(self, courier: Courier) -> None:
        super().__init__(name="lrfinder-courier", daemon=True)
        self.errors: dict[Path, Exception] = {}
        self.failure: Exception | None = None
        self._courier = courier

    def run(self) -> None:
        try:
            self.errors = self._courier.deliver(may_end=lambda: False, wait=PATIENCE)
        except Exception as error:
            self.failure = error  # a thread has nobody to raise to: `flush` raises it


class _Patience:
    """When waiting for a store ends: after a time, or a minute after its last answer."""

    def __init__(self, spool: Spool, timeout: float | None) -> None:
        self._spool = spool
        self._timeout = timeout
        self._seen: object = None
        self._since = time.monotonic()

    def __call__(self, retry_state: RetryCallState) -> bool:
        return self.is_over()

    def is_over(self) -> bool:
        if self._timeout is None:
            state = self._spool.state()
            seen = (state.offset, len(state.waiting))
            if seen != self._seen:
                self._seen, self._since = seen, time.monotonic()
        limit = PATIENCE if self._timeout is None else self._timeout
        return time.monotonic() - self._since >= limit


def _incomplete(spool: Spool, left: str, error: Exception) -> RecordError:
    header = spool.header()
    reason = first_line(error).rstrip(".")
    return RecordError(
        f"All that was recorded must be in the store {without_password(header.tracking_uri)!r}, "
        f"but of run {header.run_id or '(not made yet)'} there is not: {left}. Reason: {reason}. "
        f"It is kept in {spool.path}: `lrfinder sync {spool.path}` sends it later."
    )
