"""Searching: Optuna proposes learning rates and a schedule; each trial is one training.

The search starts warm: the box in which the range test raced bounds it, and its first trials are
what the range test suggests, the best single LR that it found, the middle of these, and the race's
winner. So it does not end worse than they do on the metric that it minimises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from lrfinder.distributing import is_distributed
from lrfinder.progressing import Progress, shown
from lrfinder.ranging import RangeTest
from lrfinder.searching.arguments import check_arguments
from lrfinder.searching.beginnings import random_states_kept, study_space, trial_steps
from lrfinder.searching.budgets import Budget
from lrfinder.searching.confirming import Confirmation, best_trials, confirmed, most_trials
from lrfinder.searching.counting import count_done, is_counted
from lrfinder.searching.proposals import UserHparams
from lrfinder.searching.reading import best_hparams, importances
from lrfinder.searching.recipes import Recipe, TaskMaker
from lrfinder.searching.samplers import make_pruner, make_sampler
from lrfinder.searching.storages import lock
from lrfinder.searching.studies import (
    ENGINE_KEY,
    SPACE_KEY,
    open_study,
    quiet_optuna,
)
from lrfinder.searching.trials import Trials
from lrfinder.searching.workers import GRACE_PERIOD, Worker
from lrfinder.tasks import Task
from lrfinder.training.together import run_together

if TYPE_CHECKING:
    import torch
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from lrfinder.tracking.recorders import Recorder

__all__ = ["best_hparams", "confirmed", "importances", "search"]

# Trials that are under way together do not learn from each other.
SHARE_AT_ONCE = 1 / 8
USUAL_TRIALS = 32  # where no number is given

OnTrial = Callable[[optuna.Study, FrozenTrial], None]


def search(
    task: Task | TaskMaker,
    n_trials: int | None = None,
    *,
    schedule: str | Sequence[str] = "StepLR",
    gamma: str = "one",
    warm_up: int = 0,
    hparams: UserHparams | None = None,
    warm_start: RangeTest | bool | None = None,
    n_steps: int | None = None,
    timeout: float | None = None,
    confirm: int | None = None,
    storage: str | BaseStorage | None = None,
    study_name: str | None = None,
    sampler: str | BaseSampler | None = None,
    pruner: str | BasePruner | None = None,
    recorder: Recorder | None = None,
    engine: str = "auto",
    seed: int = 0,
    num_epochs: int | None = None,
    device: str | torch.device = "auto",
    metric: str | Sequence[str] = "val/loss",
    direction: str | Sequence[str] = "minimize",
    on_trial: OnTrial | None = None,
    progress: Progress | bool | None = None,
    at_once: int | None = None,
    grace_period: float = GRACE_PERIOD,
) -> optuna.Study:
    """Search a learning rate for each group and a schedule for them.

    Searched, on log scales: the LR of a reference group and the ratio of each other group to it,
    inside the box in which the range test raced; and the schedule's `gamma` and `step_size` (StepLR),
    `gamma` and two milestones (MultiStepLR), `gamma` (ExponentialLR), or `T_max` and `eta_min`
    (CosineAnnealingLR). Each trial is one `train` of the task, made afresh from the same seed; the
    objective is the metric after its last epoch, which is reported after each.

    A training that diverges is a result: its trial is pruned, with the reason as its user
    attribute `reason`. A trial that raises fails, with its reason too, and the search goes on.
    Ctrl-C ends the trial and the search; the same call goes on from there where there is a
    storage.

    The same call in several processes, on one machine or on many, shares the work: together they
    make exactly `n_trials`, and each returns when the study is complete. A worker that is killed
    or loses its machine is noticed by the others, who do its trial again.

    The best of many trials is a lucky one, so the best few are trained again on new seeds, the
    better half of them on more; `lrfinder.confirmed(study)` has the means.

    Args:
        task: What to train; it needs a `val_loader`. Or a function that makes it of options that
            all have defaults, some of which `hparams` chooses.
        n_trials: Trials in all, >= 1. A study that is there already counts: what it has finished
            is not done again. At least one of `n_trials`, `n_steps` and `timeout` must be given;
            no trial begins once one of them is spent.
        schedule: StepLR, MultiStepLR, ExponentialLR or CosineAnnealingLR; of several the search
            chooses.
        gamma: "one" for all groups, or "each" its own.
        warm_up: Epochs of the longest linear warm-up that is searched, < `num_epochs`; 0 for none.
        hparams: A function `(trial) -> dict` of your own. What it returns is taken in the place of
            the parameter of that name (`lr/<group>`, `ratio/<group>`, `gamma`, `step_size`,
            `milestone_1`, `milestone_2`, `eta_min_ratio`, `T_max`, `warm_up`; with several
            schedules `StepLR/gamma`), of all LRs (`lrs`), or of the `schedule`. So it fixes
            (`{"gamma": 0.5}`) or narrows (`{"gamma": trial.suggest_float("gamma", 0.2, 0.6)}`).
            Other names are options of the function that makes the task (`batch_size`, `width`) or of
            the optimizer (`weight_decay`, `weight_decay/head`).
        warm_start: A range test of the task; None measures one first, of effort "quick"; False
            does without: then all groups are searched from 1e-6 to 10.
        n_steps: Optimizer steps of the range test and the trials, >= 1.
        timeout: Seconds of wall time of the range test and the trials, > 0.
        confirm: How many of the best trials are trained again, on top of the budget; by default an
            eighth, at most 4, and none of fewer than 16 trials.
        storage: URL of a database, as "sqlite:///study.db" or "postgresql+psycopg2://...", or
            "grpc://host:port" of Optuna's gRPC proxy; one that is away is waited for, up to ten
            minutes. Or an Optuna storage, which is used as it is. None keeps the study in memory.
        study_name: The study's name in the storage; by default `<task>-<schedule>`.
        sampler: A class of `optuna.samplers`, by name ("GPSampler", "TPESampler(n_startup_trials=4)")
            or an object; by default a multivariate TPE.
        pruner: A class of `optuna.pruners`, by name or an object; by default the median of the
            trials before.
        recorder: Gets one child run for each trial. The trial's `mlflow_run_id` and the run's tag
            `optuna.trial_number` link the two.
        engine: What the range test and the trials run on: "stepping", one after the other;
            "lockstep", a step of several at a time, or an error that says why not; "auto", the
            faster of the two, checked on the first steps. The study's user attribute
            `lrfinder.engine` says which it was, and why.
        seed: Of the trainings, the sampler and the range test.
        num_epochs: Length of a trial; by default the task's.
        device: As in `Task.start`.
        metric: "val/loss", "val/<metric>" of the task, "steps" or "seconds" of a trial. Several
            make a study of several objectives, which Optuna does not prune.
        direction: "minimize" or "maximize": of all metrics, or one for each.
        on_trial: Called with the study and each trial that has ended.
        progress: True for a bar, in a terminal or a notebook; or a function, called with the stage,
            what is done of it and all that there is.
        at_once: The most trials that are under way at a time in lockstep, >= 1; one that is pruned
            makes room for the next at once. Those do not learn from each other, so None is an
            eighth of `n_trials`; more are faster, and their best is a little worse. Where a pruner
            needs complete trials to compare with, so many go first, and the others after them.
        grace_period: Seconds without a sign of life, > 0, after which a worker that shares the
            study is taken for lost, and its trial is given to the others.

    Returns:
        The study. `lrfinder.best_hparams(study)` is what to train with.

    Raises:
        TypeError: If `task` or `hparams` returns something else than it should.
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
    budget = Budget(n_trials=n_trials, n_steps=n_steps, timeout=timeout)
    recipe = Recipe(task)
    settings = check_arguments(
        recipe.base,
        schedule=schedule,
        gamma=gamma,
        warm_up=warm_up,
        metric=metric,
        direction=direction,
        engine=engine,
        num_epochs=num_epochs,
        seed=seed,
        device=device,
        at_once=at_once,
        confirm=confirm,
    )
    if n_steps is not None:
        budget = replace(budget, trial_steps=trial_steps(recipe.base, settings))
    expected = n_trials or USUAL_TRIALS
    several = max(1, int(expected * SHARE_AT_ONCE)) if at_once is None else at_once
    sampling: dict[str, Any] = {
        "n_trials": expected,
        "conditional": len(settings.schedules) > 1 or hparams is not None,
    }

    with shown(progress) as show, quiet_optuna(), random_states_kept():
        make_sampler(sampler, seed=seed, **sampling)  # a bad name is told before all else
        made_pruner = make_pruner(pruner, num_epochs=settings.num_epochs)
        name = study_name or f"{recipe.base.name}-{'-'.join(settings.schedules)}"
        with open_study(storage, name, directions=settings.directions) as study:
            space = study_space(
                study, recipe.base, settings, hparams, warm_start, n_trials=n_trials, progress=show
            )
        # A seeded sampler that starts again would propose what it proposed before.
        moved = (seed + len(study.get_trials(deepcopy=False))) % 2**32
        study.sampler = make_sampler(sampler, seed=moved, **sampling)
        study.pruner = made_pruner
        if recorder is not None:
            recorder.set_tags({"optuna.study_name": study.study_name})
            recorder.log_dict(study.user_attrs[SPACE_KEY], "search_space.json")

        def after_trial(study: optuna.Study, trial: FrozenTrial) -> None:
            if on_trial is not None:
                on_trial(study, trial)
            _tell(show, study, budget)

        trials = Trials(
            recipe,
            space,
            user=hparams,
            metrics=settings.metrics,
            seed=seed,
            device=device,
            recorder=recorder,
            grace_period=grace_period,
            on_trial=after_trial,
        )
        _tell(show, study, budget)
        try:
            guard = lock(storage, study.study_name)
            with Worker(
                study, guard, grace_period=grace_period, on_lost=trials.records.of_lost
            ) as worker:
                for jobs in trials.groups(worker, budget, several):
                    chooser = run_together(
                        jobs,
                        max(1, expected - count_done(study)),
                        engine=engine,
                        device=device,
                        at_once=several,
                    )
                    note = {"engine": chooser.name, "reason": chooser.reason}
                    study.set_user_attr(ENGINE_KEY, note)
            top = most_trials(confirm, count_done(study))
            if top and best_trials(study):
                confirmation = Confirmation(
                    study,
                    recipe,
                    settings=settings,
                    recorder=recorder,
                    on_training=lambda done, total: (
                        show("confirming", done, total) if show else None
                    ),
                )
                with lock(storage, f"{study.study_name} confirming"):  # one worker does it
                    confirmation.run(top)
        except KeyboardInterrupt as error:
            error.add_note(_how_to_go_on(study, in_memory=storage is None))
            raise
        finally:
            trials.records.link(study)
    return study


def _tell(progress: Progress | None, study: optuna.Study, budget: Budget) -> None:
    if progress is None:
        return
    best = best_trials(study)
    note = f", best {best[0].values[0]:.4g}" if best else ""
    counted = [trial for trial in study.get_trials(deepcopy=False) if is_counted(trial)]
    progress(f"search{note}", *budget.progress(study, counted))


def _how_to_go_on(study: optuna.Study, *, in_memory: bool) -> str:
    count = count_done(study)
    if in_memory:
        return (
            f"The study was in memory, so its {count} finished trials are lost. "
            "With a storage, as sqlite:///study.db, the same call would go on from here."
        )
    return (
        f"{count} finished trials are kept in study {study.study_name!r}: the same call goes on."
    )
