"""Epochs: a training as a coroutine: its steps, what is measured and recorded after them, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lrfinder.datasets.fingerprints import data_facts
from lrfinder.distributing import is_main, spread
from lrfinder.groups import learning_rates
from lrfinder.schedules import ScheduleDriver, Spec, drive
from lrfinder.stepping import Evaluation, Metrics, OnStep, Replica, Steps
from lrfinder.tasks import Loader, seed_everything
from lrfinder.traces import Status, Trace
from lrfinder.training.runs import Run

RecordStep = Callable[[int, Tensor | float], None]
OnEpoch = Callable[[int, Mapping[str, float], Trace], None]


class StepRecorder(Protocol):
    """What a training needs of a recorder; `lrfinder.MlflowRecorder` and `lrfinder.NullRecorder` have it."""

    def log_params(self, params: Mapping[str, Any]) -> None: ...  # noqa: D102
    def log_step(  # noqa: D102
        self, step: int, loss: Tensor | float, optimizer: torch.optim.Optimizer, **metrics: Any
    ) -> None: ...
    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...  # noqa: D102
    def log_trace(self, trace: Trace, name: str = ...) -> None: ...  # noqa: D102
    def set_tags(self, tags: Mapping[str, Any]) -> None: ...  # noqa: D102
    def log_dataset(  # noqa: D102
        self,
        name: str,
        *,
        digest: str,
        profile: Mapping[str, Any] | None = ...,
        context: str = ...,
    ) -> None: ...


@runtime_checkable
class TraceRecorder(Protocol):
    """A recorder that reads the steps of a training from its trace, so that no call is made for each."""

    def following(
        self, trace: Trace, optimizer: torch.optim.Optimizer
    ) -> AbstractContextManager[Callable[[], RecordStep | None]]:
        """As `lrfinder.MlflowRecorder.following`."""


class StopTraining(Exception):  # noqa: N818 - a request, as StopIteration is one, and no error
    """Raised by `on_epoch` to end a training; it is a result, and `train` returns its trace.

    Args:
        message: Why, in words.
        status: The status of the trace: "stopped" or "pruned".
    """

    def __init__(
        self, message: str = "", *, status: Literal["stopped", "pruned"] = "stopped"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status: Status = status


@dataclass(kw_only=True, eq=False)
class Training:
    """A training as a coroutine, which asks for its steps; `train` drives it alone.

    Args:
        replica: Who takes the steps. All else is as in `train`.
    """

    replica: Replica
    loader: Loader
    num_epochs: int
    scheduler: Spec | torch.optim.lr_scheduler.LRScheduler | None = None
    val_loader: Loader | None = None
    metrics: Metrics | None = None
    recorder: StepRecorder | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None
    monitor: str = "val/loss"
    direction: Literal["minimize", "maximize"] = "minimize"
    patience: int | None = None
    seed: int | None = None
    on_step: OnStep | None = None
    on_epoch: OnEpoch | None = None
    verbose: bool = True

    def __post_init__(self) -> None:
        self._check()
        driver = drive(self.replica.optimizer, self.scheduler)
        if driver.needs_metric and self.val_loader is None:
            raise ValueError(
                "A ReduceLROnPlateau schedule needs a `val_loader`, but got val_loader=None."
            )
        path = None if self.checkpoint is None else Path(self.checkpoint)
        self.loader = spread(self.loader)
        self.run = Run(self.replica, driver, self.loader, path=path)
        if not is_main():
            self.recorder, self.verbose = None, False

    def _check(self) -> None:
        for name in ("num_epochs", "checkpoint_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name} >= 1` must hold, but got {name}={value}.")
        if self.direction not in ("minimize", "maximize"):
            raise ValueError(
                f"`direction` must be 'minimize' or 'maximize', but got {self.direction!r}."
            )
        if self.patience is not None and self.val_loader is None:
            raise ValueError("`patience` needs a `val_loader`, but got val_loader=None.")
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise ValueError(
                "`checkpoint_every` needs a `checkpoint` path, but got checkpoint=None."
            )

    @property
    def trace(self) -> Trace:
        """What happened so far."""
        return self.run.trace

    def steps(self) -> Steps:
        """Ask for the steps of all epochs, as `Replica.steps` does; see `train`."""
        recorder = self.recorder
        self._begin()
        try:
            with self._recorded() as hook:
                yield from self._epochs(hook)
            if self.trace.status == "running":
                self.trace.set_status("completed")
        except StopTraining as stop:
            self.trace.set_status(stop.status, stop.message)
        except BaseException as error:
            self.trace.set_status(
                "interrupted" if isinstance(error, KeyboardInterrupt) else "failed",
                f"{type(error).__name__}: {error}",
            )
            raise
        finally:
            if recorder is not None:
                trace = self.trace
                recorder.set_tags(
                    {"lrfinder.status": trace.status, "lrfinder.message": trace.message}
                )
                recorder.log_trace(trace)

    def _begin(self) -> None:
        run, recorder = self.run, self.recorder
        if not self.replica.model.training:
            self.replica.model.train()
        resumed = run.resume()
        if not resumed and self.seed is not None:
            seed_everything(self.seed)
        if recorder is not None:
            recorder.log_params(_hparams(self.replica, run.driver, self.num_epochs, self.seed))
            recorder.log_dataset(**data_facts(self.loader))
            if self.val_loader is not None:
                recorder.log_dataset(**data_facts(self.val_loader), context="validation")
            if resumed:
                recorder.set_tags({"lrfinder.resumed_at_step": len(run.trace)})

    def _recorded(self) -> AbstractContextManager[Callable[[], RecordStep | None]]:
        """In here each step is recorded; it gives what says before each epoch what is called for that."""
        recorder, optimizer = self.recorder, self.replica.optimizer
        if recorder is None:
            return nullcontext(lambda: None)
        if isinstance(recorder, TraceRecorder):
            return recorder.following(self.trace, optimizer)
        return nullcontext(lambda: lambda step, loss: recorder.log_step(step, loss, optimizer))

    def _epochs(self, hook: Callable[[], RecordStep | None]) -> Steps:
        run, monitor, patience = self.run, self.monitor, self.patience
        while run.epoch < self.num_epochs:
            if patience is not None and run.epochs_without_best >= patience:
                raise StopTraining(f"{monitor} was not better for {patience} epochs.")
            lrs = run.epoch_lrs()
            after_step = _both(hook(), self.on_step)
            yield from _epoch(run, after_step, self.checkpoint_every)
            if run.trace.status != "running":
                return
            values: dict[str, float] = {}
            if self.val_loader is not None:
                values = yield Evaluation(self.val_loader, self.metrics)
            _keep(run, values, self.recorder)
            run.driver.after_epoch(values.get(monitor))
            if self.verbose:
                print(_epoch_line(run.epoch, self.num_epochs, lrs))
            is_best = run.is_best(values.get(monitor), self.direction)
            run.end_epoch()
            run.save(best=is_best)
            if self.on_epoch is not None:
                self.on_epoch(run.epoch - 1, values, run.trace)


def _epoch(run: Run, after_step: OnStep | None, checkpoint_every: int | None) -> Steps:
    """The rest of one epoch, with a checkpoint after each `checkpoint_every` steps."""
    trace, batches = run.trace, run.batches()
    while True:
        before = len(trace)
        yield from run.replica.steps(
            batches,
            trace=trace,
            schedule=run.driver,
            num_steps=checkpoint_every,
            on_step=after_step,
        )
        taken = len(trace) - before
        if checkpoint_every is None or taken < checkpoint_every or trace.status != "running":
            break
        run.save()
    if len(trace) == 0:
        raise ValueError("The loader must give at least one batch, but it is empty.")


def _both(record: RecordStep | None, on_step: OnStep | None) -> OnStep | None:
    """What happens after each step, as one function; None where nothing does."""
    if record is None or on_step is None:
        return record or on_step

    def after_step(step: int, loss: Tensor) -> None:
        record(step, loss)
        on_step(step, loss)

    return after_step


def _keep(run: Run, values: Mapping[str, float], recorder: StepRecorder | None) -> None:
    """Record what was measured after an epoch, at the epoch's last step."""
    trace = run.trace
    step = len(trace) - 1
    for name, value in values.items():
        trace.add_metric(name, step, value)
    if recorder is not None:
        recorder.log_metrics(step, {**values, "epoch": float(run.epoch + 1)})


def _epoch_line(epoch: int, num_epochs: int, lrs: Mapping[str, float]) -> str:
    values = [f"{lr:.6f}" if len(lrs) == 1 else f"{name} {lr:.6f}" for name, lr in lrs.items()]
    return f"Epoch [{epoch + 1}/{num_epochs}], Learning Rate: {', '.join(values)}"


def _hparams(
    replica: Replica, driver: ScheduleDriver, num_epochs: int, seed: int | None
) -> dict[str, Any]:
    options = replica.options
    return {
        "lrs": learning_rates(replica.optimizer),
        "optimizer": type(replica.optimizer).__name__,
        "schedule": driver.spec,
        "num_epochs": num_epochs,
        "seed": seed,
        "accumulation": options.accumulation,
        "clip_norm": options.clip_norm,
        "autocast": None if options.autocast is None else str(options.autocast),
    }
