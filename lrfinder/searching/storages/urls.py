"""URLs of storages: read, shown without a password, and what a database says in one line."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import BaseStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError


def parsed(storage: str) -> URL:
    """The URL of a database, or of Optuna's gRPC proxy.

    Raises:
        ValueError: If it is none, or its folder does not exist.
    """
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
