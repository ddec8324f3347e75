"""Syncing: what recorders could not deliver is sent later, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lrfinder.delivering.following import remove_session
from lrfinder.delivering.sending import BusyError, Courier, is_recording
from lrfinder.delivering.spools import Spool, find_spools
from lrfinder.delivering.stores import first_line

WAIT = 30.0  # seconds for somebody else who is sending the same spools


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What became of one spool.

    Attributes:
        path: Its folder.
        run_id: The run, where the store has made it.
        tracking_uri: The store.
        left: What is not in the store, in words; empty when all of it is.
        reason: Why not, in words.
        recording: Whether the process that records the run lives: it goes on, and is not ended.
    """

    path: Path
    run_id: str | None
    tracking_uri: str
    left: str = ""
    reason: str = ""
    recording: bool = False

    @property
    def complete(self) -> bool:
        """Whether all that was recorded up to now is in the store."""
        return not self.left


def sync(path: str | Path, *, tracking_uri: str | None = None) -> tuple[Synced, ...]:
    """Send what recorders could not deliver, and end the runs of processes that are no more.

    A run whose process was killed is ended as KILLED, with the tag `lrfinder.ending`; one whose
    end was recorded is ended as it says. Nothing is sent twice, whoever runs this at the same time
    or again. What is delivered as a whole is removed from the disk.

    Args:
        path: A spool, or a folder of spools.
        tracking_uri: The store, where it is not at the address that the spools name.

    Returns:
        One for each spool that was there.

    Raises:
        ValueError: If there is no such folder.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise ValueError(
            f"`path` must be a spool or a folder of spools, but there is no folder {str(folder)!r}."
        )
    synced = []
    spools = find_spools(folder)
    for session in dict.fromkeys(spool.path.parent for spool in spools):
        own = [spool for spool in spools if spool.path.parent == session]
        synced += _sync_session(session, own, tracking_uri)
    return tuple(synced)


def _sync_session(session: Path, spools: list[Spool], tracking_uri: str | None) -> list[Synced]:
    headers = [spool.header() for spool in spools]
    recording = is_recording(session)
    courier = Courier(session, tracking_uri=tracking_uri)
    busy = ""
    errors: dict[Path, Exception] = {}
    try:
        errors = courier.deliver(may_end=lambda: not is_recording(session), wait=WAIT)
    except BusyError as error:
        busy = str(error)
    synced = []
    for spool, header in zip(spools, headers, strict=True):
        error_ = errors.get(spool.path)
        there = spool.is_there
        synced.append(
            Synced(
                path=spool.path,
                run_id=courier.run_ids.get(spool.path, header.run_id),
                tracking_uri=tracking_uri or header.tracking_uri,
                left=(spool.left() or ("" if recording else "its end")) if there else "",
                reason=first_line(error_) if error_ else busy,
                recording=recording,
            )
        )
    if not recording and not find_spools(session):
        remove_session(session)
    return synced
