"""Placing: the device of a training, its seed, and its batches on the device."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = Any


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to train on: "auto" is CUDA where there is one, then MPS, then the CPU.

    Raises:
        ValueError: If torch does not know the device, or it is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"`device` must be 'auto' or a device of torch, but got {device!r}."
        ) from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(place.type, True):
        raise ValueError(
            f"`device` must be there, but torch sees no {place.type}. Use 'auto' or 'cpu'."
        )
    return place


def seed_everything(seed: int) -> None:
    """Seed the random states of python, numpy and torch (all devices)."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"`0 <= seed < 2**32` must hold (numpy's range), but got seed={seed}.")
    random.seed(seed)
    np.random.seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # For devices that are not there torch would keep a stack trace at each call.
        torch.default_generator.manual_seed(seed)


def move_to(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device: tensors, mappings, lists, tuples, and whatever has a `to`."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_to(part, device) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(move_to(part, device) for part in batch)
    if hasattr(batch, "to") and not isinstance(batch, type):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: move_to(part, device) for key, part in batch.items()}
    return batch


def batch_size(batch: Batch) -> int:
    """Number of samples: the length of the first tensor found in the batch; 1 where there is none.

    Example:
        >>> batch_size({"ids": torch.zeros(8, 3), "labels": torch.zeros(8)})
        8
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts: Sequence[Any] = []
    if isinstance(batch, Mapping) or hasattr(batch, "values"):
        parts = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        parts = batch
    for part in parts:
        if isinstance(part, (Tensor, Mapping, list, tuple)):
            return batch_size(part)
    return 1
