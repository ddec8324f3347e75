"""Outboxes: what a run is told, on its way from the training's thread into its spool."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lrfinder.delivering.spools import LINE_METRICS, Entry, Journal, Spool

MAX_STEP = 2**63
STEP_KEYS = ("train/loss",)  # the first key of a row that is an optimizer step

Row: TypeAlias = tuple[Any, ...]  # nanoseconds, step, keys, and a value for each: one object
Artifact: TypeAlias = tuple[str, str, bytes]  # its name, that of its file in the spool, the file
Line: TypeAlias = tuple[int, int, Sequence[str], list[Any]]  # milliseconds, step, keys, values


class Outbox:
    """What one run was told and its spool does not hold yet.

    `rows` is written to by the training's thread with `append`, which needs no lock. `write` may
    be called from any thread.

    Args:
        spool: Of the run.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.rows: deque[Row] = deque()
        self.unreadable: Exception | None = None  # the device broke before its values were read
        self.last_step = 0
        self._steps = 0  # optimizer steps since the last sample of the machine's load
        self._since = time.monotonic()
        self._journal = Journal(spool)
        self._others: deque[Entry | Artifact] = deque()  # entries, artifacts
        self._nonfinite: set[str] = set()  # keys of which a tag says so already
        self._lock = threading.Lock()

    def put(self, entry: Entry) -> None:
        """Params, tags, inputs, or the run's end."""
        self._others.append(entry)

    def put_artifact(self, name: str, data: bytes, *, file: str | None = None) -> None:
        """An artifact; with the name of a `file`, what it is made of by whoever delivers it."""
        self._others.append((name, file or name, data))

    def put_file(self, path: Path, name: str) -> None:
        """A file as an artifact, as it is now: a link to it where that can be, else a copy."""
        copy = self._journal.new_file(name)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)
        self.put({"artifact": name, "file": str(copy.relative_to(self.spool.path))})

    def put_sample(self, sample: Mapping[str, float]) -> None:
        """The load of the machine, and how fast the training went since the last one; after `write`."""
        now = time.monotonic()
        found = dict(sample)
        if self._steps and now > self._since:
            found["system/steps_per_second"] = self._steps / (now - self._since)
        self._since, self._steps = now, 0
        if not found:
            return
        keys, values = tuple(found), list(found.values())
        self.rows.append((time.time_ns(), self.last_step, keys, *values))

    def write(self) -> None:
        """Write all that is there now into the spool; what cannot be written stays.

        Raises:
            OSError: If the spool cannot be written.
        """
        with self._lock:
            rows = [(row[0] // 1_000_000, row[1], row[2], [*row[3:]]) for row in list(self.rows)]
            self._fetch(rows)
            self._note_nonfinite(rows)
            others = list(self._others)
            if not rows and not others:
                return
            self._journal.append([*_blocks(rows), *map(self._entry, others)])
            self._steps += sum(row[2][:1] == STEP_KEYS for row in rows)
            if rows:
                self.last_step = rows[-1][1]
            for _ in rows:
                self.rows.popleft()
            for _ in others:
                self._others.popleft()

    def in_memory(self) -> str:
        """What the spool does not hold yet, in words."""
        rows = list(self.rows)
        steps = [row[1] for row in rows]
        metrics = sum(len(row[2]) for row in rows)
        parts = [f"{metrics} metrics (steps {min(steps)} to {max(steps)})"] if rows else []
        if self._others:
            parts.append(f"{len(self._others)} other entries")
        return " and ".join(parts)

    def close(self) -> None:
        """Write no more."""
        self._journal.close()

    def _entry(self, item: Entry | Artifact) -> Entry:
        if isinstance(item, dict):
            return item
        name, file, data = item
        path = self._journal.new_file(file)
        path.write_bytes(data)
        return {"artifact": name, "file": str(path.relative_to(self.spool.path))}

    def _fetch(self, rows: list[Line]) -> None:
        try:
            _fetch(rows)
        except Exception as error:
            # A device that failed ends the training soon; what was read before is still recorded.
            self.unreadable = error
            for _, _, _, values in rows:
                values[:] = [math.nan if isinstance(v, Tensor) else v for v in values]

    def _note_nonfinite(self, rows: list[Line]) -> None:
        """NaN in the place of an infinity, of which MLflow makes 1.8e308: no chart shows that."""
        tags: dict[str, str] = {}
        for _, step, keys, values in rows:
            if all(map(math.isfinite, values)):
                continue
            for i, (key, value) in enumerate(zip(keys, values, strict=True)):
                if not math.isfinite(value):
                    if key not in self._nonfinite:
                        self._nonfinite.add(key)
                        tags[f"{key}.nonfinite"] = f"first at step {step}: {value}"
                    values[i] = math.nan
        if tags:
            self._others.appendleft({"tags": tags})  # before the run's end


def _blocks(rows: list[Line]) -> Iterator[Entry]:
    """Rows as lines of the journal: rows of the same keys in one, as many as fit a request."""
    start = 0
    while start < len(rows):
        keys = rows[start][2]
        stop, most = start, start + max(1, LINE_METRICS // max(1, len(keys)))
        while stop < min(most, len(rows)) and rows[stop][2] == keys:
            stop += 1
        block = [
            [milliseconds, step, *values] for milliseconds, step, _, values in rows[start:stop]
        ]
        yield {"keys": list(keys), "rows": block}
        start = stop


def scalar_now(value: Any) -> float | Tensor:
    """The value as it is now: a number, or a copy on its accelerator that is not waited for."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.is_cpu and value.dim() == 0:
        number: float = value.item()
        return number
    if value.numel() != 1:
        raise ValueError(
            f"A recorded value must be a scalar, but got a tensor of shape {tuple(value.shape)}."
        )
    return float(value.item()) if value.is_cpu else value.detach().clone()


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
def _fetch(rows: Sequence[Line]) -> None:
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
