"""Folding: layers of K replicas as one layer, where stock vmap is slower than need be.

- A convolution: vmap keeps replicas apart, which on a CPU makes narrow ones slow. Here the
  activations (K, B, C, H, W) are kept as (B, K C, H, W) in `channels_last`, where torch's grouped
  convolution is some five times faster, and a pooling is one on more channels.
- A linear layer: the gradients of vmap's lie transposed, and an update with those takes four times
  as long.
- A cross entropy: vmap takes it apart into some thirty operations.

Only torch's very own modules are replaced, and only on tensors that are stacked once. Everything
else goes through stock vmap, and so do these where torch hides what a stacked tensor is made of,
which it does not promise to show.

Law: conv(x_k, w_k) for all k = conv of the folded x with the w_k one after another and K times the
groups; with an input that all share, the K C_out channels of one ordinary convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrfinder.tasks import LossFn, supervised

try:
    from torch._C import _functorch
except ImportError:  # not public
    _functorch = None  # type: ignore[assignment]
_NEEDED = ("is_functorch_wrapped_tensor", "is_batchedtensor", "maybe_get_level", "maybe_get_bdim",
           "maybe_current_level", "get_unwrapped", "_add_batch_dim")  # fmt: skip
AVAILABLE = all(hasattr(_functorch, name) for name in _NEEDED)

Dims = Sequence[int | None]
Rule = Callable[..., tuple[Tensor, int]]


def folded(model: nn.Module, *, convolutions: bool) -> nn.Module:
    """The model with its layers replaced, where they are torch's very own.

    Args:
        model: It is changed.
        convolutions: Whether also those of images, which pays on a CPU.
    """
    for module in model.modules() if AVAILABLE else ():
        # A parametrized one, or a subclass, may do something else.
        if type(module) is nn.Linear:
            _replace(module, _Linear(module))
        elif not convolutions:
            continue
        elif type(module) is nn.Conv2d and module.padding_mode == "zeros" and module.groups == 1:
            _replace(module, _Conv(module))
        elif type(module) is nn.MaxPool2d and not module.return_indices:
            _replace(module, _Pool(module))
        elif type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
            _replace(module, _mean)
    return model


def folded_loss(loss_fn: LossFn) -> LossFn:
    """The loss with its cross entropy replaced, where it is torch's very own."""
    if AVAILABLE and type(loss_fn) is supervised:
        criterion = loss_fn.criterion
        if type(criterion) is nn.CrossEntropyLoss and criterion.reduction == "mean":
            return loss_fn if criterion.weight is not None else supervised(_Entropy(criterion))
    return loss_fn


