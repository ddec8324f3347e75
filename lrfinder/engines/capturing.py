"""Capturing: whole steps of a stack as CUDA graphs, for who asks for it.

A graph holds the forward and the backward pass, the clipping and the update of all rows, and is
launched at once, where a step by itself is some hundred launches. It reads a batch from where it
was captured, so each is copied there; learning rates are tables that are changed in place, and the
numbers of steps lie on the device. Python runs once, when it is captured: so a step that is not
alike each time must not be, and whatever can be told of that is looked at.

Source: torch.cuda.graphs, "CUDA semantics", whole-network capture.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lrfinder.engines.batches import copied, tensors_in
from lrfinder.engines.checking import differs, rehearse, tolerance
from lrfinder.engines.fitting import first_line, moved, stacked
from lrfinder.engines.randomness import Stream
from lrfinder.engines.stacking import Stack
from lrfinder.engines.updates.native import Native
from lrfinder.engines.updates.views import clip
from lrfinder.tasks import Batch

WARM_UP = 3  # steps beside the usual stream before a capture
TIMED = 3  # steps of each way that are timed
MOST_CAPTURES = 8  # of one stack: numbers of rows, shapes of batches, other options than LRs

Gradients = tuple[Tensor, list[Tensor | None]]  # losses of all rows, and their gradients
Call = Callable[[], Gradients]


class Device(Protocol):
    """What a capture asks of a device."""

    def aside(self, call: Call) -> Gradients:
        """Call it on a stream of its own, as a capture will."""

    def record(self, call: Call) -> Call:
        """Run the call's Python once and change nothing on the device; what is returned does it, and no Python."""

    def wait(self) -> None:
        """Until all is done."""


