"""Tests of the report: it says what the numbers say, and stands alone."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser

import optuna
import pytest
from rich.console import Console

import lrfinder
from lrfinder.rendering.figures import figure_svg
from lrfinder.rendering.tables import format_lrs, format_schedule
from lrfinder.reporting.figures import search_figure

NAN = math.nan


def arm(name: str, losses: tuple[float, ...], **options: object) -> lrfinder.Arm:
    accuracies = tuple(1.0 - loss if math.isfinite(loss) else NAN for loss in losses)
    return lrfinder.Arm(
        name=name,
        seeds=(1, 2, 3),
        values={"val/loss": losses, "val/accuracy": accuracies},
        steps=300,
        seconds=1.5,
        **options,
    )


def comparison(found: tuple[float, ...], *baselines: lrfinder.Arm) -> lrfinder.ArmComparison:
    measures = (lrfinder.Measure.named("val/loss"), lrfinder.Measure.named("val/accuracy"))
    made = arm(
        "found", found, lrs={"body": 0.01, "head": 0.1}, schedule={"name": "StepLR", "gamma": 0.5}
    )
    return lrfinder.ArmComparison(found=made, baselines=baselines, measures=measures)


@pytest.fixture
def study() -> optuna.Study:
    made = optuna.create_study()
    ratio = optuna.distributions.FloatDistribution(0.01, 100.0, log=True)
    for i, value in enumerate([0.5, 0.2, 0.3]):
        hparams = {"lrs": {"body": 0.1, "head": 0.1 * 10**i}, "schedule": None}
        made.add_trial(
            optuna.trial.create_trial(
                params={"ratio/head": 10.0**i},
                distributions={"ratio/head": ratio},
                value=value,
                user_attrs={"hparams": hparams},
            )
        )
    pruned, failed = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL
    made.add_trial(
        optuna.trial.create_trial(
            params={"ratio/head": 0.1},
            distributions={"ratio/head": ratio},
            state=pruned,
            intermediate_values={0: 3.0, 1: NAN},
        )
    )
    reason = {"reason": "RuntimeError: out of <memory>"}
    made.add_trial(optuna.trial.create_trial(state=failed, user_attrs=reason))
    return made


class _Links(HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith("#"):
                self.fetched.append(value or "")
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> _Links:
    page = _Links()
    page.feed(html)
    page.close()
    return page


def test_the_page_needs_nothing_from_outside_and_is_well_formed(study: optuna.Study) -> None:
    def made() -> str:
        report = lrfinder.make_report(
            "Learning rates of <digits>",
            facts={"task": "a & b"},
            comparison=comparison((0.1, 0.2, 0.15), arm("one-lr", (0.3, 0.4, 0.35))),
            study=study,
            costs=[("range test", 1200, 3.2), ("search", 600, 1.0)],
        )
        return lrfinder.report_html(report)

    html = made()
    page = read(html)
    assert page.fetched == []
    assert page.open == []
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", html)
    assert "prefers-color-scheme: dark" in html
    text = "".join(page.text)
    assert "Learning rates of <digits>" in text
    assert "a & b" in text
    assert "1800" in text  # the total of the steps
    assert "RuntimeError: out of <memory>" in text
    ids = re.findall(r'id="([^"]+)"', html)
    clips = [name for name in ids if re.fullmatch(r"p[0-9a-f]{10}", name)]
    assert len(clips) == len(set(clips)), "two figures share a clip path's name"
    assert html == made()


@pytest.mark.parametrize(
    ("found", "baseline", "look", "words"),
    [
        ((0.1, 0.2, 0.15), (0.3, 0.4, 0.35), "better", "better by 57.1 % ± 0.0 %"),
        ((0.3, 0.4, 0.35), (0.1, 0.2, 0.15), "not-better", "not better (worse by"),
        ((0.1, 0.5, 0.2), (0.2, 0.3, 0.4), "unclear", "not clearly better ("),
        ((0.1, 0.2, 0.15), (NAN, NAN, 0.2), "better", "better: base diverged on 2 of 3 seeds"),
        ((NAN, 0.2, 0.15), (0.3, 0.3, 0.3), "not-better", "it diverged on 1 of 3 seeds"),
        ((NAN, NAN, NAN), (NAN, NAN, NAN), "not-better", "it diverged on 3 of 3 seeds"),
    ],
)
def test_it_says_whether_the_baseline_is_beaten(found, baseline, look, words) -> None:
    report = lrfinder.make_report("r", comparison=comparison(found, arm("base", baseline)))
    html = lrfinder.report_html(report)
    assert f'<p class="headline {look}">' in html
    assert words in "".join(read(html).text)
    assert "base" in report.headline


def test_the_headline_is_not_better_when_one_baseline_is_not_beaten() -> None:
    both = comparison((0.2, 0.3, 0.25), arm("bad", (9.0, 9.0, 9.1)), arm("good", (0.1, 0.1, 0.1)))
    report = lrfinder.make_report("r", comparison=both)
    assert report.verdict == "not better"
    assert "is better than bad, and is not better than good" in report.headline


def test_the_terminal_shows_the_same_tables(study: optuna.Study) -> None:
    report = lrfinder.make_report(
        "r", comparison=comparison((0.1, 0.2, 0.15), arm("[base]", (NAN, 0.4, 0.35))), study=study
    )
    screen = Console(file=io.StringIO(), width=160)
    for table in lrfinder.report_tables(report):
        screen.print(table)
    shown = screen.file.getvalue()
    assert "body=0.01,head=0.1" in shown
    assert "[base]" in shown
    assert "1 of 3" in shown
    assert "StepLR(gamma=0.5)" in shown
    lines = [line for line in shown.splitlines() if "0.2 " in line and "body=" in line]
    assert lines, shown  # the best trial of the search


def test_the_best_trials_come_first_in_either_direction(study: optuna.Study) -> None:
    def first(made: optuna.Study) -> str:
        section = lrfinder.make_report("r", study=made).sections[0]
        assert "5 trials: 3 complete, 1 pruned, 1 fail" in section.texts[0]
        return section.tables[0].rows[0].cells[0]

    assert first(study) == "1"
    other = optuna.create_study(direction="maximize")
    other.add_trials(study.trials)
    assert first(other) == "0"


def test_figures_take_the_ink_of_the_page(study: optuna.Study) -> None:
    svg = figure_svg(search_figure(study))
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "ratio/head" in svg  # text stays text
    empty = figure_svg(search_figure(optuna.create_study()))
    assert empty.startswith("<svg")


def test_numbers_and_schedules_are_written_as_the_command_line_reads_them() -> None:
    assert format_lrs({"a": 1e-5, "b": 0.01}) == "a=1e-05,b=0.01"
    per_group = {
        "a": {"name": "StepLR", "step_size": 3},
        "b": {"name": "ExponentialLR", "gamma": 0.9},
    }
    assert format_schedule(per_group) == "a: StepLR(step_size=3); b: ExponentialLR(gamma=0.9)"
