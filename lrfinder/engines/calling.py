"""Calling: one function for all replicas at once.

`torch.func.vmap` looks through all that it is given at each call, which takes as long as a layer of
a small network. Its first call for a stack is a proof that all is well; the calls after it do what
vmap does and nothing else, where torch has the parts that vmap is made of, which it does not promise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lrfinder.tasks import Batch

try:
    from torch._C import _functorch
except ImportError:  # not public
    _functorch = None  # type: ignore[assignment]
_NEEDED = ("_vmap_increment_nesting", "_vmap_decrement_nesting", "_add_batch_dim", "_remove_batch_dim")  # fmt: skip
AVAILABLE = all(hasattr(_functorch, name) for name in _NEEDED)

# Parameters, buffers, batch -> the loss, a scalar, and those buffers that were replaced, by number.
Function = Callable[[list[Tensor], list[Tensor], Batch], tuple[Tensor, dict[int, Tensor]]]


def call_for_all(
    function: Function,
    parameters: list[Tensor],
    buffers: list[Tensor],
    batch: Batch,
    dims: Any,
    *,
    randomness: str,
    is_proven: bool,
) -> tuple[Tensor, dict[int, Tensor]]:
    """What `vmap(function, (0, 0, dims), randomness=randomness)` returns for these arguments.

    Args:
        function: Is called once.
        parameters: Of shape (n, *shape).
        buffers: Likewise; they are changed where the function changes them in place.
        batch: Of which parts may be stacked, as `dims` says.
        dims: As vmap's `in_dims`.
        randomness: As vmap's.
        is_proven: Whether vmap itself has run it before.
    """
    if not (AVAILABLE and is_proven):
        call = vmap(function, in_dims=(0, 0, dims), randomness=randomness)
        result: tuple[Tensor, dict[int, Tensor]] = call(parameters, buffers, batch)
        return result
    count = len(parameters[0])
    level = _functorch._vmap_increment_nesting(count, randomness)
    try:
        loss, replaced = function(
            [_functorch._add_batch_dim(tensor, 0, level) for tensor in parameters],
            [_functorch._add_batch_dim(tensor, 0, level) for tensor in buffers],
            _wrapped(batch, dims, level),
        )
        return _functorch._remove_batch_dim(loss, level, count, 0), {
            index: _functorch._remove_batch_dim(tensor, level, count, 0)
            for index, tensor in replaced.items()
        }
    finally:
        _functorch._vmap_decrement_nesting()


class Attention(TorchFunctionMode):
    """Sees whether a function that is called inside computes attention.

    Attributes:
        seen: Whether one did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.seen |= "attention" in getattr(func, "__name__", "")
        return func(*args, **(kwargs or {}))


def attention_by_parts(seen: bool | None) -> AbstractContextManager[Any]:
    """A context in which attention is computed in a way that vmap has rules for, or nothing where none is.

    The other ways have no rule for vmap's backward, and would loop over the replicas.
    """
    return nullcontext() if seen is False else sdpa_kernel(SDPBackend.MATH)


@contextmanager
def loops_refused() -> Iterator[None]:
    """In here it is an error that vmap has no rule for an operation, and loops over the replicas."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        yield


def _wrapped(batch: Batch, dims: Any, level: int) -> Batch:
    """The batch with its stacked tensors as ones of a single replica."""
    if dims is None:
        return batch
    if isinstance(batch, Tensor):
        return _functorch._add_batch_dim(batch, dims, level)
    if isinstance(batch, dict):
        return {key: _wrapped(part, dims[key], level) for key, part in batch.items()}
    parts = [_wrapped(part, dim, level) for part, dim in zip(batch, dims, strict=True)]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
