"""Layer-wise decay, no weight decay on biases and norms, adapters, widths; and how they compose."""

from collections import OrderedDict

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import lrfinder


def make_model(width: int = 16) -> nn.Sequential:
    blocks = [
        nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()) for _ in "123"
    ]
    parts = {"embed": nn.Linear(8, width), "blocks": nn.Sequential(*blocks)}
    return nn.Sequential(OrderedDict(parts, head=nn.Linear(width, 2)))


if __name__ == "__main__":
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    loader = [(x, (x[:, 0] > 0).long()) for x in inputs.split(32)]
    loss_fn = lrfinder.supervised(nn.CrossEntropyLoss())

    model = make_model()
    groups = lrfinder.layerwise_groups(model, 0.75, layers="blocks", weight_decay=0.05)
    optimizer = torch.optim.AdamW(lrfinder.split_decay(groups))
    result = lrfinder.range_test(model, optimizer, loss_fn, loader, groups="together")
    result.suggestion.apply(optimizer)  # one learning rate was looked for, the ratios are kept
    print(lrfinder.describe(optimizer))
    adapted = get_peft_model(model, LoraConfig(target_modules=r"blocks\.\d\.0", r=4))
    adapters = lrfinder.param_groups(adapted, {"A": "*lora_A*", "B": "*lora_B*"}, lr=1e-3)
    optimizer = torch.optim.AdamW(adapters)
    print(lrfinder.range_test(adapted, optimizer, loss_fn, loader, effort="quick"))
    wide = make_model(64)
    lr = result.suggestion.lrs["head"]
    groups = lrfinder.width_groups(wide, make_model(16), lr=lr, weight_decay=0.05)
    print(lrfinder.describe(torch.optim.AdamW(lrfinder.split_decay(groups))))
