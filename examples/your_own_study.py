"""Optuna: a study and an objective of your own; the groups' learning rates come from a range test."""

import optuna
import torch
from torch import nn

import lrfinder

inputs = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
loader = [(x, (x[:, 0] * x[:, 1] > 0).long()) for x in inputs.split(32)]
loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    groups = lrfinder.param_groups(model, {"body": "0.*", "head": "2.*"}, lr=1e-3)
    return model, torch.optim.AdamW(groups)


def objective(trial: optuna.Trial) -> float:
    model, optimizer = make()
    lrfinder.set_learning_rate(optimizer, lrfinder.suggest_lrs(trial, result))
    gamma = trial.suggest_float("gamma", 0.5, 1.0)  # and whatever else is yours
    schedule = {"name": "ExponentialLR", "gamma": gamma}
    options = {"num_epochs": 5, "scheduler": schedule, "verbose": False}
    lrfinder.train(model, optimizer, loss_fn, loader[:12], **options)
    return lrfinder.evaluate(model, loss_fn, loader[12:])["val/loss"]


if __name__ == "__main__":
    result = lrfinder.range_test(*make(), loss_fn, loader[:12])
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial({f"lr/{name}": lr for name, lr in result.suggestion.lrs.items()})
    study.optimize(objective, n_trials=10)
    print(study.best_params)
