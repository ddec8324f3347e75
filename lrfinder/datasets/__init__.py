"""Datasets: data held as tensors, the batches made of them, and digits that need no network.

Small data are fastest where they are: whole tensors on the device, one `index_select` for a batch,
or for several that are small, augmentation on the batch. No worker processes and no copy from the
host at each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lrfinder.datasets.bundled import Pair, digits
from lrfinder.datasets.transforms import CropAndFlip, Standardize, Transform
from lrfinder.distributing import share_of

__all__ = [
    "CropAndFlip",
    "Pair",
    "Standardize",
    "TensorLoader",
    "Transform",
    "digits",
    "is_self_contained",
]

GATHERED = 2**17  # bytes of batches that are gathered at once; a larger batch alone


class TensorLoader:
    """Batches of tensors that lie on one device, as tuples with one part for each tensor.

    Each `iter()` is an epoch: it draws one number from `generator`, and the order and the
    augmentation of that epoch follow from this number alone. So whoever saves the state of
    `generator` between two epochs gets the same batches again, however many batches of an epoch
    were used. Nothing is drawn without `shuffle` and `transform`.

    Args:
        tensors: The data, each of shape (N, ...), all on one device. They are shared, not copied;
            batches are copies.
        batch_size: Samples in a batch, >= 1; the last batch holds the rest.
        shuffle: Whether each epoch has an order of its own.
        seed: Of `generator`, a CPU generator wherever the data are: the order does not depend on
            the device.
        transform: `transform(inputs, generator)` -> inputs, applied to the first tensor's part of
            each batch, on its device; it is to draw from the CPU generator that it is given.
        drop_last: Whether to leave out a last batch that is not full.

    Raises:
        ValueError: If there are no tensors, no samples, tensors of different lengths or on
            different devices, or no batch could be made.

    Example:
        >>> loader = TensorLoader(torch.arange(5.0), torch.arange(5), batch_size=2)
        >>> [targets.tolist() for inputs, targets in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
        drop_last: bool = False,
    ) -> None:
        _check_tensors(tensors)
        if batch_size < 1:
            raise ValueError(f"`batch_size >= 1` must hold, but got batch_size={batch_size}.")
        if drop_last and batch_size > len(tensors[0]):
            raise ValueError(
                f"`batch_size <= samples` must hold with drop_last=True, but got "
                f"batch_size={batch_size} and {len(tensors[0])} samples: there would be no batch."
            )
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.transform = transform
        self.drop_last = drop_last
        self.generator = torch.Generator().manual_seed(seed)
        # Shared with the loaders made from this one: the data are on each device once.
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {self.device: tensors}
        self._part = (0, 1)  # this process's, of how many

    @property
    def device(self) -> torch.device:
        """Where the data are, and so the batches."""
        return self.tensors[0].device

    @property
    def dataset(self) -> TensorDataset:
        """The data as a torch data set, without a copy; its length is the number of samples."""
        return TensorDataset(*self.tensors)

    def __len__(self) -> int:
        """Batches in an epoch."""
        samples = -(-len(self.tensors[0]) // self._part[1])
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Begin an epoch."""
        epoch = torch.Generator()
        if self.shuffle or self.transform is not None:
            # Here and not with the first batch: the state moves on when an epoch begins.
            epoch.manual_seed(int(torch.randint(2**63 - 1, (), generator=self.generator)))
        return self._batches(epoch)

    def _batches(self, epoch: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        order = None
        if self.shuffle:
            order = torch.randperm(len(self.tensors[0]), generator=epoch).to(self.device)
        if self._part != (0, 1):
            samples = torch.arange(len(self.tensors[0]), device=self.device)
            order = share_of(samples if order is None else order, *self._part)
        stop, some = len(self) * self.batch_size, self._gathered()
        for start in range(0, stop, some):
            end = min(start + some, stop)
            if order is None:
                # A copy: a model whose first layer works in place must not change the data.
                parts = [tensor[start:end].clone() for tensor in self.tensors]
            else:
                parts = [tensor.index_select(0, order[start:end]) for tensor in self.tensors]
            for batch in zip(*(torch.split(part, self.batch_size) for part in parts), strict=True):
                if self.transform is not None:
                    batch = (self.transform(batch[0], epoch), *batch[1:])
                yield batch

    def _gathered(self) -> int:
        """Samples that are gathered at once: whole batches, several where they are small.

        To call torch takes as long as to gather a small batch.
        """
        size = self.batch_size * sum(tensor[:1].nbytes for tensor in self.tensors)
        return self.batch_size * max(1, GATHERED // max(size, 1))

    def to(self, device: str | torch.device) -> Self:
        """A loader on the device, whose own generator goes on from this one's state.

        The data are copied to a device once for all loaders that were made from one.
        """
        place = torch.empty(0, device=device).device  # "cuda" is "cuda:0" from here on
        if place not in self._copies:
            self._copies[place] = tuple(tensor.to(place) for tensor in self.tensors)
        made = self._like(self._copies[place])
        made.generator.set_state(self.generator.get_state())
        return made

    def part(self, rank: int, count: int) -> Self:
        """A loader of one process's share of each batch, as `lrfinder.spread` makes it.

        Args:
            rank: 0 <= rank < count.
            count: Processes that train together.
        """
        if self._part == (rank, count):
            return self
        made = self._like(self.tensors)
        made.generator.set_state(self.generator.get_state())
        made._part = (rank, count)
        return made

    def seeded(self, seed: int) -> Self:
        """A loader of the same data with a generator of its own, seeded with `seed`."""
        made = self._like(self.tensors)
        made.generator.manual_seed(seed)
        return made

    def _like(self, tensors: tuple[Tensor, ...]) -> Self:
        made = type(self)(
            *tensors,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            transform=self.transform,
            drop_last=self.drop_last,
        )
        made._copies, made._part = self._copies, self._part
        return made

    def __repr__(self) -> str:
        """Number and size of its batches, and their device."""
        return f"TensorLoader({len(self)} batches of {self.batch_size} on {self.device})"


def is_self_contained(loader: object) -> bool:
    """Whether iterating a loader touches no random state but that of a generator of its own.

    So of a list of batches, and of a `TensorLoader` without a transform of the user's.

    Example:
        >>> loader = TensorLoader(torch.arange(5.0), batch_size=2, shuffle=True)
        >>> is_self_contained(loader), is_self_contained(torch.utils.data.DataLoader(range(4)))
        (True, False)
    """
    if type(loader) is TensorLoader:
        return type(loader.transform) in (type(None), CropAndFlip, Standardize)
    return type(loader) in (list, tuple)


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise ValueError("A TensorLoader must have at least one tensor, but got none.")
    if any(tensor.dim() == 0 for tensor in tensors):
        raise ValueError("Each tensor must have a first dimension, the samples, but got a scalar.")
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"The tensors must be of one length, but got lengths {lengths}.")
    if lengths[0] == 0:
        raise ValueError("The tensors must hold at least one sample, but they are empty.")
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise ValueError(f"The tensors must lie on one device, but got {', '.join(devices)}.")
