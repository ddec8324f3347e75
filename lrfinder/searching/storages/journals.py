"""Journals: how SQLite keeps a study. Its own default waits for the disk at each change, some forty times a trial."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any


class QuickConnection(sqlite3.Connection):
    """A connection that appends changes to a log beside the database, and waits for the disk now and then.

    A process that is killed loses nothing. A machine that loses its power may lose the last changes,
    never the study: trials that were under way are made again, as those of any worker that is lost.

    Source: https://www.sqlite.org/wal.html and https://www.sqlite.org/pragma.html#pragma_synchronous.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Where no log can be made (a file that may only be read), the first change says so.
        with contextlib.suppress(sqlite3.OperationalError):
            (mode,) = self.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode == "wal":  # with any other journal it could damage the database
                self.execute("PRAGMA synchronous=NORMAL")
