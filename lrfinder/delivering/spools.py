"""Spools: what a run has recorded, kept in files until its store has acknowledged it.

    <folder>/<session>/            one recorder and its children; the lock `recording.lock` is held
        <number>/                  while they record, `sending.lock` by who delivers
            run.json               which run, in which store
            journal.jsonl          what was recorded, appended in groups: `<crc32> <json>` lines
            files/<number>/<name>  artifacts; small ones are in the journal
            acknowledged.json      up to where the store has it

A spool whose run has ended and is in its store as a whole is removed.
"""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import orjson

Entry: TypeAlias = dict[str, Any]  # one line of a journal

FORMAT = 1
HEADER = "run.json"
JOURNAL = "journal.jsonl"
STATE = "acknowledged.json"
RECORDING = "recording.lock"
SENDING = "sending.lock"
LINE_METRICS = 1000  # values in one line of a journal, so that one line fits one request


@dataclass
class Header:
    """Which run a spool belongs to.

    Attributes:
        tracking_uri: Of the store; it means the same in every folder.
        key: Of the spool. The run carries it in the tag `lrfinder.spool`, by which it is found where
            the store made it and the answer was lost.
        run_id: None until the store has made the run.
        experiment: The name that was asked for; None for that of MLflow's environment.
        experiment_id: None until it is known.
        run_name: The name that was asked for.
        tags: Of a run that is still to be made.
        unique: Those of the tags that no other run of the experiment has; empty where none is such.
        alone_until: Until when nobody else makes a run with these, milliseconds since 1970.
        parent_key: The key of the parent's spool, where the parent had no id yet.
        start: When the recorder was made, milliseconds since 1970.
        tried: Whether the store was asked to make the run: it may have, and the answer was lost.
    """

    tracking_uri: str
    key: str
    run_id: str | None = None
    experiment: str | None = None
    experiment_id: str | None = None
    run_name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    unique: tuple[str, ...] = ()
    alone_until: int = 0
    parent_key: str | None = None
    start: int = 0
    tried: bool = False

    def is_contested(self, *, abandoned: bool) -> bool:
        """Whether others may make the run as well, since this process ended or took long."""
        return bool(self.unique) and (abandoned or time.time() * 1000 >= self.alone_until)


@dataclass
class State:
    """Up to where the store has what the journal holds.

    Attributes:
        offset: Bytes of the journal that were acknowledged.
        waiting: Artifact -> its file below the spool: read from the journal, not yet in the store.
        refused: What the store will never take, and why, in words.
    """

    offset: int = 0
    waiting: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


