"""Spaces: what a search may choose: a base LR, the ratios to it, and the options of a schedule.

Groups that learn together have learning rates that move together, so a search that proposes one
base LR and the ratios to it needs fewer trials than one that proposes each LR by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lrfinder.searching.proposals import (
    SCHEDULES,
    Decay,
    Given,
    Hparams,
    Interval,
    Lrs,
    UserHparams,
    check_schedule,
    checked_hparams,
    propose_schedule,
    start_schedule,
    warmed_up,
)

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# Searched for a group of which no bracket is known: every LR that a usual optimizer was ever
# given.
WIDE: Interval = (1e-6, 10.0)
REMADE = ("lrs", "schedule")  # what a user's function may propose in the place of the space


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
        schedules: Keys of `SCHEDULES`; of several, the search chooses one.
        num_epochs: Length of a trial.
        gamma_each: Whether each group has a gamma of its own.
        warm_up: Epochs of the longest linear warm-up that is searched; 0 for none.
        wide: Groups whose interval is wide, since no bracket of theirs is known.
    """

    group_names: tuple[str, ...]
    reference: str
    base: Interval
    ratios: Mapping[str, Interval] = field(default_factory=dict)
    schedules: tuple[str, ...]
    num_epochs: int
    gamma_each: bool = False
    warm_up: int = 0
    wide: tuple[str, ...] = ()

    def hparams(self, trial: BaseTrial, user: UserHparams | None = None) -> Hparams:
        """What the trial proposes, ready for `train_task`: `{"lrs": {group: lr}, "schedule": spec}`.

        Args:
            trial: What proposes.
            user: As `hparams` of `lrfinder.search`. What it returns takes the place of the
                parameters of those `names`; `lrs` and `schedule` that of all LRs and of the
                schedule; all else is put under "options", for the optimizer and the task.

        Raises:
            TypeError: If the function returns no mapping.
            ValueError: If it returns LRs of other groups.
        """
        # The function only ever sees trials of a real study.
        given = {} if user is None else checked_hparams(user(trial), self.group_names)  # type: ignore[arg-type]
        proposer = Given(trial, given)
        lrs = dict(given["lrs"]) if "lrs" in given else self._lrs(proposer)
        schedule = given["schedule"] if "schedule" in given else self._schedule(proposer, lrs)
        hparams: Hparams = {"lrs": lrs, "schedule": schedule}
        known = {*REMADE, *self.names}
        options = {key: value for key, value in given.items() if key not in known}
        return hparams | ({"options": options} if options else {})

    def _lrs(self, proposer: Given) -> dict[str, float]:
        base = proposer.suggest_float(f"lr/{self.reference}", *self.base, log=True)
        lrs = {self.reference: base}
        for name, interval in self.ratios.items():
            own = proposer.given(f"lr/{name}")
            if own is None:
                own = base * proposer.suggest_float(f"ratio/{name}", *interval, log=True)
            lrs[name] = own
        return {name: lrs[name] for name in self.group_names}

    def _schedule(self, proposer: Given, lrs: Lrs) -> dict[str, Any]:
        name = self.schedules[0]
        if len(self.schedules) > 1:
            name = proposer.suggest_categorical("schedule_name", list(self.schedules))
        spec = propose_schedule(
            proposer,
            name,
            lrs,
            num_epochs=self.num_epochs,
            gamma_each=self.gamma_each,
            prefix=self._prefix(name),
        )
        if not self.warm_up:
            return spec
        return warmed_up(spec, proposer.suggest_int("warm_up", 0, self.warm_up))

    @property
    def names(self) -> set[str]:
        """Of all parameters, those of every schedule among them, and `lr/<group>` of every group."""
        names = {f"lr/{group}" for group in self.group_names}
        names |= {f"ratio/{group}" for group in self.ratios} | {"schedule_name", "warm_up"}
        for schedule in self.schedules:
            names |= set(self._start(schedule))
        return names

    def _prefix(self, name: str) -> str:
        """Before a schedule's parameters, where several schedules have some of the same name."""
        return f"{name}/" if len(self.schedules) > 1 else ""

    def params(self, lrs: Lrs, *, decay: Decay = "usual") -> dict[str, Any] | None:
        """The parameters that propose these LRs with a schedule that decays so much.

        A group that is missing in `lrs` is left to the sampler; None where it is the reference.
        """
        base = lrs.get(self.reference)
        if base is None:
            return None
        name = self.schedules[0]
        params: dict[str, Any] = {f"lr/{self.reference}": base}
        params |= {f"ratio/{name}": lrs[name] / base for name in self.ratios if name in lrs}
        params |= {"schedule_name": name} if len(self.schedules) > 1 else {}
        params |= {"warm_up": 0} if self.warm_up else {}
        return params | self._start(name, decay=decay)

    def _start(self, schedule: str, *, decay: Decay = "usual") -> dict[str, float]:
        return start_schedule(
            schedule,
            self.group_names,
            decay=decay,
            num_epochs=self.num_epochs,
            gamma_each=self.gamma_each,
            prefix=self._prefix(schedule),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy, as it reads back from JSON."""
        data = asdict(self)
        data["base"] = list(self.base)
        data["ratios"] = {name: list(interval) for name, interval in self.ratios.items()}
        lists = ("group_names", "schedules", "wide")
        return data | {name: list(getattr(self, name)) for name in lists}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Space:
        """The space that `to_dict` wrote."""
        return cls(
            group_names=tuple(data["group_names"]),
            reference=data["reference"],
            base=(data["base"][0], data["base"][1]),
            ratios={name: (low, high) for name, (low, high) in data["ratios"].items()},
            schedules=tuple(data["schedules"]),
            num_epochs=data["num_epochs"],
            gamma_each=data["gamma_each"],
            warm_up=data["warm_up"],
            wide=tuple(data["wide"]),
        )


def make_space(
    brackets: Mapping[str, Interval | None],
    *,
    schedules: Iterable[str],
    num_epochs: int,
    gamma_each: bool = False,
    warm_up: int = 0,
    include: Iterable[Lrs] = (),
) -> Space:
    """The space inside the brackets.

    Law: with the reference's bracket [l, h] and its middle m = sqrt(l h), the base is searched in
    [l, h] and the ratio of a group with the bracket [l_g, h_g] in [l_g / m, h_g / m]. Both are
    widened to hold the points of `include`.

    Args:
        brackets: Lowest and highest LR of each group, in the optimizer's order; None for one that
            was refused.
        schedules: Keys of `SCHEDULES`.
        num_epochs: Length of a trial, >= 1.
        gamma_each: As of `Space`.
        warm_up: As of `Space`.
        include: LRs that must be inside, of all groups or of some.

    Example:
        >>> space = make_space(
        ...     {"body": (0.01, 1.0), "head": (0.1, 1.0)},
        ...     schedules=["StepLR"],
        ...     num_epochs=8,
        ...     include=[{"body": 2.0}],
        ... )
        >>> space.base, space.ratios
        ((0.01, 2.0), {'head': (1.0, 10.0)})
    """
    names = tuple(schedules)
    for name in names:
        check_schedule(name)
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
        schedules=names,
        num_epochs=num_epochs,
        gamma_each=gamma_each and any(SCHEDULES[name].gamma for name in names),
        warm_up=warm_up,
        wide=tuple(name for name in brackets if name not in known),
    )


def _widen(interval: Interval, points: Iterable[float]) -> Interval:
    values = [*interval, *points]
    return min(values), max(values)
