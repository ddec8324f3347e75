"""Plans: the ways that replicas are to go, and what an engine is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrfinder.stepping import StopRule
from lrfinder.traces import Trace


class Plan:
    """The way of one replica: its LRs, its batches, and its trace, which says how far it has come.

    Args:
        lrs: Group -> LRs of its steps, shape (num_steps,), finite and >= 0; all groups of the
            engine, in its order.
        order: Number of its batch order, >= 0; plans of one order see the same batches and start
            from the same random states, so that a comparison of them is paired.
        name: What its trace is called.
        val_every: Steps between two evaluations on the engine's validation batch; 0 for none.
        averaged_after: Numbers of steps after which the mean of the weights of the last half of
            them is evaluated, as a metric of the trace (`lrfinder.engines.averaging`).
    """

    def __init__(
        self,
        lrs: Mapping[str, ArrayLike],
        *,
        order: int = 0,
        name: str = "",
        val_every: int = 0,
        averaged_after: Sequence[int] = (),
    ) -> None:
        self.lrs: dict[str, NDArray[np.float64]] = {
            group: np.asarray(values, dtype=np.float64) for group, values in lrs.items()
        }
        self.num_steps = len(next(iter(self.lrs.values())))
        self.order = order
        self.val_every = val_every
        self.averaged_after = tuple(averaged_after)
        self.trace = Trace(list(self.lrs), name=name)

    @classmethod
    def constant(
        cls,
        lrs: Mapping[str, float],
        num_steps: int,
        *,
        order: int = 0,
        name: str = "",
        averaged_after: Sequence[int] = (),
    ) -> Plan:
        """A plan whose LRs stay as they are."""
        table = {group: np.full(num_steps, lr) for group, lr in lrs.items()}
        return cls(table, order=order, name=name, averaged_after=averaged_after)

    @property
    def ended(self) -> bool:
        """Whether it has taken all its steps, diverged or was stopped."""
        return self.trace.status != "running"


class Engine(Protocol):
    """What takes plans further.

    Attributes:
        group_names: Names of the param groups, in the optimizer's order.
    """

    group_names: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far, over all replicas, with those that were taken again."""

    def advance(
        self, plans: Sequence[Plan], num_steps: int, *, should_stop: StopRule | None = None
    ) -> None:
        """Take each plan `num_steps` further from where it stands, or to its end.

        A plan begins from the start, which is the same for all. Its trace gets a row for each
        step; the status "completed" at its end, "diverged" at a loss that is not finite, and
        "stopped" with the reason that `should_stop(trace)` gave.
        """

    def release(self, plans: Iterable[Plan]) -> None:
        """Forget where these plans stand: they will not be taken further."""
