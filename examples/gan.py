"""A GAN: two optimizers, each tested by itself while the other's parameters stay as they are."""

import torch
from torch import Tensor, nn

import lrfinder

model = nn.ModuleDict(
    {
        "generator": nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)),
        "critic": nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)),
    }
)


def generator_loss(model: nn.Module, real: Tensor) -> Tensor:
    fake = model["generator"](torch.randn_like(real))
    return (model["critic"](fake) - 1).square().mean()


def critic_loss(model: nn.Module, real: Tensor) -> Tensor:
    fake = model["generator"](torch.randn_like(real)).detach()
    return (model["critic"](real) - 1).square().mean() + model["critic"](fake).square().mean()


if __name__ == "__main__":
    torch.manual_seed(0)
    loader = [0.5 * torch.randn(64, 2) + 1 for _ in range(16)]
    for name, loss_fn in {"critic": critic_loss, "generator": generator_loss}.items():
        optimizer = torch.optim.Adam(model[name].parameters(), lr=1e-3)
        result = lrfinder.range_test(model, optimizer, loss_fn, loader)
        print(name, result, sep="\n")
