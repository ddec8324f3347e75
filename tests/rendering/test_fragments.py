"""Tests of what notebooks show: complete, escaped, self-contained, in the page's own colours."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import lrfinder
from lrfinder.rendering.fragments import html_fragment, html_table
from lrfinder.rendering.tables import Column, Row, Table, text_table
from tests.helpers import TinyNet, cross_entropy, tiny_loader, tiny_optimizer

TABLE = Table(
    (Column("group"), Column("lr", number=True)), (Row(("<b>", "1e-3")), Row(("b&c", "-")))
)


@pytest.fixture(scope="module")
def result() -> lrfinder.RangeTest:
    torch.manual_seed(0)
    model = TinyNet()
    return lrfinder.range_test(
        model, tiny_optimizer(model), cross_entropy, tiny_loader(), effort="quick", num_steps=30
    )


def comparison() -> lrfinder.ArmComparison:
    values = {"one": (0.2, 0.23, 0.2), "found": (0.10, 0.12, 0.11)}
    one, found = (
        lrfinder.Arm(name=name, seeds=(1, 2, 3), values={"val/loss": losses})
        for name, losses in values.items()
    )
    measure = lrfinder.Measure.named("val/loss")
    return lrfinder.ArmComparison(found=found, baselines=(one,), measures=(measure,))


def check_self_contained(html: str) -> ElementTree.Element:
    """Well formed, nothing fetched, no scripts, no colours of text or ground that a theme has not."""
    for word in ("<script", "<style", "<link", "src=", "url(http", "color:black", "color:#000"):
        assert word not in html
    return ElementTree.fromstring(f"<page>{html}</page>")


def test_a_table_holds_every_cell_escaped() -> None:
    page = check_self_contained(html_table(TABLE))
    assert [cell.text for cell in page.iter("th")] == ["group", "lr"]
    assert [cell.text for cell in page.iter("td")] == ["<b>", "1e-3", "b&c", "-"]


def test_text_is_as_wide_as_it_must_be() -> None:
    name = "x" * 150
    text = text_table(Table((Column("group"),), (Row((name,)), Row(("[red]",)))))
    assert name in text
    assert "[red]" in text


def test_texts_are_escaped_and_empty_ones_left_out() -> None:
    page = check_self_contained(html_fragment(texts=["a < b", ""]))
    assert [part.text for part in page.iter("p")] == ["a < b"]


def test_a_range_test_shows_table_and_curves(result: lrfinder.RangeTest) -> None:
    page = check_self_contained(result._repr_html_())
    cells = [cell.text for cell in page.iter("td")]
    for name, bracket in result.suggestion.brackets.items():
        assert name in cells
        assert f"{bracket.suggested:.2g}" in cells
    assert len(list(page.iter("{http://www.w3.org/2000/svg}svg"))) == 1
    assert str(result.cost) in "".join(page.itertext())


def test_a_suggestion_shows_its_table_alone(result: lrfinder.RangeTest) -> None:
    page = check_self_contained(result.suggestion._repr_html_())
    assert next(cell.text for cell in page.iter("td")) == "body"
    assert str(result.suggestion) in str(result)  # the same table on a terminal


@pytest.mark.parametrize("kind", ["arms", "report"])
def test_comparisons_and_reports_show_themselves(kind: str) -> None:
    one: Any = comparison()
    if kind == "report":
        one = lrfinder.make_report("title", comparison=one)
    html = one._repr_html_()
    page = check_self_contained(html)
    text = "".join(page.itertext())
    assert "found is better than one" in text
    assert len(list(page.iter("{http://www.w3.org/2000/svg}svg"))) == 1


def test_a_trace_shows_what_it_began_and_ended_with_and_its_curves() -> None:
    trace = lrfinder.Trace(["body", "<head>"], name="a & b")
    for step in range(5):
        trace.append([0.1, 1.0 / (step + 1)], 5.0 - step)
    trace.add_metric("val/loss", 4, 0.75)
    trace.set_status("stopped", "It was < 2.")
    page = check_self_contained(trace._repr_html_())
    cells = [cell.text for cell in page.iter("td")]
    assert cells == [
        *("lr/body", "0.1", "0.1", "lr/<head>", "1", "0.2"),
        *("train/loss", "5", "1", "val/loss", "0.75", "0.75"),
    ]
    assert "5 steps, stopped. It was < 2." in "".join(page.itertext())
    assert len(list(page.iter("{http://www.w3.org/2000/svg}svg"))) == 1


@pytest.mark.parametrize("losses", [[], [math.nan], [1.0, math.inf]])
def test_a_trace_without_steps_or_with_losses_that_are_not_finite_shows_itself(
    losses: list[float],
) -> None:
    trace = lrfinder.Trace(["all"])
    for loss in losses:
        trace.append([0.1], loss)
    page = check_self_contained(trace._repr_html_())
    assert f"{len(losses)} steps, running." in "".join(page.itertext())
    drawn = list(page.iter("{http://www.w3.org/2000/svg}svg"))
    assert len(drawn) == (1 if losses else 0)
