"""Locks that all who use a storage share, on whichever machines they are."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from lrfinder.searching.storages.urls import first_reason, parsed, shown
from lrfinder.searching.storages.waiting import retrying, say


def lock(storage: str | BaseStorage | None, name: str = "") -> AbstractContextManager[Any]:
    """A lock, to be used again and again, that all who use the storage share.

    PostgreSQL: its own lock, on whichever machines they are. Else a file: of the folder of a SQLite
    database, or of this machine. One whose process is killed is free.

    Args:
        storage: As in `open_storage`.
        name: Of what is locked; "" for the tables.
    """
    if storage is None or isinstance(storage, InMemoryStorage):
        return nullcontext()
    place = "storage"
    if isinstance(storage, RDBStorage):
        place = storage.url
    elif isinstance(storage, str):
        place = storage
    key = hashlib.sha256(f"{place} {name}".encode()).hexdigest()
    elsewhere = FileLock(Path(tempfile.gettempdir()) / f"lrfinder-study-{key[:16]}.lock")
    if place == "storage":
        return elsewhere
    url = parsed(place)
    if url.drivername == "grpc":
        return elsewhere
    if url.get_backend_name() == "postgresql":
        return _PostgresLock(place, int(key[:15], 16))
    if url.get_backend_name() != "sqlite":
        return elsewhere
    if not url.database or url.database == ":memory:":
        return nullcontext()
    if url.database.startswith("file:"):  # a URI of SQLite's own
        return elsewhere
    path = Path(url.database)
    suffix = f"{key[:8]}.lock" if name else "lock"
    return FileLock(path.with_name(f"{path.name}.{suffix}"), poll_interval=0.01)


class _PostgresLock:
    """An advisory lock of PostgreSQL: the server frees it when the connection of its owner ends."""

    def __init__(self, url: str, key: int) -> None:
        self._url = url
        self._key = key
        self._engine: Engine | None = None
        self._held: Connection | None = None

    def __enter__(self) -> None:
        if self._engine is None:  # what cannot be reached at the start is told at once
            self._engine = create_engine(
                self._url, pool_pre_ping=True, isolation_level="AUTOCOMMIT"
            )
            self._held = self._taken()
        else:
            self._held = retrying(lambda error: say(shown(self._url), first_reason(error)))(
                self._taken
            )

    def _taken(self) -> Connection:
        assert self._engine is not None
        connection = self._engine.connect()
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        return connection

    def __exit__(self, *error: object) -> None:
        assert self._held is not None
        connection, self._held = self._held, None
        try:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key})
        except SQLAlchemyError:
            connection.invalidate()  # the server has restarted, and its locks are gone with it
        finally:
            connection.close()
