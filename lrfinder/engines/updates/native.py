"""Native: SGD, Adam and AdamW of torch, written out for stacked tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrfinder.engines.stacking import Stack
from lrfinder.engines.updates.views import Gradients, Update, clip, column_of, shaped
from lrfinder.stepping import Replica


class Native:
    """An optimizer written out for stacked tensors.

    Its state lies in stacks too, one for each kind and parameter; the replicas' optimizers hold
    views of them once there is something in them. What no step changes (columns of learning rates
    that stay as they are, slices of the stacks) is kept from one step to the next.
    """

    states: tuple[str, ...] = ()  # as torch's optimizer names them
    options: tuple[str, ...] = ()  # of a group, likewise
    keeps_counts = True  # whether torch's optimizer keeps the number of its steps

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        shape = (len(stack.parameters), stack.capacity)
        self._rows = {
            kind: [torch.zeros_like(p) for p in stack.parameters] for kind in self.states
        }
        # Steps that each parameter of each row has taken: as numbers, and as torch keeps them.
        self._taken = np.zeros(shape, dtype=np.int64)
        self._counts = torch.zeros(shape, device=stack.device)
        self._shown = np.zeros(shape, dtype=bool)  # whether the optimizer of a row has its state
        self._group_of: list[int] = []
        self._picked = itemgetter(*self.options)
        self._known: list[tuple[Any, ...]] = []  # the options of all groups of all rows
        self._values: list[dict[str, Any]] = []  # group -> option -> its value in each row
        self._columns: list[dict[str, Any]] = []  # group -> option -> number or column
        self._shaped: dict[tuple[Any, ...], Any] = {}  # of these columns
        self._corrections: dict[tuple[Any, ...], Any] = {}  # of this step
        self._slices: list[tuple[Tensor, ...]] = []  # the rows in use of parameters and states

    # -- who is in --------------------------------------------------------------------------------

    def add(self, replica: Replica) -> None:
        """See `Update`."""
        groups = replica.optimizer.param_groups
        where = {id(p): g for g, group in enumerate(groups) for p in group["params"]}
        self._group_of = [where[id(p)] for p in self._stack.trained_of(replica)]
        self._slices = []
        self.load(len(self._stack.replicas) - 1)

    def load(self, row: int) -> None:
        """See `Update`."""
        replica = self._stack.replicas[row]
        for index, parameter in enumerate(self._stack.trained_of(replica)):
            state = replica.optimizer.state.get(parameter) or {}
            begun = all(state.get(kind) is not None for kind in self.states)
            taken = int(state.get("step", 1)) if begun else 0
            self._taken[index, row] = taken
            self._counts[index, row] = taken
            self._shown[index, row] = begun
            for kind in self.states:
                home = self._rows[kind][index][row]
                if not begun:
                    home.zero_()
                elif state[kind].data_ptr() != home.data_ptr():
                    home.copy_(state[kind])
            if begun:
                self._show(replica, index, row)

    def remove(self, replica: Replica, row: int, last: int) -> None:
        """See `Update`."""
        self._slices = []
        for state in replica.optimizer.state.values():
            for kind, value in state.items():
                if isinstance(value, Tensor):
                    # As torch has it: the count of steps is on the CPU.
                    state[kind] = value.cpu().clone() if kind == "step" else value.clone()
        if row == last:
            return
        self._taken[:, row] = self._taken[:, last]
        self._shown[:, row] = self._shown[:, last]
        self._counts[:, row] = self._counts[:, last]
        for index in range(len(self._stack.parameters)):
            for kind in self.states:
                self._rows[kind][index][row].copy_(self._rows[kind][index][last])
            if self._shown[index, row]:
                self._show(self._stack.replicas[row], index, row)

    def _show(self, replica: Replica, index: int, row: int) -> None:
        """Let the replica's optimizer see its state."""
        parameter = self._stack.trained_of(replica)[index]
        state = {kind: self._rows[kind][index][row] for kind in self.states}
        replica.optimizer.state[parameter] = self._as_torch(state, self._counts[index, row])

    def _as_torch(self, state: dict[str, Any], count: Tensor) -> dict[str, Any]:
        return state

    # -- the step ---------------------------------------------------------------------------------

    def step(self, gradients: Gradients) -> None:
        """See `Update`."""
        replicas = self._stack.replicas
        count = len(replicas)
        self._gather()
        if not self._slices:
            stacks = (self._stack.parameters, *self._rows.values())
            self._slices = [tuple(s[:count] for s in each) for each in zip(*stacks, strict=True)]
        with torch.no_grad():
            if replicas[0].options.clip_norm is not None:
                clip(gradients, replicas[0].options.clip_norm)
            used = [index for index, gradient in enumerate(gradients) if gradient is not None]
            which = slice(None) if len(used) == len(gradients) else used
            if self.keeps_counts:
                self._counts[which, :count] += 1
            self._taken[which, :count] += 1
            self._corrections.clear()
            for index in used:
                gradient = gradients[index]
                assert gradient is not None
                self._update(index, gradient, *self._slices[index])
            if not self._shown[which, :count].all():
                for index in used:
                    for row in np.flatnonzero(~self._shown[index, :count]).tolist():
                        self._show(replicas[row], index, row)
                        self._shown[index, row] = True
        for replica in replicas:
            # What torch's optimizers note themselves, for schedulers that warn without it.
            vars(replica.optimizer)["_opt_called"] = True

    def _update(self, index: int, gradient: Tensor, parameter: Tensor, *states: Tensor) -> None:
        raise NotImplementedError

    def _gather(self) -> None:
        """Look at the options of all replicas' groups; columns are made anew where one has changed."""
        replicas, device = self._stack.replicas, self._stack.device
        known = [self._picked(g) for r in replicas for g in r.optimizer.param_groups]
        if known == self._known:
            return
        self._known, self._shaped = known, {}
        number = len(replicas[0].optimizer.param_groups)
        if len(self._columns) != number:
            self._values, self._columns = [{} for _ in range(number)], [{} for _ in range(number)]
        for group, (values, columns) in enumerate(zip(self._values, self._columns, strict=True)):
            rows = zip(*known[group::number], strict=True)
            for name, given in zip(self.options, rows, strict=True):
                if values.get(name) == given:
                    continue
                values[name] = given
                if name == "betas":
                    first, second = zip(*given, strict=True)
                    columns["beta1"] = column_of(first, device)
                    columns["beta2"] = column_of(second, device)
                else:
                    columns[name] = column_of(given, device)

    def _option(self, index: int, name: str) -> Any:
        """An option of a parameter's group: a number where all replicas have the same, or their column.

        A column is of float64, of shape (n,).
        """
        return self._columns[self._group_of[index]][name]

    def _factor(self, index: int, name: str) -> Any:
        """An option as a factor of the parameter's stack: a number, or of shape (n, 1, ...)."""
        column = self._option(index, name)
        if not isinstance(column, Tensor):
            return column
        like = self._stack.parameters[index]
        key = (self._group_of[index], name, like.dtype, like.dim())
        if key not in self._shaped:
            self._shaped[key] = shaped(column, like)
        return self._shaped[key]

    def _correction(self, index: int, name: str) -> Any:
        """1 - base^t of each row's number of steps t; a number where all have the same."""
        base, taken = self._option(index, name), self._taken[index, : len(self._stack.replicas)]
        key = (name, self._group_of[index], taken.tobytes())
        if key not in self._corrections:
            if isinstance(base, Tensor) or (taken != taken[0]).any():
                self._corrections[key] = 1 - base ** self._counts[index, : len(taken)].double()
            else:
                self._corrections[key] = 1 - base ** int(taken[0])
        return self._corrections[key]


