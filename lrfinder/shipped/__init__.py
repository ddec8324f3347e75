"""Shipped: the tasks that come with the toolkit.

`digits` and `digits-finetune` need no network; `cifar10` and `cifar10-resnet` read images from a
folder. Their optimizers take torch's own default learning rate: the one that a user would take.
"""

from __future__ import annotations

import copy
import functools
import threading
import urllib.request
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrfinder.datasets import CropAndFlip, Pair, Standardize, TensorLoader
from lrfinder.datasets import digits as digit_data
from lrfinder.datasets.images import CIFAR_FOLDER, LAYOUT, ImageData, image_folder
from lrfinder.shipped.networks import Net as Net
from lrfinder.shipped.networks import SimpleModel as SimpleModel
from lrfinder.tasks import Loader, Task, accuracy, supervised

_pretraining = threading.Lock()


# -- digits ---------------------------------------------------------------------------------------


def digits() -> Task:
    """An MLP 64-128-128-10 on scikit-learn's digits, with SGD; 26 steps an epoch."""
    train, val = digit_data()

    def make_model() -> nn.Module:
        hidden = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
        parts = {"body": nn.Sequential(nn.Flatten(), *hidden), "head": nn.Linear(128, 10)}
        return nn.Sequential(OrderedDict(parts))

    return Task(
        name="digits",
        make_model=make_model,
        groups={"body": "body.*", "head": "head.*"},
        make_optimizer=_sgd,
        loss_fn=supervised(nn.CrossEntropyLoss()),
        train_loader=TensorLoader(*train, batch_size=48, shuffle=True, drop_last=True).seeded,
        val_loader=TensorLoader(*val, batch_size=1000),
        metrics={"accuracy": accuracy},
        num_epochs=12,
        threads=1,
        description=f"MLP 64-128-128-10 on {len(train[0])} of scikit-learn's 8 x 8 digits",
    )


def digits_finetune() -> Task:
    """A small CNN that knows the digits 0-4 gets a new head for 5-9; AdamW, 22 steps an epoch.

    The case where groups differ most: one begins with what it has learned, one with nothing, and
    there are few images, 179, as is usual where a model is fine-tuned. The CNN is trained on 0-4
    when the first model is made, once in a process and always alike, which takes about a second;
    the random states are left alone.
    """
    train, val = digit_data(range(5, 10), val_share=0.8)

    def make_model() -> nn.Module:
        model = _digit_cnn()
        with _pretraining:
            model.get_submodule("backbone").load_state_dict(_pretrained_backbone())
        return model

    return Task(
        name="digits-finetune",
        make_model=make_model,
        groups={"backbone": "backbone.*", "head": "head.*"},
        make_optimizer=torch.optim.AdamW,
        loss_fn=supervised(nn.CrossEntropyLoss()),
        train_loader=TensorLoader(*train, batch_size=8, shuffle=True, drop_last=True).seeded,
        val_loader=TensorLoader(*val, batch_size=1000),
        metrics={"accuracy": accuracy},
        num_epochs=10,
        threads=1,
        description=f"CNN of the digits 0-4, a new head for 5-9, on {len(train[0])} images",
    )


def _digit_cnn() -> nn.Sequential:
    backbone = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(128, 5)))


@functools.cache
def _pretrained_backbone() -> Mapping[str, Tensor]:
    (inputs, targets), _ = digit_data(range(5))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        # Not torch.manual_seed, which would change the states of the accelerators too.
        torch.default_generator.manual_seed(0)
        model = _digit_cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss_fn = supervised(nn.CrossEntropyLoss())
    loader = TensorLoader(inputs, targets, batch_size=32, shuffle=True, seed=0)
    with torch.enable_grad():
        for _ in range(6):
            for batch in loader:
                optimizer.zero_grad()
                torch.autograd.backward(loss_fn(model, batch))
                optimizer.step()
    return copy.deepcopy(model.get_submodule("backbone").state_dict())


# -- CIFAR-10 -------------------------------------------------------------------------------------


def cifar10(
    data: str | Path | None = None, *, augment: bool = False, download: bool = False
) -> Task:
    """`Net` on CIFAR-10, with SGD.

    Args:
        data: An image folder, or one with torchvision's own CIFAR-10; see `image_folder`. Into an
            empty folder torchvision downloads CIFAR-10.
        augment: Whether to crop and flip the training images; a net this small hardly overfits.
        download: Whether to let torchvision download CIFAR-10 to `data` if it is not there.

    Raises:
        ValueError: If `data` is not given, not laid out as it must be, or holds a bad image.
    """
    images = _cifar10_images("cifar10", data, download=download)
    train_loader, val_loader = _image_loaders(images, batch_size=64, augment=augment)
    return Task(
        name="cifar10",
        make_model=Net,
        groups={"features": "features.*", "classifier": "classifier.*"},
        make_optimizer=_sgd,
        loss_fn=supervised(nn.CrossEntropyLoss()),
        train_loader=train_loader,
        val_loader=val_loader,
        metrics={"accuracy": accuracy},
        num_epochs=10,
        description=f"Net (62,006 parameters) on {len(images.train[0])} images of CIFAR-10",
    )


