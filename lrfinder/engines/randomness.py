"""Randomness: each replica draws what it would draw alone, whoever it is in step with.

Replicas that are at one place of one random stream, as plans of one order are, share each draw.
Otherwise each draw is made replica by replica, in the shape that it has for one of them, from that
replica's own stream. So a dropout mask is bit for bit that of the plain engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Stream:
    """The random states of one replica, while the process has another's.

    Args:
        device: Where the replica is.

    Attributes:
        state: Of torch, on the CPU and on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.state: tuple[Tensor, ...] = ()
        self._others: tuple[Any, Any] | None = None
        self.keep()

    def keep(self) -> None:
        """Remember the states that the process has."""
        self.keep_torch()
        self._others = (random.getstate(), np.random.get_state())

    def put(self) -> None:
        """Let the process have these states."""
        self.put_torch()
        if self._others is not None:
            random.setstate(self._others[0])
            np.random.set_state(self._others[1])

    def keep_torch(self) -> None:
        """As `keep`, of torch's states alone."""
        self.state = (torch.get_rng_state(), *_device_state(self.device))

    def put_torch(self) -> None:
        """As `put`, of torch's states alone."""
        torch.set_rng_state(self.state[0])
        if len(self.state) > 1:
            torch.get_device_module(self.device).set_rng_state(self.state[1], self.device)

    def same(self, other: Stream) -> bool:
        """Whether both would draw the same."""
        return self.state is other.state or _equal(self.state, other.state)


class RandomPerReplica:
    """A context in which one call for all replicas draws from each one's stream.

    Args:
        streams: One for each replica; they are moved on when the context ends well.
        draws: Whether the call is known to draw: None for not known.

    Attributes:
        mode: vmap's `randomness`.
        draws: Whether it drew, this time or before.
    """

    def __init__(self, streams: Sequence[Stream], draws: bool | None) -> None:
        self.streams = streams
        self.draws = draws
        # "error": what was found not to draw must not begin to.
        quiet = draws is False
        self.together = not quiet and all(stream.same(streams[0]) for stream in streams[1:])
        self.mode = "error" if quiet else "same" if self.together else "different"
        self._drawer = _DrawOneByOne(streams) if self.mode == "different" else None

    def __enter__(self) -> RandomPerReplica:
        if self.together:
            self.streams[0].put_torch()
        if self._drawer is not None:
            self._drawer.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._drawer is not None:
            self._drawer.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if error is not None:
            return
        if self._drawer is not None:
            self.draws = bool(self.draws) or self._drawer.drew
        elif self.together:
            before = self.streams[0].state
            self.streams[0].keep_torch()
            now = self.streams[0].state
            self.draws = bool(self.draws) or not _equal(before, now)
            for stream in self.streams:
                stream.state = now


class _DrawOneByOne(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations on stacked tensors below vmap, and takes those that draw apart.

    vmap asks for draws of shape (K, *shape); slice k is drawn from stream k.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.streams = streams
        self.drew = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **options)
        self.drew = True
        return self._apart(func, args, options)

    def _apart(
        self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        count = len(self.streams)
        results = []
        for index, stream in enumerate(self.streams):
            parts = [_part(arg, index, count) for arg in args]
            if all(part is arg for part, arg in zip(parts, args, strict=True)):
                raise RuntimeError(f"{func} draws in a way that cannot be told apart by replica")
            stream.put_torch()
            results.append(func(*parts, **options))
            stream.keep_torch()
        if str(func).split(".")[1].endswith("_"):
            return args[0]  # drawn into its slices
        if isinstance(results[0], tuple):
            return tuple(torch.stack(part) for part in zip(*results, strict=True))
        return torch.stack(results)


def _part(value: Any, index: int, count: int) -> Any:
    """Slice of a stacked tensor, or shape of one of the stacked; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() and len(value) == count:
        return value[index]
    if isinstance(value, (list, tuple)) and value and value[0] == count:
        return value[1:]
    return value


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _device_state(device: torch.device) -> list[Tensor]:
    if device.type == "cpu":
        return []
    return [torch.get_device_module(device).get_rng_state(device)]
