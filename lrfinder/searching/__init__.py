"""Searching: Optuna proposes learning rates and a schedule; each trial is one training.

The search starts warm: the range test's brackets bound it, and its first trials are what the range
test suggests, the best single LR that it found, and the middle of these. So it does not end worse
than they do on the metric that it minimises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lrfinder.distributing import is_distributed
from lrfinder.ranging import RangeTest, range_test
from lrfinder.searching.spaces import Interval, Space, check_schedule, make_space
from lrfinder.searching.storages import lock
from lrfinder.searching.studies import (
    ENGINE_KEY,
    SPACE_KEY,
    Direction,
    begin_study,
    check_same_search,
    count_done,
    make_pruner,
    make_sampler,
    open_study,
    quiet_optuna,
    was_begun,
)
from lrfinder.searching.trials import Trials
from lrfinder.searching.workers import GRACE_PERIOD, Worker
from lrfinder.snapshots import random_state, set_random_state
from lrfinder.tasks import Task, planned_steps
from lrfinder.training.together import check_engine, run_together

if TYPE_CHECKING:
    import torch
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from lrfinder.tracking.recorders import Recorder

# Trials that are under way together do not learn from each other, and a pruner that compares with
# those that were completed has none to compare the first ones with.
SHARE_AT_ONCE = 1 / 8

OnTrial = Callable[[optuna.Study, FrozenTrial], None]


def search(
    task: Task,
    n_trials: int,
    *,
    schedule: str = "StepLR",
    warm_start: RangeTest | None = None,
    storage: str | BaseStorage | None = None,
    study_name: str | None = None,
    sampler: str | BaseSampler | None = None,
    pruner: str | BasePruner | None = None,
    recorder: Recorder | None = None,
    engine: str = "auto",
    seed: int = 0,
    num_epochs: int | None = None,
    device: str | torch.device = "auto",
    metric: str = "val/loss",
    direction: Direction = "minimize",
    on_trial: OnTrial | None = None,
    at_once: int | None = None,
    grace_period: float = GRACE_PERIOD,
) -> optuna.Study:
    """Search a learning rate for each group and a schedule for them.

    Searched, on log scales: the LR of a reference group and the ratio of each other group to it,
    inside the range test's brackets; and the schedule's `gamma` and `step_size` (StepLR), `gamma`
    and two milestones (MultiStepLR), `gamma` (ExponentialLR), or the end of the annealing
    (CosineAnnealingLR). Each trial is one `train` of the task, made afresh from the same seed; the
    objective is the metric after its last epoch.

    A training that diverges is a result: its trial is pruned, with the reason as its user
    attribute `reason`. A trial that raises fails, with its reason too, and the search goes on.
    Ctrl-C ends the trial and the search; the same call goes on from there where there is a
    storage.

    The same call in several processes, on one machine or on many, shares the work: together they
    make exactly `n_trials`, and each returns when the study is complete. A worker that is killed
    or loses its machine is noticed by the others, who do its trial again.

    Args:
        task: What to train; it needs a `val_loader`.
        n_trials: Trials in all, >= 1. A study that is there already counts: what it has finished
            is not done again.
        schedule: StepLR, MultiStepLR, ExponentialLR or CosineAnnealingLR.
        warm_start: A range test of the task; None measures one first, of effort "quick".
        storage: URL of a database, as "sqlite:///study.db" or "postgresql+psycopg2://...", or
            "grpc://host:port" of Optuna's gRPC proxy; one that is away is waited for, up to ten
            minutes. Or an Optuna storage, which is used as it is. None keeps the study in memory.
        study_name: The study's name in the storage; by default `<task>-<schedule>`.
        sampler: A class name of `optuna.samplers` or an object; by default a multivariate TPE.
        pruner: A class name of `optuna.pruners` or an object; by default the median of the trials
            before.
        recorder: Gets one child run for each trial. The trial's `mlflow_run_id` and the run's tag
            `optuna.trial_number` link the two.
        engine: What the range test and the trials run on: "stepping", one after the other;
            "lockstep", a step of several at a time, or an error that says why not; "auto", the
            faster of the two, checked on the first steps. The study's user attribute
            `lrfinder.engine` says which it was, and why.
        seed: Of the trainings, the sampler and the range test.
        num_epochs: Length of a trial; by default the task's.
        device: As in `Task.start`.
        metric: "val/loss" or "val/<metric>" of the task.
        direction: Whether the metric is better low or high.
        on_trial: Called with the study and each trial that has ended.
        at_once: The most trials that are under way at a time in lockstep, >= 1; one that is pruned
            makes room for the next at once. Those do not learn from each other, so None is an
            eighth of `n_trials`; more pay with a pruner that compares with all that have reported,
            as `SuccessiveHalvingPruner` does.
        grace_period: Seconds without a sign of life, > 0, after which a worker that shares the
            study is taken for lost, and its trial is given to the others.

    Returns:
        The study. `lrfinder.best_hparams(study)` is what to train with.

    Raises:
        ValueError: If an argument is out of its bounds, the storage cannot be opened, or the study
            of that name searches something else.
        StorageError: If the storage refuses what it is told (a full disk), or stays away. What was
            done is kept.
    """
    if is_distributed():
        raise ValueError(
            "`search` must run in one process by itself, but torchrun has started several. Start "
            "the same search in several processes with one `storage` instead: they share it."
        )
    epochs = task.num_epochs if num_epochs is None else num_epochs
    _check_arguments(
        task,
        n_trials,
        epochs,
        schedule=schedule,
        metric=metric,
        direction=direction,
        engine=engine,
        at_once=at_once,
    )
    here = {"task": task.name, "seed": seed, "metric": metric, "direction": direction}
    here |= {"group_names": list(task.groups), "schedule": schedule, "num_epochs": epochs}

    def measured() -> tuple[Space, list[dict[str, float]]]:
        result = warm_start or _measure(
            task, seed=seed, device=device, engine=engine, num_epochs=epochs
        )
        return _space_and_starts(result, task, schedule=schedule, num_epochs=epochs)

    with quiet_optuna(), _random_states_kept():
        make_sampler(sampler, seed=seed, n_trials=n_trials)  # a bad name is told before all else
        made_pruner = make_pruner(pruner, num_epochs=epochs)
        name = study_name or f"{task.name}-{schedule}"
        with open_study(storage, name, direction=direction) as study:
            if was_begun(study):
                given = {} if warm_start is None else measured()[0].to_dict()
                space = check_same_search(study, here | given)
            else:
                space, starts = measured()
                begin_study(study, here | space.to_dict(), starts)
        # A seeded sampler that starts again would propose what it proposed before.
        moved = (seed + len(study.get_trials(deepcopy=False))) % 2**32
        study.sampler = make_sampler(sampler, seed=moved, n_trials=n_trials)
        study.pruner = made_pruner
        trials = Trials(
            task,
            space,
            metric=metric,
            seed=seed,
            device=device,
            recorder=recorder,
            on_trial=on_trial,
        )
        if recorder is not None:
            recorder.set_tags({"optuna.study_name": study.study_name})
            recorder.log_dict(study.user_attrs[SPACE_KEY], "search_space.json")
        try:
            guard = lock(storage, study.study_name)
            with Worker(
                study, guard, grace_period=grace_period, on_lost=trials.record_lost
            ) as worker:
                chooser = run_together(
                    trials.jobs(worker, n_trials),
                    n_trials - count_done(study),
                    engine=engine,
                    device=device,
                    at_once=max(1, int(n_trials * SHARE_AT_ONCE)) if at_once is None else at_once,
                )
        finally:
            trials.record_links(study)
        study.set_user_attr(ENGINE_KEY, {"engine": chooser.name, "reason": chooser.reason})
    return study


def best_hparams(study: optuna.Study) -> dict[str, Any]:
    """What the best trial used: `{"lrs": {group: lr}, "schedule": spec}`, ready for `train`.

    Raises:
        ValueError: If no trial was completed, or the study is none of `lrfinder.search`.
    """
    trials = study.get_trials(deepcopy=False)
    if not any(trial.state is TrialState.COMPLETE for trial in trials):
        reasons = {trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs}
        raise ValueError(
            f"Study {study.study_name!r} must have a completed trial, "
            f"but none of its {len(trials)} was completed. "
            + (f"Their reasons: {'; '.join(sorted(reasons))}" if reasons else "Run more trials.")
        )
    hparams: dict[str, Any] | None = study.best_trial.user_attrs.get("hparams")
    if hparams is None:
        raise ValueError(
            f"Study {study.study_name!r} must be one of `lrfinder.search`, but it is not."
        )
    return hparams


def _check_arguments(
    task: Task,
    n_trials: int,
    num_epochs: int,
    *,
    schedule: str,
    metric: str,
    direction: str,
    engine: str,
    at_once: int | None,
) -> None:
    named = {"n_trials": n_trials, "num_epochs": num_epochs, "at_once": at_once}
    for name, value in named.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name} >= 1` must hold, but got {name}={value}.")
    check_schedule(schedule)
    if task.val_loader is None:
        raise ValueError(
            f"Task {task.name!r} must have a `val_loader` for a search, but it has none."
        )
    metrics = ["val/loss", *(f"val/{name}" for name in task.metrics)]
    if metric not in metrics:
        raise ValueError(f"`metric` must be one of {', '.join(metrics)}, but got {metric!r}.")
    if direction not in ("minimize", "maximize"):
        raise ValueError(f"`direction` must be 'minimize' or 'maximize', but got {direction!r}.")
    check_engine(engine)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Each trial seeds the random states of the process; its owner gets them back."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def _measure(
    task: Task,
    *,
    seed: int,
    device: str | torch.device,
    engine: str,
    num_epochs: int,
) -> RangeTest:
    started = task.start(seed, device=device)
    return range_test(
        started.model,
        started.optimizer,
        task.loss_fn,
        started.train_loader,
        effort="quick",
        options=task.options,
        planned_steps=planned_steps(started, num_epochs, task.options),
        seed=seed,
        engine=engine,
    )


def _space_and_starts(
    result: RangeTest, task: Task, *, schedule: str, num_epochs: int
) -> tuple[Space, list[dict[str, float]]]:
    """The space that a range test bounds, and the parameters of the first trials."""
    suggestion = result.suggestion
    if set(suggestion.brackets) != set(task.groups):
        raise ValueError(
            f"`warm_start` must be a range test of the groups of task {task.name!r} "
            f"({', '.join(task.groups)}), but it is one of {', '.join(suggestion.brackets)}."
        )
    points = [dict(lrs) for lrs in (suggestion.lrs, suggestion.control) if lrs]
    if len(points) == 2:
        # Short races exaggerate how far groups should be apart: halfway to the control is a hedge.
        own, control = points
        points.append({name: math.sqrt(own[name] * control[name]) for name in own})
    brackets: dict[str, Interval | None] = {}
    for name in task.groups:
        bracket = suggestion.brackets[name]
        usable = bracket.status in ("ok", "noisy", "bracket_only")
        brackets[name] = (bracket.low, bracket.high) if usable else None
    space = make_space(brackets, schedule=schedule, num_epochs=num_epochs, include=points)
    starts = [space.params(lrs) for lrs in points]
    return space, [params for params in starts if params is not None]
