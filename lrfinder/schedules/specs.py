"""Specs: what a schedule may be asked to be, and what to say where torch has no such thing.

A spec is `{"name": <class of torch.optim.lr_scheduler>, <its arguments>, "interval": "epoch"}`, or
one such for each param group.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lrfinder.groups.patterns import quoted

Spec: TypeAlias = Mapping[str, Any]
INTERVALS = ("epoch", "step")


def scheduler_names() -> list[str]:
    """The scheduler classes of the installed torch that a spec can name, sorted.

    Example:
        >>> "StepLR" in scheduler_names()
        True
    """
    return sorted(
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value)
        and issubclass(value, LRScheduler)
        and value is not LRScheduler
        and not name.startswith("_")
    )


def scheduler_class(name: str) -> type[LRScheduler]:
    """The class of a name that `scheduler_names` has."""
    found: type[LRScheduler] = getattr(lr_scheduler, name)
    return found


def is_per_group(spec: Spec) -> bool:
    """Whether it has one spec for each group: a single one has a scheduler's name."""
    return not isinstance(spec.get("name"), str) and any(
        isinstance(value, Mapping) for value in spec.values()
    )


def parsed(spec: Spec, group_names: Sequence[str] | None = None) -> dict[str, Any]:
    """A copy of plain values with an interval filled in, checked against torch's signatures.

    Args:
        spec: One for all groups, or one for each; then "interval" beside the groups' names holds
            for each that has none of its own.
        group_names: The groups that a spec for each must name; None takes those that it names.

    Raises:
        TypeError: If it is not a mapping.
        ValueError: If it names no scheduler of torch, arguments that its class does not take or
            lacks one that it needs, a number that is not finite, an interval that is neither
            "epoch" nor "step", or not the groups of the optimizer.
    """
    given: Any = spec
    if not isinstance(given, Mapping):
        raise TypeError(f"A schedule's spec must be a mapping, but got {spec!r}.")
    if not is_per_group(spec):
        return _parsed_single(spec, "epoch", "The schedule")
    groups = {key: value for key, value in spec.items() if isinstance(value, Mapping)}
    rest = {key: value for key, value in spec.items() if key not in groups}
    interval = rest.pop("interval", "epoch")
    if rest:
        raise ValueError(
            "A spec for each group must hold a mapping for each, and at most an 'interval' beside "
            f"them, but got {rest!r}."
        )
    names = list(groups) if group_names is None else group_names
    missing = [name for name in names if name not in groups]
    unknown = [name for name in groups if name not in names]
    if missing or unknown:
        faults = [f"lacks {quoted(missing)}"] if missing else []
        faults += [f"has {quoted(unknown)}, which are no groups"] if unknown else []
        raise ValueError(
            f"A spec for each group must name each of {quoted(names)}, but it "
            f"{' and '.join(faults)}. For a constant learning rate give "
            '{"name": "ConstantLR", "factor": 1.0}.'
        )
    return {
        name: _parsed_single(groups[name], interval, f"The schedule of group {name!r}")
        for name in names
    }


def signature_text(name: str) -> str:
    """How a spec may fill a class's arguments: `StepLR(step_size, gamma=0.1)`."""
    shown = [
        key if parameter.default is parameter.empty else f"{key}={parameter.default!r}"
        for key, parameter in _parameters(name).items()
    ]
    return f"{name}({', '.join(shown)})"


def as_json(value: Any) -> Any:
    """A copy that JSON can hold; a callable is shown by its qualified name."""
    if isinstance(value, Counter):  # MultiStepLR keeps its milestones so
        return sorted(value.elements())
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    shown = value if hasattr(value, "__qualname__") else type(value)
    return f"{shown.__module__}.{shown.__qualname__}"


