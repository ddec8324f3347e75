"""Folding: convolutions and poolings of K replicas side by side, as channels of one.

Stock vmap keeps replicas apart, which on a CPU makes narrow convolutions slow: torch's grouped
convolution is some five times faster on channels that lie next to each other. So the activations of
K replicas, (K, B, C, H, W), are kept as (B, K C, H, W) in `channels_last`, and a layer is one call
on them. Everything that is not written here goes through stock vmap.

Law: conv(x_k, w_k) for all k = conv of the folded x with the w_k one after another and K times the
groups; with an input that all share, the K C_out channels of one ordinary convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def folded(model: nn.Module) -> nn.Module:
    """The model with its convolutions and poolings replaced, where they are torch's very own."""
    for module in model.modules():
        # A hooked or parametrized one, or a subclass, may do something else.
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and module.groups == 1:
            module.forward = _Conv(module)  # type: ignore[method-assign]
        elif type(module) is nn.MaxPool2d and not module.return_indices:
            module.forward = _Pool(module)  # type: ignore[method-assign]
        elif type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
            module.forward = _mean  # type: ignore[method-assign]
    return model


def _mean(inputs: Tensor) -> Tensor:
    """What torch computes here too, before it asks for strides that vmap has no rule for."""
    return inputs.mean((-2, -1), keepdim=True)


class _Conv:
    """The forward of a Conv2d."""

    def __init__(self, module: nn.Conv2d) -> None:
        self.module = module

    def __call__(self, inputs: Tensor) -> Tensor:
        module = self.module
        options = (module.stride, module.padding, module.dilation)
        if inputs.dim() != 4:
            return functional.conv2d(inputs, module.weight, module.bias, *options)
        result: Tensor = _FoldedConv.apply(inputs, module.weight, module.bias, options)
        return result


class _Pool:
    """The forward of a MaxPool2d."""

    def __init__(self, module: nn.MaxPool2d) -> None:
        self.module = module

    def __call__(self, inputs: Tensor) -> Tensor:
        module = self.module
        options = (module.kernel_size, module.stride, module.padding, module.dilation)
        if inputs.dim() != 4:
            return functional.max_pool2d(inputs, *options, ceil_mode=module.ceil_mode)
        result: Tensor = _FoldedPool.apply(inputs, (*options, module.ceil_mode))
        return result


class _Folded(torch.autograd.Function):
    """A function whose `vmap` is what counts: it is made of ordinary operations, which autograd records."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: under vmap with autograd around it, backward is that of the operations."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Never called in a stack, whose trained tensors are always below vmap."""
        raise NotImplementedError("A folded layer has a gradient under vmap alone.")


class _FoldedConv(_Folded):
    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None, options: Any) -> Tensor:
        """Of one replica, or of what all share."""
        return functional.conv2d(inputs, weight, bias, *options)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        options: Any,
    ) -> tuple[Tensor, int]:
        """Of all replicas."""
        count = info.batch_size
        if in_dims[1] is None:
            # One weight for all: the replicas are as samples.
            result = functional.conv2d(
                _as_samples(inputs, in_dims[0], count), weight, None, *options
            )
            result = result.unflatten(0, (count, -1))
            if bias is not None:
                own = bias if in_dims[2] is None else bias.movedim(in_dims[2], 0).unsqueeze(1)
                result = result + own[..., None, None]
            return result, 0
        weight = weight.movedim(in_dims[1], 0).flatten(0, 1)
        weight = weight.contiguous(memory_format=torch.channels_last)
        if bias is not None:
            bias = (
                bias.repeat(count) if in_dims[2] is None else bias.movedim(in_dims[2], 0).flatten()
            )
        if in_dims[0] is None:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            result = functional.conv2d(inputs, weight, bias, *options)
        else:
            inputs = _as_channels(inputs, in_dims[0])
            result = functional.conv2d(inputs, weight, bias, *options, groups=count)
        return result.unflatten(1, (count, -1)), 1


class _FoldedPool(_Folded):
    @staticmethod
    def forward(inputs: Tensor, options: Any) -> Tensor:
        """Of one replica, or of what all share."""
        return functional.max_pool2d(inputs, *options)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], inputs: Tensor, options: Any
    ) -> tuple[Tensor, int]:
        """Of all replicas."""
        result = functional.max_pool2d(_as_channels(inputs, in_dims[0]), *options)
        return result.unflatten(1, (info.batch_size, -1)), 1


def _as_channels(inputs: Tensor, dim: int | None) -> Tensor:
    """(B, K C, H, W); free of cost where they lie so already."""
    inputs = inputs.movedim(dim or 0, 1).flatten(1, 2)
    return inputs.contiguous(memory_format=torch.channels_last)


def _as_samples(inputs: Tensor, dim: int | None, count: int) -> Tensor:
    if dim is None:  # only the bias differs
        inputs, dim = inputs.expand(count, *inputs.shape), 0
    return inputs.movedim(dim, 0).flatten(0, 1)
