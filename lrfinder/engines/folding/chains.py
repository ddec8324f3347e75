"""Chains: layers one after another, taken for all replicas in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lrfinder.engines.folding.layers import IMAGES, Layer, Value, layer_of
from lrfinder.engines.folding.lifting import AVAILABLE, Stacked, apply


def folded(model: nn.Module, *, convolutions: bool) -> nn.Module:
    """The model with its layers replaced, where they are torch's very own.

    Args:
        model: It is changed.
        convolutions: Whether also those of images, which pays on a CPU.
    """
    for module in model.modules() if AVAILABLE else ():
        if type(module) is nn.Sequential:
            # Before the class's own.
            vars(module)["forward"] = _Sequence(_links_of(module), images=convolutions)
        elif (layer := layer_of(module, images=convolutions)) is not None:
            vars(module)["forward"] = _Chain([(module, layer)])
    return model


def _links_of(sequence: nn.Sequential) -> list[nn.Module]:
    """The modules that a sequence calls, those of sequences in it too."""
    links: list[nn.Module] = []
    for module in sequence:
        if type(module) is nn.Sequential and not _is_hooked(module):
            links += _links_of(module)
        else:
            links.append(module)
    return links


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody looks at its calls."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )


class _Sequence:
    """The forward of a Sequential: its parts one after another, of which some are chains."""

    def __init__(self, modules: Sequence[nn.Module], *, images: bool) -> None:
        self.parts: list[Callable[[Any], Any]] = []
        chain: list[tuple[nn.Module, Layer]] = []
        for module in modules:
            layer = None if _is_hooked(module) else layer_of(module, images=images)
            if layer is not None:
                chain.append((module, layer))
                continue
            self._end(chain)
            chain = []
            self.parts.append(module)
        self._end(chain)

    def _end(self, chain: list[tuple[nn.Module, Layer]]) -> None:
        if chain:
            self.parts.append(_Chain(chain))

    def __call__(self, inputs: Any) -> Any:
        for part in self.parts:
            inputs = part(inputs)
        return inputs


class _Chain:
    """Layers one after another."""

    def __init__(self, links: Sequence[tuple[nn.Module, Layer]]) -> None:
        self.links = _pooled_first(links)
        self.plainly = [module for module, _ in links]
        kinds = {type(module) for module in self.plainly}
        self.images = bool(kinds & IMAGES.keys())
        self.least = 2 if nn.Flatten in kinds else 1  # dimensions of an input

    def __call__(self, inputs: Any) -> Any:
        dims = inputs.dim() if isinstance(inputs, Tensor) else 0
        if dims < self.least or (self.images and dims != 4):
            return self.plain(inputs)
        tensors = [
            tensor
            for module, _ in self.links
            for tensor in (*module._parameters.values(), *module._buffers.values())
        ]
        return apply(self.rule, self.plain, (inputs, *tensors))

    def plain(self, inputs: Any, *tensors: Tensor | None) -> Any:
        """As torch has it."""
        for module in self.plainly:
            inputs = _called(module, inputs)
        return inputs

    def rule(self, count: int, parts: Sequence[Stacked | None]) -> Stacked:
        """Of all replicas."""
        assert parts[0] is not None
        value, at = Value.of(parts[0]), 1
        for module, layer in self.links:
            end = at + len(module._parameters) + len(module._buffers)
            own = parts[at:end]
            if value.form == "shared" and all(part is None or part.dim is None for part in own):
                value = Value(_called(module, value.tensor), "shared")  # once for all
            else:
                value = layer(module, value, own, count)
            at = end
        return value.stacked(count)


def _called(module: nn.Module, inputs: Any) -> Any:
    return type(module).forward(module, inputs)


def _pooled_first(links: Sequence[tuple[nn.Module, Layer]]) -> list[tuple[nn.Module, Layer]]:
    """A ReLU before a max pooling after it: the same values and gradients, of fewer activations.

    Law: max_i relu(x_i) = relu(max_i x_i), at the same i; where it is 0 there is no gradient.
    """
    links = list(links)
    for at in range(1, len(links) - 1):  # the first may work on its caller's tensor, in place
        if type(links[at][0]) is nn.ReLU and type(links[at + 1][0]) is nn.MaxPool2d:
            links[at : at + 2] = links[at + 1], links[at]
    return links
