"""Testing: what of a trainer and a LightningModule a range test is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn

import lrfinder
from lrfinder.integrations.lightning.restoring import at_base_lrs

LossFn = Callable[[Any, Any], Tensor]

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def test_optimizer(
    trainer: Trainer,
    module: LightningModule,
    number: int,
    loss_fn: LossFn | None,
    settings: Mapping[str, Any],
) -> lrfinder.RangeTest:
    """A range test of one optimizer of a trainer that has set itself up; see `range_test`."""
    optimizer = _checked(trainer, number)
    if loss_fn is None and not module.automatic_optimization:
        raise ValueError(
            f"`training_step` of {type(module).__name__} must return the loss of one optimizer, but "
            "it optimizes by hand (automatic_optimization=False). Give `loss_fn(module, batch)`, or "
            "`loss_fns`, one for each optimizer."
        )
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        raise ValueError(
            "`gradient_clip_algorithm` must be 'norm' in a range test, but got 'value'. Clip by "
            "norm, or leave clipping out."
        )
    planned = trainer.estimated_stepping_batches
    if trainer.train_dataloader is None:  # which the estimate made, where it needed it
        trainer.fit_loop.setup_data()
    plugin = trainer.precision_plugin
    autocast = DTYPES.get(str(trainer.precision))
    options = lrfinder.StepOptions(
        accumulation=trainer.accumulate_grad_batches,
        clip_norm=trainer.gradient_clip_val or None,
        autocast=autocast,
        scaler=getattr(plugin, "scaler", None),
    )
    call = loss_fn or _training_loss
    context = plugin.train_step_context
    step = call if autocast else lambda model, batch: _inside(context, call, model, batch)
    usable = isinstance(planned, int) and planned > 0
    with _without_logging(module), at_base_lrs(optimizer):
        result = lrfinder.range_test(
            module,
            optimizer,
            step,
            _Batches(trainer, module),
            options=options,
            **{"planned_steps": planned if usable else None, **settings},
        )
    prefix = f"range_test/optimizer_{number}" if len(trainer.optimizers) > 1 else "range_test"
    for logger in trainer.loggers:
        lrs = {f"{prefix}/lr/{name}": lr for name, lr in result.suggestion.lrs.items()}
        logger.log_metrics(lrs, step=0)
    return result


def check_device(trainer: Trainer) -> None:
    """Raise a TypeError where it is no trainer of this library, and a ValueError where it is not on one device."""
    given: Any = trainer  # which may be anything, whatever its annotation says
    if not isinstance(given, Trainer):
        raise TypeError(
            f"`trainer` must be a lightning.pytorch.Trainer, but got {type(given).__module__}."
            f"{type(given).__name__}. `pytorch_lightning` is another package with the same classes: "
            "import `lightning.pytorch` in its place."
        )
    if trainer.world_size != 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise ValueError(
            "A range test must run on one device, but the Trainer has "
            f"{type(trainer.strategy).__name__} over {trainer.world_size} process(es). Test with "
            "Trainer(devices=1), and train with the LRs that it suggests."
        )


def _checked(trainer: Trainer, number: int) -> torch.optim.Optimizer:
    check_device(trainer)
    optimizer = trainer.optimizers[number]
    if not any(group.get("params") for group in optimizer.param_groups):
        raise ValueError(
            "`configure_optimizers` must return an optimizer with parameters, but it returned none."
        )
    return optimizer


class _Batches:
    """The trainer's training batches, after the hooks that the module has for them."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        loader = trainer.train_dataloader
        self._loader = loader
        self._combined = isinstance(loader, (Mapping, list, tuple))
        source = getattr(trainer, "datamodule", None)
        self._hooks = [
            getattr(module if source is None or not _overrides(source, name) else source, name)
            for name in ("on_before_batch_transfer", "on_after_batch_transfer")
        ]
        self._move = module.transfer_batch_to_device
        self._device = module.device
        self._convert = trainer.precision_plugin.convert_input
        # Where the test looks for generators of the loader's own.
        self.generator = getattr(loader, "generator", None)
        self.sampler = getattr(loader, "sampler", None)
        self.batch_sampler = getattr(loader, "batch_sampler", None)

    def __iter__(self) -> Iterator[Any]:
        before, after = self._hooks
        batches: Any = self._loader
        if self._combined:
            batches = (item[0] for item in CombinedLoader(self._loader, "max_size_cycle"))
        for batch in batches:
            moved = self._move(before(self._convert(batch), 0), self._device, 0)
            yield after(moved, 0)


def _overrides(datamodule: LightningDataModule, name: str) -> bool:
    return getattr(type(datamodule), name) is not getattr(LightningDataModule, name)


def _training_loss(module: Any, batch: Any) -> Tensor:
    """What `training_step` returns for a batch, as Lightning calls it."""
    parameters = inspect.signature(module.training_step).parameters
    output = module.training_step(batch, *([0] if len(parameters) > 1 else []))
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"`training_step` of {type(module).__name__} must return a loss, or a dict with one, "
            f"but got {type(output).__name__}."
        )
    return loss


def _inside(context: Callable[[], Any], call: LossFn, module: nn.Module, batch: Any) -> Tensor:
    with context():
        return call(module, batch)


@contextmanager
def _without_logging(module: LightningModule) -> Iterator[None]:
    """`self.log` has no place to log to before the first epoch, and thousands of steps to log."""
    names = ("log", "log_dict")
    kept = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(dict.fromkeys(names, _nothing))
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]
        vars(module).update(kept)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Logs nothing."""
