"""Studies: making an Optuna study, its sampler and its pruner, safely and quietly."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lrfinder.searching.spaces import Space
from lrfinder.searching.storages import Behind, first_reason, lock, open_storage, shown

Direction = Literal["minimize", "maximize"]

# The study's own note of what it searches.
SPACE_KEY = "lrfinder.space"
ENGINE_KEY = "lrfinder.engine"


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna logs errors alone in here; its verbosity is put back after."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def open_study(
    storage: str | BaseStorage | None, study_name: str | None, *, directions: Sequence[Direction]
) -> Iterator[optuna.Study]:
    """The study of that name, made if it is not there; other processes that open it wait.

    A fresh database that several processes open at once crashes most of them while its tables are
    made, and a study that several begin would be begun several times.

    Raises:
        ValueError: If the storage cannot be opened and written.
    """
    tables = lock(storage)
    try:
        with tables:
            study = optuna.create_study(
                storage=open_storage(storage),
                study_name=study_name,
                directions=list(directions),
                load_if_exists=True,
            )
    except (
        OSError,
        SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        ImportError,
    ) as error:
        raise ValueError(
            "`storage` must be a database that can be opened and written, "
            f"but got {shown(storage)}: {first_reason(error)}"
        ) from error
    with lock(storage, study.study_name):
        yield study


def was_begun(study: optuna.Study) -> bool:
    """Whether `lrfinder.search` began the study.

    Raises:
        ValueError: If something else did.
    """
    if SPACE_KEY in study.user_attrs:
        return True
    if any(trial.state is not TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
        raise ValueError(
            f"Study {study.study_name!r} must be one of `lrfinder.search` to go on with, "
            "but it was made by something else. Give another study_name."
        )
    return False


def begin_study(
    study: optuna.Study, note: Mapping[str, Any], starts: Iterable[Mapping[str, float]]
) -> None:
    """Note what the study searches, and put its first trials in the queue.

    The note comes last: a process that is killed in between leaves a study that was not begun, and
    the next one puts the same trials in the queue, which holds each once.
    """
    for params in starts:
        study.enqueue_trial(dict(params), skip_if_exists=True)
    study.set_user_attr(SPACE_KEY, dict(note))


def check_same_search(study: optuna.Study, here: Mapping[str, Any]) -> Space:
    """The study's own space.

    Args:
        study: One that was begun.
        here: What this call searches, as far as it says so; it must be what the study notes.

    Raises:
        ValueError: If this call searches something else; it shows the differences.
    """
    there: dict[str, Any] = study.user_attrs[SPACE_KEY]
    differences = [
        f"{key} is {there.get(key)!r} there and {value!r} here"
        for key, value in here.items()
        if there.get(key) != value
    ]
    if differences:
        raise ValueError(
            f"Study {study.study_name!r} must search the same space to go on with, "
            f"but {'; '.join(differences)}. "
            "Give another study_name, or the arguments that it was begun with."
        )
    return Space.from_dict(there)


def trials_now(study: optuna.Study) -> list[FrozenTrial]:
    """All trials as they are in the storage now, whatever other workers have just done."""
    if isinstance(study._storage, Behind):
        study._storage.look_again()
    return study.get_trials(deepcopy=False)
