"""Fingerprints: which data a loader gives, in a few words that two runs can be compared by."""

from __future__ import annotations

import zlib
from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torch.utils.weak import WeakTensorKeyDictionary

_BLOCK = 1 << 24  # bytes that are hashed at once


def data_facts(loader: Any) -> dict[str, Any]:
    """Name, digest and profile of the data behind a loader; draws nothing from it.

    Law: the digest of tensors is the CRC-32 of their bytes, shapes and types, so equal data have
    equal digests, wherever they lie. Data that are made when they are asked for cannot be read
    without changing the training: of these the digest is one of the profile alone, and the
    profile says so.

    Args:
        loader: An iterable of batches; its `dataset` is looked at where it has one.

    Example:
        >>> from lrfinder.datasets import TensorLoader
        >>> data_facts(TensorLoader(torch.zeros(4, 2), batch_size=2, shuffle=False))["profile"]
        {'dataset': 'TensorDataset', 'samples': 4, 'batch_size': 2, 'shapes': [[4, 2]], 'dtypes': ['torch.float32']}
    """
    dataset = getattr(loader, "dataset", loader)
    profile: dict[str, Any] = {"dataset": type(dataset).__name__}
    if isinstance(dataset, Sized):
        profile["samples"] = len(dataset)
    if isinstance(size := getattr(loader, "batch_size", None), int):
        profile["batch_size"] = size
    if isinstance(dataset, TensorDataset):
        profile["shapes"] = [list(tensor.shape) for tensor in dataset.tensors]
        profile["dtypes"] = [str(tensor.dtype) for tensor in dataset.tensors]
        digest = 0
        for tensor in dataset.tensors:
            digest = _crc(tensor, digest)
    else:
        profile["digest_of"] = "this profile, for the data are made when they are asked for"
        digest = zlib.crc32(repr(profile).encode())
    return {"name": type(dataset).__name__, "digest": f"{digest:08x}", "profile": profile}


_known: Any = WeakTensorKeyDictionary()


def _crc(tensor: Tensor, start: int) -> int:
    """The CRC-32 goes on from the one before; each version of a tensor is read once."""
    version, own = _known.get(tensor, (None, 0))
    if version != tensor._version:
        own = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        block: Any = flat.view(torch.uint8).numpy()
        for i in range(0, len(block), _BLOCK):
            own = zlib.crc32(block[i : i + _BLOCK], own)
        _known[tensor] = (tensor._version, own)
    return zlib.crc32(own.to_bytes(4, "little"), start)
