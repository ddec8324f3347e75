"""Training: epochs of the one loop, with a schedule, evaluation, a record and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lrfinder.datasets.fingerprints import data_facts
from lrfinder.distributing import is_main, spread
from lrfinder.groups import learning_rates
from lrfinder.schedules import ScheduleDriver, Spec, drive
from lrfinder.stepping import OnStep, Replica, Steps, evaluate, take_alone
from lrfinder.tasks import Batch, Loader, LossFn, StepOptions, seed_everything
from lrfinder.traces import Status, Trace
from lrfinder.training.runs import Run

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


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFn,
    loader: Loader,
    *,
    num_epochs: int,
    scheduler: Spec | torch.optim.lr_scheduler.LRScheduler | None = None,
    val_loader: Loader | None = None,
    metrics: Mapping[str, Callable[[nn.Module, Batch], Tensor]] | None = None,
    recorder: StepRecorder | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    monitor: str = "val/loss",
    direction: Literal["minimize", "maximize"] = "minimize",
    patience: int | None = None,
    options: StepOptions = StepOptions(),
    seed: int | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    verbose: bool = True,
) -> Trace:
    """Train a model for a number of epochs, and return what happened.

    Each epoch: one optimizer step for each `options.accumulation` batches, then evaluation, then
    the schedule moves on (a schedule with `"interval": "step"` moves on after each step instead).
    A loss that is not finite ends the training with status "diverged": a result, not an exception.

    In processes that `torchrun` has started (see `lrfinder.process_group`) it is one training: each
    takes its share of each batch, gradients and losses are averaged, and the first process alone
    records, prints and writes checkpoints, which all must be able to read.

    Args:
        model: Any module. One in eval mode is put in train mode; the flags of a model that is in
            train mode are left as they are, so that a BatchNorm which its owner froze stays
            frozen.
        optimizer: Any torch optimizer of its parameters.
        loss_fn: `loss_fn(model, batch)` -> scalar tensor.
        loader: An iterable of batches, iterated anew each epoch. Tensors are moved to the
            optimizer's device.
        num_epochs: >= 1.
        scheduler: A spec of `lrfinder.build_scheduler`, or a torch scheduler of this optimizer
            (moved on each epoch).
        val_loader: Batches to evaluate on after each epoch.
        metrics: Name -> function `(model, batch)` -> scalar; recorded as `val/<name>`, averaged
            over samples.
        recorder: Gets `train/loss` and `lr/<group>` at every step, and what was evaluated at each
            epoch's end.
        checkpoint: A file. It is written after each epoch, and `<stem>.best<suffix>` beside it
            where `monitor` is at its best. If it exists, the training goes on from it and ends
            with the weights that it would have had.
        checkpoint_every: Also write it after each so many steps, >= 1.
        monitor: The evaluated value that decides what is best, and that ReduceLROnPlateau sees.
        direction: Whether `monitor` is better low or high.
        patience: Stop after so many epochs without a better `monitor`, >= 1; None never stops.
        options: Accumulation, clipping, autocast, scaler.
        seed: Seeds python, numpy and torch before the first step of a training that starts anew.
        on_step: Called after each step with its number and loss.
        on_epoch: Called after each epoch with its number (0-based), what was evaluated, and the
            trace. It may raise `StopTraining`.
        verbose: Print one line for each epoch, with the LR that this epoch began with.

    Returns:
        The trace: losses and LRs of each step, `val/...` at the last step of each epoch, and a
        status ("completed", "diverged", "stopped" or "pruned").

    Raises:
        ValueError: If an argument is out of its bounds, the loader is empty, or the schedule's
            spec is wrong.
        CheckpointError: If the checkpoint cannot be written, or is of another model.
    """
    training = Training(
        Replica(model, optimizer, loss_fn, options),
        loader,
        num_epochs=num_epochs,
        scheduler=scheduler,
        val_loader=val_loader,
        metrics=metrics,
        recorder=recorder,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        monitor=monitor,
        direction=direction,
        patience=patience,
        seed=seed,
        on_step=on_step,
        on_epoch=on_epoch,
        verbose=verbose,
    )
    take_alone(training.steps(), training.replica.step)
    return training.trace


class Training:
    """A training as a coroutine, which asks for its steps; `train` drives it alone.

    Args:
        replica: Who takes the steps.
        loader: This and what follows: as in `train`.
        num_epochs: As in `train`.
        scheduler: As in `train`.
        val_loader: As in `train`.
        metrics: As in `train`.
        recorder: As in `train`.
        checkpoint: As in `train`.
        checkpoint_every: As in `train`.
        monitor: As in `train`.
        direction: As in `train`.
        patience: As in `train`.
        seed: As in `train`.
        on_step: As in `train`.
        on_epoch: As in `train`.
        verbose: As in `train`.
    """

    def __init__(
        self,
        replica: Replica,
        loader: Loader,
        *,
        num_epochs: int,
        scheduler: Spec | torch.optim.lr_scheduler.LRScheduler | None = None,
        val_loader: Loader | None = None,
        metrics: Mapping[str, Callable[[nn.Module, Batch], Tensor]] | None = None,
        recorder: StepRecorder | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
        monitor: str = "val/loss",
        direction: Literal["minimize", "maximize"] = "minimize",
        patience: int | None = None,
        seed: int | None = None,
        on_step: OnStep | None = None,
        on_epoch: OnEpoch | None = None,
        verbose: bool = True,
    ) -> None:
        _check_arguments(
            num_epochs, checkpoint_every, patience, direction, has_val=val_loader is not None
        )
        if checkpoint is None and checkpoint_every is not None:
            raise ValueError(
                "`checkpoint_every` needs a `checkpoint` path, but got checkpoint=None."
            )
        driver = drive(replica.optimizer, scheduler)
        if driver.needs_metric and val_loader is None:
            raise ValueError(
                "A ReduceLROnPlateau schedule needs a `val_loader`, but got val_loader=None."
            )
        path = None if checkpoint is None else Path(checkpoint)
        self.replica = replica
        self.val_loader = val_loader
        self._loader = loader = spread(loader)
        self.run = Run(replica, driver, loader, path=path)
        self._num_epochs = num_epochs
        self._metrics = metrics
        self._recorder = recorder if is_main() else None
        self._checkpoint_every = checkpoint_every
        self._monitor = monitor
        self._direction = direction
        self._patience = patience
        self._seed = seed
        self._on_step = on_step
        self._on_epoch = on_epoch
        self._verbose = verbose and is_main()

    @property
    def trace(self) -> Trace:
        """What happened so far."""
        return self.run.trace

    def steps(self) -> Steps:
        """Ask for the steps of all epochs, as `Replica.steps` does; see `train`."""
        recorder = self._recorder
        self._begin()
        try:
            yield from self._epochs()
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
        run, recorder = self.run, self._recorder
        if not self.replica.model.training:
            self.replica.model.train()
        resumed = run.resume()
        if not resumed and self._seed is not None:
            seed_everything(self._seed)
        if recorder is not None:
            recorder.log_params(_hparams(self.replica, run.driver, self._num_epochs, self._seed))
            recorder.log_dataset(**data_facts(self._loader))
            if self.val_loader is not None:
                recorder.log_dataset(**data_facts(self.val_loader), context="validation")
            if resumed:
                recorder.set_tags({"lrfinder.resumed_at_step": len(run.trace)})

    def _epochs(self) -> Steps:
        run, monitor, patience = self.run, self._monitor, self._patience
        after_step = _after_step(run, self._recorder, self._on_step)
        while run.epoch < self._num_epochs:
            if patience is not None and run.epochs_without_best >= patience:
                raise StopTraining(f"{monitor} was not better for {patience} epochs.")
            lrs = run.epoch_lrs()
            yield from _epoch(run, after_step, self._checkpoint_every)
            if run.trace.status != "running":
                return
            values = _evaluate(run, self.val_loader, self._metrics, self._recorder)
            run.driver.after_epoch(values.get(monitor))
            if self._verbose:
                print(_epoch_line(run.epoch, self._num_epochs, lrs))
            is_best = run.is_best(values.get(monitor), self._direction)
            run.end_epoch()
            run.save(best=is_best)
            if self._on_epoch is not None:
                self._on_epoch(run.epoch - 1, values, run.trace)


def _check_arguments(
    num_epochs: int,
    checkpoint_every: int | None,
    patience: int | None,
    direction: str,
    *,
    has_val: bool,
) -> None:
    for name, value in (
        ("num_epochs", num_epochs),
        ("checkpoint_every", checkpoint_every),
        ("patience", patience),
    ):
        if value is not None and value < 1:
            raise ValueError(f"`{name} >= 1` must hold, but got {name}={value}.")
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"`direction` must be 'minimize' or 'maximize', but got {direction!r}.")
    if patience is not None and not has_val:
        raise ValueError("`patience` needs a `val_loader`, but got val_loader=None.")


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


def _after_step(run: Run, recorder: StepRecorder | None, on_step: OnStep | None) -> OnStep | None:
    """What happens after each step, as one function; None where nothing does."""
    actions: list[OnStep] = []
    if recorder is not None:
        log_step, optimizer = recorder.log_step, run.replica.optimizer
        actions.append(lambda step, loss: log_step(step, loss, optimizer))
    if on_step is not None:
        actions.append(on_step)
    if not actions:
        return None

    def after_step(step: int, loss: Tensor) -> None:
        for action in actions:
            action(step, loss)

    return after_step


def _evaluate(
    run: Run,
    val_loader: Iterable[Batch] | None,
    metrics: Mapping[str, Callable[[nn.Module, Batch], Tensor]] | None,
    recorder: StepRecorder | None,
) -> dict[str, float]:
    """Measure after an epoch, and record it at the epoch's last step."""
    replica, trace = run.replica, run.trace
    values: dict[str, float] = {}
    if val_loader is not None:
        dtype = replica.options.autocast
        values = evaluate(
            replica.model, replica.loss_fn, val_loader, metrics=metrics, autocast_dtype=dtype
        )
    step = len(trace) - 1
    for name, value in values.items():
        trace.add_metric(name, step, value)
    if recorder is not None:
        recorder.log_metrics(step, {**values, "epoch": float(run.epoch + 1)})
    return values


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
