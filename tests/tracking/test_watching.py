from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfinder.tracking.watching import WATCHABLE, Watch


def two_groups(kind: Any = torch.optim.SGD, **options: Any) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    groups = [
        {
            "params": [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(2)],
            "name": name,
            "lr": lr,
        }
        for name, lr in (("body", 0.1), ("head", 0.01))
    ]
    return kind(groups, **options)


def set_gradients(optimizer: torch.optim.Optimizer, size: float) -> None:
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            tensor.grad = torch.full_like(tensor, size)


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@settings(deadline=None)
@given(st.floats(1e-6, 1e6))
def test_norms_are_those_of_the_whole_group(size: float) -> None:
    optimizer = two_groups()
    watch = Watch(optimizer, every=1)
    before = {g["name"]: flat(g["params"]).clone() for g in optimizer.param_groups}
    set_gradients(optimizer, size)
    optimizer.step()
    found = watch.take()
    for group in optimizer.param_groups:
        name = group["name"]
        change = flat(group["params"]) - before[name]
        assert float(found[f"grad_norm/{name}"]) == pytest.approx(size * math.sqrt(12), rel=1e-5)
        ratio = float(change.norm() / before[name].norm())
        assert float(found[f"update_ratio/{name}"]) == pytest.approx(ratio, rel=1e-5)
        assert found[f"momentum/{name}"] == 0.0
        assert found[f"weight_decay/{name}"] == 0.0


def test_only_each_so_many_steps_is_measured() -> None:
    optimizer = two_groups(torch.optim.AdamW, betas=(0.8, 0.9), weight_decay=0.5)
    watch = Watch(optimizer, every=3, what=("momentum", "weight_decay"))
    taken = []
    for _ in range(7):
        set_gradients(optimizer, 1.0)
        optimizer.step()
        taken.append(watch.take())
    assert [bool(found) for found in taken] == [True, False, False, True, False, False, True]
    assert taken[0] == {
        "momentum/body": 0.8, "weight_decay/body": 0.5,
        "momentum/head": 0.8, "weight_decay/head": 0.5,
    }  # fmt: skip
    watch.remove()
    optimizer.step()
    optimizer.step()
    optimizer.step()
    assert watch.take() == {}


def test_groups_without_gradients_have_no_norm_and_bad_ones_show() -> None:
    optimizer = two_groups()
    watch = Watch(optimizer, every=1, what=("grad_norm", "update_ratio"))
    set_gradients(optimizer, math.inf)
    for tensor in optimizer.param_groups[1]["params"]:
        tensor.grad = None
    optimizer.step()
    found = {name: float(value) for name, value in watch.take().items()}
    assert found.keys() == {"grad_norm/body", "update_ratio/body", "update_ratio/head"}
    assert found["grad_norm/body"] == math.inf
    assert not math.isfinite(found["update_ratio/body"])
    assert found["update_ratio/head"] == 0.0


def test_watching_changes_no_training() -> None:
    ends = []
    for watched in (False, True):
        optimizer = two_groups(torch.optim.Adam)
        if watched:
            Watch(optimizer, every=2)
        for step in range(5):
            set_gradients(optimizer, float(step + 1))
            optimizer.step()
        ends.append(flat([t for group in optimizer.param_groups for t in group["params"]]))
    assert torch.equal(*ends)


def test_bad_arguments_are_said() -> None:
    with pytest.raises(ValueError, match="`every >= 1` must hold, but got every=0"):
        Watch(two_groups(), every=0)
    for what in (("speed",), ()):
        with pytest.raises(ValueError, match=f"must be of {', '.join(WATCHABLE)}, but got"):
            Watch(two_groups(), what=what)
