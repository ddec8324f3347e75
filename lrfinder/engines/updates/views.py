"""Views: the replicas' own optimizers step, on rows of the stack. Whatever the optimizer, this is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lrfinder.engines.stacking import Stack
from lrfinder.stepping import Replica

Gradients = Sequence[Tensor | None]


class Update(Protocol):
    """What takes the optimizer step of all replicas in a stack."""

    def add(self, replica: Replica) -> None:
        """A replica joined the stack as its last row."""

    def load(self, row: int) -> None:
        """Take over what the optimizer of a row was given as its state."""

    def remove(self, replica: Replica, row: int, last: int) -> None:
        """It left row `row`, to which what was in row `last` has moved."""

    def step(self, gradients: Gradients) -> None:
        """Take the step, with gradients of shape (n, *shape), which may be overwritten."""


class Views:
    """The replicas' own optimizers step, one after the other, on views of the stack.

    A GradScaler's check for infinities is each replica's own, as its clipping is.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def add(self, replica: Replica) -> None:
        """Nothing to do: the optimizer holds the parameters, which are views now."""

    def load(self, row: int) -> None:
        """Nothing to do: the state is the optimizer's own."""

    def remove(self, replica: Replica, row: int, last: int) -> None:
        """Nothing to do."""

    def step(self, gradients: Gradients) -> None:
        """See `Update`."""
        for row, replica in enumerate(self._stack.replicas):
            for parameter, gradient in zip(
                self._stack.trained_of(replica), gradients, strict=True
            ):
                parameter.grad = None if gradient is None else gradient[row]
            replica.update()
            for parameter in replica.parameters:
                parameter.grad = None


def clip(gradients: Gradients, clip_norm: float) -> None:
    """Scale each replica's gradients to a 2-norm of at most `clip_norm`, as `clip_grad_norm_` does."""
    found = [gradient for gradient in gradients if gradient is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in found])
    factor = (clip_norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in found:
        gradient.mul_(shaped(factor, gradient))


def shaped(column: Any, like: Tensor) -> Any:
    """A column as something that meets stacked tensors row by row; a number as it is."""
    if not isinstance(column, Tensor):
        return column
    return column.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def column_of(values: Sequence[Any], device: torch.device, *, is_table: bool = False) -> Any:
    """A number where all are alike, unless it is to be a table; or a column of float64 of shape (n,)."""
    if not is_table and values.count(values[0]) == len(values):
        return values[0]
    made = torch.tensor(values, dtype=torch.float64)
    return made if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)
