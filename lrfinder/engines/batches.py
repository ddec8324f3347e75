"""Batches: the same batches again and again, from any loader, in orders that are told by number.

Replicas that are compared must see the same data. An order is what a loader gives after all random
states were seeded from (seed, order); whoever asks for it twice gets it twice.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lrfinder.datasets import is_self_contained
from lrfinder.snapshots import RandomState, loader_generators
from lrfinder.tasks import Batch, Loader, seed_everything

GIB = 2**30
MOST_AHEAD = 64  # batches
# Places in one order at which it is drawn from without beginning again, where it is not kept.
MOST_STREAMS = 4


class BatchOrders:
    """Endless orders of a loader's batches.

    An order is the loader iterated again and again, an epoch after the other, with random states of
    its own: those of the process, and the loader's own generators, are as before after each batch.

    Args:
        loader: Anything that can be iterated again and again.
        seed: 0 <= seed < 2**32. The same seed and loader give the same orders.
        memory: Bytes of batches that are kept, over all orders. The loader is iterated again for
            what does not fit.

    Raises:
        TypeError: If the loader cannot be iterated, or only once.

    Example:
        >>> import torch
        >>> loader = torch.utils.data.DataLoader(range(4), batch_size=2, shuffle=True)
        >>> orders = BatchOrders(loader, seed=0)
        >>> first = [batch.tolist() for batch in itertools.islice(orders.batches(0), 3)]
        >>> again = [batch.tolist() for batch in itertools.islice(orders.batches(0, skip=1), 2)]
        >>> again == first[1:]
        True
    """

    def __init__(self, loader: Loader, *, seed: int, memory: int = GIB) -> None:
        iterate = getattr(type(loader), "__iter__", None)
        if iterate is None and not hasattr(loader, "__getitem__"):
            raise TypeError(
                f"`loader` must be an iterable of batches, but got {type(loader).__name__}."
            )
        if hasattr(loader, "__next__"):
            raise TypeError(
                "`loader` must be an iterable that can be iterated again, but got a "
                f"{type(loader).__name__}, which can be only once and not be put back. Give the "
                "DataLoader itself, or list(itertools.islice(batches, 100))."
            )
        self.loader = loader
        self.seed = seed
        self.memory = memory
        self.kept_bytes = 0
        self._kept: dict[int, list[Batch]] = {}
        self._streams: dict[int, list[_Stream]] = {}

    def batches(self, order: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an order from number `skip` on, without an end.

        Each is a copy where it was kept, so that a model which works in place does not change it
        for the others.

        Raises:
            ValueError: If the loader is empty.
        """
        kept = self._kept.setdefault(order, [])
        for index in itertools.count(skip):
            if index < len(kept):
                yield copied(kept[index])
            else:
                yield self._drawn(order, index)

    def _drawn(self, order: int, index: int) -> Batch:
        kept = self._kept[order]
        stream = self._stream(order, index)
        # Switching the random states costs more than many a batch, so several are drawn at once
        # where they are kept: no more than were asked for already.
        ahead = min(len(kept), MOST_AHEAD)
        if stream.position == index == len(kept) and ahead > 1 and self._fit(kept[0], ahead):
            for batch in stream.draw(ahead):
                if not self._keep(kept, batch):
                    break  # larger than the first; it is drawn again when it is its turn
            return copied(kept[index]) if index < len(kept) else self._drawn(order, index)
        while True:
            position = stream.position
            (batch,) = stream.draw()
            if position == len(kept) and self._keep(kept, batch):
                batch = copied(batch)
            if position == index:
                return batch

    def _stream(self, order: int, index: int) -> _Stream:
        """One that stands at the batch; or a new one, which is to be drawn up to there."""
        streams = self._streams.setdefault(order, [])
        for stream in streams:
            if stream.position == index:
                return stream
        streams.append(_Stream(self.loader, derived_seed(self.seed, order)))
        del streams[:-MOST_STREAMS]
        return streams[-1]

    def _fit(self, batch: Batch, count: int) -> bool:
        return self.kept_bytes + count * num_bytes(batch) <= self.memory

    def _keep(self, kept: list[Batch], batch: Batch) -> bool:
        size = num_bytes(batch)
        if self.kept_bytes + size > self.memory:
            return False
        self.kept_bytes += size
        kept.append(batch)
        return True


class _Stream:
    """One order while it is drawn, with random states of its own."""

    def __init__(self, loader: Loader, seed: int) -> None:
        self.loader = loader
        self.position = 0
        self._seed = seed
        self._iterator: Iterator[Batch] | None = None
        self._generators = loader_generators(loader)
        # Switching the states of the process costs more than many a batch.
        self._is_self_contained = is_self_contained(loader)
        self._state: tuple[RandomState | None, list[Tensor]] | None = None

    def draw(self, count: int = 1) -> list[Batch]:
        """The next batches; the random states of the process are left as they are."""
        outside = self._states()
        try:
            if self._state is None:
                if not self._is_self_contained:
                    seed_everything(self._seed)
                for index, generator in enumerate(self._generators):
                    generator.manual_seed(self._seed + 1 + index)
            else:
                self._set_states(self._state)
            batches = [self._next() for _ in range(count)]
            self._state = self._states()
        finally:
            self._set_states(outside)
        self.position += count
        return batches

    def _next(self) -> Batch:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self.loader)
            for batch in self._iterator:
                return batch
            self._iterator = None  # an epoch ended: begin the next
        raise ValueError("The loader must give at least one batch, but it is empty.")

    def _states(self) -> tuple[RandomState | None, list[Tensor]]:
        here = None if self._is_self_contained else RandomState.here()
        return here, [generator.get_state() for generator in self._generators]

    def _set_states(self, states: tuple[RandomState | None, list[Tensor]]) -> None:
        if states[0] is not None:
            states[0].restore()
        for generator, state in zip(self._generators, states[1], strict=True):
            generator.set_state(state)


def derived_seed(*parts: int) -> int:
    """A seed, in 0 .. 2**32 - 1, that follows from several numbers >= 0 and looks like none of them.

    Example:
        >>> derived_seed(0, 1) == derived_seed(0, 1), derived_seed(0, 1) == derived_seed(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def copied(batch: Batch) -> Batch:
    """A copy of a batch that shares no tensor with it."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(copied(part) for part in batch))
    if type(batch) in (list, tuple):
        return type(batch)(copied(part) for part in batch)
    if type(batch) is dict:
        return {key: copied(part) for key, part in batch.items()}
    return copy.deepcopy(batch)


def tensors_in(batch: Batch) -> Iterator[Tensor | None]:
    """The tensors of a batch in their order; None for what is none."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for part in batch.values():
            yield from tensors_in(part)
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from tensors_in(part)
    else:
        yield None


def num_bytes(value: Any) -> int:
    """Bytes of the tensors and arrays in a nested value; other things count as nothing.

    Example:
        >>> import torch
        >>> num_bytes({"x": torch.zeros(2, 3), "y": [torch.zeros(2, dtype=torch.int64)]})
        40
    """
    if isinstance(value, (Tensor, np.ndarray)):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(num_bytes(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return sum(num_bytes(part) for part in value)
    return num_bytes(vars(value)) if hasattr(value, "__dict__") else 0
