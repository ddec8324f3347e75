"""Transformers: a range test of a `Trainer`, and a record of each group's learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import lrfinder
from lrfinder.integrations.accelerate import check_single, plain_loader, step_options


def range_test(trainer: Trainer, *, one_lr: bool = False, **settings: Any) -> lrfinder.RangeTest:
    """A range test of the training that `trainer.train()` would begin.

    The optimizer is the trainer's, or the one that it would make; batches come from its data set,
    collator and sampler, the loss from its `compute_loss`. Precision, accumulation and clipping are
    those of its arguments, and `planned_steps` is as many as it will take. Nothing is trained:
    model, optimizer, trainer and random states are left bit for bit as they are.

    Args:
        trainer: Of one process on one device.
        one_lr: Whether all param groups are one group, "all": a Trainer makes two, which differ in
            their weight decay alone. Groups of an optimizer of your own can share LRs by their
            "lr_group" (`lrfinder.split_decay`).
        **settings: The others of `lrfinder.range_test`.

    Returns:
        As `lrfinder.range_test`. Take its LR by `trainer.args.learning_rate = ...`, which the
        schedule begins from, or those of several groups by
        `result.suggestion.apply(trainer.create_optimizer())`.

    Raises:
        TypeError: If it is no Trainer.
        ValueError: If there are several devices, no training data, or parameters that cannot be
            trained; and as `lrfinder.range_test`.

    Batches of one step are averaged with equal weights; a Trainer weighs them by their tokens.
    """
    given: Any = trainer  # which may be anything, whatever its annotation says
    if not isinstance(given, Trainer):
        raise TypeError(
            f"`trainer` must be a transformers.Trainer, but got {type(given).__name__}. A model and "
            "an optimizer of your own are tested by `lrfinder.range_test`."
        )
    args = trainer.args
    check_single(trainer.accelerator)
    if args.n_gpu > 1:
        raise ValueError(
            f"A range test must run on one device, but the Trainer has {args.n_gpu}. Set "
            "CUDA_VISIBLE_DEVICES=0, and train with the LRs that it suggests."
        )
    if trainer.model is None or trainer.train_dataset is None:
        raise ValueError(
            "A range test must have a model and training data, but the Trainer lacks one. Give it "
            "a `model` and a `train_dataset`."
        )
    with _as_it_is(trainer), _optimizer_of(trainer, one_lr) as optimizer:
        loader = plain_loader(trainer.get_train_dataloader())
        settings.setdefault("planned_steps", _planned_steps(args, loader))
        return lrfinder.range_test(
            trainer.model,
            optimizer,
            _Loss(trainer),
            loader,
            options=step_options(
                trainer.accelerator,
                accumulation=args.gradient_accumulation_steps,
                clip_norm=args.max_grad_norm or None,
            ),
            **settings,
        )


class GroupLRCallback(TrainerCallback):
    """Records the LR that each optimizer step used, for each group by its name, and what the Trainer logs.

    `lr/<group>` at each step, on the axis of optimizer steps, 0-based; `train/loss` and `val/<metric>`
    when the Trainer logs them.

    Args:
        recorder: An `lrfinder.MlflowRecorder`; whoever made it closes it.

    Example:
        `Trainer(..., callbacks=[GroupLRCallback(recorder)])`
    """

    def __init__(self, recorder: lrfinder.Recorder) -> None:
        self.recorder = recorder

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Record each group's LR before the step that uses it."""
        lrs = lrfinder.learning_rates(kwargs["optimizer"])
        self.recorder.log_metrics(
            state.global_step, {f"lr/{name}": lr for name, lr in lrs.items()}
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record the losses and metrics of the Trainer's log at the last step that was taken."""
        step = max(0, state.global_step - 1)
        values = {}
        for key, value in (logs or {}).items():
            if key == "loss":
                values["train/loss"] = float(value)
            elif key.startswith("eval_"):
                values[f"val/{key.removeprefix('eval_')}"] = float(value)
        if values:
            self.recorder.log_metrics(step, values)


class _Loss:
    """`loss_fn(model, batch)` of a Trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        # A new dict, since `compute_loss` takes things out of it.
        inputs = dict(batch) if isinstance(batch, Mapping) else batch
        loss = self._trainer.compute_loss(model, inputs)
        assert isinstance(loss, Tensor)  # a tuple where outputs are asked for
        return loss


@contextmanager
def _optimizer_of(trainer: Trainer, one_lr: bool) -> Iterator[torch.optim.Optimizer]:
    """The trainer's optimizer, or one that it makes and forgets again; with one LR group if asked."""
    made = trainer.optimizer is None
    try:
        optimizer = trainer.create_optimizer()
        optimizer = getattr(optimizer, "optimizer", optimizer)  # not Accelerate's wrapper
        kept = [dict(group) for group in optimizer.param_groups]
        for group in optimizer.param_groups if one_lr else ():
            group["lr_group"] = "all"
        try:
            yield optimizer
        finally:
            for group, before in zip(optimizer.param_groups, kept, strict=True):
                group.clear()
                group.update(before)
    finally:
        if made:
            trainer.optimizer = None


@contextmanager
def _as_it_is(trainer: Trainer) -> Iterator[None]:
    """The accelerator holds each loader that the Trainer makes: this one is forgotten."""
    held = trainer.accelerator._dataloaders
    count = len(held)
    try:
        yield
    finally:
        del held[count:]


def _planned_steps(args: TrainingArguments, loader: Any) -> int | None:
    if args.max_steps > 0:
        return int(args.max_steps)
    if not isinstance(loader, Sized):
        return None
    steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
    return max(1, math.ceil(args.num_train_epochs * steps))
