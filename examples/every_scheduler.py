"""Any scheduler of torch from a spec: by epoch or by step, one for all groups or one for each.

The schedulers are torch's own objects. `lr_table` reads the learning rates off a real one, without
training; `lrfinder.train(..., scheduler=spec)` trains with it, as `train_model.py` does.
"""

import sys

import lrfinder

WARM_UP = {"name": "LinearLR", "start_factor": 0.01, "total_iters": 5}
SPECS = {
    "StepLR": {"name": "StepLR", "step_size": 10, "gamma": 0.1},
    "MultiStepLR": {"name": "MultiStepLR", "milestones": [8, 20], "gamma": 0.1},
    "ExponentialLR": {"name": "ExponentialLR", "gamma": 0.9},
    "CosineAnnealingLR": {"name": "CosineAnnealingLR", "T_max": 30, "eta_min": 1e-4},
    "OneCycleLR, by step": {"name": "OneCycleLR", "total_steps": 30, "interval": "step"},
    "warm-up + cosine": {
        "name": "SequentialLR",
        "schedulers": [WARM_UP, {"name": "CosineAnnealingLR", "T_max": 25}],
        "milestones": [5],
    },
    "one for each group": {
        "features": {"name": "ExponentialLR", "gamma": 0.95},
        "classifier": {"name": "MultiStepLR", "milestones": [10, 20], "gamma": 0.3},
    },
}
BASE_LRS = {"features": 1e-3, "classifier": 1e-1}

print("torch has:", ", ".join(lrfinder.scheduler_names()))
for title, spec in SPECS.items():
    table = lrfinder.lr_table(spec, BASE_LRS, num_steps=30)
    shown = [f"{group}: {lrs[0]:.2g} .. {lrs[-1]:.2g}" for group, lrs in table.items()]
    print(f"{title:20s} {', '.join(shown)}")
if len(sys.argv) > 1:
    axes = lrfinder.plot_lr_table(SPECS["warm-up + cosine"], BASE_LRS, num_steps=30)
    axes.figure.savefig(sys.argv[1])
