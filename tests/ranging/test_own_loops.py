"""What people train beside a module with one optimizer: closures, several optimizers, bare tensors; and wrong uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrfinder

LOSS = lrfinder.supervised(nn.MSELoss())


def state(optimizer: torch.optim.Optimizer) -> str:
    return repr(optimizer.state_dict())


@pytest.mark.parametrize("is_parameter", [True, False])
@pytest.mark.parametrize("engine", ["stepping", "auto"])
def test_a_bare_tensor(is_parameter: bool, engine: str) -> None:
    """A quadratic with curvature 2: under SGD it diverges exactly past an LR of 1."""
    point = torch.tensor([3.0, -1.0])
    point = nn.Parameter(point) if is_parameter else point.requires_grad_()
    optimizer = torch.optim.SGD([point], lr=0.1)
    given: list[Tensor] = []

    def loss_fn(tensor: Tensor, batch: None) -> Tensor:
        given.append(tensor)
        return tensor.square().sum()

    result = lrfinder.range_test(point, optimizer, loss_fn, [None], engine=engine)
    assert point.tolist() == [3.0, -1.0]
    assert point.grad is None
    assert given[0] is point
    (lr,) = result.suggestion.lrs.values()
    assert 0.05 < lr < 1.0
    result.suggestion.apply(optimizer)
    for _ in range(50):
        optimizer.zero_grad()
        loss_fn(point, None).backward()
        optimizer.step()
    assert point.norm() < 1e-3


def test_lbfgs_is_given_its_closure_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    inputs = torch.randn(48, 3)
    batches = [(x, x.sum(1, keepdim=True) + 0.1 * torch.randn(16, 1)) for x in inputs.split(16)]
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2, history_size=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = LOSS(model, batches[0])
        loss.backward()
        return loss

    optimizer.step(closure)  # so that there is a history to be put back
    before, weights = state(optimizer), model.weight.detach().clone()
    result = lrfinder.range_test(
        model, optimizer, LOSS, batches, start_lr=1e-4, end_lr=10.0, num_steps=60
    )
    assert state(optimizer) == before
    assert torch.equal(model.weight, weights)
    assert 0.01 < result.suggestion.lrs["group_0"] < 10
    assert "needs a closure" in result.cost.reason


@pytest.mark.parametrize("engine", ["stepping", "lockstep"])
def test_the_parameters_of_another_optimizer_stay_fixed(engine: str) -> None:
    """One half of a product is tested: with the other at w, the curvature is 2 w^2, so past 1 / w^2 it diverges."""
    model = nn.ParameterDict({"a": torch.tensor([0.1]), "b": torch.tensor([2.0])})
    optimizers = [torch.optim.SGD([model[name]], lr=0.1) for name in ("a", "b")]
    noise = 0.3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def loss_fn(model: Any, targets: Tensor) -> Tensor:
        return (model["a"] * model["b"] - targets).square().mean()

    batches = list(1 + noise)  # without noise the loss would be 0 before an LR is too large
    result = lrfinder.range_test(model, optimizers[0], loss_fn, batches, engine=engine)
    high = result.suggestion.brackets["group_0"].high
    assert 0.1 < high < 0.6  # around 1 / 4
    assert [float(p.detach()) for p in model.values()] == pytest.approx([0.1, 2.0])
    assert all(p.grad is None for p in model.values())
    other = lrfinder.range_test(model, optimizers[1], loss_fn, batches, engine=engine, end_lr=1e3)
    assert other.suggestion.brackets["group_0"].high > 10  # around 1 / 0.1^2


# -- wrong uses -----------------------------------------------------------------------------------


def meta() -> tuple[Any, Any]:
    model = nn.Linear(2, 1, device="meta")
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def lazy() -> tuple[Any, Any]:
    model = nn.LazyLinear(1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def shared() -> tuple[Any, Any]:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # torch looks at this in `add_param_group` alone.
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model.weight]})
    return model, optimizer


class Quantised(nn.Module):
    """Weights as eight-bit integers, as libraries for quantisation hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2, dtype=torch.int8), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.to(inputs).T + self.bias


def quantised() -> tuple[Any, Any]:
    model = Quantised()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def no_optimizer() -> tuple[Any, Any]:
    return nn.Linear(2, 1), None


def no_module() -> tuple[Any, Any]:
    tensor = torch.zeros(1, requires_grad=True)
    return [tensor], torch.optim.SGD([tensor], lr=0.1)


def no_leaf() -> tuple[Any, Any]:
    tensor = torch.zeros(1, requires_grad=True)
    return tensor * 2, torch.optim.SGD([tensor], lr=0.1)


def another_model() -> tuple[Any, Any]:
    return nn.Linear(2, 1), torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)


WRONG: dict[Callable[[], tuple[Any, Any]], tuple[type[Exception], str]] = {
    meta: (ValueError, r"must have values, but number 0 .* is on the meta device. Load"),
    lazy: (ValueError, r"must have a shape, but number 0 .* is still lazy. Run the model"),
    shared: (ValueError, r"must be in one group, but number 0 of group 'group_1'.*'group_0' too"),
    quantised: (
        ValueError,
        r"must be of a floating type .* is torch.int8: it is quantised. Freeze",
    ),
    no_optimizer: (TypeError, r"must be a torch.optim.Optimizer, but got NoneType. A Trainer"),
    no_module: (TypeError, r"`model` must be a torch.nn.Module, but got list"),
    no_leaf: (ValueError, r"must be a leaf with requires_grad=True .* is_leaf=False"),
    another_model: (ValueError, r"must hold parameters of this model, but none of its 2"),
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
@pytest.mark.parametrize("call", ["range_test", "train"])
def test_wrong_uses_say_what_to_do(make: Callable[[], tuple[Any, Any]], call: str) -> None:
    kind, message = WRONG[make]
    if call == "train" and make is no_leaf:
        kind, message = TypeError, "`model` must be a torch.nn.Module"
    options = {"num_epochs": 1, "verbose": False} if call == "train" else {}
    with pytest.raises(kind, match=message):
        getattr(lrfinder, call)(*make(), LOSS, [(torch.ones(4, 2), torch.ones(4, 1))], **options)


def test_quantised_weights_that_are_left_out_are_no_obstacle() -> None:
    model = Quantised()
    groups = lrfinder.param_groups(model, {"bias": "bias"}, lr=0.1)
    batches = [(torch.randn(8, 2), torch.ones(8, 1)) for _ in range(4)]
    result = lrfinder.range_test(
        model, torch.optim.SGD(groups), LOSS, batches, effort="brackets", num_steps=30
    )
    assert set(result.suggestion.brackets) == {"bias"}
