"""Sweeping: ramps, which bracket. Learning rates rise over one sweep and the loss is watched.

A ramp of all groups together finds the scale. A ramp of one group, with the others held low, shows
how far that group may go. Neither decides: a race inside the brackets does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from lrfinder.engines import Engine, Plan
from lrfinder.suggestions.curves import Reading, read_ramp, stop_rule
from lrfinder.traces import Trace

# Optimizers whose step is in proportion to the gradient, so that their LR has its unit.
PROPORTIONAL = ("SGD", "ASGD", "Adadelta", "LBFGS")
PROPORTIONAL_RANGE = (1e-5, 10.0)
ADAPTIVE_RANGE = (1e-6, 3.0)
HELD_AT = (
    0.01  # others are held at this share of the joint minimum: at 0 a new head learns nothing
)

Table: TypeAlias = Mapping[str, NDArray[np.float64]]  # group -> its LR at each step


@dataclass(frozen=True)
class Ramp:
    """One ramp that was run.

    Args:
        group: The group whose LR rose; None for all together.
        replica: Number of its batch order.
        lrs: The LR that rose, at each step planned; of all together, the highest of the groups.
        trace: What happened. It may be shorter than `lrs`.
    """

    group: str | None
    replica: int
    lrs: tuple[float, ...]
    trace: Trace

    def read(self) -> Reading:
        """What the ramp shows."""
        stopped = self.trace.status in ("stopped", "diverged")
        return read_ramp(self.lrs[: len(self.trace)], self.trace.losses, stopped=stopped)


def default_range(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Where ramps begin and end unless told: by the family of the optimizer.

    Example:
        >>> default_range(torch.optim.AdamW([torch.zeros(1)]))
        (1e-06, 3.0)
    """
    return PROPORTIONAL_RANGE if is_proportional(optimizer) else ADAPTIVE_RANGE


def is_proportional(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step is in proportion to the gradient, as SGD's is and Adam's is not.

    Example:
        >>> (
        ...     is_proportional(torch.optim.SGD([torch.zeros(1)])),
        ...     is_proportional(torch.optim.Adam([torch.zeros(1)])),
        ... )
        (True, False)
    """
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    return bool(names & set(PROPORTIONAL))


def ramp_lrs(start_lr: float, end_lr: float, num_steps: int) -> NDArray[np.float64]:
    """LRs that rise from `start_lr` to `end_lr`, both used.

    Law: lr_i = start_lr (end_lr / start_lr)^(i / (num_steps - 1)).

    Example:
        >>> ramp_lrs(0.01, 1.0, 3).round(6).tolist()
        [0.01, 0.1, 1.0]
    """
    return np.geomspace(start_lr, end_lr, num_steps)


def ramp_together(
    engine: Engine,
    ratios: Mapping[str, float],
    held: Mapping[str, float],
    lrs: NDArray[np.float64],
    *,
    replicas: int,
    val_every: int = 0,
    on_ramp: Callable[[int], None] | None = None,
) -> list[Ramp]:
    """Ramp groups together, over several batch orders.

    Args:
        engine: What runs it.
        ratios: Group -> its LR over the rising one, >= 0.
        held: Group -> LR of those that do not rise. Every group is in one of the two.
        lrs: The rising LR at each step.
        replicas: Batch orders, >= 1.
        val_every: Steps between two evaluations on the validation batch; 0 for none.
        on_ramp: Called after each ramp with the steps that it took.
    """
    table: Table = {name: ratio * lrs for name, ratio in ratios.items()}
    return _run(engine, {None: (table, held)}, lrs, replicas, val_every, on_ramp)[None]


def ramp_groups(
    engine: Engine,
    held: Mapping[str, Mapping[str, float]],
    lrs: NDArray[np.float64],
    *,
    replicas: int,
    val_every: int = 0,
    on_ramp: Callable[[int], None] | None = None,
) -> dict[str, list[Ramp]]:
    """Ramp several groups, each by itself; see `ramp_together`.

    Args:
        engine: This and the rest: as in `ramp_together`.
        held: Group that is ramped -> LRs of the others in its ramps.
        lrs: The rising LR at each step.
        replicas: Batch orders of each.
        val_every: Steps between two evaluations.
        on_ramp: Called after each ramp.
    """
    tables: dict[str | None, tuple[Table, Mapping[str, float]]] = {
        group: ({group: lrs}, others) for group, others in held.items()
    }
    ramps = _run(engine, tables, lrs, replicas, val_every, on_ramp)
    return {group: ramps[group] for group in held}


def _run(
    engine: Engine,
    tables: Mapping[str | None, tuple[Table, Mapping[str, float]]],
    lrs: NDArray[np.float64],
    replicas: int,
    val_every: int,
    on_ramp: Callable[[int], None] | None,
) -> dict[str | None, list[Ramp]]:
    """All ramps at once, so that an engine may take their steps together."""
    ramps: dict[str | None, list[Ramp]] = {}
    plans = []
    for group, (rising, held) in tables.items():
        table = dict(rising) | {name: np.full(len(lrs), lr) for name, lr in held.items()}
        table = {name: table[name] for name in engine.group_names}
        for replica in range(replicas):
            name = f"ramp {group or 'all'} {replica}"
            plan = Plan(table, order=replica, name=name, val_every=val_every)
            ramps.setdefault(group, []).append(
                Ramp(group, replica, tuple(lrs.tolist()), plan.trace)
            )
            plans.append(plan)
    engine.advance(plans, len(lrs), should_stop=stop_rule)
    for plan in plans:
        if on_ramp is not None:
            on_ramp(len(plan.trace))
    return ramps
