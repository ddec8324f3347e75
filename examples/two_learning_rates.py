"""A CNN with two sub-networks, `features` and `classifier`, and a learning rate for each.

`features` keeps what it knows (1e-5) while `classifier` learns (1e-2). The groups are named, so
every tool that shows or records a learning rate can say whose it is.
"""

import torch
from torch import nn

import lrfinder

torch.manual_seed(0)
model = lrfinder.Net()  # two convolutions, then three linear layers
spec = {
    "features": "features.*",
    "classifier": {"params": "classifier.*", "lr": 1e-2, "weight_decay": 5e-4},
}
groups = lrfinder.param_groups(model, spec, lr=1e-5)  # lr: of the groups that set none
optimizer = torch.optim.SGD(groups, momentum=0.9)

print(optimizer)  # as torch shows it
print(optimizer.param_groups[0]["weight_decay"], optimizer.param_groups[1]["weight_decay"])
print(lrfinder.describe(optimizer))  # and better

images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
nn.functional.cross_entropy(model(images), labels).backward()
optimizer.step()
for name, parameter in model.named_parameters():
    if name.endswith("0.weight"):
        step = (parameter - before[name]).abs().mean() / parameter.grad.abs().mean()
        print(f"{name}: |step| / |gradient| = {step:.0e}")  # the group's own learning rate
