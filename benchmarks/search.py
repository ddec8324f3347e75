"""Claim: a search that starts from a range test finds sooner what a cold one finds at its end, and no worse.

Each arm searches learning rates and a StepLR on small tasks, from several seeds; its cost is in
optimizer steps, those of range tests included. What a trial is worth is its mean validation loss on
fresh seeds, which no search sees. All searches of a task are trained in lockstep, each one trial
after the other. Some 40 minutes on a quiet core:

    python -m benchmarks.search
    python -m benchmarks.search --seeds 2 --tasks mlp-sgd --no-save
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import torch
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

import lrfinder
from benchmarks.markdown import read
from benchmarks.range_test.tasks import problems
from benchmarks.results_file import write_result
from lrfinder.engines.lockstep import Job
from lrfinder.searching.arguments import Settings, check_arguments
from lrfinder.searching.budgets import RANGE_TEST_KEY, Budget
from lrfinder.searching.confirming import ROUNDS, Confirmation
from lrfinder.searching.recipes import Recipe
from lrfinder.searching.samplers import make_pruner, make_sampler
from lrfinder.searching.starts import box_of, first_params, first_points
from lrfinder.searching.studies import quiet_optuna
from lrfinder.searching.trials import Trials
from lrfinder.searching.workers import Worker
from lrfinder.stepping import Steps
from lrfinder.traces import Trace
from lrfinder.training.together import make_job, run_together

EPOCHS = {"mlp-sgd": 8, "cnn": 6, "fine-tune": 12, "chars-adamw": 5}
TRIALS = 64  # of the cold searches
FRESH = 1000  # from here on seeds that no search sees
CONFIRMED = 4  # trials that our search trains again
RAW = (1e-6, 10.0)


def task_of(name: str) -> lrfinder.Task:
    """A task, some 250 to 340 steps long."""
    problem = problems()[name]
    if name == "chars-adamw":  # a sixth of the text, for epochs of 50 steps
        (inputs, targets), val = problem.data
        smaller: Callable[[], Any] = lambda: ((inputs[:3200], targets[:3200]), val)  # noqa: E731
        problem = dataclasses.replace(problem, make_data=smaller)
    return dataclasses.replace(problem.task(), num_epochs=EPOCHS[name])


@dataclass
class Search:
    """One search of an arm.

    Args:
        arm: Its name.
        seed: Of the search.
        study: What it fills.
        trials: Makes its jobs.
        budget: When it ends.
        steps: Taken before the first trial.
    """

    arm: str
    seed: int
    study: optuna.Study
    trials: Trials
    budget: Budget
    steps: int = 0
    under_way: bool = False
    history: list[tuple[int, int]] = field(default_factory=list)  # steps, and the best trial then

    def ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A trial has ended."""
        self.under_way = False
        self.steps += trial.user_attrs.get("steps", 0)
        if trial.state is TrialState.COMPLETE:
            best = study.best_trial.number
            if not self.history or self.history[-1][1] != best:
                self.history.append((self.steps, best))

    def jobs(self) -> Iterator[Job | None]:
        """One after the other."""
        with Worker(self.study, nullcontext(), grace_period=1e9) as worker:
            for jobs in self.trials.groups(worker, self.budget, 1):
                yield from jobs


@dataclass(frozen=True)
class Setting:
    """What all arms of a task share."""

    task: lrfinder.Task
    steps: int  # of a full trial

    def settings(self, seed: int) -> Settings:
        """As `lrfinder.search` has them."""
        return check_arguments(
            self.task, schedule="StepLR", gamma="one", warm_up=0, metric="val/loss",
            direction="minimize", engine="auto", num_epochs=None, seed=seed, device="cpu",
            at_once=None, confirm=None,
        )  # fmt: skip

    def make(
        self, arm: str, seed: int, sampler: BaseSampler, pruner: optuna.pruners.BasePruner,
        budget: Budget, *, result: lrfinder.RangeTest | None = None, user: Any = None, steps: int = 0,
    ) -> Search:  # fmt: skip
        """A search, as `lrfinder.search` begins it."""
        settings = self.settings(seed)
        names = list(self.task.groups)
        points = [] if result is None else first_points(result)
        box = dict.fromkeys(names) if result is None else box_of(result, names)
        space = settings.space(box, points)
        study = optuna.create_study(sampler=sampler, pruner=pruner)
        study.set_user_attr(RANGE_TEST_KEY, {"steps": steps})
        for params in [] if result is None else first_params(result, space, {}):
            study.enqueue_trial(params, skip_if_exists=True)
        trials = Trials(
            Recipe(self.task), space, user=user, metrics=settings.metrics, seed=seed,
            device="cpu", recorder=None,
        )  # fmt: skip
        search = Search(arm, seed, study, trials, budget, steps=steps)
        trials.on_trial = search.ended
        return search


