"""Running: all searches of a task at once, and what their trials are worth on fresh seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import lrfinder
from benchmarks.searching.arms import CONFIRMED, Arm
from benchmarks.searching.settings import Search, Setting, task_of
from lrfinder.engines.lockstep import Job
from lrfinder.searching.confirming import Confirmation
from lrfinder.searching.recipes import Recipe
from lrfinder.stepping import Steps
from lrfinder.traces import Trace
from lrfinder.training.together import make_job, run_together


def run_all(searches: Sequence[Search]) -> None:
    """All searches at once, each one trial after the other."""
    sources = {id(search): search.jobs() for search in searches}

    def jobs() -> Iterator[Job | None]:
        waiting = list(searches)
        while waiting:
            for search in list(waiting):
                if search.under_way:
                    continue
                search.under_way = True
                job = next(sources[id(search)], None)
                if job is None:
                    waiting.remove(search)
                else:
                    yield job
            if any(search.under_way for search in waiting):
                yield None

    run_together(jobs(), len(searches), engine="auto", device="cpu", at_once=len(searches))


def fresh_losses(
    setting: Setting, hparams: Sequence[dict[str, Any]], seeds: Sequence[int]
) -> np.ndarray:
    """Validation losses, shape (hyperparameters, fresh seeds); inf where a training diverged."""
    losses = np.full((len(hparams), len(seeds)), np.inf)

    def job(row: int, column: int) -> Job:
        def course(started: Any) -> Steps:
            training = started(None)
            yield from training.steps()
            trace: Trace = training.trace
            if trace.status == "completed":
                losses[row, column] = trace.last("val/loss")

        return make_job(setting.task, course, **hparams[row], seed=seeds[column], device="cpu")

    pairs = [(row, column) for row in range(len(hparams)) for column in range(len(seeds))]
    jobs = (job(row, column) for row, column in pairs)
    run_together(jobs, len(pairs), engine="auto", device="cpu", at_once=48)
    return np.where(np.isfinite(losses), losses, np.inf)


def _worth(
    setting: Setting, hparams: dict[Any, dict[str, Any]], seeds: Sequence[int]
) -> dict[Any, float]:
    """The mean loss on fresh seeds, by the key of the hyperparameters."""
    means = fresh_losses(setting, list(hparams.values()), seeds).mean(1)
    return dict(zip(hparams, means.tolist(), strict=True))


def measure(
    name: str, made: Sequence[Arm], seeds: Sequence[int], fresh: Sequence[int], on_the_way: int
) -> list[Any]:
    """All arms on a task: a row for each arm and seed.

    Args:
        name: Of the task.
        made: The arms.
        seeds: Of the searches.
        fresh: Seeds on which the hyperparameters that a search ends with are trained.
        on_the_way: As many of these for those that were its best before.
    """
    task = task_of(name)
    started = task.start(0, device="cpu")
    steps = lrfinder.planned_steps(started, task.num_epochs, task.options)
    assert steps is not None
    setting = Setting(task, steps)
    searches = [arm(setting, seed) for arm in made for seed in seeds]
    run_all(searches)
    wanted: dict[Any, dict[str, Any]] = {}
    for search in searches:
        final = search.study.best_trial
        chosen = final.user_attrs["hparams"]
        if search.arm.startswith("lrfinder"):
            Confirmation(
                search.study, Recipe(task), settings=setting.settings(search.seed), recorder=None
            ).run(CONFIRMED)
            chosen = lrfinder.best_hparams(search.study)
        wanted[search.arm, search.seed, "final"] = chosen
        for _, number in search.history:
            wanted[search.arm, search.seed, number] = search.study.trials[number].user_attrs[
                "hparams"
            ]
    ends = {key: chosen for key, chosen in wanted.items() if key[2] == "final"}
    worth = _worth(setting, wanted, fresh[:on_the_way]) | _worth(setting, ends, fresh)
    rows = []
    for search in searches:
        path = [
            (at, float(worth[search.arm, search.seed, number])) for at, number in search.history
        ]
        rows.append({
            "task": name, "arm": search.arm, "seed": search.seed, "trial_steps": steps,
            "trials": len(search.study.trials), "steps": search.steps,
            "first": search.history[0][0],
            "best_trial": search.study.best_value,
            "final": float(worth[search.arm, search.seed, "final"]),
            "lucky": path[-1][1], "path": path,
            "hparams": wanted[search.arm, search.seed, "final"],
        })  # fmt: skip
    return rows