def plain(value: Any) -> Any:
    """A copy with numpy's numbers as python's: a checkpoint that runs no code holds no others."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def _parsed_single(spec: Spec, interval: str, label: str) -> dict[str, Any]:
    result = {**_parsed_scheduler(spec, label), "interval": spec.get("interval", interval)}
    if result["interval"] not in INTERVALS:
        raise ValueError(
            f"{label} must have an 'interval' of 'epoch' or 'step', but got "
            f"{result['interval']!r}."
        )
    if result["name"] == "ReduceLROnPlateau" and result["interval"] == "step":
        raise ValueError(
            f"{label} must have the interval 'epoch', since the metric of ReduceLROnPlateau is "
            "measured after each epoch, but got 'step'."
        )
    return result


def _parsed_scheduler(spec: Spec, label: str) -> dict[str, Any]:
    spec = {key: plain(value) for key, value in spec.items()}
    names = scheduler_names()
    name = spec.get("name")
    if name not in names:
        near = get_close_matches(str(name), names, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{label} must have the name of a scheduler of torch, but got name={name!r}.{meant} "
            f"torch has {', '.join(names)}."
        )
    _check_arguments(spec, label)
    for key, value in spec.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(
                    f"{label} ({name}) must have finite numbers, but got {key}={value!r}."
                )
    if "milestones" in spec:
        _check_milestones(spec, label)
    if "schedulers" in _parameters(name):
        spec["schedulers"] = _parsed_children(spec, label)
    return spec


def _check_arguments(spec: Spec, label: str) -> None:
    name, accepted = spec["name"], _parameters(spec["name"])
    unknown = [key for key in spec if key not in accepted and key not in ("name", "interval")]
    needed = [
        key
        for key, parameter in accepted.items()
        # The groups' own LRs stand in for OneCycleLR's.
        if parameter.default is parameter.empty and (name, key) != ("OneCycleLR", "max_lr")
    ]
    missing = [key for key in needed if key not in spec]
    if unknown or missing:
        faults = [f"{name} does not take {quoted(unknown)}"] if unknown else []
        faults += [f"{name} needs {quoted(missing)}"] if missing else []
        raise ValueError(
            f"{label} must have the arguments of {signature_text(name)}, but "
            f"{' and '.join(faults)}."
        )


def _check_milestones(spec: Spec, label: str) -> None:
    # torch compares them with the step's number: what is no integer would silently never come.
    marks = spec["milestones"]
    if (
        not isinstance(marks, (list, tuple))
        or not all(type(mark) is int and mark >= 0 for mark in marks)
        or list(marks) != sorted(marks)
    ):
        raise ValueError(
            f"{label} ({spec['name']}) must have milestones that are integers >= 0 in rising "
            f"order, but got {marks!r}."
        )


def _parsed_children(spec: Spec, label: str) -> list[dict[str, Any]]:
    children = spec["schedulers"]
    if not isinstance(children, (list, tuple)) or not all(
        isinstance(c, Mapping) for c in children
    ):
        raise ValueError(
            f"{label} ({spec['name']}) must have a list of specs as 'schedulers', but got "
            f"{children!r}."
        )
    parsed_children = []
    for index, child in enumerate(children):
        where = f"{label}, schedulers[{index}]"
        if "interval" in child:
            raise ValueError(
                f"{where} must not have an 'interval', since {spec['name']} steps it, but got "
                f"{child['interval']!r}. Give it beside {spec['name']!r}."
            )
        parsed_children.append(_parsed_scheduler(child, where))
        if spec["name"] == "SequentialLR" and "schedulers" in _parameters(child["name"]):
            # torch starts a child at its milestone by its `get_lr`, which a composite has not.
            raise ValueError(
                f"{where} must not be a {child['name']}, which torch's SequentialLR cannot start "
                "at a milestone. List its schedulers and milestones in the outer SequentialLR."
            )
    return parsed_children


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """What a spec may set of a class's constructor."""
    parameters = dict(inspect.signature(scheduler_class(name)).parameters)
    # The start is what a spec means; to go on from later, a scheduler's state is loaded.
    return {
        key: value for key, value in parameters.items() if key not in ("optimizer", "last_epoch")
    }
