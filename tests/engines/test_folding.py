"""Tests of folded layers: all replicas in one go give what each gives alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrfinder.engines.folding import folded, folded_loss
from lrfinder.engines.folding.chains import _Chain
from lrfinder.engines.randomness import Stream
from lrfinder.engines.stacking import Stack
from lrfinder.stepping import Replica
from lrfinder.tasks import supervised
from tests.engines.models import images

K = 3
ACTIVATIONS = (nn.Identity, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU,
               nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus,
               nn.Softsign, nn.Mish, nn.LogSigmoid, nn.ReLU)  # fmt: skip


class Residual(nn.Module):
    """Adds what it is given to what a Sequential, which begins by working in place, makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(3, 1, padding=1))
        self.outer = nn.Conv2d(3, 2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = 2 * inputs
        result: Tensor = self.outer(self.inner(inputs) + inputs).flatten(1)
        return result


def frozen(model: nn.Sequential, *layers: int) -> nn.Module:
    for layer in layers:
        model[layer].requires_grad_(False)
    return model


def in_eval(model: nn.Sequential, *layers: int) -> nn.Module:
    for layer in layers:
        model[layer].eval()
    return model


def vector(*size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*size)


CHAINS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh()),
        vector(7, 6),
    ),
    "one sample": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU()), vector(6)),
    "sequences": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)),
        vector(2, 3, 6),
    ),
    "flattened sequences": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Flatten(), nn.Linear(15, 2)),
        vector(2, 3, 6),
    ),
    "all activations": (
        lambda: nn.Sequential(nn.Linear(6, 5), *(kind() for kind in ACTIVATIONS), nn.Linear(5, 2)),
        vector(7, 6),
    ),
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 2, stride=2, bias=False),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(5, 4),
        ),
        images,
    ),
    "pooled with padding": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        ),
        images,
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(4, affine=False),
            nn.GELU(),
        ),
        images,
    ),
    "norm of what all see": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3)),
        images,
    ),
    "norm without statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        images,
    ),
    "norm in eval mode": (
        lambda: in_eval(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 1),
        images,
    ),
    "frozen in the middle": (
        lambda: frozen(
            nn.Sequential(
                nn.Conv2d(3, 4, 3),
                nn.ReLU(),
                nn.Conv2d(4, 3, 3),
                nn.Flatten(),
                nn.Linear(48, 4),
                nn.Linear(4, 2),
            ),
            2,
            4,
        ),
        images,
    ),
    "frozen at first": (
        lambda: frozen(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)), 0
        ),
        images,
    ),
    "averaged": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten()
        ),
        images,
    ),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.0), nn.ReLU()),
            nn.MaxPool2d(2),
            nn.GroupNorm(2, 4),
        ),
        images,
    ),
    "one image": (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 3)), vector(3, 6, 6)),
    "width": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(6, 2)), images),
    "residual": (Residual, images),
}


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    # Of all outputs, each with a weight of its own.
    result = model(batch)
    return (
        result * torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view_as(result)
    ).sum()


def stack_of(model: nn.Module, loss: Any = loss_fn) -> Stack:
    """Replicas with parameters of their own."""

    def replica(scale: float) -> Replica:
        made = copy.deepcopy(model)
        trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.data.mul_(scale)
        return Replica(made, torch.optim.SGD(trained, lr=0.1), loss)

    changing = [
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        for key, buffer in module._buffers.items()
        if module.training and buffer is not None
    ]
    stack = Stack(replica(1.0), K, changing=changing)
    for number in range(K):
        stack.add(replica(1.0 + number))
    return stack


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("is_shared", [True, False])
def test_all_in_one_go_is_each_alone(name: str, is_shared: bool) -> None:
    torch.manual_seed(0)
    make, make_inputs = CHAINS[name]
    model = make().double()
    stack = stack_of(model)
    alone = [copy.deepcopy(replica.model) for replica in stack.replicas]
    first = make_inputs().double()
    batches = [first if is_shared else make_inputs().double() for _ in range(K)]
    streams = [Stream(torch.device("cpu")) for _ in range(K)]
    for _ in range(2):  # vmap's own call, and what is made of it
        losses, gradients = stack.gradients([[batch] for batch in batches], streams)
        for row, (one, batch) in enumerate(zip(alone, batches, strict=True)):
            own = [parameter for parameter in one.parameters() if parameter.requires_grad]
            loss = loss_fn(one, batch)
            expected = torch.autograd.grad(loss, own)
            torch.testing.assert_close(losses[row], loss.detach(), rtol=1e-12, atol=1e-12)
            assert len(expected) == len(gradients) > 0 or not own
            for gradient, theirs in zip(gradients, expected, strict=True):
                assert gradient is not None
                torch.testing.assert_close(gradient[row], theirs, rtol=1e-11, atol=1e-12)
            for (key, buffer), theirs in zip(
                stack.replicas[row].model.named_buffers(), one.buffers(), strict=True
            ):
                torch.testing.assert_close(buffer, theirs, rtol=1e-12, atol=0, msg=key)


