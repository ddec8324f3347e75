"""Following: a process that delivers what a training records, while it trains.

A request to a store costs some 80 microseconds of Python for each metric, which a thread would
take from the training. So a process does it, at a low priority; it outlives a training that is
killed, and ends when all is delivered, or when the store has been away for long enough.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from lrfinder.delivering.sending import BusyError, Courier, is_recording
from lrfinder.delivering.spools import RECORDING, SENDING, find_spools

INTERVAL = 1.0  # seconds between two passes; fewer, larger batches cost less
LINGER = 600.0  # seconds for which a store that is away is waited for, after the training
LOG = "following.log"

# Its own settings of MLflow, whose defaults wait up to 247 s for a server that is down. A pass that
# fails is repeated.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "OMP_NUM_THREADS": "1",
}
# `lrfinder` itself would load torch, of which nothing is needed here: its folder is enough.
_BOOT = (
    "import sys, types; lrfinder = types.ModuleType('lrfinder'); lrfinder.__path__ = sys.argv[1:2];"
    "sys.modules['lrfinder'] = lrfinder;"
    "from lrfinder.delivering.following import follow; follow(sys.argv[2])"
)


def start_following(session: Path) -> subprocess.Popen[bytes] | None:
    """Start the process that follows a session; None where this Python cannot start another.

    It has a session of its own on the terminal: Ctrl-C and a hangup are for the training alone.
    """
    if not sys.executable:
        return None
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_RUN_ID"} | _ENVIRONMENT
    package = Path(__file__).parent.parent
    with (session / LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(package), str(session)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def follow(session: str) -> None:
    """Deliver until the training has ended and everything is there, or the store stays away."""
    with contextlib.suppress(OSError):
        os.nice(19)  # the training comes first
    folder = Path(session)
    courier = Courier(folder)
    given_up = None
    while folder.is_dir():
        began = time.monotonic()
        with contextlib.suppress(BusyError):
            courier.deliver(may_end=lambda: not is_recording(folder))
        if not is_recording(folder):
            if not find_spools(folder):
                remove_session(folder)
                return
            given_up = given_up or time.monotonic() + LINGER
            if time.monotonic() > given_up:
                return  # `lrfinder sync` delivers it
        time.sleep(max(0.0, INTERVAL - (time.monotonic() - began)))


def remove_session(session: Path) -> None:
    """Remove what a session needs beside its spools, and the folder if nothing else is in it."""
    for name in (LOG, RECORDING, SENDING):
        (session / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        session.rmdir()
