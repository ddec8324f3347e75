"""Standings: how the candidates of a race fared."""

from __future__ import annotations

from dataclasses import dataclass

from lrfinder.racing.candidates import RUNGS, Kind, Lrs

TOP = 3


@dataclass(frozen=True)
class Standing:
    """How a candidate fared.

    Args:
        candidate: Its number, in the order in which candidates were made.
        kind: As in `Candidate`.
        lrs: Group -> LR.
        scores: After each rung that it reached: the mean of its last losses there, averaged over
            the batch orders; the cap where it diverged.
        diverged: Whether it diverged in any order.
        averaged: After each rung from the second on that it reached: the loss of the mean of its
            weights over the last half of its steps, on batches to come, averaged and capped as
            scores are.
    """

    candidate: int
    kind: Kind
    lrs: Lrs
    scores: tuple[float, ...]
    diverged: bool
    averaged: tuple[float, ...] = ()

    @property
    def rung(self) -> int:
        """Steps after which it was judged last."""
        return RUNGS[len(self.scores) - 1]

    @property
    def score(self) -> float:
        """What it was judged by last."""
        return self.scores[-1]


@dataclass(frozen=True)
class Race:
    """A race that was run.

    Args:
        standings: Every candidate, the best first: by the rung that it reached, then its score.
        start: Mean loss at the start, which all candidates share.
    """

    standings: tuple[Standing, ...]
    start: float

    @property
    def best(self) -> tuple[Standing, ...]:
        """The best three that went to the end and made the loss fall; fewer where there are not."""
        last = self.standings[0].rung
        return tuple(
            standing
            for standing in self.standings[:TOP]
            if standing.rung == last and not standing.diverged and standing.score < self.start
        )
