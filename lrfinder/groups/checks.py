"""Checks: what an optimizer and a learning rate must be, said before torch says it from deep inside."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lrfinder.groups.reading import learning_rates, param_group_names

# LinearLR(end_factor=0) and its like end at some -1e-18 instead of 0: that much below 0 is
# rounding and no mistake.
ROUNDING = 1e-12


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that cannot be trained with: one built elsewhere may be anything.

    Raises:
        TypeError: If it is no optimizer.
        ValueError: If it has no parameters or no LRs, two groups share a name or a parameter, an
            LR is negative or not finite (waits for the device where an LR is a tensor), or a
            parameter has no values yet (meta device, lazy module) or is quantised.
    """
    for name, lr in learning_rates(optimizer).items():
        if not -ROUNDING <= lr < math.inf:
            checked_lr(lr, name)
    owners: dict[int, str] = {}
    for name, group in zip(param_group_names(optimizer), optimizer.param_groups, strict=True):
        for index, parameter in enumerate(group["params"]):
            _check_parameter(parameter, f"number {index} of group {name!r}")
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                raise ValueError(
                    f"A parameter must be in one group, but number {index} of group {name!r} "
                    f"(shape {tuple(parameter.shape)}) is in group {owner!r} too."
                )


def _check_parameter(parameter: Tensor, place: str) -> None:
    if is_lazy(parameter):
        raise ValueError(
            f"A parameter must have a shape, but {place} is still lazy. Run the model on one batch "
            "before the optimizer is made."
        )
    if parameter.device.type == "meta":
        raise ValueError(
            f"A parameter must have values, but {place} (shape {tuple(parameter.shape)}) is on the "
            "meta device. Load the weights first (`model.to_empty(device=...)`, then initialise "
            "them), and make the optimizer of what was loaded."
        )
    if parameter.is_quantized or not (parameter.is_floating_point() or parameter.is_complex()):
        raise ValueError(
            f"A parameter must be of a floating type to be trained, but {place} is "
            f"{parameter.dtype}: it is quantised. Freeze it (`requires_grad=False`), leave it out "
            "of the optimizer, and train an adapter (LoRA) or the weights before quantisation."
        )


def checked_lr(value: Any, name: str) -> float:
    """The LR of a group as a float.

    Raises:
        ValueError: If it is not a number, negative or not finite.
    """
    lr = number(value)
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"`0 <= lr < inf` must hold for group {name!r}, but got lr={value!r}.")
    return lr


def number(value: Any) -> float:
    """As a float; NaN, which no bound admits, for what is not a number."""
    if isinstance(value, (bool, str)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan
