"""Storages: where studies lie. One that is away for a while is waited for, and a full disk is told.

Optuna's own storages raise at the first connection that is lost, which would end a search of days
because its database was restarted; and processes that begin a study at once make it several times.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, GrpcStorageProxy, InMemoryStorage, RDBStorage, get_storage
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential,
)

from lrfinder.searching.journals import QuickConnection

PATIENCE = 600.0  # seconds that a storage which does not answer is waited for
BUSY_TIMEOUT = 60.0  # seconds that SQLite waits for another process that writes
SAY_EVERY = 30.0  # seconds between two warnings that a storage is waited for

# SQLSTATE of PostgreSQL that pass by themselves: no connection, a restart, a deadlock, a lock, and
# too many connections.
_PASSING = ("08", "57P", "40", "55P03", "53300")

_log = logging.getLogger("lrfinder")


class StorageError(optuna.exceptions.StorageInternalError):
    """A study's storage refuses what it is told, or has been away for too long."""


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
    url = _parsed(storage)
    if url.drivername == "grpc":
        proxy = GrpcStorageProxy(host=url.host or "localhost", port=url.port or 13000)
        proxy.wait_server_ready(timeout=30.0)
        return _patient(proxy, storage)
    is_sqlite = url.get_backend_name() == "sqlite"
    sqlite = {"timeout": BUSY_TIMEOUT, "factory": QuickConnection}
    engine: dict[str, Any] = {"pool_pre_ping": True, "connect_args": sqlite if is_sqlite else {}}
    return _patient(get_storage(RDBStorage(storage, engine_kwargs=engine)), storage)


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
    url = _parsed(place)
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


def shown(storage: str | BaseStorage | None) -> str:
    """A storage without its password."""
    return make_url(storage).render_as_string() if isinstance(storage, str) else repr(storage)


def first_reason(error: BaseException) -> str:
    """What the database itself said, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    details = getattr(error, "details", None)  # of gRPC
    said = str(details() if callable(details) else error) or type(error).__name__
    return said.splitlines()[0]


def _parsed(storage: str) -> URL:
    try:
        url = make_url(storage)
        if url.drivername != "grpc":
            url.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise ValueError(
            "`storage` must be the URL of a database, as 'sqlite:///study.db', an optuna storage, "
            f"or None, but got {storage!r}."
        ) from error
    if url.drivername.startswith("sqlite") and not (url.database or "").startswith("file:"):
        folder = Path(url.database or "").parent
        if not folder.is_dir():
            raise ValueError(
                f"`storage` must lie in a folder that exists, but {folder} does not exist."
            )
    return url


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
            self._held = _retrying(lambda error: _say(shown(self._url), error))(self._taken)

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


# -- waiting --------------------------------------------------------------------------------------


def is_away(error: BaseException | None) -> bool:
    """Whether an error of a storage will pass by itself: no connection, a restart, a lock."""
    if error is None:
        return False
    if isinstance(error, PendingRollbackError):
        return True  # the connection was lost inside a transaction, which Optuna has rolled back
    if isinstance(error, (OperationalError, InterfaceError)):
        if error.connection_invalidated:
            return True
        code = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlstate", None)
        if code is not None:
            return str(code).startswith(_PASSING)
        is_sqlite = type(error.orig).__module__.startswith("sqlite3")
        return "locked" in str(error.orig) if is_sqlite else True
    status = getattr(error, "code", None)  # of gRPC; UNKNOWN is an error inside its server
    if callable(status):
        return getattr(status(), "name", "") in ("UNAVAILABLE", "UNKNOWN")
    return is_away(error.__cause__)


def _retrying(before: Callable[[BaseException], None]) -> Retrying:
    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        assert error is not None
        before(error)

    return Retrying(
        retry=retry_if_exception(is_away),
        wait=wait_exponential(multiplier=0.1, max=2.0),
        stop=stop_after_delay(PATIENCE),
        before_sleep=before_sleep,
        reraise=True,
    )


_said_at = [float("-inf")]


def _say(name: str, error: BaseException) -> None:
    if time.monotonic() - _said_at[0] > SAY_EVERY:
        _said_at[0] = time.monotonic()
        _log.warning("%s does not answer, and is waited for: %s", name, first_reason(error))


def _patient(inner: BaseStorage, url: str) -> BaseStorage:
    """The storage with every method of Optuna's interface waiting where it is away.

    A change may have been made although its answer was lost, and is then made again: values and
    attributes are the same after that; a trial made twice is one that nobody trains, and is found
    as one whose worker was lost.
    """
    names = [name for name, value in vars(BaseStorage).items() if callable(value)]
    names = [name for name in names if not name.startswith("_")]
    # Methods of a class of its own: Optuna asks for its interface.
    kind: Any = type("PatientStorage", (BaseStorage,), {n: _named(n) for n in names})
    storage = kind()
    storage.outages, storage.gave_up = 0, False

    def waits(error: BaseException) -> None:
        storage.outages += 1
        _say(shown(url), error)

    policy = _retrying(waits)

    def call(name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(inner, name)
        with _told(storage, url):
            return method(*args, **kwargs) if storage.gave_up else policy(method, *args, **kwargs)

    storage.call = call
    return cast("BaseStorage", storage)


def _named(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(BaseStorage, name))
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(name, *args, **kwargs)

    # Of an abstract method, `wraps` copies that too.
    method.__isabstractmethod__ = False  # type: ignore[attr-defined]
    return method


def _is_storages(error: BaseException) -> bool:
    kinds = (DBAPIError, optuna.exceptions.StorageInternalError)
    return isinstance(error, kinds) or callable(getattr(error, "code", None))


@contextmanager
def _told(storage: Any, url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _is_storages(error):
            raise
        storage.gave_up = True  # so that what else is under way does not wait as long again
        waited = f" for {PATIENCE:g} s" if is_away(error) else ""
        raise StorageError(
            f"The study's storage must take what it is told, but {shown(url)} "
            f"answered{waited}: {first_reason(error)}. What was done before is kept there. "
            "Repair it, and start the same call again: it goes on from there."
        ) from error
