"""A training function with a scheduler: the scheduler is stepped at each epoch's end.

Each epoch prints the learning rate that it *used*. A loop that prints after `scheduler.step()`
shows the next epoch's instead: with StepLR(step_size=10, gamma=0.1) epoch 10 would show 0.01
although it trained with 0.1.
"""

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import lrfinder


def train_model(model, optimizer, scheduler, train_loader, num_epochs):
    """Train with cross entropy; prints `Epoch [1/20], Learning Rate: 0.100000` and so on."""
    loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())
    return lrfinder.train(
        model, optimizer, loss_fn, train_loader, num_epochs=num_epochs, scheduler=scheduler
    )


torch.manual_seed(0)
inputs = torch.randn(200, 10)
train_loader = [(x, (x[:, 0] > 0).long()) for x in inputs.split(50)]
model = lrfinder.SimpleModel(input_dim=10, hidden_dim=32, output_dim=2)  # three linear layers
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = StepLR(optimizer, step_size=10, gamma=0.1)
train_model(model, optimizer, scheduler, train_loader, num_epochs=20)
