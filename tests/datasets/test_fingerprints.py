from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lrfinder.datasets import TensorLoader
from lrfinder.datasets.fingerprints import data_facts


def test_equal_data_have_equal_digests_wherever_they_come_from() -> None:
    inputs, targets = torch.randn(10, 3), torch.arange(10)
    ours = TensorLoader(inputs, targets, batch_size=4, shuffle=True)
    theirs = DataLoader(TensorDataset(inputs.clone(), targets.clone()), batch_size=4)
    assert data_facts(ours) == data_facts(theirs)
    assert data_facts(ours)["profile"]["samples"] == 10


@pytest.mark.parametrize("change", ["value", "order", "dtype", "shape"])
def test_other_data_have_another_digest(change: str) -> None:
    inputs, targets = torch.randn(10, 4), torch.arange(10)
    before = data_facts(TensorLoader(inputs, targets, batch_size=4, shuffle=False))["digest"]
    if change == "value":
        inputs[9, 3] += 1e-6
        inputs[9, 3] *= 1.5
    parts = {
        "value": (inputs, targets),
        "order": (targets, inputs),
        "dtype": (inputs, targets.int()),
        "shape": (inputs.reshape(10, 2, 2), targets),
    }[change]
    after = data_facts(TensorLoader(*parts, batch_size=4, shuffle=False))["digest"]
    assert after != before


def test_nothing_is_drawn_from_a_loader() -> None:
    class Drawn(Dataset[int]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> int:
            raise AssertionError

    facts = data_facts(DataLoader(Drawn(), batch_size=2))
    assert facts["name"] == "Drawn"
    assert facts["profile"]["samples"] == 5
    assert "digest_of" in facts["profile"]

    def endless() -> object:
        while True:
            yield 0

    assert data_facts(endless())["profile"]["dataset"] == "generator"
