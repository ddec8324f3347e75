"""Images: a folder of image files as tensors of bytes, decoded once and kept in the cache.

Decoding 60,000 small files takes longer than an epoch on them, and gives the same bytes each time.
So they are decoded once, by several threads, and opened again in about a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lrfinder.datasets.caching import cached_arrays
from lrfinder.progressing import progress_bar

Bytes = npt.NDArray[np.uint8]
Pair = tuple[Tensor, Tensor]

# As torchvision's.
SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
CIFAR_FOLDER = "cifar-10-batches-py"
LAYOUT = "train/<class>/<image> and test/<class>/<image> (or val/ in the place of test/)"
_FORMAT = 1  # of the cache file; another number makes it stale
_CHUNK = 256  # files that one thread decodes between two looks at the progress


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Decoded images of a training and a validation set.

    Args:
        train: Images, uint8 of shape (N, 3, H, W), and labels, int64 of shape (N,).
        val: Likewise.
        classes: The name of each label.
        mean: Of each channel of the training images, scaled to [0, 1], float32 of shape (3,).
        std: Likewise, the standard deviation.
    """

    train: Pair
    val: Pair
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor


@dataclass(frozen=True, order=True)
class _File:
    name: str  # relative to the root, with forward slashes
    label: int
    size: int
    mtime: int


@dataclass(frozen=True)
class _Listing:
    root: Path
    classes: tuple[str, ...]
    files: tuple[_File, ...]  # the training files first
    num_train: int


def image_folder(
    path: str | Path, *, size: int | tuple[int, int] | None = None, download: bool = False
) -> ImageData:
    """The images of a folder, as RGB bytes.

    The folder holds `train/<class>/<image>` and `val/<class>/<image>`, or `test/` where there is
    no `val/`, and labels count the sorted class names, as `torchvision.datasets.ImageFolder` reads
    them. Or it holds torchvision's own CIFAR-10 (`cifar-10-batches-py`), whose test set is then
    the validation set.

    The first call decodes, with a progress bar where there is a terminal; later calls read
    `lrfinder.datasets.caching`, which is made again when a file's name, size or time of change differs, or
    when it is damaged. Processes that call at once wait for the one that decodes. Memory: 3 H W
    bytes for each image.

    Args:
        path: The folder.
        size: Height and width to which every image is resized (bilinear, the aspect is not kept);
            a number for both; None takes images as they are, which must then be of one size.
        download: Whether to let torchvision download CIFAR-10 to `path` if it is not there.

    Raises:
        ValueError: If the folder is not laid out like this, an image is empty, corrupt or of
            another size (it is named), or CIFAR-10 is damaged or cannot be downloaded.
    """
    root = Path(path).expanduser()
    if root.name == CIFAR_FOLDER:
        root = root.parent
    if download or (root / CIFAR_FOLDER).is_dir():
        return _read_cifar10(root, download=download)
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and min(shape) < 1:
        raise ValueError(f"`size >= 1` must hold, but got size={size}.")
    listing = _list_folder(root)
    # With the time of change: a file that was written again is seen without being read.
    files = [(file.name, file.label, file.size, file.mtime) for file in listing.files]
    content = [_FORMAT, str(listing.root), shape, listing.classes, listing.num_train, files]
    name = f"images-{_hash([str(listing.root), shape])[:16]}"
    arrays = cached_arrays(name, _hash(content), lambda: _decode(listing, shape))
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    cut = listing.num_train
    return ImageData(
        train=(images[:cut], labels[:cut]),
        val=(images[cut:], labels[cut:]),
        classes=listing.classes,
        mean=torch.from_numpy(arrays["mean"]),
        std=torch.from_numpy(arrays["std"]),
    )


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# -- what is in the folder ------------------------------------------------------------------------


def _list_folder(root: Path) -> _Listing:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(f"The image folder must be a folder, but {str(root)!r} {what}.")
    held_out = "val" if (root / "val").is_dir() else "test"
    for part in ("train", held_out):
        if not (root / part).is_dir():
            raise ValueError(
                f"The image folder must hold {LAYOUT}, but {str(root)!r} has no folder {part!r}."
            )
    root = root.resolve()
    classes, train = _list_split(root, "train")
    val_classes, val = _list_split(root, held_out)
    if classes != val_classes:
        differ = ", ".join(sorted({*classes} ^ {*val_classes}))
        raise ValueError(
            f"'train' and {held_out!r} must have the same classes, but in {str(root)!r} only one "
            f"of them has: {differ}."
        )
    return _Listing(root, tuple(classes), (*train, *val), len(train))


