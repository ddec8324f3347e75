"""Starts: what a range test gives a search: a box around its good learning rates, and its first trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from lrfinder.racing import JOINT_BOX, horizon, lowered
from lrfinder.ranging import RangeTest
from lrfinder.searching.proposals import DECAYS, Decay, Interval, UserHparams, checked_hparams
from lrfinder.searching.spaces import Space
from lrfinder.suggestions.curves import combined

Point = dict[str, float]

RUNNERS_UP = 1  # candidates of the race that are trained to the end
APART = 0.1  # decades in some group, by which a first trial must differ from those before


def box_of(result: RangeTest, group_names: Sequence[str]) -> dict[str, Interval | None]:
    """The LRs of each group between which the race ran; None for a group that was refused.

    Law: [r_g m / 100, 10 r_g m] with m where the joint ramp's loss is lowest and r_g the group's
    ratio, 1 unless ratios were kept. In a study of nine tasks this box held a point within 10 % of
    the best in every run, the brackets of each group's own ramp in 87 %.
    """
    reading = combined([ramp.read() for ramp in result.ramps if ramp.group is None])
    ratios = dict.fromkeys(group_names, 1.0)
    control = result.suggestion.control
    if result.settings.get("groups") == "together" and control:
        highest = max(control.values())
        ratios = {name: lr / highest for name, lr in control.items()}
    low, high = (reading.minimum * 10**end for end in JOINT_BOX)
    return {
        name: (low * ratios[name], high * ratios[name])
        if result.suggestion.brackets[name].known
        else None
        for name in group_names
    }


def first_points(result: RangeTest) -> list[Point]:
    """The LRs of the first trials: the suggestion, the best single LR, their middle, the race's winners.

    Short races exaggerate how far groups should be apart, so the middle (in log) is a hedge. The
    winners are lowered by the back-off of the suggestion.
    """
    suggestion = result.suggestion
    points = [dict(lrs) for lrs in (suggestion.lrs, suggestion.control) if lrs]
    if len(points) == 2:
        own, control = points
        points.append({name: math.sqrt(own[name] * control[name]) for name in own})
    _, back_off = horizon(result.settings.get("planned_steps"), "joint")
    raced = [s for s in result.standings or () if s.kind == "joint" and not s.diverged]
    tested = set(suggestion.lrs)
    for standing in raced[:RUNNERS_UP]:
        point = {name: lr for name, lr in standing.lrs.items() if name in tested}
        if point:
            points.append(lowered(point, back_off))
    distinct: list[Point] = []
    for point in points:
        if all(_are_apart(point, other) for other in distinct):
            distinct.append(point)
    return distinct


def first_params(
    result: RangeTest, space: Space, distributions: Mapping[str, BaseDistribution]
) -> list[dict[str, Any]]:
    """The parameters of the first trials: each point, and the first with every decay.

    Args:
        result: A range test.
        space: Of the search.
        distributions: What a user's function suggests by itself: what it narrowed away is left to
            the sampler.
    """
    points = first_points(result)
    first, rest = points[:1], points[1:]
    order: list[tuple[Point, Decay]] = [(point, "usual") for point in (*first, *rest[:1])]
    order += [(point, decay) for point in first for decay in DECAYS if decay != "usual"]
    order += [(point, "usual") for point in rest[1:]]
    made = [space.params(point, decay=decay) for point, decay in order]
    return [inside(params, distributions) for params in made if params is not None]


def _are_apart(one: Point, other: Point) -> bool:
    if one.keys() != other.keys():
        return True
    return any(abs(math.log10(one[name] / other[name])) > APART for name in one)


@dataclass(frozen=True)
class Own:
    """What a user's function chooses by itself, as one call of it shows.

    Args:
        distributions: Of the parameters that it suggests.
        returned: What it returned.
    """

    distributions: Mapping[str, BaseDistribution]
    returned: Mapping[str, Any]

    def note(self) -> dict[str, str]:
        """What must be the same for a study to go on; JSON-able."""
        plain = (bool, int, float, str, dict, list, tuple, type(None))
        fixed = {
            name: repr(value) if isinstance(value, plain) else type(value).__name__
            for name, value in self.returned.items()
            if name not in self.distributions
        }
        return fixed | {name: str(found) for name, found in self.distributions.items()}


def look_at(user: UserHparams | None, group_names: Sequence[str]) -> Own:
    """Call a user's function once, with a trial of no study of ours.

    Raises:
        TypeError: If it returns no mapping.
        ValueError: If it returns LRs of other groups.
    """
    if user is None:
        return Own({}, {})
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    returned = checked_hparams(user(trial), group_names)
    return Own(trial.distributions, returned)


def inside(
    params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """The parameters without those that a user's function narrowed away; these are left to the sampler."""
    return {
        name: value
        for name, value in params.items()
        if name not in distributions or _holds(distributions[name], value)
    }


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    return distribution._contains(distribution.to_internal_repr(value))


def refusals(result: RangeTest, names: Iterable[str]) -> dict[str, str]:
    """Why the range test refused each of these groups."""
    brackets = result.suggestion.brackets
    return {name: f"{brackets[name].status}: {brackets[name].message}" for name in names}
