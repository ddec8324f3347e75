"""Options: those that several commands share, and how their texts are read."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import torch
import typer

import lrfinder

Task = Annotated[
    str,
    typer.Option(
        help="What to train: a task that ships (digits, digits-finetune, cifar10, "
        "cifar10-resnet), or your own function that returns a Task, as "
        "my_project.tasks:make_task or tasks.py:make_task."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="The folder of the task's data, where it takes one. For cifar10: images as "
        "train/<class>/*, test/<class>/*, or torchvision's CIFAR10; into an empty folder "
        "it is downloaded."
    ),
]
Seed = Annotated[int, typer.Option(help="Fixes the weights, the batches and the search.")]
Device = Annotated[
    str, typer.Option(help="auto (CUDA, then MPS, then the CPU), or cpu, cuda:1, …")
]
NumEpochs = Annotated[
    int | None, typer.Option(help="Passes over the training data; the task's own by default.")
]
SearchedSchedule = Annotated[
    str,
    typer.Option(
        help="The schedule to search: StepLR, MultiStepLR, ExponentialLR or CosineAnnealingLR; "
        "of several, with a comma, the search chooses."
    ),
]


def load(task: str, data: str | None) -> lrfinder.Task:
    """The task of that name; from now on torch uses as many CPU threads as it wants."""
    made = lrfinder.load_task(task, data=data)
    if made.threads is not None:
        torch.set_num_threads(made.threads)
    return made


def read_lrs(text: str | None) -> float | dict[str, float] | None:
    """Learning rates: one for all groups, or one for each.

    Raises:
        ValueError: If the text is neither, or an LR is not a number >= 0.

    Example:
        >>> read_lrs("0.01"), read_lrs("features=1e-5, classifier=1e-2")
        (0.01, {'features': 1e-05, 'classifier': 0.01})
    """
    if text is None:
        return None
    if "=" not in text:
        return _read_lr(text, text)
    lrs: dict[str, float] = {}
    for part in text.split(","):
        name, sign, value = part.partition("=")
        if not sign or not name.strip() or name.strip() in lrs:
            raise ValueError(_lrs_message(text))
        lrs[name.strip()] = _read_lr(value, text)
    return lrs


def _read_lr(value: str, text: str) -> float:
    try:
        lr = float(value)
    except ValueError:
        raise ValueError(_lrs_message(text)) from None
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(
            f"A learning rate must be a finite number >= 0, but got {value.strip()!r}."
        )
    return lr


def _lrs_message(text: str) -> str:
    return (
        "`lrs` must be one number, or one for each group as 'features=1e-5,classifier=1e-2', "
        f"but got {text!r}."
    )


def read_schedule(
    schedule: str | None,
    *,
    gamma: float | None = None,
    step_size: int | None = None,
    milestones: str | None = None,
) -> dict[str, Any] | None:
    """The spec of a schedule, of its name and the options that were given, or of JSON.

    Raises:
        ValueError: If options are given without a schedule, or a text cannot be read.

    Example:
        >>> read_schedule("StepLR", gamma=0.1, step_size=10)
        {'name': 'StepLR', 'gamma': 0.1, 'step_size': 10}
    """
    options: dict[str, Any] = {"gamma": gamma, "step_size": step_size}
    options["milestones"] = None if milestones is None else _read_milestones(milestones)
    given = {name: value for name, value in options.items() if value is not None}
    if schedule is None:
        if given:
            raise ValueError(
                f"`{next(iter(given))}` needs a `schedule`, but none was given. "
                "Add --schedule StepLR."
            )
        return None
    if not schedule.lstrip().startswith("{"):
        return {"name": schedule, **given}
    try:
        spec: dict[str, Any] = json.loads(schedule)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`schedule` must be a name or valid JSON, but got {schedule!r}: {error}"
        ) from None
    return {**spec, **given}


def _read_milestones(text: str) -> list[int]:
    try:
        return [int(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        raise ValueError(
            f"`milestones` must be whole numbers as '10,20', but got {text!r}."
        ) from None


def read_groups(text: str) -> str | list[str]:
    """`each`, `together`, or a list of names.

    Example:
        >>> read_groups("each"), read_groups("body, head")
        ('each', ['body', 'head'])
    """
    if text in ("each", "together"):
        return text
    return [name.strip() for name in text.split(",")]


def read_names(text: str) -> str | list[str]:
    """One name, or several with commas.

    Example:
        >>> read_names("StepLR"), read_names("val/loss, seconds")
        ('StepLR', ['val/loss', 'seconds'])
    """
    names = [name.strip() for name in text.split(",")]
    return names if len(names) > 1 else names[0]
