"""Layouts: splits of a model into groups that people use, for any torch optimizer.

Each makes a list of groups, as `lrfinder.param_groups` does, and `split_decay` takes such a list,
so they compose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lrfinder.groups import checked_lr, param_groups
from lrfinder.groups.patterns import quoted

# Of the parameters in all stacks: a ResNet's last stage has three quarters and is not its layers.
DOMINANT = 0.9


def layerwise_groups(
    model: nn.Module,
    decay: float = 0.75,
    *,
    lr: float = 1e-3,
    layers: str | None = None,
    **defaults: Any,
) -> list[dict[str, Any]]:
    """A group for each layer of a deep model, with LRs that decay from its head to its stem.

    Law: lr_l = lr decay^(L + 1 - l), with l = 0 for what comes before the L layers ("stem"), 1 .. L
    for the layers ("layer_1" ..) and L + 1 for what comes after ("head"). A range test with
    `groups="together"` keeps these ratios and finds the LR.

    Args:
        model: Any module with a stack of layers. Frozen parameters are left out.
        decay: Ratio of the LRs of neighbouring layers, 0 < decay <= 1.
        lr: Of the head, per step, finite and >= 0.
        layers: Name of the module whose children are the layers (`"encoder.layer"`); None for the
            one `nn.ModuleList` or `nn.Sequential` that there is, small ones (a head of two) aside.
        **defaults: Options of every group.

    Raises:
        ValueError: If an argument is out of its bounds, or it cannot be told what the layers are.

    Example:
        >>> blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model = nn.ModuleDict(
        ...     {"embed": nn.Linear(1, 2), "blocks": blocks, "out": nn.Linear(2, 1)}
        ... )
        >>> {group["name"]: group["lr"] for group in layerwise_groups(model, 0.5, lr=0.8)}
        {'stem': 0.1, 'layer_1': 0.2, 'layer_2': 0.4, 'head': 0.8}

    Source: Howard and Ruder, 2018, arXiv 1801.06146, section 3.2; as in BEiT, Bao et al., 2021,
    arXiv 2106.08254.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"`0 < decay <= 1` must hold, but got decay={decay!r}.")
    lr = checked_lr(lr, "head")
    stack = _stack_of(model, layers)
    children = [name for name, _ in model.get_submodule(stack).named_children()]
    prefixes = [f"{stack}.{name}." if stack else f"{name}." for name in children]
    owners: dict[nn.Parameter, int] = {}
    at = 0  # of what was passed in the order of registration, which is that of the forward pass
    for name, parameter in model.named_parameters():
        inside = [depth for depth, one in enumerate(prefixes, 1) if name.startswith(one)]
        if inside:
            at = len(prefixes) + 1
        owners[parameter] = inside[0] if inside else at
    depths = sorted({depth for parameter, depth in owners.items() if parameter.requires_grad})
    last = len(prefixes) + 1
    names = {depth: f"layer_{depth}" for depth in range(1, last)} | {0: "stem", last: "head"}
    spec = {
        names[depth]: {"params": _owned_by(owners, depth), "lr": lr * decay ** (last - depth)}
        for depth in depths
    }
    return param_groups(model, spec, **defaults)


