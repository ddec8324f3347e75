"""Arguments: what a search was asked for, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrfinder.searching.proposals import Interval, Lrs, check_schedule
from lrfinder.searching.spaces import Space, make_space
from lrfinder.searching.studies import Direction
from lrfinder.tasks import Task, resolve_device
from lrfinder.training.together import check_engine

if TYPE_CHECKING:
    import torch

COSTS = ("steps", "seconds")  # objectives that are no metric of the task
GAMMAS = ("one", "each")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a search was asked for; see `lrfinder.search`."""

    task_name: str
    group_names: tuple[str, ...]
    schedules: tuple[str, ...]
    gamma_each: bool
    warm_up: int
    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    num_epochs: int
    seed: int
    device: str | torch.device
    engine: str

    def note(self) -> dict[str, Any]:
        """What must be the same for a study to go on; JSON-able."""
        one = len(self.metrics) == 1
        return {
            "task": self.task_name,
            "group_names": list(self.group_names),
            "schedules": list(self.schedules),
            "gamma_each": self.gamma_each,
            "warm_up": self.warm_up,
            "num_epochs": self.num_epochs,
            "metric": self.metrics[0] if one else list(self.metrics),
            "direction": self.directions[0] if one else list(self.directions),
            "seed": self.seed,
        }

    def space(self, box: Mapping[str, Interval | None], include: Iterable[Lrs] = ()) -> Space:
        """The space inside a box."""
        return make_space(
            box,
            schedules=self.schedules,
            num_epochs=self.num_epochs,
            gamma_each=self.gamma_each,
            warm_up=self.warm_up,
            include=include,
        )


def check_arguments(
    task: Task,
    *,
    schedule: str | Sequence[str],
    gamma: str,
    warm_up: int,
    metric: str | Sequence[str],
    direction: str | Sequence[str],
    engine: str,
    num_epochs: int | None,
    seed: int,
    device: str | torch.device,
    at_once: int | None,
    confirm: int | None,
) -> Settings:
    """The arguments of `lrfinder.search`, checked.

    Raises:
        ValueError: If one is out of its bounds.
    """
    epochs = task.num_epochs if num_epochs is None else num_epochs
    least = {"num_epochs": (epochs, 1), "at_once": (at_once, 1), "confirm": (confirm, 0)}
    least["warm_up"] = (warm_up, 0)
    for name, (value, minimum) in least.items():
        if value is not None and value < minimum:
            raise ValueError(f"`{name} >= {minimum}` must hold, but got {name}={value}.")
    if warm_up >= epochs:
        raise ValueError(
            f"`warm_up < num_epochs` must hold, but got warm_up={warm_up}, num_epochs={epochs}."
        )
    schedules = _names("schedule", schedule)
    for one in schedules:
        check_schedule(one)
    if gamma not in GAMMAS:
        raise ValueError(f"`gamma` must be 'one' or 'each', but got {gamma!r}.")
    if task.val_loader is None:
        raise ValueError(
            f"Task {task.name!r} must have a `val_loader` for a search, but it has none."
        )
    metrics = _names("metric", metric)
    known = ["val/loss", *(f"val/{name}" for name in task.metrics), *COSTS]
    for one in metrics:
        if one not in known:
            raise ValueError(f"`metric` must be one of {', '.join(known)}, but got {one!r}.")
    given = (direction,) * len(metrics) if isinstance(direction, str) else tuple(direction)
    for one in given:
        if one not in ("minimize", "maximize"):
            raise ValueError(f"`direction` must be 'minimize' or 'maximize', but got {one!r}.")
    directions: Any = given
    if len(directions) != len(metrics):
        raise ValueError(
            f"`direction` must be one for all metrics or one for each of {', '.join(metrics)}, "
            f"but got {list(directions)}."
        )
    check_engine(engine)
    resolve_device(device)
    return Settings(
        task_name=task.name,
        group_names=tuple(task.groups),
        schedules=schedules,
        gamma_each=gamma == "each",
        warm_up=warm_up,
        metrics=metrics,
        directions=directions,
        num_epochs=epochs,
        seed=seed,
        device=device,
        engine=engine,
    )


def _names(argument: str, given: str | Sequence[str]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"`{argument}` must be a name or several different ones, but got {given!r}."
        )
    return names
