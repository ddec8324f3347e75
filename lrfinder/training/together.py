"""Together: trainings of one task whose steps are taken in lockstep, where that is faster."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from lrfinder.datasets import is_self_contained
from lrfinder.engines import ENGINES
from lrfinder.engines.choosing import Chooser
from lrfinder.engines.fitting import capacity_for
from lrfinder.engines.jobs import Job
from lrfinder.engines.lockstep import Lockstep
from lrfinder.engines.randomness import Stream
from lrfinder.groups import set_learning_rate
from lrfinder.schedules import Spec
from lrfinder.stepping import Replica, Steps
from lrfinder.tasks import Task, planned_steps, resolve_device
from lrfinder.traces import Trace
from lrfinder.training.epochs import OnEpoch, StepRecorder, Training

Record = Callable[[int], AbstractContextManager[StepRecorder]]
OnTraining = Callable[[int, Trace], None]


def train_seeds(
    task: Task,
    seeds: Sequence[int],
    *,
    lrs: float | Mapping[str, float] | None = None,
    schedule: Spec | None = None,
    device: str | torch.device = "auto",
    num_epochs: int | None = None,
    record: Record | None = None,
    engine: str = "auto",
    on_training: OnTraining | None = None,
) -> list[Trace]:
    """Train a task on several seeds, as `train_task` does on each, and return what happened.

    Args:
        task: What to train.
        seeds: Of the weights, the order of the batches and all else that is random; all different.
        lrs: As in `train_task`.
        schedule: As in `train_task`.
        device: As in `Task.start`.
        num_epochs: By default the task's.
        record: `record(seed)` is a context that gives the recorder of a seed's training.
        engine: "stepping": one training after the other. "lockstep": a step of all at a time, or an
            error that says why not. "auto": the faster of the two, checked on the first steps. The
            losses agree but for rounding.
        on_training: Called with each seed and trace, as trainings end.

    Returns:
        A trace for each seed, in their order.

    Raises:
        ValueError: If a seed is given twice, or there is no such engine.

    Example:
        >>> import lrfinder
        >>> traces = train_seeds(lrfinder.load_task("digits"), [1, 2, 3], num_epochs=1)
        >>> [trace.status for trace in traces]
        ['completed', 'completed', 'completed']
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must be all different, but got {list(seeds)}.")
    return train_many(
        task,
        [(seed, lrs, schedule) for seed in seeds],
        device=device,
        num_epochs=num_epochs,
        record=None if record is None else lambda number: record(seeds[number]),
        engine=engine,
        on_training=None
        if on_training is None
        else lambda number, trace: on_training(seeds[number], trace),
    )


def train_many(
    task: Task,
    trainings: Sequence[tuple[int, float | Mapping[str, float] | None, Spec | None]],
    *,
    device: str | torch.device = "auto",
    num_epochs: int | None = None,
    record: Record | None = None,
    engine: str = "auto",
    on_training: OnTraining | None = None,
) -> list[Trace]:
    """Train a task several times, each with its own seed, learning rates and schedule.

    Args:
        task: What to train.
        trainings: The seed, `lrs` and `schedule` of each, as in `train_task`.
        device: As in `train_seeds`.
        num_epochs: As in `train_seeds`.
        record: As in `train_seeds`, but called with the number of a training.
        engine: As in `train_seeds`.
        on_training: Likewise.

    Returns:
        A trace for each, in their order.
    """
    check_engine(engine)
    traces: dict[int, Trace] = {}

    def course(number: int, started: Callable[[StepRecorder | None], Training]) -> Steps:
        with nullcontext() if record is None else record(number) as recorder:
            training = started(recorder)
            yield from training.steps()
        traces[number] = training.trace
        if on_training is not None:
            on_training(number, training.trace)

    def jobs() -> Iterator[Job]:
        for number, (seed, lrs, schedule) in enumerate(trainings):
            yield make_job(
                task,
                functools.partial(course, number),
                lrs=lrs,
                schedule=schedule,
                seed=seed,
                device=device,
                num_epochs=num_epochs,
            )

    run_together(jobs(), len(trainings), engine=engine, device=device)
    return [traces[number] for number in range(len(trainings))]


def make_job(
    task: Task,
    course: Callable[[Callable[[StepRecorder | None], Training]], Steps],
    *,
    lrs: float | Mapping[str, float] | None = None,
    schedule: Spec | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    num_epochs: int | None = None,
    on_epoch: OnEpoch | None = None,
) -> Job:
    """A training of a task, made afresh from a seed, for `run_together`.

    Args:
        task: What to train.
        course: Gets a function that makes the training for a recorder, and asks for its steps.
        lrs: This and what follows: as in `train_task`.
        schedule: As in `train_task`.
        seed: As in `train_task`.
        device: As in `train_task`.
        num_epochs: As in `train_task`.
        on_epoch: As in `train_task`.
    """
    started = task.start(seed, device=device)
    if lrs is not None:
        set_learning_rate(started.optimizer, lrs)
    options = task.options
    if options.scaler is not None:
        options = replace(options, scaler=copy.deepcopy(options.scaler))  # each has its own
    replica = Replica(started.model, started.optimizer, task.loss_fn, options)
    epochs = task.num_epochs if num_epochs is None else num_epochs

    def made(recorder: StepRecorder | None) -> Training:
        return Training(
            replica=replica,
            loader=started.train_loader,
            num_epochs=epochs,
            scheduler=schedule,
            val_loader=started.val_loader,
            metrics=task.metrics,
            recorder=recorder,
            seed=seed,
            on_epoch=on_epoch,
            verbose=False,
        )

    # Others may shuffle, or augment, with the random state of the process.
    loaders = (started.train_loader, started.val_loader)
    is_quiet = all(loader is None or is_self_contained(loader) for loader in loaders)
    job = Job(replica, course(made), Stream(replica.device), is_quiet=is_quiet)
    job.num_steps = planned_steps(started, epochs, task.options)
    return job


def run_together(
    jobs: Iterator[Job | None],
    count: int,
    *,
    engine: str,
    device: str | torch.device,
    at_once: int | None = None,
) -> Chooser:
    """Take jobs to their end, and say which engine took the steps.

    Args:
        jobs: Drawn one by one, as there is room; None where there is none for now, but those that
            are under way are to be gone on with.
        count: How many there will be at most.
        engine: One of `lrfinder.engines.ENGINES`.
        device: Where they are.
        at_once: The most that are under way at a time; None for as many as fit.
    """
    chooser = Chooser(engine, resolve_device(device))
    first = next(jobs, None)
    if first is None:
        return chooser
    chooser.consider(first.replica)
    capacity = min(capacity_for(first.replica), count if at_once is None else at_once)
    lockstep = Lockstep(chooser, capacity=max(1, capacity))
    num_steps = first.num_steps
    drawn = [first]
    del first  # or its model would be kept until the last job has ended

    def all_jobs() -> Iterator[Job | None]:
        yield drawn.pop()
        yield from jobs

    lockstep.run(all_jobs(), count, num_steps=num_steps, on_end=lambda job: None)
    return chooser


def check_engine(engine: Any) -> None:
    """Raise a ValueError that lists the engines where this is none."""
    if engine not in ENGINES:
        raise ValueError(
            f"`engine` must be one of {', '.join(map(repr, ENGINES))}, but got {engine!r}."
        )
