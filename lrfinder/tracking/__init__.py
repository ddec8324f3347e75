"""Tracking: what a training does goes to MLflow, and the training does not wait for it.

MLflow has the last word here on runs, metrics, params, tags and artifacts. Recorders use its
client with explicit run ids and never its global active run, since many runs are open at once.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from lrfinder.groups import group_names
from lrfinder.traces import Trace
from lrfinder.tracking.artifacts import (
    check_artifact_name,
    figure_artifact,
    json_artifact,
    trace_artifacts,
)
from lrfinder.tracking.names import (
    MAX_PARAM,
    Names,
    as_text,
    as_texts,
    cut,
    flatten,
)
from lrfinder.tracking.outboxes import MAX_STEP, Outbox, checked_step, scalar_now
from lrfinder.tracking.recorders import NullRecorder, Recorder, RunStatus
from lrfinder.tracking.sending import Sender
from lrfinder.tracking.stores import (
    RecordError,
    adoption_tags,
    check_store,
    create_run,
    experiment_id,
    open_store,
    take_adoptable,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLOSE_TIMEOUT = 60.0  # seconds that the end of a run waits for its store

__all__ = ["MlflowRecorder", "NullRecorder", "RecordError", "Recorder"]


class MlflowRecorder:
    """A run of MLflow: loss and LRs at every optimizer step, and whatever else it is told.

    Law: `log_step` puts one row into a queue in memory, with the time of that moment; a thread
    sends the queue about every second. A row leaves the queue when the store has acknowledged it,
    and sending one twice is harmless. The queue has no bound: where the store stays away it grows
    by some 300 bytes a step, and the log warns once. What could not be sent is said by `flush` and
    `close`, never by a training step.

    Under `mlflow run` the first recorder adopts the run that MLflow made: its id is taken out of
    the environment, so that no later recorder and no worker process adopts it too. That run keeps
    its experiment and its name; an `experiment` or `run_name` that differs becomes the tag
    `lrfinder.experiment` or `lrfinder.run_name`.

    Non-finite values are recorded as NaN (MLflow would make 1.8e308 of an infinity), and the tag
    `<metric>.nonfinite` holds the first step and the value. Characters in names that MLflow
    refuses become `_` (`lrfinder.tracking.names.clean_name`).

    The run ends with the `with` block: FINISHED; FAILED at an exception, with its text in the tag
    `error`; KILLED at a KeyboardInterrupt. A process that ends without it flushes and ends the run
    too, unless it is killed.

    Args:
        experiment: Its name, made if there is none; None for the one of MLflow's environment, else
            "Default".
        run_name: MLflow makes one up for None.
        tracking_uri: None for `mlflow.get_tracking_uri()`.
        parent: The id of a run of the same store that this one is shown below.
        tags: More tags of the run, beside MLflow's own (user, source, git commit).

    Raises:
        RecordError: If the store cannot be used; within seconds.

    Example:
        >>> import tempfile
        >>> store = f"sqlite:///{tempfile.mkdtemp()}/mlflow.db"
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=0.1)
        >>> with MlflowRecorder("demo", tracking_uri=store) as recorder:
        ...     for step in range(3):
        ...         recorder.log_step(step, weight.square().sum(), optimizer)
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        parent: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        client = open_store(tracking_uri)
        own_tags = as_texts(tags or {})
        params: dict[str, str] = {}
        adopted = None if parent is not None else take_adoptable(tracking_uri)
        try:
            if adopted is None:
                where = experiment_id(client, experiment)
                run = create_run(client, where, run_name, own_tags, parent=parent)
            else:
                run = client.get_run(adopted)
                params = dict(run.data.params)
                own_tags |= adoption_tags(client, run, experiment, run_name)
        except RecordError:
            raise
        except Exception as error:
            raise RecordError(
                f"A run must be made in the store {client.tracking_uri!r}, but it answered: "
                f"{error}"
            ) from error
        self._start(Sender(client), run, params)
        if adopted is not None and own_tags:
            self.set_tags(own_tags)

    def _start(self, sender: Sender, run: Any, params: dict[str, str]) -> None:
        self._sender = sender
        self._run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.run_name: str = run.info.run_name
        self._params = params
        self._names: dict[str, Names] = {kind: Names() for kind in ("metric", "param", "tag")}
        self._layouts: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._outbox: Outbox = sender.open(self._run_id)
        self._add_row = self._outbox.rows.append
        self._closed = False
        _OPEN[id(self)] = self

    @property
    def run_id(self) -> str:
        """The run's id in its store."""
        return self._run_id

    @property
    def tracking_uri(self) -> str:
        """The store's URI."""
        return str(self._sender.client.tracking_uri)

    # -- metrics ----------------------------------------------------------------------------------

    def log_step(
        self,
        step: int,
        loss: Tensor | float,
        optimizer: torch.optim.Optimizer,
        **metrics: Tensor | float,
    ) -> None:
        """Record an optimizer step, in microseconds: `train/loss`, `lr/<group>` and metrics.

        Call it after `optimizer.step()` and before the scheduler moves on, so that the LRs are
        those that the step used. Tensors are copied as they are now; those on an accelerator are
        read later, by the sending thread.

        Args:
            step: Number of the optimizer step, >= 0.
            loss: Scalar.
            optimizer: Its groups are named by their "name", else `group_<index>`.
            metrics: More scalars of this step, under the names given.
        """
        groups = optimizer.param_groups
        layout = (len(groups), *[group.get("name") for group in groups], *metrics)
        keys = self._layouts.get(layout)
        if keys is None:
            names = ["train/loss", *[f"lr/{name}" for name in group_names(optimizer)], *metrics]
            keys = self._layouts[layout] = self._keys(names)
        values = [scalar_now(loss), *[scalar_now(group["lr"]) for group in groups]]
        if metrics:
            values += [scalar_now(value) for value in metrics.values()]
        if type(step) is not int or not 0 <= step < MAX_STEP:
            step = checked_step(step)
        self._add_row((time.time_ns() // 1_000_000, step, keys, values))

    def log_metrics(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Record values at an optimizer step, as `val/loss` at an epoch's end."""
        keys = self._keys(list(metrics))
        values = [scalar_now(value) for value in metrics.values()]
        self._add_row((time.time_ns() // 1_000_000, checked_step(step), keys, values))

    def _keys(self, names: list[str]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError(
                f"Each metric of a step must have a name of its own, but got {names}."
            )
        return tuple(self._names["metric"].clean(name) for name in names)

    # -- params, tags, artifacts ------------------------------------------------------------------

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record chosen values as `cfg/<name>`; nested mappings are flattened with `/`.

        The prefix keeps them apart from what `mlflow run` logs, which is the command line with its
        quotes. A value of more than 6000 characters is cut there, and kept whole as the artifact
        `params/<name>.txt`. The same value may be logged again.

        Raises:
            ValueError: If a name has another value already: MLflow's params cannot be changed.
        """
        flat = {
            self._names["param"].clean(name): as_text(value)
            for name, value in flatten(params, "cfg").items()
        }
        short = {name: cut(text, MAX_PARAM) for name, text in flat.items()}
        for name, text in short.items():
            if self._params.get(name, text) != text:
                raise ValueError(
                    f"A param of a run must keep its value, but {name!r} is "
                    f"{cut(self._params[name], 200)!r} and got "
                    f"{cut(text, 200)!r}. Record another training in a run of its own: "
                    "`recorder.child(...)`."
                )
        new = {name: text for name, text in short.items() if name not in self._params}
        self._params |= new
        self._put("params", new)
        for name in new:
            if flat[name] != short[name]:
                self.log_text(flat[name], f"params/{name.removeprefix('cfg/')}.txt")

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; the last value of each stands. More than 5000 characters are visibly cut."""
        clean = self._names["tag"].clean
        self._put("tags", {clean(name): text for name, text in as_texts(tags).items()})

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a matplotlib figure, drawn now, in the format of the name's suffix (`.png`)."""
        self._put("artifacts", figure_artifact(figure, name))

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as an artifact of just this name."""
        self._put("artifacts", {check_artifact_name(name): text.encode()})

    def log_dict(self, value: Any, name: str) -> None:
        """Keep a JSON-able value as an artifact; non-finite numbers as text, as 'nan'."""
        self._put("artifacts", json_artifact(value, name))

    def log_trace(self, trace: Trace, name: str | None = None) -> None:
        """Keep a whole trace; MLflow's charts show some 320 points of it and may miss a spike.

        Artifacts: `traces/<name>.parquet` is `trace.to_frame()`, and `traces/<name>.json` its
        status in short.
        """
        name = name or trace.name or "trace"
        self._put("artifacts", trace_artifacts(trace, f"traces/{name}"))

    def _put(self, field: str, values: dict[str, Any]) -> None:
        if self._closed:
            self._refuse()
        self._outbox.put(field, values)

    # -- the run ----------------------------------------------------------------------------------

    def child(self, run_name: str | None = None, **tags: Any) -> MlflowRecorder:
        """A recorder of a new run below this one, in the same store and experiment.

        It has the tags `mlflow.parentRunId`, which MLflow's pages nest by, and `lrfinder.parent`,
        both this run's id. This call waits for the store.

        Raises:
            RecordError: If the store cannot be used.
        """
        client = self._sender.client
        check_store(self.tracking_uri)
        try:
            run = create_run(
                client, self.experiment_id, run_name, as_texts(tags), parent=self.run_id
            )
        except Exception as error:
            raise RecordError(
                f"A child of run {self.run_id} must be made in the store {self.tracking_uri!r}, "
                f"but it answered: {error}"
            ) from error
        child = MlflowRecorder.__new__(MlflowRecorder)
        child._start(self._sender, run, {})
        return child

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was recorded is in the store.

        Args:
            timeout: Seconds, or None for as long as the store takes to answer or to fail.

        Raises:
            RecordError: If it is not; it says what is missing, which is kept: `flush` may be
                called again.
        """
        if not self._closed:
            self._sender.flush(self._outbox, timeout)

    def close(
        self, status: RunStatus = "FINISHED", *, timeout: float | None = CLOSE_TIMEOUT
    ) -> None:
        """Flush, and end the run. Nothing can be recorded after it; closing again does nothing.

        Args:
            status: MLflow's status of the run from now on.
            timeout: Seconds, as in `flush`.

        Raises:
            RecordError: If not all is in the store; the recorder stays open, and `close` may be
                called again.
        """
        if self._closed:
            return
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(
                f"`status` must be 'FINISHED', 'FAILED' or 'KILLED', but got {status!r}."
            )
        self._outbox.status = status
        self._add_row = self._refuse
        try:
            self._sender.flush(self._outbox, timeout)
        except BaseException:
            self._add_row = self._outbox.rows.append
            raise
        self._closed = True
        self._sender.close(self._outbox)
        _OPEN.pop(id(self), None)

    def _refuse(self, row: Any = None) -> None:
        raise RecordError(
            f"A closed recorder takes no more, but run {self.run_id} was closed. Make a new one."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self._close_after(error)
        except RecordError as lost:
            error.add_note(f"Its record is not complete either: {lost}")

    def _close_after(self, error: BaseException) -> None:
        status = _status_after(error)
        if status != "FINISHED":
            self.set_tags({"error": f"{type(error).__name__}: {error}"})
        self.close(status)

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
        if not recorder._sender.is_here:
            continue  # a fork's copy
        try:
            if error is None:
                recorder.close()
            else:
                recorder._close_after(error)
        except RecordError as lost:
            print(f"lrfinder: {lost}", file=sys.stderr)


def _status_after(error: BaseException) -> RunStatus:
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "FINISHED"
    return "FAILED"
