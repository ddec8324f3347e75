"""Optimising a bare tensor: no module, and no data; here a point on the valley of Rosenbrock's function."""

import torch
from torch import Tensor

import lrfinder


def loss_fn(point: Tensor, batch: None) -> Tensor:
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


if __name__ == "__main__":
    point = torch.tensor([-1.2, 1.0], requires_grad=True)
    optimizer = torch.optim.Adam([point], lr=1e-3)
    result = lrfinder.range_test(point, optimizer, loss_fn, [None], planned_steps=500)
    print(result)
    result.suggestion.apply(optimizer)
    for _ in range(500):
        optimizer.zero_grad()
        loss = loss_fn(point, None)
        loss.backward()
        optimizer.step()
    print(f"at {point.tolist()}, loss {loss.item():.2g}")
