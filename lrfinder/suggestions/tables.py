"""Tables: a suggestion as rows of text, and what has to be said to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lrfinder.rendering.tables import Column, Row, Table

if TYPE_CHECKING:
    from lrfinder.suggestions import Suggestion

HEADINGS = ("group", "low", "suggested", "high", "one LR", "spread", "status")


def suggestion_table(suggestion: Suggestion) -> Table:
    """One row for each group: its bracket, the LR suggested, the best one LR for all, the status."""
    control = suggestion.control or {}
    rows = []
    for name, bracket in suggestion.brackets.items():
        numbers = [bracket.low, bracket.suggested, bracket.high, control.get(name)]
        spread = "" if math.isnan(bracket.spread) else f"{bracket.spread:.2f} dec"
        cells = (name, *(_number(value) for value in numbers), spread, bracket.status)
        rows.append(Row(cells))
    words = ("group", "status")
    return Table(
        tuple(Column(title, number=title not in words) for title in HEADINGS), tuple(rows)
    )


def suggestion_texts(suggestion: Suggestion) -> list[str]:
    """The reasons of the statuses, what holds for all groups, and the evidence."""
    messages: dict[str, list[str]] = {}
    for name, bracket in suggestion.brackets.items():
        if bracket.message:
            messages.setdefault(bracket.message, []).append(name)
    texts = [f"{', '.join(names)}: {text}" for text, names in messages.items()]
    texts += [suggestion.message] if suggestion.message else []
    return texts + ([] if suggestion.evidence is None else [str(suggestion.evidence)])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
