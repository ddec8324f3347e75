"""Searches: what a report says of a search: its best trials, what new seeds made of them, and why some failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lrfinder.rendering.tables import (
    Column,
    Row,
    Table,
    format_lrs,
    format_number,
    format_schedule,
)
from lrfinder.reporting.figures import search_figure
from lrfinder.reporting.sections import Section

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from lrfinder.searching.confirming import Confirmed

MOST_REASONS = 10
CHOSEN = (Column("learning rates"), Column("schedule"))


def search_section(study: optuna.Study, *, top: int = 5) -> Section:
    """The best trials of a search, what new seeds made of them, how many ended how, and why some failed."""
    from lrfinder.searching import confirmed
    from lrfinder.searching.budgets import RANGE_TEST_KEY
    from lrfinder.searching.confirming import best_trials

    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    best = best_trials(study)[:top]
    states = {
        state: sum(t.state.name == state for t in trials)
        for state in ("COMPLETE", "PRUNED", "FAIL")
    }
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items() if count)
    texts = [f"{len(trials)} trials: {counts}. The best {len(best)}:"]
    tables = [_best_table(best, len(study.directions))]
    again = confirmed(study)
    if again:
        luck = again[0].mean - again[0].searched
        texts.append(
            f"The best trials were trained again on new seeds, since the best of many is a lucky "
            f"one. Trial {again[0].trial} is the best of them: {again[0].mean:.4g} on average, "
            f"{abs(luck):.2g} {'more' if luck >= 0 else 'less'} than in the search."
        )
        tables.append(_confirmed_table(again))
    refused = study.user_attrs.get(RANGE_TEST_KEY, {}).get("refused", {})
    notes = [
        f"The range test refused group {name!r}, so it was searched widely. {reason}"
        for name, reason in refused.items()
    ]
    reasons = [
        f"Trial {trial.number} ({trial.state.name.lower()}): {trial.user_attrs['reason']}"
        for trial in trials
        if trial.state.name == "FAIL" and "reason" in trial.user_attrs
    ]
    return Section(
        title="Search",
        texts=texts,
        tables=tables,
        figures={
            "The objective against what was searched; crosses were pruned.": search_figure(study)
        },
        notes=[*notes, *reasons[:MOST_REASONS]],
    )


def _best_table(best: Sequence[FrozenTrial], num_objectives: int) -> Table:
    names = ["objective"] if num_objectives == 1 else [
        f"objective {i + 1}" for i in range(num_objectives)
    ]  # fmt: skip
    rows = []
    for trial in best:
        hparams = trial.user_attrs.get("hparams", {})
        chosen = format_lrs(hparams.get("lrs", {})), format_schedule(hparams.get("schedule"))
        values = (format_number(value) for value in trial.values)
        rows.append(Row((str(trial.number), *values, *chosen)))
    numbers = (Column(name, number=True) for name in ("trial", *names))
    return Table((*numbers, *CHOSEN), tuple(rows))


def _confirmed_table(again: Sequence[Confirmed]) -> Table:
    rows = []
    for item in again:
        chosen = format_lrs(item.hparams["lrs"]), format_schedule(item.hparams["schedule"])
        numbers = (item.searched, item.mean, item.spread)
        shown = (str(item.trial), *map(format_number, numbers), str(len(item.seeds)))
        rows.append(Row((*shown, *chosen)))
    names = ("trial", "in the search", "mean", "spread", "new seeds")
    return Table((*(Column(name, number=True) for name in names), *CHOSEN), tuple(rows))
