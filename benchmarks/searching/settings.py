"""Settings: the tasks of the benchmark, and one search of an arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

import lrfinder
from benchmarks.range_test.tasks import problems
from lrfinder.engines.lockstep import Job
from lrfinder.searching.arguments import Settings, check_arguments
from lrfinder.searching.budgets import RANGE_TEST_KEY, Budget
from lrfinder.searching.recipes import Recipe
from lrfinder.searching.starts import box_of, first_params, first_points
from lrfinder.searching.trials import Trials
from lrfinder.searching.workers import Worker

EPOCHS = {"mlp-sgd": 8, "cnn": 6, "fine-tune": 12, "chars-adamw": 5}
TRIALS = 64  # of the cold searches
FRESH = 1000  # from here on seeds that no search sees
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
            device="cpu", recorder=None, grace_period=60.0,
        )  # fmt: skip
        search = Search(arm, seed, study, trials, budget, steps=steps)
        trials.on_trial = search.ended
        return search
