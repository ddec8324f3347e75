"""Following: a process that delivers what a training records, while it trains.

A request to a store costs some 80 microseconds of Python for each metric, which a thread would
take from the training. So a process does it, at a low priority; it outlives a training that is
killed, and ends when all is delivered, or when the store has been away for long enough.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import subprocess
import time
from pathlib import Path

from lrfinder.delivering.booting import start_python
from lrfinder.delivering.sending import BusyError, Courier, is_recording
from lrfinder.delivering.spools import RECORDING, SENDING, find_spools

INTERVAL = 1.0  # seconds between two passes; fewer, larger batches cost less
SOON = 0.1  # likewise, while runs end: so that little is left to be sent when the last one does
LINGER = 600.0  # seconds for which a store that is away is waited for, after the training
LOG = "following.log"
RUN, ALL = b"r", b"a"  # what it may be woken for: to make runs, or to deliver all

# Its own settings of MLflow, whose defaults wait up to 247 s for a server that is down. A pass that
# fails is repeated.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def start_following(session: Path) -> subprocess.Popen[bytes]:
    """Start the process that follows a session; a byte on its standard input wakes it.

    Raises:
        OSError: If this Python cannot start another.
    """
    with (session / LOG).open("wb") as log:
        process = start_python(
            "lrfinder.delivering.following:follow",
            [str(session)],
            fake=["lrfinder"],
            environment=_ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            bufsize=0,
        )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)  # nobody waits for who is to be woken
    return process


def wake(follower: subprocess.Popen[bytes], what: bytes) -> None:
    """Have a process that follows do something now: `RUN` or `ALL`. It is not waited for."""
    assert follower.stdin is not None
    with contextlib.suppress(OSError):  # it has ended, or has much to read: it does all anyway
        follower.stdin.write(what)


def follow(session: str) -> None:
    """Deliver until the training has ended and everything is there, or the store stays away."""
    with contextlib.suppress(OSError):
        os.nice(19)  # the training comes first
    folder = Path(session)
    courier = Courier(folder)
    courier.prepare()
    gc.freeze()  # what is loaded stays: to look through it again and again takes a tenth of the time
    calls = _Calls()
    given_up = None

    def may_end() -> bool:
        return not is_recording(folder)

    while folder.is_dir():
        began = time.monotonic()
        before = find_spools(folder)
        with contextlib.suppress(BusyError):
            courier.deliver(may_end=may_end)
        runs_end = not all(spool.is_there for spool in before)
        if not is_recording(folder):
            if not find_spools(folder):
                remove_session(folder)
                return
            given_up = given_up or time.monotonic() + LINGER
            if time.monotonic() > given_up:
                return  # `lrfinder sync` delivers it
        until = began + (SOON if runs_end else INTERVAL)
        while calls.wait(until - time.monotonic()) == RUN:
            with contextlib.suppress(BusyError):
                courier.make_runs(may_end=may_end)


class _Calls:
    """What the training says, by bytes on standard input: `RUN` or `ALL`."""

    def __init__(self) -> None:
        self._is_open = True

    def wait(self, seconds: float) -> bytes:
        """What is to be done first: after this time all is, whatever was said."""
        seconds = max(0.0, seconds)
        if not self._is_open:
            time.sleep(seconds)
            return ALL
        if not select.select([0], [], [], seconds)[0]:
            return ALL
        said = os.read(0, 4096)
        self._is_open = bool(said)  # else the training has ended
        return RUN if said and ALL not in said else ALL


def remove_session(session: Path) -> None:
    """Remove what a session needs beside its spools, and the folder if nothing else is in it."""
    for name in (LOG, RECORDING, SENDING):
        (session / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        session.rmdir()
