"""Writers: the process that writes a study, as its search sees it. It does what it is told, in order, and answers."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import IO, Any

from lrfinder.delivering.booting import start_python

INTERVAL = 1.0  # seconds between two messages about trials that go on

Told = tuple[int, str, tuple[Any, ...], dict[str, Any]]


class GoneError(Exception):
    """The process has ended, or what was on the way to or from it was cut off."""


class Writer:
    """A process that runs `lrfinder.searching.storages.writing.write`. One thread at a time.

    Args:
        url: Of the storage.
        study_name: Whose trials are written.
        on_said: Called with the kind and the value of what it says without being asked, whenever
            it is listened to; what this raises, who listens gets.

    Raises:
        OSError: If no process can be started.

    Attributes:
        pending: What it was told and has not acknowledged, the oldest first.
        answers: By the number of what it was told, until somebody waits for them.
    """

    def __init__(self, url: str, study_name: str, on_said: Callable[[str, Any], None]) -> None:
        self._process = start_python(
            "lrfinder.searching.storages.writing:write",
            (url, study_name),
            fake=("lrfinder", "lrfinder.searching", "lrfinder.searching.storages"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # nobody is to wait for the end of what it may say there
        )
        self._out = Connection(_taken(self._process.stdin), readable=False)
        self._in = Connection(_taken(self._process.stdout), writable=False)
        self._readable = select.poll()
        self._readable.register(self._in.fileno(), select.POLLIN)
        self.answers: dict[int, Any] = {}
        self._number = 0
        self._unsent: list[Told] = []
        self._sent_at = float("-inf")
        self._cut = False  # in the middle of a message
        self._on_said = on_said
        self.pending: deque[Told] = deque()

    def tell(self, name: str, *args: Any, **kwargs: Any) -> int:
        """Have it call a method of the storage, or of its own, once it is sent; the number of what it was told."""
        self._number += 1
        told = (self._number, name, args, kwargs)
        self._unsent.append(told)
        self.pending.append(told)
        return self._number

    def send(self, *, at_once: bool = False) -> None:
        """Send what it was told, and listen to it.

        Args:
            at_once: Else not so soon after the last time: each time it is woken takes as long as
                twenty changes of a trial, and on a busy machine it takes this process's place.

        Raises:
            GoneError: If it has gone.
        """
        now = time.monotonic()
        if self._unsent and (at_once or now - self._sent_at > INTERVAL):
            data, self._unsent = pickle.dumps(self._unsent), []
            self._sent_at = now
            self._try(self._out.send_bytes, data)
            self.listen()

    def answer(self, number: int) -> Any:
        """Wait for what it answers; all that it was told before that is done then.

        Raises:
            GoneError: If it has gone.
        """
        self.send(at_once=True)
        while number not in self.answers:
            self.listen(None)
        while self.pending and self.pending[0][0] <= number:
            self.pending.popleft()
        return self.answers.pop(number)

    def listen(self, milliseconds: int | None = 0) -> None:
        """Take what it has said, within so long; None waits for something."""
        while self._readable.poll(milliseconds):
            kind, value = pickle.loads(self._try(self._in.recv_bytes))
            if kind == "answer":
                self.answers[value[0]] = value[1]
            else:
                self._on_said(kind, value)
            milliseconds = 0

    def end(self) -> None:
        """Close its pipe, and wait until it has done what it was told."""
        self._out.close()
        self._process.wait()
        self._in.close()

    def stop(self) -> None:
        """End it at once; what it was told is of no use."""
        self._process.terminate()

    def _try(self, transfer: Any, *args: Any) -> Any:
        if self._cut:
            raise GoneError
        self._cut = True
        try:
            found = transfer(*args)
        except (OSError, EOFError) as error:
            raise GoneError from error
        self._cut = False
        return found


def _taken(pipe: IO[bytes] | None) -> int:
    """The descriptor of a pipe, which is closed by its new owner alone."""
    assert pipe is not None
    descriptor = os.dup(pipe.fileno())
    pipe.close()
    return descriptor
