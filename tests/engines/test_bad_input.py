"""Bad input of the engines: each gives an error that says what to do, or a fallback that is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrfinder
from lrfinder.engines import LockstepEngine, Plan
from lrfinder.engines.fitting import Unfit
from lrfinder.engines.stacking import Stack
from lrfinder.stepping import Replica
from tests.engines.models import batches, loss_fn, make, make_engine, plans, sgd


def digits(**changes: Any) -> lrfinder.Task:
    from dataclasses import replace

    return replace(lrfinder.load_task("digits"), **changes)


def stacked_with(other: Callable[[], Replica]) -> None:
    model = make("mlp")
    stack = Stack(Replica(model, sgd(model.parameters()), loss_fn), 2)
    stack.add(Replica(model, sgd(model.parameters()), loss_fn))
    stack.add(other())


def of(model: nn.Module, groups: Callable[[nn.Module], Any]) -> Replica:
    return Replica(model.double(), sgd(groups(model)), loss_fn)


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Dropout(0.0), nn.Linear(13, 5))


def deeper() -> nn.Module:
    return nn.Sequential(make("mlp"), nn.Identity())


def advanced(lr: float) -> None:
    engine = make_engine("lockstep", make("mlp"), batches("mlp"))
    engine.advance([Plan.constant({"body": lr, "head": 0.1}, 3) for _ in range(2)], 3)


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no trial at once": (
        lambda: lrfinder.search(digits(), 2, at_once=0, warm_start=False),
        ValueError,
        "at_once >= 1",
    ),
    "no batch order": (
        lambda: lrfinder.range_test(
            (m := make("mlp")), sgd(m.parameters()), loss_fn, batches("mlp"), replicas=0
        ),
        ValueError,
        "replicas >= 1",
    ),
    "another architecture": (
        lambda: stacked_with(lambda: of(deeper(), lambda m: m.parameters())),
        Unfit,
        "same architecture",
    ),
    "other shapes": (
        lambda: stacked_with(lambda: of(wider(), lambda m: m.parameters())),
        Unfit,
        "same parameters",
    ),
    "another number of groups": (
        lambda: stacked_with(
            lambda: of(make("mlp"), lambda m: [{"params": [p]} for p in m.parameters()])
        ),
        Unfit,
        "same param groups",
    ),
    "a NaN learning rate": (lambda: advanced(float("nan")), ValueError, "0 <= lr < inf"),
    "a negative learning rate": (lambda: advanced(-0.1), ValueError, "0 <= lr < inf"),
    "an empty loader": (
        lambda: make_engine("lockstep", make("mlp"), []).advance(plans(2, num_steps=3), 3),
        ValueError,
        "at least one batch",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what: str) -> None:
    call, kind, message = ERRORS[what]
    with pytest.raises(kind, match=message):
        call()


def test_no_replicas_are_none() -> None:
    assert lrfinder.train_seeds(digits(), []) == []
    engine = make_engine("lockstep", make("mlp"), batches("mlp"))
    engine.advance([], 5)
    assert engine.steps == 0


def test_seeds_whose_networks_differ_are_trained_one_after_the_other() -> None:
    widths = itertools.cycle([8, 9])

    def model() -> nn.Module:
        width = next(widths)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        return nn.ModuleDict({"body": body, "head": nn.Linear(width, 10)})

    def loss(called: Any, batch: Any) -> Tensor:
        scores = called["head"](called["body"](batch[0]))
        return nn.functional.cross_entropy(scores, batch[1])

    task = digits(make_model=model, loss_fn=loss, metrics={})
    traces = lrfinder.train_seeds(task, [1, 2, 3, 4], num_epochs=1, device="cpu")
    assert [trace.status for trace in traces] == ["completed"] * 4
    with pytest.raises(ValueError, match="same parameters, but these differ"):
        lrfinder.train_seeds(task, [1, 2], num_epochs=1, device="cpu", engine="lockstep")


class Freezing(nn.Module):
    """Freezes a layer while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        self.first.weight.requires_grad_(False)
        scores: Tensor = self.second(self.first(inputs))
        return scores


class Growing(Freezing):
    """Puts a new parameter in a parameter's place."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.second.weight = nn.Parameter(self.second.weight.detach() * 1.0)
        scores: Tensor = self.second(self.first(inputs))
        return scores


class Wandering(Freezing):
    """Calls a loss that writes to the weights."""

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.first.weight.mul_(0.9)
        scores: Tensor = self.second(self.first(inputs))
        return scores


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Freezing, "requires_grad_"),
        (Growing, "another tensor in the place of 'second.weight'"),
        (Wandering, "the first step was not the same"),
    ],
)
def test_a_model_that_changes_its_parameters_gives_what_it_gives_alone(
    kind: Any, reason: str
) -> None:
    results = []
    for engine_kind in ("stepping", "auto"):
        torch.manual_seed(0)
        engine = make_engine(engine_kind, kind().double(), batches("mlp"))
        some = plans(3, num_steps=20)
        engine.advance(some, 20)
        results.append([plan.trace.losses for plan in some])
    assert isinstance(engine, LockstepEngine)
    assert engine.chooser.name == "stepping"
    assert reason in engine.chooser.reason
    np.testing.assert_allclose(results[1], results[0], rtol=1e-10)


def test_a_loader_that_is_shorter_than_the_steps_begins_again() -> None:
    results = []
    for kind in ("stepping", "lockstep"):
        engine = make_engine(kind, make("mlp"), batches("mlp", 2))
        some = plans(3, num_steps=11)
        engine.advance(some, 11)
        assert [len(plan.trace) for plan in some] == [11] * 3
        results.append([plan.trace.losses for plan in some])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-12)