def chains_of(model: nn.Module) -> list[list[str]]:
    forward = vars(folded(model, convolutions=True))["forward"]
    return [
        [type(module).__name__ for module, _ in part.links]
        for part in forward.parts
        if isinstance(part, _Chain)
    ]


def test_what_is_one_chain() -> None:
    make = CHAINS["nested"][0]
    assert chains_of(make()) == [["Conv2d"], ["ReLU", "MaxPool2d"]]
    assert chains_of(CHAINS["norms"][0]()) == [
        ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU", "BatchNorm2d", "GELU"]
    ]
    assert chains_of(nn.Sequential(nn.Linear(1, 1), nn.LSTM(1, 1))) == [["Linear"]]


def test_a_layer_that_somebody_looks_at_is_called_by_itself() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    seen: list[int] = []
    model[1].register_forward_hook(lambda *args: seen.append(1))
    assert chains_of(copy.deepcopy(model)) == [["Linear"], ["Linear"]]
    stack = stack_of(model.double())
    streams = [Stream(torch.device("cpu")) for _ in range(K)]
    stack.gradients([[torch.ones(7, 6, dtype=torch.float64)]] * K, streams)
    assert seen == [1]


def test_a_derivative_inside_of_the_loss() -> None:
    """There it is another that is stacked, so the layers are torch's own."""

    def penalty(model: nn.Module, batch: Tensor) -> Tensor:
        slopes = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(batch)
        return loss_fn(model, batch) + slopes.square().sum()

    torch.manual_seed(0)
    stack = stack_of(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double(), penalty)
    batch = torch.randn(7, 6, dtype=torch.float64)
    losses, _ = stack.gradients([[batch]] * K, [Stream(torch.device("cpu")) for _ in range(K)])
    for row, replica in enumerate(stack.replicas):
        torch.testing.assert_close(losses[row], penalty(replica.model, batch).detach(), rtol=1e-12, atol=0)  # fmt: skip


# -- cross entropies --------------------------------------------------------------------------


@pytest.mark.parametrize("are_shared", [False, True])
@pytest.mark.parametrize("ignored", [0, 2, 7], ids="{} ignored".format)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 1},
        {"label_smoothing": 0.1},
        {"ignore_index": 1, "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_a_cross_entropy_of_all_is_that_of_each(options, ignored, are_shared):
    torch.manual_seed(0)
    criterion = nn.CrossEntropyLoss(**options)
    scores = torch.randn(K, 7, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(2, 4, (7,) if are_shared else (K, 7))
    targets[..., :ignored] = criterion.ignore_index
    together = folded_loss(supervised(criterion))

    def loss(own: Tensor, classes: Tensor) -> Tensor:
        return together(nn.Identity(), (own, classes))

    found = torch.func.vmap(loss, in_dims=(0, None if are_shared else 0))(scores, targets)
    classes = targets.expand(K, 7)
    expected = torch.stack([criterion(*pair) for pair in zip(scores, classes, strict=True)])
    assert not isinstance(together.criterion, nn.CrossEntropyLoss)  # it was folded
    assert torch.isnan(expected).all() == (ignored == 7)
    assert torch.allclose(found, expected, rtol=1e-14, atol=0, equal_nan=True)
    gradients = [torch.autograd.grad(losses.sum(), scores)[0] for losses in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-13, atol=1e-15, equal_nan=True)
