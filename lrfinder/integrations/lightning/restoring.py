"""Restoring: a trainer and a module as they were, and schedules that start from other learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

import lrfinder


@contextmanager
def at_base_lrs(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The LRs from which schedules start: a warm-up may have put 0 in their place."""
    held = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    try:
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, held, strict=True):
            group["lr"] = lr


def rebase(trainer: Trainer, optimizer: torch.optim.Optimizer, lrs: Mapping[str, float]) -> None:
    """Let groups, and the schedules at work on them, start from these LRs, or peak at them."""
    groups = optimizer.param_groups
    names = lrfinder.lr_groups(optimizer)
    before = [float(g.get("max_lr", g.get("initial_lr", g["lr"]))) for g in groups]
    # Those that were refused keep theirs.
    after = [lrs.get(name, old) for name, old in zip(names, before, strict=True)]
    for group, old, new in zip(groups, before, after, strict=True):
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if isinstance(group.get(key), Tensor):  # which a compiled step reads
                group[key].fill_(_moved(float(group[key]), old, new))
            elif key in group:
                group[key] = _moved(group[key], old, new)
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    while schedulers:
        scheduler: Any = schedulers.pop()
        if scheduler.optimizer is not optimizer:
            continue
        schedulers += getattr(scheduler, "_schedulers", ())  # of SequentialLR and its like
        for name in ("base_lrs", "max_lrs"):
            if hasattr(scheduler, name):
                triples = zip(getattr(scheduler, name), before, after, strict=True)
                setattr(scheduler, name, [_moved(*triple) for triple in triples])
        scheduler._last_lr = [group["lr"] for group in groups]


def _moved(lr: Any, old: float, new: float) -> Any:
    """An LR where the one that it is a multiple of has changed; what has no ratio to 0 becomes the new one."""
    if new == old:
        return lr
    return new if lr == old or old <= 0 else lr * (new / old)


class Before:
    """A trainer and a module that it never had, to be put back after a fit that ended at its start."""

    def __init__(
        self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None
    ) -> None:
        strategy, loop = trainer.strategy, trainer.fit_loop
        kept: list[tuple[Any, tuple[str, ...]]] = [
            (trainer.state, ("status", "fn", "stage")),
            (strategy, ("optimizers", "lr_scheduler_configs", "_lightning_module", "model")),
            (loop, ("min_epochs", "max_epochs", "_combined_loader")),
            (module, ("_trainer",)),
            *([(datamodule, ("trainer",))] if datamodule is not None else []),
        ]
        self._kept = [(owner, {n: getattr(owner, n) for n in names}) for owner, names in kept]
        # Precision and device are changed by new tensors in the old ones' places.
        self._values = [(p, p.data, p.grad) for p in module.parameters()]
        self._buffers = [(one, dict(one._buffers)) for one in module.modules()]
        self._own = dict(vars(trainer))
        self._trainer: Any = trainer

    def add(self, callback: Callback) -> None:
        """One more callback, until all is put back."""
        self._trainer.callbacks = [*self._trainer.callbacks, callback]

    def put_back(self) -> None:
        """Put all back."""
        vars(self._trainer).clear()
        vars(self._trainer).update(self._own)
        for owner, values in self._kept:
            for name, value in values.items():
                setattr(owner, name, value)
        for parameter, value, gradient in self._values:
            parameter.data = value
            parameter.grad = gradient
        for module, buffers in self._buffers:
            module._buffers.clear()
            module._buffers.update(buffers)
