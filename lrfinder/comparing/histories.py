"""Histories: runs read back from MLflow, with their whole curves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrfinder.delivering.runs import experiment_id
from lrfinder.delivering.stores import RecordError, first_line, is_final, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Curve: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64]]

NO_CURVE: Curve = (np.zeros(0, dtype=np.int64), np.zeros(0))
LIMIT = 12  # runs of an experiment that are read where none are named
PAGE = 200  # runs in one answer of the store


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run as it was recorded.

    Attributes:
        run_id: Its id in the store.
        name: Its name there.
        status: How its training ended ("completed", "diverged", ...) where that was recorded; else
            MLflow's status of the run ("finished", "failed", "killed", "running").
        hparams: Its params as text; only those below `cfg/` where it has any, since these are the
            resolved ones.
        curves: Metric -> (steps, values), sorted by step; the later value of a step that was
            recorded twice.
    """

    run_id: str
    name: str
    status: str
    hparams: dict[str, str]
    curves: dict[str, Curve] = field(repr=False)

    @property
    def lrs(self) -> dict[str, Curve]:
        """Group -> (steps, LRs)."""
        return {
            name.removeprefix("lr/"): curve
            for name, curve in self.curves.items()
            if name.startswith("lr/")
        }

    @property
    def num_steps(self) -> int:
        """Optimizer steps, from the highest one that was recorded."""
        return max((int(steps[-1]) + 1 for steps, _ in self.curves.values()), default=0)


def read_runs(
    runs: str | Iterable[str] | None,
    *,
    experiment: str | None,
    study: str | None,
    metric: str,
    direction: str,
    filter: str | None,
    tracking_uri: str | None,
) -> tuple[RecordedRun, ...]:
    """Runs with the whole curves of their LRs, their training loss and the metric.

    The arguments are those of `lrfinder.compare`.

    Raises:
        ValueError: If there is no such experiment, run or metric; what there is is listed.
        RecordError: If the store cannot be read.
    """
    client = open_store(tracking_uri, create=False)
    try:
        finder = _Finder(client, experiment, filter)
        if study is None:
            found = finder.find(runs, metric)
        elif runs is None:
            found = finder.of_study(study, metric, maximize=direction == "maximize")
        else:
            raise ValueError("`runs` or `study` must be given alone, but got both.")
        if not any(metric in run.data.metrics for run in found):
            there = sorted({name for run in found for name in run.data.metrics})
            raise ValueError(
                f"At least one of the {len(found)} runs must have the metric {metric!r}, but none "
                f"has. There are: {', '.join(there) or 'no metrics at all'}."
            )
        return tuple(_read(client, run, metric) for run in found)
    except (ValueError, RecordError):
        raise
    except Exception as error:
        raise RecordError(
            f"The store {client.tracking_uri!r} cannot be read: {first_line(error)}"
        ) from error


