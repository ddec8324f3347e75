"""Lifting: what vmap's stacked tensors are made of, and rules that work on that.

`torch._C._functorch` is not public: where it is missing, nothing is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    from torch._C import _functorch
except ImportError:  # not public
    _functorch = None  # type: ignore[assignment]
_NEEDED = ("is_functorch_wrapped_tensor", "is_batchedtensor", "maybe_get_bdim",
           "maybe_current_level", "get_unwrapped", "_add_batch_dim", "pop_dynamic_layer_stack",
           "push_dynamic_layer_stack")  # fmt: skip
AVAILABLE = all(hasattr(_functorch, name) for name in _NEEDED)


class Stacked(NamedTuple):
    """A tensor as it lies in memory.

    Args:
        tensor: With the replicas, or of one that all share.
        dim: Which of its dimensions the replicas are; None where all share it.
    """

    tensor: Tensor
    dim: int | None

    def first(self, count: int) -> Tensor:
        """With the replicas as its first dimension."""
        if self.dim is None:
            return self.tensor.expand(count, *self.tensor.shape)
        return self.tensor.movedim(self.dim, 0) if self.dim else self.tensor


# The number of replicas and the tensors -> the result.
Rule = Callable[[int, Sequence["Stacked | None"]], Stacked]


def lift(tensors: Sequence[Tensor | None]) -> tuple[int, list[Stacked | None]] | None:
    """The number of replicas, and what each tensor is made of; None where nothing is stacked just once."""
    parts: list[Stacked | None] = []
    count = None
    for tensor in tensors:
        if tensor is None:
            parts.append(None)
        elif not _functorch.is_functorch_wrapped_tensor(tensor):
            parts.append(Stacked(tensor, None))
        else:
            # Inside a transformation of the loss's own it is another that is stacked.
            if _functorch.maybe_current_level() != 1 or not _functorch.is_batchedtensor(tensor):
                return None
            dim: int = _functorch.maybe_get_bdim(tensor)
            part = Stacked(_functorch.get_unwrapped(tensor), dim)
            count = part.tensor.shape[dim]
            parts.append(part)
    return None if count is None else (count, parts)


def apply(rule: Rule, plain: Callable[..., Any], tensors: Sequence[Tensor | None]) -> Any:
    """What a rule gives, as vmap has it; or what is plain, where nothing is stacked just once."""
    lifted = lift(tensors)
    if lifted is None:
        return plain(*tensors)
    # Below vmap, which would look at each operation of the rule too.
    layer = _functorch.pop_dynamic_layer_stack()
    try:
        result = rule(*lifted)
    finally:
        _functorch.push_dynamic_layer_stack(layer)
    if result.dim is None:
        return result.tensor
    return _functorch._add_batch_dim(result.tensor, result.dim, 1)


def by_channels_last(tensor: Tensor) -> Tensor:
    """The tensor, whose gradient will lie in memory as `channels_last` does, whatever it is made of."""
    if tensor.requires_grad:
        tensor.register_hook(_laid_out)  # type: ignore[no-untyped-call]
    return tensor


def _laid_out(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)
