"""Tests of suggestions: applied whole or refused with reasons, and brackets that hold what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lrfinder
from lrfinder.suggestions import (
    Bracket,
    Evidence,
    RefusedSuggestion,
    Suggestion,
    ramp_bracket,
    refused,
    with_lr,
)
from lrfinder.suggestions.curves import Reading, read_ramp
from tests.helpers import TinyNet, tiny_optimizer

OK = Bracket(1e-3, 1e-2, 1e-1, 0.1, "ok")
FLAT = Bracket(1e-3, None, 1e-1, 0.1, "flat", "It was flat. Widen the range.")


def reading(minimum: float = 0.1, status: str = "ok") -> Reading:
    drop = 1.0 if status == "ok" else 0.0
    return Reading(0.01, minimum, 0.05, 1.0, drop, 0.1, status, "")  # type: ignore[arg-type]


def test_apply_sets_the_groups() -> None:
    optimizer = tiny_optimizer(TinyNet())
    Suggestion({"body": 1e-2, "head": 0.3}, {"body": OK, "head": OK}).apply(optimizer)
    assert lrfinder.learning_rates(optimizer) == {"body": 1e-2, "head": 0.3}


def test_apply_sets_some_groups_where_only_these_were_tested() -> None:
    optimizer = tiny_optimizer(TinyNet())
    Suggestion({"head": 0.3}, {"head": OK}).apply(optimizer)
    assert lrfinder.learning_rates(optimizer) == {"body": 0.1, "head": 0.3}


def test_apply_refuses_with_the_reasons_and_sets_nothing() -> None:
    optimizer = tiny_optimizer(TinyNet())
    suggestion = Suggestion({"body": 1e-2}, {"body": OK, "head": FLAT})
    with pytest.raises(RefusedSuggestion, match=r"'head' \(flat\): It was flat. Widen"):
        suggestion.apply(optimizer)
    assert lrfinder.learning_rates(optimizer) == {"body": 0.1, "head": 0.1}
    lrfinder.set_learning_rate(optimizer, suggestion.lrs)  # as the message says


def test_apply_to_another_optimizer_is_refused() -> None:
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match="must have the groups of the suggestion"):
        Suggestion({"body": 1e-2}, {"body": OK}).apply(other)


def test_a_bracket_holds_the_suggestion_and_the_best_of_the_race() -> None:
    made = with_lr(OK, 5e-4, (4e-4, 2e-3))
    assert (made.low, made.suggested, made.high, made.status) == (4e-4, 5e-4, 1e-1, "ok")
    wide = with_lr(OK, 0.05, (1e-3, 0.5))
    assert wide.status == "noisy"
    assert wide.high == 0.5
    assert "0.001 to 0.5" in wide.message
    without = refused(wide, status="bracket_only", message="why")
    assert without.refused
    assert (without.low, without.high, without.message) == (wide.low, wide.high, "why")


def test_brackets_from_ramps() -> None:
    joint = reading(0.2)
    alone = ramp_bracket([reading(0.1), reading(0.2)], joint, 1.0)
    assert (alone.status, alone.low, alone.high) == ("ok", 0.01, 1.0)
    assert alone.spread == pytest.approx(math.log10(2))
    assert math.isnan(ramp_bracket([reading()], joint, 1.0).spread)
    apart = ramp_bracket([reading(0.01), reading(0.5)], joint, 1.0)
    assert apart.status == "noisy"
    flat = ramp_bracket([reading(status="flat")], joint, 0.5)
    assert (flat.status, flat.low, flat.high) == ("noisy", 0.005, 0.5)
    assert ramp_bracket([reading(status="edge")], joint, 1.0).status == "ok"


@pytest.mark.parametrize(
    ("advantage", "error", "words"),
    [
        (0.2, 0.1, ["0.2 ± 0.1 lower", "some evidence", "+10.0 %"]),
        (0.1, 0.2, ["lower", "weak evidence"]),
        (-0.1, 0.2, ["0.1 ± 0.2 higher", "no evidence"]),
    ],
)
def test_evidence_in_words(advantage: float, error: float, words: list[str]) -> None:
    text = str(Evidence(advantage, error, 0.1, 60))
    for word in words:
        assert word in text


def test_a_reading_of_a_real_curve_makes_a_bracket() -> None:
    x = np.linspace(-5, 1, 100)
    losses = 1 / (1 + 10 ** (2 * (x + 3))) + 10 ** (2 * x)
    made = read_ramp(10**x, losses)
    bracket = ramp_bracket([made, made], made, 1.0)
    assert bracket.low < 1e-3 < bracket.high
    assert bracket.spread == 0.0
