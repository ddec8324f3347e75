"""Training many replicas of a task, each with learning rates of its own, to the end of a short schedule.

All in one step where that is faster (`torch.func.vmap` over stacked parameters), or one by one. A
test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import lrfinder
from benchmarks.range_test.tasks import Problem

DECAYS_AT, DECAYS_TO = 0.7, 0.1  # of the steps; of the LR
CAP = 1.5  # times the validation loss at the start: what a training counts that diverged
CHUNK = 128  # replicas in one step


def final_losses(
    problem: Problem, lrs: ArrayLike, seeds: Sequence[int], num_steps: int
) -> NDArray[np.float64]:
    """Validation loss after training, of every LR vector with every seed.

    The LRs fall to a tenth after 70 % of the steps. A loss that is not finite, or beyond 1.5 times
    the one at the start, counts as 1.5 times that.

    Args:
        problem: What to train.
        lrs: Shape (points, groups).
        seeds: Each fixes the initial weights and the batches.
        num_steps: Optimizer steps.

    Returns:
        Shape (points, seeds).
    """
    points = np.asarray(lrs, dtype=np.float64)
    if not len(points):
        return np.empty((0, len(seeds)))
    rates = np.repeat(points, len(seeds), axis=0)
    every = list(seeds) * len(points)
    train = _train_batched if problem.batched else _train_one_by_one
    size = CHUNK if problem.batched else 1
    parts = [
        train(problem, rates[i : i + size], every[i : i + size], num_steps)
        for i in range(0, len(every), size)
    ]
    losses = torch.cat(parts).double().numpy().reshape(len(points), len(seeds))
    caps = np.array([CAP * _initial_loss(problem, seed) for seed in seeds])
    capped: NDArray[np.float64] = np.fmin(np.where(np.isfinite(losses), losses, np.inf), caps)
    return capped


def _initial_loss(problem: Problem, seed: int) -> float:
    return _val_loss(problem, problem.model(seed))


def _val_loss(problem: Problem, model: nn.Module) -> float:
    inputs, targets = problem.data[1]
    with torch.no_grad():
        return float(problem.criterion(model.eval()(inputs), targets))


def learning_rate_factor(step: int, num_steps: int) -> float:
    """What LRs are multiplied by at a step."""
    return DECAYS_TO if step >= int(DECAYS_AT * num_steps) else 1.0


def _train_one_by_one(
    problem: Problem, lrs: NDArray[np.float64], seeds: Sequence[int], num_steps: int
) -> Tensor:
    """A plain loop with torch's own optimizer."""
    return torch.tensor(
        [
            _val_loss(problem, trained(problem, dict(zip(problem.groups, row, strict=True)), seed, num_steps))
            for row, seed in zip(lrs.tolist(), seeds, strict=True)
        ]
    )  # fmt: skip


def trained(problem: Problem, lrs: Mapping[str, float], seed: int, num_steps: int) -> nn.Module:
    """One model after training."""
    model = problem.model(seed)
    optimizer = problem.make_optimizer(lrfinder.param_groups(model, problem.groups))
    inputs, targets = problem.data[0]
    for step, chosen in enumerate(problem.orders(seed, num_steps)):
        for group in optimizer.param_groups:
            group["lr"] = lrs[group["name"]] * learning_rate_factor(step, num_steps)
        optimizer.zero_grad()
        loss = problem.criterion(model(inputs[chosen]), targets[chosen])
        if not torch.isfinite(loss):
            break  # the validation loss of what is left is capped too
        loss.backward()
        optimizer.step()
    return model


# -- all in one step ------------------------------------------------------------------------------


def _train_batched(
    problem: Problem, lrs: NDArray[np.float64], seeds: Sequence[int], num_steps: int
) -> Tensor:
    made = {seed: problem.model(seed) for seed in dict.fromkeys(seeds)}
    params, buffers = stack_module_state([made[seed] for seed in seeds])
    model = made[seeds[0]].train()
    rates = _rates(problem, model, params, lrs)
    inputs, targets = problem.data[0]
    orders = torch.stack([problem.orders(seed, num_steps) for seed in made], 1)
    place = {seed: index for index, seed in enumerate(made)}
    mine = torch.tensor([place[seed] for seed in seeds])

    def loss(one: Mapping[str, Tensor], its: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = problem.criterion(functional_call(model, (one, its), (x,)), y)
        return value

    losses = vmap(loss)
    update = _Update(problem.optimizer, params, rates)
    for step in range(num_steps):
        chosen = orders[step][mine]
        value = losses(params, buffers, inputs[chosen], targets[chosen])
        gradients = torch.autograd.grad(value.sum(), list(params.values()))
        update(gradients, learning_rate_factor(step, num_steps))
    model.eval()
    x, y = problem.data[1]
    with torch.no_grad():
        return vmap(loss, in_dims=(0, 0, None, None), chunk_size=32)(params, buffers, x, y)


def _rates(
    problem: Problem, model: nn.Module, params: Mapping[str, Tensor], lrs: NDArray[np.float64]
) -> list[Tensor]:
    """The LRs of each parameter, of a shape that multiplies it."""
    groups = lrfinder.param_groups(model, problem.groups)
    owner = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
    rows = torch.tensor(lrs, dtype=torch.float32)
    own = dict(model.named_parameters())
    return [
        rows[:, owner[id(own[name])]].view(-1, *[1] * (param.dim() - 1))
        for name, param in params.items()
    ]


class _Update:
    """SGD with momentum .9, or AdamW, as torch has them, with an LR for each replica."""

    def __init__(self, optimizer: str, params: Mapping[str, Tensor], rates: list[Tensor]) -> None:
        self.adamw = optimizer == "AdamW"
        self.params, self.rates = list(params.values()), rates
        self.first = [torch.zeros_like(param) for param in self.params]
        self.second = [torch.zeros_like(param) for param in self.params]
        self.step = 0

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor], factor: float) -> None:
        self.step += 1
        for index, gradient in enumerate(gradients):
            (self._adamw if self.adamw else self._sgd)(index, gradient, factor)

    def _sgd(self, index: int, gradient: Tensor, factor: float) -> None:
        momentum = self.first[index].mul_(0.9).add_(gradient)
        self.params[index].addcmul_(self.rates[index], momentum, value=-factor)

    def _adamw(self, index: int, gradient: Tensor, factor: float) -> None:
        rate = self.rates[index] * factor
        first = self.first[index].lerp_(gradient, 0.1)
        second = self.second[index].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        root = (second / (1 - 0.999**self.step)).sqrt_().add_(1e-8)
        param = self.params[index]
        param.mul_(1 - 0.01 * rate)
        param.sub_(rate / (1 - 0.9**self.step) * first / root)