def cifar10_resnet(
    data: str | Path | None = None,
    *,
    pretrained: bool | None = None,
    augment: bool = True,
    download: bool = False,
) -> Task:
    """ResNet-18 of torchvision on CIFAR-10, with SGD and weight decay.

    Images of 32 x 32 are too small for the first layers of ImageNet's: from scratch they are one
    convolution of 3 x 3; with ImageNet's weights the convolution is theirs, of 7 x 7, with stride
    1. In neither is there a pooling layer, and the head is new in both.

    Args:
        data: As of `cifar10`.
        pretrained: Whether to begin with ImageNet's weights; None for yes if they can be had. If
            they cannot, a warning and the task's description say so.
        augment: As of `cifar10`.
        download: As of `cifar10`.

    Raises:
        ValueError: As of `cifar10`, or if `pretrained` is True and the weights cannot be had.

    Source: He et al., 2015, arXiv 1512.03385, section 4.2.
    """
    images = _cifar10_images("cifar10-resnet", data, download=download)
    train_loader, val_loader = _image_loaders(images, batch_size=128, augment=augment)
    weights = None if pretrained is False else _imagenet_weights(required=pretrained is True)
    start = "from scratch" if weights is None else "from ImageNet's weights"

    def make_model() -> nn.Module:
        from torchvision.models import resnet18

        model: Any = resnet18()
        if weights is None:
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        else:
            model.load_state_dict(weights)
            model.conv1.stride = (1, 1)
        model.maxpool = nn.Identity()
        model.fc = nn.Linear(512, 10)
        return model  # type: ignore[no-any-return]

    return Task(
        name="cifar10-resnet",
        make_model=make_model,
        groups={"stem": ["conv1.*", "bn1.*"], "body": "layer*", "head": "fc.*"},
        make_optimizer=functools.partial(_sgd, weight_decay=5e-4),
        loss_fn=supervised(nn.CrossEntropyLoss()),
        train_loader=train_loader,
        val_loader=val_loader,
        metrics={"accuracy": accuracy},
        num_epochs=20,
        description=f"ResNet-18 {start} on {len(images.train[0])} images of CIFAR-10",
    )


def _sgd(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9, **options)


def _cifar10_images(task: str, data: str | Path | None, *, download: bool) -> ImageData:
    if data is None:
        raise ValueError(
            f"Task {task!r} must be given `data`, a folder that holds {LAYOUT}, or torchvision's "
            f"CIFAR-10 ({CIFAR_FOLDER}/), but got none. Give it with --data FOLDER."
        )
    # The command line's way to ask for it: an empty folder, made for that.
    empty = Path(data).is_dir() and not any(Path(data).iterdir())
    images = image_folder(data, download=download or empty)
    shape = tuple(images.train[0].shape[1:])
    if shape != (3, 32, 32) or len(images.classes) != 10:
        raise ValueError(
            f"Task {task!r} must be given images of 32 x 32 of 10 classes, but {str(data)!r} has "
            f"{shape[1]} x {shape[2]} of {len(images.classes)}. For other images write a task of "
            "your own, with lrfinder.image_folder."
        )
    return images


def _image_loaders(
    images: ImageData, *, batch_size: int, augment: bool
) -> tuple[Callable[[int], Loader], Loader]:
    plain = Standardize(images.mean, images.std)
    train: Pair = images.train
    loader = TensorLoader(
        *train,
        batch_size=batch_size,
        shuffle=True,
        transform=CropAndFlip(images.mean, images.std) if augment else plain,
        drop_last=len(train[0]) >= batch_size,
    )
    return loader.seeded, TensorLoader(*images.val, batch_size=1000, transform=plain)


def _imagenet_weights(*, required: bool) -> Mapping[str, Tensor] | None:
    """ResNet-18's weights for ImageNet: from torch's hub folder, or the network; None without."""
    from torchvision.models import ResNet18_Weights

    weights = ResNet18_Weights.IMAGENET1K_V1
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        if not file.is_file():
            # torch waits without an end for a network that does not answer, so ask first.
            urllib.request.urlopen(weights.url, timeout=10).close()
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no network, no room, a damaged file: each with its own exception
        said = f"ImageNet's weights for ResNet-18 could not be had from {weights.url} ({error})."
        repair = f"Put the file at {str(file)!r}"
        if required:
            raise ValueError(
                f"{said} {repair}, or train from scratch (pretrained=False)."
            ) from error
        warnings.warn(
            f"{said} The task starts from scratch. {repair}, or say pretrained=False.",
            stacklevel=3,
        )
        return None
    return state
