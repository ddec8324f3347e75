"""Tests of the engine: one start, paired batches, and the same bits however plans are cut up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lrfinder
from lrfinder.engines import Plan, SteppingEngine, first_batch
from lrfinder.snapshots import Snapshot
from lrfinder.stepping import Replica
from lrfinder.tasks import StepOptions
from tests.helpers import (
    Quadratic,
    TinyNet,
    cross_entropy,
    forever,
    quadratic_groups,
    quadratic_loss,
    tiny_data,
    tiny_loader,
    tiny_optimizer,
)

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, amsgrad=True),
    "AdamW tensor lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.01)),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=0.01),
    "Rprop": lambda groups: torch.optim.Rprop(groups, lr=0.01),
}


def make(
    kind: str = "SGD", *, memory: int = 2**30, options: StepOptions = StepOptions()
) -> SteppingEngine:
    torch.manual_seed(0)
    model = TinyNet(dropout=0.5)
    groups = lrfinder.param_groups(model, {"body": "body.*", "head": "head.*"})
    optimizer = OPTIMIZERS[kind](groups)
    replica = Replica(model, optimizer, cross_entropy, options)
    return SteppingEngine(
        replica, Snapshot(model, optimizer), tiny_loader(), seed=1, memory=memory
    )


def plans() -> list[Plan]:
    table = {"body": np.geomspace(1e-3, 1e-1, 9), "head": np.full(9, 0.05)}
    return [
        Plan.constant({"body": 0.1, "head": 0.1}, 9),
        Plan.constant({"body": 0.1, "head": 0.01}, 9, order=1),
        Plan(table),
    ]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("memory", [2**30, 4000, 0])
def test_cut_up_plans_are_bit_equal_to_whole_ones(kind: str, memory: int) -> None:
    whole, cut = plans(), plans()
    make(kind).advance(whole, 9)
    engine = make(kind, memory=memory)
    for steps in (2, 4, 3):
        engine.advance(cut, steps)
    for left, right in zip(whole, cut, strict=True):
        assert left.trace.status == "completed"
        assert left.trace.to_dict() == right.trace.to_dict()
    # Without room, plans begin again at each cut: 2 + 6 + 9 steps each.
    assert engine.steps == (3 * 17 if memory == 0 else engine.steps)
    assert make(kind).steps == 0


def test_states_stay_within_the_budget_and_are_forgotten() -> None:
    engine, some = make(memory=2**30), plans()
    engine.advance(some, 2)
    size = engine.courses.state_bytes // 3
    assert size > 0
    engine.release(some[:2])
    assert engine.courses.state_bytes == size
    engine.advance(some[2:], 7)
    assert engine.courses.state_bytes == 0
    tight = make(memory=size + 1)
    tight.advance(plans(), 2)
    assert len(tight.courses.states) == 1


def test_with_accumulation_too() -> None:
    options = StepOptions(accumulation=2)
    whole, cut = plans(), plans()
    make(options=options).advance(whole, 9)
    engine = make(options=options, memory=0)
    engine.advance(cut, 5)
    engine.advance(cut, 4)
    assert [p.trace.to_dict() for p in whole] == [p.trace.to_dict() for p in cut]


def test_plans_of_one_order_are_paired() -> None:
    lrs = {"body": 0.1, "head": 0.1}
    same_order = [Plan.constant(lrs, 5), Plan.constant(lrs, 5)]
    other = Plan.constant(lrs, 5, order=1)
    make().advance([*same_order, other], 5)
    first, second, third = (plan.trace.losses.tolist() for plan in [*same_order, other])
    assert first == second  # batches and dropout masks too
    assert first != third


def test_recorded_lr_is_used_lr() -> None:
    engine = make()
    used: list[list[float]] = []
    optimizer = engine._replica.optimizer
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: used.append([group["lr"] for group in opt.param_groups])
    )
    plan = plans()[2]
    engine.advance([plan], 9)
    assert used == np.stack(list(plan.trace.lrs.values()), axis=1).tolist()
    assert plan.trace.lrs["body"].tolist() == plan.lrs["body"].tolist()


def test_a_non_finite_loss_ends_its_plan_alone() -> None:
    model = Quadratic(a=1.0)
    optimizer = torch.optim.SGD(lrfinder.param_groups(model, quadratic_groups(model)), lr=1.0)
    engine = SteppingEngine(
        Replica(model, optimizer, quadratic_loss), Snapshot(model, optimizer), [None]
    )
    wild, calm = Plan.constant({"a": 1e8}, 30), Plan.constant({"a": 0.5}, 30)
    engine.advance([wild, calm], 20)
    engine.advance([wild, calm], 10)
    assert wild.trace.status == "diverged"
    assert len(wild.trace) == wild.trace.diverged_at + 1 < 5
    assert calm.trace.status == "completed"


def test_a_model_in_eval_mode_is_trained_and_its_parts_keep_their_flags() -> None:
    torch.manual_seed(0)
    model = TinyNet()
    optimizer = tiny_optimizer(model)
    for evaluated in (False, True):
        model.train()
        (model if evaluated else model.body[1]).eval()
        engine = SteppingEngine(
            Replica(model, optimizer, cross_entropy), Snapshot(model, optimizer), tiny_loader()
        )
        engine.advance([Plan.constant({"body": 0.1, "head": 0.1}, 2)], 2)
        assert model.training
        assert model.body[1].training == evaluated  # a BatchNorm that its owner froze stays frozen


def test_validation_changes_nothing() -> None:
    batch = tiny_data(seed=1)

    def losses(val_every: int) -> tuple[list[float], dict[str, Any]]:
        engine = make()
        engine.courses._val_batch = batch
        plan = Plan({"body": np.full(6, 0.1), "head": np.full(6, 0.1)}, val_every=val_every)
        engine.advance([plan], 6)
        return plan.trace.losses.tolist(), plan.trace.metrics

    without, nothing = losses(0)
    with_it, metrics = losses(2)
    assert without == with_it
    assert not nothing
    assert metrics["val/loss"][0].tolist() == [0, 2, 4]


def test_the_first_batch_is_drawn_without_a_trace() -> None:
    state = torch.get_rng_state()
    assert len(first_batch(tiny_loader(), seed=0)) == 2
    assert torch.equal(state, torch.get_rng_state())


class BuiltAgain(nn.Linear):
    """Its copy is built from its configuration, with parameters of its own, as a Keras model's is."""

    def __deepcopy__(self, memo: dict[int, Any]) -> BuiltAgain:
        return BuiltAgain(self.in_features, self.out_features)


def test_a_model_whose_copy_is_built_again_is_tested_step_by_step() -> None:
    torch.manual_seed(0)
    model = BuiltAgain(4, 2)
    loader = [(x, (x[:, 0] > 0).long()) for x in torch.randn(64, 4).split(16)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = lrfinder.range_test(model, optimizer, cross_entropy, loader, effort="brackets")
    assert result.cost.engine == "stepping"
    assert "a copy of the model makes its parameters anew" in result.cost.reason


def test_a_plan_of_other_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="in this order"):
        make().advance([Plan.constant({"head": 0.1, "body": 0.1}, 2)], 1)


def test_a_generator_function_of_batches_can_be_trained_on() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return forever(tiny_data())

    torch.manual_seed(0)
    model = TinyNet()
    optimizer = tiny_optimizer(model)
    engine = SteppingEngine(
        Replica(model, optimizer, cross_entropy), Snapshot(model, optimizer), Endless()
    )
    plan = Plan.constant({"body": 0.1, "head": 0.1}, 3)
    engine.advance([plan], 3)
    assert len(plan.trace) == 3
