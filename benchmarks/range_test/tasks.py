"""Tasks on which the range test is measured: small enough that the answer can be found by a grid.

Each has two or three param groups, a fixed split into training and validation data, and a length.
Tests of one learning rate put all parameters into one group.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits, make_friedman1
from torch import Tensor, nn

import lrfinder

Pair = tuple[Tensor, Tensor]
Data = tuple[Pair, Pair]  # training and validation
TWO = {"body": "body.*", "head": "head.*"}
THREE = {"embed": "embed.*", "body": "body.*", "head": "head.*"}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained, with what, and for how long.

    Args:
        name: As on the command line.
        title: As in the tables.
        make_model: Makes a model; a seed set before fixes its weights.
        groups: Group -> glob, as of `lrfinder.param_groups`.
        optimizer: "SGD" (momentum .9) or "AdamW", all else as torch has it.
        criterion: Mean over a batch.
        make_data: Training and validation data.
        batch_size: Of training.
        num_steps: Of a training at its usual length.
        decades: Lowest and highest log10 LR of the grid.
        batched: Whether many replicas are trained in one step (faster for small tasks).
        num_seeds: On which grids are measured, and as many fresh ones up to 8.
        slow: Whether it is too slow for a grid of vectors and for more than two finder seeds.
        uses: "one" and "groups", the benchmarks that it is part of; "long": also 4 times longer.
    """

    name: str
    title: str
    make_model: Callable[[], nn.Module]
    groups: Mapping[str, Any]
    optimizer: str
    criterion: nn.Module
    make_data: Callable[[], Data]
    batch_size: int
    num_steps: int
    decades: tuple[float, float]
    batched: bool = True
    num_seeds: int = 12
    slow: bool = False
    uses: tuple[str, ...] = ("groups",)

    @functools.cached_property
    def data(self) -> Data:
        """Training and validation data, made once."""
        return self.make_data()

    def model(self, seed: int) -> nn.Module:
        """The model of a seed."""
        torch.manual_seed(seed)
        return self.make_model()

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of these param groups, whose LRs whoever calls sets."""
        if self.optimizer == "SGD":
            return torch.optim.SGD(groups, lr=1e-7, momentum=0.9)
        return torch.optim.AdamW(groups, lr=1e-7)

    def task(self, *, one_lr: bool = False) -> lrfinder.Task:
        """The same as lrfinder takes it."""
        train, val = self.data
        loader = lrfinder.TensorLoader(
            *train, batch_size=self.batch_size, shuffle=True, drop_last=True
        )
        return lrfinder.Task(
            name=self.name,
            make_model=self.make_model,
            groups={"all": "*"} if one_lr else self.groups,
            make_optimizer=self.make_optimizer,
            loss_fn=lrfinder.supervised(self.criterion),
            train_loader=loader.seeded,
            val_loader=lrfinder.TensorLoader(*val, batch_size=len(val[0])),
        )

    def orders(self, seed: int, num_steps: int) -> Tensor:
        """Samples of each step, shape (num_steps, batch_size): epochs without replacement."""
        generator = torch.Generator().manual_seed(seed)
        size = len(self.data[0][0])
        per_epoch = size // self.batch_size
        epochs = [
            torch.randperm(size, generator=generator)[: per_epoch * self.batch_size]
            for _ in range(math.ceil(num_steps / per_epoch))
        ]
        return torch.cat(epochs).view(-1, self.batch_size)[:num_steps]


# -- data -----------------------------------------------------------------------------------------


@functools.cache
def digits(first: int = 0, last: int = 9) -> Data:
    """Digits of scikit-learn in [first, last], standardised; labels from 0 on; 3/4 for training."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    images, targets = (images - images.mean()) / images.std(), torch.tensor(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, targets = images[order], targets[order]
    wanted = (targets >= first) & (targets <= last)
    return _split(images[wanted], targets[wanted] - first, share=0.75)


@functools.cache
def friedman() -> Data:
    """Friedman's first regression problem, noise 1, standardised; 2,200 of 3,000 for training.

    Source: Friedman, 1991, Annals of Statistics 19(1).
    """
    inputs, targets = make_friedman1(3000, noise=1.0, random_state=0)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    targets = (targets - targets.mean()) / targets.std()
    pair = [torch.tensor(part, dtype=torch.float32) for part in (inputs, targets[:, None])]
    return _split(pair[0], pair[1], share=2200 / 3000)


@functools.cache
def text(context: int, *, every_position: bool = False) -> Data:
    """Characters of Python's own help texts, the 40 most frequent: `context` of them, then the next.

    Args:
        context: Characters that are seen, >= 1.
        every_position: Whether targets are the next of every character, shape (N, context).
    """
    found = importlib.util.find_spec("pydoc_data")
    folder = Path(next(iter(found.submodule_search_locations or ()))) if found else Path()
    raw = (folder / "topics.py").read_text("utf-8").replace("\\n", " ")[:120_000].lower()
    index = {char: i for i, (char, _) in enumerate(Counter(raw).most_common(40))}
    windows = torch.tensor([index[c] for c in raw if c in index]).unfold(0, context + 1, 1)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(1))[:21_500]
    windows = windows[order]
    targets = windows[:, 1:] if every_position else windows[:, -1]
    return _split(windows[:, :-1].contiguous(), targets.contiguous(), share=20_000 / 21_500)


