"""Runs and experiments of an MLflow store: found, made, or taken over from `mlflow run`."""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lrfinder.delivering.spools import Header, Spool
from lrfinder.delivering.stores import RecordError, StoreAwayError, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


CLOCKS_APART = 3600.0  # seconds; of machines that record into one store
# Seconds after which a run is seen by all who did not look for it before it was made.
SETTLED = 2.0


def default_experiment() -> tuple[str | None, str | None]:
    """Name or id of the experiment of MLflow's environment: one of them, else "Default"'s id."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    return name, None if name else os.environ.get("MLFLOW_EXPERIMENT_ID", "0")


def experiment_id(client: MlflowClient, name: str | None) -> str:
    """The id of an experiment, which is made if there is none of that name.

    Args:
        client: Of the store.
        name: None for the one of MLflow's environment.
    """
    from mlflow.exceptions import MlflowException

    if name is None:
        name, known = default_experiment()
        if known is not None:
            return known
        assert name is not None
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(
                client.create_experiment(name, artifact_location=_artifact_location(client, name))
            )
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was quicker
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise RecordError(
            f"The experiment must not be deleted, but {name!r} is. Restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or give another "
            "name."
        )
    return str(found.experiment_id)


def _artifact_location(client: MlflowClient, name: str) -> str | None:
    # Beside a SQLite file; MLflow itself would take the folder that the process happens to be in.
    path = sqlite_path(client.tracking_uri)
    if path is None:
        return None
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    folder = re.sub(r"[^\w.-]+", "-", name)[:50].strip("-.")
    return (path.parent / "mlruns" / f"{folder}-{digest}").as_uri()


def take_adoptable(tracking_uri: str | None) -> str | None:
    """The id of the run that `mlflow run` made for this process, if it did.

    It is taken out of the environment, so that nobody else adopts that run.
    """
    if "MLFLOW_RUN_ID" not in os.environ:
        return None
    if tracking_uri is not None and tracking_uri != os.environ.get("MLFLOW_TRACKING_URI"):
        return None  # that run lies in another store
    return os.environ.pop("MLFLOW_RUN_ID")


def adoption_tags(
    client: MlflowClient, run: Run, experiment: str | None, run_name: str | None
) -> dict[str, str]:
    """The experiment and the name that were asked for, where the adopted run has others."""
    tags = {}
    if experiment is not None and client.get_experiment(run.info.experiment_id).name != experiment:
        tags["lrfinder.experiment"] = experiment
    if run_name is not None and run.info.run_name != run_name:
        tags["lrfinder.run_name"] = run_name
    return tags


def ensure_run(spool: Spool, client: MlflowClient, *, abandoned: bool) -> Header:
    """The header of a spool whose run is there; it is made where it is not.

    Args:
        spool: Of the run.
        client: Of its store.
        abandoned: Whether the process that recorded it is no more: others may have made its run.

    Raises:
        RecordError: If its parent's run is still to be made.
    """
    header = spool.header()
    if header.run_id is None:
        if header.experiment_id is None:
            header.experiment_id = experiment_id(client, header.experiment)
        own = None
        if header.tried:
            own = run_of(client, header.experiment_id, header.key)
        else:
            header.tried = True
            spool.save_header(header)
        if own is None and not header.is_contested(abandoned=abandoned):
            own = create_run(client, header).info.run_id
        if header.is_contested(abandoned=abandoned):  # now, for that may have taken long
            own = _the_only_run(client, header, own, SETTLED if abandoned else 0.0)
        header.run_id = own
        spool.save_header(header)
    return header


def _the_only_run(client: MlflowClient, header: Header, own: str | None, settled: float) -> str:
    """The run with a header's unique tags, which others may be making at the same moment.

    Who finds one takes it. Who finds none makes one, and gives it up where another turns up that
    was made by somebody who had looked before.

    Args:
        client: Of the store.
        header: Whose run is asked for.
        own: The id of the run that was made already.
        settled: Seconds until another has turned up. A training that lives does not wait for that.
    """
    assert header.experiment_id is not None
    tags = {name: header.tags[name] for name in header.unique}
    since = header.start / 1000 - CLOCKS_APART
    while True:
        if own is None:
            found = run_with(client, header.experiment_id, tags, since=since)
            if found is not None:
                return found
            own = str(create_run(client, header).info.run_id)
        time.sleep(settled)
        if run_with(client, header.experiment_id, tags, since=since, but=own) is None:
            return own
        client.delete_run(own)
        own = None
        time.sleep(settled * random.uniform(0.5, 1.0))  # the other may have been given up as well


def create_run(client: MlflowClient, header: Header) -> Run:
    """A new run as the header says, with the key by which it is found if the answer is lost."""
    assert header.experiment_id is not None
    tags = {**header.tags, "lrfinder.spool": header.key}
    if header.parent_key is not None:
        parent = run_of(client, header.experiment_id, header.parent_key)
        if parent is None:
            raise StoreAwayError("The run of the parent must be made before its children's.")
        tags["lrfinder.parent"] = parent
    return client.create_run(
        header.experiment_id, start_time=header.start, run_name=header.run_name, tags=tags
    )


def run_of(client: MlflowClient, experiment: str, key: str) -> str | None:
    """The id of the run that was made for the spool of this key."""
    return run_with(client, experiment, {"lrfinder.spool": key})


def run_with(
    client: MlflowClient,
    experiment: str,
    tags: Mapping[str, str],
    *,
    since: float = 0.0,
    but: str | None = None,
) -> str | None:
    """The id of a run that has all of these tags, and began after `since`, in seconds since 1970.

    Any but one, where that is given.
    """
    terms = [f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items()]
    if since:
        terms.append(f"attributes.start_time >= {int(since * 1000)}")
    found = client.search_runs([experiment], " and ".join(terms), max_results=2)
    ids = [str(run.info.run_id) for run in found]
    return next((run_id for run_id in ids if run_id != but), None)


def _quoted(value: str) -> str:
    """As MLflow's search reads it, which knows no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"