def split_decay(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """No weight decay on biases and norms: each group in two, which are one LR group.

    Law: parameters with fewer than two dimensions (biases, the scales of norms) get
    `weight_decay=0.0`; the others keep their group's. Both param groups have the `"lr_group"` of
    the one that they were made of, so a range test, a search and a record see one learning rate.

    Args:
        groups: As `lrfinder.param_groups` makes them; one that has only one kind stays one.

    Returns:
        New dicts, in the order of the groups.

    Raises:
        ValueError: If a group has no "params".

    Example:
        >>> model = nn.Linear(2, 1)
        >>> groups = split_decay(param_groups(model, {"all": "*"}, lr=0.1, weight_decay=0.05))
        >>> [(g["name"], g["lr_group"], g["weight_decay"]) for g in groups]
        [('all', 'all', 0.05), ('all/no_decay', 'all', 0.0)]
    """
    made = []
    for index, group in enumerate(groups):
        name = group.get("name", f"group_{index}")
        if "params" not in group:
            raise ValueError(f'Group {name!r} must have "params", but has {quoted(group)}.')
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        flat = [parameter for parameter in params if parameter.dim() < 2]
        others = [parameter for parameter in params if parameter.dim() >= 2]
        common = {**group, "name": name, "lr_group": group.get("lr_group", name)}
        if others:
            made.append({**common, "params": others})
        if flat:
            own = f"{name}/no_decay" if others else name
            made.append({**common, "params": flat, "name": own, "weight_decay": 0.0})
    return made


def width_groups(
    model: nn.Module, base: nn.Module, *, lr: float = 1e-3, **defaults: Any
) -> list[dict[str, Any]]:
    """A group for each factor by which layers are wider than in a small model, for Adam under µP.

    Law: with n the fan-in of a weight matrix that is wider than in `base` on both sides, and n_0
    its fan-in there, lr = lr n_0 / n; all else (biases, norms, embeddings, the output layer, whose
    output µP multiplies by n_0 / n in the model) has lr. So an LR that a range test finds for a
    narrow model is one for a wide model too.

    Args:
        model: The one to train.
        base: The same architecture of the base width; it may be on the meta device.
        lr: At the base width, per step, finite and >= 0.
        **defaults: Options of every group.

    Returns:
        The group "width_x1" of what has lr, and "width_x<n / n_0>" for each factor.

    Raises:
        ValueError: If the two models have other parameters, or other numbers of dimensions.

    Example:
        >>> make = lambda width: nn.Sequential(nn.Linear(3, width), nn.Linear(width, width))
        >>> groups = width_groups(make(32), make(8), lr=0.01)
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('width_x1', 0.01, 3), ('width_x4', 0.0025, 1)]

    Source: Yang et al., 2022, arXiv 2203.03466, table 8.
    """
    shapes = {name: p.shape for name, p in base.named_parameters(remove_duplicate=False)}
    factors: dict[nn.Parameter, float] = {}
    own = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        own.add(name)
        shape = shapes.get(name)
        if shape is None or len(shape) != parameter.dim():
            raise ValueError(
                f"`base` must be of the model's architecture, but its {name!r} has shape "
                f"{None if shape is None else tuple(shape)} where the model's has "
                f"{tuple(parameter.shape)}."
            )
        wider = [n / m for n, m in zip(parameter.shape, shape, strict=True)]
        both = parameter.dim() >= 2 and wider[0] != 1 and wider[1] != 1
        factors.setdefault(parameter, wider[1] if both else 1.0)
    if missing := [name for name in shapes if name not in own]:
        raise ValueError(
            f"`base` must be of the model's architecture, but has {quoted(missing, 8)} besides."
        )
    lr = checked_lr(lr, "width_x1")
    found = sorted({factor for p, factor in factors.items() if p.requires_grad})
    spec = {
        f"width_x{factor:g}": {"params": _owned_by(factors, factor), "lr": lr / factor}
        for factor in found
    }
    return param_groups(model, spec, **defaults)


def _owned_by(
    owners: Mapping[nn.Parameter, float], owner: float
) -> Callable[[str, nn.Parameter], bool]:
    return lambda name, parameter: owners[parameter] == owner


def _stack_of(model: nn.Module, layers: str | None) -> str:
    """The name of the module whose children are the layers."""
    modules = dict(model.named_modules())
    if layers is not None:
        if layers not in modules or len(list(modules[layers].children())) < 2:
            near = [name for name, module in modules.items() if _is_stack(module)]
            raise ValueError(
                f"`layers` must name a module with at least two children, but got {layers!r}. "
                f"Stacks of this model: {quoted(near, 8) or 'none'}."
            )
        return layers
    sizes: dict[str, int] = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in modules.items()
        if _is_stack(module) and not any(_is_stack(modules[n]) for n in _above(name))
    }
    largest = [name for name, size in sizes.items() if size == max(sizes.values())]
    if not sizes or max(sizes.values()) < DOMINANT * sum(sizes.values()) or len(largest) != 1:
        raise ValueError(
            "The layers must be the children of one nn.ModuleList or nn.Sequential, but this model "
            f"has {quoted(sizes, 8) or 'none'}. Name it: `layers='encoder.layer'`."
        )
    return largest[0]


def _is_stack(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) >= 2


def _above(name: str) -> list[str]:
    """The names of the modules around one: `a.b.c` -> `a.b`, `a` and the model itself."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))] if name else []