def images(folder: str | None, *, num_train: int, num_val: int) -> Callable[[], Data]:
    """A part of CIFAR-10, standardised."""

    def make() -> Data:
        if folder is None:
            raise ValueError("A task on CIFAR-10 must be given its image folder: --data FOLDER.")
        found = lrfinder.image_folder(folder)
        plain = lrfinder.Standardize(found.mean, found.std)
        parts = []
        for (inputs, targets), count in ((found.train, num_train), (found.val, num_val)):
            chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
            chosen = chosen[:count]
            parts.append((plain(inputs[chosen], torch.Generator()), targets[chosen]))
        return parts[0], parts[1]

    return functools.cache(make)


def _split(inputs: Tensor, targets: Tensor, *, share: float) -> Data:
    count = round(share * len(inputs))
    return (inputs[:count], targets[:count]), (inputs[count:], targets[count:])


# -- models ---------------------------------------------------------------------------------------


def mlp(*sizes: int, scales: Mapping[int, float] | None = None) -> nn.Module:
    """Linear layers and ReLU; the last is the head. `scales` multiplies the weights of some."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    for number, scale in (scales or {}).items():
        with torch.no_grad():
            layers[number].weight *= scale
    body: list[nn.Module] = [nn.Flatten()]
    for layer in layers[:-1]:
        body += [layer, nn.ReLU()]
    return nn.Sequential(OrderedDict(body=nn.Sequential(*body), head=layers[-1]))


def chars_mlp() -> nn.Module:
    """A language model of characters: embeddings of 8, side by side, and an MLP."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(96, 48), nn.ReLU())
    parts = {"embed": nn.Embedding(40, 12), "body": body, "head": nn.Linear(48, 40)}
    return nn.Sequential(OrderedDict(parts))


def cnn(classes: int) -> nn.Module:
    """Two convolutions with BatchNorm, 8 and 16 channels."""
    body: list[nn.Module] = []
    for channels_in, channels in ((1, 8), (8, 16)):
        # No bias: before BatchNorm its gradient is rounding error, which AdamW would blow up.
        body.append(nn.Conv2d(channels_in, channels, 3, padding=1, bias=False))
        body += [nn.BatchNorm2d(channels), nn.ReLU()]
    body += [nn.AvgPool2d(4), nn.Flatten()]
    return nn.Sequential(OrderedDict(body=nn.Sequential(*body), head=nn.Linear(64, classes)))


def fine_tuned_cnn() -> nn.Module:
    """The CNN after training on the digits 0-4, with a new head for 5-9."""
    model = cnn(5)
    model.get_submodule("body").load_state_dict(_pretrained_body())
    return model