def _list_split(root: Path, part: str) -> tuple[list[str], list[_File]]:
    classes = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir())
    if not classes:
        raise ValueError(
            f"The image folder must hold {LAYOUT}, but {str(root / part)!r} has no class folder."
        )
    files: list[_File] = []
    for label, name in enumerate(classes):
        found = sorted(_walk(root / part / name, f"{part}/{name}", label))
        if not found:
            raise ValueError(
                f"Each class folder must hold images ({', '.join(sorted(SUFFIXES))}), "
                f"but {str(root / part / name)!r} has none."
            )
        files.extend(found)
    empty = [f"{file.name}: the file is empty" for file in files if file.size == 0]
    if empty:
        raise ValueError(_bad_files(root, empty))
    return classes, files


def _walk(folder: Path, name: str, label: int) -> Iterator[_File]:
    for entry in os.scandir(folder):
        inner = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _walk(Path(entry.path), inner, label)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            status = entry.stat()
            yield _File(inner, label, status.st_size, status.st_mtime_ns)


def _bad_files(root: Path, problems: Sequence[str]) -> str:
    more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
    shown = "; ".join([*problems[:5], *more])
    return f"Every image must be readable, but in {str(root)!r}: {shown}. Replace or remove them."


# -- decoding -------------------------------------------------------------------------------------


def _decode(listing: _Listing, shape: tuple[int, int] | None) -> dict[str, npt.NDArray[Any]]:
    files, root = listing.files, listing.root
    first = _try_to_read(root / files[0].name, shape)
    if isinstance(first, str):
        raise ValueError(_bad_files(root, [f"{files[0].name}: {first}"]))
    pixels: Bytes = np.empty((len(files), 3, *first.shape[:2]), dtype=np.uint8)
    problems: list[str] = []

    def decode_chunk(start: int) -> list[str]:
        found = []
        chunk = files[start : start + _CHUNK]
        for row, file in enumerate(chunk, start):
            image = _try_to_read(root / file.name, shape)
            if isinstance(image, str):
                found.append(f"{file.name}: {image}")
            elif image.shape != first.shape:
                found.append(
                    f"{file.name}: its height and width are {image.shape[:2]}, those of "
                    f"{files[0].name} are {first.shape[:2]}; give `size` to resize them all"
                )
            else:
                pixels[row] = image.transpose(2, 0, 1)
        return found

    # PIL gives the interpreter lock back while it decodes, so threads are enough.
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        with progress_bar() as show:
            decoded = pool.map(decode_chunk, range(0, len(files), _CHUNK))
            for number, found in enumerate(decoded, 1):
                problems.extend(found)
                show("decoding images", min(number * _CHUNK, len(files)), len(files))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for all files
    if problems:
        raise ValueError(_bad_files(root, problems))
    mean, std = _channel_statistics(torch.from_numpy(pixels[: listing.num_train]))
    labels = np.array([file.label for file in files], dtype=np.int64)
    return {"images": pixels, "labels": labels, "mean": mean.numpy(), "std": std.numpy()}


def _try_to_read(path: Path, shape: tuple[int, int] | None) -> Bytes | str:
    """The image, of shape (H, W, 3), or what is wrong with it."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            # A palette with alpha values: PIL warns when it has to drop them on the way.
            palette = opened.mode == "P" and "transparency" in opened.info
            image = (opened.convert("RGBA") if palette else opened).convert("RGB")
        if shape is not None:
            image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
        return np.asarray(image)
    except Exception as error:  # for bad files: OSError, SyntaxError, struct.error, ...
        return str(error).replace(f" {str(path)!r}", "") or type(error).__name__


def _channel_statistics(images: Tensor) -> Pair:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""
    # From the histogram of each channel: exact, since counts of bytes are whole numbers.
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)])
    shares = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = shares @ values
    std = (shares * (values - mean[:, None]) ** 2).sum(dim=1).sqrt()
    return mean.float(), std.float()


def _read_cifar10(root: Path, *, download: bool) -> ImageData:
    from torchvision.datasets import CIFAR10

    parts = []
    for train in (True, False):
        try:
            with warnings.catch_warnings():
                # The batches were pickled by an old numpy, which the present one notes.
                warnings.simplefilter("ignore")
                parts.append(CIFAR10(root, train=train, download=download))
        except (OSError, RuntimeError) as error:
            repair = (
                "Is there a network? Put cifar-10-python.tar.gz there yourself, or give an image "
                f"folder with {LAYOUT}."
                if download
                else f"Remove {CIFAR_FOLDER!r} there and ask for the download, or copy it again."
            )
            raise ValueError(
                f"CIFAR-10 must be complete in {str(root)!r}, but: {error} {repair}"
            ) from error
    pairs = [
        (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    ]
    mean, std = _channel_statistics(pairs[0][0])
    classes = tuple(parts[0].classes)
    return ImageData(train=pairs[0], val=pairs[1], classes=classes, mean=mean, std=std)
