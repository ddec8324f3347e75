"""Random states: of this process and of loaders, as they are now, and put back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The random states of python, numpy and torch (CPU and every CUDA and MPS device in use).

    In the form that each library keeps, which is quick, and for this process.
    """

    python: tuple[Any, ...]
    numpy: Any
    torch: Tensor
    cuda: list[Tensor] | None
    mps: Tensor | None

    @classmethod
    def here(cls) -> RandomState:
        """As they are now."""
        # torch has no annotation for it.
        has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(legacy=True),
            torch=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state_all() if has_cuda else None,
            mps=torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        )

    def restore(self) -> None:
        """Put them back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.cuda)
        if self.mps is not None and torch.backends.mps.is_available():
            torch.mps.set_rng_state(self.mps)


def random_state() -> dict[str, Any]:
    """`RandomState.here`, to be written to a file.

    Made of tensors, numbers, text, lists and dicts alone, so that a checkpoint with it loads with
    `weights_only=True`.
    """
    here = RandomState.here()
    version, internal, gauss = here.python
    name, keys, position, has_gauss, cached = here.numpy
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "torch": here.torch,
    }
    if here.cuda is not None:
        state["cuda"] = here.cuda
    if here.mps is not None:
        state["mps"] = here.mps
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    version, internal, gauss = state["python"]
    name, keys, position, has_gauss, cached = state["numpy"]
    cuda, mps = state.get("cuda"), state.get("mps")
    RandomState(
        python=(version, tuple(internal), gauss),
        numpy=(name, keys.numpy().astype(np.uint32), position, has_gauss, cached),
        torch=state["torch"].cpu(),
        cuda=None if cuda is None else [part.cpu() for part in cuda],
        mps=None if mps is None else mps.cpu(),
    ).restore()


def loader_generators(loader: Any) -> list[torch.Generator]:
    """The generators of its own that a loader draws its order from: its, its sampler's, its batch sampler's."""
    places = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    places.append(getattr(places[2], "sampler", None))
    found: dict[int, torch.Generator] = {}
    for place in places:
        generator = getattr(place, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = generator
    return list(found.values())
