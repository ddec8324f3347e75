"""Groups partition the trainable parameters; LRs change all together or not at all."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lrfinder.groups import (
    check_optimizer,
    checked_lr,
    group_names,
    learning_rates,
    param_groups,
    scale_learning_rate,
    set_learning_rate,
)

NAMES = [f"{part}.{i}.{kind}" for part in "ab" for i in (0, 1) for kind in ("weight", "bias")]


def two_parts() -> nn.ModuleDict:
    return nn.ModuleDict({part: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for part in "ab"})


def grouped(model: nn.Module, spec: Any, **defaults: Any) -> dict[str, list[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = param_groups(model, spec, **defaults)
    return {group["name"]: [names[p] for p in group["params"]] for group in groups}


def two_groups(**options: Any) -> torch.optim.Optimizer:
    groups = param_groups(two_parts(), {"a": "a.*", "b": {"params": "b.*", "lr": 0.2}}, lr=0.1)
    return torch.optim.SGD(groups, **options)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"all": "*"}, {"all": NAMES}),
        ({"b": "b.*", "a": "a.*"}, {"b": NAMES[4:], "a": NAMES[:4]}),
        ({"bias": "*.bias", "rest": "*"}, {"bias": NAMES[1::2], "rest": NAMES[::2]}),
        ({"some": ["b.1.*", "a.0.*"], "rest": "*"},
         {"some": NAMES[:2] + NAMES[6:], "rest": NAMES[2:6]}),
        ({"x": ("a.*", "a.0.*"), "y": "*"}, {"x": NAMES[:4], "y": NAMES[4:]}),
        ({"vector": lambda name, p: p.ndim == 1, "b": lambda name, p: name[0] == "b", "rest": "*"},
         {"vector": NAMES[1::2], "b": NAMES[4::2], "rest": NAMES[:4:2]}),
        ({"first": "?.0.*", "second": "[ab].1.*"},
         {"first": NAMES[0:2] + NAMES[4:6], "second": NAMES[2:4] + NAMES[6:8]}),
    ],
)  # fmt: skip
def test_the_first_match_wins(spec: Any, expected: dict[str, list[str]]) -> None:
    assert grouped(two_parts(), spec) == expected
    assert list(grouped(two_parts(), spec)) == list(expected)


def test_defaults_go_into_groups_that_set_none_of_their_own() -> None:
    groups = param_groups(
        two_parts(),
        {"a": "a.*", "b": {"params": "b.*", "lr": 1, "nesterov": True}},
        lr=0.1,
        momentum=0.9,
    )
    options = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    assert options == [
        {"name": "a", "lr": 0.1, "momentum": 0.9},
        {"name": "b", "lr": 1.0, "momentum": 0.9, "nesterov": True},
    ]
    assert "lr" not in param_groups(two_parts(), {"all": "*"})[0]


def test_a_tensor_lr_is_kept() -> None:
    lr = torch.tensor(0.1)
    assert param_groups(two_parts(), {"all": "*"}, lr=lr)[0]["lr"] is lr


def test_the_spec_is_not_changed() -> None:
    entry = {"params": "*", "lr": 1}
    param_groups(two_parts(), {"all": entry})
    assert entry == {"params": "*", "lr": 1}


def test_frozen_parameters_are_left_out() -> None:
    model = two_parts()
    model["a"].requires_grad_(False)
    assert grouped(model, {"weight": "*.weight", "rest": "*"}) == {
        "weight": NAMES[4::2],
        "rest": NAMES[5::2],
    }


def test_a_tied_parameter_has_each_of_its_names() -> None:
    model = two_parts()
    model["b"][1].weight = model["a"][0].weight
    groups = param_groups(model, {"head": "b.1.weight", "rest": "*"})
    assert groups[0]["params"] == [model["a"][0].weight]
    assert len(groups[1]["params"]) == 6


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 1).requires_grad_(False)


FIRST_EIGHT = ", ".join(map(repr, NAMES))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "`spec` must be a mapping that names at least one group, but got {}."),
        (["a.*"], "`spec` must be a mapping that names at least one group, but got ['a.*']."),
        ({"": "*"}, "The name of a group must be a string that is not empty, but got ''."),
        ({0: "*"}, "The name of a group must be a string that is not empty, but got 0."),
        (
            {"a": "a.*"},
            f"Each trainable parameter must be in a group, but these are in none: "
            f"{', '.join(map(repr, NAMES[4:]))}. "
            "Add a group that matches them (a last group '*' takes the rest), or freeze them.",
        ),
        (
            {"a": "a.2.*", "rest": "*"},
            "The pattern 'a.2.*' of group 'a' must match a parameter, but matches none of the "
            "model's 8. "
            "Near misses: 'a.0.weight', 'a.0.bias', 'a.1.weight', 'a.1.bias'.",
        ),
        (
            {"a": "a", "rest": "*"},
            "The pattern 'a' of group 'a' must match a parameter, but matches none of the model's "
            "8. "
            "Near misses: 'a.0.weight', 'a.0.bias', 'a.1.weight', 'a.1.bias'.",
        ),
        (
            {"a": ["a.*", "zzzzzz.*"], "rest": "*"},
            "The pattern 'zzzzzz.*' of group 'a' must match a parameter, but matches none of the "
            "model's 8. "
            f"It has {FIRST_EIGHT}.",
        ),
        (
            {"none": lambda name, p: False, "rest": "*"},
            "The predicate of group 'none' must match a parameter, but matches none of the "
            "model's 8. "
            f"It has {FIRST_EIGHT}.",
        ),
        (
            {"a": "a.*", "again": "a.0.*", "rest": "*"},
            "Group 'again' must match a trainable parameter that no earlier group has, but what "
            "it matches is "
            "in an earlier group: 'a.0.weight (a)', 'a.0.bias (a)'. The first match wins: put the "
            "narrower pattern "
            "first, or leave the group out.",
        ),
        (
            {"a": "a.*", "b": {"lr": 0.1}},
            "Group 'b' must be a pattern, or {\"params\": pattern, <options>} without another "
            "\"name\", but got "
            "{'lr': 0.1}.",
        ),
        (
            {"b": {"params": "*", "name": "c"}},
            "Group 'b' must be a pattern, or {\"params\": pattern, <options>} without another "
            "\"name\", but got "
            "{'params': '*', 'name': 'c'}.",
        ),
        (
            {"a": 3},
            "The pattern of group 'a' must be a glob, a list of globs or a function (name, "
            "parameter) -> bool, "
            "but got 3.",
        ),
        (
            {"a": []},
            "The pattern of group 'a' must be a glob, a list of globs or a function (name, "
            "parameter) -> bool, "
            "but got [].",
        ),
        (
            {"a": {"params": "*", "lr": -0.1}},
            "`0 <= lr < inf` must hold for group 'a', but got lr=-0.1.",
        ),
        (
            {"a": {"params": "*", "lr": math.nan}},
            "`0 <= lr < inf` must hold for group 'a', but got lr=nan.",
        ),
    ],
)  # fmt: skip
def test_bad_specs(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        param_groups(two_parts(), spec)


def test_bad_default_lr() -> None:
    with pytest.raises(ValueError, match=re.escape("must hold for group 'a', but got lr='0.1'.")):
        param_groups(two_parts(), {"a": "*"}, lr="0.1")


def test_a_pattern_of_frozen_parameters_alone() -> None:
    model = two_parts()
    model["a"][0].requires_grad_(False)
    message = (
        "Group 'first' must match a trainable parameter that no earlier group has, but what it "
        "matches is frozen: "
        "'a.0.weight', 'a.0.bias'. The first match wins: put the narrower pattern first, or leave "
        "the group out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        param_groups(model, {"first": "a.0.*", "rest": "*"})
    with pytest.raises(
        ValueError, match=r"is frozen: 'a.0.bias'; in an earlier group: 'a.1.bias \(rest\)'\."
    ):
        param_groups(model, {"rest": ["a.1.*", "b.*"], "bias": "a.*.bias"})


def test_a_model_with_nothing_to_train() -> None:
    message = (
        "The model must have a trainable parameter, but none of its 2 has requires_grad=True."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        param_groups(Frozen(), {"all": "*"})


def test_long_lists_of_names_are_cut() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)])
    with pytest.raises(ValueError, match=r"'3\.weight', '3\.bias' and 10 more\. Add a group"):
        param_groups(model, {"last": "9.*"})


@settings(max_examples=60, deadline=None)
@given(
    owners=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    frozen=st.lists(st.booleans(), min_size=8, max_size=8),
    order=st.permutations(range(4)),
)
def test_groups_partition_the_trainable_parameters(
    owners: list[int], frozen: list[bool], order: list[int]
) -> None:
    model = two_parts()
    for (_, parameter), is_frozen in zip(model.named_parameters(), frozen, strict=True):
        parameter.requires_grad_(not is_frozen)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    spec = {
        f"g{g}": [name for name, owner in zip(NAMES, owners, strict=True) if owner == g]
        for g in order
    }
    spec = {name: globs for name, globs in spec.items() if set(globs) & set(trainable)}
    if not spec:
        return
    got = grouped(model, spec)
    assert list(got) == list(spec)
    assert sorted(name for names in got.values() for name in names) == sorted(trainable)
    assert all(set(got[name]) <= set(spec[name]) for name in spec)


# -- learning rates -----------------------------------------------------------------------------


def test_groups_of_an_optimizer_built_elsewhere() -> None:
    optimizer = torch.optim.Adam(nn.Linear(2, 1).parameters(), lr=0.3)
    assert group_names(optimizer) == ["group_0"]
    assert learning_rates(optimizer) == {"group_0": 0.3}
    optimizer = two_groups()
    del optimizer.param_groups[1]["name"]
    assert learning_rates(optimizer) == {"a": 0.1, "group_1": 0.2}


def test_setting_and_scaling_change_the_lr_alone() -> None:
    optimizer = two_groups(momentum=0.9, weight_decay=1e-3)
    sum(p.sum() for group in optimizer.param_groups for p in group["params"]).backward()
    optimizer.step()
    before = optimizer.state_dict()
    set_learning_rate(optimizer, {"b": 0.5})
    assert learning_rates(optimizer) == {"a": 0.1, "b": 0.5}
    scale_learning_rate(optimizer, 0.1)
    assert learning_rates(optimizer) == pytest.approx({"a": 0.01, "b": 0.05})
    scale_learning_rate(optimizer, {"a": 10})
    set_learning_rate(optimizer, 0)
    assert learning_rates(optimizer) == {"a": 0.0, "b": 0.0}
    after = optimizer.state_dict()
    assert all(
        after["state"][i]["momentum_buffer"] is before["state"][i]["momentum_buffer"]
        for i in range(8)
    )
    for old, new in zip(before["param_groups"], after["param_groups"], strict=True):
        assert {**old, "lr": 0.0} == new


def test_each_group_steps_with_its_own_lr() -> None:
    model = two_parts()
    optimizer = torch.optim.SGD(
        param_groups(model, {"a": "a.*", "b": {"params": "b.*", "lr": 1e-2}}, lr=1e-5)
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        lr = 1e-5 if name.startswith("a") else 1e-2
        assert torch.equal(p.detach(), before[name] - lr)


@pytest.mark.parametrize("value", [0.25, 1, torch.tensor(0.25)])
def test_lr_is_stored_as_a_float(value: Any) -> None:
    optimizer = two_groups()
    set_learning_rate(optimizer, value)
    assert [type(group["lr"]) for group in optimizer.param_groups] == [float, float]
    assert learning_rates(optimizer) == {"a": float(value), "b": float(value)}


def test_a_tensor_lr_is_filled_in_place() -> None:
    optimizer = torch.optim.Adam(nn.Linear(2, 1).parameters(), lr=torch.tensor(0.5), foreach=False)
    kept = optimizer.param_groups[0]["lr"]
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is kept
    assert learning_rates(optimizer) == {"group_0": 0.25}
    scale_learning_rate(optimizer, 0.5)
    assert float(kept) == 0.125
    message = "The LR of group 'group_0' must fit into its torch.float32, but got lr=1e+300."
    with pytest.raises(ValueError, match=re.escape(message)):
        set_learning_rate(optimizer, 1e300)
    assert float(kept) == 0.125


BAD = [-1.0, math.nan, math.inf, -math.inf, "0.1", True, None, [0.1], torch.ones(2)]


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("change", [set_learning_rate, scale_learning_rate])
def test_all_or_nothing(change: Any, bad: Any) -> None:
    optimizer = two_groups()
    what = "lr < inf" if change is set_learning_rate else "factor < inf"
    for value in ({"a": 0.5, "b": bad}, {"a": bad, "b": 0.5}, {"b": 0.5, "c": 0.5}):
        known = "c" not in value
        with pytest.raises(ValueError, match=what if known else "Names must be"):
            change(optimizer, value)
        assert learning_rates(optimizer) == {"a": 0.1, "b": 0.2}
    with pytest.raises(ValueError, match=what):
        change(optimizer, bad)
    assert learning_rates(optimizer) == {"a": 0.1, "b": 0.2}


@settings(max_examples=50, deadline=None)
@given(
    lrs=st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=2),
    factor=st.floats(1e-6, 1e6),
)
def test_scaling_keeps_ratios(lrs: list[float], factor: float) -> None:
    optimizer = two_groups()
    set_learning_rate(optimizer, dict(zip("ab", lrs, strict=True)))
    scale_learning_rate(optimizer, factor)
    scaled = learning_rates(optimizer)
    assert scaled == {"a": lrs[0] * factor, "b": lrs[1] * factor}
    assert scaled["a"] / scaled["b"] == pytest.approx(lrs[0] / lrs[1], rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda opt: set_learning_rate(opt, {"c": 0.1}),
            "Names must be those of the optimizer's groups ('a', 'b'), but got 'c'.",
        ),
        (
            lambda opt: set_learning_rate(opt, -1),
            "`0 <= lr < inf` must hold for group 'a', but got lr=-1.",
        ),
        (
            lambda opt: scale_learning_rate(opt, 0.0),
            "`0 < factor < inf` must hold for group 'a', but got factor=0.0.",
        ),
        (
            lambda opt: scale_learning_rate(opt, {"b": 1e308 * 10}),
            "`0 < factor < inf` must hold for group 'b', but got factor=inf.",
        ),
    ],
)
def test_messages(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(two_groups())


def test_a_product_that_is_not_finite() -> None:
    optimizer = two_groups()
    set_learning_rate(optimizer, {"b": 1e300})
    with pytest.raises(ValueError, match=re.escape("must hold for group 'b', but got lr=inf.")):
        scale_learning_rate(optimizer, 1e300)
    assert learning_rates(optimizer) == {"a": 0.1, "b": 1e300}


def test_checked_lr() -> None:
    assert checked_lr(1, "a") == 1.0


# -- optimizers built elsewhere -----------------------------------------------------------------


class Empty(torch.optim.Optimizer):
    def __init__(self) -> None:
        self.param_groups = []
        self.defaults = {}


class WithoutLR(torch.optim.Optimizer):
    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1).parameters(), {})


def broken(change: Any) -> torch.optim.Optimizer:
    optimizer = two_groups()
    change(optimizer.param_groups)
    return optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Empty, "The optimizer must hold at least one parameter, but Empty has 0 param "
         "group(s) and no parameter."),
        (
            lambda: broken(lambda groups: [group["params"].clear() for group in groups]),
            "The optimizer must hold at least one parameter, but SGD has 2 param group(s) and no "
            "parameter.",
        ),
        (
            lambda: broken(lambda groups: groups[1].update(name="a")),
            "The names of param groups must be different strings, but got ['a', 'a']. Set "
            '`optimizer.param_groups[i]["name"]`.',
        ),
        (
            lambda: broken(lambda groups: groups[1].update(name=7)),
            "The names of param groups must be different strings, but got ['a', 7]. Set "
            '`optimizer.param_groups[i]["name"]`.',
        ),
        (
            lambda: broken(lambda groups: groups[1].update(lr=math.nan)),
            "`0 <= lr < inf` must hold for group 'b', but got lr=nan.",
        ),
        (
            lambda: broken(lambda groups: groups[0].update(lr=-0.5)),
            "`0 <= lr < inf` must hold for group 'a', but got lr=-0.5.",
        ),
        (
            lambda: broken(lambda groups: groups[0].update(lr=torch.ones(2))),
            "Group 'a' must have an 'lr' that is one number, but got tensor([1., 1.]).",
        ),
        (WithoutLR, "Group 'group_0' must have an 'lr' that is one number, but got None."),
        (
            lambda: broken(lambda groups: groups[1]["params"].append(groups[0]["params"][1])),
            "A parameter must be in one group, but number 4 of group 'b' (shape (2,)) is in group "
            "'a' too.",
        ),
    ],
)  # fmt: skip
def test_check_optimizer(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_optimizer(make())


def test_check_optimizer_takes_good_ones() -> None:
    check_optimizer(two_groups())
    # Where LinearLR(end_factor=0) ends: 0 but for rounding.
    check_optimizer(broken(lambda groups: groups[0].update(lr=-1e-18)))
    # torch allows a group without parameters beside others.
    check_optimizer(broken(lambda groups: groups[0]["params"].clear()))
