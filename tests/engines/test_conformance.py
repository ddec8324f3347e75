"""Conformance: whatever is trained, both engines give the same numbers for every replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrfinder.engines import Engine, LockstepEngine, Plan, SteppingEngine
from lrfinder.engines.states import State, _Moved
from tests.engines.models import MODELS, Shuffled, batches, make, make_engine, plans
from tests.helpers import Quadratic, quadratic_loss

STEPS = 50
SLOW_MODELS = {"resnet18": 3}
# A network of eighteen layers on three images is chaotic at any LR but the lowest.
LR_OF_RESNET = 1e-4

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda g: torch.optim.SGD(g, lr=0.1),
    "SGD momentum": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, weight_decay=0.01),
    "SGD nesterov": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.8, nesterov=True),
    "SGD dampening": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.8, dampening=0.3),
    "SGD maximize": lambda g: torch.optim.SGD(g, lr=0.1, maximize=True),
    "Adam": lambda g: torch.optim.Adam(g, lr=0.1, weight_decay=0.01),
    "Adam amsgrad": lambda g: torch.optim.Adam(g, lr=0.1, amsgrad=True),
    "AdamW": lambda g: torch.optim.AdamW(g, lr=0.1, betas=(0.8, 0.99), eps=1e-6),
    "AdamW tensor lr": lambda g: torch.optim.AdamW(g, lr=torch.tensor(0.1)),
    "NAdam": lambda g: torch.optim.NAdam(g, lr=0.1),
    "RAdam": lambda g: torch.optim.RAdam(g, lr=0.1),
    "Adamax": lambda g: torch.optim.Adamax(g, lr=0.1),
    "Adagrad": lambda g: torch.optim.Adagrad(g, lr=0.1, lr_decay=0.1),
    "Adadelta": lambda g: torch.optim.Adadelta(g, lr=0.1),
    "RMSprop": lambda g: torch.optim.RMSprop(g, lr=0.1, momentum=0.5, centered=True),
    "ASGD": lambda g: torch.optim.ASGD(g, lr=0.1),
    "Rprop": lambda g: torch.optim.Rprop(g, lr=0.1),
    "Adafactor": lambda g: torch.optim.Adafactor(g, lr=0.1),
}


def state_of(engine: Engine, plan: Plan) -> State:
    """What the engine keeps of a plan: parameters, buffers, the optimizer's state."""
    courses = engine.courses if isinstance(engine, SteppingEngine) else engine._courses  # type: ignore[attr-defined]
    return courses.states[id(plan)]


def assert_close(left: Any, right: Any, tolerance: float, where: str = "") -> None:
    """Nested values agree, tensors to a share of their largest entry."""
    if isinstance(left, _Moved):
        left, right = left.value, right.value
    if isinstance(left, Tensor):
        assert left.shape == right.shape and left.dtype == right.dtype, where  # noqa: PT018
        gap = float((left.double() - right.double()).abs().max()) if left.numel() else 0.0
        scale = max(1.0, float(left.double().abs().max())) if left.numel() else 1.0
        assert gap <= tolerance * scale, f"{where}: {gap}"
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_close(left[key], right[key], tolerance, f"{where} {key}")
    elif isinstance(left, list):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_close(a, b, tolerance, f"{where} {index}")
    else:
        assert left == right, where


