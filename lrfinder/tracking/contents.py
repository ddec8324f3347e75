"""Contents: what a run is told: metrics, params, tags, artifacts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lrfinder.delivering.drawing import FIGURE, RAW, TABLE
from lrfinder.delivering.stores import RecordError
from lrfinder.groups import group_names, lr_groups, shared_lrs
from lrfinder.traces import Trace
from lrfinder.tracking.artifacts import (
    CHART_POINTS,
    check_artifact_name,
    figure_artifact,
    json_artifact,
    model_artifact,
    trace_file,
    trace_summary,
)
from lrfinder.tracking.names import (
    MAX_PARAM,
    Names,
    as_text,
    as_texts,
    cut,
    flatten,
    jsonable,
)
from lrfinder.tracking.outboxes import MAX_STEP, Followed, Outbox, checked_step, scalar_now
from lrfinder.tracking.recorders import RunStatus
from lrfinder.tracking.watching import WATCHABLE, Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OnStep: TypeAlias = Callable[[int, Tensor | float], None]
# How a run ends whose training ended so: results, and no exceptions.
ENDINGS: dict[str, RunStatus] = {"diverged": "FAILED", "pruned": "KILLED"}


class Contents:
    """What a run is told, on its way into an outbox.

    Args:
        outbox: Of the run.
        params: Those that the run has already.
    """

    def __init__(self, outbox: Outbox, params: Mapping[str, str]) -> None:
        self._outbox = outbox
        self._params = dict(params)
        self._names: dict[str, Names] = {kind: Names() for kind in ("metric", "param", "tag")}
        self._layouts: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._watches: dict[int, Watch] = {}
        self._optimizer: torch.optim.Optimizer | None = None  # that of the last step, and its keys
        self._group_count = 0
        self._owners: list[str] | None = None
        self._keys_of_step: tuple[str, ...] = ()
        self._add_row = outbox.rows.append
        self._ending: RunStatus = "FINISHED"
        self._closed = False

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
            optimizer: Its groups are named as by `lrfinder.group_names`.
            metrics: More scalars of this step, under the names given.
        """
        groups = optimizer.param_groups
        if metrics or self._watches or optimizer is not self._optimizer:
            keys = self._step_keys(optimizer, metrics)
        elif len(groups) == self._group_count:
            keys = self._keys_of_step
        else:
            keys = self._step_keys(optimizer, metrics)
        if type(step) is not int or not 0 <= step < MAX_STEP:
            step = checked_step(step)
        # Spelled out, since between two steps of a training nothing of this is in a CPU's cache,
        # and each call costs microseconds.
        values = [loss if type(loss) is float else scalar_now(loss)]
        lrs = [group["lr"] for group in groups]
        if self._owners is not None:
            lrs = shared_lrs(groups, self._owners)
        for lr in lrs:
            values.append(lr if type(lr) is float else scalar_now(lr))
        if metrics:
            values += [scalar_now(value) for value in metrics.values()]
        self._add_row((time.time_ns(), step, keys, *values))

    @contextmanager
    def following(
        self, trace: Trace, optimizer: torch.optim.Optimizer
    ) -> Iterator[Callable[[], OnStep | None]]:
        """In here the steps of a trace are recorded as `log_step` does, but read by the thread that writes.

        Args:
            trace: Of the groups of the optimizer.
            optimizer: As of `log_step`.

        Yields:
            A function that says now and then, as before each epoch, what is to be called with the
            number and the loss of each step from then on; None where nothing need be.
        """
        followed: Followed | None = None

        def hook() -> OnStep | None:
            nonlocal followed
            self._check_open()
            # An accelerator's losses come to the trace late.
            tensors = (p for group in optimizer.param_groups for p in group["params"])
            if not self._watches and all(tensor.is_cpu for tensor in tensors):
                if followed is None:
                    keys = self._keys(["train/loss", *[f"lr/{n}" for n in trace.group_names]])
                    followed = self._outbox.follow(trace, keys)
                return None
            if followed is not None:
                followed.end()
                followed = None
            return lambda step, loss: self.log_step(step, loss, optimizer)

        try:
            yield hook
        finally:
            if followed is not None:
                followed.end()

    def _step_keys(
        self, optimizer: torch.optim.Optimizer, metrics: dict[str, Tensor | float]
    ) -> tuple[str, ...]:
        """The names of a row's values; what is watched is added to the metrics."""
        if (watch := self._watches.get(id(optimizer))) is not None:
            metrics |= watch.take()
        owners = lr_groups(optimizer)
        names = group_names(optimizer)
        # None where each param group has an LR of its own, which is quicker.
        self._owners = owners if len(names) < len(owners) else None
        keys = self._keys(["train/loss", *[f"lr/{name}" for name in names], *metrics])
        if not metrics:
            self._optimizer, self._group_count = optimizer, len(owners)
            self._keys_of_step = keys
        return keys

    def watch(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 10,
        what: Sequence[str] = WATCHABLE,
    ) -> None:
        """Let `log_step` record more of each group of this optimizer, at every so many steps.

        `grad_norm/<group>`, `update_ratio/<group>` (the size of a step over that of the weights),
        `momentum/<group>` and `weight_decay/<group>`; their laws are those of
        `lrfinder.tracking.watching.Watch`. Watching again replaces what was asked for before. What
        it costs is measured by `benchmarks.records`.

        Args:
            optimizer: The one that `log_step` is given.
            every: Steps from one measurement to the next, >= 1.
            what: Which of the four.

        Raises:
            ValueError: If an argument is out of its bounds.
        """
        watch = Watch(optimizer, every=every, what=what)
        if (before := self._watches.pop(id(optimizer), None)) is not None:
            before.remove()
        self._watches[id(optimizer)] = watch

    def log_metrics(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Record values at an optimizer step, as `val/loss` at an epoch's end."""
        keys = self._keys([*metrics])
        values = [v if type(v) is float else scalar_now(v) for v in metrics.values()]
        self._add_row((time.time_ns(), checked_step(step), keys, *values))

    def _keys(self, names: list[str]) -> tuple[str, ...]:
        if (known := self._layouts.get(tuple(names))) is not None:
            return known
        if len(set(names)) != len(names):
            raise ValueError(
                f"Each metric of a step must have a name of its own, but got {names}."
            )
        found = self._layouts[tuple(names)] = tuple(map(self._names["metric"].clean, names))
        return found

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
        self._put({"params": new})
        for name in new:
            if flat[name] != short[name]:
                self.log_text(flat[name], f"params/{name.removeprefix('cfg/')}.txt")

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; the last value of each stands. More than 5000 characters are visibly cut.

        `lrfinder.status`, which `train` sets, says how the run ends if nothing else does:
        "diverged" as FAILED, "pruned" as KILLED, any other as FINISHED.
        """
        if "lrfinder.status" in tags:
            self._ending = ENDINGS.get(str(tags["lrfinder.status"]), "FINISHED")
        clean = self._names["tag"].clean
        self._put({"tags": {clean(name): text for name, text in as_texts(tags).items()}})

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a matplotlib figure, drawn now, in the format of the name's suffix (`.png`)."""
        self._put_artifacts(figure_artifact(figure, name))

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as an artifact of just this name."""
        self._put_artifacts({check_artifact_name(name): text.encode()})

    def log_dict(self, value: Any, name: str) -> None:
        """Keep a JSON-able value as an artifact; non-finite numbers as text, as 'nan'."""
        self._put_artifacts(json_artifact(value, name))

    def log_file(self, path: str | Path, name: str | None = None) -> None:
        """Keep a file as an artifact, as a checkpoint, under its own name or another.

        It is kept as it is now, by a link where that can be: so replace it later, as checkpoints
        are, and do not write into it.

        Raises:
            ValueError: If there is no such file, or the name is no relative path.
        """
        if not Path(path).is_file():
            raise ValueError(f"`path` must be a file that exists, but got {str(path)!r}.")
        self._check_open()
        self._outbox.put_file(Path(path), check_artifact_name(name or Path(path).name))

    def log_model(self, model: torch.nn.Module, name: str = "model.pt") -> None:
        """Keep the model's `state_dict` as an artifact that `torch.load` reads."""
        self._put_artifacts(model_artifact(model, name))

    def log_dataset(
        self,
        name: str,
        *,
        digest: str,
        profile: Mapping[str, Any] | None = None,
        source: str = "",
        context: str = "training",
    ) -> None:
        """Record which data are used, in MLflow's list of data sets.

        Args:
            name: For people.
            digest: Equal for equal data, at most 36 characters.
            profile: More facts, JSON-able.
            source: Where they come from.
            context: What for.
        """
        if len(digest) > 36:
            raise ValueError(f"`digest` must have at most 36 characters, but got {digest!r}.")
        values = {
            "digest": digest,
            "source_type": "local",
            "source": json.dumps({"uri": source}),
            "profile": json.dumps(jsonable(profile or {})),
            "context": context,
        }
        self._put({"inputs": {name: values}})

    def log_trace(self, trace: Trace, name: str | None = None) -> None:
        """Keep a whole trace; MLflow's charts show some 320 points of it and may miss a spike.

        Artifacts: `traces/<name>.parquet` is `trace.to_frame()`, `traces/<name>.json` its status
        in short, and of a trace of more than 320 steps `traces/<name>.svg` is a figure of each.
        """
        place = check_artifact_name(f"traces/{name or trace.name or 'trace'}")
        made = [TABLE, FIGURE] if len(trace) > CHART_POINTS else [TABLE]
        self._check_open()
        # Made by who delivers: the table takes a millisecond, and the figure a tenth of a second.
        self._outbox.put_artifacts(
            [place + suffix for suffix in made], trace_file(trace), place + RAW
        )
        self._put_artifacts(json_artifact(trace_summary(trace), f"{place}.json"))

    def _check_open(self) -> None:
        if self._closed:
            self._refuse()

    def _put(self, entry: dict[str, Any]) -> None:
        self._check_open()
        self._outbox.put(entry)

    def _put_artifacts(self, artifacts: Mapping[str, bytes]) -> None:
        self._check_open()
        for name, data in artifacts.items():
            self._outbox.put_artifacts([name], data)

    def _refuse(self, row: Any = None) -> None:
        raise RecordError(
            f"A closed recorder takes no more, but that of {self._outbox.spool.path} was closed. "
            "Make a new one."
        )
