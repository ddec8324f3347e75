"""Layers: what each layer of torch does with the activations of all replicas.

Law: conv(x_k, w_k) for all k = conv of the folded x with the w_k one after another and K times the
groups; with an input that all share, the K C_out channels of one ordinary convolution. A linear
layer is y_k^T = w_k x_k^T + b_k, whose gradient for w_k lies in memory as w_k does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrfinder.engines.folding.lifting import Stacked, by_channels_last

# How the activations of all replicas lie: as one's own that all share; (K, *shape); images as
# (B, K C, H, W) in channels_last; vectors as (K, F, B).
Form = Literal["shared", "rows", "channels", "columns"]


class Value(NamedTuple):
    """Activations of all replicas.

    Args:
        tensor: Which they are.
        form: How it lies.
        is_own: Whether nobody else will look at it, so that it may be worked on in place.
    """

    tensor: Tensor
    form: Form
    is_own: bool = False

    @classmethod
    def of(cls, stacked: Stacked) -> Value:
        """From what vmap has."""
        if stacked.dim is None:
            return cls(stacked.tensor, "shared")
        return cls(stacked.first(0), "rows")

    def stacked(self, count: int) -> Stacked:
        """As vmap has it."""
        if self.form == "channels":
            return Stacked(_replicas(self.tensor, count), 1)
        if self.form == "columns":
            return Stacked(self.tensor.transpose(1, 2), 0)
        return Stacked(self.tensor, None if self.form == "shared" else 0)

    def rows(self, count: int) -> Tensor:
        """(K, *shape)."""
        return self.stacked(count).first(count)

    def channels(self, count: int) -> Tensor:
        """(B, K C, H, W); free of cost where they lie so already."""
        if self.form == "channels":
            return self.tensor
        images = self.rows(count).movedim(0, 1).flatten(1, 2)
        return images.contiguous(memory_format=torch.channels_last)


Tensors = Sequence["Stacked | None"]  # a layer's parameters and buffers, in its order
Layer = Callable[[Any, Value, Tensors, int], Value]


def _replicas(images: Tensor, count: int) -> Tensor:
    """(B, K, C, H, W)."""
    batch, channels, *size = images.shape
    return by_channels_last(images).view(batch, count, channels // count, *size)


def _linear(module: nn.Linear, value: Value, tensors: Tensors, count: int) -> Value:
    weight, bias = tensors
    assert weight is not None
    shape: Sequence[int] = ()
    if value.form == "columns":
        columns = value.tensor
    else:
        rows = value.rows(count)
        shape = rows.shape
        columns = (rows if rows.dim() == 3 else rows.reshape(count, -1, shape[-1])).transpose(1, 2)
    if bias is None:
        result = torch.bmm(weight.first(count), columns)
    else:
        result = torch.baddbmm(bias.first(count).unsqueeze(2), weight.first(count), columns)
    if len(shape) in (0, 3):
        return Value(result, "columns", is_own=True)
    return Value(result.transpose(1, 2).reshape(*shape[:-1], -1), "rows")


def _conv(module: nn.Conv2d, value: Value, tensors: Tensors, count: int) -> Value:
    weight, bias = tensors
    assert weight is not None
    if weight.dim is None:
        # One weight for all: the replicas are as samples.
        images = value.rows(count).flatten(0, 1)
        result = conv2d(module, images, weight.tensor)
        result = result.view(count, -1, *result.shape[1:])
        if bias is not None:
            result = result + bias.first(count).unsqueeze(1)[..., None, None]
        return Value(result, "rows", is_own=True)
    kernels = weight.first(count).flatten(0, 1)
    kernels = kernels.contiguous(memory_format=torch.channels_last)
    shifts = None if bias is None else bias.first(count).flatten()
    if value.form == "shared":
        images = value.tensor.contiguous(memory_format=torch.channels_last)
        return Value(conv2d(module, images, kernels, shifts), "channels", is_own=True)
    result = conv2d(module, value.channels(count), kernels, shifts, count)
    return Value(result, "channels", is_own=True)


def conv2d(
    module: nn.Conv2d,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """The convolution itself."""
    padding: Any = module.padding  # a word, or numbers
    return functional.conv2d(inputs, weight, bias, module.stride, padding, module.dilation, groups)


def _of_channels(part: Stacked | None, count: int) -> Tensor | None:
    """One number for each of K C channels: where they lie, since statistics are changed there."""
    if part is None:
        return None
    return part.tensor.repeat(count) if part.dim is None else part.first(count).view(-1)


def _norm(module: nn.BatchNorm2d, value: Value, tensors: Tensors, count: int) -> Value:
    """One of K C channels, whose statistics are those of each replica's own."""
    weight, bias, mean, variance, seen = (_of_channels(part, count) for part in tensors)
    uses_batch = module.training or mean is None
    if module.training and seen is not None:
        seen.add_(1)
    result = functional.batch_norm(
        value.channels(count),
        mean,
        variance,
        weight,
        bias,
        uses_batch,
        0.0 if module.momentum is None else module.momentum,
        module.eps,
    )
    return Value(result, "channels", is_own=True)


