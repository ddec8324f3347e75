"""Outboxes: what a run has recorded and its store has not acknowledged.

Values come in from the training's thread, as cheaply as can be, and go out in the sender's.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lrfinder.tracking.names import cut

WARN_METRICS = 300_000  # that wait for their store, from which the log says so
MAX_STEP = 2**63

Row: TypeAlias = tuple[int, int, Sequence[str], list[Any]]  # milliseconds, step, keys, values
Settled: TypeAlias = tuple[str, float, int, int]  # key, value, milliseconds, step

_log = logging.getLogger("lrfinder")


class Outbox:
    """What one run has recorded and its store has not acknowledged.

    `rows` is written to by the training thread with `append`, which needs no lock. The other
    fields are written under `lock`, and rows become metrics under it, so that whoever counts finds
    each of them once; of tags, params and artifacts the newest value of a name is the one that is
    sent.

    Args:
        run_id: Of the run, in the sender's store.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.lock = threading.Lock()
        self.rows: deque[Row] = deque()
        self.metrics: deque[Settled] = deque()
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: dict[str, bytes] = {}
        self.status: str | None = None  # set when the run is to end
        self.error: Exception | None = None  # what kept the last sending from being complete
        self.nonfinite: set[str] = set()  # keys of which a tag says so already
        self.lost: Exception | None = None  # the device broke before its values could be read
        self.warned = False

    def put(self, field: str, values: dict[str, Any]) -> None:
        """Add to `params`, `tags` or `artifacts`."""
        with self.lock:
            getattr(self, field).update(values)

    def taken(self, field: str) -> dict[str, Any]:
        """A copy of `params`, `tags` or `artifacts`, to be sent."""
        with self.lock:
            return dict(getattr(self, field))

    def acknowledge(self, field: str, sent: Mapping[str, Any]) -> None:
        """Take out what the store has, but for values that were replaced in the meantime."""
        with self.lock:
            waiting = getattr(self, field)
            for key, value in sent.items():
                if waiting.get(key) is value:
                    del waiting[key]

    def left(self, *, but_end: bool = False) -> str:
        """What is not in the store, in words; empty when all of it is."""
        with self.lock:
            settled, rows = list(self.metrics), list(self.rows)
        metrics = len(settled) + sum(len(row[2]) for row in rows)
        steps = [metric[3] for metric in settled] + [row[1] for row in rows]
        parts = [f"{metrics} metrics (steps {min(steps)} to {max(steps)})"] if metrics else []
        for name in ("params", "tags", "artifacts"):
            if keys := list(getattr(self, name)):
                parts.append(f"{name} {cut(', '.join(keys), 200)}")
        if self.status is not None and not but_end:
            parts.append(f"its end ({self.status})")
        return "; ".join(parts)

    # -- in the sender's thread -------------------------------------------------------------------

    def settle(self) -> None:
        """Rows with tensors become metrics with numbers, by one copy for each device and dtype."""
        rows = list(self.rows)
        try:
            _fetch(rows)
        except Exception as error:
            # The device is lost with what was computed there; the rest of these rows is not.
            for _, _, _, values in rows:
                values[:] = [math.nan if isinstance(value, Tensor) else value for value in values]
            self.lost = error
        settled: list[Settled] = []
        for milliseconds, step, keys, values in rows:
            for key, value in zip(keys, values, strict=True):
                if not math.isfinite(value):
                    self._note_nonfinite(key, value, step)
                    value = math.nan  # of an infinity MLflow makes 1.8e308: no chart shows that
                settled.append((key, value, milliseconds, step))
        with self.lock:
            self.metrics.extend(settled)
            for _ in rows:
                self.rows.popleft()
        if len(self.metrics) > WARN_METRICS and not self.warned:
            self.warned = True
            _log.warning(
                "%d metrics of run %s wait in memory for their store: %s",
                len(self.metrics),
                self.run_id,
                self.error,
            )

    def _note_nonfinite(self, key: str, value: float, step: int) -> None:
        if key not in self.nonfinite:
            self.nonfinite.add(key)
            self.put("tags", {f"{key}.nonfinite": f"first at step {step}: {value}"})


def scalar_now(value: Any) -> float | Tensor:
    """The value as it is now: a number, or a copy on its accelerator that is not waited for."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                "A recorded value must be a scalar, but got a tensor of shape "
                f"{tuple(value.shape)}."
            )
        return float(value.item()) if value.is_cpu else value.detach().clone()
    return float(value)


def checked_step(step: Any) -> int:
    """The step as an int.

    Raises:
        ValueError: If it is no integer >= 0.
    """
    number = step if isinstance(step, int) else getattr(step, "__index__", lambda: None)()
    if number is None or not 0 <= number < MAX_STEP:
        raise ValueError(
            f"`step` must be an integer >= 0, the number of the optimizer step, but got {step!r}."
        )
    return int(number)


@torch.no_grad()
def _fetch(rows: Sequence[Row]) -> None:
    """Put a number in the place of each tensor, with one copy for each device and dtype."""
    places: dict[tuple[torch.device, torch.dtype], list[tuple[list[Any], int]]] = {}
    for _, _, _, values in rows:
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                places.setdefault((value.device, value.dtype), []).append((values, i))
    for (device, _), group in places.items():
        # The values were computed on the training's stream, and this thread reads on its own: wait
        # for the device, which costs the training nothing.
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        block = torch.stack([values[i].reshape(()) for values, i in group]).cpu().double().tolist()
        for (values, i), number in zip(group, block, strict=True):
            values[i] = number
