"""Checking: the first step of all together is compared with the plain one before it is trusted."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lrfinder.engines.calling import loops_refused
from lrfinder.engines.choosing import Chooser
from lrfinder.engines.fitting import Unfit
from lrfinder.engines.randomness import Stream
from lrfinder.engines.skeletons import attributes_of
from lrfinder.engines.stacking import Stack
from lrfinder.stepping import Replica

Step = tuple[Tensor, Sequence[Tensor | None]]  # a loss and its gradients

# Largest difference of a gradient, as a share of the largest gradient of its replica.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3}
LOW_PRECISION = 0.1


def check_together(
    stack: Stack,
    streams: Sequence[Stream],
    together: Callable[[], tuple[Tensor, list[Tensor | None]]],
    alone: Callable[[int], Step],
    *,
    chooser: Chooser,
    original: Replica | None,
) -> tuple[Tensor, list[Tensor | None]] | None:
    """Compare the gradients of the next step both ways, for the first replica and the last.

    Args:
        stack: The replicas. All is left as it is.
        streams: Row -> where its random numbers come from.
        together: The losses and gradients of all rows at once.
        alone: Row -> its loss and gradients.
        chooser: Learns how long both took, and that it was checked.
        original: What the replicas are copies of, if they are.

    Returns:
        What all together gave, buffers and random numbers included, where the step is theirs and it
        is good for it: only the update is left to do. None where the step is still to be taken.

    Raises:
        Unfit: If they are not the same.
    """

    def compared() -> tuple[str | None, Rehearsal]:
        limit = tolerance(stack.replicas[0])
        rows = sorted({0, len(stack.replicas) - 1})
        began = time.perf_counter()
        found = rehearse(stack, together, streams)
        compiles = stack.compiles
        if compiles:
            found = rehearse(stack, together, streams)
        together_took, took = time.perf_counter() - began, []

        def each() -> Iterator[Step]:
            for row in rows:
                began = time.perf_counter()
                yield alone(row)
                took.append(time.perf_counter() - began)

        plain = rehearse(stack, lambda: list(each()), streams)
        if not compiles:
            chooser.look(len(stack.replicas), took, together_took)
        losses, gradients = found.result
        for row, own in zip(rows, plain.result, strict=True):
            theirs = [None if gradient is None else gradient[row] for gradient in gradients]
            if complaint := differs(own, (losses[row], theirs), limit):
                return complaint, found
        return buffers_differ(stack, found.buffers, plain.buffers, rows), found

    with original_unused(original):
        complaint, found = compared()
        is_itself = complaint is None
        if complaint is not None and stack.draws:
            # What is drawn depends on how tensors lie in memory: look again without dropout.
            models = [stack.skeleton, *(replica.model for replica in stack.replicas)]
            with without_dropout(models):
                complaint, _ = compared()
    if complaint is not None:
        raise Unfit(f"the first step was not the same: {complaint}")
    chooser.checked = True
    chooser.note = stack.note
    if not is_itself or stack.compiles or chooser.way(len(stack.replicas)) != "lockstep":
        return None
    for rows, after in zip(stack.buffers, found.buffers, strict=True):
        rows[: len(after)] = after
    for stream, state in zip(streams, found.states, strict=True):
        stream.state = state
    result: tuple[Tensor, list[Tensor | None]] = found.result
    return result


class Rehearsal(NamedTuple):
    """What a call returned, and what it made of the buffers and of the streams."""

    result: Any
    buffers: list[Tensor]
    states: list[tuple[Tensor, ...]]


def rehearse(stack: Stack, call: Callable[[], Any], streams: Sequence[Stream]) -> Rehearsal:
    """What a call gives; then all is as before.

    Raises:
        Unfit: If it draws from Python's or NumPy's random state, or leaves tensors in
            attributes of the model, where the next step could use them.
    """
    buffers = [rows[: len(stack.replicas)] for rows in stack.buffers]
    before = [buffer.clone() for buffer in buffers]
    states = [stream.state for stream in streams]
    attributes = attributes_of(stack.skeleton)
    kept = random.getstate(), np.random.get_state()
    with loops_refused():
        result = call()
    for row in range(len(stack.replicas)):
        stack.take_replaced(row)
    now = random.getstate(), np.random.get_state()
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    if now[0] != kept[0] or not all(map(np.array_equal, now[1], kept[1])):
        raise Unfit("the loss draws from Python's or NumPy's random state")
    for name, value in attributes_of(stack.skeleton).items():
        if value is not attributes.get(name):
            raise Unfit(f"the model keeps a tensor of the step in {name!r}")
    rehearsal = Rehearsal(
        result, [buffer.clone() for buffer in buffers], [stream.state for stream in streams]
    )
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)
    for stream, state in zip(streams, states, strict=True):
        stream.state = state
    return rehearsal


def buffers_differ(
    stack: Stack, some: Sequence[Tensor], others: Sequence[Tensor], rows: Sequence[int]
) -> str | None:
    """Which of the buffers that `rehearse` returned differs in these rows, but for rounding."""
    for name, one, other in zip(stack.buffer_names, some, others, strict=True):
        pair = (one[rows].double(), other[rows].double())
        if not torch.allclose(*pair, rtol=1e-3, atol=1e-5, equal_nan=True):
            return f"the buffer {name!r} was another"
    return None


@contextlib.contextmanager
def original_unused(original: Replica | None) -> Iterator[None]:
    """Raise an Unfit where a gradient reaches the original in here."""
    parameters = [] if original is None else list(original.model.parameters())
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
        if any(parameter.grad is not None for parameter in parameters):
            raise Unfit("the loss uses the model itself beside the one that it is given")
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


@contextlib.contextmanager
def without_dropout(models: Iterable[nn.Module]) -> Iterator[None]:
    """The dropouts of torch's modules, and of its attention, drop nothing in here."""
    kinds = {nn.modules.dropout._DropoutNd: "p", nn.MultiheadAttention: "dropout"}
    found = [
        (vars(module), name, vars(module)[name])
        for model in models
        for module in model.modules()
        for kind, name in kinds.items()
        if isinstance(module, kind)
    ]
    try:
        for attributes, name, _ in found:
            attributes[name] = 0.0
        yield
    finally:
        for attributes, name, value in found:
            attributes[name] = value


