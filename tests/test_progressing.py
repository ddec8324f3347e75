"""Tests of the bar: stages and steps on a terminal, nothing where there is none."""

from __future__ import annotations

import io
import sys

import pytest

import lrfinder
from lrfinder.progressing import in_notebook, progress_bar
from tests.helpers import TinyNet, cross_entropy, tiny_loader, tiny_optimizer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar() as show:
        show("ramps", 100, 1000)
        show("race", 400, 1000)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "race: |" in shown
    assert "400/1000" in shown


@pytest.mark.parametrize("progress", [True, False])
def test_a_range_test_without_a_terminal_says_nothing(
    progress: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = TinyNet()
    lrfinder.range_test(
        model, tiny_optimizer(model), cross_entropy, tiny_loader(), effort="brackets",
        num_steps=20, progress=progress,
    )  # fmt: skip
    assert capsys.readouterr() == ("", "")
    assert not in_notebook()
