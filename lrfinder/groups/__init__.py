"""Named param groups: build them, check them, read and set their learning rates.

A param group is one entry of `optimizer.param_groups`; those made here carry a `"name"` and
partition the trainable parameters of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrfinder.groups.checks import ROUNDING, check_optimizer, checked_lr, number
from lrfinder.groups.patterns import (
    SHOWN,
    GroupSpec,
    matches,
    names_of_parameters,
    quoted,
    split_entry,
)
from lrfinder.groups.reading import (
    group_names,
    held_lr,
    learning_rates,
    lr_groups,
    param_group_names,
    shared_lrs,
)

__all__ = [
    "ROUNDING",
    "check_optimizer",
    "checked_lr",
    "group_names",
    "learning_rates",
    "lr_groups",
    "param_group_names",
    "param_groups",
    "scale_learning_rate",
    "set_learning_rate",
    "shared_lrs",
]


def param_groups(model: nn.Module, spec: GroupSpec, **defaults: Any) -> list[dict[str, Any]]:
    """Split the trainable parameters of a model into named groups for any torch optimizer.

    Law: the groups partition the parameters with `requires_grad`; a parameter is in the first
    group of `spec` that matches it. Their order is that of `spec`, and within a group that of
    `model.named_parameters()`. A tied parameter is matched by each of its names.

    Args:
        model: Any module. Frozen parameters (`requires_grad=False`) are left out.
        spec: Name of a group -> pattern, or -> `{"params": pattern, "lr": ..., <other options>}`.
            A pattern is a glob over parameter names (`*` also matches dots), a list of globs, or a
            predicate `(name, parameter) -> bool`.
        **defaults: Options of each group that does not set its own, such as `lr` (per step,
            finite, >= 0).

    Returns:
        One dict for each group, with "params", "name" and the options.

    Raises:
        ValueError: If a pattern matches nothing, or only parameters that are frozen or in an
            earlier group; if a trainable parameter is in no group; if an LR is negative or not
            finite. Nothing is changed in any case.

    Example:
        >>> model = nn.ModuleDict({"features": nn.Linear(3, 2), "classifier": nn.Linear(2, 1)})
        >>> groups = param_groups(
        ...     model,
        ...     {"features": "features.*", "classifier": {"params": "classifier.*", "lr": 1e-2}},
        ...     lr=1e-5,
        ... )
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('features', 1e-05, 2), ('classifier', 0.01, 2)]
        >>> param_groups(model, {"features": "features.*"})
        Traceback (most recent call last):
            ...
        ValueError: Each trainable parameter must be in a group, but these are in none:
        'classifier.weight', 'classifier.bias'. Add a group that matches them (a last group '*'
        takes the rest), or freeze them.
    """
    given: Any = spec  # which may be anything, whatever its annotation says
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            f"`spec` must be a mapping that names at least one group, but got {spec!r}."
        )
    names = names_of_parameters(model)
    if not any(parameter.requires_grad for parameter in names):
        raise ValueError(
            f"The model must have a trainable parameter, but none of its {len(names)} has "
            "requires_grad=True."
        )
    owners: dict[nn.Parameter, str] = {}
    groups = []
    for name, entry in spec.items():
        pattern, options = split_entry(name, entry)
        members = matches(name, pattern, names, owners)
        owners.update(dict.fromkeys(members, name))
        group = {"params": members, "name": name, **defaults, **options}
        if "lr" in group and not isinstance(group["lr"], Tensor):
            group["lr"] = checked_lr(group["lr"], name)
        groups.append(group)
    left = [
        own[0]
        for parameter, own in names.items()
        if parameter.requires_grad and parameter not in owners
    ]
    if left:
        raise ValueError(
            "Each trainable parameter must be in a group, but these are in none: "
            f"{quoted(left, SHOWN)}. Add a group that matches them (a last group '*' takes the "
            "rest), or freeze them."
        )
    return groups


def set_learning_rate(
    optimizer: torch.optim.Optimizer, value: float | Mapping[str, float]
) -> None:
    """Set the LR of every group, or of some by name: all of them, or none if one is refused.

    Momentum buffers, weight decay and all else stay as they are; an LR kept in a tensor is filled
    in place. A schedule that is at work goes on from this LR where torch's formula is recursive
    (StepLR, ExponentialLR), and overwrites it at its next step where it is not (OneCycleLR,
    LambdaLR).

    Args:
        optimizer: Any torch optimizer.
        value: LR per step, finite and >= 0, or a mapping from names of groups to such.

    Raises:
        ValueError: If an LR is negative or not finite, or a name is no group's.

    Example:
        >>> optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
        >>> set_learning_rate(optimizer, 0.01)
        >>> set_learning_rate(optimizer, {"group_0": -1.0})
        Traceback (most recent call last):
            ...
        ValueError: `0 <= lr < inf` must hold for group 'group_0', but got lr=-1.0.
        >>> learning_rates(optimizer)
        {'group_0': 0.01}
    """
    _fill(
        optimizer, {name: checked_lr(lr, name) for name, lr in _by_name(optimizer, value).items()}
    )


def scale_learning_rate(
    optimizer: torch.optim.Optimizer, factor: float | Mapping[str, float]
) -> None:
    """Multiply the LR of every group (ratios are kept), or of some by name: all of them, or none.

    Args:
        optimizer: Any torch optimizer.
        factor: Finite and > 0, or a mapping from names of groups to such.

    Raises:
        ValueError: If a factor is not finite or not > 0, a product is not finite, or a name is no
            group's.

    Example:
        >>> optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.5)
        >>> scale_learning_rate(optimizer, 0.5)
        >>> learning_rates(optimizer)
        {'group_0': 0.25}
    """
    factors = _by_name(optimizer, factor)
    for name, value in factors.items():
        if not 0.0 < number(value) < math.inf:
            raise ValueError(
                f"`0 < factor < inf` must hold for group {name!r}, but got factor={value!r}."
            )
    lrs = learning_rates(optimizer)
    _fill(optimizer, {name: checked_lr(lrs[name] * float(k), name) for name, k in factors.items()})


def _by_name(
    optimizer: torch.optim.Optimizer, value: float | Mapping[str, float]
) -> dict[str, float]:
    names = group_names(optimizer)
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    unknown = [name for name in value if name not in names]
    if unknown:
        raise ValueError(
            f"Names must be those of the optimizer's groups ({quoted(names)}), but got "
            f"{', '.join(map(repr, unknown))}."
        )
    return dict(value)


def _fill(optimizer: torch.optim.Optimizer, lrs: Mapping[str, float]) -> None:
    """Write checked LRs; one that its tensor cannot hold is refused before any is written."""
    members = [
        (group, owner, lrs[owner])
        for owner, group in zip(lr_groups(optimizer), optimizer.param_groups, strict=True)
        if owner in lrs
    ]
    for group, name, lr in members:
        kept = held_lr(group, name)
        if isinstance(kept, Tensor) and not math.isfinite(float(torch.tensor(lr).to(kept.dtype))):
            raise ValueError(
                f"The LR of group {name!r} must fit into its {kept.dtype}, but got lr={lr!r}."
            )
    for group, _, lr in members:
        if isinstance(group["lr"], Tensor):
            # In place: a captured graph or a compiled step reads this very tensor.
            with torch.no_grad():
                group["lr"].fill_(lr)
        else:
            group["lr"] = lr