# -- the arms -------------------------------------------------------------------------------------


@functools.cache
def tested(task_name: str, seed: int) -> lrfinder.RangeTest:
    """The range test of a search."""
    task = task_of(task_name)
    started = task.start(seed, device="cpu")
    return lrfinder.range_test(
        started.model, started.optimizer, task.loss_fn, started.train_loader, effort="quick",
        planned_steps=lrfinder.planned_steps(started, task.num_epochs, task.options), seed=seed,
    )  # fmt: skip


def warm(
    setting: Setting, seed: int, name: str = "lrfinder", *, sampler: str | None = None,
    pruner: str | None = None,
) -> Search:  # fmt: skip
    """Ours: what `lrfinder.search` does, with the steps of a cold search, its last trainings included."""
    result = tested(setting.task.name, seed)
    again = sum(size * max(1, CONFIRMED // 2**i) for i, size in enumerate(ROUNDS))
    budget = Budget(n_steps=(TRIALS - again) * setting.steps)
    return setting.make(
        name, seed, make_sampler(sampler, seed=seed, n_trials=TRIALS),
        make_pruner(pruner, num_epochs=setting.task.num_epochs), budget,
        result=result, steps=result.cost.steps,
    )  # fmt: skip


def raw_lrs(trial: optuna.Trial, groups: Sequence[str]) -> dict[str, Any]:
    """An LR for each group, over everything."""
    return {"lrs": {name: trial.suggest_float(f"lr/{name}", *RAW, log=True) for name in groups}}


def raw_lr(trial: optuna.Trial, groups: Sequence[str]) -> dict[str, Any]:
    """One LR for all groups, over everything."""
    return {"lrs": dict.fromkeys(groups, trial.suggest_float("lr", *RAW, log=True))}


def cold(setting: Setting, seed: int, name: str, sampler: BaseSampler, propose: Any) -> Search:
    """Full trials from nothing."""
    user = functools.partial(propose, groups=list(setting.task.groups))
    return setting.make(
        name, seed, sampler, optuna.pruners.NopPruner(), Budget(n_trials=TRIALS), user=user
    )


def pinned(setting: Setting, seed: int) -> Search:
    """One LR from a finder, and the rest is searched: pytorch-forecasting's `optimize_hyperparameters`.

    The finder: 100 steps from 1e-5 to 1, the loss smoothed, the steepest place.
    """
    started = setting.task.start(seed, device="cpu")
    result = lrfinder.range_test(
        started.model, started.optimizer, setting.task.loss_fn, started.train_loader,
        start_lr=1e-5, end_lr=1.0, num_steps=100, groups="together", effort="brackets",
        replicas=1, seed=seed,
    )  # fmt: skip
    (trace,) = result.traces[:1]
    lrs, losses = np.array(next(iter(trace.lrs.values()))), np.array(trace.losses)
    width = 10
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    place = int(np.gradient(smooth)[1:-1].argmin()) + 1 + width // 2
    lr = float(lrs[place])

    def propose(trial: optuna.Trial, groups: Sequence[str]) -> dict[str, Any]:
        return {"lrs": dict.fromkeys(groups, lr)}

    search = cold(setting, seed, "pinned LR, TPE", optuna.samplers.TPESampler(seed=seed), propose)
    search.steps = len(losses)
    return search


Arm = Callable[[Setting, int], Search]


def arms() -> list[Arm]:
    """What is compared."""
    tpe, random = optuna.samplers.TPESampler, optuna.samplers.RandomSampler
    return [
        warm,
        lambda s, seed: cold(s, seed, "cold TPE", tpe(seed=seed), raw_lrs),
        lambda s, seed: cold(s, seed, "random", random(seed=seed), raw_lrs),
        lambda s, seed: cold(s, seed, "cold TPE, one LR", tpe(seed=seed), raw_lr),
        pinned,
    ]


VARIANTS = {  # of samplers and pruners
    "sampler": ["TPESampler", "GPSampler", "CmaEsSampler", "RandomSampler", "QMCSampler"],
    "pruner": ["MedianPruner", "NopPruner", "HyperbandPruner", "SuccessiveHalvingPruner",
               "WilcoxonPruner", "PatientPruner(MedianPruner(), patience=1)"],
}  # fmt: skip


# -- running --------------------------------------------------------------------------------------


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


def measure(
    name: str, made: Sequence[Arm], seeds: Sequence[int], fresh: Sequence[int]
) -> list[Any]:
    """All arms on a task: a row for each arm and seed."""
    task = task_of(name)
    started = task.start(0, device="cpu")
    steps = lrfinder.planned_steps(started, task.num_epochs, task.options)
    assert steps is not None
    setting = Setting(task, steps)
    searches = [arm(setting, seed) for arm in made for seed in seeds]
    run_all(searches)
    wanted = {}
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
    worth = dict(
        zip(wanted, fresh_losses(setting, list(wanted.values()), fresh).mean(1), strict=True)
    )
    rows = []
    for search in searches:
        target = worth.get(("cold TPE", search.seed, "final"))
        path = [
            (at, float(worth[search.arm, search.seed, number])) for at, number in search.history
        ]
        reached = (
            None if target is None else next((at for at, loss in path if loss <= target), None)
        )
        rows.append({
            "task": name, "arm": search.arm, "seed": search.seed, "trial_steps": steps,
            "trials": len(search.study.trials), "steps": search.steps,
            "first": search.history[0][0], "reached": reached,
            "best_trial": search.study.best_value,
            "final": float(worth[search.arm, search.seed, "final"]),
            "lucky": path[-1][1], "path": path,
        })  # fmt: skip
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task and arm, over seeds.

    `share` is the steps to reach what cold TPE has at its end, as a share of all of its steps
    (median; None where more than half of the searches never do); `ratio` the loss at the end over
    cold TPE's, with the worst seed.
    """
    out = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        colds = {row["seed"]: row["final"] for row in of_task if row["arm"] == "cold TPE"}
        for arm in dict.fromkeys(row["arm"] for row in of_task):
            mine = [row for row in of_task if row["arm"] == arm]
            item: dict[str, Any] = {"task": task, "arm": arm, "seeds": len(mine)}
            if colds:
                shares = [
                    row["reached"] / (TRIALS * row["trial_steps"]) if row["reached"] else np.inf
                    for row in mine
                ]
                median = float(statistics.median(shares))
                item["share"] = median if np.isfinite(median) else None
                item["reached"] = int(np.isfinite(shares).sum())
                ratios = [row["final"] / colds[row["seed"]] for row in mine]
                item["ratio"] = float(np.exp(np.mean(np.log(ratios))))
                item["worst_ratio"] = max(ratios)
            item["loss"] = float(np.exp(np.mean([np.log(row["final"]) for row in mine])))
            item["trials"] = statistics.median(row["trials"] for row in mine)
            out.append(item)
    return out


def main() -> None:
    """Measure, print and write `results/search.json`, a few seeds at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--fresh", type=int, default=6, help="seeds that worth is measured on")
    parser.add_argument("--block", type=int, default=5, help="seeds that are trained together")
    parser.add_argument("--tasks", default=",".join(EPOCHS))
    parser.add_argument("--variants", choices=list(VARIANTS))
    parser.add_argument("--more", action="store_true", help="go on with the result file's rows")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = arms()
    if options.variants:
        made = [
            functools.partial(warm, name=f"lrfinder, {name}", **{options.variants: name})
            for name in VARIANTS[options.variants]
        ]
    file = f"search_{options.variants}s" if options.variants else "search"
    rows: list[dict[str, Any]] = read(file)["rows"] if options.more else []
    for first in range(0, options.seeds, options.block):
        for name in options.tasks.split(","):
            known = {row["seed"] for row in rows if row["task"] == name}
            block = range(first, min(first + options.block, options.seeds))
            seeds = [seed for seed in block if seed not in known]
            if not seeds:
                continue
            began = time.perf_counter()
            with quiet_optuna():
                rows += measure(name, made, seeds, range(FRESH, FRESH + options.fresh))
            for row in summary([row for row in rows if row["task"] == name]):
                print(*(f"{key}={value:.4g}" if isinstance(value, float) else value
                        for key, value in row.items()))  # fmt: skip
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
            if not options.no_save:
                command = f"search --variants {options.variants}" if options.variants else "search"
                write_result(file, rows, command=command, compact=True, summary=summary(rows))


if __name__ == "__main__":
    main()
