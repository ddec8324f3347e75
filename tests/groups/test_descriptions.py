"""The table of an optimizer says what torch's own print says, and how large the groups are."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

from lrfinder.groups import param_groups
from lrfinder.groups.descriptions import describe


def rows(optimizer: torch.optim.Optimizer) -> list[list[str]]:
    title, *lines = describe(optimizer).splitlines()
    assert title == type(optimizer).__name__
    return [line.split() for line in lines if "─" not in line]


def groups(**options: Any) -> list[dict[str, Any]]:
    model = nn.Sequential(nn.Linear(30, 50), nn.Linear(50, 1))
    return param_groups(model, {"body": "0.*", "head": {"params": "1.*", **options}}, lr=1e-5)


def test_options_that_are_not_the_default_have_a_column() -> None:
    assert rows(torch.optim.SGD(groups(lr=0.01, weight_decay=5e-4), momentum=0.9)) == [
        ["group", "lr", "weight_decay", "tensors", "parameters", "momentum"],
        ["body", "1e-05", "0", "2", "1,550", "0.9"],
        ["head", "0.01", "0.0005", "2", "51", "0.9"],
        ["all", "4", "1,601"],
    ]


def test_options_in_which_groups_differ_have_a_column() -> None:
    assert rows(torch.optim.AdamW(groups(betas=(0.8, 0.99)))) == [
        ["group", "lr", "weight_decay", "tensors", "parameters", "betas"],
        ["body", "1e-05", "0.01", "2", "1,550", "(0.9,", "0.999)"],
        ["head", "1e-05", "0.01", "2", "51", "(0.8,", "0.99)"],
        ["all", "4", "1,601"],
    ]


def test_one_group_has_no_sum() -> None:
    optimizer = torch.optim.Adam(
        nn.Linear(2, 1).parameters(), lr=torch.tensor(0.25), foreach=False
    )
    assert rows(optimizer) == [
        ["group", "lr", "weight_decay", "tensors", "parameters", "foreach"],
        ["group_0", "0.25", "0", "2", "3", "False"],
    ]


def test_an_optimizer_without_weight_decay_and_one_with_lazy_parameters() -> None:
    optimizer = torch.optim.LBFGS(nn.Linear(2, 1).parameters())
    assert rows(optimizer)[0] == ["group", "lr", "tensors", "parameters", "max_eval"]
    optimizer = torch.optim.SGD(nn.LazyLinear(2).parameters(), lr=0.1)
    assert rows(optimizer)[1] == ["group_0", "0.1", "0", "2", "0"]


def test_it_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = torch.optim.SGD(groups(name="head"), momentum=0.9)
    plain = describe(optimizer)
    monkeypatch.setitem(os.environ, "COLUMNS", "20")
    monkeypatch.setitem(os.environ, "FORCE_COLOR", "1")
    monkeypatch.setitem(os.environ, "TTY_COMPATIBLE", "1")
    assert describe(optimizer) == plain
    assert "\x1b" not in plain
    assert all(line == line.rstrip() for line in plain.splitlines())


def test_a_name_is_no_markup() -> None:
    optimizer = torch.optim.SGD(
        [{"params": nn.Linear(1, 1).parameters(), "name": "[red]x[/red]"}], lr=1.0
    )
    assert rows(optimizer)[1][0] == "[red]x[/red]"
