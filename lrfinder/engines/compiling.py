"""Compiling: the losses of all replicas by `torch.compile`, for who asks for it.

It takes from a second to minutes before the first step, and again for each number of replicas that
are in step, so it is never done unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lrfinder.engines.fitting import first_line, out_of_memory
from lrfinder.stepping import autocast
from lrfinder.tasks import Batch, LossFn, StepOptions


class Compiled:
    """`torch.compile` of vmap of a loss.

    Args:
        skeleton: The model, with layers that are torch's own: what folds them cannot be compiled.
        loss_fn: Of it.
        names: Of the parameters and buffers that are stacked, in the order of the call.
        options: Names the backend.

    Attributes:
        reason: Why it is of no use, once it has failed; empty before.
    """

    def __init__(
        self, skeleton: nn.Module, loss_fn: LossFn, names: Sequence[str], options: StepOptions
    ) -> None:
        self.reason = ""
        self._loss = _Loss(skeleton, loss_fn)
        self._names = [f"model.{name}" for name in names]
        self._options = options
        self._made: dict[str, Callable[..., Tensor]] = {}  # by what of a batch is stacked

    def __call__(
        self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], batch: Batch, dims: Any
    ) -> Tensor:
        """Losses of all replicas, with their graph; buffers are changed as the model does."""
        key = repr(dims)
        if key not in self._made:
            self._made[key] = torch.compile(
                vmap(self._of_one, in_dims=(0, 0, dims), randomness="error"),
                backend=self._options.compile or "inductor",
                dynamic=False,
            )
        return self._made[key](list(parameters), list(buffers), batch)

    def note(self, *, draws: bool, replaces: bool) -> str:
        """Why a model that does such things is not compiled, to be added to a reason; empty where it is."""
        why = "it draws random numbers" if draws else "it replaces a buffer" if replaces else ""
        return f"; it is not compiled: {why or self.reason}" if why or self.reason else ""

    def losses(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        batch: Batch,
        dims: Any,
        *,
        before: Sequence[Tensor],
    ) -> Tensor | None:
        """As a call; None where that fails, with buffers as they were `before`. Then it has a `reason`."""
        try:
            return self(parameters, buffers, batch, dims)
        except Exception as error:
            if out_of_memory(error):
                raise
            self.reason = first_line(error)
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            return None

    def _of_one(self, parameters: list[Tensor], buffers: list[Tensor], batch: Batch) -> Tensor:
        tensors = dict(zip(self._names, [*parameters, *buffers], strict=True))
        with autocast(tensors[self._names[0]].device, self._options.autocast):
            loss: Tensor = functional_call(self._loss, tensors, (batch,))
        return loss.reshape(())


class _Loss(nn.Module):
    """A loss as a module, so that the tensors of its model can be given in a call."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self._loss_fn = loss_fn

    def forward(self, batch: Batch) -> Tensor:
        """The loss of the model."""
        return self._loss_fn(self.model, batch)
