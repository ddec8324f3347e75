"""Folders: where the spools of recorders lie on the disk."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import time
from pathlib import Path

from lrfinder.delivering.sending import is_recording
from lrfinder.delivering.spools import find_spools
from lrfinder.delivering.stores import RecordError

_log = logging.getLogger("lrfinder")


def default_folder() -> Path:
    """Where sessions lie: LRFINDER_SPOOL, else `lrfinder/spool` in the user's folder of states."""
    import platformdirs

    chosen = os.environ.get("LRFINDER_SPOOL")
    return Path(chosen) if chosen else platformdirs.user_state_path("lrfinder") / "spool"


def new_session(folder: str | Path | None) -> Path:
    """A new folder for a session, which can be written.

    Raises:
        RecordError: If it cannot.
    """
    root = Path(default_folder() if folder is None else folder).absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _tell_of_others(root)
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(3)}"
        path = root / stamp
        path.mkdir(mode=0o700)  # a store's URI may hold a password
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"can it be written")
    except OSError as error:
        raise unwritable(root, error) from error
    return path


_told: set[Path] = set()


def _tell_of_others(root: Path) -> None:
    """Say once where records of earlier trainings still wait."""
    if root in _told:
        return
    _told.add(root)
    waiting = [
        session for session in root.iterdir() if find_spools(session) and not is_recording(session)
    ]
    if waiting:
        _log.warning(
            "Records of %d earlier trainings are not in their store yet. `lrfinder sync %s` sends "
            "them.",
            len(waiting),
            root,
        )


def unwritable(path: Path, error: OSError) -> RecordError:
    """What to say of a folder that cannot be written."""
    return RecordError(
        f"The folder of the spool must be writable, but {str(path)!r} is not: {error}. Give "
        "another one: `spool=...`, or the environment variable LRFINDER_SPOOL."
    )
