"""Proposals: how a search proposes a schedule, and how its user narrows, fixes or adds what is proposed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from optuna.trial import Trial

Interval = tuple[float, float]
Lrs = Mapping[str, float]
Hparams = dict[str, Any]
Decay = Literal["usual", "gentle", "steep"]
UserHparams = Callable[["Trial"], Mapping[str, Any]]

DECAYS: tuple[Decay, ...] = ("usual", "gentle", "steep")
WARM_UP_FROM = 0.1  # of the LR


class Proposer(Protocol):
    """What is asked for values: an Optuna trial, or a `Given` around one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""

    def suggest_categorical(self, name: str, choices: list[str]) -> Any:
        """One of the choices."""


class Given:
    """A trial of which some values are given: these are taken as they are, and all else is proposed.

    Args:
        trial: What proposes the rest.
        values: Parameter -> value.
        prefix: Put before each name that is asked for.
    """

    def __init__(self, trial: Proposer, values: Mapping[str, Any], prefix: str = "") -> None:
        self._trial = trial
        self._values = values
        self._prefix = prefix

    def prefixed(self, prefix: str) -> Given:
        """The same, with a prefix before each name."""
        return Given(self._trial, self._values, prefix)

    def given(self, name: str) -> float | None:
        """The value that is given, if one is."""
        value = self._values.get(self._prefix + name)
        return None if value is None else float(value)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """As Optuna's."""
        full = self._prefix + name
        if full in self._values:
            return float(self._values[full])
        return self._trial.suggest_float(full, low, high, log=log)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """As Optuna's."""
        full = self._prefix + name
        if full in self._values:
            return int(self._values[full])
        return self._trial.suggest_int(full, low, high)

    def suggest_categorical(self, name: str, choices: list[str]) -> Any:
        """As Optuna's."""
        full = self._prefix + name
        if full in self._values:
            return self._values[full]
        return self._trial.suggest_categorical(full, choices)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpace:
    """How a search proposes one kind of schedule.

    Args:
        propose: `(proposer, num_epochs, lrs)` -> a spec of `lrfinder.build_scheduler`, but for its
            gamma.
        starts: `(num_epochs)` -> parameters for the first trials, for each of `DECAYS`.
        gamma: `(num_epochs)` -> the interval of gamma; None for a schedule without one.
    """

    propose: Callable[[Proposer, int, Lrs], dict[str, Any]]
    starts: Callable[[int], dict[Decay, dict[str, float]]]
    gamma: Callable[[int], Interval] | None = None


def _step(proposer: Proposer, num_epochs: int, lrs: Lrs) -> dict[str, Any]:
    return {"name": "StepLR", "step_size": proposer.suggest_int("step_size", 1, num_epochs)}


def _multi_step(proposer: Proposer, num_epochs: int, lrs: Lrs) -> dict[str, Any]:
    # The second fraction is one of what the first leaves, so the milestones increase whatever is
    # proposed.
    first = proposer.suggest_float("milestone_1", 0.1, 0.9)
    second = first + (1.0 - first) * proposer.suggest_float("milestone_2", 0.1, 0.9)
    start = max(1, round(first * num_epochs))
    milestones = [start, max(start + 1, round(second * num_epochs))]
    return {"name": "MultiStepLR", "milestones": milestones}


def _exponential(proposer: Proposer, num_epochs: int, lrs: Lrs) -> dict[str, Any]:
    return {"name": "ExponentialLR"}


def _cosine(proposer: Proposer, num_epochs: int, lrs: Lrs) -> dict[str, Any]:
    # torch's eta_min is one LR for all groups: a share of the lowest one lies below each of them.
    share = proposer.suggest_float("eta_min_ratio", 1e-4, 0.5, log=True)
    # Less than the training would let the LRs rise again; twice it is half of the way down.
    half_period = proposer.suggest_int("T_max", num_epochs, 2 * num_epochs)
    return {
        "name": "CosineAnnealingLR",
        "T_max": half_period,
        "eta_min": share * min(lrs.values()),
    }


def _usual_gamma(num_epochs: int) -> Interval:
    return 0.05, 1.0


