"""Checks: what goes wrong with a model, its optimizer and its loss, said before torch says it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its `step` must be given a function that computes the loss, as LBFGS's must."""
    # On the class, since a scheduler wraps the instance's `step` and hides its signature.
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_same_model(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Refuse an optimizer that holds nothing of the model."""
    own = {id(parameter) for parameter in model.parameters()}
    # A model without parameters is a wrapper around tensors that are optimised by themselves.
    if own and not any(id(parameter) in own for parameter in parameters):
        raise ValueError(
            "The optimizer must hold parameters of this model, but none of its "
            f"{len(parameters)} tensors is one. Was the model copied or moved after the optimizer was made?"
        )


def check_loss(loss: Any, *, needs_gradient: bool = True) -> None:
    """What goes wrong with a loss function, said before torch says it from deep inside."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"`loss_fn(model, batch)` must return a tensor, but got {type(loss).__name__}."
        )
    if loss.numel() != 1:
        raise ValueError(
            f"`loss_fn(model, batch)` must return a scalar, but got shape {tuple(loss.shape)}. "
            "Take the mean over the batch."
        )
    if needs_gradient and not loss.requires_grad:
        raise ValueError(
            "`loss_fn(model, batch)` must return a loss that needs a gradient, but it needs none. Is it detached, "
            "computed under torch.no_grad(), or are all parameters frozen?"
        )
