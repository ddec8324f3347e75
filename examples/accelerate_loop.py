"""Accelerate: a range test of what `prepare` returned, then the loop as it was."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrfinder
from lrfinder.integrations import accelerate as lra

if __name__ == "__main__":
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    groups = lrfinder.param_groups(model, {"body": "0.*", "head": "2.*"}, lr=1e-3)
    inputs = torch.randn(512, 20)
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(groups), DataLoader(data, 16, shuffle=True)
    )
    loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())

    result = lra.range_test(accelerator, model, optimizer, loss_fn, loader, effort="quick")
    print(result)
    result.suggestion.apply(optimizer)

    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_fn(model, batch))
            optimizer.step()
            optimizer.zero_grad()
