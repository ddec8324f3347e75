"""Changing learning rates by hand while training: 0.01 from epoch 20 on, and a tenth for every group from 30 on.

Only learning rates change: momentum buffers, weight decay and everything else in the optimizer
stay as they are.
"""

import torch
from torch import nn

import lrfinder


def main() -> lrfinder.Trace:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    groups = lrfinder.param_groups(
        model, {"body": "0.*", "head": {"params": "2.*", "lr": 0.2}}, lr=0.1
    )
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
    inputs = torch.randn(256, 20)
    loader = [(x, (x[:, 0] > 0).long()) for x in inputs.split(64)]

    def by_hand(epoch: int, values: object, trace: lrfinder.Trace) -> None:
        """Called after each epoch with its number, 0-based: what is set here holds from the next one on."""
        if epoch + 1 == 20:
            lrfinder.set_learning_rate(optimizer, 0.01)  # every group
        if epoch + 1 == 25:
            lrfinder.set_learning_rate(optimizer, {"head": 0.02})  # some
        if epoch + 1 == 30:
            lrfinder.scale_learning_rate(optimizer, 0.1)  # every group, ratios kept

    loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())
    trace = lrfinder.train(model, optimizer, loss_fn, loader, num_epochs=35, on_epoch=by_hand)
    print(lrfinder.describe(optimizer))
    return trace


if __name__ == "__main__":
    main()
