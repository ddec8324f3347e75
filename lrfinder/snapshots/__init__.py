"""Snapshots: put a model, its optimizer and the random state back, bit for bit.

What a range test does between two lines of a training must leave no trace in it. Tensors are
restored *in place*, so every reference that others hold (a scheduler, an EMA, a DDP wrapper) stays
valid.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrfinder.snapshots.random_states import (
    RandomState,
    loader_generators,
    random_state,
    set_random_state,
)

__all__ = [
    "RandomState",
    "Snapshot",
    "loader_generators",
    "preserved",
    "random_state",
    "set_random_state",
    "trained_tensors",
]

Restore = Callable[[], None]


def trained_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer step may change: trainable parameters, and whatever the optimizer holds."""
    held = {id(p): p for p in model.parameters() if p.requires_grad}
    held |= {id(p): p for group in optimizer.param_groups for p in group["params"]}
    return list(held.values())


class Snapshot:
    """A copy of all that training changes, which can be put back as often as wanted.

    Kept: trainable parameters, all buffers (non-persistent ones too), gradients, `train()` flags,
    the optimizer's state and the options of its groups, the scaler, the random states, and the
    generators of the loaders. Frozen parameters are not copied: no optimizer step changes them. Attached schedulers
    need no copy, since nothing here steps them; the flags and LRs that they keep on the optimizer
    are part of it.

    Args:
        model: Any module.
        optimizer: The optimizer of its parameters.
        scaler: A gradient scaler that the training uses, if any.
        loaders: Loaders whose own generators must be put back.

    Memory: one copy of the trainable parameters, buffers, gradients and optimizer state, where
    they are.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scaler: torch.amp.GradScaler | None = None,
        loaders: Iterable[Any] = (),
    ) -> None:
        self._restores: list[Restore] = [
            *(_keep_parameter(tensor) for tensor in trained_tensors(model, optimizer)),
            *(_keep_buffers(module) for module in model.modules()),
            *(_keep_training_flag(module) for module in model.modules()),
            _keep_optimizer(optimizer),
        ]
        if scaler is not None:
            self._restores.append(_keep_attributes(scaler))
        for loader in loaders:
            self._restores.extend(
                _keep_generator(generator) for generator in loader_generators(loader)
            )
        self._random_state = random_state()

    def restore(self) -> None:
        """Put everything back, bit for bit. May be called any number of times."""
        with torch.no_grad():
            for restore in self._restores:
                restore()
        set_random_state(self._random_state)


@contextmanager
def preserved(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler | None = None,
    loaders: Iterable[Any] = (),
) -> Iterator[Snapshot]:
    """Everything inside leaves no trace: the snapshot is restored at the end, also after an exception or Ctrl-C.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> before = model.weight.detach().clone()
        >>> with preserved(model, optimizer):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> torch.equal(model.weight, before), model.weight.grad
        (True, None)
    """
    snapshot = Snapshot(model, optimizer, scaler=scaler, loaders=loaders)
    try:
        yield snapshot
    finally:
        snapshot.restore()


def _keep_parameter(parameter: Tensor) -> Restore:
    value = parameter.detach().clone()
    gradient = parameter.grad
    gradient_value = None if gradient is None else gradient.detach().clone()

    def restore() -> None:
        parameter.detach().copy_(value)
        if gradient is not None and gradient_value is not None:
            gradient.detach().copy_(gradient_value)
        parameter.grad = gradient

    return restore


def _keep_buffers(module: nn.Module) -> Restore:
    # A module may put a new tensor in a buffer's place: the object is put back, then its value.
    kept = [(name, buffer, None if buffer is None else buffer.detach().clone())
            for name, buffer in module._buffers.items()]  # fmt: skip

    def restore() -> None:
        module._buffers.clear()
        for name, buffer, value in kept:
            module._buffers[name] = buffer
            if buffer is not None and value is not None:
                buffer.detach().copy_(value)

    return restore


def _keep_training_flag(module: nn.Module) -> Restore:
    flag = module.training

    def restore() -> None:
        module.training = flag

    return restore


def _keep_generator(generator: torch.Generator) -> Restore:
    state = generator.get_state()

    def restore() -> None:
        generator.set_state(state)

    return restore


def _keep_optimizer(optimizer: torch.optim.Optimizer) -> Restore:
    state = {parameter: _keep(value) for parameter, value in optimizer.state.items()}
    groups = [
        (group, {key: _keep(value) for key, value in group.items() if key != "params"})
        for group in optimizer.param_groups
    ]
    # Set by `optimizer.step` for the scheduler's warning about the order of calls.
    opt_called = getattr(optimizer, "_opt_called", None)

    def restore() -> None:
        optimizer.state.clear()
        for parameter, put_back in state.items():
            optimizer.state[parameter] = put_back()
        optimizer.param_groups[:] = [group for group, _ in groups]
        for group, options in groups:
            for key in [key for key in group if key != "params" and key not in options]:
                del group[key]
            for key, put_back in options.items():
                group[key] = put_back()
        if opt_called is None:
            vars(optimizer).pop("_opt_called", None)
        else:
            vars(optimizer)["_opt_called"] = opt_called

    return restore


def _keep_attributes(thing: object) -> Restore:
    kept = {name: _keep(value) for name, value in vars(thing).items()}

    def restore() -> None:
        for name in [name for name in vars(thing) if name not in kept]:
            delattr(thing, name)
        for name, put_back in kept.items():
            setattr(thing, name, put_back())

    return restore


def _keep(value: Any) -> Callable[[], Any]:
    """A function that returns the same object with the value that it has now."""
    if isinstance(value, Tensor):
        copied = value.detach().clone()

        def tensor() -> Tensor:
            value.detach().copy_(copied)
            return value

        return tensor
    if isinstance(value, dict):
        parts = {key: _keep(part) for key, part in value.items()}

        def mapping() -> Any:
            value.clear()
            value.update({key: part() for key, part in parts.items()})
            return value

        return mapping
    if isinstance(value, list):
        items = [_keep(part) for part in value]

        def sequence() -> Any:
            value[:] = [part() for part in items]
            return value

        return sequence
    if callable(value) or isinstance(
        value, (str, bytes, int, float, complex, bool, type(None), tuple)
    ):
        return lambda: value
    frozen = copy.deepcopy(value)
    return lambda: copy.deepcopy(frozen)