def _pool(module: nn.MaxPool2d, value: Value, tensors: Tensors, count: int) -> Value:
    result: Tensor = type(module).forward(module, value.channels(count))
    return Value(result, "channels", is_own=True)


def _mean(module: nn.AdaptiveAvgPool2d, value: Value, tensors: Tensors, count: int) -> Value:
    # What torch computes here too, before it asks for strides that vmap has no rule for.
    return value._replace(tensor=value.tensor.mean((-2, -1), keepdim=True), is_own=True)


def _flatten(module: nn.Flatten, value: Value, tensors: Tensors, count: int) -> Value:
    if value.form == "columns":
        return value
    return Value(value.rows(count).flatten(2), "rows")


def _relu(module: nn.ReLU, value: Value, tensors: Tensors, count: int) -> Value:
    in_place = value.is_own or module.inplace
    return value._replace(tensor=functional.relu(value.tensor, inplace=in_place), is_own=False)


def _elementwise(module: nn.Module, value: Value, tensors: Tensors, count: int) -> Value:
    result: Tensor = type(module).forward(module, value.tensor)
    return value._replace(tensor=result, is_own=False)


_ELEMENTWISE = (nn.Identity, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU,
                nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus,
                nn.Softsign, nn.Mish, nn.LogSigmoid)  # fmt: skip
# What works on vectors and anything else, and what works on images, which pays on a CPU.
PLAIN: Mapping[type[nn.Module], Layer] = {
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
IMAGES: Mapping[type[nn.Module], Layer] = {
    nn.Conv2d: _conv,
    nn.MaxPool2d: _pool,
    nn.AdaptiveAvgPool2d: _mean,
    nn.BatchNorm2d: _norm,
}


def layer_of(module: nn.Module, *, images: bool) -> Layer | None:
    """The rule of a module; None where it has none, or is not torch's very own in its usual way."""
    # A parametrized one, or a subclass, may do something else.
    kind = type(module)
    if kind in PLAIN:
        if isinstance(module, nn.Flatten) and (module.start_dim != 1 or module.end_dim != -1):
            return None
        return PLAIN[kind]
    if not images or kind not in IMAGES:
        return None
    if isinstance(module, nn.Conv2d):
        return IMAGES[kind] if module.padding_mode == "zeros" and module.groups == 1 else None
    if isinstance(module, nn.MaxPool2d):
        return None if module.return_indices else IMAGES[kind]
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return IMAGES[kind] if module.output_size in (1, (1, 1)) else None
    # Without a momentum a BatchNorm counts its batches.
    return None if getattr(module, "momentum", None) is None else IMAGES[kind]
