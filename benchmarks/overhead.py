"""Claim: `lrfinder.train` costs next to nothing beside a bare PyTorch loop, and neither does recording it in MLflow.

`Net` on CIFAR-10 batches of 64, SGD with momentum, all on the same tensors. The arms take turns
within one run, and the ratio is taken round by round:

    python -m benchmarks.overhead --data FOLDER      # the image folder of CIFAR-10
    python -m benchmarks.overhead                    # random images of the same shape
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lrfinder
from benchmarks.results_file import interleave, paired_ratio, write_result
from lrfinder.shipped import Net

BATCH = 64
GROUPS = {"features": "features.*", "classifier": "classifier.*"}
BARS = {"train": 1.03, "train + MlflowRecorder": 1.05}


def batches(data: str | None, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first `count` training batches, as float tensors, so that all arms get the very same ones."""
    if data is None:
        generator = torch.Generator().manual_seed(0)
        return [
            (
                torch.randn(BATCH, 3, 32, 32, generator=generator),
                torch.randint(10, (BATCH,), generator=generator),
            )
            for _ in range(count)
        ]
    task = lrfinder.load_task("cifar10", data=data)
    loader = task.start(0, device="cpu").train_loader
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same start for every arm."""
    torch.manual_seed(0)
    model = Net()
    groups = lrfinder.param_groups(model, GROUPS)
    return model, torch.optim.SGD(groups, lr=0.01, momentum=0.9)


def bare(data: list[tuple[Tensor, Tensor]]) -> float:
    """The loop that everyone writes."""
    model, optimizer = fresh()
    criterion = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for inputs, targets in data:
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def ours(data: list[tuple[Tensor, Tensor]], recorder: Any = None) -> float:
    """The same steps through `lrfinder.train`."""
    model, optimizer = fresh()
    loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())
    start = time.perf_counter()
    lrfinder.train(model, optimizer, loss_fn, data, num_epochs=1, recorder=recorder, verbose=False)
    return time.perf_counter() - start


def recorded(data: list[tuple[Tensor, Tensor]], recorder: Any) -> float:
    """As `ours`, with what the recorder does while the training runs; the final flush happens outside."""
    taken = ours(data, recorder)
    recorder.flush()
    return taken


def main() -> None:
    """Measure, print and write `results/overhead.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    # One thread by default: on a shared machine torch's threads wait for each other, and the noise
    # of that is a hundred times what is measured here (benchmarks/threads.py).
    torch.set_num_threads(options.threads)
    data = batches(options.data, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        with lrfinder.MlflowRecorder(experiment="overhead", tracking_uri=store) as recorder:
            seconds = interleave(
                {
                    "bare loop": lambda: bare(data),
                    "train": lambda: ours(data),
                    "train + MlflowRecorder": lambda: recorded(data, recorder),
                },
                rounds=options.rounds,
            )
    rows = []
    for arm in seconds:
        per_step = 1e3 * statistics.median(seconds[arm]) / len(data)
        row = {"arm": arm, "ms_per_step": per_step, **paired_ratio(seconds, arm, "bare loop")}
        rows.append(row | {"bar": BARS.get(arm)})
        print(
            f"{arm:24s} {per_step:8.3f} ms/step   x{row['ratio']:.4f}"
            f"  [{row['quartile_1']:.4f}, {row['quartile_3']:.4f}]"
        )
    source = "CIFAR-10 images" if options.data else "random images"
    write_result("overhead", rows, steps=len(data), rounds=options.rounds, data=source)


if __name__ == "__main__":
    main()
