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
from torch.nn.parameter import is_lazy

from lrfinder.groups.names import group_names, lr_groups, param_group_names, shared_lrs
from lrfinder.groups.patterns import (
    SHOWN,
    GroupSpec,
    matches,
    names_of_parameters,
    quoted,
    split_entry,
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

# LinearLR(end_factor=0) and its like end at some -1e-18 instead of 0: that much below 0 is
# rounding and no mistake.
ROUNDING = 1e-12


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


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The LR of each group, by name. An LR that is a tensor is read, which waits for its device.

    Raises:
        TypeError: If it is no optimizer.
        ValueError: If the optimizer has no parameters or no LRs, two groups share a name, or the
            param groups of one LR group differ in their LR.

    Example:
        >>> learning_rates(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))
        {'group_0': 0.1}
    """
    owners = lr_groups(optimizer)
    for name, group in zip(owners, optimizer.param_groups, strict=True):
        _lr(group, name)
    lrs = shared_lrs(optimizer.param_groups, owners)
    return {name: float(lr) for name, lr in zip(dict.fromkeys(owners), lrs, strict=True)}


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
        if not 0.0 < _number(value) < math.inf:
            raise ValueError(
                f"`0 < factor < inf` must hold for group {name!r}, but got factor={value!r}."
            )
    lrs = learning_rates(optimizer)
    _fill(optimizer, {name: checked_lr(lrs[name] * float(k), name) for name, k in factors.items()})


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that cannot be trained with: one built elsewhere may be anything.

    Raises:
        TypeError: If it is no optimizer.
        ValueError: If it has no parameters or no LRs, two groups share a name or a parameter, an
            LR is negative or not finite (waits for the device where an LR is a tensor), or a
            parameter has no values yet (meta device, lazy module) or is quantised.
    """
    for name, lr in learning_rates(optimizer).items():
        if not -ROUNDING <= lr < math.inf:
            checked_lr(lr, name)
    owners: dict[int, str] = {}
    for name, group in zip(param_group_names(optimizer), optimizer.param_groups, strict=True):
        for index, parameter in enumerate(group["params"]):
            _check_parameter(parameter, f"number {index} of group {name!r}")
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                raise ValueError(
                    f"A parameter must be in one group, but number {index} of group {name!r} "
                    f"(shape {tuple(parameter.shape)}) is in group {owner!r} too."
                )


def _check_parameter(parameter: Tensor, place: str) -> None:
    if is_lazy(parameter):
        raise ValueError(
            f"A parameter must have a shape, but {place} is still lazy. Run the model on one batch "
            "before the optimizer is made."
        )
    if parameter.device.type == "meta":
        raise ValueError(
            f"A parameter must have values, but {place} (shape {tuple(parameter.shape)}) is on the "
            "meta device. Load the weights first (`model.to_empty(device=...)`, then initialise "
            "them), and make the optimizer of what was loaded."
        )
    if parameter.is_quantized or not (parameter.is_floating_point() or parameter.is_complex()):
        raise ValueError(
            f"A parameter must be of a floating type to be trained, but {place} is "
            f"{parameter.dtype}: it is quantised. Freeze it (`requires_grad=False`), leave it out "
            "of the optimizer, and train an adapter (LoRA) or the weights before quantisation."
        )


def checked_lr(value: Any, name: str) -> float:
    """The LR of a group as a float.

    Raises:
        ValueError: If it is not a number, negative or not finite.
    """
    number = _number(value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"`0 <= lr < inf` must hold for group {name!r}, but got lr={value!r}.")
    return number


def _number(value: Any) -> float:
    """As a float; NaN, which no bound admits, for what is not a number."""
    if isinstance(value, (bool, str)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


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


def _lr(group: Mapping[str, Any], name: str) -> Any:
    if "lr" not in group or (isinstance(group["lr"], Tensor) and group["lr"].numel() != 1):
        raise ValueError(
            f"Group {name!r} must have an 'lr' that is one number, but got {group.get('lr')!r}."
        )
    return group["lr"]


def _fill(optimizer: torch.optim.Optimizer, lrs: Mapping[str, float]) -> None:
    """Write checked LRs; one that its tensor cannot hold is refused before any is written."""
    members = [
        (group, owner, lrs[owner])
        for owner, group in zip(lr_groups(optimizer), optimizer.param_groups, strict=True)
        if owner in lrs
    ]
    for group, name, lr in members:
        kept = _lr(group, name)
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
