"""Tests of one training by several processes: as one process with all the data, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import lrfinder
from lrfinder.datasets import TensorLoader
from lrfinder.distributing import Share, share_of

ROOT = Path(__file__).parents[1]

# Run by this test alone, and by two processes of torchrun with half the batch.
CODE = """
import json, os, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import lrfinder
from lrfinder.datasets import TensorLoader

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
inputs = torch.randn(96, 5)
targets = inputs[:, :2].sum(1, keepdim=True)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.unused = nn.Linear(2, 2)

def loss_fn(model, batch):  # which knows the parts of the model
    return nn.functional.mse_loss(model.head(model.body(batch[0])), batch[1])

def made(unlike=False):
    torch.manual_seed(1)
    model = Two()
    if unlike and not lrfinder.is_main():  # processes begin with the first one's weights
        with torch.no_grad():
            model.head.weight.zero_()
    groups = {"body": "body.*", "head": "head.*", "unused": "unused.*"}
    return model, torch.optim.AdamW(lrfinder.param_groups(model, groups), lr=1e-2)

class Counting(lrfinder.NullRecorder):
    steps = 0
    def log_step(self, *args, **more):
        Counting.steps += 1

with lrfinder.process_group():
    size = int(sys.argv[2])
    data = TensorDataset(inputs, targets)
    loaders = {
        "tensors": TensorLoader(inputs, targets, batch_size=size, shuffle=True),
        "loader": DataLoader(data, batch_size=size, shuffle=True, generator=torch.Generator()),
    }
    found = {}
    for name, loader in loaders.items():
        model, optimizer = made(unlike=True)
        trace = lrfinder.train(
            model, optimizer, loss_fn, loader, num_epochs=3, seed=0, val_loader=[data[:50]],
            scheduler={"name": "ExponentialLR", "gamma": 0.9}, recorder=Counting(),
            options=lrfinder.StepOptions(accumulation=2, clip_norm=0.5), verbose=True,
            checkpoint=f"{sys.argv[1]}.{name}.pt",
        )
        found[name] = {
            "losses": trace.losses.tolist(), "lrs": trace.lrs["head"].tolist(),
            "val": trace.metrics["val/loss"][1].tolist(),
            "weights": torch.cat([p.flatten() for p in model.parameters()]).tolist(),
        }
    model, optimizer = made()
    before = [p.clone() for p in model.parameters()]
    result = lrfinder.range_test(
        model, optimizer, loss_fn, loaders["tensors"], effort="quick", num_steps=40
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    found["range"] = {
        "ramps": [trace.losses.tolist() for trace in result.traces],
        "lrs": dict(result.suggestion.lrs), "engine": result.cost.engine,
        "reason": result.cost.reason,
        "status": {k: b.status for k, b in result.suggestion.brackets.items()},
    }
    found["recorded"] = Counting.steps
    rank = os.environ.get("RANK", "0")
    open(f"{sys.argv[1]}.{rank}.json", "w").write(json.dumps(found))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", *arguments],
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONWARNINGS": "ignore"},
        **options,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process found, and what two did."""
    folder = tmp_path_factory.mktemp("ddp")
    script = folder / "script.py"
    script.write_text(CODE)
    alone = subprocess.run(
        [sys.executable, str(script), str(folder / "one"), "16"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert alone.returncode == 0, alone.stderr
    done = torchrun(str(script), str(folder / "two"), "8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Epoch [1/3]") == 2  # of two trainings, by the first process alone
    names = {"alone": "one.0", "first": "two.0", "second": "two.1"}
    return {
        name: json.loads((folder / f"{file}.json").read_text()) for name, file in names.items()
    }


@pytest.mark.parametrize("loader", ["tensors", "loader"])
def test_two_processes_train_as_one_with_twice_the_batch(results, loader: str) -> None:
    alone, first, second = (results[name][loader] for name in ("alone", "first", "second"))
    assert len(alone["losses"]) == 9
    for key in ("losses", "lrs", "val", "weights"):
        assert first[key] == pytest.approx(alone[key], abs=1e-6), key
        assert first[key] == second[key], key


def test_a_range_test_of_two_processes_is_that_of_one_with_twice_the_batch(results) -> None:
    alone, first, second = (results[name]["range"] for name in ("alone", "first", "second"))
    assert len(alone["ramps"]) == len(first["ramps"]) > 2
    for own, theirs in zip(alone["ramps"], first["ramps"], strict=True):
        assert theirs == pytest.approx(own, rel=1e-6)
    assert first["lrs"] == pytest.approx(alone["lrs"], rel=1e-6)
    assert set(first["lrs"]) == {"body", "head"}
    assert first["status"] == alone["status"]
    assert first["status"]["unused"] == "flat"  # no gradient reaches it, which is no error
    assert first == second
    assert first["engine"] == "stepping"
    assert "several processes train one model together" in first["reason"]


def test_the_first_process_alone_records(results) -> None:
    assert results["alone"]["recorded"] == results["first"]["recorded"] == 18
    assert results["second"]["recorded"] == 0


def test_a_command_runs_under_torchrun(tmp_path: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    done = torchrun(
        *("-m", "lrfinder", "train", "--task", "tests.searching.test_searching:tiny_task"),
        *("--num-epochs", "2", "--device", "cpu"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("tiny: completed after") == 1
    (run,) = MlflowClient(mlflow_uri).search_runs(["0"])
    assert run.info.status == "FINISHED"
    steps = MlflowClient(mlflow_uri).get_metric_history(run.info.run_id, "train/loss")
    assert len(steps) == 6  # two epochs of 48 samples, by two processes with batches of 8


def test_shares_are_alike_in_number_and_hold_every_sample() -> None:
    for samples in (1, 2, 5, 7, 96):
        for count in (1, 2, 3, 8):
            order = torch.randperm(samples)
            shares = [share_of(order, rank, count).tolist() for rank in range(count)]
            assert {len(share) for share in shares} == {-(-samples // count)}
            assert {number for share in shares for number in share} == set(range(samples))


def test_a_loader_of_tensors_has_parts_that_make_up_its_batches() -> None:
    loader = TensorLoader(torch.arange(12.0), batch_size=4, shuffle=True, seed=3)
    half = TensorLoader(torch.arange(12.0), batch_size=2, shuffle=True, seed=3)
    parts = [half.part(rank, 2) for rank in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    for (whole,), (first,), (second,) in zip(loader, *parts, strict=True):
        assert whole.tolist() == torch.stack([first, second], dim=1).flatten().tolist()
    assert parts[1].part(1, 2) is parts[1]


def test_alone_nothing_is_spread_and_everything_is_main() -> None:
    loader = DataLoader(TensorDataset(torch.zeros(4)))
    assert lrfinder.spread(loader) is loader
    assert lrfinder.is_main()
    share = Share(torch.utils.data.RandomSampler(range(5)), 0, 2)
    assert len(list(share)) == len(share) == 3


def test_a_search_under_torchrun_is_told_how_to_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrfinder import searching

    monkeypatch.setattr(searching, "is_distributed", lambda: True)
    with pytest.raises(ValueError, match=r"one process by itself.*they share it"):
        lrfinder.search(lrfinder.load_task("digits"), 1)
