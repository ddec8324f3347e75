"""Skeletons: the module that is called for all replicas, and where its tensors are put."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrfinder.engines.fitting import Unfit, first_line
from lrfinder.engines.folding import folded
from lrfinder.stepping import Replica

Place = tuple[nn.Module, str]


def trained_names(replica: Replica) -> list[str]:
    """Names of the parameters that the optimizer trains; raises an Unfit where they are not the model's own."""
    names = {id(p): name for name, p in replica.model.named_parameters()}
    for parameter in replica.parameters:
        if id(parameter) not in names:
            raise Unfit("the optimizer holds a tensor that is no parameter of the model")
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise Unfit(f"the parameter {names[id(parameter)]!r} has hooks on its gradient")
    return [names[id(p)] for p in replica.parameters if p.requires_grad]


# Attributes that each module has, most of which are empty.
_OWN = frozenset(vars(nn.Module()))
# How a class may say that it is copied in another way.
_WAYS = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__",
         "__getnewargs__", "__getnewargs_ex__", "__slots__")  # fmt: skip
_ATOMS = (bool, int, float, str, type(None))


def twin_of(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What `copy.deepcopy(model, memo)` gives, in a quarter of the time."""
    if id(model) in memo:
        return memo[id(model)]  # type: ignore[no-any-return]
    kind = type(model)
    own_ways = [getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in _WAYS]
    if any(own_ways) or kind in copyreg.dispatch_table or vars(model).get("_compiled_call_impl"):
        return copy.deepcopy(model, memo)
    memo[id(model)] = made = kind.__new__(kind)
    for key, value in vars(model).items():
        if key == "_modules":
            value = {
                name: None if child is None else twin_of(child, memo)
                for name, child in value.items()
            }
        elif key in _OWN and not value and type(value) in (dict, OrderedDict):
            value = type(value)()
        elif type(value) not in _ATOMS:
            value = copy.deepcopy(value, memo)
        vars(made)[key] = value
    return made


def skeleton_of(
    model: nn.Module, trained: set[str], changing: set[str], *, fold: bool | None
) -> nn.Module:
    """The model that is called for all: the shared tensors are the model's own, without gradient.

    `fold` says whether also convolutions are folded; None folds nothing.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if name not in trained:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    memo |= {id(b): b for name, b in model.named_buffers() if name not in changing}
    try:
        made = twin_of(model, memo)
    except Exception as error:  # whatever a module's own state raises
        raise Unfit(f"the model cannot be copied: {first_line(error)}") from error
    return made if fold is None else folded(made, convolutions=fold)


def places_of(model: nn.Module, skeleton: nn.Module) -> dict[int, list[Place]]:
    """Tensor of the model -> where the skeleton holds it; a tied one is in several places."""
    places: dict[int, list[Place]] = {}
    for module, twin in zip(model.modules(), skeleton.modules(), strict=True):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((twin, key))
    return places


def put(places: Sequence[Sequence[Place]], tensors: Sequence[Tensor]) -> None:
    """Put each tensor in all its places."""
    for each, tensor in zip(places, tensors, strict=True):
        for module, key in each:
            held: dict[str, Any] = (
                module._parameters if key in module._parameters else module._buffers
            )
            held[key] = tensor


def attributes_of(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that modules hold beside their parameters and buffers."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def rows_like(tensor: Tensor, count: int) -> Tensor:
    """Room for so many; each row lies in memory as the tensor does, in channels_last for instance."""
    twin = torch.empty_like(tensor)  # dense, with the order of the tensor's dimensions
    strides = (max(twin.numel(), 1), *twin.stride())
    shape = (count, *tensor.shape)
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)
