"""Transforms: what is done to a batch of images on its device, without a loop over images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Transform = Callable[[Tensor, torch.Generator], Tensor]


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
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

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