@functools.cache
def _pretrained_body() -> Mapping[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        model = cnn(5)
    loader = lrfinder.TensorLoader(*digits(0, 4)[0], batch_size=32, shuffle=True, seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(10):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return dict(model.get_submodule("body").state_dict())


class Attention(nn.Module):
    """Causal self-attention with the norm before it, and the residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(N, length, width) -> the same."""
        length, width = x.shape[-2:]
        # By hand, since torch's fused attention has no rule for batched replicas.
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, width // self.heads))
        q, k, v = qkv.movedim(-3, 0).transpose(-2, -3)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(mask, -math.inf).softmax(-1) @ v
        return x + self.out(mixed.transpose(-2, -3).flatten(-2))


class FeedForward(nn.Module):
    """Two layers with the norm before them, and the residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, length, width) -> the same."""
        y: Tensor = x + self.layers(x)
        return y


class Embedding(nn.Module):
    """Of characters and of their positions."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.chars = nn.Embedding(40, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        nn.init.normal_(self.chars.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, length) -> (N, length, width)."""
        y: Tensor = self.chars(x) + self.positions
        return y


class NextChar(nn.Sequential):
    """Scores in the place where `nn.CrossEntropyLoss` wants them."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, length) -> (N, 40, length)."""
        scores: Tensor = super().forward(x)
        return scores.transpose(-1, -2)


def transformer(length: int = 16, width: int = 16) -> nn.Module:
    """A decoder of two blocks, norm first; some 6,000 parameters."""
    blocks = [part for _ in range(2) for part in (Attention(width, 2), FeedForward(width))]
    body = nn.Sequential(*blocks, nn.LayerNorm(width))
    parts = {"embed": Embedding(length, width), "body": body, "head": nn.Linear(width, 40)}
    return NextChar(OrderedDict(parts))


def resnet18() -> nn.Module:
    """torchvision's, with its standard stem, for ten classes."""
    from torchvision.models import resnet18 as make

    model: nn.Module = make(num_classes=10)
    return model


# -- the tasks ------------------------------------------------------------------------------------


def problems(data: str | None = None) -> dict[str, Problem]:
    """Every task by its name.

    Args:
        data: Image folder of CIFAR-10, for the two tasks that need it.
    """
    return {problem.name: problem for problem in _problems(data)}


def _problems(data: str | None) -> Iterator[Problem]:
    ce, mse = nn.CrossEntropyLoss(), nn.MSELoss()
    sizes, sgd, adamw = (64, 64, 64, 10), (-3.5, 1.0), (-4.5, 0.0)

    def problem(
        name: str, title: str, make_model: Callable[[], nn.Module], **options: Any
    ) -> Problem:
        usual = {
            "groups": TWO,
            "criterion": ce,
            "make_data": digits,
            "batch_size": 32,
            "num_steps": 150,
        }
        return Problem(name=name, title=title, make_model=make_model, **(usual | options))

    every, long = ("one", "groups", "long"), ("groups", "long")
    plain = functools.partial(mlp, *sizes)
    small_head = functools.partial(mlp, *sizes, scales={2: 0.01})
    large_body = functools.partial(mlp, *sizes, scales={0: 8.0, 1: 0.5})
    regression = {"criterion": mse, "make_data": friedman, "num_steps": 250}
    chars = {
        "groups": THREE,
        "make_data": functools.partial(text, 8),
        "batch_size": 64,
        "num_steps": 250,
    }
    yield problem("mlp-sgd", "digits MLP, SGD", plain, optimizer="SGD", decades=sgd, uses=every)
    yield problem(
        "mlp-adamw", "digits MLP, AdamW", plain, optimizer="AdamW", decades=adamw, uses=every
    )
    yield problem("small-head", "digits MLP, head starts at 1/100, SGD", small_head, optimizer="SGD",
                  decades=sgd, uses=long)  # fmt: skip
    yield problem("large-body", "digits MLP, first layer starts 8 x, SGD", large_body, optimizer="SGD",
                  decades=(-4.5, 1.0), uses=long)  # fmt: skip
    yield problem("large-body-adamw", "digits MLP, first layer starts 8 x, AdamW", large_body,
                  optimizer="AdamW", decades=adamw)  # fmt: skip
    yield problem("fine-tune", "digits CNN, 0-4 to 5-9, AdamW", fine_tuned_cnn, optimizer="AdamW",
                  make_data=functools.partial(digits, 5, 9), num_steps=66, decades=(-4.5, 0.5),
                  uses=("one", "groups"))  # fmt: skip
    yield problem("chars-adamw", "characters MLP, 3 groups, AdamW", chars_mlp, optimizer="AdamW",
                  decades=(-3.5, 0.0), **chars)  # fmt: skip
    friedman_mlp = functools.partial(mlp, 10, 48, 48, 1)
    yield problem("friedman-adamw", "Friedman MLP, AdamW", friedman_mlp, optimizer="AdamW",
                  decades=adamw, uses=every, **regression)  # fmt: skip
    yield problem("friedman-sgd", "Friedman MLP, SGD", friedman_mlp, optimizer="SGD",
                  decades=(-4.0, 0.5), uses=long, **regression)  # fmt: skip
    yield problem("chars-sgd", "characters MLP, 3 groups, SGD", chars_mlp, optimizer="SGD",
                  decades=(-2.5, 1.5), uses=long, **chars)  # fmt: skip
    yield problem("transformer", "characters Transformer, 3 groups, AdamW", transformer, groups=THREE,
                  optimizer="AdamW", make_data=functools.partial(text, 16, every_position=True),
                  batch_size=16, num_steps=150, batched=False, num_seeds=8,
                  decades=(-4.0, 0.0), uses=("one", "groups"))  # fmt: skip
    yield problem("cnn", "digits CNN with BatchNorm, AdamW", functools.partial(cnn, 10), optimizer="AdamW",
                  decades=adamw, uses=("one",))  # fmt: skip
    yield problem("net", "Net on CIFAR-10, SGD", lrfinder.Net, optimizer="SGD", batch_size=64,
                  groups={"features": "features.*", "classifier": "classifier.*"}, decades=(-4.0, 0.0),
                  make_data=images(data, num_train=6400, num_val=1000), num_steps=200, batched=False,
                  num_seeds=4, uses=("one",))  # fmt: skip
    yield problem("resnet18", "ResNet-18 on CIFAR-10, 3 groups, SGD", resnet18, optimizer="SGD",
                  groups={"stem": ["conv1.*", "bn1.*"], "body": "layer*", "head": "fc.*"},
                  batch_size=16, decades=(-2.75, -0.25),
                  make_data=images(data, num_train=1600, num_val=500),
                  num_steps=100, batched=False, num_seeds=2,
                  slow=True)  # fmt: skip