class Cuda:
    """A CUDA device."""

    def aside(self, call: Call) -> Gradients:
        """See `Device`."""
        usual, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(usual)
        with torch.cuda.stream(side):
            losses, gradients = call()
        usual.wait_stream(side)
        for tensor in (losses, *gradients):
            if tensor is not None:
                tensor.record_stream(usual)  # it is used there, and must not be given away before
        return losses, gradients

    def record(self, call: Call) -> Call:
        """See `Device`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, as one that pins batches, may go on meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = call()

        def replay() -> Gradients:
            graph.replay()
            return result

        return replay

    def wait(self) -> None:
        """See `Device`."""
        torch.cuda.synchronize()


def device_of(place: torch.device) -> Device | None:
    """What captures there; None where nothing does."""
    return Cuda() if place.type == "cuda" else None


class Capturing:
    """Takes steps by graphs, where that is possible, the same and faster.

    Args:
        stack: Whose steps.
        update: Of the stack.
        device: Where it is; None where nothing can be captured.

    Attributes:
        reason: Why it takes none (any more); empty while it does.
    """

    def __init__(self, stack: Stack, update: Any, device: Device | None) -> None:
        self._stack = stack
        self._seen: Counter[Any] = Counter()  # steps of each kind
        self._graphs: dict[Any, _Graph] = {}
        self._seconds: dict[str, list[float]] = {"plainly": [], "by a graph": []}
        self._state: Any = None  # of Python, which must stay as it is
        self.reason = _why_not(stack, update)
        if device is None:
            self.reason = f"nothing captures steps on a {stack.device.type}"
        elif not self.reason:
            self._device, self._update = device, update
            update.keep_on_device()

    @property
    def note(self) -> str:
        """Why it takes none, to be added to a reason; empty while it does."""
        return f"; no graph takes its steps: {self.reason}" if self.reason else ""

    def step(self, parts: Sequence[Sequence[Batch]], streams: Sequence[Stream]) -> Tensor | None:
        """Losses of all rows before the step, which was taken; or None, and it is to be taken plainly."""
        if self.reason or not self._is_steady():
            return None
        try:
            return self._step(parts, streams)
        except BaseException:
            self._graphs.clear()  # each keeps the memory of a step
            raise

    def _step(self, parts: Sequence[Sequence[Batch]], streams: Sequence[Stream]) -> Tensor | None:
        batch, dims = stacked(moved([own[0] for own in parts], self._stack.device))
        tensors = list(tensors_in(batch))
        if any(tensor is None for tensor in tensors):
            self.reason = "its batches do not consist of tensors alone"
            return None
        self._update.gather()
        shapes = tuple((t.shape, t.stride(), t.dtype) for t in tensors if t is not None)
        key = (len(parts), repr(dims), shapes, self._update.version)
        self._seen[key] += 1
        if key not in self._graphs:
            if self._seen[key] <= WARM_UP:
                return self._timed("plainly", lambda: self._aside(batch, dims, streams))
            if len(self._graphs) >= MOST_CAPTURES:
                self.reason = "its batches, its rows or its options change too often"
            elif not self._capture(key, batch, dims, streams):
                self._graphs.clear()
            return None
        return self._replay(self._graphs[key], batch, dims, streams, taken=self._seen[key])

    def _is_steady(self) -> bool:
        """Whether the next step does nothing that it does not do each time."""
        stack = self._stack
        if stack.draws:
            self.reason = "it draws random numbers"
        elif stack.replaces:
            self.reason = "it puts other tensors in a buffer's place"
        return not self.reason and stack.draws is False and self._update.is_shown

    def _aside(self, batch: Batch, dims: Any, streams: Sequence[Stream]) -> Tensor:
        if self._state is None:
            self._state = _numbers_of(self._stack.loss_fn), _numbers_in(self._stack.skeleton)
        return self._device.aside(lambda: self._whole(batch, dims, streams))[0]

    def _whole(self, batch: Batch, dims: Any, streams: Sequence[Stream]) -> Gradients:
        losses, gradients = self._stack.gradients_of(batch, dims, streams)
        self._update.step(gradients)
        return losses, gradients

    def _timed(self, way: str, call: Callable[[], Tensor]) -> Tensor:
        seconds = self._seconds[way]
        if len(seconds) >= TIMED:
            return call()
        self._device.wait()
        began = time.perf_counter()
        result = call()
        self._device.wait()
        seconds.append(time.perf_counter() - began)
        plainly, graphs = (min(taken, default=0.0) for taken in self._seconds.values())
        if way == "by a graph" and len(seconds) == TIMED and graphs > plainly:
            self.reason = (
                f"a step took {1e3 * graphs:.3g} ms by a graph and {1e3 * plainly:.3g} plainly"
            )
            self._graphs.clear()
        return result

    def _is_alike(self, *, model: bool = False) -> bool:
        """Whether Python would do what it did; of the model, which no graph calls, only where that is asked."""
        loss, own = self._state
        same = _numbers_of(self._stack.loss_fn) == loss
        if not same or (model and _numbers_in(self._stack.skeleton) != own):
            self.reason = "the loss, or the model, keeps a number of its own that changes"
            self._graphs.clear()
        return not self.reason

    def _capture(self, key: Any, batch: Batch, dims: Any, streams: Sequence[Stream]) -> bool:
        """Make a graph of the steps like this one; nothing has changed then. False: it cannot be."""
        if not self._is_alike(model=True):
            return False
        at = copied(batch)
        host = self._update.on_host()
        try:
            replay = self._device.record(lambda: self._whole(at, dims, streams))
        except Exception as error:
            self.reason = f"it cannot be captured: {first_line(error)}"
            return False
        finally:
            self._update.put_on_host(host)
        self._graphs[key] = _Graph(replay, list(tensors_in(at)))
        return True

    def _replay(
        self, graph: _Graph, batch: Batch, dims: Any, streams: Sequence[Stream], *, taken: int
    ) -> Tensor | None:
        if not self._is_alike():
            return None
        for place, tensor in zip(graph.places, tensors_in(batch), strict=True):
            place.copy_(tensor, non_blocking=True)
        # The first, and then ever more rarely: at 5, 8, 16, 32, ... steps.
        if taken == WARM_UP + 2 or (taken >= 8 and not taken & (taken - 1)):
            return self._compared(graph, batch, dims, streams)
        self._update.count_on_host()
        return self._timed("by a graph", lambda: graph.replay()[0].clone())

    def _compared(
        self, graph: _Graph, batch: Batch, dims: Any, streams: Sequence[Stream]
    ) -> Tensor | None:
        """A step by the graph, if it is what it is plainly; otherwise all is as before."""
        stack, update = self._stack, self._update
        changed = [*stack.parameters, *stack.buffers, *update.tensors()]
        before = [tensor.clone() for tensor in changed]

        def plainly() -> Gradients:
            return stack.gradients_of(batch, dims, streams)

        losses, gradients = rehearse(stack, plainly, streams).result
        if not self._is_alike(model=True):
            return None
        limit, clip_norm = tolerance(stack.replicas[0]), stack.options.clip_norm
        if clip_norm is not None:
            clip(gradients, clip_norm)
        found, others = graph.replay()
        for row in range(len(losses)):
            own = (losses[row], [None if g is None else g[row] for g in gradients])
            other = (found[row], [None if g is None else g[row] for g in others])
            if complaint := differs(own, other, limit):
                self.reason = f"a step by a graph was not the same: {complaint}"
                self._graphs.clear()
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)
                return None
        update.count_on_host()
        return found.clone()


class _Graph(NamedTuple):
    """A captured step, and the tensors that it reads a batch from."""

    replay: Call
    places: list[Any]


def _why_not(stack: Stack, update: Any) -> str:
    """Why no step of a stack can be captured; empty where one may."""
    if not isinstance(update, Native) or not update.is_capturable():
        return "its optimizer decides on the host what a step is"
    if stack.options.accumulation > 1:
        return "its steps are of several batches"
    return "its losses are compiled" if stack.options.compile is not None else ""


def _numbers_of(loss: Any) -> list[Any]:
    """Numbers and words that a loss keeps, of which a graph has those that it was captured with."""
    cells = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
    things = [loss, *getattr(loss, "__dict__", {}).values(), *cells]
    held = [_plain(value) for thing in things for value in getattr(thing, "__dict__", {}).values()]
    return [*held, *map(_plain, cells)]


def _numbers_in(model: nn.Module) -> list[Any]:
    """Numbers and words that the modules of a model keep."""
    return [_plain(value) for module in model.modules() for value in vars(module).values()]


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return tuple(map(_plain, value.values()))
    return value if isinstance(value, (bool, int, float, str)) else None
