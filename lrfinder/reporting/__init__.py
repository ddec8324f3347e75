"""Reporting: what was found, by how much it is better or not, and what it cost.

Everything here is a function of data: a report is made of tables, texts and figures, `report_html`
writes it as one file that needs no network, and `report_tables` shows the same tables on a
terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from lrfinder.rendering.figures import figure_svg
from lrfinder.rendering.fragments import html_fragment
from lrfinder.rendering.tables import (
    Column,
    Row,
    Table,
    format_lrs,
    format_schedule,
    terminal_table,
)
from lrfinder.reporting.arms import ArmComparison
from lrfinder.reporting.figures import arms_figure, range_figure
from lrfinder.reporting.searches import search_section
from lrfinder.reporting.sections import Section
from lrfinder.suggestions.tables import suggestion_table, suggestion_texts

if TYPE_CHECKING:
    import optuna
    import rich.table

    from lrfinder.ranging import RangeTest


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report.

    Args:
        title: Its heading.
        facts: What it is about, as task and device.
        headline: The answer in one sentence.
        verdict: "better", "unclear" or "not better": the colour of the headline.
        sections: In the order in which they are read.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    headline: str = ""
    verdict: str = "unclear"
    sections: Sequence[Section] = ()

    def _repr_html_(self) -> str:
        """Its tables and figures, as a notebook shows them."""
        parts = [html_fragment(texts=[self.headline])]
        for section in self.sections:
            svgs = [figure_svg(figure, name) for name, figure in section.figures.items()]
            texts = [*section.texts, *section.notes]
            title = f"<h4>{escape(section.title)}</h4>"
            parts.append(title + html_fragment(tables=section.tables, texts=texts, svgs=svgs))
        return "".join(parts)


# -- sections -------------------------------------------------------------------------------------


def comparison_section(comparison: ArmComparison) -> Section:
    """The arms side by side, and in words by how much the found one is better, or not."""
    columns = [Column("configuration"), Column("learning rates"), Column("schedule")]
    columns += [Column(measure.name, number=True) for measure in comparison.measures]
    columns.append(Column("diverged", number=True))
    rows = []
    for arm in comparison.arms:
        cells = [arm.name, format_lrs(arm.lrs), format_schedule(arm.schedule)]
        for measure in comparison.measures:
            cells.append(f"{arm.mean(measure.name):.4g} ± {arm.spread(measure.name):.2g}")
        cells.append(f"{arm.diverged(comparison.measures[0].name)} of {len(arm.seeds)}")
        rows.append(Row(tuple(cells)))
    differences = comparison.differences
    verdicts = [
        Row(
            (f"{comparison.found.name} against {item.baseline}", item.measure.name, item.words),
            look=item.verdict.replace(" ", "-"),
        )
        for item in differences
    ]
    heads = (Column("compared"), Column("in"), Column("result"))
    seeds = comparison.found.seeds
    notes = [f"{arm.name}: {arm.note}" for arm in comparison.arms if arm.note]
    notes.append(
        f"Mean ± standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))}). "
        "Differences are taken seed by seed, ± their standard error; one counts as better "
        "where it exceeds two of these."
    )
    return Section(
        title="What was found, beside the baselines",
        tables=(Table(heads, tuple(verdicts)), Table(tuple(columns), tuple(rows))),
        figures={"Each dot is one seed; the bar is the mean.": arms_figure(comparison)},
        notes=notes,
    )


def range_section(result: RangeTest) -> Section:
    """The bracket of each group, and what the race suggests inside."""
    return Section(
        title="Range test",
        tables=(suggestion_table(result.suggestion),),
        figures={"Loss while the learning rate rises.": range_figure(result)},
        notes=suggestion_texts(result.suggestion),
    )


def cost_section(costs: Sequence[tuple[str, int, float]]) -> Section:
    """What each stage took.

    Args:
        costs: Name of the stage, optimizer steps, seconds.
    """
    rows = [Row((name, str(steps), f"{seconds:.1f}")) for name, steps, seconds in costs]
    total = (
        "total",
        str(sum(steps for _, steps, _ in costs)),
        f"{sum(s for _, _, s in costs):.1f}",
    )
    columns = (Column("stage"), Column("steps", number=True), Column("seconds", number=True))
    return Section(title="What it cost", tables=(Table(columns, (*rows, Row(total))),))


def make_report(
    title: str,
    *,
    facts: Mapping[str, str] | None = None,
    comparison: ArmComparison | None = None,
    result: RangeTest | None = None,
    study: optuna.Study | None = None,
    costs: Sequence[tuple[str, int, float]] = (),
) -> Report:
    """A report of what there is: a comparison with baselines, a range test, a search, costs.

    Args:
        title: The heading.
        facts: What it is about, as task and device.
        comparison: The arms; its answer is the headline.
        result: A range test.
        study: A study of `lrfinder.search`.
        costs: Name, optimizer steps and seconds of each stage.
    """
    sections = []
    verdicts: set[str] = set()
    if comparison is not None:
        sections.append(comparison_section(comparison))
        first = comparison.measures[0]
        verdicts = {item.verdict for item in comparison.differences if item.measure == first}
    if result is not None:
        sections.append(range_section(result))
    if study is not None:
        sections.append(search_section(study))
    if costs:
        sections.append(cost_section(costs))
    order = ("not better", "unclear", "better")
    return Report(
        title=title,
        facts=facts or {},
        headline="" if comparison is None else comparison.headline,
        verdict=next((verdict for verdict in order if verdict in verdicts), "unclear"),
        sections=sections,
    )


# -- the page and the terminal --------------------------------------------------------------------


def report_html(report: Report) -> str:
    """The report as one HTML file: styles and figures inside, no scripts, nothing fetched."""
    import jinja2

    template = (files("lrfinder.reporting") / "templates" / "report.html.j2").read_text(
        encoding="utf-8"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    sections = [
        {
            "title": section.title,
            "texts": section.texts,
            "tables": section.tables,
            "notes": section.notes,
            "figures": [
                {"caption": caption, "svg": figure_svg(figure, caption)}
                for caption, figure in section.figures.items()
            ],
        }
        for section in report.sections
    ]
    look = report.verdict.replace(" ", "-")
    return (
        environment.from_string(template).render(report=report, sections=sections, look=look)
        + "\n"
    )


def report_tables(report: Report) -> list[rich.table.Table]:
    """The tables of the report for a terminal, each under its section's title."""
    return [
        terminal_table(table, section.title if i == 0 else "")
        for section in report.sections
        for i, table in enumerate(section.tables)
    ]