class SGD(Native):
    """`torch.optim.SGD`.

    Law: g = grad + wd p; b = mu b + (1 - d) g, and b = g at the first step; p = p - lr (g + mu b)
    with Nesterov, p - lr b without.
    """

    states = ("momentum_buffer",)
    options = ("lr", "momentum", "weight_decay", "dampening", "nesterov")
    keeps_counts = False

    def _update(self, index: int, gradient: Tensor, parameter: Tensor, *states: Tensor) -> None:
        (buffer,) = states
        decay, momentum = self._option(index, "weight_decay"), self._option(index, "momentum")
        if _is_on(decay):
            gradient = _plus(gradient, parameter, self._factor(index, "weight_decay"))
        if _is_on(momentum):
            dampening = self._option(index, "dampening")
            fed = gradient
            if _is_on(dampening):
                # At its first step the whole gradient counts: 1 - d (t > 1).
                later = torch.from_numpy(self._taken[index, : len(parameter)] > 1).double()
                fed = gradient * shaped(1 - dampening * later.to(gradient.device), gradient)
            if isinstance(momentum, Tensor):
                buffer.mul_(self._factor(index, "momentum")).add_(fed)
            else:
                torch.add(fed, buffer, alpha=momentum, out=buffer)
            nesterov = self._option(index, "nesterov")
            gradient = (
                _plus(gradient, buffer, self._factor(index, "momentum")) if nesterov else buffer
            )
        _descend(parameter, gradient, self._factor(index, "lr"))

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


def _descend(parameter: Tensor, direction: Tensor, lr: Any) -> None:
    """Parameter -= lr * direction, in place."""
    if isinstance(lr, Tensor):
        parameter.addcmul_(direction, lr, value=-1)
    else:
        parameter.add_(direction, alpha=-lr)
