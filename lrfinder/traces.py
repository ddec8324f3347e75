"""Traces: what happened to one replica, step by step.

A trace is the one record of the toolkit: a ramp of a range test, a candidate of a race, a training
run and a trial of a search each leave one, so plotting, tracking and comparing are written once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["running", "completed", "diverged", "stopped", "pruned", "interrupted", "failed"]
STATUSES: tuple[str, ...] = get_args(Status)

# Losses on an accelerator come to the CPU once per block: a copy per step would drain the device's
# queue each time.
BLOCK = 64


class Trace:
    """LR of each group, loss and metrics at each optimizer step of one replica.

    Law: row s holds the LRs that optimizer update s used and the loss that its gradient was taken
    of, so the loss of row s was measured *before* update s.

    Args:
        group_names: Names of the param groups, in the optimizer's order; at least one, all
            different.
        name: What the trace shows, for tables and legends.

    Non-finite losses are kept as they are; the first one is `diverged_at`.

    Example:
        >>> trace = Trace(["body", "head"], name="demo")
        >>> trace.append([0.1, 1.0], 2.5)
        >>> trace.append([0.1, 1.0], float("nan"))
        >>> trace.steps.tolist(), trace.lrs["head"].tolist(), trace.diverged_at
        ([0, 1], [1.0, 1.0], 1)
    """

    def __init__(self, group_names: Sequence[str], *, name: str = "") -> None:
        self.group_names = tuple(group_names)
        if not self.group_names or len(set(self.group_names)) != len(self.group_names):
            raise ValueError(
                "A trace needs at least one group and different names, "
                f"but got group_names={list(group_names)}."
            )
        self.name = name
        self.status: Status = "running"
        self.message = ""
        self._lr_rows: list[tuple[float | Tensor, ...]] = []
        self._losses: list[float] = []
        self._pending: list[Tensor] = []
        self._metrics: dict[str, tuple[list[int], list[float]]] = {}
        self._diverged_at: int | None = None
        self._times: list[int] | None = None

    # -- writing
    # ------------------------------------------------------------------------------------------------

    def append(self, lrs: Sequence[float | Tensor], loss: Tensor | float) -> None:
        """Add one step. Never waits for an accelerator: a loss there is moved to the CPU with its block.

        Args:
            lrs: The LR that each group's update used, in the order of `group_names`; a tensor LR
                is copied.
            loss: Scalar loss in the unit of `loss_fn`, detached.
        """
        if len(lrs) != len(self.group_names):
            raise ValueError(
                f"One LR for each group must be given ({', '.join(self.group_names)}), but got {len(lrs)}."
            )
        # A tensor LR is changed in place by its owner, so its value now must be copied now.
        row = [lr.detach().clone() if isinstance(lr, Tensor) else float(lr) for lr in lrs]
        self._lr_rows.append(tuple(row))
        if isinstance(loss, Tensor) and loss.device.type != "cpu":
            self._pending.append(loss.detach())
            if len(self._pending) >= BLOCK:
                self._settle()
        else:
            if self._pending:
                self._settle()
            self._add_loss(loss.item() if isinstance(loss, Tensor) else float(loss))
        if self._times is not None:
            self._times.append(time.time_ns())

    def keep_times(self) -> list[int]:
        """When each row from now on is appended, after all else of it: nanoseconds since 1970, in a list that grows."""
        self._times = []
        return self._times

    def add_metric(self, name: str, step: int, value: float) -> None:
        """Add a value that is measured now and then, as `val/loss`, at an optimizer step."""
        steps, values = self._metrics.setdefault(name, ([], []))
        steps.append(int(step))
        values.append(float(value))

    def set_status(self, status: Status, message: str = "") -> None:
        """Say how the replica ended, and why in words."""
        if status not in STATUSES:
            raise ValueError(f"`status` must be one of {', '.join(STATUSES)}, but got {status!r}.")
        self.status = status
        self.message = message

    def _add_loss(self, value: float) -> None:
        if self._diverged_at is None and not math.isfinite(value):
            self._diverged_at = len(self._losses)
        self._losses.append(value)

    def _settle(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, []
            for value in (
                torch.stack([loss.reshape(()) for loss in pending]).cpu().double().tolist()
            ):
                self._add_loss(value)

    # -- reading
    # ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of optimizer steps taken."""
        return len(self._lr_rows)

    @property
    def settled_diverged_at(self) -> int | None:
        """As `diverged_at`, of the losses that are on the CPU already: costs no wait, may be `BLOCK` steps late."""
        return self._diverged_at

    @property
    def settled_losses(self) -> Sequence[float]:
        """The losses that are on the CPU already, a prefix of `losses`: costs no wait. Not to be changed."""
        return self._losses

    def settled_rows(
        self, start: int, stop: int
    ) -> tuple[list[float], list[tuple[float | Tensor, ...]]]:
        """Losses and LRs of steps from `start` to before `stop`, as far as losses are on the CPU: costs no wait.

        Another thread than the one that appends may call it.
        """
        losses = self._losses[start:stop]
        return losses, self._lr_rows[start : start + len(losses)]

    @property
    def diverged_at(self) -> int | None:
        """The first step whose loss was not finite, or None."""
        self._settle()
        return self._diverged_at

    @property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer steps, 0-based, shape (steps,)."""
        return np.arange(len(self), dtype=np.int64)

    @property
    def losses(self) -> NDArray[np.float64]:
        """Loss at each step, in the unit of `loss_fn`, shape (steps,)."""
        self._settle()
        return np.array(self._losses, dtype=np.float64)

    @property
    def lrs(self) -> dict[str, NDArray[np.float64]]:
        """LR that each group's update used, shape (steps,) each."""
        columns = [[*map(float, column)] for column in zip(*self._lr_rows, strict=True)]
        if not columns:
            columns = [[] for _ in self.group_names]
        pairs = zip(self.group_names, columns, strict=True)
        return {name: np.array(column, dtype=np.float64) for name, column in pairs}

    @property
    def metrics(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """What was measured now and then: name -> (steps, values)."""
        return {
            name: (np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))
            for name, (steps, values) in self._metrics.items()
        }

    def last(self, metric: str) -> float:
        """The last value of a metric; NaN where it was never measured."""
        _, values = self._metrics.get(metric, ([], []))
        return values[-1] if values else math.nan

    def to_frame(self) -> pd.DataFrame:
        """A pandas frame: step, loss, `lr/<group>` for each group and one column for each metric (NaN between)."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def columns(self) -> dict[str, NDArray[Any]]:
        """What `to_frame` holds, by the names of its columns, each of shape (steps,)."""
        found: dict[str, NDArray[Any]] = {"step": self.steps, "train/loss": self.losses}
        found |= {f"lr/{name}": values for name, values in self.lrs.items()}
        for name, (steps, values) in self.metrics.items():
            column = np.full(len(self), math.nan)
            there = (steps >= 0) & (steps < len(self))
            column[steps[there]] = values[there]  # the last of those of one step
            found[name] = column
        return found

    def __repr__(self) -> str:
        """Name, groups, length and status."""
        label = f"{self.name!r}, " if self.name else ""
        return f"Trace({label}groups={list(self.group_names)}, steps={len(self)}, status={self.status!r})"

    def _repr_html_(self) -> str:
        """First and last values, and the curves, as a notebook shows them; nothing outside is referred to."""
        from lrfinder.plotting.traces import trace_html

        return trace_html(self)

    # -- JSON
    # ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy from which `from_dict` makes an equal trace, bit for bit; non-finite values as text."""
        return {
            "name": self.name,
            "group_names": list(self.group_names),
            "status": self.status,
            "message": self.message,
            "losses": encode_floats(self.losses.tolist()),
            "lrs": {name: encode_floats(values.tolist()) for name, values in self.lrs.items()},
            "metrics": {
                name: {"steps": list(steps), "values": encode_floats(values)}
                for name, (steps, values) in self._metrics.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trace:
        """The trace that `to_dict` wrote."""
        trace = cls(data["group_names"], name=data["name"])
        columns = [decode_floats(data["lrs"][name]) for name in trace.group_names]
        losses = decode_floats(data["losses"])
        trace._lr_rows = [tuple(row) for row in zip(*columns, strict=True)]
        if len(trace._lr_rows) != len(losses):
            raise ValueError(
                f"A trace has one loss for each step, but got {len(losses)} losses and {len(trace)} steps."
            )
        for loss in losses:
            trace._add_loss(loss)
        for name, metric in data["metrics"].items():
            steps, values = metric["steps"], decode_floats(metric["values"])
            for step, value in zip(steps, values, strict=True):
                trace.add_metric(name, step, value)
        trace.set_status(data["status"], data["message"])
        return trace


def encode_floats(values: Sequence[float]) -> list[float | str]:
    """Floats for JSON, which has no NaN and no infinity: those become 'nan', 'inf' and '-inf'.

    Example:
        >>> encode_floats([0.1, float("-inf")])
        [0.1, '-inf']
    """
    return [value if math.isfinite(value) else str(value) for value in values]


def decode_floats(values: Sequence[float | str]) -> list[float]:
    """The inverse of `encode_floats`."""
    return [float(value) for value in values]
