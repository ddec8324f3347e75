"""Stacking: models of one architecture as rows of shared tensors, whose losses are taken in one call.

A replica that joins keeps its model and its optimizer: their tensors become views of row k of the
stack, so whatever looks at them (evaluation, a checkpoint, a scheduler) sees the row. What no step
changes and all replicas have alike stays one tensor, and what is computed of such tensors alone, as
a frozen trunk on a batch that all see, is computed once.
"""

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrfinder.engines.folding import folded, folded_loss
from lrfinder.engines.randomness import RandomPerReplica, Stream
from lrfinder.stepping import Replica, autocast, check_loss
from lrfinder.tasks import Batch, move_to

# More at a time bring little: the CPU's caches are full, a GPU is busy.
MOST_ON_CPU, MOST_ON_GPU = 64, 512

Place = tuple[nn.Module, str]
Result = TypeVar("Result")


class Unfit(RuntimeError):  # noqa: N818 - a verdict on a training, and no error of a user
    """A training that cannot go in lockstep; the message says why."""


class Stack:
    """Replicas in rows 0 .. n - 1 of stacked tensors of shape (capacity, *shape).

    Law: losses[k] = loss_fn(model_k, batch_k) and gradients[p][k] = d losses[k] / d p_k, for all k in
    one call of `torch.func.vmap`.

    Args:
        start: A replica of the kind that will join. Its frozen parameters and the buffers that are
            not `changing` are shared by all rows, and must not change.
        capacity: Rows, >= 1.
        changing: Names of the buffers that a step changes.
        fold: Whether convolutions work on all replicas' channels side by side; see `folding`.

    Raises:
        Unfit: If the optimizer holds tensors that are no parameters of the model, a parameter has
            hooks, or the model cannot be copied.

    Source: vmap over stacked models: Horace He and Richard Zou, functorch, 2021.
    """

    def __init__(
        self, start: Replica, capacity: int, *, changing: Iterable[str] = (), fold: bool = True
    ) -> None:
        model, changing = start.model, set(changing)
        self.capacity = capacity
        self.replicas: list[Replica] = []
        self._held: dict[int, list[nn.Parameter]] = {}  # id of a replica -> its trained parameters
        self.trained = _trained_names(start)
        self.skeleton = _skeleton(model, set(self.trained), changing, fold=fold)
        self._loss_fn = folded_loss(start.loss_fn)
        self._options = start.options
        self.device = start.device
        own = dict(model.named_parameters())
        self._kind = _kind(start)
        self._shared: dict[str, Tensor] = {
            name: p for name, p in own.items() if name not in self.trained
        }
        buffers = dict(model.named_buffers())
        self._shared |= {name: b for name, b in buffers.items() if name not in changing}
        self._buffer_names = [name for name in buffers if name in changing]
        self.parameters = [_rows(own[name], capacity) for name in self.trained]
        self.buffers = [_rows(buffers[name], capacity) for name in self._buffer_names]
        places = _places(model, self.skeleton)
        self._places = [places[id(own[name])] for name in self.trained]
        self._buffer_places = [places[id(buffers[name])] for name in self._buffer_names]
        self._versions = [
            (name, b, b._version) for name, b in buffers.items() if name in self._shared
        ]
        self._leaves: list[Tensor] = []
        self._replaced: set[int] = set()
        self.draws: bool | None = None  # known after the first call
        self._checked = False

    # -- who is in --------------------------------------------------------------------------------

    def add(self, replica: Replica) -> None:
        """Take a replica in, as it stands: its tensors become views of the next row.

        Raises:
            Unfit: If it is of another kind than the start, or its shared tensors differ.
        """
        self._check_same_kind(replica)
        row = len(self.replicas)
        self.replicas.append(replica)
        own = dict(replica.model.named_parameters())
        self._held[id(replica)] = [own[name] for name in self.trained]
        for stack, tensor in zip(self._stacks(), self._tensors(replica), strict=True):
            stack[row].copy_(tensor)
            tensor.data = stack[row]
        self._leaves = []

    def remove(self, replica: Replica) -> tuple[int, int]:
        """Let a replica go with what it has become; the last row moves to its place.

        Returns:
            The row that it had, and the row that moved there.
        """
        row, last = self.row(replica), len(self.replicas) - 1
        self._take_replaced(row)
        for tensor in self._tensors(replica):
            tensor.data = tensor.data.clone()
        del self._held[id(replica)]
        moved = self.replicas.pop()
        if row != last:
            self.replicas[row] = moved
            self._take_replaced(last, moved)
            for stack, tensor in zip(self._stacks(), self._tensors(moved), strict=True):
                stack[row].copy_(stack[last])
                tensor.data = stack[row]
        self._leaves = []
        return row, last

    def trained_of(self, replica: Replica) -> list[nn.Parameter]:
        """The trained parameters of a replica that is in, in the order of `trained`."""
        return self._held[id(replica)]

    def row(self, replica: Replica) -> int:
        """Where a replica is."""
        return next(k for k, other in enumerate(self.replicas) if other is replica)

    # -- what they compute ------------------------------------------------------------------------

    def gradients(
        self,
        parts: Sequence[Sequence[Batch]],
        streams: Sequence[Stream],
        scale: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Losses and gradients of all replicas.

        Args:
            parts: Row -> its batches, whose mean loss counts; as many for each row.
            streams: Row -> where its random numbers come from; moved on.
            scale: Losses -> what is differentiated instead of them, elementwise.

        Returns:
            Losses before the step, detached, shape (n,), and for each trained parameter the
            gradients of shape (n, *shape), or None where the loss does not depend on it.

        Raises:
            Unfit: If torch cannot do it for all at once, with torch's reason. Then all is as before.
        """
        count = len(self.replicas)
        if not self._leaves:
            self._leaves = [stack[:count].detach().requires_grad_() for stack in self.parameters]
        for row in range(count) if self._replaced else ():
            self._take_replaced(row)
        share = 1.0 / len(parts[0])
        total: Tensor | None = None
        gradients: list[Tensor | None] = [None] * len(self._leaves)
        for batches in zip(*parts, strict=True):
            losses = self._losses([move_to(batch, self.device) for batch in batches], streams)
            losses = losses if share == 1.0 else losses * share
            target = losses if scale is None else scale(losses)
            found = torch.autograd.grad(target.sum(), self._leaves, allow_unused=True)
            gradients = [_added(a, b) for a, b in zip(gradients, found, strict=True)]
            total = losses.detach() if total is None else total + losses.detach()
        assert total is not None
        return total, gradients

    def rehearse(
        self, call: Callable[[], Result], streams: Sequence[Stream]
    ) -> tuple[Result, list[Tensor]]:
        """What `call` returns and what it makes of the buffers; then all is as before.

        Raises:
            Unfit: If it draws from Python's or NumPy's random state, or leaves tensors in
                attributes of the model, where the next step could use them.
        """
        buffers = [stack[: len(self.replicas)] for stack in self.buffers]
        before = [buffer.clone() for buffer in buffers]
        states = [stream.state for stream in streams]
        attributes = _attributes(self.skeleton)
        kept = random.getstate(), np.random.get_state()
        with warnings.catch_warnings():
            # vmap warns where it has no rule for an operation and loops over the replicas.
            warnings.filterwarnings("error", message="There is a performance drop")
            result = call()
        for row in range(len(self.replicas)):
            self._take_replaced(row)
        now = random.getstate(), np.random.get_state()
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        if now[0] != kept[0] or str(now[1]) != str(kept[1]):
            raise Unfit("the loss draws from Python's or NumPy's random state")
        for name, value in _attributes(self.skeleton).items():
            if value is not attributes.get(name):
                raise Unfit(f"the model keeps a tensor of the step in {name!r}")
        after = [buffer.clone() for buffer in buffers]
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        for stream, state in zip(streams, states, strict=True):
            stream.state = state
        return result, after

    def buffers_differ(
        self, some: Sequence[Tensor], others: Sequence[Tensor], rows: Sequence[int]
    ) -> str | None:
        """Which of the buffers that `rehearse` returned differs in these rows, but for rounding."""
        for name, one, other in zip(self._buffer_names, some, others, strict=True):
            pair = (one[rows].double(), other[rows].double())
            if not torch.allclose(*pair, rtol=1e-3, atol=1e-5, equal_nan=True):
                return f"the buffer {name!r} was another"
        return None

    def _losses(self, batches: Sequence[Batch], streams: Sequence[Stream]) -> Tensor:
        """Losses of one batch for each row, with their graph."""
        batch, dims = stacked(batches)
        buffers = [stack[: len(self.replicas)] for stack in self.buffers]
        before = [buffer.clone() for buffer in buffers]
        states = [stream.state for stream in streams]
        try:
            losses, replaced = self._called(batch, dims, buffers, streams)
        except Exception as error:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            for stream, state in zip(streams, states, strict=True):
                stream.state = state
            if out_of_memory(error):
                raise
            raise Unfit(f"torch.func cannot run it: {_first_line(error)}") from error
        for index, value in replaced.items():
            self._replaced.add(index)
            buffers[index].copy_(value.detach())
        for name, buffer, version in self._versions:
            if buffer._version != version:
                raise Unfit(f"the buffer {name!r} changed, which it did not in the first step")
        if not losses.requires_grad:
            raise Unfit("the loss needs no gradient")
        return losses

    def _called(
        self, batch: Batch, dims: Any, buffers: list[Tensor], streams: Sequence[Stream]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        def losses(
            parameters: list[Tensor], buffers: list[Tensor], batch: Batch
        ) -> tuple[Tensor, dict[int, Tensor]]:
            _put(self._places, parameters)
            _put(self._buffer_places, buffers)
            with autocast(self.device, self._options.autocast):
                loss = self._loss_fn(self.skeleton, batch)
            if not self._checked:
                check_loss(loss, needs_gradient=False)
                self._checked = True
            after = [module._buffers[key] for (module, key), *_ in self._buffer_places]
            new = {i: b for i, (a, b) in enumerate(zip(buffers, after, strict=True)) if a is not b}
            return loss.reshape(()), new  # type: ignore[return-value]

        # The other ways to compute attention have no rule for vmap's backward, and would loop.
        with RandomPerReplica(streams, self.draws) as randomness, sdpa_kernel(SDPBackend.MATH):
            call = vmap(losses, in_dims=(0, 0, dims), randomness=randomness.mode)
            result: tuple[Tensor, dict[int, Tensor]] = call(self._leaves, buffers, batch)
        self.draws = randomness.draws
        return result

    # -- helpers ----------------------------------------------------------------------------------

    def _stacks(self) -> list[Tensor]:
        return [*self.parameters, *self.buffers]

    def _tensors(self, replica: Replica) -> list[Tensor]:
        return [*self._held[id(replica)], *self._buffers_of(replica)]

    def _buffers_of(self, replica: Replica) -> list[Tensor]:
        buffers = dict(replica.model.named_buffers()) if self._buffer_names else {}
        return [buffers[name] for name in self._buffer_names]

    def _take_replaced(self, row: int, replica: Replica | None = None) -> None:
        """Bring home buffers in whose place the replica's own model has put others, as an evaluation may."""
        buffers = self._buffers_of(replica or self.replicas[row]) if self._replaced else []
        for index in self._replaced:
            buffer, home = buffers[index], self.buffers[index][row]
            if buffer.data_ptr() != home.data_ptr():
                home.copy_(buffer)
                buffer.data = home

    def _check_same_kind(self, replica: Replica) -> None:
        if len(self.replicas) >= self.capacity:
            raise ValueError(
                f"A stack must hold at most {self.capacity} replicas, but got one more."
            )
        kind = _kind(replica)
        for what, ours in self._kind.items():
            if kind[what] != ours:
                raise Unfit(f"replicas must have the same {what}, but these differ")
        own = dict(replica.model.named_parameters()) | dict(replica.model.named_buffers())
        for name, tensor in self._shared.items():
            if own[name] is not tensor and not torch.equal(own[name], tensor):
                raise Unfit(f"{name!r} is not trained, but differs between the replicas")


def stacked(batches: Sequence[Batch]) -> tuple[Batch, Any]:
    """One batch for all rows, and which of its parts are stacked, as vmap's `in_dims`.

    A part that is the same for all, by identity or (where it costs no wait for a device) by value,
    is not copied.

    Raises:
        Unfit: If the batches are not alike but in their tensors' values.
    """
    first = batches[0]
    if all(batch is first for batch in batches):
        return first, None
    if any(type(batch) is not type(first) for batch in batches):
        raise Unfit("batches of different types meet in one step")
    if isinstance(first, Tensor):
        if first.device.type == "cpu" and all(torch.equal(first, b) for b in batches[1:]):
            return first, None
        return torch.stack(list(batches)), 0
    if isinstance(first, dict):
        parts = {key: stacked([batch[key] for batch in batches]) for key in first}
        return {key: p[0] for key, p in parts.items()}, {key: p[1] for key, p in parts.items()}
    if isinstance(first, (list, tuple)):
        pairs = [stacked(part) for part in zip(*batches, strict=True)]
        values, dims = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if hasattr(first, "_fields"):
            return type(first)(*values), type(first)(*dims)
        return type(first)(values), type(first)(dims)
    if all(batch == first for batch in batches[1:]):
        return first, None
    raise Unfit(f"batches hold different values of type {type(first).__name__}")


def alike(batches: Sequence[Batch]) -> bool:
    """Whether batches can be stacked, as far as types and shapes tell."""
    first = batches[0]
    if all(batch is first for batch in batches):
        return True
    if any(type(batch) is not type(first) for batch in batches):
        return False
    if isinstance(first, Tensor):
        return all(b.shape == first.shape and b.dtype == first.dtype for b in batches)
    if isinstance(first, dict):
        return all(b.keys() == first.keys() for b in batches) and all(
            alike([batch[key] for batch in batches]) for key in first
        )
    if isinstance(first, (list, tuple)):
        return len({len(batch) for batch in batches}) == 1 and all(
            alike(part) for part in zip(*batches, strict=True)
        )
    return True


def changing_buffers(replica: Replica, batches: Sequence[Batch], stream: Stream) -> list[str]:
    """Names of the buffers that a step changes, or puts another tensor in the place of.

    One step's gradients are taken to see it, and all is put back. The loss function's own errors
    are left to whoever takes the step.

    Raises:
        Unfit: If it fails.
    """
    model, changed = replica.model, []
    if not any(True for _ in model.buffers()):
        return []
    places = [
        (module, key, buffer)
        for module in model.modules()
        for key, buffer in module._buffers.items()
    ]
    values = [None if buffer is None else buffer.clone() for _, _, buffer in places]
    names = {id(buffer): name for name, buffer in model.named_buffers()}
    scaler = replica.options.scaler
    scaled = None if scaler is None else copy.deepcopy(vars(scaler))
    stream.put()
    try:
        replica.backward(batches)
    except Exception as error:
        raise Unfit(f"its first step failed: {_first_line(error)}") from error
    finally:
        for (module, key, buffer), value in zip(places, values, strict=True):
            now = module._buffers[key]
            if buffer is None or value is None:
                continue
            if now is not buffer or not torch.equal(now, value):
                changed.append(names[id(buffer)])
            buffer.copy_(value)
            module._buffers[key] = buffer
        for parameter in replica.parameters:
            parameter.grad = None
        if scaler is not None and scaled is not None:
            vars(scaler).update(scaled)
    return changed


def capacity_for(replica: Replica) -> int:
    """Replicas that are tried at a time: as many as take half of the memory with their parameters.

    Parameters, gradients, two states of the optimizer and what an update needs are counted; of
    the activations nothing is known, and a wave that does not fit is halved.
    """
    size: int = 5 * sum(p.numel() * p.element_size() for p in replica.parameters)
    device = replica.device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return max(1, min(MOST_ON_GPU, int(free) // 2 // max(size, 1)))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(MOST_ON_CPU, free // 2 // max(size, 1)))


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had not enough memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _trained_names(replica: Replica) -> list[str]:
    names = {id(p): name for name, p in replica.model.named_parameters()}
    for parameter in replica.parameters:
        if id(parameter) not in names:
            raise Unfit("the optimizer holds a tensor that is no parameter of the model")
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise Unfit(f"the parameter {names[id(parameter)]!r} has hooks on its gradient")
    return [names[id(p)] for p in replica.parameters if p.requires_grad]


def _skeleton(model: nn.Module, trained: set[str], changing: set[str], *, fold: bool) -> nn.Module:
    """The model that is called for all: the shared tensors are the model's own, without gradient."""
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if name not in trained:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    memo |= {id(b): b for name, b in model.named_buffers() if name not in changing}
    try:
        made = copy.deepcopy(model, memo)
    except Exception as error:  # whatever a module's own state raises
        raise Unfit(f"the model cannot be copied: {_first_line(error)}") from error
    return folded(made, convolutions=fold)


def _places(model: nn.Module, skeleton: nn.Module) -> dict[int, list[Place]]:
    """Tensor of the model -> where the skeleton holds it; a tied one is in several places."""
    places: dict[int, list[Place]] = {}
    for module, twin in zip(model.modules(), skeleton.modules(), strict=True):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((twin, key))
    return places


def _put(places: Sequence[Sequence[Place]], tensors: Sequence[Tensor]) -> None:
    for each, tensor in zip(places, tensors, strict=True):
        for module, key in each:
            held: dict[str, Any] = (
                module._parameters if key in module._parameters else module._buffers
            )
            held[key] = tensor


def _attributes(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that modules hold beside their parameters and buffers."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def _rows(tensor: Tensor, count: int) -> Tensor:
    """Room for so many; each row lies in memory as the tensor does, in channels_last for instance."""
    twin = torch.empty_like(tensor)  # dense, with the order of the tensor's dimensions
    strides = (max(twin.numel(), 1), *twin.stride())
    shape = (count, *tensor.shape)
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)


def _kind(replica: Replica) -> dict[str, Any]:
    """What replicas of one stack have in common."""
    model, groups = replica.model, replica.optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    options = replica.options
    flags = [{k: v for k, v in group.items() if isinstance(v, bool)} for group in groups]
    return {
        "architecture": [type(module) for module in model.modules()],
        "parameters": [
            (n, p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()
        ],
        "buffers": [(name, b.shape, b.dtype) for name, b in model.named_buffers()],
        "optimizer": type(replica.optimizer),
        "param groups": [[names.get(id(p)) for p in group["params"]] for group in groups],
        "optimizer's flags": flags,
        "device": replica.device,
        "train/eval flags": [module.training for module in model.modules()],
        "options": (
            options.accumulation,
            options.clip_norm,
            options.autocast,
            options.scaler is None,
        ),
    }


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
