"""Bundled: digits that come with scikit-learn, so need no network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


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
