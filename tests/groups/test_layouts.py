"""Groups that people use: they partition the parameters, keep their ratios, and compose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lrfinder


class Encoder(nn.Module):
    """A Transformer in miniature: an embedding, blocks, a norm and a head."""

    def __init__(self, depth: int = 3, width: int = 8, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def all_of(groups: list[dict[str, Any]]) -> list[int]:
    return sorted(id(p) for group in groups for p in group["params"])


@settings(max_examples=30, deadline=None)
@given(
    depth=st.integers(2, 5),
    decay=st.floats(0.1, 1.0),
    lr=st.floats(1e-6, 10.0),
    tied=st.booleans(),
    frozen=st.sets(st.sampled_from(["embed", "blocks.0", "norm", "head"])),
)
def test_layouts_compose_and_partition(
    depth: int, decay: float, lr: float, tied: bool, frozen: set[str]
) -> None:
    model = Encoder(depth, tied=tied)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    groups = lrfinder.layerwise_groups(model, decay, lr=lr, weight_decay=0.1)
    split = lrfinder.split_decay(groups)
    trainable = sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all_of(groups) == all_of(split) == trainable
    optimizer = torch.optim.AdamW(split)
    lrs = lrfinder.learning_rates(optimizer)
    # Law: lr decay^(L + 1 - l).
    expected = {"stem": depth + 1, "head": 0} | {
        f"layer_{i}": depth + 1 - i for i in range(1, depth + 1)
    }
    assert {name: lr * decay ** expected[name] for name in lrs} == pytest.approx(lrs)
    for group in optimizer.param_groups:
        decays = {parameter.dim() >= 2 for parameter in group["params"]}
        assert decays == {group["weight_decay"] == 0.1}
    # Splitting what is split changes nothing.
    again = lrfinder.split_decay(split)
    assert [g["name"] for g in again] == [g["name"] for g in split]
    assert [all_of([g]) for g in again] == [all_of([g]) for g in split]


def test_layers_of_models_that_people_have() -> None:
    import torchvision
    import transformers

    vit = torchvision.models.VisionTransformer(32, 16, 4, 2, 16, 32)
    names = [group["name"] for group in lrfinder.layerwise_groups(vit)]
    assert names == ["stem", "layer_1", "layer_2", "layer_3", "layer_4", "head"]
    config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=3, n_head=2)
    gpt = transformers.GPT2LMHeadModel(config)
    groups = {g["name"]: g["params"] for g in lrfinder.layerwise_groups(gpt)}
    assert list(groups) == ["stem", "layer_1", "layer_2", "layer_3", "head"]
    assert any(p is gpt.lm_head.weight for p in groups["stem"])  # tied to the embedding


def test_layers_that_cannot_be_told_are_asked_for() -> None:
    import torchvision

    resnet = torchvision.models.resnet18(num_classes=2)
    with pytest.raises(ValueError, match=r"'layer1', 'layer2', 'layer3', 'layer4'.*Name it"):
        lrfinder.layerwise_groups(resnet)
    with pytest.raises(ValueError, match="this model has none"):
        lrfinder.layerwise_groups(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"at least two children, but got 'fc'.*'layer1'"):
        lrfinder.layerwise_groups(resnet, layers="fc")
    named = lrfinder.layerwise_groups(resnet, layers="layer4")
    assert [group["name"] for group in named] == ["stem", "layer_1", "layer_2", "head"]


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1, float("nan")])
def test_a_decay_out_of_its_bounds(decay: float) -> None:
    with pytest.raises(ValueError, match=r"`0 < decay <= 1` must hold"):
        lrfinder.layerwise_groups(Encoder(), decay)


@settings(max_examples=20, deadline=None)
@given(factor=st.integers(2, 6), lr=st.floats(1e-6, 1.0))
def test_width_groups_scale_matrices_alone(factor: int, lr: float) -> None:
    with torch.device("meta"):
        base = Encoder(width=8)
    model = Encoder(width=8 * factor)
    groups = lrfinder.split_decay(lrfinder.width_groups(model, base, lr=lr, weight_decay=0.1))
    assert all_of(groups) == sorted(id(p) for p in model.parameters())
    wide = [group for group in groups if group["lr_group"] == f"width_x{factor}"]
    assert {id(p) for group in wide for p in group["params"]} == {
        id(block[0].weight) for block in model.blocks
    }
    assert wide[0]["lr"] == pytest.approx(lr / factor)
    assert all(group["lr"] == lr for group in groups if group not in wide)


def test_width_groups_of_other_architectures() -> None:
    with pytest.raises(ValueError, match="has shape None where the model's has"):
        lrfinder.width_groups(Encoder(3), Encoder(2))
    with pytest.raises(ValueError, match=r"but has 'blocks.2.0.weight'"):
        lrfinder.width_groups(Encoder(2), Encoder(3))


def test_lora_adapters_by_pattern() -> None:
    import peft

    config = peft.LoraConfig(target_modules=["0"], r=2)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), config)
    spec = {"lora_A": "*lora_A*", "lora_B": {"params": "*lora_B*", "lr": 1.6e-3}}
    groups = lrfinder.split_decay(lrfinder.param_groups(model, spec, lr=1e-4))
    optimizer = torch.optim.AdamW(groups)
    assert lrfinder.learning_rates(optimizer) == {"lora_A": 1e-4, "lora_B": 1.6e-3}
    inputs = torch.randn(32, 4)
    loader = [(x, x[:, :2]) for x in inputs.split(16)]
    loss_fn = lrfinder.supervised(nn.MSELoss())
    result = lrfinder.range_test(
        model, optimizer, loss_fn, loader, effort="brackets", num_steps=20
    )
    assert set(result.suggestion.brackets) == {"lora_A", "lora_B"}


def test_a_group_without_parameters_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="Group 'a' must have \"params\""):
        lrfinder.split_decay([{"name": "a"}])
