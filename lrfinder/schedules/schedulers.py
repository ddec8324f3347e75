"""Schedulers: torch's own, built from a spec, for all param groups at once or one for each.

Nothing here computes a learning rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lrfinder.groups import ROUNDING, group_names, learning_rates, lr_groups
from lrfinder.schedules.specs import Spec, as_json, is_per_group, parsed, scheduler_class


class _GroupView(Optimizer):
    """The param groups of one LR group, as an optimizer that torch's schedulers take.

    They are looked up at each use, since `load_state_dict` puts new dicts in the place of the
    old ones. It holds nothing and never steps.
    """

    def __init__(self, optimizer: Optimizer, indices: Sequence[int]) -> None:
        # Optimizer.__init__ would make groups of its own.
        self._optimizer = optimizer
        self._indices = indices
        self.defaults = optimizer.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [self._optimizer.param_groups[index] for index in self._indices]

    @property
    def _opt_called(self) -> bool:
        """Whether the optimizer took a step: torch warns of a scheduler that is ahead of it."""
        return getattr(self._optimizer, "_opt_called", False)


class GroupSchedulers:
    """One torch scheduler for each group; made by `build_scheduler` from a spec for each.

    Args:
        optimizer: The optimizer of all groups.
        specs: Group -> spec with all that `lrfinder.schedules.specs.parsed` fills in, in the groups' order.

    Attributes:
        schedulers: Group -> torch scheduler, of that group alone.
        intervals: Group -> "epoch" or "step".
    """

    def __init__(self, optimizer: Optimizer, specs: Mapping[str, Mapping[str, Any]]) -> None:
        self.optimizer = optimizer
        self.intervals = {name: spec["interval"] for name, spec in specs.items()}
        members: dict[str, list[int]] = {}
        for index, owner in enumerate(lr_groups(optimizer)):
            members.setdefault(owner, []).append(index)
        self._num_param_groups = len(optimizer.param_groups)
        self.schedulers = {
            name: _make(_GroupView(optimizer, indices), spec, f"The schedule of group {name!r}")
            for (name, spec), indices in zip(specs.items(), members.values(), strict=True)
        }
        optimizer.register_step_post_hook(mark_stepped)

    def step(self, metrics: float | None = None, *, interval: str | None = None) -> None:
        """Move every schedule on, or those of one interval.

        Args:
            metrics: What ReduceLROnPlateau looks at.
            interval: "epoch" or "step"; None for both.

        Raises:
            ValueError: If a ReduceLROnPlateau lacks its metric; then none has moved.
        """
        if len(self.optimizer.param_groups) != self._num_param_groups:
            raise ValueError(
                f"The optimizer must have the {self._num_param_groups} groups that the schedulers "
                f"were built for, but it has {len(self.optimizer.param_groups)}."
            )
        moved = [
            scheduler
            for name, scheduler in self.schedulers.items()
            if interval in (None, self.intervals[name])
        ]
        check_metric(moved, metrics)
        for scheduler in moved:
            step_scheduler(scheduler, metrics)

    def get_last_lr(self) -> list[Any]:
        """The LR that each group's schedule set last, in the order of the groups."""
        return [scheduler.get_last_lr()[0] for scheduler in self.schedulers.values()]

    def state_dict(self) -> dict[str, Any]:
        """Group -> state of its scheduler; functions (LambdaLR) are not in it."""
        return {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state, which is left as it is.

        Raises:
            ValueError: If it is of other groups.
        """
        if list(state_dict) != list(self.schedulers):
            raise ValueError(
                f"The state must be of the groups {list(self.schedulers)}, but got "
                f"{list(state_dict)}."
            )
        for name, state in copy.deepcopy(dict(state_dict)).items():
            self.schedulers[name].load_state_dict(state)


def build_scheduler(optimizer: Optimizer, spec: Spec) -> AnyScheduler:
    """Make torch's own scheduler from a spec, or one for each group.

    The schedule starts from the LRs that the groups have now: an `initial_lr` that an earlier
    scheduler left behind is forgotten. (To go on with a schedule, build it anew and load its
    state.)

    Args:
        optimizer: Any torch optimizer.
        spec: `{"name": "StepLR", "step_size": 10}`: a class of `torch.optim.lr_scheduler` and its
            arguments. SequentialLR and ChainedScheduler take `"schedulers": [specs]`. OneCycleLR
            without "max_lr" peaks at each group's own LR. Or `{"features": {...}, ...}`, a spec
            for each group.

    Raises:
        TypeError: If the spec is not a mapping.
        ValueError: If the spec is wrong, in itself or for this optimizer. Then the optimizer is
            as it was.

    Example:
        >>> optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
        >>> type(build_scheduler(optimizer, {"name": "StepLR", "step_size": 10})).__name__
        'StepLR'
        >>> build_scheduler(optimizer, {"name": "StepLR", "every": 10})
        Traceback (most recent call last):
            ...
        ValueError: The schedule must have the arguments of StepLR(step_size,
        gamma=0.1), but StepLR does not take 'every' and StepLR needs 'step_size'.
    """
    plan = parsed(spec, group_names(optimizer))
    _try(plan, learning_rates(optimizer))
    with _groups_kept_on_error(optimizer):
        for group in optimizer.param_groups:
            group.pop("initial_lr", None)
        return _make_all(optimizer, plan)


def validate_spec(spec: Spec, names: Sequence[str]) -> None:
    """Refuse a spec before a training begins: checks its arguments, builds it and steps it once.

    Args:
        spec: As in `build_scheduler`.
        names: The names of the optimizer's groups.

    Raises:
        TypeError: If the spec is not a mapping.
        ValueError: If it is wrong in itself. Whether it suits an optimizer (one without momentum
            and OneCycleLR) is known when it is built.
    """
    _try(parsed(spec, names), dict.fromkeys(names, 1.0))


AnyScheduler: TypeAlias = LRScheduler | GroupSchedulers


def check_metric(schedulers: Sequence[LRScheduler], metric: float | None) -> None:
    """Refuse to move a ReduceLROnPlateau that has nothing to look at."""
    if metric is None and any(isinstance(one, ReduceLROnPlateau) for one in schedulers):
        raise ValueError(
            "ReduceLROnPlateau must be given a metric at each of its steps, but got None. Train "
            "with a validation loader that measures it, or pass the metric."
        )


def step_scheduler(scheduler: AnyScheduler, metric: float | None) -> None:
    """Move a schedule on by one step, and see to it that its LRs are ones.

    Raises:
        ValueError: If a ReduceLROnPlateau lacks its metric, torch refuses the step (OneCycleLR
            past its end), or an LR is negative or not finite.
    """
    if isinstance(scheduler, GroupSchedulers):
        scheduler.step(metric)
        return
    check_metric([scheduler], metric)
    try:
        # torch types `step` without the metric that this one class needs.
        scheduler.step(*([metric] if isinstance(scheduler, ReduceLROnPlateau) else []))  # type: ignore[arg-type]
    except Exception as error:
        raise ValueError(
            f"{type(scheduler).__name__} must take its next step, but torch refuses: {error}"
        ) from error
    for index, group in enumerate(scheduler.optimizer.param_groups):
        lr = group["lr"]
        # A tensor is not read: that would wait for its device at each step.
        if not isinstance(lr, Tensor) and not -ROUNDING <= lr < math.inf:
            raise ValueError(
                f"{type(scheduler).__name__} must give learning rates that are finite and >= 0, "
                f"but gave group {group.get('name', f'group_{index}')!r} lr={lr!r}."
            )


def try_out(plan: Mapping[str, Any], lrs: Mapping[str, float]) -> tuple[Optimizer, AnyScheduler]:
    """An optimizer without a model, and the schedule on it, before its first step."""
    groups = [
        {"params": [nn.Parameter(torch.empty(0))], "name": n, "lr": lr} for n, lr in lrs.items()
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = _make_all(optimizer, plan)
    optimizer.step()  # torch warns of a scheduler that is ahead of its optimizer
    return optimizer, scheduler


def _try(plan: Mapping[str, Any], lrs: Mapping[str, float]) -> None:
    """One step where nothing can be lost: StepLR(step_size=0) is refused at its first."""
    _, scheduler = try_out(plan, lrs)
    step_scheduler(scheduler, 0.0)


def _make_all(optimizer: Optimizer, plan: Mapping[str, Any]) -> AnyScheduler:
    return (
        GroupSchedulers(optimizer, plan)
        if is_per_group(plan)
        else _make(optimizer, plan, "The schedule")
    )


def _make(
    optimizer: Optimizer, spec: Spec, label: str, lrs: Sequence[float] | None = None
) -> LRScheduler:
    """One torch scheduler, with those nested in it; `lrs` are the groups' before any of them."""
    if lrs is None:
        lrs = [float(group["lr"]) for group in optimizer.param_groups]
    arguments = {key: value for key, value in spec.items() if key not in ("name", "interval")}
    if "schedulers" in arguments:
        arguments["schedulers"] = [
            _make(optimizer, child, f"{label}, schedulers[{index}]", lrs)
            for index, child in enumerate(arguments["schedulers"])
        ]
    if spec["name"] == "OneCycleLR":
        arguments.setdefault("max_lr", list(lrs))
    try:
        return scheduler_class(spec["name"])(optimizer=optimizer, **arguments)
    except Exception as error:
        raise ValueError(
            f"{label} must be one that torch takes, but {as_json(spec)} is refused: "
            f"{type(error).__name__}: {error}"
        ) from error


def mark_stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """A hook that notes a step as torch does, for schedulers that warn without it."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


@contextmanager
def _groups_kept_on_error(optimizer: Optimizer) -> Iterator[None]:
    """Every group's options as they were, should what happens inside fail."""
    kept = [
        (group, dict(group), group["lr"].clone() if isinstance(group["lr"], Tensor) else None)
        for group in optimizer.param_groups
    ]
    try:
        yield
    except BaseException:
        for group, options, lr in kept:
            group.clear()
            group.update(options)
            if lr is not None:
                group["lr"].copy_(lr)
        raise