def compare(
    name: str, steps: int, *, orders: int = 2, cuts: int = 1, lr: float = 0.05, **options: Any
) -> LockstepEngine:
    """Train the same plans with both engines, and compare all that there is."""
    results = []
    for kind in ("stepping", "lockstep"):
        loader = Shuffled(batches(name))
        engine = make_engine(kind, make(name), loader, **options)
        some = plans(2 if name == "resnet18" else 4, num_steps=steps + 1, orders=orders, lr=lr)
        for _ in range(cuts):
            engine.advance(some, steps // cuts)
        results.append((engine, some))
    (plain, theirs), (lockstep, ours) = results
    assert isinstance(lockstep, LockstepEngine)
    assert lockstep.chooser.name == "lockstep"
    for left, right in zip(theirs, ours, strict=True):
        assert len(right.trace) == len(left.trace) == steps
        assert right.trace.to_dict()["lrs"] == left.trace.to_dict()["lrs"]
        np.testing.assert_allclose(right.trace.losses, left.trace.losses, rtol=1e-12)
        one, other = state_of(plain, left), state_of(lockstep, right)
        for part in ("_tensors", "_buffers", "_optimizer"):
            assert_close(getattr(one, part), getattr(other, part), 1e-10, part)
    return lockstep


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("orders", [1, 2])
def test_models(name: str, orders: int) -> None:
    if name == "transformer with dropout":
        pytest.skip("see test_dropout_of_attention_is_seeded_by_replica")
    if (name, orders) == ("resnet18", 2):
        pytest.skip("resnet18 takes long: one order is enough of it")
    lr = LR_OF_RESNET if name == "resnet18" else 0.05
    compare(name, SLOW_MODELS.get(name, STEPS), orders=orders, lr=lr)


@pytest.mark.slow
def test_fifty_steps_of_resnet18() -> None:
    compare("resnet18", STEPS, orders=1, lr=LR_OF_RESNET)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers(kind: str) -> None:
    compare("mlp", STEPS, make_optimizer=OPTIMIZERS[kind])


@pytest.mark.parametrize("kind", ["SGD momentum", "AdamW", "NAdam"])
def test_clipping_is_each_replicas_own(kind: str) -> None:
    compare("mlp", STEPS, make_optimizer=OPTIMIZERS[kind], clip_norm=0.05)


def test_accumulation() -> None:
    compare("cnn with BatchNorm", STEPS, accumulation=2)


@pytest.mark.parametrize("kind", ["SGD momentum", "AdamW", "NAdam"])
def test_plans_that_are_cut_up(kind: str) -> None:
    compare("mlp with dropout", STEPS, cuts=5, make_optimizer=OPTIMIZERS[kind])


def test_without_room_for_states_plans_begin_again() -> None:
    some = plans(num_steps=12)
    engine = make_engine("lockstep", make("mlp with dropout"), batches("mlp"), memory=0)
    engine.advance(some, 6)
    engine.advance(some, 6)
    whole = plans(num_steps=12)
    make_engine("stepping", make("mlp with dropout"), batches("mlp")).advance(whole, 12)
    for left, right in zip(whole, some, strict=True):
        np.testing.assert_allclose(right.trace.losses, left.trace.losses, rtol=1e-12)
        assert right.trace.status == "completed"
    assert engine.steps == 4 * 18


def test_autocast() -> None:
    losses = []
    for kind in ("stepping", "lockstep"):
        engine = make_engine(
            kind, make("mlp").float(), [(x.float(), y) for x, y in batches("mlp")],
            autocast=torch.bfloat16,
        )  # fmt: skip
        some = plans(num_steps=10)
        engine.advance(some, 10)
        losses.append([plan.trace.losses for plan in some])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_one_replicas_infinity_is_not_the_others() -> None:
    """A GradScaler skips the step of the replica whose gradient overflowed, and lowers its scale alone."""
    results = []
    for kind in ("stepping", "lockstep"):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=1000)
        engine = make_engine(
            kind,
            Quadratic(a=1.0, b=1.0),
            [None],
            make_optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
            loss=quadratic_loss,
            scaler=scaler,
        )
        some = [Plan.constant({"body": lr, "head": lr}, 41) for lr in (0.1, 11.0, 0.3)]
        engine.advance(some, 40)
        scales = [float(state_of(engine, plan)._scaler["_scale"]) for plan in some]  # type: ignore[index]
        results.append(([plan.trace.losses for plan in some], scales))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    assert results[1][1] == results[0][1]
    # The weights of the second grow tenfold at each step until its gradient overflows.
    assert results[1][1][1] < results[1][1][0] == results[1][1][2] == 2.0**100


def test_dropout_of_attention_is_seeded_by_replica() -> None:
    """Its masks lie elsewhere in memory than alone, so they are others; but the same each time."""

    def losses(count: int, orders: int) -> list[Any]:
        engine = make_engine("lockstep", make("transformer with dropout"), batches("transformer"))
        some = plans(count, num_steps=12, orders=orders, lr=0.01)
        engine.advance(some, 12)
        return [plan.trace.losses for plan in some]

    first, again, more = losses(2, 2), losses(2, 2), losses(4, 2)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(more[:2], first, rtol=1e-12)  # whoever else is in step
    without = make_engine("lockstep", make("transformer"), batches("transformer"))
    some = plans(2, num_steps=12, lr=0.01)
    without.advance(some, 12)
    assert abs(np.mean(first) - np.mean([plan.trace.losses for plan in some])) < 0.2


def test_float32_stays_close() -> None:
    losses = []
    for kind in ("stepping", "lockstep"):
        data = [(x.float(), y) for x, y in batches("Net")]
        engine = make_engine(kind, make("Net").float(), data)
        some = plans(num_steps=10)
        engine.advance(some, 10)
        losses.append([plan.trace.losses for plan in some])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
