"""Arms: our search, and what it is compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler

import lrfinder
from benchmarks.searching.settings import RAW, TRIALS, Search, Setting, task_of
from lrfinder.searching.budgets import Budget
from lrfinder.searching.confirming import ROUNDS
from lrfinder.searching.samplers import make_pruner, make_sampler

CONFIRMED = 4  # trials that our search trains again


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


def cold(
    setting: Setting,
    seed: int,
    *,
    name: str,
    make_sampler: Callable[..., BaseSampler],
    propose: Any,
) -> Search:
    """Full trials from nothing."""
    user = functools.partial(propose, groups=list(setting.task.groups))
    return setting.make(
        name,
        seed,
        make_sampler(seed=seed),
        optuna.pruners.NopPruner(),
        Budget(n_trials=TRIALS),
        user=user,
    )


def pinned(setting: Setting, seed: int, name: str) -> Search:
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

    search = cold(
        setting, seed, name=name, make_sampler=optuna.samplers.TPESampler, propose=propose
    )
    search.steps = len(losses)
    return search


Arm = functools.partial[Search]  # called with a setting and a seed


def arms() -> list[Arm]:
    """What is compared."""
    tpe, random = optuna.samplers.TPESampler, optuna.samplers.RandomSampler
    return [
        functools.partial(warm, name="lrfinder"),
        functools.partial(cold, name="cold TPE", make_sampler=tpe, propose=raw_lrs),
        functools.partial(cold, name="random", make_sampler=random, propose=raw_lrs),
        functools.partial(cold, name="cold TPE, one LR", make_sampler=tpe, propose=raw_lr),
        functools.partial(pinned, name="pinned LR, TPE"),
    ]


VARIANTS = {  # of samplers and pruners
    "sampler": ["TPESampler", "GPSampler", "CmaEsSampler", "RandomSampler", "QMCSampler"],
    "pruner": ["MedianPruner", "NopPruner",
        "PercentilePruner(75.0, n_startup_trials=6, n_warmup_steps=2)", "HyperbandPruner", "SuccessiveHalvingPruner",
               "WilcoxonPruner", "PatientPruner(MedianPruner(), patience=1)"],
}  # fmt: skip
