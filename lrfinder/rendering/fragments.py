"""Fragments: results as a part of somebody's page, as a notebook shows them (`_repr_html_`).

Styles are the elements' own, since a notebook's page belongs to it; colours are the page's, so
that light and dark notebooks are served alike. No scripts, and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from lrfinder.rendering.tables import Table

CELL = "padding:.2em .8em .2em 0;border-bottom:1px solid rgba(128,128,128,.35);background:none"
BLOCK = 'style="overflow-x:auto;max-width:60em;font-variant-numeric:tabular-nums"'
# Legible on white and on black alike; what they say is in words too.
LOOKS = {"better": "color:#2e8b57", "unclear": "color:#a8740a", "not-better": "color:#d0453a"}


def html_table(table: Table) -> str:
    """A table as HTML; every text is escaped."""
    rows = [_row("th", [column.title for column in table.columns], table, "font-weight:600")]
    rows += [_row("td", row.cells, table, LOOKS.get(row.look, "")) for row in table.rows]
    return f'<table style="border-collapse:collapse;border:none">{"".join(rows)}</table>'


def _row(tag: str, cells: Iterable[str], table: Table, look: str) -> str:
    parts = []
    for column, text in zip(table.columns, cells, strict=True):
        align = "right" if column.number else "left"
        parts.append(f'<{tag} style="{CELL};text-align:{align};{look}">{escape(text)}</{tag}>')
    return f"<tr>{''.join(parts)}</tr>"


def html_fragment(
    *, tables: Iterable[Table] = (), svgs: Iterable[str] = (), texts: Iterable[str] = ()
) -> str:
    """Tables, then texts, then figures, in one element.

    Args:
        tables: Written by `html_table`.
        svgs: Of `lrfinder.rendering.figures.figure_svg`.
        texts: Paragraphs; empty ones are left out.
    """
    parts = [html_table(table) for table in tables]
    parts += [f'<p style="margin:.4em 0">{escape(text)}</p>' for text in texts if text]
    parts += svgs
    return f"<div {BLOCK}>{''.join(parts)}</div>"
