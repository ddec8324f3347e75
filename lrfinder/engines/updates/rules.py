"""Rules: the steps of SGD, Adam and AdamW, as torch has them, of stacked tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lrfinder.engines.stacking import Stack
from lrfinder.engines.updates.native import Native
from lrfinder.engines.updates.views import Update, shaped
from lrfinder.stepping import Replica


class SGD(Native):
    """`torch.optim.SGD`.

    Law: g = grad + wd p; b = mu b + (1 - d) g, and b = g at the first step; p = p - lr (g + mu b)
    with Nesterov, p - lr b without.
    """

    states = ("momentum_buffer",)
    options = ("lr", "momentum", "weight_decay", "dampening", "nesterov")
    keeps_counts = False

    def is_capturable(self) -> bool:
        """See `Native`. Which step of a row is its first, for dampening, is known on the host."""
        groups = self._stack.replicas[0].optimizer.param_groups
        return all(group["dampening"] == 0 for group in groups)

    def _resolve(self, index: int) -> Any:
        names = ("momentum", "weight_decay", "dampening", "lr")
        numbers = [self._factor(index, name) for name in names]
        return *numbers, bool(self._option(index, "nesterov"))

    def _update(self, index: int, gradient: Tensor, parameter: Tensor, *states: Tensor) -> None:
        (buffer,) = states
        momentum, decay, dampening, lr, nesterov = self._resolved[index]
        if _is_on(decay):
            gradient = _plus(gradient, parameter, decay)
        if _is_on(momentum):
            fed = gradient
            if _is_on(dampening):
                # At its first step the whole gradient counts: 1 - d (t > 1).
                self._settle(len(parameter))
                later = torch.from_numpy(self._taken[index, : len(parameter)] > 1)
                later = shaped(later.to(gradient.device), gradient)
                fed = gradient * (1 - dampening * later)
            if isinstance(momentum, Tensor):
                buffer.mul_(momentum).add_(fed)
            else:
                torch.add(fed, buffer, alpha=momentum, out=buffer)
            gradient = _plus(gradient, buffer, momentum) if nesterov else buffer
        if isinstance(lr, Tensor):
            parameter.addcmul_(gradient, lr, value=-1)
        else:
            parameter.add_(gradient, alpha=-lr)

    def _show(self, replica: Replica, index: int, row: int) -> None:
        if replica.optimizer.param_groups[self._group_of[index]]["momentum"] != 0:
            super()._show(replica, index, row)


class Adam(Native):
    """`torch.optim.Adam`: the decay is a part of the gradient.

    Law: m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p = p - lr m / (1 - b1^t) / (sqrt(v) /
    sqrt(1 - b2^t) + eps).
    """

    states = ("exp_avg", "exp_avg_sq")
    options = ("lr", "betas", "eps", "weight_decay")

    def _as_torch(self, state: dict[str, Any], count: Tensor) -> dict[str, Any]:
        return {"step": count, **state}

    def _decay(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        return _plus(gradient, parameter, self._factor(index, "weight_decay"))

    def _update(self, index: int, gradient: Tensor, parameter: Tensor, *states: Tensor) -> None:
        mean, square = states
        if _is_on(self._option(index, "weight_decay")):
            gradient = self._decay(index, parameter, gradient)
        mean.lerp_(gradient, shaped(1 - self._option(index, "beta1"), mean))
        beta = self._option(index, "beta2")
        if isinstance(beta, Tensor):
            square.mul_(shaped(beta, square))
            square.add_(gradient.square().mul_(shaped(1 - beta, square)))
        else:
            square.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)
        below = square.sqrt().div_(shaped(self._correction(index, "beta2") ** 0.5, square))
        below.add_(self._factor(index, "eps"))
        size = self._option(index, "lr") / self._correction(index, "beta1")
        if isinstance(size, Tensor):
            torch.div(mean, below, out=below)
            parameter.addcmul_(below, shaped(size, parameter), value=-1)
        else:
            parameter.addcdiv_(mean, below, value=-size)


class AdamW(Adam):
    """`torch.optim.AdamW`: as Adam, with p = p (1 - lr wd) before, in the place of the decay there."""

    def _decay(self, index: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        kept = 1 - self._option(index, "lr") * self._option(index, "weight_decay")
        parameter.mul_(shaped(kept, parameter))
        return gradient


NATIVE: Mapping[type, Callable[[Stack], Update]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
}


def _is_on(value: Any) -> bool:
    return isinstance(value, Tensor) or value != 0


def _plus(one: Tensor, other: Tensor, factor: Any) -> Tensor:
    """Sum: one + factor * other."""
    if isinstance(factor, Tensor):
        return torch.addcmul(one, other, factor)
    return torch.add(one, other, alpha=factor)
