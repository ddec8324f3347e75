"""Transformers' own Trainer and Accelerate's own wrappers, with models from their configurations: no hub."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

import lrfinder
from lrfinder.integrations import accelerate as lra
from lrfinder.integrations import transformers as lrt

BRIEF: dict[str, Any] = {"effort": "brackets", "num_steps": 60, "engine": "stepping"}


def data(count: int = 64) -> list[dict[str, Any]]:
    """Sentences of 8 tokens; the label is whether the first is large."""
    tokens = torch.randint(0, 16, (count, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": int(row[0] >= 8)} for row in tokens]


def model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)


class Used(TrainerCallback):
    """The LRs that each step used, as torch has them."""

    def __init__(self) -> None:
        self.lrs: list[list[float]] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.lrs.append([group["lr"] for group in kwargs["optimizer"].param_groups])


def trainer(folder: Path, net: nn.Module | None = None, **options: Any) -> Trainer:
    keys = ("optimizers", "callbacks", "train_dataset")
    own = {key: options.pop(key) for key in keys if key in options}
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(**usual | options)
    return Trainer(
        model=model() if net is None else net,
        args=arguments,
        **{"train_dataset": data(), **own},
    )


def bits(module: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_training_goes_on_as_if_no_test_had_been_run(tmp_path: Path) -> None:
    ends = []
    for tested in (False, True):
        used = Used()
        one = trainer(tmp_path, callbacks=[used])
        if tested:
            before, random = bits(one.model), torch.get_rng_state()
            kept = dict(vars(one)), copy.copy(one.state), len(one.accelerator._dataloaders)
            result = lrt.range_test(one, **BRIEF)
            assert same(before, bits(one.model))
            assert torch.equal(random, torch.get_rng_state())
            now = {k: v for k, v in vars(one).items() if k != "_signature_columns"}  # a cache
            own = {k: v for k, v in kept[0].items() if k != "_signature_columns"}
            assert (now, one.state, len(one.accelerator._dataloaders)) == (own, *kept[1:])
            assert one.optimizer is None
            assert list(result.suggestion.brackets) == ["group_0", "group_1"]
            assert result.settings["planned_steps"] == 8
            assert result.settings["optimizer"] == "AdamW"
        one.train()
        ends.append((bits(one.model), used.lrs, torch.get_rng_state()))
    assert len(ends[0][1]) == 8
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert torch.equal(ends[0][2], ends[1][2])


def test_decay_and_no_decay_are_one_group_if_asked(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    result = lrt.range_test(one, one_lr=True, **BRIEF)
    assert list(result.suggestion.lrs) == ["all"]
    used = Used()
    one.add_callback(used)
    one.args.learning_rate = result.suggestion.lrs["all"]
    one.train()
    assert used.lrs[0] == [result.suggestion.lrs["all"]] * 2
    assert "lr_group" not in one.optimizer.optimizer.param_groups[0]


def test_groups_of_an_optimizer_of_ones_own(tmp_path: Path) -> None:
    net = model()
    groups = lrfinder.param_groups(net, {"body": "bert.*", "head": "classifier.*"}, lr=1e-3)
    optimizer = torch.optim.AdamW(lrfinder.split_decay(groups))
    one = trainer(tmp_path, net, optimizers=(optimizer, None))
    result = lrt.range_test(one, groups="together", **BRIEF)
    assert list(result.suggestion.lrs) == ["body", "head"]
    lrfinder.set_learning_rate(optimizer, result.suggestion.lrs)
    used = Used()
    one.add_callback(used)
    one.train()
    assert used.lrs[0] == [result.suggestion.lrs[g["lr_group"]] for g in optimizer.param_groups]


@pytest.mark.parametrize("options", [{"bf16": True}, {"label_smoothing_factor": 0.1}])
def test_arguments_are_the_trainers(tmp_path: Path, options: dict[str, Any]) -> None:
    one = trainer(
        tmp_path,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=8,
        max_steps=5,
        **options,
    )
    seen: set[torch.dtype] = set()
    one.model.classifier.register_forward_hook(lambda m, args, output: seen.add(output.dtype))
    result = lrt.range_test(one, one_lr=True, effort="brackets", num_steps=20)
    assert seen == {torch.bfloat16 if "bf16" in options else torch.float32}
    assert result.settings["planned_steps"] == 5
    assert "all" in result.suggestion.brackets


def test_the_callback_records_the_lr_that_each_step_used(tmp_path: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    used = Used()
    with lrfinder.MlflowRecorder(experiment="transformers") as recorder:
        one = trainer(
            tmp_path,
            callbacks=[used, lrt.GroupLRCallback(recorder)],
            logging_steps=2,
            warmup_steps=3,
        )
        one.train()
        one.evaluate(data(16))
    client = MlflowClient()
    assert len({row[0] for row in used.lrs}) > 4
    for number in (0, 1):
        history = client.get_metric_history(recorder.run_id, f"lr/group_{number}")
        assert [(m.step, m.value) for m in history] == [
            (step, row[number]) for step, row in enumerate(used.lrs)
        ]
    losses = client.get_metric_history(recorder.run_id, "train/loss")
    assert [m.step for m in losses] == [1, 3, 5, 7]
    logged = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert [m.value for m in losses] == logged
    assert [m.step for m in client.get_metric_history(recorder.run_id, "val/loss")] == [7]


def test_a_loop_that_accelerate_prepared(tmp_path: Path) -> None:
    import accelerate

    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(
        cpu=True,
        gradient_accumulation_steps=2,
        dataloader_config=accelerate.DataLoaderConfiguration(use_seedable_sampler=True),
    )
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    groups = lrfinder.param_groups(net, {"body": "0.*", "head": "2.*"}, lr=1e-3)
    inputs = torch.randn(128, 4)
    batches = DataLoader([(x, x.sum(0, keepdim=True)) for x in inputs], 8, shuffle=True)
    net, optimizer, prepared = accelerator.prepare(net, torch.optim.AdamW(groups), batches)
    before, random = bits(net), torch.get_rng_state()
    loss_fn = lrfinder.supervised(nn.MSELoss())
    results = [
        lra.range_test(accelerator, net, optimizer, loss_fn, prepared, groups="together", **BRIEF)
        for _ in range(2)
    ]
    assert same(before, bits(net))
    assert torch.equal(random, torch.get_rng_state())
    assert not optimizer.state
    # Accelerate's sampler counts epochs: batches must be the same each time all the same.
    assert results[0].traces[0].losses.tolist() == results[1].traces[0].losses.tolist()
    assert results[0].traces[0].losses[0] != results[0].traces[1].losses[0]  # another order
    results[0].suggestion.apply(optimizer)
    assert lrfinder.learning_rates(optimizer) == dict(results[0].suggestion.lrs)


def test_wrong_uses(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"must be a transformers.Trainer, but got Bert"):
        lrt.range_test(model())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must have a model and training data"):
        lrt.range_test(trainer(tmp_path, train_dataset=None))
    one = trainer(tmp_path)
    with pytest.raises(TypeError, match=r"got NoneType. A Trainer of .*trainer.create_optimizer"):
        lrfinder.range_test(one.model, one.optimizer, lambda m, b: m(**b).loss, [])
    one.model.bert.requires_grad_(False)
    one.model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="must hold at least one parameter"):
        lrt.range_test(one)
    assert one.optimizer is None
