"""Updates: the optimizer step of K replicas, each with its own learning rates and its own state.

SGD, Adam and AdamW of torch are written out for stacked tensors, with a table of learning rates of
shape (K, groups). Every other optimizer takes its own step for each replica: it holds views of the
stack, so nothing of it has to be known here. Either way a replica's optimizer has its state where
torch has it, and whoever reads, saves or steps it need not know that it is in a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lrfinder.engines.stacking import Stack
from lrfinder.schedules.schedulers import mark_stepped
from lrfinder.stepping import Replica

Gradients = Sequence[Tensor | None]


class Update(Protocol):
    """What takes the optimizer step of all replicas in a stack."""

    def add(self, replica: Replica) -> None:
        """A replica joined the stack as its last row."""

    def load(self, row: int) -> None:
        """Take over what the optimizer of a row was given as its state."""

    def remove(self, replica: Replica, row: int, last: int) -> None:
        """It left row `row`, to which what was in row `last` has moved."""

    def step(self, gradients: Gradients) -> None:
        """Take the step, with gradients of shape (n, *shape), which may be overwritten."""


def make_update(stack: Stack, start: Replica) -> Update:
    """The fastest way to step the optimizers of replicas as `start`."""
    native = _NATIVE.get(type(start.optimizer))
    if native is None or start.options.scaler is not None or not _is_plain(start):
        return OneByOne(stack)
    return native(stack)


class OneByOne:
    """The replicas' own optimizers step, one after the other, on views of the stack.

    A GradScaler's check for infinities is each replica's own, as its clipping is.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def add(self, replica: Replica) -> None:
        """Nothing to do: the optimizer holds the parameters, which are views now."""

    def load(self, row: int) -> None:
        """Nothing to do: the state is the optimizer's own."""

    def remove(self, replica: Replica, row: int, last: int) -> None:
        """Nothing to do."""

    def step(self, gradients: Gradients) -> None:
        """See `Update`."""
        for row, replica in enumerate(self._stack.replicas):
            for parameter, gradient in zip(
                self._stack.trained_of(replica), gradients, strict=True
            ):
                parameter.grad = None if gradient is None else gradient[row]
            replica.update()
            for parameter in replica.parameters:
                parameter.grad = None


