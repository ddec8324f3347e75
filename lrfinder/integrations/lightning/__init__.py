"""Lightning: a range test of a LightningModule, at fit's start or by itself, and a record of each group's LR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import _TunerExitException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

import lrfinder
from lrfinder.integrations.lightning.restoring import Before, rebase
from lrfinder.integrations.lightning.testing import LossFn, check_device, test_optimizer

__all__ = ["GroupLRMonitor", "LRRangeTest", "range_test"]


def range_test(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    train_dataloaders: Any = None,
    optimizer: int | None = None,
    loss_fn: LossFn | None = None,
    **settings: Any,
) -> lrfinder.RangeTest:
    """A range test of the training that `trainer.fit(module, datamodule)` would begin.

    The groups are those of `configure_optimizers`, the loss is that of `training_step`; precision,
    accumulation and clipping are the trainer's, and `planned_steps` is as many as it will take.
    Nothing is trained: the trainer sets itself up, the test runs in the place of the first step,
    and module, trainer and random states are left as they were, the module bit for bit. What
    `training_step` logs meanwhile is dropped; the loggers get the suggested LRs.

    Args:
        trainer: On one device.
        module: Any LightningModule.
        datamodule: As of `fit`.
        train_dataloaders: As of `fit`.
        optimizer: Number of the optimizer to test, the parameters of the others fixed; needed where
            `configure_optimizers` makes several.
        loss_fn: `loss_fn(module, batch)` -> scalar tensor, in the place of `training_step`; needed
            where it optimizes by hand, since it then has no one loss.
        **settings: The others of `lrfinder.range_test`.

    Returns:
        As `lrfinder.range_test`.

    Raises:
        TypeError: If it is no trainer of `lightning.pytorch`.
        ValueError: If there are several devices; several optimizers and no `optimizer`; manual
            optimization and no `loss_fn`; clipping by value; and as `lrfinder.range_test`.
    """
    callback = _Alone(optimizer, loss_fn, settings)
    check_device(trainer)
    before = Before(trainer, module, datamodule)
    with isolate_rng():
        before.add(callback)
        try:
            trainer.fit(module, train_dataloaders, datamodule=datamodule)
        finally:
            before.put_back()
    return callback.outcome()


class LRRangeTest(Callback):
    """Tests the learning rates at fit's start, sets every group that was not refused, and lets fit go on.

    Each optimizer is tested by itself, the parameters of the others fixed. The schedules of
    `configure_optimizers` are kept: what they start from, or peak at (OneCycleLR), is the suggested
    LR. A fit that goes on from a checkpoint is not tested.

    Args:
        loss_fns: `loss_fn(module, batch)` of each optimizer; needed under manual optimization.
        **settings: Those of `lrfinder.range_test`.

    Attributes:
        results: A range test for each optimizer.
    """

    def __init__(self, *, loss_fns: Sequence[LossFn] | None = None, **settings: Any) -> None:
        self.loss_fns = loss_fns
        self.settings = settings
        self.results: tuple[lrfinder.RangeTest, ...] = ()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test and set."""
        if trainer.ckpt_path is not None:
            rank_zero_info(
                "No range test: fit goes on from a checkpoint, with its learning rates."
            )
            return
        optimizers, losses = trainer.optimizers, self.loss_fns
        if losses is not None and len(losses) != len(optimizers):
            raise ValueError(
                f"`loss_fns` must have one function for each of the {len(optimizers)} optimizers, "
                f"but got {len(losses)}."
            )
        self.results = tuple(
            test_optimizer(
                trainer,
                pl_module,
                number,
                None if losses is None else losses[number],
                self.settings,
            )
            for number in range(len(optimizers))
        )
        for optimizer, result in zip(optimizers, self.results, strict=True):
            rebase(trainer, optimizer, result.suggestion.lrs)
            rank_zero_info(str(result))


class GroupLRMonitor(Callback):
    """Records the LR that each optimizer step used, for each group by its name.

    `lr/<group>` (`lr/optimizer_<i>/<group>` where there are several optimizers) on the axis of the
    trainer's optimizer steps, 0-based, to the trainer's loggers or to a recorder.

    Args:
        recorder: An `lrfinder.MlflowRecorder`, which gets the loss (automatic optimization) as
            `train/loss` too; None for the trainer's loggers. Whoever made it closes it.
    """

    def __init__(self, recorder: lrfinder.Recorder | None = None) -> None:
        self.recorder = recorder
        self._loss: Tensor | None = None

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Add up the shares of the batches that are accumulated."""
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Record the LRs that this step uses."""
        loss, self._loss = self._loss, None
        prefix = "lr"
        if len(trainer.optimizers) > 1:
            numbers = [id(one) for one in trainer.optimizers]
            prefix = f"lr/optimizer_{numbers.index(id(optimizer))}"
        lrs = lrfinder.learning_rates(optimizer)
        metrics: dict[str, Any] = {f"{prefix}/{name}": lr for name, lr in lrs.items()}
        if self.recorder is None:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
            return
        if loss is not None and pl_module.automatic_optimization:
            metrics["train/loss"] = loss
        self.recorder.log_metrics(trainer.global_step, metrics)


class _Alone(Callback):
    """Tests at fit's start, and ends fit there."""

    def __init__(
        self, optimizer: int | None, loss_fn: LossFn | None, settings: Mapping[str, Any]
    ) -> None:
        self._optimizer = optimizer
        self._loss_fn = loss_fn
        self._settings = settings
        self._result: lrfinder.RangeTest | Exception | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self._result = self._test(trainer, pl_module)
        except Exception as error:
            self._result = error  # raised by `outcome`: to Lightning's loggers, nothing has failed
        raise _TunerExitException  # as Lightning's own finder ends fit

    def outcome(self) -> lrfinder.RangeTest:
        if isinstance(self._result, Exception):
            raise self._result
        if self._result is None:
            raise RuntimeError("`trainer.fit` must reach its start for a range test, but did not.")
        return self._result

    def _test(self, trainer: Trainer, pl_module: LightningModule) -> lrfinder.RangeTest:
        count, number = len(trainer.optimizers), self._optimizer
        if number is None and count > 1:
            raise ValueError(
                f"`optimizer` must say which of the {count} optimizers to test, each by itself, "
                "but got None. Call range_test(..., optimizer=0, loss_fn=...), then with 1."
            )
        if number is not None and number not in range(max(count, 1)):
            raise ValueError(
                f"`0 <= optimizer < {count}` must hold, but got optimizer={number!r}."
            )
        return test_optimizer(trainer, pl_module, number or 0, self._loss_fn, self._settings)