def tolerance(replica: Replica) -> float:
    """The largest difference that rounding explains, as a share of the largest entry."""
    dtypes = {parameter.dtype for parameter in replica.parameters}
    if replica.options.autocast is not None or not dtypes <= TOLERANCES.keys():
        return LOW_PRECISION
    return max(TOLERANCES[dtype] for dtype in dtypes)


def differs(own: Step, other: Step, limit: float) -> str | None:
    """What differs between two ways to take a step of one replica by more than rounding; None if nothing does.

    Args:
        own: Its loss and its gradients, taken alone.
        other: The same, taken together with others.
        limit: See `tolerance`.
    """
    (loss, gradients), (other_loss, others) = own, other
    if not bool(torch.isfinite(loss)) and not bool(torch.isfinite(other_loss)):
        return None  # a replica that diverges has no gradients to compare
    if not bool((loss - other_loss).abs() <= limit * (1 + loss.abs())):
        return f"the loss was {float(loss):.9g} alone and {float(other_loss):.9g} together"
    largest = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    for gradient, twin in zip(gradients, others, strict=True):
        if (gradient is None) != (twin is None):
            return "a parameter had a gradient in one of the two alone"
        if gradient is None or twin is None:
            continue
        gap = float((gradient - twin).abs().max())
        if math.isfinite(largest) and not gap <= limit * largest:
            return f"a gradient was off by {gap:.3g}, of at most {largest:.3g}"
    return None
