"""A CNN with two sub-networks, and a learning rate for each.

`features` keeps what it knows (1e-5) while `classifier` learns (1e-2). The groups are named, so
every tool that shows or records a learning rate can say whose it is.
"""

import torch
from torch import nn

import lrfinder


class Net(nn.Module):
    """Two convolutions, then three linear layers. Input (N, 3, 32, 32), output (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images).flatten(1))


def main() -> torch.optim.Optimizer:
    torch.manual_seed(0)
    model = Net()
    groups = lrfinder.param_groups(
        model,
        {
            "features": "features.*",
            "classifier": {"params": "classifier.*", "lr": 1e-2, "weight_decay": 5e-4},
        },
        lr=1e-5,  # the default of the groups that set none
    )
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
    return optimizer


if __name__ == "__main__":
    main()
