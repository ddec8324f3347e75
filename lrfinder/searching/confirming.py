"""Confirming: the best few trials again, on new seeds.

The best of many noisy trials is a lucky one: its value is lower than what its hyperparameters give
on average, the more so the more trials there were. So the best few race on new seeds, and the best
mean is what counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lrfinder.searching.arguments import Settings
from lrfinder.searching.recipes import Recipe
from lrfinder.traces import Trace
from lrfinder.training import StepRecorder
from lrfinder.training.together import train_many

if TYPE_CHECKING:
    from lrfinder.tracking.recorders import Recorder

CONFIRMED_KEY = "lrfinder.confirmed"
ROUNDS = (2, 3)  # new seeds in each; the better half goes on
FEWEST_TRIALS = 16  # that a search has for its best to be trained again by default
MOST = 4  # trials that are trained again by default


@dataclass(frozen=True)
class Confirmed:
    """A trial that was trained again on seeds that the search did not see.

    Args:
        trial: Its number.
        hparams: As of `lrfinder.best_hparams`.
        seeds: Of the new trainings.
        values: The objective of each; infinitely bad where it diverged.
        searched: The objective in the search.
    """

    trial: int
    hparams: Mapping[str, Any]
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    searched: float

    @property
    def mean(self) -> float:
        """Over the new seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def spread(self) -> float:
        """Sample standard deviation over the new seeds; NaN where one diverged."""
        if not all(map(math.isfinite, self.values)):
            return math.nan
        return statistics.stdev(self.values)


def confirmed(study: optuna.Study) -> tuple[Confirmed, ...]:
    """The trials that were trained again on new seeds, the best first; empty where none was.

    Those that raced to the end come first, by their mean.
    """
    rows = study.user_attrs.get(CONFIRMED_KEY, {})
    items = [
        Confirmed(
            trial=row["trial"],
            hparams=row["hparams"],
            seeds=tuple(row["seeds"]),
            values=tuple(map(float, row["values"])),
            searched=row["searched"],
        )
        for row in rows.values()
        if row["values"]
    ]
    sign = _sign(study)
    return tuple(sorted(items, key=lambda item: (-len(item.values), sign * item.mean)))


def _sign(study: optuna.Study) -> int:
    """By which the first objective is multiplied to be minimised."""
    return -1 if study.directions[0] is StudyDirection.MAXIMIZE else 1


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Completed trials, the best of the first objective first."""
    done = [t for t in study.get_trials(deepcopy=False) if t.state is TrialState.COMPLETE]
    sign = _sign(study)
    return sorted(done, key=lambda trial: sign * trial.values[0])


def most_trials(confirm: int | None, num_done: int) -> int:
    """How many trials are trained again: by default an eighth, `MOST` at most, and none of a short search."""
    if confirm is not None:
        return confirm
    return 0 if num_done < FEWEST_TRIALS else min(MOST, num_done // 8)


class Confirmation:
    """Trains the best trials of a study again; what was done before is not done again.

    Args:
        study: What was searched.
        recipe: Makes the task of a trial.
        settings: Of the search; the new seeds follow its own.
        recorder: Gets a child run for each training.
        on_training: Called with the trainings that were done, and how many there will be.
    """

    def __init__(
        self,
        study: optuna.Study,
        recipe: Recipe,
        *,
        settings: Settings,
        recorder: Recorder | None,
        on_training: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.study, self.recipe, self.settings = study, recipe, settings
        self.recorder, self.on_training = recorder, on_training
        self.rows: dict[str, dict[str, Any]] = {}
        self._sign = _sign(study)
        self.worst = self._sign * math.inf

    def run(self, top: int) -> None:
        """Race the best `top` trials on new seeds, and note it in the study."""
        self.rows = dict(self.study.user_attrs.get(CONFIRMED_KEY, {}))
        alive = _distinct(best_trials(self.study))[:top]
        # A study that has gone on has other best trials: what is known of those before stays.
        total = sum(count * size for count, size in _rounds(len(alive)))
        done, used = 0, 0
        for number, size in enumerate(ROUNDS):
            seeds = [(self.settings.seed + 1 + used + i) % 2**32 for i in range(size)]
            used += size
            for group in _groups(alive):
                self._train(group, seeds)
                done += len(group) * size
                self.on_training(done, total)
            alive.sort(key=lambda trial: self._sign * self._mean(trial))
            if number + 1 < len(ROUNDS):
                alive = alive[: max(1, len(alive) // 2)]

    def _mean(self, trial: FrozenTrial) -> float:
        return statistics.fmean(map(float, self.rows[str(trial.number)]["values"]))

    def _train(self, trials: Sequence[FrozenTrial], seeds: Sequence[int]) -> None:
        """Train trials of the same options on these seeds, all together; each is noted as it ends."""
        for trial in trials:
            self.rows.setdefault(
                str(trial.number),
                {"trial": trial.number, "hparams": trial.user_attrs["hparams"], "seeds": [],
                 "values": [], "steps": 0, "searched": trial.values[0]},
            )  # fmt: skip
        missing = [
            (trial, seed)
            for trial in trials
            for seed in seeds
            if seed not in self.rows[str(trial.number)]["seeds"]
        ]
        if not missing:
            return
        metric = self.settings.metrics[0]

        def note(number: int, trace: Trace) -> None:
            trial, seed = missing[number]
            row = self.rows[str(trial.number)]
            value = trace.last(metric) if trace.status == "completed" else self.worst
            row["seeds"].append(seed)
            row["values"].append(str(value if math.isfinite(value) else self.worst))
            row["steps"] += len(trace)
            self.study.set_user_attr(CONFIRMED_KEY, self.rows)

        hparams = [trial.user_attrs["hparams"] for trial, _ in missing]
        train_many(
            self.recipe.task(hparams[0].get("options", {})),
            [
                (seed, h["lrs"], h["schedule"])
                for (_, seed), h in zip(missing, hparams, strict=True)
            ],
            device=self.settings.device,
            num_epochs=self.settings.num_epochs,
            engine=self.settings.engine,
            record=None if self.recorder is None else lambda number: self._child(*missing[number]),
            on_training=note,
        )

    def _child(self, trial: FrozenTrial, seed: int) -> AbstractContextManager[StepRecorder]:
        assert self.recorder is not None
        tags: dict[str, Any] = {"lrfinder.confirms_trial": trial.number, "lrfinder.seed": seed}
        return self.recorder.child(f"trial {trial.number} seed {seed}", wait=False, **tags)


def _distinct(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    seen: dict[str, FrozenTrial] = {}
    for trial in trials:
        seen.setdefault(repr(sorted(trial.params.items())), trial)
    return list(seen.values())


def _groups(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    """By their options: those of one batch size and width can be trained together."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        options = trial.user_attrs["hparams"].get("options", {})
        groups.setdefault(repr(sorted(options.items())), []).append(trial)
    return list(groups.values())


def _rounds(count: int) -> Iterator[tuple[int, int]]:
    for size in ROUNDS:
        yield count, size
        count = max(1, count // 2)
