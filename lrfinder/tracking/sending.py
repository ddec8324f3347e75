"""Sending: from memory to an MLflow store, in a thread that no training step waits for.

An `Outbox` holds what one run has recorded and its store has not acknowledged; a `Sender` is the
thread that empties them. Rows carry the time at which they were recorded, and MLflow keeps one row
for each (run, key, time, step, value): so sending again what may have arrived already is harmless,
and nothing is taken out of an outbox before the store has answered.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from lrfinder.tracking.outboxes import Outbox
from lrfinder.tracking.stores import RecordError, first_line, is_final

if TYPE_CHECKING:
    from mlflow import MlflowClient

INTERVAL = 1.0  # seconds between two sendings; fewer, larger batches cost less
BATCH = 1000  # metrics in one request, MLflow's own limit
ATTEMPTS = 3  # of one request before it is left for the next sending


class Sender:
    """A daemon thread that sends the outboxes of one store, one request after the other.

    Args:
        client: Of the store.
        interval: Seconds between two sendings.
    """

    def __init__(self, client: MlflowClient, *, interval: float = INTERVAL) -> None:
        self.client = client
        self._interval = interval
        self._outboxes: list[Outbox] = []
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._asked = 0  # sendings that were asked for, and how many of them were answered
        self._answered = 0
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def open(self, run_id: str) -> Outbox:
        """An outbox that is sent from now on, until `close`."""
        outbox = Outbox(run_id)
        with self._changed:
            self._outboxes.append(outbox)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="lrfinder-sender", daemon=True
                )
                self._thread.start()
        return outbox

    def flush(self, outbox: Outbox, timeout: float | None) -> None:
        """Wait until all that is in the outbox now has been acknowledged.

        Raises:
            RecordError: If it was not, after `timeout` seconds or `ATTEMPTS` failures.
        """
        if not self.is_here:
            raise RecordError(
                f"A recorder belongs to the process that made it (here {self._process}), but "
                f"process {os.getpid()} uses it. Make a recorder, or a `child`, in each process."
            )
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._wake.set()
            in_time = self._changed.wait_for(lambda: self._answered >= ticket, timeout)
        if outbox.lost is not None:
            lost, outbox.lost = outbox.lost, None
            raise RecordError(
                f"All that was recorded must be in the store, but values of run {outbox.run_id} "
                f"could not be read from their device, and are NaN there: {lost}"
            ) from lost
        left = outbox.left()
        if left and (outbox.error is not None or not in_time):
            reason = (
                f"no answer within {timeout} s"
                if outbox.error is None
                else first_line(outbox.error)
            )
            raise RecordError(
                f"All that was recorded must be in the store {self.client.tracking_uri!r}, but of "
                f"run {outbox.run_id} there is not: {left}. Reason: {reason}. It is kept in the "
                "memory of this process: repair the store, then call `flush()` again."
            ) from outbox.error

    @property
    def is_here(self) -> bool:
        """Whether this is the process whose thread sends; a fork has none."""
        return os.getpid() == self._process

    def close(self, outbox: Outbox) -> None:
        """Send it no more; the thread ends with its last outbox."""
        with self._changed:
            self._outboxes.remove(outbox)
            self._wake.set()

    # -- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait(self._interval)
            self._wake.clear()
            with self._changed:
                ticket, outboxes = self._asked, list(self._outboxes)
                if not outboxes:
                    self._thread = None
                    return
            for outbox in outboxes:
                self._send(outbox)
            with self._changed:
                self._answered = ticket
                self._changed.notify_all()

    def _send(self, outbox: Outbox) -> None:
        """Send all that is there; a part that fails stays, and does not keep the others."""
        errors: list[Exception] = []
        for part in (Outbox.settle, self._metrics, self._entities, self._artifacts, self._end):
            if part == self._end and errors:
                break
            try:
                part(outbox)
            except Exception as error:
                errors.append(error)  # a thread has nobody to raise to: `flush` raises it
        outbox.error = errors[0] if errors else None

    def _metrics(self, outbox: Outbox) -> None:
        from mlflow.entities import Metric

        while outbox.metrics:
            batch = [Metric(*metric) for metric in islice(outbox.metrics, BATCH)]
            self._retrying(self.client.log_batch, outbox.run_id, metrics=batch, synchronous=True)
            for _ in batch:
                outbox.metrics.popleft()

    def _entities(self, outbox: Outbox) -> None:
        from mlflow.entities import Param, RunTag

        for field, make in (("params", Param), ("tags", RunTag)):
            sent = outbox.taken(field)
            if sent:
                entities = [make(key, value) for key, value in sent.items()]
                self._retrying(
                    self.client.log_batch, outbox.run_id, synchronous=True, **{field: entities}
                )
                outbox.acknowledge(field, sent)

    def _artifacts(self, outbox: Outbox) -> None:
        for name, data in outbox.taken("artifacts").items():
            with TemporaryDirectory() as folder:
                path = Path(folder, Path(name).name)
                path.write_bytes(data)
                parent = Path(name).parent.as_posix()
                where = None if parent == "." else parent
                self._retrying(self.client.log_artifact, outbox.run_id, str(path), where)
            outbox.acknowledge("artifacts", {name: data})

    def _end(self, outbox: Outbox) -> None:
        status = outbox.status
        if status is not None and not outbox.left(but_end=True):
            self._retrying(self.client.set_terminated, outbox.run_id, status=status)
            outbox.status = None

    def _retrying(self, request: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        policy = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=0.2, max=2.0),
            retry=retry_if_exception(
                lambda error: isinstance(error, Exception) and not is_final(error)
            ),
            reraise=True,
        )
        policy(request, *args, **kwargs)
