"""Fitting: what fits into a stack: which trainings, which batches, how many, and why not."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrfinder.engines.randomness import Stream
from lrfinder.stepping import Replica
from lrfinder.tasks import Batch, move_to

# More at a time bring little: the CPU's caches are full, a GPU is busy.
MOST_ON_CPU, MOST_ON_GPU = 64, 512


class Unfit(RuntimeError):  # noqa: N818 - a verdict on a training, and no error of a user
    """A training that cannot go in lockstep; the message says why."""


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
        raise Unfit(f"its first step failed: {first_line(error)}") from error
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

    Parameters, gradients, two states of the optimizer, what an update needs, and the sums and copies
    of averaged weights are counted; of
    the activations nothing is known, and a wave that does not fit is halved.
    """
    size: int = 7 * sum(p.numel() * p.element_size() for p in replica.parameters)
    device = replica.device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return max(1, min(MOST_ON_GPU, int(free) // 2 // max(size, 1)))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(MOST_ON_CPU, memory // 4 // max(size, 1)))


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had not enough memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def kind_of(replica: Replica) -> dict[str, Any]:
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
            options.compile,
            options.graph,
            options.scaler is None,
        ),
    }


def first_line(error: BaseException) -> str:
    """What an error says, for a reason of one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def check_kind(replica: Replica, kind: Mapping[str, Any], shared: Mapping[str, Tensor]) -> None:
    """Raise an Unfit that says what is another than in the start.

    Args:
        replica: It is to join.
        kind: What `kind_of` gave of the start.
        shared: Its parameters and buffers that all must have alike, by name.
    """
    own_kind = kind_of(replica)
    for what, ours in kind.items():
        if own_kind[what] != ours:
            raise Unfit(f"replicas must have the same {what}, but these differ")
    own = dict(replica.model.named_parameters()) | dict(replica.model.named_buffers())
    for name, tensor in shared.items():
        if own[name] is not tensor and not torch.equal(own[name], tensor):
            raise Unfit(f"{name!r} is not trained, but differs between the replicas")


def moved(batches: Sequence[Batch], device: torch.device) -> list[Batch]:
    """The batches on the device; one that several rows have is moved once, and stays the very same."""
    if device.type == "cpu" and all(map(_is_on_cpu, batches)):
        return list(batches)
    found: dict[int, Batch] = {}
    for batch in batches:
        if id(batch) not in found:
            found[id(batch)] = move_to(batch, device)
    return [found[id(batch)] for batch in batches]


def _is_on_cpu(batch: Batch) -> bool:
    """Whether nothing of it is to be moved there, as far as a short look tells."""
    if isinstance(batch, Tensor):
        return batch.is_cpu
    is_plain = type(batch) in (tuple, list)
    return is_plain and all(isinstance(part, Tensor) and part.is_cpu for part in batch)


def added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, of which one may be none."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
