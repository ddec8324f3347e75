"""Evaluating: a model's loss and metrics over a loader, without a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

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
        midway: Whether it is a look at a training midway: norms that are in train mode take each
            batch's own statistics (`batch_stats` of `evaluate`), and random states are put back.
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
    batch_stats: bool = False,
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
        batch_stats: Whether norms that are in train mode take each batch's own statistics, as in
            training, in the place of the running ones, which are left as they are.

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
    with (
        eval_mode(model, batch_stats=batch_stats),
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
def eval_mode(model: nn.Module, *, batch_stats: bool = False) -> Iterator[None]:
    """`model.eval()`, then the flag of every module as it was: a BatchNorm that its owner froze stays frozen."""
    flags = [(module, module.training) for module in model.modules()]
    tracking = [
        module
        for module, training in flags
        if batch_stats
        and training
        and isinstance(module, _NormBase)
        and module.track_running_stats
    ]
    model.eval()
    for norm in tracking:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
        for module, flag in flags:
            module.training = flag


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """`torch.autocast` for the device, or nothing where dtype is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
