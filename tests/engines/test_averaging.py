"""Tests of the mean of the weights: what it is, on both engines, and that looking at it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lrfinder.engines import Engine, LockstepEngine, Plan, SteppingEngine
from lrfinder.engines.averaging import AVERAGED_LOSS, NUM_BATCHES, NUM_POINTS, AveragedWeights
from lrfinder.engines.batches import BatchOrders
from lrfinder.snapshots import Snapshot
from lrfinder.stepping import Replica
from lrfinder.tasks import Batch

AFTER = 10


class Normed(nn.Module):
    """A linear layer, a BatchNorm and dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(dropout), nn.Linear(6, 3)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.layers(inputs)
        return scores


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def drawing_loss(model: nn.Module, batch: Batch) -> Tensor:
    noise = 0.01 * torch.randn(batch[0].shape, dtype=batch[0].dtype)
    return nn.functional.cross_entropy(model(batch[0] + noise), batch[1])


def data() -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(8, 4, generator=generator, dtype=torch.float64),
            torch.randint(3, (8,), generator=generator),
        )
        for _ in range(7)
    ]


def replica(loss: object = loss_fn, dropout: float = 0.0) -> Replica:
    torch.manual_seed(0)
    model = Normed(dropout).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Replica(model, optimizer, loss)  # type: ignore[arg-type]


def engine(kind: str, own: Replica, *, memory: int = 2**30) -> Engine:
    start = Snapshot(own.model, own.optimizer)
    if kind == "stepping":
        return SteppingEngine(own, start, data(), seed=1, memory=memory)
    return LockstepEngine(own, start, data(), engine=kind, seed=1, memory=memory)


def plans(after: tuple[int, ...] = (AFTER, 2 * AFTER)) -> list[Plan]:
    return [
        Plan.constant({"group_0": lr}, 25, averaged_after=after, order=order)
        for lr in (0.05, 0.2, 1e300)  # the last one diverges
        for order in (0, 1)
    ]


def by_hand(lr: float) -> float:
    """The loss of the mean of the weights, with each batch's own statistics."""
    own = replica()
    own.model.train()
    batches = BatchOrders(data(), seed=1).batches(0)
    seen: list[list[Tensor]] = []
    for group in own.optimizer.param_groups:
        group["lr"] = lr
    for step in range(1, AFTER + 1):
        own.step([next(batches)])
        if step > AFTER // 2:
            seen.append([p.detach().clone() for p in own.parameters])
    assert len(seen) <= NUM_POINTS
    model = copy.deepcopy(own.model)
    with torch.no_grad():
        for parameter, *values in zip(model.parameters(), *seen, strict=True):
            parameter.copy_(torch.stack(values).mean(0))
        losses = [loss_fn(model, next(batches)) for _ in range(NUM_BATCHES)]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("kind", ["stepping", "lockstep"])
def test_it_is_the_loss_of_the_mean_on_the_next_batches(kind: str) -> None:
    ours = plans()
    runs = engine(kind, replica())
    runs.advance(ours, AFTER)
    runs.advance(ours, AFTER)
    for plan in ours[:4]:
        steps, values = plan.trace.metrics[AVERAGED_LOSS]
        assert list(steps) == [AFTER - 1, 2 * AFTER - 1]
        if plan.order == 0:
            assert values[0] == pytest.approx(by_hand(float(plan.lrs["group_0"][0])), rel=1e-12)
    for plan in ours[4:]:
        assert plan.trace.status == "diverged"
        assert AVERAGED_LOSS not in plan.trace.metrics


@pytest.mark.parametrize("kind", ["stepping", "lockstep"])
@pytest.mark.parametrize("loss", [loss_fn, drawing_loss])
@pytest.mark.parametrize("memory", [2**30, 0])
def test_looking_changes_nothing(kind: str, loss: object, memory: int) -> None:
    looked, plain = plans(), plans(after=())
    for some in (looked, plain):
        runs = engine(kind, replica(loss, 0.5), memory=memory)
        for _ in range(3):
            runs.advance(some, AFTER)
    for one, other in zip(looked, plain, strict=True):
        assert one.trace.losses.tolist() == pytest.approx(other.trace.losses.tolist(), nan_ok=True)
        assert one.trace.status == other.trace.status
    assert all(AVERAGED_LOSS in plan.trace.metrics for plan in looked[:4])
    assert not any(plan.trace.metrics for plan in plain)


@pytest.mark.parametrize("kind", ["stepping", "lockstep"])
def test_a_model_that_gives_no_loss_in_eval_mode_is_looked_at(kind: str) -> None:
    """As torchvision's detectors."""

    class Detector(Normed):
        def forward(self, inputs: Tensor) -> Tensor:
            assert self.training
            return super().forward(inputs)

    torch.manual_seed(0)
    model = Detector(0.5).double()
    own = Replica(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn)
    ours = plans()[:4]
    engine(kind, own).advance(ours, AFTER)
    assert all(AVERAGED_LOSS in plan.trace.metrics for plan in ours)


def test_where_points_were_missed_there_is_no_mean() -> None:
    assert not AveragedWeights(replica(), 20, begun=15).is_whole
    assert AveragedWeights(replica(), 20, begun=10).is_whole
    (ours, *_) = plans((20,))
    runs = engine("stepping", replica())
    runs.advance([ours], 15)
    runs.advance([ours], 5)
    assert AVERAGED_LOSS not in ours.trace.metrics
