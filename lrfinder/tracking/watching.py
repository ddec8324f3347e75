"""Watching: what an optimizer does to each of its groups, measured now and then on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrfinder.groups import param_group_names

WATCHABLE = ("grad_norm", "update_ratio", "momentum", "weight_decay")


class Watch:
    """Measures each group at every so many steps of an optimizer, from its own step hooks.

    Law, of a group with weights w, gradients g (as the step takes them: clipped) and the step's
    change d: `grad_norm/<group>` = |g|, `update_ratio/<group>` = |d| / |w|, both 2-norms over all
    tensors of the group, |w| before the step; `momentum/<group>` is the option `momentum`, else
    `betas[0]`; `weight_decay/<group>` the option of that name. A group that has no such option, or
    no gradients, has no such value. Non-finite norms are given as they are. Nothing waits for the
    device. `update_ratio` copies the weights at the steps that are measured.

    Args:
        optimizer: Any torch optimizer.
        what: Of `grad_norm`, `update_ratio`, `momentum`, `weight_decay`.
        every: Steps from one measurement to the next, >= 1.

    Raises:
        ValueError: If an argument is out of its bounds.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=0.5)
        >>> watch = Watch(optimizer, every=1, what=("grad_norm", "update_ratio"))
        >>> weight.square().sum().mul(0.5).backward()
        >>> optimizer.step()
        >>> {name: float(value) for name, value in watch.take().items()}
        {'grad_norm/all': 5.0, 'update_ratio/all': 0.5}
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 10,
        what: Sequence[str] = WATCHABLE,
    ) -> None:
        if every < 1:
            raise ValueError(f"`every >= 1` must hold, but got every={every}.")
        unknown = [name for name in what if name not in WATCHABLE]
        if unknown or not what:
            raise ValueError(f"`what` must be of {', '.join(WATCHABLE)}, but got {list(what)}.")
        self._what = frozenset(what)
        self._every = every
        self._step = 0
        self._before: list[list[Tensor]] = []
        self._found: dict[str, float | Tensor] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def take(self) -> dict[str, float | Tensor]:
        """What was measured at the last step; nothing where that was not to be measured."""
        found, self._found = self._found, {}
        return found

    def remove(self) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._step % self._every == 0 and "update_ratio" in self._what:
            self._before = [
                [tensor.detach().clone() for tensor in group["params"]]
                for group in optimizer.param_groups
            ]

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        due = self._step % self._every == 0
        self._step += 1
        if not due:
            self._found = {}
            return
        found: dict[str, float | Tensor] = {}
        names = param_group_names(optimizer)
        for i, (name, group) in enumerate(zip(names, optimizer.param_groups, strict=True)):
            # An optimizer that needs a closure has made its gradients inside its step.
            grads = [tensor.grad for tensor in group["params"] if tensor.grad is not None]
            if "grad_norm" in self._what and grads:
                found[f"grad_norm/{name}"] = _norm(grads)
            if "update_ratio" in self._what and group["params"]:
                before = self._before[i]
                change = torch._foreach_sub(list(group["params"]), before)
                found[f"update_ratio/{name}"] = _norm(change) / _norm(before)
            if "momentum" in self._what and (value := _momentum(group)) is not None:
                found[f"momentum/{name}"] = value
            if "weight_decay" in self._what and "weight_decay" in group:
                found[f"weight_decay/{name}"] = float(group["weight_decay"])
        self._before = []
        self._found = found


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm over all tensors, on the first one's device."""
    norms = torch._foreach_norm(list(tensors))
    together: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    return together


def _momentum(group: dict[str, Any]) -> float | None:
    if "momentum" in group:
        return float(group["momentum"])
    return float(group["betas"][0]) if "betas" in group else None
