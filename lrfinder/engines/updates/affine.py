"""Affine: one optimizer of torch steps all replicas at LR 1, and each goes its own share of the way.

Law: p_k + lr_k (u(p_k) - p_k), with u(p) what one step of the optimizer at lr = 1 makes of p. It is
the step at lr_k for every optimizer that works on each element by itself and in proportion to its
learning rate. Of torch's these are `AFFINE`; not ASGD, Rprop, Adafactor, Muon and LBFGS. Rounding
is that of p at lr = 1, and does not depend on who else is in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrfinder.engines.stacking import Stack
from lrfinder.engines.updates.views import Gradients, Views, clip, column_of, shaped
from lrfinder.stepping import Replica

AFFINE: frozenset[type] = frozenset(
    (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.RMSprop,
    )
)


class Affine:
    """An optimizer that is stepped once for all rows, where they have taken as many steps each.

    Its state lies in stacks, of which the replicas' optimizers hold views. Rows that have taken
    different numbers of steps, or differ in an option beside the learning rate, are stepped one by
    one.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._views = Views(stack)
        self._homes: list[dict[str, Tensor]] = [{} for _ in stack.parameters]
        self._alike: bool | None = None  # whether rows have taken as many steps; None: not known
        self._shown = False  # whether the replicas' optimizers have their views
        self._made: torch.optim.Optimizer | None = None  # of all rows in use
        self._options: list[dict[str, Any]] = []  # that it was made with
        self._leaves: list[nn.Parameter] = []

    # -- who is in --------------------------------------------------------------------------------

    def add(self, replica: Replica) -> None:
        """See `Update`."""
        self.load(len(self._stack.replicas) - 1)

    def load(self, row: int) -> None:
        """See `Update`."""
        self._alike = self._made = None
        self._shown = False
        replica = self._stack.replicas[row]
        for index, parameter in enumerate(self._stack.trained_of(replica)):
            state = replica.optimizer.state.get(parameter) or {}
            for kind, value in state.items():
                if isinstance(value, Tensor):
                    place = self._home(index, kind, value, value.dim())[row]
                    if place.data_ptr() != value.data_ptr():
                        place.copy_(value)
                    state[kind] = place

    def remove(self, replica: Replica, row: int, last: int) -> None:
        """See `Update`."""
        self._alike = self._made = None
        for state in replica.optimizer.state.values():
            for kind, value in state.items():
                if isinstance(value, Tensor):
                    state[kind] = value.clone()
        if row != last:
            self.load(row)  # whose state is still that of row `last`

    def _home(self, index: int, kind: str, value: Tensor, dim: int) -> Tensor:
        """Where a kind of state lies: (capacity, *shape), or (capacity,) of a number."""
        homes = self._homes[index]
        if kind not in homes:
            like, capacity = self._stack.parameters[index], self._stack.capacity
            homes[kind] = (
                torch.zeros_like(like, dtype=value.dtype)
                if dim
                else torch.zeros(capacity, dtype=value.dtype, device=value.device)
            )
        return homes[kind]

    # -- the step ---------------------------------------------------------------------------------

    def step(self, gradients: Gradients) -> None:
        """See `Update`."""
        replicas = self._stack.replicas
        names = [name for name in replicas[0].optimizer.defaults if name != "lr"]
        options = [
            [{name: group[name] for name in names} for group in replica.optimizer.param_groups]
            for replica in replicas
        ]
        if self._alike is None:
            first = self._numbers(replicas[0])
            self._alike = all(self._numbers(replica) == first for replica in replicas[1:])
        if not self._alike or any(other != options[0] for other in options[1:]):
            self._views.step(gradients)
            for row in range(len(replicas)):
                self.load(row)
            return
        with torch.no_grad():
            if replicas[0].options.clip_norm is not None:
                clip(gradients, replicas[0].options.clip_norm)
            self._together(gradients, options[0])
        for replica in replicas:
            # What torch's optimizers note themselves, for schedulers that warn without it.
            vars(replica.optimizer)["_opt_called"] = True

    def _numbers(self, replica: Replica) -> list[dict[str, Any]]:
        """What must be the same in all rows: which states there are, and those that are numbers."""
        states = [replica.optimizer.state.get(p) or {} for p in self._stack.trained_of(replica)]
        return [
            {
                kind: float(v) if isinstance(v, Tensor) and not v.dim() else None
                for kind, v in s.items()
            }
            for s in states
        ]

    def _together(self, gradients: Gradients, options: list[dict[str, Any]]) -> None:
        if self._made is None or options != self._options:
            self._make(options)
        assert self._made is not None
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        before = {index: self._leaves[index].clone() for index in used}
        for leaf, gradient in zip(self._leaves, gradients, strict=True):
            leaf.grad = gradient
        self._made.step()
        replicas = self._stack.replicas
        rates = [
            column_of([r.optimizer.param_groups[g]["lr"] for r in replicas], self._stack.device)
            for g in range(len(options))
        ]
        group_of = self._groups()
        for index in used:
            leaf = self._leaves[index]
            leaf.copy_(torch.lerp(before[index], leaf, shaped(rates[group_of[index]], leaf)))
            leaf.grad = None
            self._keep(index)
        self._shown = True

    def _groups(self) -> list[int]:
        replica = self._stack.replicas[0]
        groups = replica.optimizer.param_groups
        where = {id(p): g for g, group in enumerate(groups) for p in group["params"]}
        return [where[id(p)] for p in self._stack.trained_of(replica)]

    def _make(self, options: Sequence[dict[str, Any]]) -> None:
        """An optimizer of the rows in use, which stands where theirs do."""
        replicas = self._stack.replicas
        count = len(replicas)
        self._leaves = [nn.Parameter(stack[:count]) for stack in self._stack.parameters]
        self._options = [dict(each) for each in options]
        groups: list[dict[str, Any]] = [
            {**each, "lr": 1.0, "params": []} for each in self._options
        ]
        for leaf, group in zip(self._leaves, self._groups(), strict=True):
            groups[group]["params"].append(leaf)
        kind: Any = type(replicas[0].optimizer)
        self._made = kind(groups)
        assert self._made is not None
        self._made.state.clear()  # Adagrad's has some from the beginning
        for leaf, parameter, homes in zip(
            self._leaves, self._stack.trained_of(replicas[0]), self._homes, strict=True
        ):
            for kind, value in (replicas[0].optimizer.state.get(parameter) or {}).items():
                if isinstance(value, Tensor):
                    own = homes[kind][:count] if value.dim() else value.clone()
                    self._made.state[leaf][kind] = own

    def _keep(self, index: int) -> None:
        """Put what the optimizer of all has as its state to where each row has it."""
        assert self._made is not None
        replicas, state = self._stack.replicas, self._made.state[self._leaves[index]]
        count = len(replicas)
        for kind, value in state.items():
            home = self._home(index, kind, value, value.dim())
            if not value.dim():
                home[:count] = value
            elif value.data_ptr() != home.data_ptr():
                home[:count] = value
                state[kind] = home[:count]
            for row, replica in enumerate(() if self._shown else replicas):
                parameter = self._stack.trained_of(replica)[index]
                replica.optimizer.state[parameter][kind] = home[row]
