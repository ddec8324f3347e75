"""Distributing: one training by several processes, of one device each, as `torchrun` starts them.

Each process has the whole model and its share of the data. Gradients are averaged by torch's
`DistributedDataParallel`, losses here; so all processes see the same trace, and decide alike: on
the LR, on when to stop, on what to suggest. The first one alone writes records and files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

# Options of a DataLoader that its spread twin has too.
_KEPT = (
    *("batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout"),
    *("worker_init_fn", "multiprocessing_context", "generator", "prefetch_factor"),
    "persistent_workers",
)


def is_distributed() -> bool:
    """Whether this process is one of several that train a model together."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def is_main() -> bool:
    """Whether this process is the one that writes records and files: the first, or the only one."""
    return not is_distributed() or distributed.get_rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` has started; does nothing where it has not, or they are joined.

    Each takes the GPU of its local rank where there are GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes, the same bits on each; without others, itself."""
    return summed(value) / distributed.get_world_size() if is_distributed() else value


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes; without others, itself."""
    if not is_distributed():
        return value
    total = value.detach().clone().to(_place())
    distributed.all_reduce(total)
    return total.to(value.device)


def _place() -> torch.device:
    """Where tensors must be for the processes to talk about them."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")


class _Loss(nn.Module):
    """A loss as a module, so that whatever it calls of the model is inside one forward."""

    def __init__(self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self._loss_fn(self.model, batch)


def loss_of(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> Callable[[Any], Tensor]:
    """`batch -> loss_fn(model, batch)`, whose backward averages the gradients over the processes.

    Law: g = (1/W) sum_r grad loss_r, of W processes. All begin with the first one's parameters.
    A model that its owner wrapped is taken as it is.
    """
    if not is_distributed() or isinstance(model, DistributedDataParallel):
        return lambda batch: loss_fn(model, batch)
    # A group that no loss reaches is a finding of the range test, and no error.
    wrapped = DistributedDataParallel(_Loss(model, loss_fn), find_unused_parameters=True)
    return lambda batch: wrapped(batch)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a `DistributedDataParallel`; any other is itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def spread(loader: Any) -> Any:
    """A loader of this process's share of each batch.

    Law: with W processes, rank r has samples r, r + W, ... of each epoch's order, which is the
    first process's; the last ones are filled up from its beginning. So W processes with batches of
    B take the steps of one with batches of W B.

    Args:
        loader: A `DataLoader` or a `TensorLoader`. One that is spread already (by a
            `DistributedSampler`), and whatever else there is, is its owner's affair and is
            returned as it is. Without other processes all are.

    Raises:
        ValueError: If a `DataLoader` has a batch sampler or a sampler of its owner's own, of which
            nothing is known.
    """
    if not is_distributed():
        return loader
    rank, count = distributed.get_rank(), distributed.get_world_size()
    if hasattr(loader, "part"):
        return loader.part(rank, count)
    if not isinstance(loader, DataLoader) or isinstance(
        loader.sampler, (DistributedSampler, Share)
    ):
        return loader
    if not isinstance(loader.sampler, (RandomSampler, SequentialSampler)) or (
        loader.batch_size is None
    ):
        raise ValueError(
            "A DataLoader of several processes must have a sampler that spreads its samples, but "
            f"got {type(loader.sampler).__name__}. Give it a DistributedSampler."
        )
    options = {name: getattr(loader, name) for name in _KEPT}
    return DataLoader(loader.dataset, sampler=Share(loader.sampler, rank, count), **options)


class Share(Sampler[int]):
    """One process's share of what another sampler gives.

    Args:
        sampler: Its order in the first process is that of all.
        rank: 0 <= rank < count.
        count: Processes.
    """

    def __init__(self, sampler: Any, rank: int, count: int) -> None:
        self.sampler = sampler
        self.rank = rank
        self.count = count

    @property
    def generator(self) -> Any:
        """The other sampler's, which is part of where a training stands."""
        return getattr(self.sampler, "generator", None)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return -(-len(self.sampler) // self.count)

    def __iter__(self) -> Iterator[int]:
        """Begin an epoch."""
        return iter(share_of(torch.tensor(list(self.sampler)), self.rank, self.count).tolist())


def share_of(order: Tensor, rank: int, count: int) -> Tensor:
    """Every `count`-th of the first process's order from `rank` on, as many for each rank.

    Example:
        >>> share_of(torch.arange(5), 1, 2).tolist()
        [1, 3, 0]
    """
    if is_distributed():
        where, order = order.device, order.to(_place())
        distributed.broadcast(order, src=0)
        order = order.to(where)
    each = -(-len(order) // count)
    places = torch.arange(rank, each * count, count, device=order.device) % len(order)
    return order[places]