# The first trials begin with LRs that were raced at constant rates. How far they should fall after
# that differs from task to task more than the LRs do (`docs/log.md`), so there are first trials of
# each.
SCHEDULES: dict[str, ScheduleSpace] = {
    "StepLR": ScheduleSpace(
        propose=_step,
        starts=lambda epochs: {
            "usual": {"gamma": 0.2, "step_size": max(1, round(epochs / 2))},
            "gentle": {"gamma": 0.5, "step_size": max(1, round(2 * epochs / 3))},
            "steep": {"gamma": 0.1, "step_size": max(1, round(epochs / 3))},
        },
        gamma=_usual_gamma,
    ),
    "MultiStepLR": ScheduleSpace(
        propose=_multi_step,
        starts=lambda epochs: {
            "usual": {"milestone_1": 0.5, "milestone_2": 0.5, "gamma": 0.2},
            "gentle": {"milestone_1": 0.6, "milestone_2": 0.6, "gamma": 0.5},
            "steep": {"milestone_1": 0.35, "milestone_2": 0.5, "gamma": 0.1},
        },
        gamma=_usual_gamma,
    ),
    "ExponentialLR": ScheduleSpace(
        propose=_exponential,
        starts=lambda epochs: {
            decay: {"gamma": math.pow(left, 1.0 / epochs)}
            for decay, left in zip(DECAYS, (0.1, 0.25, 0.01), strict=True)
        },
        # Bounded by what is left of the LR at the end: between a thousandth and all of it.
        gamma=lambda epochs: (math.pow(1e-3, 1.0 / epochs), 1.0),
    ),
    "CosineAnnealingLR": ScheduleSpace(
        propose=_cosine,
        starts=lambda epochs: {
            "usual": {"eta_min_ratio": 0.05, "T_max": epochs},
            "gentle": {"eta_min_ratio": 0.05, "T_max": round(1.5 * epochs)},
            "steep": {"eta_min_ratio": 0.001, "T_max": epochs},
        },
    ),
}


def checked_hparams(returned: Any, group_names: Sequence[str]) -> dict[str, Any]:
    """What a user's function returned.

    Raises:
        TypeError: If it is no mapping.
        ValueError: If it holds LRs of other groups.
    """
    if not isinstance(returned, Mapping):
        raise TypeError(
            "`hparams` must be a function (trial) -> dict, but it returned "
            f"{type(returned).__name__}. Return {{}} to leave all to the search."
        )
    lrs = returned.get("lrs")
    if lrs is not None and (not isinstance(lrs, Mapping) or set(lrs) != set(group_names)):
        raise ValueError(
            f"`lrs` of `hparams` must hold an LR for each of {', '.join(group_names)}, "
            f"but got {lrs!r}."
        )
    return dict(returned)


def check_schedule(schedule: str) -> None:
    """Raise a ValueError that lists what can be searched, where this schedule cannot."""
    if schedule not in SCHEDULES:
        raise ValueError(
            f"`schedule` must be one that can be searched ({', '.join(SCHEDULES)}), "
            f"but got {schedule!r}. "
            "Train with any other by giving its spec to `train`."
        )


def propose_schedule(
    proposer: Given, name: str, lrs: Lrs, *, num_epochs: int, gamma_each: bool, prefix: str
) -> dict[str, Any]:
    """The spec of one kind of schedule; with `gamma_each` one for each group, of its own gamma."""
    kind = SCHEDULES[name]
    own = proposer.prefixed(prefix)
    spec = kind.propose(own, num_epochs, lrs)
    if kind.gamma is None:
        return spec
    interval = kind.gamma(num_epochs)
    if not gamma_each:
        return spec | {"gamma": own.suggest_float("gamma", *interval)}
    return {
        group: spec | {"gamma": own.suggest_float(f"gamma/{group}", *interval)} for group in lrs
    }


def start_schedule(
    name: str,
    groups: tuple[str, ...],
    *,
    decay: Decay,
    num_epochs: int,
    gamma_each: bool,
    prefix: str,
) -> dict[str, float]:
    """The parameters with which `propose_schedule` decays as first trials do."""
    params = dict(SCHEDULES[name].starts(num_epochs)[decay])
    if gamma_each and "gamma" in params:
        gamma = params.pop("gamma")
        params |= {f"gamma/{group}": gamma for group in groups}
    return {prefix + key: value for key, value in params.items()}


def warmed_up(spec: dict[str, Any], epochs: int) -> dict[str, Any]:
    """A schedule behind a linear warm-up from a tenth of the LRs; as it is where there is none."""
    if epochs == 0:
        return spec
    if "name" not in spec:
        return {group: warmed_up(own, epochs) for group, own in spec.items()}
    first = {"name": "LinearLR", "start_factor": WARM_UP_FROM, "total_iters": epochs}
    return {"name": "SequentialLR", "schedulers": [first, spec], "milestones": [epochs]}
