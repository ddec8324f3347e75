"""Tracking: what a training does goes to MLflow, and the training does not wait for it.

MLflow has the last word here on runs, metrics, params, tags and artifacts. Recorders use its
client with explicit run ids and never its global active run, since many runs are open at once.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lrfinder.delivering.runs import (
    default_experiment,
    experiment_id,
    run_of,
    run_with,
    take_adoptable,
)
from lrfinder.delivering.spools import Header
from lrfinder.delivering.stores import RecordError, StoreAwayError, reopen_store, store_uri
from lrfinder.tracking.beginnings import adopt_run, make_run, new_header, process_tags
from lrfinder.tracking.contents import Contents
from lrfinder.tracking.facts import run_facts
from lrfinder.tracking.links import as_note, pages, ui_address
from lrfinder.tracking.names import as_texts
from lrfinder.tracking.outboxes import Outbox
from lrfinder.tracking.recorders import NullRecorder, Recorder, RunStatus
from lrfinder.tracking.sessions import Session

INTERRUPT_TIMEOUT = 10.0  # seconds that somebody who pressed Ctrl-C is kept waiting

_log = logging.getLogger("lrfinder")

__all__ = ["MlflowRecorder", "NullRecorder", "RecordError", "Recorder"]


class MlflowRecorder(Contents):
    """A run of MLflow: loss and LRs at every optimizer step, and whatever else it is told.

    Law: a row holds the time at which it was recorded. `log_step` puts it into a queue in memory; a
    thread appends the queue to a spool on the disk twice a second; a process that follows
    sends the spool about every second, and a row leaves it when the store has acknowledged it.
    Sending one twice is harmless. So a training waits for neither disk nor store, a kill loses
    less than a second, and where the store is away the record waits in the spool: `flush` and
    `close` say what, and `lrfinder sync` sends it later. While the disk is full, rows are kept in
    memory, some 200 bytes each, and the log says so.

    Under `mlflow run` the first recorder adopts the run that MLflow made: its id is taken out of
    the environment, so that no later recorder and no worker process adopts it too. That run keeps
    its experiment and its name; an `experiment` or `run_name` that differs becomes the tag
    `lrfinder.experiment` or `lrfinder.run_name`.

    A server that does not answer when the recorder is made is no error: the log says so, and the
    run is made when it is back. A URI that cannot be right is one.

    Non-finite values are recorded as NaN (MLflow would make 1.8e308 of an infinity), and the tag
    `<metric>.nonfinite` holds the first step and the value. Characters in names that MLflow
    refuses become `_` (`lrfinder.tracking.names.clean_name`). Steps may go backwards, as those of a
    training that goes on from a checkpoint do.

    The run ends with the `with` block: FINISHED; FAILED at an exception, with its text in the tag
    `error`; KILLED at a KeyboardInterrupt. A process that ends without it flushes and ends the run
    too. One that is killed leaves it to the process that follows, or to `lrfinder sync`: KILLED.

    Args:
        experiment: Its name, made if there is none; None for the one of MLflow's environment, else
            "Default".
        run_name: MLflow makes one up for None.
        tracking_uri: None for `mlflow.get_tracking_uri()`.
        spool: A folder for the spools of any number of recorders; None for LRFINDER_SPOOL, else
            `lrfinder/spool` in the user's folder of states (`~/.local/state`).
        parent: The id of a run of the same store that this one belongs to.
        tags: More tags of the run, beside MLflow's own (user, source, git commit).

    Raises:
        RecordError: If the store or the spool cannot be used; within seconds.

    Example:
        >>> import tempfile
        >>> import torch
        >>> folder = tempfile.mkdtemp()
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=0.1)
        >>> store = f"sqlite:///{folder}/mlflow.db"
        >>> with MlflowRecorder("demo", tracking_uri=store, spool=f"{folder}/spool") as recorder:
        ...     for step in range(3):
        ...         recorder.log_step(step, weight.square().sum(), optimizer)
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        spool: str | Path | None = None,
        parent: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        uri = store_uri(tracking_uri)
        session = Session(spool)
        adopted = None if parent is not None else take_adoptable(tracking_uri)
        name, known_id = (experiment, None) if experiment is not None else default_experiment()
        facts = process_tags()
        header = new_header(uri, run_name, facts | as_texts(tags or {}), parent)
        header = dataclasses.replace(header, experiment=name, experiment_id=known_id)
        params: dict[str, str] = {}
        later: dict[str, str] = {}
        try:
            if adopted is None:
                make_run(header)
            else:
                params, later = adopt_run(header, adopted, experiment, run_name)
                later = run_facts() | as_texts(tags or {}) | later
        except StoreAwayError as away:
            header.run_id = adopted
            _log.warning("%s The run is recorded in %s until it does.", away, session.path)
        except RecordError:
            session.end()
            raise
        self._start(session, header, params, facts)
        if later:
            self.set_tags(later)

    def _start(
        self, session: Session, header: Header, params: Mapping[str, str], facts: dict[str, str]
    ) -> None:
        super().__init__(session.open(header), params)
        self._session = session
        self._header = header
        self._facts = facts  # tags of all runs of this process
        self._awaits_run = False  # whether who asks for the run's id waits for its making, once
        self.links: dict[str, str] = {}  # what `log_links` has found last
        self._left: list[Outbox] = []  # of children that have ended, and that this one waits for
        self._left_to: MlflowRecorder | None = None
        _OPEN[id(self)] = self

    @property
    def run_id(self) -> str | None:
        """The run's id in its store; None where that is away and has not made the run yet.

        That of a `child` that does not wait is waited for here, as long as the store answers.
        """
        if self._header.run_id is None and self._awaits_run:
            self._awaits_run = False
            self._wait_for_run()
        return self.known_run_id

    def _wait_for_run(self) -> None:
        if not (self._session.is_here and self._outbox.spool.is_there):
            return
        try:
            self._header = self._session.header(self._outbox)
        except RecordError as error:
            _log.warning("%s The run is recorded in %s.", error, self.spool)

    @property
    def known_run_id(self) -> str | None:
        """As `run_id`, without waiting for it."""
        self._refresh()
        return self._header.run_id

    @property
    def experiment_id(self) -> str | None:
        """The id of the run's experiment; None as long as the store has not said it."""
        self._refresh()
        return self._header.experiment_id

    @property
    def run_name(self) -> str | None:
        """The run's name; None where the store has not made one up yet."""
        return self._header.run_name

    def _refresh(self) -> None:
        """Whoever delivers notes in the spool which run the store has made."""
        if self._header.run_id is not None:
            return
        if self._outbox.spool.is_there:
            self._header = self._outbox.spool.header()
        else:
            client = reopen_store(self.tracking_uri)  # it has just taken all of the spool
            where = self._header.experiment_id or experiment_id(client, self._header.experiment)
            self._header.experiment_id = where
            self._header.run_id = run_of(client, where, self._header.key)

    @property
    def spool(self) -> Path:
        """The folder that holds what is not in the store yet; it is gone when all of it is."""
        return self._outbox.spool.path

    @property
    def tracking_uri(self) -> str:
        """The store's URI."""
        return self._header.tracking_uri

    # -- the run ----------------------------------------------------------------------------------

    def child(
        self,
        run_name: str | None = None,
        *,
        wait: bool = True,
        unique_for: float | None = None,
        **tags: Any,
    ) -> MlflowRecorder:
        """A recorder of a new run that belongs to this one, in the same store and experiment.

        Its tag `lrfinder.parent` is this run's id. MLflow's pages show both side by side: their
        own nesting would hide it from the charts until its parent is opened. This call waits for
        the store; where that does not answer, the run is made when it is back.

        Args:
            run_name: MLflow makes one up for None.
            wait: Whether this call waits until the store has made the run, and the child's `close`
                until all of it is there. Else both are done meanwhile: whoever asks for its
                `run_id` waits for that, and this recorder's `flush` and `close` for the rest. For
                many short runs, as the trials of a search, which end every second.
            unique_for: For how many seconds nobody else makes a run with the same tags. Then, or
                where this process has ended by then, it is looked for before it is made, and one
                that others have made is taken: no two are left. None where runs may share them.
            tags: Of the run.

        Raises:
            RecordError: If the store refuses.
        """
        header = new_header(self.tracking_uri, run_name, self._facts | as_texts(tags), self.run_id)
        header.experiment, header.experiment_id = self._header.experiment, self.experiment_id
        if self.run_id is None:
            header.parent_key = self._header.key
        elif wait:
            try:
                make_run(header, again=True)
            except StoreAwayError as away:
                _log.warning("%s The run is recorded in %s until it does.", away, self.spool)
        if unique_for is not None:
            header.unique = tuple(as_texts(tags))
            header.alone_until = header.start + int(1000 * unique_for)
        session = self._session
        if not session.is_open:
            session = Session(session.path.parent)
        child = MlflowRecorder.__new__(MlflowRecorder)
        child._start(session, header, {}, self._facts)
        if not wait:
            child._left_to, child._awaits_run = self, True
            session.follow_now()
        return child

    def find_run(self, tags: Mapping[str, Any], *, since: float = 0.0) -> str | None:
        """The id of a run of this experiment that has these tags, whoever made it.

        None where there is none, or the store does not answer.

        Args:
            tags: All of them.
            since: When it began at the earliest, in seconds since 1970.
        """
        where = self.experiment_id
        if where is None:
            return None  # the store has not made any yet
        try:
            client = reopen_store(self.tracking_uri)
            return run_with(client, where, as_texts(tags), since=since)
        except StoreAwayError as away:
            _log.warning("%s", away)
            return None

    def end_lost_run(self, run_id: str, reason: str) -> None:
        """End a run that nobody records any more as KILLED, if it is running: it may have no spool that would.

        Args:
            run_id: Of this store.
            reason: Goes into its tag `lrfinder.ending`.
        """
        try:
            client = reopen_store(self.tracking_uri)
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_tag(run_id, "lrfinder.ending", reason)
                client.set_terminated(run_id, "KILLED")
        except StoreAwayError as away:
            _log.warning("%s", away)

    def log_links(
        self, run_ids: Sequence[str], metrics: Sequence[str], *, filter: str = ""
    ) -> dict[str, str]:
        """The pages of MLflow that compare some runs, by title; kept in this run's description.

        Where the store is no server, they are those of `mlflow ui` on this machine.

        Args:
            run_ids: The runs, the most interesting first.
            metrics: Each gets a page.
            filter: The expression of MLflow's search that the chart page shows the runs of.
        """
        where = self.experiment_id
        if where is None:
            return {}  # the store has not made the run yet
        names = [self._names["metric"].clean(name) for name in metrics]
        found = pages(ui_address(self.tracking_uri), where, run_ids, names, filter)
        self.set_tags({"mlflow.note.content": as_note(found)})
        self.links = found
        return found

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was recorded is in the store, that of children too that did not wait.

        Args:
            timeout: Seconds. None waits as long as the store takes what it is sent, and gives up
                when it has not answered for a minute.

        Raises:
            RecordError: If it is not; it says what is missing and where that is kept. `flush` may
                be called again, also after `close`.
        """
        began = time.monotonic()
        self._session.flush(self._outbox, timeout)
        while self._left:
            rest = None if timeout is None else max(0.0, began + timeout - time.monotonic())
            self._session.flush(self._left[-1], rest)
            self._left.pop()
            self._forget_delivered()

    def _forget_delivered(self) -> None:
        """Children that have ended and are in the store as a whole are nobody's to wait for."""
        self._left = [outbox for outbox in self._left if not outbox.is_delivered]

    def close(self, status: RunStatus | None = None, *, timeout: float | None = None) -> None:
        """End the run, and flush. Nothing can be recorded after it; closing again does nothing.

        Args:
            status: MLflow's status of the run from now on; None for what `lrfinder.status` says,
                else FINISHED.
            timeout: Seconds, as in `flush`.

        Raises:
            RecordError: If not all is in the store. It is kept in the spool, the end of the run
                too.
        """
        if self._closed:
            return
        status = self._ending if status is None else status
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(
                f"`status` must be 'FINISHED', 'FAILED' or 'KILLED', but got {status!r}."
            )
        if self._session.is_here:
            self._session.finish(self._outbox)
        self._put({"end": status, "ms": time.time_ns() // 1_000_000})
        self._closed = True
        self._add_row = self._refuse
        _OPEN.pop(id(self), None)
        left_to = self._left_to
        if left_to is not None and left_to._session is self._session and not left_to._closed:
            left_to._forget_delivered()
            left_to._left.append(self._outbox)
            self._session.leave(self._outbox)
            return
        try:
            self.flush(timeout)
        finally:
            self._session.close(self._outbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._close_after(error)
        except RecordError as incomplete:
            if error is None:
                # What was trained must not be lost to a server that is down: the record is kept.
                _log.error("%s", incomplete)
            else:
                error.add_note(f"Its record is not complete either: {incomplete}")

    def _close_after(self, error: BaseException | None) -> None:
        status = _status_after(error)
        if status is not None and not self._closed:
            self.set_tags({"error": f"{type(error).__name__}: {error}"})
        self.close(status, timeout=INTERRUPT_TIMEOUT if status == "KILLED" else None)

    def __reduce__(self) -> Any:
        raise TypeError(
            "A recorder belongs to one process and cannot be pickled. Give `recorder.run_id` to "
            "the other process, and make a recorder there with `parent=`."
        )


# Recorders that nobody has closed: a program that ends without `close` must not lose its record.
_OPEN: dict[int, MlflowRecorder] = {}


@atexit.register
def _close_all() -> None:
    error = getattr(sys, "last_value", None)  # what ended the program, if it was an exception
    for recorder in list(_OPEN.values()):
        if not recorder._session.is_here:
            continue  # a fork's copy
        try:
            recorder._close_after(error)
        except RecordError as incomplete:
            _log.error("%s", incomplete)


def _status_after(error: BaseException | None) -> RunStatus | None:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return None
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
