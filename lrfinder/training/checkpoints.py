"""Checkpoints: files that are whole or not there, and load without running code.

A checkpoint is written to a temporary name beside its own, forced to the disk, and moved into
place: whatever happens in between, the last good one remains.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, cannot be read, or is of another training."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state to the path, all or nothing.

    Raises:
        CheckpointError: If it cannot be written (a full disk, no permission). The last good one
            remains.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part"
        )
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        kept = (
            f"The last good checkpoint remains in {path}" if path.exists() else "There is none yet"
        )
        raise CheckpointError(
            f"The checkpoint {path} must be writable, but writing it failed: {error}. {kept}. "
            "Make room or give another path, and start the same call again: it goes on from there."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU. Loads tensors and plain values alone: no code runs.

    Raises:
        CheckpointError: If the file is damaged, or no checkpoint of lrfinder.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise CheckpointError(
            f"{path} must be a checkpoint of lrfinder, but it cannot be read: {error}. Remove it, or give another path."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} must be a checkpoint of lrfinder in format {FORMAT}, but it is not. "
            "Remove it, or give another path."
        )
    return cast("dict[str, Any]", state)


def fingerprint(
    model: nn.Module, optimizer: torch.optim.Optimizer, group_names: list[str]
) -> dict[str, Any]:
    """What must agree for a checkpoint to be of this training: names and shapes of the tensors, optimizer, groups."""
    tensors = {
        name: list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if torch.is_tensor(tensor)
    }
    return {"tensors": tensors, "optimizer": type(optimizer).__name__, "groups": list(group_names)}


def check_fingerprint(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise a CheckpointError that shows the first difference where a checkpoint is of another training."""
    for key in ("optimizer", "groups"):
        if saved[key] != current[key]:
            _refuse(path, f"its {key} is {saved[key]!r}, and this one's is {current[key]!r}")
    for name in (*saved["tensors"], *current["tensors"]):
        theirs, ours = saved["tensors"].get(name), current["tensors"].get(name)
        if theirs != ours:
            shapes = [f"has shape {s}" if s is not None else "is missing" for s in (theirs, ours)]
            _refuse(path, f"{name!r} {shapes[0]} there and {shapes[1]} here")


def _refuse(path: Path, difference: str) -> None:
    raise CheckpointError(
        f"The checkpoint {path} must be of the same model, optimizer and groups, but {difference}. "
        "Give another path, or remove it to start anew."
    )


def non_persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that `state_dict` leaves out, by name: they too change the numbers of a training."""
    persistent = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in persistent}


def best_path(path: str | Path) -> Path:
    """Where the best checkpoint lies: `run.pt` -> `run.best.pt`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.best{path.suffix}")
