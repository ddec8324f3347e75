"""Opening: the storage of a URL, as the process of a search has it, and as the one that writes for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.storages import BaseStorage, GrpcStorageProxy, InMemoryStorage, RDBStorage, get_storage
from sqlalchemy.engine import URL

from lrfinder.searching.storages.behind import Behind
from lrfinder.searching.storages.journals import QuickConnection
from lrfinder.searching.storages.urls import parsed
from lrfinder.searching.storages.waiting import Patient

BUSY_TIMEOUT = 60.0  # seconds that SQLite waits for another process that writes
_LIBPQ = ("postgresql", "postgresql+psycopg2", "postgresql+psycopg")


def open_storage(storage: str | BaseStorage | None) -> BaseStorage:
    """The storage of a URL: one that waits where the database is away; an object is taken as it is.

    Args:
        storage: URL of a database, `grpc://host:port` of Optuna's gRPC proxy, an Optuna storage, or
            None for one in memory.

    Raises:
        ValueError: If it is no URL, or its folder does not exist.
        Exception: What the database says where it cannot be opened, at once.
    """
    if not isinstance(storage, str):
        return InMemoryStorage() if storage is None else storage
    url = parsed(storage)
    inner = _proxy(url) if url.drivername == "grpc" else get_storage(_database(url, storage))
    return Behind(Patient(inner, storage), storage)  # type: ignore[abstract]


def open_twice(
    storage: str, on_wait: Callable[[BaseException], None]
) -> tuple[BaseStorage, BaseStorage]:
    """The storage of a URL for what must last, and for the rest, which is not waited for.

    What PostgreSQL has committed without waiting for its disk, it has on the disk when a later
    commit has waited: so a trial's end brings all that was said of it.
    """
    url = parsed(storage)
    if url.drivername == "grpc":
        proxy = Patient(_proxy(url), storage, on_wait)  # type: ignore[abstract]
        return proxy, proxy
    lasting = _database(url, storage)
    rest = lasting
    if url.drivername in _LIBPQ and "options" not in url.query:
        rest = _database(url, storage, {"options": "-c synchronous_commit=off"})
    return (
        Patient(get_storage(lasting), storage, on_wait),  # type: ignore[abstract]
        Patient(rest, storage, on_wait),  # type: ignore[abstract]
    )


def _proxy(url: URL) -> BaseStorage:
    proxy = GrpcStorageProxy(host=url.host or "localhost", port=url.port or 13000)
    proxy.wait_server_ready(timeout=30.0)
    return proxy


def _database(url: URL, storage: str, options: dict[str, Any] | None = None) -> RDBStorage:
    connect_args: dict[str, Any] = options or {}
    if url.get_backend_name() == "sqlite":
        connect_args = {"timeout": BUSY_TIMEOUT, "factory": QuickConnection}
    engine = {"pool_pre_ping": True, "connect_args": connect_args}
    return RDBStorage(storage, engine_kwargs=engine)
