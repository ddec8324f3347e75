"""Bare tensors: what is optimised without a module, as a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lrfinder.tasks import Batch


class BareTensor(nn.Module):
    """A module of one tensor, the very object that its optimizer holds.

    Args:
        tensor: A leaf that requires a gradient.

    Raises:
        ValueError: If it is none.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        if not tensor.is_leaf or not tensor.requires_grad:
            raise ValueError(
                "A bare tensor must be a leaf with requires_grad=True to be optimised, but got one "
                f"with is_leaf={tensor.is_leaf}, requires_grad={tensor.requires_grad}. Make it by "
                "`tensor.detach().requires_grad_()`, and the optimizer after it."
            )
        # Registered where torch lets it be: only a Parameter can be stacked with its likes.
        if isinstance(tensor, nn.Parameter):
            self.tensor = tensor
        else:
            self._held = [tensor]

    def forward(self) -> Tensor:
        """The tensor."""
        return self.tensor if "tensor" in self._parameters else self._held[0]


class LossOfTensor:
    """`loss_fn(model, batch)` for a `loss_fn(tensor, batch)`."""

    def __init__(self, loss_fn: Callable[[Any, Batch], Tensor]) -> None:
        self.loss_fn = loss_fn

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of one batch, a scalar tensor."""
        return self.loss_fn(model(), batch)
