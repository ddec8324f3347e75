"""Tables: rows of text for a page and for a terminal, and how numbers are written in them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.table


@dataclass(frozen=True)
class Column:
    """The head of a column.

    Args:
        title: In words.
        number: Whether its cells are numbers, set to the right.
    """

    title: str
    number: bool = False


@dataclass(frozen=True)
class Row:
    """The cells of a row, as text.

    Args:
        cells: One for each column.
        look: "better", "unclear" or "not-better" where the row is a verdict.
    """

    cells: tuple[str, ...]
    look: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text, for a page and for a terminal."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def terminal_table(table: Table, title: str = "") -> rich.table.Table:
    """A table for `rich.print`."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    colours = {"better": "green", "unclear": "yellow", "not-better": "red"}
    made = RichTable(title=title or None, title_justify="left", title_style="bold")
    for column in table.columns:
        made.add_column(
            column.title, justify="right" if column.number else "left", overflow="fold"
        )
    for row in table.rows:
        made.add_row(*map(escape, row.cells), style=colours.get(row.look))
    return made


def text_table(table: Table) -> str:
    """A table of plain text, as wide as it must be: one that is cut would hide a number."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    made = RichTable(box=box.SIMPLE, show_edge=False)
    for column in table.columns:
        made.add_column(column.title, justify="right" if column.number else "left", no_wrap=True)
    for row in table.rows:
        made.add_row(*map(escape, row.cells))
    buffer = io.StringIO()
    Console(file=buffer, width=400, highlight=False).print(made)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def format_lrs(lrs: Mapping[str, float]) -> str:
    """Learning rates as the command line spells them; one number where all groups have the same.

    Example:
        >>> format_lrs({"body": 1e-05, "head": 0.0125}), format_lrs({"body": 0.1, "head": 0.1})
        ('body=1e-05,head=0.0125', '0.1')
    """
    values = {f"{value:.4g}" for value in lrs.values()}
    if len(values) == 1:
        return values.pop()
    return ",".join(f"{name}={value:.4g}" for name, value in lrs.items())


def format_schedule(schedule: Mapping[str, Any] | None) -> str:
    """A schedule as it is called: its name with its arguments.

    Example:
        >>> (
        ...     format_schedule({"name": "StepLR", "step_size": 10, "gamma": 0.1}),
        ...     format_schedule(None),
        ... )
        ('StepLR(step_size=10, gamma=0.1)', 'constant')
    """
    if schedule is None:
        return "constant"
    if "name" not in schedule:
        return "; ".join(f"{group}: {format_schedule(spec)}" for group, spec in schedule.items())
    shown = (
        (k, f"{v:.4g}" if isinstance(v, float) else v) for k, v in schedule.items() if k != "name"
    )
    return f"{schedule['name']}({', '.join(f'{key}={value}' for key, value in shown)})"


def format_number(value: float | None) -> str:
    """A number with four digits; a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