class Spool:
    """The spool of one run, read by who delivers it.

    Args:
        path: Its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_path = path / JOURNAL

    @classmethod
    def create(cls, path: Path, header: Header) -> Spool:
        """A new spool; its folder must not be there."""
        path.mkdir(parents=True)
        spool = cls(path)
        spool.journal_path.touch()
        spool.save_header(header)
        return spool

    @property
    def is_there(self) -> bool:
        """Whether anything is left to deliver; False once its run has ended and is in its store."""
        return (self.path / HEADER).is_file()

    def header(self) -> Header:
        """Which run it belongs to.

        Raises:
            ValueError: If the file is none of this version of lrfinder.
        """
        data = self._read(HEADER)
        if data is None or data.pop("format", None) != FORMAT:
            raise ValueError(
                f"{self.path / HEADER} must be the start of a spool in format {FORMAT}, but it is "
                "not. Use the version of lrfinder that wrote it."
            )
        return Header(**{**data, "unique": tuple(data.get("unique", ()))})

    def save_header(self, header: Header) -> None:
        """Replace `run.json` as a whole."""
        self._write(HEADER, {"format": FORMAT, **vars(header)})

    def state(self) -> State:
        """Up to where the store has it."""
        data = self._read(STATE)
        return State() if data is None else State(**data)

    def save_state(self, state: State) -> None:
        """Replace `acknowledged.json` as a whole."""
        self._write(STATE, vars(state))

    def entries(self, offset: int = 0) -> Iterator[tuple[Entry, int]]:
        """What the journal holds from a byte on, each with the byte where it ends.

        A last line that was cut, by a kill in the middle of its writing, is left out. A damaged
        line before it becomes `{"damaged": ...}`, with its place in words.
        """
        with self.journal_path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start, offset = offset, offset + len(line)
                entry = decode(line)
                yield entry or {"damaged": f"bytes {start} to {offset} of {JOURNAL}"}, offset

    def file_of(self, entry: Entry, offset: int) -> str:
        """The file of an entry of artifacts, below the spool; made of the entry where that holds it.

        Args:
            entry: Of the journal.
            offset: Byte where it begins.
        """
        if "data" not in entry:
            return str(entry["file"])
        path = self.path / "files" / f"at-{offset}" / Path(entry["file"]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(entry["data"]))
        return str(path.relative_to(self.path))

    def is_delivered(self) -> bool:
        """Whether the store has all that is there now; costs nothing, however much that is."""
        state = self.state()
        try:
            size = self.journal_path.stat().st_size
        except FileNotFoundError:
            return True  # it was removed, since its run has ended
        return state.offset == size and not state.waiting and not state.refused

    def left(self, state: State | None = None) -> str:
        """What is not in the store, in words; empty where all of it is."""
        if not self.is_there:
            return ""
        state = self.state() if state is None else state
        metrics, steps = 0, (2**63, -1)
        names: dict[str, dict[str, None]] = {"params": {}, "tags": {}, "inputs": {}}
        artifacts = dict.fromkeys(state.waiting)
        end = ""
        for entry, _ in self.entries(state.offset):
            rows = entry.get("rows", ())
            metrics += len(rows) * len(entry.get("keys", ()))
            if rows:
                numbers = [row[1] for row in rows]
                steps = (min(steps[0], *numbers), max(steps[1], *numbers))
            for kind in names:
                names[kind] |= dict.fromkeys(entry.get(kind, ()))
            artifacts |= dict.fromkeys(entry.get("artifacts", ()))
            if "end" in entry:
                end = f"its end ({entry['end']})"
        parts = [f"{metrics} metrics (steps {steps[0]} to {steps[1]})"] if metrics else []
        for kind, keys in (names | {"artifacts": artifacts}).items():
            if keys:
                parts.append(f"{kind} {_shortened(', '.join(keys))}")
        if state.refused:
            parts.append(f"refused by the store: {_shortened('; '.join(state.refused))}")
        return "; ".join([*parts, *([end] if end else [])])

    def remove(self) -> None:
        """Remove it. The header goes first: a spool without one is none."""
        (self.path / HEADER).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return _loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: dict[str, Any]) -> None:
        part = self.path / f"{name}.part"
        part.write_bytes(_dumps(data))
        os.replace(part, self.path / name)


class Journal:
    """The end of a spool that a recorder appends to. Thread safe.

    Args:
        spool: The spool.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.size = 0
        self._file = os.open(spool.journal_path, os.O_WRONLY | os.O_APPEND)
        self._files = 0
        self._lock = threading.Lock()

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries, all or nothing: what a full disk cut off is taken back.

        Raises:
            OSError: If they cannot be written; the journal is as before.
        """
        block = b"".join(map(encode, entries))
        with self._lock:
            if os.fstat(self._file).st_nlink == 0:
                raise FileNotFoundError(f"the spool {self.spool.path} was removed")
            try:
                written = 0
                while written < len(block):
                    written += os.write(self._file, block[written:])
            except OSError:
                os.ftruncate(self._file, self.size)
                raise
            self.size += len(block)

    def new_file(self, name: str) -> Path:
        """A place for an artifact's file."""
        with self._lock:
            self._files += 1
            folder = self.spool.path / "files" / str(self._files)
        folder.mkdir(parents=True)
        return folder / Path(name).name

    def close(self) -> None:
        """Append no more."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


def encode(entry: Entry) -> bytes:
    """A line: the CRC-32 of the JSON, the JSON; a NaN among its rows is null there."""
    body = _dumps(entry)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Entry | None:
    """The entry of a line; None where the line is damaged.

    Example:
        >>> decode(encode({"tags": {"a": "1"}})), decode(b"12345678 {}")
        ({'tags': {'a': '1'}}, None)
    """
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    entry = _loads(body)
    if b"null" in body and "rows" in entry:
        entry["rows"] = [[math.nan if v is None else v for v in row] for row in entry["rows"]]
    return entry


def _dumps(data: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError:  # half a character, as of a file's name
        return json.dumps(data, separators=(",", ":")).encode()


def _loads(text: bytes) -> dict[str, Any]:
    try:
        data: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        data = json.loads(text)
    return data


def find_spools(path: Path) -> list[Spool]:
    """The spools in a folder or below, the oldest first; one that is a spool itself stands alone."""
    if (path / HEADER).is_file():
        return [Spool(path)]
    # `os.walk`, which goes on where somebody removes a folder meanwhile.
    folders = [Path(folder) for folder, _, files in os.walk(path) if HEADER in files]
    # Within a session in the order of their making, so that a parent comes before its children.
    return [Spool(folder) for folder in sorted(folders, key=lambda f: (f.parent.name, _number(f)))]


def _number(folder: Path) -> int:
    return int(folder.name) if folder.name.isdecimal() else 0


def _shortened(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
