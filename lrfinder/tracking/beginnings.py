"""Beginnings: how the run of a recorder comes to be in its store: made there, or taken over from `mlflow run`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lrfinder.delivering.runs import adoption_tags, create_run, experiment_id, run_of
from lrfinder.delivering.spools import Header
from lrfinder.delivering.stores import RecordError, reopen_store
from lrfinder.tracking.facts import run_facts

if TYPE_CHECKING:
    from mlflow.entities import Run


def process_tags() -> dict[str, str]:
    """What MLflow itself and `run_facts` say of this process."""
    from mlflow.tracking.context.registry import resolve_tags

    return dict(resolve_tags(run_facts()))


def new_header(uri: str, run_name: str | None, tags: dict[str, str], parent: str | None) -> Header:
    """The start of a spool.

    Args:
        uri: Of the store.
        run_name: Of the run; MLflow makes one up for None.
        tags: All of them.
        parent: The id of the run that it belongs to, if it is known.
    """
    links = {} if parent is None else {"lrfinder.parent": parent}
    return Header(
        tracking_uri=uri,
        key=uuid.uuid4().hex,
        run_name=run_name,
        tags=tags | links,
        start=time.time_ns() // 1_000_000,
    )


def make_run(header: Header, *, again: bool = False) -> None:
    """Make the run of a header, which is given its ids and its name.

    Args:
        header: Of its spool.
        again: Whether a run of this process was made in that store before.

    Raises:
        StoreAwayError: If the store does not answer.
        RecordError: If it refuses.
    """
    with _refusals(f"A run must be made in the store {header.tracking_uri!r}"):
        client = reopen_store(header.tracking_uri, fresh=not again, create=False)
        header.experiment_id = header.experiment_id or experiment_id(client, header.experiment)
        try:
            _note(header, create_run(client, header))
        except KeyboardInterrupt:
            # The store may have made it by then, and nobody else knows of it.
            made = run_of(client, header.experiment_id, header.key)
            if made is not None:
                client.set_terminated(made, "KILLED")
            raise


def adopt_run(
    header: Header, run_id: str, experiment: str | None, run_name: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Take over a run that is there, under the experiment and the name that it has.

    Args:
        header: Is given the run's ids and its name.
        run_id: Of the run.
        experiment: What was asked for.
        run_name: Likewise.

    Returns:
        The run's params, and tags that say where what was asked for differs.

    Raises:
        StoreAwayError: If the store does not answer.
        RecordError: If it refuses.
    """
    with _refusals(f"Run {run_id} must be in the store {header.tracking_uri!r}"):
        client = reopen_store(header.tracking_uri, fresh=True)
        run = client.get_run(run_id)
        _note(header, run)
        return dict(run.data.params), adoption_tags(client, run, experiment, run_name)


def _note(header: Header, run: Run) -> None:
    header.run_id, header.run_name = run.info.run_id, run.info.run_name
    header.experiment_id = run.info.experiment_id


@contextmanager
def _refusals(must: str) -> Iterator[None]:
    """What MLflow answers in here, as an error that says what must hold."""
    try:
        yield
    except RecordError:
        raise
    except Exception as error:
        raise RecordError(f"{must}, but it answered: {error}") from error
