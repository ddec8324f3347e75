"""A learning rate for each parameter group in three lines, a picture, and a model left exactly as it was."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import lrfinder


def main(picture: str = "") -> lrfinder.RangeTest:
    torch.manual_seed(0)
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    targets = torch.tensor(digits.target)
    dataset = torch.utils.data.TensorDataset(inputs, targets)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    groups = lrfinder.param_groups(model, {"body": ["0.*", "2.*"], "head": "4.*"})
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
    loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())

    result = lrfinder.range_test(model, optimizer, loss_fn, loader)
    print(result)
    result.suggestion.apply(optimizer)

    if picture:
        result.plot().figure.savefig(picture)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
