"""Brackets in a study of one's own: the groups' learning rates, and nothing else of ours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lrfinder.suggestions import RefusedSuggestion

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from lrfinder.ranging import RangeTest


def suggest_lrs(trial: BaseTrial, result: RangeTest, *, prefix: str = "lr/") -> dict[str, float]:
    """Let a trial of your own study propose the groups' learning rates, inside the brackets.

    Law: lr_g is log-uniform in [low_g, high_g], independent of the others. Where the range test
    kept the groups' ratios (`groups="together"`), the first group's LR is proposed and the others
    follow in these ratios.

    Args:
        trial: Of any `optuna.Study`; a `FixedTrial` too.
        result: What `lrfinder.range_test` returned.
        prefix: Before the group's name in the names of the trial's parameters.

    Returns:
        Group -> LR, for `lrfinder.set_learning_rate(optimizer, lrs)`. To begin with what was
        suggested: `study.enqueue_trial({f"lr/{g}": lr for g, lr in result.suggestion.lrs.items()})`.

    Raises:
        RefusedSuggestion: If the range test found no bracket for a group.

    Example:
        >>> import optuna
        >>> from lrfinder import Bracket, RangeTest, Suggestion
        >>> from lrfinder.ranging.results import Cost
        >>> bracket = Bracket(
        ...     low=0.01, suggested=0.1, high=1.0, spread=0.1, status="ok", message=""
        ... )
        >>> suggestion = Suggestion({"head": 0.1}, {"head": bracket})
        >>> result = RangeTest(suggestion, (), None, Cost(0, 0.0), {"groups": "each"})
        >>> suggest_lrs(optuna.trial.FixedTrial({"lr/head": 0.3}), result)
        {'head': 0.3}
    """
    brackets = result.suggestion.brackets
    for name, bracket in brackets.items():
        if not bracket.known or not 0 < bracket.low < bracket.high < math.inf:
            raise RefusedSuggestion(
                f"Each group must have a bracket to search in, but group {name!r} has none "
                f"({bracket.status}): {bracket.message} Test again with `groups` that leaves it out."
            )
    together = result.settings["groups"] == "together"
    proposed: dict[str, float] = {}
    for name, bracket in brackets.items():
        if together and proposed:
            first, lr = next(iter(proposed.items()))
            proposed[name] = lr * bracket.low / brackets[first].low
        else:
            proposed[name] = trial.suggest_float(
                f"{prefix}{name}", bracket.low, bracket.high, log=True
            )
    return proposed
