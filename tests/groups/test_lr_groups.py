"""Param groups that share one learning rate: one group to all that reads, sets, schedules and records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lrfinder

LOSS = lrfinder.supervised(nn.MSELoss())


def make(lr: float = 0.05) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    groups = lrfinder.param_groups(model, {"body": "0.*", "head": "2.*"}, lr=lr, weight_decay=0.01)
    return model, torch.optim.SGD(lrfinder.split_decay(groups))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return [(x, x.sum(1, keepdim=True)) for x in inputs.split(16)]


def held(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_read_and_set_as_one() -> None:
    _, optimizer = make()
    assert lrfinder.group_names(optimizer) == ["body", "head"]
    assert lrfinder.learning_rates(optimizer) == {"body": 0.05, "head": 0.05}
    lrfinder.set_learning_rate(optimizer, {"body": 0.3})
    assert held(optimizer) == [0.3, 0.3, 0.05, 0.05]
    lrfinder.scale_learning_rate(optimizer, 0.5)
    assert held(optimizer) == [0.15, 0.15, 0.025, 0.025]
    table = lrfinder.describe(optimizer)
    assert "body/no_decay" in table
    assert "lr_group" in table


def test_an_lr_group_with_two_lrs_is_an_error() -> None:
    model, optimizer = make()
    optimizer.param_groups[1]["lr"] = 0.2
    message = "must have one LR, but those of 'body' have 0.05 and 0.2"
    with pytest.raises(ValueError, match=message):
        lrfinder.learning_rates(optimizer)
    with pytest.raises(ValueError, match=message):
        lrfinder.train(model, optimizer, LOSS, batches(), num_epochs=1, verbose=False)


@pytest.mark.parametrize(("first", "second"), [(None, "a"), ("b", None), ("", "a"), (3, "a")])
def test_names_that_mislead_are_refused(first: Any, second: Any) -> None:
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    groups = [{"params": [parameters[0]], "name": "a"}, {"params": [parameters[1]], "name": "b"}]
    for group, owner in zip(groups, (first, second), strict=True):
        if owner is not None:
            group["lr_group"] = owner
    with pytest.raises(ValueError, match=r"LR group|lr_group"):
        lrfinder.group_names(torch.optim.SGD(groups, lr=0.1))


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "ExponentialLR", "gamma": 0.5},
        {
            "body": {"name": "ExponentialLR", "gamma": 0.5},
            "head": {"name": "StepLR", "step_size": 9},
        },
    ],
    ids=["one", "each"],
)
def test_schedules_and_traces_have_one_lr_for_each_group(spec: dict[str, Any]) -> None:
    model, optimizer = make()
    used = []
    optimizer.register_step_pre_hook(lambda *_: used.append(held(optimizer)))
    trace = lrfinder.train(
        model, optimizer, LOSS, batches(), num_epochs=3, scheduler=spec, verbose=False
    )
    table = lrfinder.lr_table(spec, {"body": 0.05, "head": 0.05}, num_steps=3)
    assert len(used) == 12
    for step, row in enumerate(used):
        assert row[0] == row[1] == trace.lrs["body"][step] == table["body"][step // 4]
        assert row[2] == row[3] == trace.lrs["head"][step] == table["head"][step // 4]


def test_a_schedule_that_pulls_an_lr_group_apart_is_an_error() -> None:
    model, optimizer = make()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda t: 1.0, lambda t: 0.5**t, lambda t: 1.0, lambda t: 1.0]
    )
    with pytest.raises(ValueError, match="must have one LR"):
        lrfinder.train(model, optimizer, LOSS, batches(), num_epochs=2, scheduler=schedule)


def test_a_record_has_one_lr_for_each_group(mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    model, optimizer = make()
    with lrfinder.MlflowRecorder(experiment="groups") as recorder:
        recorder.watch(optimizer, every=1)
        for step, batch in enumerate(batches()):
            optimizer.zero_grad()
            loss = LOSS(model, batch)
            loss.backward()
            optimizer.step()
            recorder.log_step(step, loss, optimizer)
    metrics = MlflowClient().get_run(recorder.run_id).data.metrics
    assert metrics["lr/body"] == metrics["lr/head"] == 0.05
    assert {name for name in metrics if name.startswith("lr/")} == {"lr/body", "lr/head"}
    # What the two halves differ in is told for each.
    assert metrics["weight_decay/body"] == 0.01
    assert metrics["weight_decay/body/no_decay"] == 0.0


@pytest.mark.parametrize("engine", ["stepping", "lockstep"])
def test_a_range_test_is_that_of_one_param_group(engine: str) -> None:
    """With a decay of 0 the split changes nothing but the list, so all numbers must agree."""
    results = []
    for is_split in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        groups = lrfinder.param_groups(model, {"body": "0.*", "head": "2.*"}, lr=0.05)
        if is_split:
            groups = lrfinder.split_decay(groups)
        optimizer = torch.optim.SGD(groups)
        results.append(
            lrfinder.range_test(
                model, optimizer, LOSS, batches(), effort="quick", num_steps=30, engine=engine
            )
        )
    whole, split = results
    assert split.suggestion.lrs.keys() == {"body", "head"}
    assert split.suggestion.lrs == pytest.approx(whole.suggestion.lrs, rel=1e-3)
    assert split.cost.steps == whole.cost.steps
    split.suggestion.apply(optimizer)
    assert held(optimizer)[0] == held(optimizer)[1] == split.suggestion.lrs["body"]


def test_a_search_proposes_one_lr_for_each_group() -> None:
    task = lrfinder.Task(
        name="split",
        make_model=lambda: nn.Linear(4, 1),
        groups={"all": "*"},
        make_optimizer=lambda groups: torch.optim.SGD(lrfinder.split_decay(groups), lr=0.1),
        loss_fn=LOSS,
        train_loader=batches(),
        val_loader=batches(),
        num_epochs=2,
    )
    started = task.start(0, device="cpu")
    assert lrfinder.learning_rates(started.optimizer) == {"all": 0.1}
    result = lrfinder.range_test(
        started.model, started.optimizer, LOSS, batches(), effort="brackets"
    )
    study = lrfinder.search(task, n_trials=3, warm_start=result)
    assert list(lrfinder.best_hparams(study)["lrs"]) == ["all"]
    assert study.best_value < float(LOSS(started.model, batches()[0]).detach())
