"""Descriptions: what an optimizer holds, as a table for people."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lrfinder.groups import learning_rates, param_group_names


def describe(optimizer: torch.optim.Optimizer) -> str:
    """A table of the groups: LR, weight decay, number of tensors and of parameters.

    Other options follow where groups differ in them or they are not the optimizer's own defaults.

    Raises:
        ValueError: If the optimizer has no parameters or no LRs, or two groups share a name.

    Example:
        >>> from torch import nn
        >>> from lrfinder import param_groups
        >>> model = nn.Sequential(nn.Linear(400, 120), nn.Linear(120, 10))
        >>> groups = param_groups(
        ...     model, {"body": "0.*", "head": {"params": "1.*", "lr": 0.01}}, lr=1e-5
        ... )
        >>> print(describe(torch.optim.SGD(groups, momentum=0.9)))
        SGD
         group      lr   weight_decay   tensors   parameters   momentum
        ────────────────────────────────────────────────────────────────
         body    1e-05              0         2       48,120        0.9
         head     0.01              0         2        1,210        0.9
        ────────────────────────────────────────────────────────────────
         all                                  4       49,330
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    names, groups = param_group_names(optimizer), optimizer.param_groups
    learning_rates(optimizer)  # refuses groups without one
    options = [
        "lr",
        *(["weight_decay"] if any("weight_decay" in group for group in groups) else []),
    ]
    others = _telling_options(optimizer)
    total = [
        sum(len(group["params"]) for group in groups),
        _count(p for g in groups for p in g["params"]),
    ]
    footer = ["all", *[""] * len(options), *[f"{n:,}" for n in total], *[""] * len(others)]
    table = Table(box=box.SIMPLE, show_footer=len(groups) > 1, show_edge=False)
    for heading, foot in zip(
        ["group", *options, "tensors", "parameters", *others], footer, strict=True
    ):
        table.add_column(
            heading, foot, justify="left" if heading == "group" else "right", no_wrap=True
        )
    for name, group in zip(names, groups, strict=True):
        counts = [f"{len(group['params']):,}", f"{_count(group['params']):,}"]
        shown = [[_text(group.get(option, "")) for option in keys] for keys in (options, others)]
        table.add_row(name, *shown[0], *counts, *shown[1])
    # A width of its own, so that a terminal's does not cut the table, and no control codes.
    console = Console(
        file=io.StringIO(), width=100_000, color_system=None, markup=False, highlight=False
    )
    console.print(table)
    lines = cast("io.StringIO", console.file).getvalue().splitlines()
    return "\n".join(
        [type(optimizer).__name__, *(line.rstrip() for line in lines if line.strip())]
    )


def _telling_options(optimizer: torch.optim.Optimizer) -> list[str]:
    """Options without a column of their own in which a group is not as the class has it."""
    usual = {
        name: parameter.default
        for name, parameter in inspect.signature(type(optimizer).__init__).parameters.items()
    }
    groups = optimizer.param_groups
    keys = dict.fromkeys(key for group in groups for key in group)
    hidden = {"params", "param_names", "name", "lr", "weight_decay"}
    texts = {
        key: {_text(group.get(key, "")) for group in groups} for key in keys if key not in hidden
    }
    # What its class does not take (torch keeps some notes there) tells something where groups
    # differ.
    return [
        key for key, own in texts.items() if len(own) > 1 or own != {_text(usual.get(key, *own))}
    ]


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_text, value))})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(parameters: Iterable[Tensor]) -> int:
    # A lazy parameter has no size until the first batch.
    return sum(0 if is_lazy(parameter) else parameter.numel() for parameter in parameters)
