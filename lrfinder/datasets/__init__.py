"""Datasets: data held as tensors, the batches made of them, and digits that need no network.

Small data are fastest where they are: whole tensors on the device, one `index_select` for each
batch, augmentation on the batch. No worker processes and no copy from the host at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from lrfinder.distributing import share_of

Transform = Callable[[Tensor, torch.Generator], Tensor]
Pair = tuple[Tensor, Tensor]


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
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            stop = start + self.batch_size
            if order is None:
                # A copy: a model whose first layer works in place must not change the data.
                batch = tuple(tensor[start:stop].clone() for tensor in self.tensors)
            else:
                batch = tuple(tensor.index_select(0, order[start:stop]) for tensor in self.tensors)
            if self.transform is not None:
                batch = (self.transform(batch[0], epoch), *batch[1:])
            yield batch

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


class Standardize:
    """Bytes as floats, with mean 0 and standard deviation 1 in each channel of the training set.

    Law: y = (x / 255 - mean_c) / std_c, float32, for x in 0..255 of shape (N, C, H, W). Draws no
    random number.

    Args:
        mean: Of each channel, of pixels scaled to [0, 1], shape (C,).
        std: Likewise, > 0.

    Raises:
        ValueError: If a std is not positive, or the shapes are not (C,).

    Example:
        >>> white = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
        >>> transform = Standardize(torch.tensor([0.5]), torch.tensor([0.25]))
        >>> round(float(transform(white, torch.Generator()).mean()), 4)
        2.0
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        if mean.dim() != 1 or mean.shape != std.shape:
            raise ValueError(
                "`mean` and `std` must be of one shape (C,), but got "
                f"{tuple(mean.shape)} and {tuple(std.shape)}."
            )
        if not bool((std > 0).all()):
            raise ValueError(
                f"`std > 0` must hold for every channel, but got {std.tolist()}. "
                "Do all images have the same value in a channel?"
            )
        self.mean, self.std = mean, std
        # One multiplication and one addition for each pixel: y = scale x + shift.
        scale, shift = 1 / (255 * std.double()), -mean.double() / std.double()
        self._scale, self._shift = (part.float().view(1, -1, 1, 1) for part in (scale, shift))
        self._placed: dict[torch.device, Pair] = {}

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Floats of the same shape, on the same device."""
        if inputs.device not in self._placed:
            place = inputs.device
            self._placed[place] = (self._scale.to(place), self._shift.to(place))
        scale, shift = self._placed[inputs.device]
        return torch.addcmul(shift, inputs.float(), scale)


class CropAndFlip(Standardize):
    """`Standardize` after a random shift of each image, and for half of them a mirror image.

    Law: each image is padded with `padding` black pixels at each side and cut back to its size at
    one of the (2 padding + 1)^2 places, all equally likely; then flipped left to right with
    probability 1/2. No loop over images.

    Args:
        mean: As of `Standardize`.
        std: As of `Standardize`.
        padding: Pixels, >= 0.
        flip: Whether to flip at all. Letters and digits should not be.

    Source: He et al., 2015, arXiv 1512.03385, section 4.2 (padding 4).
    """

    def __init__(self, mean: Tensor, std: Tensor, *, padding: int = 4, flip: bool = True) -> None:
        super().__init__(mean, std)
        if padding < 0:
            raise ValueError(f"`padding >= 0` must hold, but got padding={padding}.")
        self.padding, self.flip = padding, flip

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Floats of the same shape, on the same device."""
        count, channels, height, width = inputs.shape
        drawn = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator)
        mirrored = torch.randint(2, (1, count, 1), generator=generator)
        # One small copy to the device: numbers drawn on the CPU are the same everywhere.
        rows, columns, mirrored = torch.cat([drawn, mirrored]).to(inputs.device, non_blocking=True)
        across = torch.arange(width, device=inputs.device)
        if self.flip:
            across = torch.where(mirrored.bool(), width - 1 - across, across)
        rows = rows + torch.arange(height, device=inputs.device)
        columns = columns + across
        padded = functional.pad(inputs, (self.padding,) * 4)
        # Pixel (i, j) of the result is pixel (rows_i, columns_j) of the padded, flattened image.
        places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1)
        pixels = padded.flatten(2).gather(2, places.expand(-1, channels, -1))
        return super().__call__(pixels.view(inputs.shape), generator)


def digits(classes: Sequence[int] | None = None, *, val_share: float = 0.3) -> tuple[Pair, Pair]:
    """Scikit-learn's bundled 8 x 8 digits as training and validation data, split in a fixed way.

    Law: inputs are (x - m) / s, with m and s the mean and the standard deviation of all training
    pixels.

    Args:
        classes: The digits to keep, in the order of their new labels 0, 1, ...; None for all ten.
        val_share: Share of the samples that are held out, in (0, 1).

    Returns:
        `((inputs, targets), (val_inputs, val_targets))`: float32 of shape (N, 1, 8, 8), int64 of
        shape (N,); no image is in both.

    Raises:
        ValueError: If a class is no digit, is given twice, or none is given, or `val_share` leaves
            a part empty.

    Source: Alpaydin and Kaynak, 1998, UCI Optical Recognition of Handwritten Digits (its test
    part, 1,797 images).

    Example:
        >>> (inputs, targets), (val_inputs, _) = digits()
        >>> inputs.shape, targets.max().item(), len(val_inputs)
        (torch.Size([1258, 1, 8, 8]), 9, 539)
    """
    wanted = list(range(10)) if classes is None else list(classes)
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(range(10)):
        raise ValueError(f"`classes` must be different digits of 0..9, but got {wanted}.")
    if not 0 < val_share < 1:
        raise ValueError(f"`0 < val_share < 1` must hold, but got val_share={val_share}.")
    from sklearn.datasets import load_digits

    bundle = load_digits()
    pixels = torch.tensor(bundle.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(bundle.target)
    # One permutation for all selections of classes: what is held out does not depend on them.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[torch.isin(labels[order], torch.tensor(wanted))]
    held_out = round(val_share * len(order))
    if not 0 < held_out < len(order):
        raise ValueError(
            "Training and validation data must hold at least one sample each, but got "
            f"val_share={val_share} of {len(order)} samples."
        )
    renamed = torch.zeros(10, dtype=torch.int64)
    renamed[torch.tensor(wanted)] = torch.arange(len(wanted))
    val, train = order[:held_out], order[held_out:]
    mean, std = pixels[train].mean(), pixels[train].std()
    inputs, targets = (pixels - mean) / std, renamed[labels]
    return (inputs[train], targets[train]), (inputs[val], targets[val])
