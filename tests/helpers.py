"""Small models with known answers, shared by the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lrfinder


class Quadratic(nn.Module):
    """loss = 0.5 * sum_g h_g * |x_g|^2: plain SGD diverges in group g exactly where its LR exceeds 2 / h_g."""

    def __init__(self, **curvatures: float) -> None:
        super().__init__()
        self.curvatures = curvatures
        self.x = nn.ParameterDict({name: nn.Parameter(torch.ones(3)) for name in curvatures})

    def forward(self) -> Tensor:
        terms = [0.5 * h * self.x[name].square().sum() for name, h in self.curvatures.items()]
        return torch.stack(terms).sum()


def quadratic_loss(model: nn.Module, batch: Any) -> Tensor:
    del batch
    return model()


def quadratic_groups(model: Quadratic) -> dict[str, str]:
    return {name: f"x.{name}" for name in model.curvatures}


class TinyNet(nn.Module):
    """BatchNorm, dropout, a non-persistent buffer that it replaces at each call, and two sub-networks."""

    def __init__(self, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.head(self.body(inputs))


TINY_GROUPS = {"body": "body.*", "head": "head.*"}
cross_entropy = lrfinder.supervised(nn.CrossEntropyLoss())


def tiny_data(samples: int = 24, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 6, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()


def tiny_loader(
    *, shuffle: bool = True, generator: torch.Generator | None = None
) -> DataLoader[Any]:
    return DataLoader(
        TensorDataset(*tiny_data()), batch_size=8, shuffle=shuffle, generator=generator
    )


def tiny_optimizer(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    defaults: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    return torch.optim.SGD(lrfinder.param_groups(model, TINY_GROUPS), **(defaults | options))


def forever(batch: Any = None) -> Iterator[Any]:
    while True:
        yield batch


def same(left: Any, right: Any) -> bool:
    """Bitwise equality of nested states (NaN equals NaN)."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left.nan_to_num(), right.nan_to_num())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(
            same(a, b) for a, b in zip(left, right, strict=True)
        )
    return bool(left == right)
