"""Models of the engines' tests: what people train, small, in float64, and seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import lrfinder
from lrfinder.engines import Engine, LockstepEngine, Plan, SteppingEngine
from lrfinder.shipped import Net
from lrfinder.snapshots import Snapshot
from lrfinder.stepping import Replica
from lrfinder.tasks import StepOptions

NUM_CLASSES = 5


class TiedLanguageModel(nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.mix(self.embed(tokens)))
        scores: Tensor = self.head(hidden.mean(dim=1))
        return scores


class Encoder(nn.Module):
    """A Transformer encoder over a sequence of vectors."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, nhead=2, dim_feedforward=16, dropout=dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(inputs).mean(dim=1))
        return scores


class Counting(nn.Module):
    """Puts a new tensor in a buffer's place at each call, and has one that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, NUM_CLASSES)
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean(dim=0).detach()
        scores: Tensor = self.linear(inputs - self.mean)
        return scores


def mlp(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, NUM_CLASSES)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, NUM_CLASSES),
    )


def norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.Flatten(),
        nn.LayerNorm(4 * 6 * 6),
        nn.Linear(4 * 6 * 6, NUM_CLASSES),
    )


def frozen_trunk() -> nn.Module:
    model = cnn()
    for layer in list(model)[:-1]:  # type: ignore[call-overload]
        layer.requires_grad_(False)
        layer.eval()
    return model


def resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=NUM_CLASSES)  # type: ignore[no-any-return]


def images(count: int = 4, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(8, 6)),
    "mlp with dropout": (lambda: mlp(0.5), lambda: torch.randn(8, 6)),
    "Net": (Net, lambda: images(4, 32)),
    "cnn with BatchNorm": (cnn, images),
    "GroupNorm, LayerNorm": (norms, images),
    "frozen trunk": (frozen_trunk, images),
    "transformer": (lambda: Encoder(0.0), lambda: torch.randn(4, 5, 8)),
    "transformer with dropout": (lambda: Encoder(0.1), lambda: torch.randn(4, 5, 8)),
    "tied embeddings": (TiedLanguageModel, lambda: torch.randint(11, (6, 7))),
    "replaced buffer": (Counting, lambda: torch.randn(8, 6)),
    "resnet18": (resnet, lambda: images(3, 64)),
}


def batches(name: str, count: int = 6) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    made = []
    for _ in range(count):
        inputs = MODELS[name][1]()
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        made.append((inputs, torch.randint(NUM_CLASSES, (len(inputs),))))
    return made


class Shuffled:
    """Batches in a new order each time, by the random state of the process."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        for index in torch.randperm(len(self.batches)).tolist():
            yield self.batches[index]


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-3)


def make_engine(
    kind: str,
    model: nn.Module,
    loader: Any,
    *,
    make_optimizer: Callable[[Any], torch.optim.Optimizer] = sgd,
    loss: Any = loss_fn,
    memory: int = 2**30,
    **options: Any,
) -> Engine:
    """An engine whose plans have two groups: the first and the second half of what is trained."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    half = (len(names) + 1) // 2
    groups = lrfinder.param_groups(model, {"body": names[:half], "head": names[half:]})
    optimizer = make_optimizer(groups)
    replica = Replica(model, optimizer, loss, StepOptions(**options))
    start = Snapshot(model, optimizer, scaler=replica.options.scaler)
    if kind == "stepping":
        return SteppingEngine(replica, start, loader, seed=3, memory=memory)
    return LockstepEngine(replica, start, loader, seed=3, memory=memory, engine=kind)


def make(name: str, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name][0]().double()


def plans(count: int = 4, num_steps: int = 50, *, orders: int = 2, lr: float = 0.05) -> list[Plan]:
    """Each with its own LRs; of SGD they all stay calm."""
    return [
        Plan.constant(
            {"body": lr * 0.5**number, "head": lr * 0.7**number}, num_steps, order=number % orders
        )
        for number in range(count)
    ]
