"""Tests of the updates: which optimizers step once for all, and that one replica's end is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from lrfinder.engines import Plan, formations
from lrfinder.engines.updates import make_update
from lrfinder.engines.updates.affine import AFFINE, Affine
from lrfinder.engines.updates.rules import NATIVE
from lrfinder.engines.updates.views import Views
from tests.engines.models import batches, make, make_engine, plans

Make = Callable[[Any], torch.optim.Optimizer]


class OwnSGD(torch.optim.SGD):
    """A subclass, which may do anything."""


TIERS: dict[str, tuple[Make, tuple[type, ...]]] = {
    "SGD": (lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9), tuple(NATIVE.values())),
    "AdamW": (lambda g: torch.optim.AdamW(g, lr=0.1), tuple(NATIVE.values())),
    "AdamW tensor lr": (lambda g: torch.optim.AdamW(g, lr=torch.tensor(0.1)), (Views,)),
    "NAdam": (lambda g: torch.optim.NAdam(g, lr=0.1), (Affine,)),
    "RMSprop": (lambda g: torch.optim.RMSprop(g, lr=0.1, centered=True), (Affine,)),
    "Rprop": (lambda g: torch.optim.Rprop(g, lr=0.1), (Views,)),
    "ASGD": (lambda g: torch.optim.ASGD(g, lr=0.1), (Views,)),
    "subclass": (lambda g: OwnSGD(g, lr=0.1), (Views,)),
}


@pytest.mark.parametrize("kind", TIERS)
def test_the_fastest_way_that_gives_the_same_is_taken(kind: str) -> None:
    made, expected = TIERS[kind]
    seen: list[type] = []

    def spy(*args: Any) -> Any:
        update = make_update(*args)
        seen.append(type(update))
        return update

    engine = make_engine("lockstep", make("mlp"), batches("mlp"), make_optimizer=made)
    with mock.patch.object(formations, "make_update", spy):
        engine.advance(plans(num_steps=3), 3)
    assert seen
    assert {tier for tier in seen if tier not in expected} == set()


@pytest.mark.parametrize("kind", sorted(AFFINE - set(NATIVE), key=lambda kind: kind.__name__))
def test_a_replica_that_diverges_does_not_touch_the_others(kind: Any) -> None:
    def losses(wild: float) -> list[Any]:
        engine = make_engine(
            "lockstep", make("mlp"), batches("mlp"), make_optimizer=lambda g: kind(g, lr=0.1)
        )
        some = [Plan.constant({"body": lr, "head": lr}, 12) for lr in (0.01, wild, 0.02)]
        engine.advance(some, 12)
        return [plan.trace.losses for plan in some]

    calm, beside = losses(0.01), losses(1e200)
    assert not np.isfinite(beside[1]).all()
    np.testing.assert_array_equal(beside[0], calm[0])
    np.testing.assert_array_equal(beside[2], calm[2])
