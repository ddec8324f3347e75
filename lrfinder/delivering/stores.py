"""MLflow stores: opened so that what is wrong is said at once, and never waited for.

MLflow waits up to 100 s for a database that cannot be opened, and up to 247 s for a server that is
away (its defaults, measured with 3.17); and a fresh database that several processes open at once
breaks in its first migration. So a store is looked at before MLflow is given it, and its first use
is under a lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sqlite3
import tempfile
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

REACH_TIMEOUT = 5.0  # seconds until a server must have answered
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
LOCK_TIMEOUT = 120.0  # seconds for another process to make the tables of a fresh database


class RecordError(RuntimeError):
    """A record is not, or cannot be, in its store; the message says what is missing."""


class StoreAwayError(RecordError):
    """A store does not answer now: its server is down, restarts or hangs. It may be back later."""


# -- opening --------------------------------------------------------------------------------------


def open_store(tracking_uri: str | None = None, *, create: bool = True) -> MlflowClient:
    """A client of an MLflow store that was seen to answer.

    Args:
        tracking_uri: None for MLflow's own, `mlflow.get_tracking_uri()`.
        create: Make a SQLite file where there is none; False for those who only read.

    Raises:
        StoreAwayError: If it does not answer; within seconds.
        RecordError: If it cannot be opened.
    """
    from mlflow import MlflowClient

    uri = store_uri(tracking_uri)
    check_store(uri, create=create)
    try:
        with _first_use_lock(uri):
            path = sqlite_path(uri)
            if path is not None and create:
                _make_tables(path)
            return MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise _unusable(uri, error) from error


# Of the stores that a process has opened. Opening one again would wait for whoever else opens it.
_OPEN: dict[tuple[int, str], MlflowClient] = {}


def reopen_store(uri: str, *, fresh: bool = False, create: bool = True) -> MlflowClient:
    """As `open_store`; a store that this process has opened before is seen to answer, and not opened again.

    Args:
        uri: Of the store.
        fresh: Open it all the same.
        create: As of `open_store`, of one that was opened before.
    """
    key = os.getpid(), uri
    if fresh or key not in _OPEN:
        _OPEN[key] = open_store(uri)
    else:
        check_store(uri, create=create)  # MLflow itself would wait for minutes
    return _OPEN[key]


def store_uri(tracking_uri: str | None) -> str:
    """A store's URI that means the same in every folder; None for MLflow's own.

    Example:
        >>> store_uri("sqlite:////data/mlflow.db")
        'sqlite:////data/mlflow.db'
    """
    if tracking_uri is None:
        import mlflow

        tracking_uri = mlflow.get_tracking_uri()
    uri, prefix = str(tracking_uri), "sqlite:///"
    if uri.startswith(prefix) and uri[len(prefix) : len(prefix) + 1] not in ("", "/", ":"):
        return prefix + os.path.abspath(uri.removeprefix(prefix))
    return uri


def check_store(uri: str, *, create: bool = True) -> None:
    """See that a store answers, and with `create` can be written to, before MLflow waits for it.

    Raises:
        StoreAwayError: If nobody answers at a host that exists.
        RecordError: If it cannot be used.
    """
    scheme = urlsplit(uri).scheme
    try:
        if scheme.startswith("sqlite"):
            _check_sqlite(uri, create=create)
        elif scheme in ("http", "https"):
            _check_host(uri)
            _check_server(uri)
        elif scheme.split("+")[0] in ("postgresql", "mysql", "mssql"):
            _check_host(uri)
            _check_database(uri, scheme)
    except RecordError:
        raise
    except Exception as error:
        raise _unusable(uri, error) from error


def sqlite_path(uri: str) -> Path | None:
    """The file of a `sqlite:///` URI; None for any other store."""
    if not urlsplit(uri).scheme.startswith("sqlite"):
        return None
    path = re.sub(r"^[^:]+:///?", "", uri).split("?", 1)[0]
    if path in ("", ":memory:"):
        raise RecordError(
            "A SQLite store must be a file, since the record is sent by a thread of its own, but "
            f"got {uri!r}. Give 'sqlite:///mlflow.db'."
        )
    return Path(path).absolute()


def _check_sqlite(uri: str, *, create: bool) -> None:
    path = sqlite_path(uri)
    assert path is not None
    if not create and not path.is_file():
        raise RecordError(
            f"There is no MLflow store at {uri!r}: the file {path} does not exist. Give the URI "
            "that the runs were recorded with, or go to the folder where they were made."
        )
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")


def _make_tables(path: Path) -> None:
    """Make the tables of a fresh SQLite file, as a whole or not at all.

    SQLite keeps what each statement of MLflow's migrations has done, so a process that is killed
    among them would leave a file that nobody can open any more. So they are made in a file beside
    it, whose pages go into this one in one transaction.
    """
    from mlflow import MlflowClient

    with closing(sqlite3.connect(path, timeout=20)) as connection:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return
        made = path.with_name(f"{path.name}.part")
        made.unlink(missing_ok=True)  # of one that was killed
        MlflowClient(tracking_uri=f"sqlite:///{made}")
        with closing(sqlite3.connect(made)) as source:
            source.backup(connection)
        made.unlink()


def _check_host(uri: str) -> None:
    """A host without an address is a wrong URI; one where nobody answers may be back later."""
    parts = urlsplit(uri)
    host = parts.hostname
    if host is None:
        return  # a database on a socket of this machine
    port = parts.port or _PORTS.get(parts.scheme.split("+")[0])
    try:
        socket.create_connection((host, port or 0), timeout=REACH_TIMEOUT).close()
    except socket.gaierror as error:
        raise _unusable(uri, error) from error
    except OSError as error:
        if port is not None and not _is_proxied(parts.scheme, host):
            raise _away(uri, error) from error


def _is_proxied(scheme: str, host: str) -> bool:
    """Whether requests go through a proxy, so that the host itself need not be reached."""
    from urllib.request import getproxies, proxy_bypass

    return scheme in getproxies() and not proxy_bypass(host)


def _check_server(uri: str) -> None:
    import requests

    try:
        with requests.get(uri, timeout=REACH_TIMEOUT, stream=True) as answer:
            if answer.status_code in (502, 503, 504):  # of a proxy before a server that is down
                raise _away(uri, RuntimeError(f"it answered HTTP {answer.status_code}."))
    except requests.exceptions.SSLError:
        return  # it answers; whether its certificate will do is for MLflow's own settings to say
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise _away(uri, error) from error


def _check_database(uri: str, scheme: str) -> None:
    import sqlalchemy

    options = {} if scheme.startswith("mssql") else {"connect_timeout": int(REACH_TIMEOUT)}
    engine = sqlalchemy.create_engine(
        uri, poolclass=sqlalchemy.pool.NullPool, connect_args=options
    )
    with engine.connect():
        pass


def _first_use_lock(uri: str) -> AbstractContextManager[Any]:
    """One process at a time makes a database's tables; MLflow's migrations break when two do."""
    from filelock import FileLock

    scheme = urlsplit(uri).scheme
    if scheme in ("", "file", "http", "https") or scheme.startswith("databricks"):
        return nullcontext()
    path = sqlite_path(uri)
    if path is None:
        digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir(), f"lrfinder-store-{digest}")
    elif not os.access(path.parent, os.W_OK):
        return nullcontext()  # a database that is only read
    return FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT)


def _unusable(uri: str, error: Exception) -> RecordError:
    return RecordError(
        f"The MLflow store {without_password(uri)!r} cannot be used: {first_line(error)} Give a "
        "`tracking_uri` (or MLFLOW_TRACKING_URI) that can be written to, for instance "
        "'sqlite:///mlflow.db', or start the server that it names."
    )


def _away(uri: str, error: Exception) -> StoreAwayError:
    reason = first_line(error).rstrip(".")
    return StoreAwayError(f"The MLflow store {without_password(uri)!r} does not answer: {reason}.")


def first_line(error: BaseException) -> str:
    """What an error says, without the statements and traces that databases add."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def without_password(uri: str) -> str:
    """A URI as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)


def is_final(error: BaseException) -> bool:
    """Whether a store refused what it was given, so that sending the same again cannot help."""
    return getattr(error, "error_code", None) in (
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "INVALID_STATE",
    )