class _Native:
    """An optimizer written out for stacked tensors.

    Its state lies in stacks too, one for each kind and parameter; the replicas' optimizers hold
    views of them once there is something in them.
    """

    states: tuple[str, ...] = ()  # as torch's optimizer names them
    options: tuple[str, ...] = ()  # of a group, likewise

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        shape = (len(stack.parameters), stack.capacity)
        self._rows = {
            kind: [torch.zeros_like(p) for p in stack.parameters] for kind in self.states
        }
        # Steps that each parameter of each row has taken: as numbers, and as torch keeps them.
        self._taken = [[0] * stack.capacity for _ in stack.parameters]
        self._counts = torch.zeros(shape, device=stack.device)
        self._group_of: list[int] = []
        self._rows_known: list[list[tuple[Any, ...]]] = []
        self._columns: list[dict[str, Any]] = []

    # -- who is in --------------------------------------------------------------------------------

    def add(self, replica: Replica) -> None:
        """See `Update`."""
        groups = replica.optimizer.param_groups
        where = {id(p): g for g, group in enumerate(groups) for p in group["params"]}
        self._group_of = [where[id(p)] for p in self._stack.trained_of(replica)]
        self.load(len(self._stack.replicas) - 1)

    def load(self, row: int) -> None:
        """See `Update`."""
        replica = self._stack.replicas[row]
        for index, parameter in enumerate(self._stack.trained_of(replica)):
            state = replica.optimizer.state.get(parameter) or {}
            begun = all(state.get(kind) is not None for kind in self.states)
            taken = int(state.get("step", 1)) if begun else 0
            self._taken[index][row] = taken
            self._counts[index, row] = taken
            for kind in self.states:
                home = self._rows[kind][index][row]
                if begun:
                    home.copy_(state[kind])
                else:
                    home.zero_()
            if begun:
                self._show(replica, index, row)

    def remove(self, replica: Replica, row: int, last: int) -> None:
        """See `Update`."""
        for state in replica.optimizer.state.values():
            for kind, value in state.items():
                if isinstance(value, Tensor):
                    # As torch has it: the count of steps is on the CPU.
                    state[kind] = value.cpu().clone() if kind == "step" else value.clone()
        if row == last:
            return
        for index in range(len(self._stack.parameters)):
            self._taken[index][row] = self._taken[index][last]
            self._counts[index, row] = self._counts[index, last]
            for kind in self.states:
                self._rows[kind][index][row].copy_(self._rows[kind][index][last])
            if self._taken[index][row]:
                self._show(self._stack.replicas[row], index, row)

    def _show(self, replica: Replica, index: int, row: int) -> None:
        """Let the replica's optimizer see its state."""
        parameter = self._stack.trained_of(replica)[index]
        state = {kind: self._rows[kind][index][row] for kind in self.states}
        replica.optimizer.state[parameter] = self._shown(state, self._counts[index, row])

    def _shown(self, state: dict[str, Any], count: Tensor) -> dict[str, Any]:
        return state

    # -- the step ---------------------------------------------------------------------------------

    def step(self, gradients: Gradients) -> None:
        """See `Update`."""
        replicas = self._stack.replicas
        count = len(replicas)
        self._gather()
        with torch.no_grad():
            if replicas[0].options.clip_norm is not None:
                _clip(gradients, replicas[0].options.clip_norm)
            used = [index for index, gradient in enumerate(gradients) if gradient is not None]
            if len(used) == len(gradients):
                self._counts[:, :count] += 1
            else:
                self._counts[used, :count] += 1
            for index in used:
                gradient, taken = gradients[index], self._taken[index]
                fresh = [row for row in range(count) if taken[row] == 0]
                taken[:count] = [number + 1 for number in taken[:count]]
                assert gradient is not None
                self._update(index, self._stack.parameters[index][:count], gradient)
                for row in fresh:
                    self._show(replicas[row], index, row)
        for replica in replicas:
            # What torch's optimizers note themselves, for schedulers that warn without it.
            vars(replica.optimizer)["_opt_called"] = True

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        raise NotImplementedError

    def _gather(self) -> None:
        """Look at the options of all replicas' groups; a table of LRs is made anew where one has changed."""
        optimizers = [replica.optimizer for replica in self._stack.replicas]
        rows = [[self._picked(group) for group in o.param_groups] for o in optimizers]
        if rows == self._rows_known:
            return
        self._rows_known = rows
        device = self._stack.device
        self._columns = [
            dict(
                zip(
                    self.options,
                    (_column(c, device) for c in zip(*group, strict=True)),
                    strict=True,
                )
            )
            for group in zip(*rows, strict=True)
        ]

    def _option(self, index: int, name: str) -> Any:
        """An option of a parameter's group: a number where all replicas have the same, or their column.

        A column is of float64, of shape (n,).
        """
        return self._columns[self._group_of[index]][name]

    def _picked(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return tuple([group[name] for name in self.options])

    def _powers(self, index: int, base: Any) -> Any:
        """1 - base^t of each row's number of steps t; a number where all have the same."""
        taken = self._taken[index][: len(self._stack.replicas)]
        if not isinstance(base, Tensor) and all(number == taken[0] for number in taken):
            return 1 - base ** taken[0]
        return 1 - base ** self._counts[index, : len(taken)].double()


class SGD(_Native):
    """`torch.optim.SGD`.

    Law: g = grad + wd p; b = mu b + (1 - d) g, and b = g at the first step; p = p - lr (g + mu b)
    with Nesterov, p - lr b without.
    """

    states = ("momentum_buffer",)
    options = ("lr", "momentum", "weight_decay", "dampening", "nesterov")

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        decay, momentum = self._option(index, "weight_decay"), self._option(index, "momentum")
        if _is_on(decay):
            gradient = _plus(gradient, parameter, decay)
        if _is_on(momentum):
            buffer = self._rows["momentum_buffer"][index][: len(parameter)]
            dampening = self._option(index, "dampening")
            fed = gradient
            if _is_on(dampening):
                # At its first step the whole gradient counts: 1 - d (t > 1).
                later = (self._counts[index, : len(parameter)] > 1).double()
                fed = gradient * _shaped(1 - dampening * later, gradient)
            if isinstance(momentum, Tensor):
                buffer.mul_(_shaped(momentum, buffer)).add_(fed)
            else:
                torch.add(fed, buffer, alpha=momentum, out=buffer)
            nesterov = self._option(index, "nesterov")
            gradient = _plus(gradient, buffer, momentum) if nesterov else buffer
        _descend(parameter, gradient, self._option(index, "lr"))

    def _show(self, replica: Replica, index: int, row: int) -> None:
        if replica.optimizer.param_groups[self._group_of[index]]["momentum"] != 0:
            super()._show(replica, index, row)


class Adam(_Native):
    """`torch.optim.Adam`: the decay is a part of the gradient.

    Law: m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p = p - lr m / (1 - b1^t) / (sqrt(v) /
    sqrt(1 - b2^t) + eps).
    """

    states = ("exp_avg", "exp_avg_sq")
    options = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def _shown(self, state: dict[str, Any], count: Tensor) -> dict[str, Any]:
        return {"step": count, **state}

    def _picked(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (group["lr"], *group["betas"], group["eps"], group["weight_decay"])

    def _decay(self, parameter: Tensor, gradient: Tensor, lr: Any, decay: Any) -> Tensor:
        return _plus(gradient, parameter, decay)

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        lr, decay = self._option(index, "lr"), self._option(index, "weight_decay")
        if _is_on(decay):
            gradient = self._decay(parameter, gradient, lr, decay)
        betas = [self._option(index, "beta1"), self._option(index, "beta2")]
        mean, square = (self._rows[kind][index][: len(parameter)] for kind in self.states)
        mean.lerp_(gradient, _shaped(1 - betas[0], mean))
        if isinstance(betas[1], Tensor):
            square.mul_(_shaped(betas[1], square))
            square.add_(gradient.square().mul_(_shaped(1 - betas[1], square)))
        else:
            square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        root = self._powers(index, betas[1]) ** 0.5
        below = square.sqrt().div_(_shaped(root, square))
        below.add_(_shaped(self._option(index, "eps"), below))
        size = lr / self._powers(index, betas[0])
        _descend(parameter, torch.div(mean, below, out=below), size)


class AdamW(Adam):
    """`torch.optim.AdamW`: as Adam, with p = p (1 - lr wd) before, in the place of the decay there."""

    def _decay(self, parameter: Tensor, gradient: Tensor, lr: Any, decay: Any) -> Tensor:
        parameter.mul_(_shaped(1 - lr * decay, parameter))
        return gradient


_NATIVE: dict[type, Callable[[Stack], Update]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
}


def _is_plain(replica: Replica) -> bool:
    """Whether nothing is asked of the optimizer that is not written here."""
    optimizer = replica.optimizer
    usual = {"decoupled_weight_decay": type(optimizer) is torch.optim.AdamW}
    usual |= dict.fromkeys(("amsgrad", "maximize", "differentiable", "capturable"), False)
    for group in optimizer.param_groups:
        if any(bool(group[key]) != value for key, value in usual.items() if key in group):
            return False
        if any(isinstance(value, Tensor) for value in (*group.values(), *group.get("betas", ()))):
            return False
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    hooked = any(hook is not mark_stepped for some in hooks for hook in some.values())
    return not hooked and not any(p.is_complex() for p in replica.parameters)


def _clip(gradients: Gradients, clip_norm: float) -> None:
    """Scale each replica's gradients to a 2-norm of at most `clip_norm`, as `clip_grad_norm_` does."""
    found = [gradient for gradient in gradients if gradient is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in found])
    factor = (clip_norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in found:
        gradient.mul_(_shaped(factor, gradient))


def _column(values: Sequence[Any], device: torch.device) -> Any:
    if all(value == values[0] for value in values):
        return values[0]
    made = torch.tensor(values, dtype=torch.float64)
    return made if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)


def _shaped(column: Any, like: Tensor) -> Any:
    """A column as something that meets stacked tensors row by row; a number as it is."""
    if not isinstance(column, Tensor):
        return column
    return column.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def _is_on(value: Any) -> bool:
    return isinstance(value, Tensor) or value != 0


def _plus(one: Tensor, other: Tensor, factor: Any) -> Tensor:
    """Sum: one + factor * other."""
    if isinstance(factor, Tensor):
        return torch.addcmul(one, other, _shaped(factor, one))
    return torch.add(one, other, alpha=factor)


def _descend(parameter: Tensor, direction: Tensor, lr: Any) -> None:
    """Parameter -= lr * direction, in place."""
    if isinstance(lr, Tensor):
        parameter.addcmul_(direction, _shaped(lr, parameter), value=-1)
    else:
        parameter.add_(direction, alpha=-lr)
