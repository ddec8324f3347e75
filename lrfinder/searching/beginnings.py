"""Beginnings: where a study's space comes from: the study's own note, or a range test of the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from lrfinder.progressing import Progress
from lrfinder.ranging import RangeTest, range_test
from lrfinder.searching.arguments import Settings
from lrfinder.searching.budgets import RANGE_TEST_KEY
from lrfinder.searching.proposals import UserHparams
from lrfinder.searching.spaces import Space
from lrfinder.searching.starts import box_of, first_params, first_points, look_at, refusals
from lrfinder.searching.studies import begin_study, check_same_search, was_begun
from lrfinder.snapshots import random_state, set_random_state
from lrfinder.tasks import Task, planned_steps


def study_space(
    study: optuna.Study,
    task: Task,
    settings: Settings,
    user: UserHparams | None,
    warm_start: RangeTest | bool | None,
    *,
    n_trials: int | None,
    progress: Progress | None,
) -> Space:
    """The study's space: its own where it was begun, else that of a range test, noted in the study.

    Args:
        study: Locked, so that one worker begins it.
        task: What is trained.
        settings: Of the search.
        user: As `hparams` of `lrfinder.search`.
        warm_start: As of `lrfinder.search`.
        n_trials: As of `lrfinder.search`; no more first trials are put in the queue.
        progress: Of the range test.

    Raises:
        ValueError: If the study searches something else, or the range test is one of other groups.
    """
    own = look_at(user, list(task.groups))
    here = settings.note() | {"hparams": own.note()}
    result = warm_start if isinstance(warm_start, RangeTest) else None
    if was_begun(study):
        given = {} if result is None else _space_of(result, task, settings).to_dict()
        return check_same_search(study, here | given)
    if result is None and warm_start is not False:
        result = _measure(task, settings, progress)
    if result is not None:
        cost = {"steps": result.cost.steps, "seconds": result.cost.seconds}
        space = _space_of(result, task, settings)
        study.set_user_attr(RANGE_TEST_KEY, cost | {"refused": refusals(result, space.wide)})
        starts = first_params(result, space, own.distributions)
    else:
        space, starts = settings.space(dict.fromkeys(task.groups)), []
    begin_study(study, here | space.to_dict(), starts[:n_trials])  # none is left waiting
    return space


def _space_of(result: RangeTest, task: Task, settings: Settings) -> Space:
    brackets = result.suggestion.brackets
    if set(brackets) != set(task.groups):
        raise ValueError(
            f"`warm_start` must be a range test of the groups of task {task.name!r} "
            f"({', '.join(task.groups)}), but it is one of {', '.join(brackets)}."
        )
    return settings.space(box_of(result, list(task.groups)), first_points(result))


def _measure(task: Task, settings: Settings, progress: Progress | None) -> RangeTest:
    started = task.start(settings.seed, device=settings.device)
    return range_test(
        started.model,
        started.optimizer,
        task.loss_fn,
        started.train_loader,
        effort="quick",
        options=task.options,
        planned_steps=planned_steps(started, settings.num_epochs, task.options),
        seed=settings.seed,
        engine=settings.engine,
        progress=progress,
    )


def trial_steps(task: Task, settings: Settings) -> int:
    """Optimizer steps of a full trial; 0 where they are not known."""
    with random_states_kept():
        started = task.start(settings.seed, device=settings.device)
    return planned_steps(started, settings.num_epochs, task.options) or 0


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Each trial seeds the random states of the process; its owner gets them back."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
