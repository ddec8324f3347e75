"""Spaces: what a search may choose: a base LR, the ratios to it, and the options of a schedule.

Groups that learn together have learning rates that move together, so a search that proposes one
base LR and the ratios to it needs fewer trials than one that proposes each LR by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Interval = tuple[float, float]
Lrs = Mapping[str, float]

# Searched for a group of which no bracket is known: every LR that a usual optimizer was ever
# given.
WIDE: Interval = (1e-6, 10.0)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpace:
    """How a search proposes one kind of schedule.

    Args:
        propose: `(trial, num_epochs, lrs)` -> a spec of `lrfinder.build_scheduler`.
        gentle: `(num_epochs)` -> parameters of `propose` that decay little, for the first trials.
    """

    propose: Callable[[BaseTrial, int, Lrs], dict[str, Any]]
    gentle: Callable[[int], dict[str, float]]


def _step(trial: BaseTrial, num_epochs: int, lrs: Lrs) -> dict[str, Any]:
    gamma = trial.suggest_float("gamma", 0.05, 1.0)
    return {
        "name": "StepLR",
        "step_size": trial.suggest_int("step_size", 1, num_epochs),
        "gamma": gamma,
    }


def _multi_step(trial: BaseTrial, num_epochs: int, lrs: Lrs) -> dict[str, Any]:
    # The second fraction is one of what the first leaves, so the milestones increase whatever is
    # proposed.
    first = trial.suggest_float("milestone_1", 0.1, 0.9)
    second = first + (1.0 - first) * trial.suggest_float("milestone_2", 0.1, 0.9)
    start = max(1, round(first * num_epochs))
    milestones = [start, max(start + 1, round(second * num_epochs))]
    return {
        "name": "MultiStepLR",
        "milestones": milestones,
        "gamma": trial.suggest_float("gamma", 0.05, 1.0),
    }


def _exponential(trial: BaseTrial, num_epochs: int, lrs: Lrs) -> dict[str, Any]:
    # Bounded by what is left of the LR at the end: between a thousandth and all of it.
    low = math.pow(1e-3, 1.0 / num_epochs)
    return {"name": "ExponentialLR", "gamma": trial.suggest_float("gamma", low, 1.0)}


def _cosine(trial: BaseTrial, num_epochs: int, lrs: Lrs) -> dict[str, Any]:
    # torch's eta_min is one LR for all groups: a share of the lowest one lies below each of them.
    share = trial.suggest_float("eta_min_ratio", 1e-4, 0.5, log=True)
    return {"name": "CosineAnnealingLR", "T_max": num_epochs, "eta_min": share * min(lrs.values())}


SCHEDULES: dict[str, ScheduleSpace] = {
    "StepLR": ScheduleSpace(
        propose=_step,
        gentle=lambda epochs: {"gamma": 0.5, "step_size": max(1, round(2 * epochs / 3))},
    ),
    "MultiStepLR": ScheduleSpace(
        propose=_multi_step,
        gentle=lambda epochs: {"milestone_1": 0.6, "milestone_2": 0.6, "gamma": 0.5},
    ),
    "ExponentialLR": ScheduleSpace(
        propose=_exponential, gentle=lambda epochs: {"gamma": math.pow(0.25, 1.0 / epochs)}
    ),
    "CosineAnnealingLR": ScheduleSpace(
        propose=_cosine, gentle=lambda epochs: {"eta_min_ratio": 0.05}
    ),
}


@dataclass(frozen=True, kw_only=True)
class Space:
    """What the trials of a search may choose.

    Law: lr[reference] = base and lr[g] = base * ratio[g], each log-uniform in its interval, beside
    the options of the schedule.

    Args:
        group_names: The param groups, in the optimizer's order.
        reference: The group whose LR is the base.
        base: Interval of the reference group's LR.
        ratios: Interval of the ratio of each other group.
        schedule: A key of `SCHEDULES`.
        num_epochs: Length of a trial.
        wide: Groups whose interval is wide, since no bracket of theirs is known.
    """

    group_names: tuple[str, ...]
    reference: str
    base: Interval
    ratios: Mapping[str, Interval] = field(default_factory=dict)
    schedule: str
    num_epochs: int
    wide: tuple[str, ...] = ()

    def hparams(self, trial: BaseTrial) -> dict[str, Any]:
        """What the trial proposes: `{"lrs": {group: lr}, "schedule": spec}`, ready for `train`."""
        base = trial.suggest_float(f"lr/{self.reference}", *self.base, log=True)
        lrs = {self.reference: base}
        for name, interval in self.ratios.items():
            lrs[name] = base * trial.suggest_float(f"ratio/{name}", *interval, log=True)
        lrs = {name: lrs[name] for name in self.group_names}
        return {
            "lrs": lrs,
            "schedule": SCHEDULES[self.schedule].propose(trial, self.num_epochs, lrs),
        }

    def params(self, lrs: Lrs) -> dict[str, float] | None:
        """The parameters that propose these LRs with a gentle schedule.

        A group that is missing in `lrs` is left to the sampler; None where it is the reference.
        """
        base = lrs.get(self.reference)
        if base is None:
            return None
        params = {f"lr/{self.reference}": base}
        params |= {f"ratio/{name}": lrs[name] / base for name in self.ratios if name in lrs}
        return params | SCHEDULES[self.schedule].gentle(self.num_epochs)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy, as it reads back from JSON."""
        data = asdict(self)
        data["base"] = list(self.base)
        data["ratios"] = {name: list(interval) for name, interval in self.ratios.items()}
        return data | {"group_names": list(self.group_names), "wide": list(self.wide)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Space:
        """The space that `to_dict` wrote."""
        return cls(
            group_names=tuple(data["group_names"]),
            reference=data["reference"],
            base=(data["base"][0], data["base"][1]),
            ratios={name: (low, high) for name, (low, high) in data["ratios"].items()},
            schedule=data["schedule"],
            num_epochs=data["num_epochs"],
            wide=tuple(data["wide"]),
        )


def check_schedule(schedule: str) -> None:
    """Raise a ValueError that lists what can be searched, where this schedule cannot."""
    if schedule not in SCHEDULES:
        raise ValueError(
            f"`schedule` must be one that can be searched ({', '.join(SCHEDULES)}), "
            f"but got {schedule!r}. "
            "Train with any other by giving its spec to `train`."
        )


def make_space(
    brackets: Mapping[str, Interval | None],
    *,
    schedule: str,
    num_epochs: int,
    include: Iterable[Lrs] = (),
) -> Space:
    """The space inside the brackets.

    Law: with the reference's bracket [l, h] and its middle m = sqrt(l h), the base is searched in
    [l, h] and the ratio of a group with the bracket [l_g, h_g] in [l_g / m, h_g / m]. Both are
    widened to hold the points of `include`.

    Args:
        brackets: Lowest and highest LR of each group, in the optimizer's order; None for one that
            was refused.
        schedule: A key of `SCHEDULES`.
        num_epochs: Length of a trial, >= 1.
        include: LRs that must be inside, of all groups or of some.

    Example:
        >>> space = make_space(
        ...     {"body": (0.01, 1.0), "head": (0.1, 1.0)},
        ...     schedule="StepLR",
        ...     num_epochs=8,
        ...     include=[{"body": 2.0}],
        ... )
        >>> space.base, space.ratios
        ((0.01, 2.0), {'head': (1.0, 10.0)})
    """
    check_schedule(schedule)
    known = [name for name, bracket in brackets.items() if bracket is not None]
    reference = known[0] if known else next(iter(brackets))
    intervals = {name: bracket or WIDE for name, bracket in brackets.items()}
    low, high = intervals[reference]
    middle = math.sqrt(low * high)
    points = list(include)
    base = _widen((low, high), [lrs[reference] for lrs in points if reference in lrs])
    ratios = {
        name: _widen(
            (interval[0] / middle, interval[1] / middle),
            [lrs[name] / lrs[reference] for lrs in points if name in lrs and reference in lrs],
        )
        for name, interval in intervals.items()
        if name != reference
    }
    return Space(
        group_names=tuple(brackets),
        reference=reference,
        base=base,
        ratios=ratios,
        schedule=schedule,
        num_epochs=num_epochs,
        wide=tuple(name for name in brackets if name not in known),
    )


def _widen(interval: Interval, points: Iterable[float]) -> Interval:
    values = [*interval, *points]
    return min(values), max(values)
