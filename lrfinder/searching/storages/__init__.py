"""Storages: where studies lie. One that is away is waited for, a full disk is told, and no trial waits.

urls       read and shown
journals   how SQLite keeps a study
waiting    every method of a storage waits where it is away, or says what it refuses
locks      that all who use a storage share
behind     a trial under way is written by another process
  |-- copies     of the trials, which are read in place of the storage
  |-- writers    that process, as the search sees it
  `-- writing    what it does
opening    from a URL to a storage
"""

from lrfinder.searching.storages.behind import Behind
from lrfinder.searching.storages.locks import lock
from lrfinder.searching.storages.opening import open_storage
from lrfinder.searching.storages.urls import first_reason, shown
from lrfinder.searching.storages.waiting import StorageError, is_away

__all__ = [
    "Behind",
    "StorageError",
    "first_reason",
    "is_away",
    "lock",
    "open_storage",
    "shown",
]