class _Finder:
    """Which runs are meant.

    Args:
        client: Of the store.
        experiment: The name of the experiment in which names of runs are looked for.
        filter_: What every run must satisfy.
    """

    def __init__(self, client: MlflowClient, experiment: str | None, filter_: str | None) -> None:
        self.client = client
        self.filter = filter_
        if experiment is None:
            self.where = experiment_id(client, None)
        else:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise ValueError(
                    f"The experiment must exist, but got {experiment!r}. {self._experiments()}"
                )
            self.where = str(found.experiment_id)

    def find(self, runs: str | Iterable[str] | None, metric: str) -> list[Run]:
        """Each run once, in the order in which they were named, else the newest first."""
        if runs is None:
            return self._newest(metric)
        named = [runs] if isinstance(runs, str) else list(runs)
        if not named:
            raise ValueError("At least one run must be given, but got none. Give ids or names.")
        found = []
        for name in named:
            found += self._by_id(name) or self._by_name(name)
        return list({run.info.run_id: run for run in found}.values())

    def of_study(self, study: str, metric: str, *, maximize: bool) -> list[Run]:
        """The best trials of a study, by the metric's last value."""
        quote = '"' if "'" in study else "'"
        condition = f"tags.`optuna.study_name` = {quote}{study}{quote}"
        found = self._search([self.where], condition)
        trials = [run for run in found if "optuna.trial_number" in run.data.tags]
        if not trials:
            raise ValueError(
                f"`study` must be the name of a study with trials in experiment {self._name()!r}, "
                f"but got {study!r}. {self._experiments()}"
            )

        def rank(run: Run) -> float:
            value = float(run.data.metrics.get(metric, math.nan))
            return math.inf if math.isnan(value) else (-value if maximize else value)

        return sorted(trials, key=rank)[:LIMIT]

    def _newest(self, metric: str) -> list[Run]:
        found = self._search([self.where])
        with_metric = [run for run in found if metric in run.data.metrics]
        if not found:
            condition = "" if self.filter is None else f" with {self.filter}"
            raise ValueError(
                f"There must be runs to read, but experiment {self._name()!r} has none"
                f"{condition}. {self._experiments()}"
            )
        return (with_metric or found)[:LIMIT]

    def _by_id(self, run_id: str) -> list[Run]:
        """The children of a run, or the run if it has none; nothing if no run has that id."""
        from mlflow.exceptions import MlflowException

        if not re.fullmatch("[0-9a-f]{32}", run_id):
            return []
        try:
            where = [self.client.get_run(run_id).info.experiment_id]
        except MlflowException as error:
            if is_final(error):
                return []
            raise
        children = self._search(where, f"tags.`lrfinder.parent` = '{run_id}'")
        if not children:  # of somebody else's record
            children = self._search(where, f"tags.`mlflow.parentRunId` = '{run_id}'")
        return children[::-1] or self._search(where, f"attributes.run_id = '{run_id}'")

    def _by_name(self, name: str) -> list[Run]:
        quote = '"' if "'" in name else "'"
        found = self._search([self.where], f"attributes.run_name = {quote}{name}{quote}")
        if not found:
            known = list(
                dict.fromkeys(str(run.info.run_name) for run in self._search([self.where]))
            )
            raise ValueError(
                "Each run must be the id of a run, or the name of one in experiment "
                f"{self._name()!r}, but got {name!r}. Its newest are: "
                f"{', '.join(known[:LIMIT]) or 'none'}."
            )
        return found[::-1]

    def _search(self, experiments: list[str], condition: str | None = None) -> list[Run]:
        """All runs that meet the condition and the filter, the newest first."""
        expression = " and ".join(part for part in (condition, self.filter) if part)
        found: list[Run] = []
        token = None
        while True:
            try:
                page = self.client.search_runs(
                    experiments,
                    expression,
                    max_results=PAGE,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
            except Exception as error:
                if not is_final(error):
                    raise
                raise ValueError(
                    "`filter` must be an expression of MLflow's search, but got "
                    f"{self.filter!r}: {first_line(error)}"
                ) from error
            found += page
            token = page.token
            if not token:
                return found

    def _name(self) -> str:
        return str(self.client.get_experiment(self.where).name)

    def _experiments(self) -> str:
        names = ", ".join(repr(item.name) for item in self.client.search_experiments())
        return f"Experiments in this store: {names}."


def _read(client: MlflowClient, run: Run, metric: str) -> RecordedRun:
    wanted = [
        name
        for name in run.data.metrics
        if name in ("train/loss", metric) or name.startswith("lr/")
    ]
    ours = {name: text for name, text in run.data.params.items() if name.startswith("cfg/")}
    return RecordedRun(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        status=run.data.tags.get("lrfinder.status", run.info.status.lower()),
        hparams=ours or dict(run.data.params),
        curves={name: _curve(client, run.info.run_id, name) for name in wanted},
    )


def _curve(client: MlflowClient, run_id: str, name: str) -> Curve:
    # The store answers in the order of insertion, which a record that was sent again has changed.
    rows = client.get_metric_history(run_id, name)
    values = {
        row.step: row.value for row in sorted(rows, key=lambda row: (row.step, row.timestamp))
    }
    return (
        np.array(list(values), dtype=np.int64),
        np.array(list(values.values()), dtype=np.float64),
    )
