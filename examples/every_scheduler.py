"""Any scheduler of torch from a spec: by epoch or by step, one for all groups or one for each.

The schedulers are torch's own objects. `lr_table` reads the learning rates off a real one, without
training.
"""

import sys

import torch
from torch import nn

import lrfinder

SPECS = {
    "StepLR": {"name": "StepLR", "step_size": 10, "gamma": 0.1},
    "MultiStepLR": {"name": "MultiStepLR", "milestones": [8, 20], "gamma": 0.1},
    "ExponentialLR": {"name": "ExponentialLR", "gamma": 0.9},
    "CosineAnnealingLR": {"name": "CosineAnnealingLR", "T_max": 30, "eta_min": 1e-4},
    "OneCycleLR": {"name": "OneCycleLR", "total_steps": 31},
    # Warm-up by composition: five steps up, then a cosine.
    "warm-up + cosine": {
        "name": "SequentialLR",
        "schedulers": [
            {"name": "LinearLR", "start_factor": 0.01, "total_iters": 5},
            {"name": "CosineAnnealingLR", "T_max": 25},
        ],
        "milestones": [5],
    },
    "one for each group": {
        "features": {"name": "ExponentialLR", "gamma": 0.95},
        "classifier": {"name": "MultiStepLR", "milestones": [10, 20], "gamma": 0.3},
    },
}
BASE_LRS = {"features": 1e-3, "classifier": 1e-1}


def main(picture: str = "") -> None:
    print("torch has:", ", ".join(lrfinder.scheduler_names()))
    for title, spec in SPECS.items():
        table = lrfinder.lr_table(spec, BASE_LRS, num_steps=30)
        shown = ", ".join(
            f"{group}: {lrs[0]:.2g} .. {lrs[-1]:.2g}" for group, lrs in table.items()
        )
        print(f"{title:20s} {shown}")

    # The same specs train: here stepped at each optimizer step, with a plateau schedule that sees
    # the validation loss.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    groups = lrfinder.param_groups(model, {"features": "0.*", "classifier": "2.*"}, lr=0.1)
    loader = [(x, (x[:, 0] > 0).long()) for x in torch.randn(128, 10).split(32)]
    for spec in (
        {"name": "CosineAnnealingLR", "T_max": 12, "interval": "step"},
        {"name": "ReduceLROnPlateau", "patience": 0, "factor": 0.5},
    ):
        optimizer = torch.optim.SGD(groups)
        lrfinder.set_learning_rate(optimizer, 0.1)
        loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())
        lrfinder.train(
            model, optimizer, loss_fn, loader, num_epochs=3, scheduler=spec, val_loader=loader
        )

    if picture:
        axes = lrfinder.plot_lr_table(SPECS["warm-up + cosine"], BASE_LRS, num_steps=30)
        axes.figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:2])
