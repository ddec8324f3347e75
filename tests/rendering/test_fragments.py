"""Tests of what notebooks show: complete, escaped, self-contained, in the page's own colours."""

from __future__ import annotations

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
