"""Sending: what a spool holds goes to its MLflow store, in order, complete and once.

A row carries the time at which it was recorded, and MLflow keeps one row for each (run, key, time,
step, value): so sending again what may have arrived already is harmless, and the journal is
counted as acknowledged only after the store has answered. All else is harmless to send again too.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lrfinder.delivering.drawing import made_of, prepare_drawing
from lrfinder.delivering.runs import ensure_run
from lrfinder.delivering.spools import RECORDING, SENDING, Entry, Header, Spool, find_spools
from lrfinder.delivering.stores import (
    RecordError,
    first_line,
    reopen_store,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH_METRICS = 1000  # of one request: MLflow's own limits
BATCH_OTHERS = 100

# The tag of a run whose process ended without a word.
LOST = (
    "The process that recorded this run ended without closing it: it was killed, or it crashed. "
    "The record goes up to a second before."
)


class BusyError(RecordError):
    """Somebody else is delivering this session at the moment."""


@contextlib.contextmanager
def sending(session: Path, *, timeout: float = 0.0) -> Iterator[None]:
    """In here nobody else delivers this session.

    Raises:
        BusyError: If somebody else still does after `timeout` seconds.
    """
    if not session.is_dir():
        yield  # somebody else has delivered and removed it; the lock would make the folder again
        return
    lock = FileLock(session / SENDING)
    try:
        lock.acquire(timeout=timeout, poll_interval=0.005)
    except Timeout as error:
        raise BusyError(f"Somebody else is sending {session} at the moment.") from error
    except FileNotFoundError:
        yield  # it was removed while this waited
        return
    except OSError as error:
        raise RecordError(f"{session} must be writable, but: {error}") from error
    try:
        yield
    finally:
        lock.release()


def is_recording(session: Path) -> bool:
    """Whether the process that records this session lives: it holds a lock as long as it does."""
    if not session.is_dir():
        return False
    lock = FileLock(session / RECORDING)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except FileNotFoundError:
        return False
    lock.release()
    return False


class Courier:
    """Delivers the spools of a session, one after the other.

    Args:
        session: The folder.
        tracking_uri: A store to deliver to in place of the one that the spools name.

    Attributes:
        run_ids: The runs of the spools that were looked at, by their paths.
    """

    def __init__(self, session: Path, *, tracking_uri: str | None = None) -> None:
        self.session = session
        self.tracking_uri = tracking_uri
        self.run_ids: dict[Path, str] = {}

    def prepare(self) -> None:
        """Load and open what takes long the first time, before anybody waits for this one to be done."""
        with contextlib.suppress(Exception):  # `deliver` meets it too, and says it
            for spool in find_spools(self.session):
                self._client(spool)
        prepare_drawing()

    def make_run(self, spool: Spool) -> Header:
        """The header of a spool of a process that lives; its run is there, or made now.

        Raises:
            BusyError: If somebody else is delivering.
            Exception: Whatever the store refuses it for.
        """
        with sending(self.session):
            return self._ensure_run(spool, self._client(spool), abandoned=False)

    def make_runs(self, *, may_end: Callable[[], bool]) -> None:
        """Make the runs that spools have none of yet, and send nothing else.

        What goes wrong is left to `deliver`, which says it.

        Args:
            may_end: As of `deliver`.

        Raises:
            BusyError: If somebody else is delivering.
        """
        with sending(self.session):
            self._make_runs(may_end)

    def _make_runs(self, may_end: Callable[[], bool]) -> None:
        # In the order of their making: that of a parent is there before its children's.
        for spool in find_spools(self.session):
            if spool.path not in self.run_ids:
                try:
                    self._ensure_run(spool, self._client(spool), abandoned=may_end())
                except Exception:
                    return  # `deliver` meets it too

    def _ensure_run(self, spool: Spool, client: MlflowClient, *, abandoned: bool) -> Header:
        header = ensure_run(spool, client, abandoned=abandoned)
        assert header.run_id is not None
        self.run_ids[spool.path] = header.run_id
        return header

    def deliver(self, *, may_end: Callable[[], bool], wait: float = 0.0) -> dict[Path, Exception]:
        """Send what all spools hold at the moment; one that fails does not keep the others.

        Runs that are still to be made come first, also between two requests: their ids are waited
        for.

        Args:
            may_end: Whether a run without an end is to be ended as killed, asked before each
                spool is read: its process lives no more.
            wait: Seconds for somebody else who is delivering.

        Returns:
            What went wrong, for each spool with which something did.

        Raises:
            BusyError: If somebody else is delivering.
        """
        errors: dict[Path, Exception] = {}
        with sending(self.session, timeout=wait):
            self._make_runs(may_end)
            make_runs = functools.partial(self._make_runs, may_end)
            spools = find_spools(self.session)
            # The parent's last: it ends when its children have ended, maybe meanwhile.
            for spool in spools[1:] + spools[:1]:
                try:
                    abandoned, client = may_end(), self._client(spool)
                    header = self._ensure_run(spool, client, abandoned=abandoned)
                    _Delivery(spool, client, header, make_runs).run(abandoned=abandoned)
                except Exception as error:
                    errors[spool.path] = error  # whoever asked says what is missing
        return errors

    def _client(self, spool: Spool) -> MlflowClient:
        return reopen_store(self.tracking_uri or spool.header().tracking_uri)


class _Delivery:
    """One pass over a spool.

    Args:
        spool: What is sent.
        client: Of its store.
        header: Of its run, which is there.
        between: Called before each request that may take a while.
    """

    def __init__(
        self, spool: Spool, client: MlflowClient, header: Header, between: Callable[[], None]
    ) -> None:
        assert header.run_id is not None
        self.spool = spool
        self.client = client
        self.state = spool.state()
        self.run_id = header.run_id
        self._between = between

    def run(self, *, abandoned: bool) -> None:
        """Send all that is there, and end the run where it has ended.

        Raises:
            RecordError: If the store refuses something, or an artifact cannot be kept.
            Exception: Whatever MLflow raises for a request that failed.
        """
        end = self._journal()
        errors = self._artifacts()
        if errors:
            raise errors[0]
        if end is None and abandoned:
            end = {"end": "KILLED", "ms": time.time_ns() // 1_000_000}
            self.client.set_tag(self.run_id, "lrfinder.ending", LOST)
        if end is not None:
            self.client.set_terminated(self.run_id, end["end"], end_time=end["ms"])
        if self.state.refused:
            raise RecordError(f"refused by the store: {'; '.join(self.state.refused)}")
        if end is not None:
            self.spool.remove()

    # -- metrics, params, tags --------------------------------------------------------------------

    def _journal(self) -> Entry | None:
        """Send the journal in batches; its last entry, if that is the run's end."""
        batch, place = _Batch(), self.state.offset
        for entry, offset in self.spool.entries(self.state.offset):
            if "end" in entry:
                self._acknowledge(batch, place)
                return entry
            if not batch.takes(entry):
                self._acknowledge(batch, place)
                batch = _Batch()
            if "artifacts" in entry:
                file = self.spool.file_of(entry, place)
                self.state.waiting |= dict.fromkeys(entry["artifacts"], file)
            elif "damaged" in entry:
                self.state.refused.append(f"{entry['damaged']} are damaged and were left out")
            elif "inputs" in entry:
                self._inputs(entry["inputs"])
            else:
                batch.add(entry)
            place = offset
        self._acknowledge(batch, place)
        return None

    def _acknowledge(self, batch: _Batch, offset: int) -> None:
        if batch.entities:
            self._send(batch.entities)
        if offset != self.state.offset:
            self.state.offset = offset
            self.spool.save_state(self.state)
        self._between()

    def _send(self, entities: list[Any]) -> None:
        """One request; where the store refuses a part of it, that part is found by halving."""
        try:
            self._log_batch(entities)
        except Exception as error:
            if not self._is_refusal(error):
                raise
            if len(entities) == 1:
                kind = type(entities[0]).__name__
                self.state.refused.append(f"{kind} {entities[0].key} ({first_line(error)})")
                return
            half = len(entities) // 2
            self._send(entities[:half])
            self._send(entities[half:])

    def _log_batch(self, entities: list[Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        parts: dict[str, Any] = {
            name: [item for item in entities if isinstance(item, kind)]
            for name, kind in (("metrics", Metric), ("params", Param), ("tags", RunTag))
        }
        self.client.log_batch(self.run_id, synchronous=True, **parts)

    def _is_refusal(self, error: Exception) -> bool:
        """Whether the store takes other things of this run, but never this one."""
        if getattr(error, "error_code", None) not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            return False
        return bool(self.client.get_run(self.run_id).info.lifecycle_stage == "active")

    # -- data sets, artifacts ---------------------------------------------------------------------

    def _inputs(self, inputs: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        for name, values in inputs.items():
            tags = [InputTag("mlflow.data.context", values.pop("context"))]
            dataset = Dataset(name=name, **values)
            # Twice: where two runs name a new data set at once, the store breaks for one of them.
            for is_last in (False, True):
                try:
                    self.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])
                    break
                except Exception as error:
                    if not self._is_refusal(error):
                        raise
                    if is_last:
                        self.state.refused.append(f"data set {name} ({first_line(error)})")

    def _artifacts(self) -> list[Exception]:
        errors = []
        for name, file in list(self.state.waiting.items()):
            self._between()
            path = self.spool.path / file
            parent = Path(name).parent.as_posix()
            try:
                made = made_of(path, name)
                self.client.log_artifact(self.run_id, str(made), None if parent == "." else parent)
            except Exception as error:
                errors.append(error)
                continue
            del self.state.waiting[name]
            self.spool.save_state(self.state)
            made.unlink()
            if file not in self.state.waiting.values():
                path.unlink(missing_ok=True)
        return errors


class _Batch:
    """What goes into one request."""

    def __init__(self) -> None:
        self.entities: list[Any] = []
        self._metrics = 0
        self._others = {"params": 0, "tags": 0}

    def takes(self, entry: Entry) -> bool:
        metrics = len(entry.get("rows", ())) * len(entry.get("keys", ()))
        others = all(
            count + len(entry.get(kind, ())) <= BATCH_OTHERS
            for kind, count in self._others.items()
        )
        return not self.entities or (self._metrics + metrics <= BATCH_METRICS and others)

    def add(self, entry: Entry) -> None:
        from mlflow.entities import Metric, Param, RunTag

        keys = entry.get("keys", ())
        for milliseconds, step, *values in entry.get("rows", ()):
            for key, value in zip(keys, values, strict=True):
                self.entities.append(Metric(key, value, milliseconds, step))
        self._metrics += len(entry.get("rows", ())) * len(keys)
        for kind, make in (("params", Param), ("tags", RunTag)):
            self.entities += [make(key, value) for key, value in entry.get(kind, {}).items()]
            self._others[kind] += len(entry.get(kind, ()))
