"""Caching: arrays that take long to make, kept in one checked file each.

A reader takes a file only if it is whole and was made from the same sources; otherwise it is made
again. Of several processes that want the same arrays at once, one makes them and the others wait
for it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The folder: `$LRFINDER_CACHE`, `$XDG_CACHE_HOME/lrfinder` or `~/.cache/lrfinder`."""
    if own := os.environ.get("LRFINDER_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrfinder"


def cached_arrays(name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of this name and key: read from the cache, or made and kept there.

    One file is kept for each name: arrays with another key take its place. A cache that cannot be
    written is a warning and not an error, since the arrays are there all the same.

    Args:
        name: Of the file, without folder and suffix.
        key: Says what the arrays are made from, such as a hash of it; a file with another key is
            stale.
        make: Makes the arrays, of numbers. Its exceptions go through, and nothing is kept.
    """
    store = cache_dir() / f"{name}.npz"
    found = _read(store, key)
    if found is not None:
        return found
    from filelock import FileLock

    lock = FileLock(store.with_suffix(".lock"))
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        arrays = make()
        _warn_not_kept(store, error)
        return arrays
    try:
        found = _read(store, key)  # perhaps another process has just made it
        if found is not None:
            return found
        arrays = make()
        try:
            _write(store, key, arrays)
        except OSError as error:
            _warn_not_kept(store, error)
        return arrays
    finally:
        lock.release()


def _read(store: Path, key: str) -> Arrays | None:
    """What is kept under this key; None if there is none, or if it is stale or damaged."""
    if not store.is_file():
        return None
    try:
        # Reading a part to its end compares it with the CRC-32 that the archive holds.
        with store.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            return {part: kept[part] for part in kept.files if part != "key"}
    except Exception as error:  # a damaged file fails in many ways, with one cure for all
        logger.warning("The cache file %s is damaged (%s), so it is made again.", store, error)
        return None


def _write(store: Path, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """All or nothing: written under another name, then moved. The caller holds the lock."""
    for left_over in store.parent.glob(f"{store.stem}-*.tmp"):
        # Of a process that was killed: only the holder of the lock writes.
        left_over.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=store.parent, prefix=f"{store.stem}-", suffix=".tmp", delete=False
    ) as file:
        try:
            # The stubs mistake the arrays for the argument `allow_pickle`.
            np.savez(file, **{"key": np.array(key), **arrays})  # type: ignore[arg-type]
            file.close()  # all bytes are out before the name is given
            os.replace(file.name, store)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _warn_not_kept(store: Path, error: OSError) -> None:
    warnings.warn(
        f"What was made could not be kept in {str(store.parent)!r} ({error}), so it is made again "
        "next time. Set LRFINDER_CACHE to a folder that can be written.",
        stacklevel=3,
    )
