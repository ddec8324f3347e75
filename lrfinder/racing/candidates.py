"""Candidates: the learning rates that race, and what the race will cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lrfinder.engines.batches import derived_seed

Kind = Literal["equal", "joint"]
Lrs = Mapping[str, float]

RUNGS = (15, 30, 60, 120)  # steps after which candidates are judged
AVERAGED_RUNGS = RUNGS[1:]  # by the mean of their weights too; before, it says little
KEPT = {  # share that goes on after each rung
    "equal": (0.6, 0.4, 0.3),  # a line has few, and its best is what all others are compared with
    "joint": (1 / 2, 1 / 4, 1 / 8),
}
KEPT_AT_LEAST = 2
LINE = np.arange(-1.5, 0.51, 0.25)  # decades around the joint minimum
JOINT_BOX = (-2.0, 1.0)
WHOLE_BOX = 6  # groups for which all of the box is tried
STRAYING = 3  # groups that would stray as far from each other as in the box


@dataclass(frozen=True)
class Candidate:
    """LRs that are tried.

    Args:
        kind: "equal": on the line of one LR for all groups (or one multiple of their ratios);
            "joint": in the box around the joint minimum.
        lrs: Group -> LR, of every group of the engine.
    """

    kind: Kind
    lrs: Lrs


def line(minimum: float, ratios: Lrs, held: Lrs) -> list[Candidate]:
    """One LR for all groups, or one multiple of their ratios.

    Args:
        minimum: Of the joint ramp.
        ratios: Group -> its LR over the one that is varied.
        held: Group -> LR of those that are not tested.
    """
    return [
        Candidate("equal", {name: ratio * lr for name, ratio in ratios.items()} | dict(held))
        for lr in (minimum * 10**LINE).tolist()
    ]


def box(
    minimum: float, groups: Sequence[str], held: Lrs, *, count: int, seed: int
) -> list[Candidate]:
    """Candidates spread evenly in log LR around the joint minimum.

    Law: up to six groups, over the whole box [m / 100, 10 m] for each group. With more, few points
    of a box lie near its good ones, so log10 lr_g = log10 m + z + sqrt(3 / G) (u_g - mean u), with z
    and each u_g spread evenly over [-2, 1]: all groups move together, and each strays from the
    others the less the more there are.

    Args:
        minimum: m, of the joint ramp.
        groups: Those that are tested.
        held: Group -> LR of those that are not tested.
        count: Candidates, a scrambled Sobol sequence.
        seed: Of the scrambling.

    Source: Sobol', 1967; scrambling of Owen, 1995; as `torch.quasirandom.SobolEngine`.
    """
    low, high = JOINT_BOX
    together = len(groups) > WHOLE_BOX
    engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
        len(groups) + together, scramble=True, seed=derived_seed(seed, 0, 2)
    )
    points = engine.draw(count, dtype=torch.float64).numpy() * (high - low) + low
    if together:
        apart = points[:, 1:] - points[:, 1:].mean(axis=1, keepdims=True)
        points = points[:, :1] + (STRAYING / len(groups)) ** 0.5 * apart
    return [
        Candidate(
            "joint", dict(zip(groups, (minimum * 10**point).tolist(), strict=True)) | dict(held)
        )
        for point in points
    ]


def num_race_steps(num_line: int, num_box: int, num_orders: int) -> int:
    """Optimizer steps of a race in which none diverges."""
    steps, taken = 0, 0
    counts: dict[Kind, int] = {"equal": num_line, "joint": num_box}
    for number, rung in enumerate(RUNGS):
        steps += sum(num_alive(kind, counts, number) for kind in counts) * (rung - taken)
        taken = rung
    return steps * num_orders


def num_alive(kind: Kind, counts: Mapping[Kind, int], number: int) -> int:
    """How many candidates of a kind run up to rung `number`.

    On a line alone all do: they are few, each tells of its neighbours too, and where most are
    dropped, what is left says less of where the middle of a flat valley is.

    Args:
        kind: Of which.
        counts: Kind -> how many begin.
        number: Of the rung.
    """
    count = counts[kind]
    if number == 0 or not counts["joint"]:
        return count
    return min(count, max(round(count * KEPT[kind][number - 1]), KEPT_AT_LEAST))
