"""States: where a replica stands, kept in CPU memory until it is taken further."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from lrfinder.engines.batches import num_bytes
from lrfinder.snapshots import random_state, set_random_state, trained_tensors
from lrfinder.stepping import Replica


class State:
    """Where a replica stands; loaded into one of its kind that is at its start.

    Args:
        replica: It is copied; the random states of the process are taken for its own.
    """

    def __init__(self, replica: Replica) -> None:
        model, optimizer = replica.model, replica.optimizer
        self._tensors = [_on_cpu(tensor) for tensor in trained_tensors(model, optimizer)]
        # By name, since a module may have put a new tensor in a buffer's place.
        self._buffers = {name: _on_cpu(buffer) for name, buffer in model.named_buffers()}
        # By number, since another replica has other parameters.
        self._optimizer = {
            number: _moved(optimizer.state[parameter])
            for number, parameter in enumerate(replica.parameters)
            if parameter in optimizer.state
        }
        self._groups = [
            {key: _moved(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        scaler = replica.options.scaler
        self._scaler = None if scaler is None else copy.deepcopy(vars(scaler))
        self._random = random_state()
        parts = (self._tensors, self._buffers, list(self._optimizer.values()))
        self.size = sum(num_bytes(part) for part in parts)

    def load(self, replica: Replica) -> None:
        """Make the replica stand here, and the random states of the process."""
        model, optimizer, scaler = replica.model, replica.optimizer, replica.options.scaler
        buffers = dict(model.named_buffers())
        with torch.no_grad():
            for tensor, value in zip(
                trained_tensors(model, optimizer), self._tensors, strict=True
            ):
                tensor.copy_(value)
            for name, value in self._buffers.items():
                buffers[name].copy_(value)
        optimizer.state.clear()
        for number, value in self._optimizer.items():
            optimizer.state[replica.parameters[number]] = _moved(value, back=True)
        for group, options in zip(optimizer.param_groups, self._groups, strict=True):
            # LRs are the plan's affair, and one kept in a tensor must stay that tensor.
            group.update({k: _moved(v, back=True) for k, v in options.items() if k != "lr"})
        if scaler is not None and self._scaler is not None:
            vars(scaler).update(copy.deepcopy(self._scaler))
        set_random_state(self._random)


class _Moved:
    """A tensor's value in CPU memory, and where it came from."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        self.value = _on_cpu(tensor)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _moved(value: Any, *, back: bool = False) -> Any:
    """A copy of a nested value of an optimizer, with its tensors on the CPU, or back again."""
    if isinstance(value, _Moved) and back:
        return value.value.to(value.device, copy=True)
    if isinstance(value, Tensor):
        return _Moved(value)
    if isinstance(value, dict):
        return {key: _moved(part, back=back) for key, part in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_moved(part, back=back) for part in value)
    return copy.deepcopy(value)
