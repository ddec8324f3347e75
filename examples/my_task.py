"""A task of your own for the command line: copy this file, put your model and data in, and run

mlflow run . -P task=examples/my_task.py:make_task
lrfinder range_test --task examples/my_task.py:make_task
"""

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrfinder


def make_task(batch_size: int = 16) -> lrfinder.Task:
    """Wine: 178 samples of 13 measurements, three classes."""
    wine = load_wine()
    inputs = torch.tensor(wine.data, dtype=torch.float32)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    targets = torch.tensor(wine.target)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, val = (
        TensorDataset(inputs[part], targets[part]) for part in (order[:130], order[130:])
    )
    return lrfinder.Task(
        name="wine",
        make_model=lambda: nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3)),
        groups={"body": "0.*", "head": "2.*"},
        make_optimizer=lambda groups: torch.optim.AdamW(groups),
        loss_fn=lrfinder.supervised(nn.CrossEntropyLoss()),
        train_loader=lambda seed: DataLoader(
            train, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
        ),
        val_loader=DataLoader(val, batch_size=48),
        metrics={"accuracy": lrfinder.accuracy},
        num_epochs=8,
    )
