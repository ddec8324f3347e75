"""Evaluating: a model's loss and metrics over a loader, without a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from lrfinder.distributing import summed, unwrapped
from lrfinder.tasks import Batch, LossFn, batch_size, move_to
from lrfinder.tasks.losses import evaluated

Metrics = Mapping[str, Callable[[nn.Module, Batch], Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """A training's request to be evaluated, as `evaluate` does it.

    Args:
        loader: Gives the batches.
        metrics: Beside the loss.
        midway: Whether it is a look at a training midway, in train mode as `midway_mode` has it;
            then buffers and random states are as before, too.
    """

    loader: Iterable[Batch]
    metrics: Metrics | None = None
    midway: bool = False


def evaluate(
    model: nn.Module,
    loss_fn: LossFn,
    loader: Iterable[Batch],
    *,
    metrics: Metrics | None = None,
    autocast_dtype: torch.dtype | None = None,
    midway: bool = False,
) -> dict[str, float]:
    """Mean loss and metrics over a loader, weighted by the number of samples of each batch.

    Law: val/m = sum_b n_b m(model, batch_b) / sum_b n_b, in eval mode, without gradients; over the
    batches of all processes that train the model together. Every module's train/eval flag is put
    back. Non-finite values stay non-finite. One wait for the device, at the end.

    Args:
        model: Any module.
        loss_fn: As in training.
        loader: Gives the batches.
        metrics: Beside the loss: name -> `metric(model, batch)`.
        autocast_dtype: Of `torch.autocast`, or None.
        midway: Whether to evaluate in `midway_mode` in the place of eval mode.

    Returns:
        `{"val/loss": ..., "val/<metric>": ...}`.

    Raises:
        ValueError: If the loader is empty.
    """
    functions: dict[str, Callable[[nn.Module, Batch], Tensor]] = {
        "loss": loss_fn,
        **(metrics or {}),
    }
    model = unwrapped(model)  # whose processes may have different numbers of batches here
    device = model_device(model)
    sums = {name: torch.zeros((), device=device) for name in functions}
    count = 0
    mode = midway_mode if midway else eval_mode
    with (
        mode(model),
        torch.no_grad(),
        autocast(device, autocast_dtype),
    ):
        for batch in loader:
            moved = move_to(batch, device)
            size = batch_size(moved)
            count += size
            found = evaluated(functions.values(), model, moved)
            for name, value in zip(functions, found, strict=True):
                sums[name] = sums[name] + torch.as_tensor(value).detach() * size
    if count == 0:
        raise ValueError("The validation loader must give at least one batch, but it is empty.")
    own = torch.stack(list(sums.values())).cpu().double()
    totals = summed(torch.cat([own, torch.tensor([count], dtype=torch.float64)]))
    values = totals[:-1] / totals[-1]
    return {f"val/{name}": value for name, value in zip(functions, values.tolist(), strict=True)}


def model_device(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU for a model that has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()`, then the flag of every module as it was: a BatchNorm that its owner froze stays frozen."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def midway_mode(model: nn.Module) -> Iterator[None]:
    """Train mode as it is, but for dropout, which is off, and norms, which leave their running statistics alone.

    For a model may give something else in eval mode than a loss can be made of.
    """
    active = [module for module in model.modules() if module.training]
    dropouts = [module for module in active if isinstance(module, _DropoutNd)]
    norms = [m for m in active if isinstance(m, _NormBase) and m.track_running_stats]
    for dropout in dropouts:
        dropout.training = False
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.training = True
        for norm in norms:
            norm.track_running_stats = True


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """`torch.autocast` for the device, or nothing where dtype is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
