"""Tests of losses: what shares a forward pass, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrfinder.tasks import accuracy, supervised
from lrfinder.tasks.losses import evaluated

Function = Callable[[nn.Module, Any], Any]


class InPlace(nn.Module):
    """A criterion that works on what it is given."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.neg_().sum()


def own_metric(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).sum()


KINDS: dict[str, tuple[list[Function], int]] = {
    "loss and accuracy": ([supervised(nn.CrossEntropyLoss()), accuracy], 1),
    "a loss alone": ([supervised(nn.CrossEntropyLoss())], 1),
    "a metric of one's own beside them": (
        [supervised(nn.CrossEntropyLoss()), own_metric, accuracy],
        2,
    ),
    "a criterion of one's own": ([supervised(InPlace()), accuracy], 2),
    "a loss of one's own": ([own_metric, accuracy], 2),
    "a subclass": ([type("Own", (supervised,), {})(nn.CrossEntropyLoss()), accuracy], 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_is_what_its_function_gives(kind: str) -> None:
    functions, passes = KINDS[kind]
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    batch = (torch.randn(8, 3), torch.randint(4, (8,)))
    calls: list[int] = []
    with torch.no_grad():
        expected = [function(model, batch) for function in functions]
        model.register_forward_hook(lambda *args: calls.append(1))
        found = evaluated(functions, model, batch)
    assert len(calls) == passes
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
