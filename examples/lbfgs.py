"""LBFGS: an optimizer that needs a closure. The range test gives it one; nothing else differs."""

import torch
from sklearn.datasets import load_wine
from torch import nn

import lrfinder

if __name__ == "__main__":
    torch.manual_seed(0)
    wine = load_wine()
    inputs = torch.tensor(wine.data, dtype=torch.float32)
    inputs, targets = (inputs - inputs.mean(0)) / inputs.std(0), torch.tensor(wine.target)
    shuffled = torch.randperm(len(inputs))
    inputs, targets = inputs[shuffled], targets[shuffled]
    loader = [(inputs[i::3], targets[i::3]) for i in range(3)]
    model = nn.Linear(13, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())

    result = lrfinder.range_test(model, optimizer, loss_fn, loader, start_lr=1e-3)
    print(result)
    result.suggestion.apply(optimizer)
    lrfinder.train(model, optimizer, loss_fn, loader, num_epochs=3)
    print(f"loss {lrfinder.evaluate(model, loss_fn, loader)['val/loss']:.3g}")