def _replace(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    vars(module)["forward"] = forward  # before the class's own


def _apply(rule: Rule, plain: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """Apply a rule `(count, dims, *tensors) -> (result, its dim)`, or what is plain where nothing is stacked once."""
    level = _functorch.maybe_current_level()
    dims: list[int | None] = []
    parts: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is None or not _functorch.is_functorch_wrapped_tensor(tensor):
            dims.append(None)
            parts.append(tensor)
            continue
        if level != 1 or not _functorch.is_batchedtensor(tensor):
            return plain(*tensors)  # inside a transformation of the loss's own
        dims.append(_functorch.maybe_get_bdim(tensor))
        parts.append(_functorch.get_unwrapped(tensor))
    stacked = [(p, d) for p, d in zip(parts, dims, strict=True) if p is not None and d is not None]
    if not stacked:
        return plain(*tensors)
    result, dim = rule(stacked[0][0].shape[stacked[0][1]], dims, *parts)
    return _functorch._add_batch_dim(result, dim, 1)


class _Linear:
    """The forward of a Linear."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, inputs: Tensor) -> Tensor:
        module = self.module
        if inputs.dim() < 2:
            return functional.linear(inputs, module.weight, module.bias)
        return _apply(self.rule, functional.linear, inputs, module.weight, module.bias)

    @staticmethod
    def rule(
        count: int, dims: Dims, inputs: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """Law: y_k^T = w_k x_k^T + b_k, whose gradient for w_k lies in memory as w_k does."""
        inputs, weight = _first(inputs, dims[0], count), _first(weight, dims[1], count)
        is_flat = inputs.dim() == 3
        rows = inputs if is_flat else inputs.reshape(count, -1, inputs.shape[-1])
        columns = rows.transpose(1, 2)
        if bias is None:
            result = torch.bmm(weight, columns)
        else:
            result = torch.baddbmm(_first(bias, dims[2], count).unsqueeze(2), weight, columns)
        result = result.transpose(1, 2)
        return result if is_flat else result.reshape(*inputs.shape[:-1], -1), 0


class _Conv:
    """The forward of a Conv2d."""

    def __init__(self, module: nn.Conv2d) -> None:
        self.module = module

    def __call__(self, inputs: Tensor) -> Tensor:
        module = self.module
        if inputs.dim() != 4:
            return self.plain(inputs, module.weight, module.bias)
        return _apply(self.rule, self.plain, inputs, module.weight, module.bias)

    def plain(
        self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1
    ) -> Tensor:
        """The convolution itself."""
        module = self.module
        padding: Any = module.padding  # a word, or numbers
        return functional.conv2d(
            inputs, weight, bias, module.stride, padding, module.dilation, groups
        )

    def rule(
        self, count: int, dims: Dims, inputs: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """Of all replicas."""
        if dims[1] is None:
            # One weight for all: the replicas are as samples.
            result = self.plain(_first(inputs, dims[0], count).flatten(0, 1), weight)
            result = result.view(count, -1, *result.shape[1:])
            if bias is not None:
                own = bias if dims[2] is None else bias.movedim(dims[2], 0).unsqueeze(1)
                result = result + own[..., None, None]
            return result, 0
        weight = weight.movedim(dims[1], 0).flatten(0, 1)
        weight = weight.contiguous(memory_format=torch.channels_last)
        if bias is not None:
            bias = _first(bias, dims[2], count).flatten()
        if dims[0] is None:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            result = self.plain(inputs, weight, bias)
        else:
            result = self.plain(_as_channels(inputs, dims[0]), weight, bias, count)
        return _as_replicas(result, count), 1


class _Pool:
    """The forward of a MaxPool2d."""

    def __init__(self, module: nn.MaxPool2d) -> None:
        self.module = module

    def __call__(self, inputs: Tensor) -> Tensor:
        return _apply(self.rule, self.plain, inputs) if inputs.dim() == 4 else self.plain(inputs)

    def plain(self, inputs: Tensor) -> Tensor:
        """The pooling itself."""
        module = self.module
        return functional.max_pool2d(
            inputs,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            ceil_mode=module.ceil_mode,
        )

    def rule(self, count: int, dims: Dims, inputs: Tensor) -> tuple[Tensor, int]:
        """Of all replicas."""
        return _as_replicas(self.plain(_as_channels(inputs, dims[0])), count), 1


def _mean(inputs: Tensor) -> Tensor:
    """What torch computes here too, before it asks for strides that vmap has no rule for."""
    return inputs.mean((-2, -1), keepdim=True)


class _Entropy:
    """A CrossEntropyLoss."""

    def __init__(self, criterion: nn.CrossEntropyLoss) -> None:
        self.criterion = criterion

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        if scores.dim() != 2 or targets.dim() != 1 or targets.dtype != torch.int64:
            result: Tensor = self.criterion(scores, targets)
            return result
        return _apply(self.rule, self.criterion, scores, targets)

    def rule(self, count: int, dims: Dims, scores: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Of all replicas: the mean over the samples that are not ignored."""
        scores, targets = _first(scores, dims[0], count), _first(targets, dims[1], count)
        # Classes before samples: as a folded linear layer leaves them, and quicker for few classes.
        losses = functional.cross_entropy(
            scores.transpose(1, 2),
            targets,
            ignore_index=self.criterion.ignore_index,
            label_smoothing=self.criterion.label_smoothing,
            reduction="none",
        )
        counted = (targets != self.criterion.ignore_index).sum(1)
        return losses.sum(1) / counted, 0


def _first(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    """With the replicas as its first dimension."""
    if dim is None:
        return tensor.expand(count, *tensor.shape)
    return tensor.movedim(dim, 0) if dim else tensor


def _as_channels(inputs: Tensor, dim: int | None) -> Tensor:
    """(B, K C, H, W); free of cost where they lie so already."""
    inputs = inputs.movedim(dim or 0, 1).flatten(1, 2)
    return inputs.contiguous(memory_format=torch.channels_last)


def _as_replicas(result: Tensor, count: int) -> Tensor:
    """(B, K, C, H, W)."""
    batch, channels, *size = result.shape
    return result.view(batch, count, channels // count, *size)
