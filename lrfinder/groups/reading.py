"""Reading: what the groups of an optimizer are called, their learning rates, and which share one.

A learning rate belongs to a group. Where several param groups must differ in something else (most
often the weight decay), they say `"lr_group": <name>` and are one group to all that is here:
tested, set, scheduled and recorded as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def param_group_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The name of each param group, in the optimizer's order; `group_<i>` where it has none.

    Raises:
        TypeError: If it is no optimizer.
        ValueError: If the optimizer has no parameters, or two groups share a name.
    """
    given: Any = optimizer  # which may be anything, whatever its annotation says
    if not hasattr(given, "param_groups"):
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer, but got {type(given).__name__}. A Trainer "
            "of Transformers has none before `trainer.create_optimizer()`; Lightning's wrapper "
            "keeps it in `.optimizer`."
        )
    groups = optimizer.param_groups
    if not any(group["params"] for group in groups):
        raise ValueError(
            f"The optimizer must hold at least one parameter, but {type(optimizer).__name__} has "
            f"{len(groups)} param group(s) and no parameter."
        )
    names = [group.get("name", f"group_{i}") for i, group in enumerate(groups)]
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"The names of param groups must be different strings, but got {names}. "
            'Set `optimizer.param_groups[i]["name"]`.'
        )
    return names


def lr_groups(optimizer: torch.optim.Optimizer) -> list[str]:
    """The group that each param group's learning rate belongs to: its "lr_group", else its own name.

    One name for each entry of `optimizer.param_groups`, where `group_names` has each name once.

    Raises:
        TypeError: If it is no optimizer.
        ValueError: If the optimizer has no parameters, or a name is no string or taken.

    Example:
        >>> weight, bias, head = (torch.zeros(2, requires_grad=True) for _ in range(3))
        >>> groups = [
        ...     {"params": [weight], "name": "decay", "lr_group": "body", "weight_decay": 0.1},
        ...     {"params": [bias], "name": "no decay", "lr_group": "body"},
        ...     {"params": [head], "name": "head"},
        ... ]
        >>> lr_groups(torch.optim.SGD(groups, lr=0.1))
        ['body', 'body', 'head']
    """
    names = param_group_names(optimizer)
    owners = [g.get("lr_group", n) for n, g in zip(names, optimizer.param_groups, strict=True)]
    for name, owner, group in zip(names, owners, optimizer.param_groups, strict=True):
        if not isinstance(owner, str) or not owner:
            raise ValueError(
                f'The "lr_group" of group {name!r} must be a name, but got {owner!r}. Leave it '
                "out where the group has an LR of its own."
            )
        if "lr_group" not in group and owners.count(owner) > 1:
            raise ValueError(
                f"The name of an LR group must not be that of a param group outside it, but "
                f'{owner!r} is both. Set `"lr_group": {owner!r}` there too, or rename one.'
            )
    return owners


def group_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimizer's groups, in its order; `group_<i>` where one has none.

    Param groups with one "lr_group" are one group, of that name.

    Raises:
        TypeError: If it is no optimizer.
        ValueError: If the optimizer has no parameters, or two groups share a name.

    Example:
        >>> weight, bias = (torch.zeros(2, requires_grad=True) for _ in range(2))
        >>> groups = [
        ...     {"params": [weight], "name": "decay", "lr_group": "body", "weight_decay": 0.1},
        ...     {"params": [bias], "name": "no decay", "lr_group": "body"},
        ... ]
        >>> group_names(torch.optim.SGD(groups, lr=0.1))
        ['body']
    """
    return list(dict.fromkeys(lr_groups(optimizer)))


def shared_lrs(
    param_groups: Sequence[dict[str, Any]], owners: Sequence[str]
) -> list[float | Tensor]:
    """The LR of each group, as it is held, in the order of `group_names`.

    Args:
        param_groups: Of the optimizer.
        owners: What `lr_groups` returned.

    Raises:
        ValueError: If param groups of one LR group have different LRs. One that lies on an
            accelerator is not compared: that would wait for the device.
    """
    found: dict[str, float | Tensor] = {}
    for owner, group in zip(owners, param_groups, strict=True):
        lr = group["lr"]
        first = found.setdefault(owner, lr)
        away = any(isinstance(one, Tensor) and one.device.type != "cpu" for one in (first, lr))
        if first is not lr and not away and float(first) != float(lr):
            raise ValueError(
                f"The param groups of one LR group must have one LR, but those of {owner!r} have "
                f"{float(first):g} and {float(lr):g}. Set both, or give each an LR group of its own."
            )
    return list(found.values())


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The LR of each group, by name. An LR that is a tensor is read, which waits for its device.

    Raises:
        TypeError: If it is no optimizer.
        ValueError: If the optimizer has no parameters or no LRs, two groups share a name, or the
            param groups of one LR group differ in their LR.

    Example:
        >>> from torch import nn
        >>> learning_rates(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))
        {'group_0': 0.1}
    """
    owners = lr_groups(optimizer)
    for name, group in zip(owners, optimizer.param_groups, strict=True):
        held_lr(group, name)
    lrs = shared_lrs(optimizer.param_groups, owners)
    return {name: float(lr) for name, lr in zip(dict.fromkeys(owners), lrs, strict=True)}


def held_lr(group: Mapping[str, Any], name: str) -> Any:
    """The LR of a param group, as it is held."""
    if "lr" not in group or (isinstance(group["lr"], Tensor) and group["lr"].numel() != 1):
        raise ValueError(
            f"Group {name!r} must have an 'lr' that is one number, but got {group.get('lr')!r}."
        )
    return group["lr"]
