"""Tests of batch orders: the same again, seeded, endless, and without a trace in random states."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lrfinder.datasets import TensorLoader
from lrfinder.engines.batches import BatchOrders, copied, num_bytes
from lrfinder.snapshots import loader_generators, random_state
from tests.helpers import same, tiny_data, tiny_loader

LOADERS: dict[str, Any] = {
    "global": tiny_loader,
    "own generator": lambda: tiny_loader(generator=torch.Generator().manual_seed(5)),
    "resident": lambda: TensorLoader(*tiny_data(), batch_size=8, shuffle=True),
    "list": lambda: list(tiny_loader()),
}


def take(orders: BatchOrders, order: int, count: int, *, skip: int = 0) -> list[Any]:
    return list(itertools.islice(orders.batches(order, skip=skip), count))


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("memory", [10**9, 500, 0])
def test_an_order_is_the_same_each_time_and_leaves_no_trace(kind: str, memory: int) -> None:
    loader = LOADERS[kind]()
    orders = BatchOrders(loader, seed=3, memory=memory)
    before = random_state(), [g.get_state() for g in loader_generators(loader)]
    first = take(orders, 0, 7)
    other = take(orders, 1, 7)
    torch.rand(5)  # what a training draws in between
    again = take(orders, 0, 5, skip=2)
    assert same(again, first[2:])
    assert same(take(BatchOrders(LOADERS[kind](), seed=3), 0, 7), first) or kind == "list"
    assert same(first, other) == (kind == "list")  # a list has one order
    torch.set_rng_state(before[0]["torch"])
    assert same((random_state(), [g.get_state() for g in loader_generators(loader)]), before)


def test_seeds_give_other_orders() -> None:
    left = take(BatchOrders(tiny_loader(), seed=0), 0, 3)
    right = take(BatchOrders(tiny_loader(), seed=1), 0, 3)
    assert not same(left, right)


def test_epochs_differ_and_each_holds_all_samples() -> None:
    loader = DataLoader(torch.arange(6), batch_size=2, shuffle=True)  # type: ignore[arg-type]
    batches = torch.cat(take(BatchOrders(loader, seed=0), 0, 6)).reshape(2, 6)
    assert batches.sort(dim=1).values.tolist() == [list(range(6))] * 2
    assert batches[0].tolist() != batches[1].tolist()


def test_a_batch_that_is_changed_in_place_is_whole_for_the_next() -> None:
    orders = BatchOrders([torch.ones(2)], seed=0)
    take(orders, 0, 1)[0].zero_()
    assert take(orders, 0, 1)[0].tolist() == [1.0, 1.0]


def test_what_does_not_fit_is_drawn_again() -> None:
    orders = BatchOrders(tiny_loader(), seed=0, memory=2 * num_bytes(next(iter(tiny_loader()))))
    take(orders, 0, 6)
    assert orders.kept_bytes <= orders.memory
    assert len(orders._kept[0]) == 2


def test_two_places_of_an_order_that_is_not_kept_are_drawn_from_in_turn() -> None:
    drawn: list[int] = []

    class Counted:
        def __iter__(self) -> Any:
            for number in range(10):
                drawn.append(number)
                yield torch.tensor([number])

    orders = BatchOrders(Counted(), seed=0, memory=0)
    ahead, behind = orders.batches(0, skip=5), orders.batches(0)
    pairs = [(int(next(ahead)), int(next(behind))) for _ in range(4)]
    assert pairs == [(5, 0), (6, 1), (7, 2), (8, 3)]
    assert len(drawn) == 9 + 4  # neither begins again


def test_copies_share_no_tensor() -> None:
    batch = {"x": torch.ones(2), "y": (torch.ones(1), [np.ones(1)])}
    made = copied(batch)
    made["x"].zero_()
    made["y"][0].zero_()
    made["y"][1][0][:] = 0
    assert batch["x"].sum() == 2
    assert batch["y"][0].item() == batch["y"][1][0].item() == 1


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, "at least one batch"),
        (iter([torch.ones(1)]), TypeError, "iterated again"),
        (3, TypeError, "iterable of batches"),
    ],
)
def test_bad_loaders(loader: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        take(BatchOrders(loader, seed=0), 0, 1)


def test_batches_of_growing_size_are_whole_where_the_memory_is_short() -> None:
    loader = [torch.full((size,), float(size)) for size in range(1, 60)]
    for memory in (0, 400, 1000, 3000, 10**6):
        orders = BatchOrders(loader, seed=0, memory=memory)
        for _ in range(2):
            drawn = [len(batch) for batch in itertools.islice(orders.batches(0), 59)]
            assert drawn == list(range(1, 60))
        assert orders.kept_bytes <= memory
