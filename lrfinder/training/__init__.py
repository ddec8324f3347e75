"""Training: epochs of the one loop, with a schedule, evaluation, a record and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lrfinder.schedules import Spec
from lrfinder.stepping import Metrics, OnStep, Replica, take_alone
from lrfinder.tasks import Loader, LossFn, StepOptions
from lrfinder.traces import Trace
from lrfinder.training.epochs import OnEpoch, StepRecorder, StopTraining, Training

__all__ = ["OnEpoch", "StepRecorder", "StopTraining", "Training", "train"]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFn,
    loader: Loader,
    *,
    num_epochs: int,
    scheduler: Spec | torch.optim.lr_scheduler.LRScheduler | None = None,
    val_loader: Loader | None = None,
    metrics: Metrics | None = None,
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
        replica=Replica(model, optimizer, loss_fn, options),
        loader=loader,
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
    take_alone(training.steps(), training.replica.answer)
    return training.trace
