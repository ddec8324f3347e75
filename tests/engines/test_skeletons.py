"""Tests of skeletons: a copy of a model is what `copy.deepcopy` makes of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrfinder.engines.skeletons import twin_of
from tests.engines.models import MODELS, batches, make


class Odd(nn.Module):
    """Holds a module twice, one outside of its registry, and a table that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.again = self.one
        self.nothing = None
        self.table: dict[str, int] = {}
        self.hidden = [self.one, nn.Linear(1, 1)]
        self.inner = nn.ReLU()
        self.inner.table = self.table  # type: ignore[assignment]
        self.register_buffer("count", torch.zeros(()), persistent=False)


class CopiedInItsOwnWay(nn.Linear):
    def __deepcopy__(self, memo: Any) -> CopiedInItsOwnWay:
        made = CopiedInItsOwnWay(1, 1)
        memo[id(self)] = made
        return made


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_computes_the_same_with_tensors_of_its_own(name: str) -> None:
    model = make(name).eval()
    made, expected = twin_of(model, {}), copy.deepcopy(model)
    assert repr(made) == repr(expected)
    assert [vars(m).keys() for m in made.modules()] == [vars(m).keys() for m in expected.modules()]
    assert made.state_dict().keys() == model.state_dict().keys()
    pointers = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not pointers & {tensor.data_ptr() for tensor in (*made.parameters(), *made.buffers())}
    inputs = batches(name)[0][0]
    assert torch.equal(made(inputs), model(inputs))


def test_what_is_one_thing_stays_one() -> None:
    model = Odd()
    model.one.register_forward_hook(print)
    made: Any = twin_of(model, {})
    assert made.one is made.again is made.hidden[0] is not model.one
    assert made.table is made.inner.table is not model.table
    assert made.nothing is None
    assert list(made.one._forward_hooks.values()) == [print]
    assert made.one._forward_hooks is not model.one._forward_hooks
    assert made._non_persistent_buffers_set == {"count"}
    assert made.hidden[1] is not model.hidden[1]


def test_what_is_kept_is_kept_and_what_is_copied_in_a_way_of_its_own_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), CopiedInItsOwnWay(2, 2))
    memo: dict[int, Tensor] = {id(p): p for p in model[0].parameters()}
    made = twin_of(model, memo)
    assert made[0].weight is model[0].weight  # type: ignore[index]
    assert made[1].in_features == 1  # type: ignore[index]
