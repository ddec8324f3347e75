"""Waiting: a storage that is away for a while is waited for, and one that refuses says so.

Optuna's own storages raise at the first connection that is lost, which would end a search of days
because its database was restarted.
"""

from __future__ import annotations

import abc
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages import BaseStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential,
)

from lrfinder.searching.storages.urls import first_reason, shown

PATIENCE = 600.0  # seconds that a storage which does not answer is waited for
SAY_EVERY = 30.0  # seconds between two warnings that a storage is waited for

# SQLSTATE of PostgreSQL that pass by themselves: no connection, a restart, a deadlock, a lock, and
# too many connections.
_PASSING = ("08", "57P", "40", "55P03", "53300")

_log = logging.getLogger("lrfinder")


class StorageError(optuna.exceptions.StorageInternalError):
    """A study's storage refuses what it is told, or has been away for too long."""


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


def retrying(before: Callable[[BaseException], None]) -> Retrying:
    """Makes a call again while its storage is away, up to `PATIENCE`; `before` each wait it is told why."""

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


def say(name: str, reason: str) -> None:
    """Log that a storage is waited for, now and then."""
    if time.monotonic() - _said_at[0] > SAY_EVERY:
        _said_at[0] = time.monotonic()
        _log.warning("%s does not answer, and is waited for: %s", name, reason)


class Forwarding(BaseStorage):
    """A storage each of whose methods is a `call` of its name."""

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What the method of that name does."""
        raise NotImplementedError


def _named(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(BaseStorage, name))
    def method(self: Forwarding, *args: Any, **kwargs: Any) -> Any:
        return self.call(name, *args, **kwargs)

    # Of an abstract method, `wraps` copies that too.
    method.__isabstractmethod__ = False  # type: ignore[attr-defined]
    return method


INTERFACE = {
    name: bool(getattr(value, "__isabstractmethod__", False))
    for name, value in vars(BaseStorage).items()
    if callable(value) and not name.startswith("_")
}  # Optuna's methods, and whether each storage has its own
for _name in INTERFACE:
    setattr(Forwarding, _name, _named(_name))
abc.update_abstractmethods(Forwarding)  # type: ignore[type-abstract]


class Patient(Forwarding):
    """A storage that waits where the one inside is away.

    A change may have been made although its answer was lost, and is then made again: values and
    attributes are the same after that; a trial made twice is one that nobody trains, and is found
    as one whose worker was lost.

    Args:
        inner: Does what it is told.
        url: Of the storage, for what is said.
        on_wait: Called at each wait with its reason; by default that is logged, now and then.

    Attributes:
        outages: Waits so far.
        gave_up: Whether it has refused something: so that what else is under way does not wait as long again.
    """

    def __init__(
        self, inner: BaseStorage, url: str, on_wait: Callable[[BaseException], None] | None = None
    ) -> None:
        self.outages = 0
        self.gave_up = False
        self._inner = inner
        self._url = url
        self._on_wait = on_wait or (lambda error: say(shown(url), first_reason(error)))
        self._policy = retrying(self._waits)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What the storage inside does, when it can."""
        method = getattr(self._inner, name)
        with _told(self, self._url):
            return (
                method(*args, **kwargs) if self.gave_up else self._policy(method, *args, **kwargs)
            )

    def _waits(self, error: BaseException) -> None:
        self.outages += 1
        self._on_wait(error)


def _is_storages(error: BaseException) -> bool:
    kinds = (DBAPIError, optuna.exceptions.StorageInternalError)
    return isinstance(error, kinds) or callable(getattr(error, "code", None))


@contextmanager
def _told(storage: Patient, url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _is_storages(error):
            raise
        storage.gave_up = True
        waited = f" for {PATIENCE:g} s" if is_away(error) else ""
        raise StorageError(
            f"The study's storage must take what it is told, but {shown(url)} "
            f"answered{waited}: {first_reason(error)}. What was done before is kept there. "
            "Repair it, and start the same call again: it goes on from there."
        ) from error
