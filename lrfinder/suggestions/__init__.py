"""Suggestions: a learning rate for each group with its bracket, or an honest refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lrfinder.groups import group_names, set_learning_rate
from lrfinder.rendering.fragments import html_fragment
from lrfinder.rendering.tables import text_table
from lrfinder.suggestions.curves import BracketStatus, Reading, combined, spread_of
from lrfinder.suggestions.tables import suggestion_table, suggestion_texts

NOISY_DECADES = 1.0


@dataclass(frozen=True)
class Bracket:
    """The learning rates between which a group learns.

    Args:
        low: Where its LR begins to help.
        suggested: The LR to take; None unless `status` is "ok" or "noisy".
        high: Where its LR stops being safe.
        spread: Decades between the lowest and the highest minimum of its ramps over the replicas;
            NaN for one replica.
        status: "ok", "noisy" (the suggestion is uncertain), or why there is none.
        message: The status in words, with what to do.
        best: Lowest and highest LR among the best three candidates of the race; None without one.
    """

    low: float
    suggested: float | None
    high: float
    spread: float
    status: BracketStatus
    message: str = ""
    best: tuple[float, float] | None = None

    @property
    def refused(self) -> bool:
        """Whether there is no suggested LR."""
        return self.suggested is None

    @property
    def known(self) -> bool:
        """Whether `low` and `high` were read off its ramps, with a suggested LR between them or without."""
        return self.status in ("ok", "noisy", "bracket_only")


@dataclass(frozen=True)
class Evidence:
    """Whether one LR for each group beats the best single one, as the whole race tells it.

    Law: advantage = expected loss with the control - expected loss with the suggestion, after
    `num_steps` steps, of the Gaussian process that was fitted to the race; the standard error is its
    own. It is an estimate from short bursts and never decides by itself.

    Args:
        advantage: In the unit of the loss; > 0 where the suggestion is better.
        standard_error: Of it.
        share: The advantage as a share of the drop of the loss in the race.
        num_steps: Steps after which the two are compared.
    """

    advantage: float
    standard_error: float
    share: float
    num_steps: int

    def __str__(self) -> str:
        """The figures, and what they are worth."""
        strength = "no" if self.advantage <= 0 else "weak"
        if self.advantage > self.standard_error:
            strength = "some"
        return (
            f"After {self.num_steps} steps the loss is expected to be {abs(self.advantage):.3g} "
            f"± {self.standard_error:.2g} {'lower' if self.advantage >= 0 else 'higher'} than with "
            f"the best single LR ({100 * self.share:+.1f} % of its drop): {strength} evidence for "
            "separate LRs."
        )


class RefusedSuggestion(ValueError):  # noqa: N818 - what happened, in its own words
    """No LR is suggested for a group; the message says why and what to do."""


@dataclass(frozen=True)
class Suggestion:
    """A learning rate for each group, with what it rests on.

    Args:
        lrs: Group -> suggested LR; a group that was refused is absent.
        brackets: Group -> its bracket, in the optimizer's order.
        control: Group -> LR with the best one LR for all groups (with the ratios of the groups
            where these were tested together); None where no race was run.
        evidence: The advantage of `lrs` over `control`; None where the two are the same or there
            was no race.
        message: What holds for all groups, such as a back-off.
    """

    lrs: Mapping[str, float]
    brackets: Mapping[str, Bracket]
    control: Mapping[str, float] | None = None
    evidence: Evidence | None = None
    message: str = ""

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the LR of each group that was tested; others stay as they are.

        Raises:
            RefusedSuggestion: If a group was refused. Nothing is set.
            ValueError: If the optimizer lacks one of the groups.
        """
        refused = {name: b for name, b in self.brackets.items() if name not in self.lrs}
        if refused:
            reasons = " ".join(
                f"Group {name!r} ({bracket.status}): {bracket.message}"
                for name, bracket in refused.items()
            )
            raise RefusedSuggestion(
                f"A suggestion must hold an LR for each group to be applied, but "
                f"{len(refused)} of {len(self.brackets)} have none. {reasons} To set the others, "
                "use `lrfinder.set_learning_rate(optimizer, suggestion.lrs)`."
            )
        unknown = [name for name in self.lrs if name not in group_names(optimizer)]
        if unknown:
            raise ValueError(
                "The optimizer must have the groups of the suggestion "
                f"({', '.join(map(repr, self.lrs))}), but it has "
                f"{', '.join(map(repr, group_names(optimizer)))}."
            )
        set_learning_rate(optimizer, self.lrs)

    def __str__(self) -> str:
        """A table with LR, bracket, spread and status of each group, and the reasons."""
        return "\n".join([text_table(suggestion_table(self)), *suggestion_texts(self)])

    def _repr_html_(self) -> str:
        """The same as a notebook shows it."""
        return html_fragment(tables=[suggestion_table(self)], texts=suggestion_texts(self))


# -- making brackets ------------------------------------------------------------------------------


def ramp_bracket(readings: Sequence[Reading], joint: Reading, ratio: float) -> Bracket:
    """The bracket of one group from its own ramps; from the joint one where these show none."""
    reading, spread = combined(readings), spread_of(readings)
    status: BracketStatus = "ok"
    message = ""
    if reading.status == "edge":
        message = "Alone, it may rise to the end of the range without harm."
    elif reading.status != "ok":
        status = "noisy"
        message = (
            f"Its own ramp was {reading.status.replace('_', ' ')}, so its LR hardly matters or "
            "cannot be told; the bracket is that of all groups together."
        )
        reading = joint
    if spread > NOISY_DECADES:
        status = "noisy"
        message = (
            f"The minima of its ramps lie {spread:.1f} decades apart. Take more replicas or more "
            "steps."
        )
    return Bracket(reading.low * ratio, None, reading.high * ratio, spread, status, message)


def with_lr(bracket: Bracket, lr: float, best: tuple[float, float] | None = None) -> Bracket:
    """The bracket with a suggested LR; as wide as to hold the best of the race."""
    low, high = best or (lr, lr)
    status, message = bracket.status, bracket.message
    if high > low * 10**NOISY_DECADES:
        status = "noisy"
        message = (
            f"The best candidates have LRs from {low:.2g} to {high:.2g}: this LR hardly matters, "
            "or cannot be told. Take effort='thorough' to know more."
        )
    return Bracket(
        low=min(bracket.low, low, lr),
        suggested=lr,
        high=max(bracket.high, high, lr),
        spread=bracket.spread,
        status=status,
        message=message,
        best=best,
    )


def refused(bracket: Bracket, *, status: BracketStatus, message: str) -> Bracket:
    """The bracket without a suggestion."""
    return Bracket(bracket.low, None, bracket.high, bracket.spread, status, message)
