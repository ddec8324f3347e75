"""Claim: the LR that is recorded is the LR that the optimizer used, at every step and group, over every scheduler.

A hook on `optimizer.step` reads the LRs at the moment of each update; they are compared with the
trace and with what MLflow gives back:

    python -m benchmarks.recorded_lrs
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lrfinder
from benchmarks.results_file import write_result

NUM_EPOCHS, STEPS_PER_EPOCH = 12, 4

SPECS: dict[str, dict[str, Any]] = {
    "ChainedScheduler": {
        "schedulers": [{"name": "ExponentialLR", "gamma": 0.9}, {"name": "ConstantLR"}]
    },
    "ConstantLR": {},
    "CosineAnnealingLR": {"T_max": 10},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.1, "step_size_up": 3},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"lr_lambda": lambda step: 1 / (1 + step)},
    "LinearLR": {},
    "MultiStepLR": {"milestones": [3, 7], "gamma": 0.1},
    "MultiplicativeLR": {"lr_lambda": lambda step: 0.95},
    "OneCycleLR": {"total_steps": NUM_EPOCHS * STEPS_PER_EPOCH},
    "PolynomialLR": {"total_iters": 10},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
    "SequentialLR": {
        "schedulers": [{"name": "LinearLR", "total_iters": 3}, {"name": "StepLR", "step_size": 3}],
        "milestones": [3],
    },
    "StepLR": {"step_size": 10, "gamma": 0.1},
}


def compare(name: str, interval: str, store: str) -> dict[str, Any]:
    """Train with one scheduler; count the (step, group) pairs whose recorded LR is the used one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    groups = lrfinder.param_groups(
        model, {"body": {"params": "0.*", "lr": 0.02}, "head": "2.*"}, lr=0.1
    )
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    used: list[list[float]] = []
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: used.append([float(group["lr"]) for group in opt.param_groups])
    )
    loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())
    data = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(STEPS_PER_EPOCH)]
    with lrfinder.MlflowRecorder(
        experiment="lrs", run_name=f"{name} {interval}", tracking_uri=store
    ) as recorder:
        trace = lrfinder.train(
            model,
            optimizer,
            loss_fn,
            data,
            num_epochs=NUM_EPOCHS,
            scheduler={"name": name, **SPECS[name], "interval": interval},
            val_loader=data,
            recorder=recorder,
            verbose=False,
        )
    in_trace = [list(row) for row in zip(*trace.lrs.values(), strict=True)]
    in_store = stored_lrs(store, recorder.run_id, list(trace.lrs), len(trace))
    pairs = [(s, g) for s in range(len(used)) for g in range(2)]
    agree = sum(bool(used[s][g] == in_trace[s][g] == in_store[s][g]) for s, g in pairs)
    changes = len({tuple(row) for row in used})
    return {
        "scheduler": name,
        "interval": interval,
        "lrs": len(pairs),
        "agree": agree,
        "different_lrs": changes,
    }


def stored_lrs(store: str, run_id: str, groups: list[str], num_steps: int) -> list[list[float]]:
    """What MLflow gives back for each step and group."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    histories = [
        {m.step: m.value for m in client.get_metric_history(run_id, f"lr/{group}")}
        for group in groups
    ]
    return [[history[step] for history in histories] for step in range(num_steps)]


def main() -> None:
    """Measure, print and write `results/recorded_lrs.json`."""
    missing = set(lrfinder.scheduler_names()) - set(SPECS)
    assert not missing, f"no spec for {missing}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        for name in lrfinder.scheduler_names():
            for interval in ("epoch", "step"):
                if name == "ReduceLROnPlateau" and interval == "step":
                    continue  # its metric is measured each epoch
                rows.append(compare(name, interval, store))
                print(
                    f"{name:28s} by {interval:5s}  {rows[-1]['agree']} of {rows[-1]['lrs']} agree"
                )
    total, agree = sum(row["lrs"] for row in rows), sum(row["agree"] for row in rows)
    print(f"in all: {agree} of {total}")
    write_result("recorded_lrs", rows, total=total, agree=agree)


if __name__ == "__main__":
    main()
