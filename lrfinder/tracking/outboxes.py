"""Outboxes: what a run is told, on its way from the training's thread into its spool."""

from __future__ import annotations

import base64
import itertools
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
from lrfinder.traces import Trace

MAX_STEP = 2**63
MAX_INLINE = 100_000  # bytes of an artifact that lies in the journal: a file takes longer
STEP_KEYS = ("train/loss",)  # the first key of a row that is an optimizer step

Row: TypeAlias = tuple[Any, ...]  # nanoseconds, step, keys, and a value for each: one object
Artifact: TypeAlias = tuple[tuple[str, ...], str, bytes]  # names, that of its file, the file
BlockRows: TypeAlias = Sequence[Sequence[Any]]  # of each milliseconds, step, and values
Block: TypeAlias = tuple[tuple[str, ...], BlockRows]  # their keys, and the rows


class Followed:
    """A trace whose steps are recorded as it grows.

    Args:
        trace: Its rows from now on.
        keys: Of `train/loss` and the LRs, in its order.

    Attributes:
        stop: Before which row it ends; None while it grows.
    """

    def __init__(self, trace: Trace, keys: tuple[str, ...]) -> None:
        self.trace = trace
        self.keys = keys
        self.stop: int | None = None
        self._start = len(trace)
        self._times = trace.keep_times()
        self._written = 0

    def take(self) -> BlockRows:
        """The rows that can be read and were not `written`: milliseconds, step, loss, LRs."""
        first = self._start + self._written
        losses, lrs = self.trace.settled_rows(first, first + self.left)
        times = self._times[self._written : self._written + len(losses)]
        times = [time // 1_000_000 for time in times]
        columns = [[*map(float, column)] for column in zip(*lrs, strict=True)]
        steps = range(first, first + len(losses))
        return [*zip(times, steps, losses, *columns, strict=True)]

    def end(self) -> None:
        """Its rows from now on are recorded otherwise, or there are none."""
        _ = self.trace.losses  # all of them are on the CPU now
        self.stop = len(self.trace)

    def written(self, count: int) -> None:
        """So many more are in the spool."""
        self._written += count

    @property
    def left(self) -> int:
        """Rows that are not in the spool."""
        count = len(self._times) if self.stop is None else self.stop - self._start
        return count - self._written


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
        self._followed: list[Followed] = []
        self._nonfinite: set[str] = set()  # keys of which a tag says so already
        self._lock = threading.Lock()

    def put(self, entry: Entry) -> None:
        """Params, tags, inputs, or the run's end."""
        self._others.append(entry)

    def follow(self, trace: Trace, keys: tuple[str, ...]) -> Followed:
        """Record a trace as it grows, until that is ended."""
        followed = Followed(trace, keys)
        with self._lock:
            self._followed.append(followed)
        return followed

    def put_artifacts(self, names: Sequence[str], data: bytes, file: str | None = None) -> None:
        """Artifacts of one file; with its name, whoever delivers makes each of them of it."""
        self._others.append((tuple(names), file or names[0], data))

    def put_file(self, path: Path, name: str) -> None:
        """A file as an artifact, as it is now: a link to it where that can be, else a copy."""
        copy = self._journal.new_file(name)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)
        self.put({"artifacts": [name], "file": str(copy.relative_to(self.spool.path))})

    @property
    def is_delivered(self) -> bool:
        """Whether its run has ended, and the store has all of it; there is nothing to be said of it either."""
        return self.unreadable is None and not self.spool.is_there

    @property
    def since_sample(self) -> float:
        """Seconds since the last sample, or since the run began."""
        return time.monotonic() - self._since

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
            rows = list(self.rows)
            grown = [(followed, followed.take()) for followed in self._followed]
            blocks = [*self._read(rows), *((f.keys, taken) for f, taken in grown if taken)]
            blocks = [(keys, self._finite(keys, taken)) for keys, taken in blocks]
            others = list(self._others)
            if not blocks and not others:
                return
            self._journal.append([*_lines(blocks), *map(self._entry, others)])
            for keys, taken in blocks:
                if keys[:1] == STEP_KEYS:
                    self._steps += len(taken)
                self.last_step = int(taken[-1][1])
            for _ in rows:
                self.rows.popleft()
            for followed, taken in grown:
                followed.written(len(taken))
            self._followed = [f for f in self._followed if f.left or f.stop is None]
            for _ in others:
                self._others.popleft()

    def in_memory(self) -> str:
        """What the spool does not hold yet, in words."""
        rows = list(self.rows)
        steps = [row[1] for row in rows]
        metrics = sum(len(row[2]) for row in rows)
        for followed in list(self._followed):
            if followed.left:
                last = len(followed.trace)
                steps += [last - followed.left, last - 1]
                metrics += followed.left * len(followed.keys)
        parts = [f"{metrics} metrics (steps {min(steps)} to {max(steps)})"] if steps else []
        if self._others:
            parts.append(f"{len(self._others)} other entries")
        return " and ".join(parts)

    def close(self) -> None:
        """Write no more."""
        self._journal.close()

    def _entry(self, item: Entry | Artifact) -> Entry:
        if isinstance(item, dict):
            return item
        names, file, data = item
        if len(data) <= MAX_INLINE:
            return {"artifacts": names, "file": file, "data": base64.b64encode(data).decode()}
        path = self._journal.new_file(file)
        path.write_bytes(data)
        return {"artifacts": names, "file": str(path.relative_to(self.spool.path))}

    def _read(self, rows: list[Row]) -> list[Block]:
        """Rows with numbers in the place of tensors, those of the same keys that follow each other in one block."""
        blocks: list[tuple[tuple[str, ...], list[list[Any]]]] = []
        for keys, group in itertools.groupby(rows, key=lambda row: row[2]):
            blocks.append((keys, [[row[0] // 1_000_000, row[1], *row[3:]] for row in group]))
        read = [row for _, block in blocks for row in block]
        try:
            _fetch(read)
        except Exception as error:
            # A device that failed ends the training soon; what was read before is still recorded.
            self.unreadable = error
            for row in read:
                row[:] = [math.nan if isinstance(v, Tensor) else v for v in row]
        return [*blocks]

    def _finite(self, keys: Sequence[str], rows: BlockRows) -> BlockRows:
        """NaN in the place of an infinity, of which MLflow makes 1.8e308: no chart shows that."""
        if all(map(math.isfinite, itertools.chain.from_iterable(rows))):
            return rows
        tags: dict[str, str] = {}
        for _, step, *values in rows:
            for key, value in zip(keys, values, strict=True):
                if not math.isfinite(value) and key not in self._nonfinite:
                    self._nonfinite.add(key)
                    tags[f"{key}.nonfinite"] = f"first at step {step}: {value}"
        if tags:
            self._others.appendleft({"tags": tags})  # before the run's end
        return [[v if math.isfinite(v) else math.nan for v in row] for row in rows]


def _lines(blocks: Sequence[Block]) -> Iterator[Entry]:
    """Blocks as lines of the journal, of as many rows as fit a request."""
    for keys, rows in blocks:
        most = max(1, LINE_METRICS // max(1, len(keys)))
        for start in range(0, len(rows), most):
            yield {"keys": keys, "rows": rows[start : start + most]}


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
def _fetch(rows: Sequence[list[Any]]) -> None:
    """Put a number in the place of each tensor, with one copy for each device and dtype."""
    places: dict[tuple[torch.device, torch.dtype], list[tuple[list[Any], int]]] = {}
    for row in rows:
        for i, value in enumerate(row):
            if isinstance(value, Tensor):
                places.setdefault((value.device, value.dtype), []).append((row, i))
    for (device, _), group in places.items():
        # The values were computed on the training's stream, and this thread reads on its own: wait
        # for the device, which costs the training nothing.
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        block = torch.stack([row[i].reshape(()) for row, i in group]).cpu().double().tolist()
        for (row, i), number in zip(group, block, strict=True):
            row[i] = number
