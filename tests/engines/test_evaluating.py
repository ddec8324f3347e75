"""Tests of evaluating: all replicas at once give what each gives, or each is evaluated by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrfinder
from lrfinder.engines import evaluating
from lrfinder.engines.evaluating import Evaluator, together
from lrfinder.engines.stacking import Stack
from lrfinder.stepping import Evaluation, Replica
from tests.engines.models import MODELS, NUM_CLASSES, batches, loss_fn, make, sgd

METRICS = {"accuracy": lrfinder.accuracy}


def stack_of(name: str, count: int = 4, **options: Any) -> Stack:
    """Replicas with weights of their own, in a stack that their buffers are rows of."""
    model = make(name)
    changing = [key for key, _ in model.named_buffers()] if "frozen" not in name else []

    def replica(number: int) -> Replica:
        made = copy.deepcopy(model)
        trained = [p for p in made.parameters() if p.requires_grad]
        with torch.no_grad():
            for p in trained:
                p.mul_(1 + 0.1 * number)
        return Replica(made, sgd(trained), options.get("loss", loss_fn))

    stack = Stack(replica(0), count, changing=changing)
    for number in range(count):
        stack.add(replica(number))
    return stack


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"replaced buffer", "resnet18"}))
def test_values_are_those_of_the_plain_evaluation(name: str) -> None:
    stack, data = stack_of(name), batches(name)
    if name in ("Net", "tied embeddings"):
        data = data[:2]
    data[-1] = (data[-1][0][:3], data[-1][1][:3])  # a smaller last batch
    request = Evaluation(data, METRICS)
    rows = [3, 0, 2]
    before = {key: value.clone() for key, value in stack.replicas[0].model.state_dict().items()}
    found = together(stack, rows, [request] * len(rows))
    for row, values in zip(rows, found, strict=True):
        own = stack.replicas[row].answer(request)
        assert own.keys() == values.keys() == {"val/loss", "val/accuracy"}
        for key, value in own.items():
            np.testing.assert_allclose(values[key], value, rtol=1e-12, atol=1e-12)
    for key, value in stack.replicas[0].model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert all(module.training for module in stack.skeleton.modules()) or "frozen" in name


def broken(model: nn.Module, batch: Any) -> Tensor:
    return torch.tensor(model(batch[0]).max().item())


def drawing(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) + torch.rand(NUM_CLASSES)).mean()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: [Evaluation(r.loader, {"m": broken})] * 2, "item"),
        (lambda r: [Evaluation(r.loader, {"m": drawing})] * 2, "random"),
        (lambda r: [r, Evaluation(r.loader, {"m": broken})], "metrics are not the same"),
        (lambda r: [r, Evaluation(list(r.loader)[:2], METRICS)], "different lengths"),
        (lambda r: [r, Evaluation([*r.loader[:-1], (torch.ones(2, 6), torch.ones(2))], METRICS)],
         "not alike"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_together_is_said(
    change: Callable[[Any], list[Evaluation]], reason: str
) -> None:
    stack = stack_of("mlp")
    evaluator = Evaluator()
    requests = change(Evaluation(batches("mlp"), METRICS))
    assert evaluator.values(stack, stack.replicas[:2], requests) is None
    assert reason in evaluator.reason
    # It is not tried again.
    good = [Evaluation(batches("mlp"), METRICS)] * 2
    assert evaluator.values(stack, stack.replicas[:2], good) is None


def test_a_model_whose_evaluation_changes_a_buffer() -> None:
    stack = stack_of("replaced buffer")
    evaluator = Evaluator()
    requests = [Evaluation(batches("mlp"), METRICS)] * 2
    assert evaluator.values(stack, stack.replicas[:2], requests) is None
    assert "buffer" in evaluator.reason


def test_a_search_has_the_same_values_whoever_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    task = lrfinder.load_task("digits")
    calls: list[int] = []
    real = evaluating.together

    def counted(stack: Stack, rows: Any, requests: Any) -> Any:
        calls.append(len(rows))
        return real(stack, rows, requests)

    monkeypatch.setattr(evaluating, "together", counted)
    monkeypatch.setattr(evaluating, "SLOW", 1e9)
    traces = {
        engine: lrfinder.train_seeds(task, [1, 2, 3], num_epochs=2, device="cpu", engine=engine)
        for engine in ("stepping", "lockstep")
    }
    assert calls == [3, 3, 3]  # twice the first time
    for one, other in zip(*traces.values(), strict=True):
        for key in ("val/loss", "val/accuracy"):
            assert one.metrics[key][0].tolist() == other.metrics[key][0].tolist()
            np.testing.assert_allclose(other.metrics[key][1], one.metrics[key][1], rtol=1e-4)
