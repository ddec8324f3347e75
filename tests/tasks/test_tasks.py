from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrfinder
from lrfinder.tasks import StepOptions, Task, batch_size, load_task, move_to, resolve_device
from tests.helpers import TINY_GROUPS, TinyNet, cross_entropy, tiny_data

TASK_SOURCE = """
import torch
import lrfinder

def make_task(width=4):
    data = [(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))]
    return lrfinder.Task(
        name="mine",
        make_model=lambda: torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 2)),
        groups={"body": "0.*", "head": "1.*"},
        make_optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        loss_fn=lrfinder.supervised(torch.nn.CrossEntropyLoss()),
        train_loader=data,
    )

def not_a_task():
    return 1
"""


def tiny_task(**changes: Any) -> Task:
    options: dict[str, Any] = {
        "name": "tiny",
        "make_model": TinyNet,
        "groups": TINY_GROUPS,
        "make_optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1),
        "loss_fn": cross_entropy,
        "train_loader": lambda seed: DataLoader(
            TensorDataset(*tiny_data()), batch_size=8, shuffle=True, generator=torch.Generator()
        ),
    }
    return Task(**(options | changes))


def test_start_repeats_with_its_seed() -> None:
    def first(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        started = tiny_task().start(seed, device="cpu")
        return started.model.head.weight.detach(), next(iter(started.train_loader))[0]

    same_weights, same_batch = first(1), first(1)
    assert torch.equal(same_weights[0], same_batch[0])
    assert torch.equal(same_weights[1], same_batch[1])
    assert not torch.equal(first(2)[0], same_weights[0])
    assert not torch.equal(first(2)[1], same_weights[1])


def test_start_makes_everything_afresh() -> None:
    task = tiny_task()
    one, two = task.start(0, device="cpu"), task.start(0, device="cpu")
    assert one.model is not two.model
    assert one.optimizer is not two.optimizer
    assert list(lrfinder.learning_rates(one.optimizer)) == ["body", "head"]


def test_planned_steps_count_optimizer_steps() -> None:
    started = tiny_task().start(0, device="cpu")  # three batches an epoch
    assert lrfinder.planned_steps(started, 4, StepOptions()) == 12
    assert lrfinder.planned_steps(started, 4, StepOptions(accumulation=2)) == 8
    endless = tiny_task(train_loader=lambda seed: iter([])).start(0, device="cpu")
    assert lrfinder.planned_steps(endless, 4, StepOptions()) is None


def test_optimizer_that_drops_the_groups_is_refused() -> None:
    def forgets(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.1)

    with pytest.raises(
        ValueError, match=r"must pass on the groups that it is given \(body, head\)"
    ):
        tiny_task(make_optimizer=forgets).start(0, device="cpu")


@pytest.mark.parametrize("field", ["num_epochs", "threads"])
def test_counts_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"`{field} >= 1` must hold for task 'tiny', but got 0"):
        tiny_task(**{field: 0})


def test_own_task_by_file(tmp_path: Path) -> None:
    path = tmp_path / "json.py"  # a name that must not take the place of the real module
    path.write_text(TASK_SOURCE)
    task = load_task(f"{path}:make_task", width=7, data=None)
    assert task.name == "mine"
    assert task.start(0).model[0].out_features == 7
    assert not hasattr(sys.modules.get("json"), "make_task")


def test_own_task_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_project_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tasks.py").write_text(TASK_SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != ""])
    assert load_task("my_project_of_tests.tasks:make_task").name == "mine"


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        (
            "digit",
            {},
            ValueError,
            "must be one of digits, digits-finetune, cifar10, cifar10-resnet, or",
        ),
        ("nowhere.at_all:make", {}, ValueError, "there is no module 'nowhere.at_all'"),
        ("{file}:make", {}, ValueError, "Its functions: make_task, not_a_task"),
        ("{file}:not_a_task", {}, TypeError, "must return a Task, but got int"),
        (
            "{file}:make_task",
            {"data": "x"},
            ValueError,
            "must take the option `data`.*it takes width",
        ),
        ("/no/such/file.py:make", {}, ValueError, "there is no file '/no/such/file.py'"),
    ],
)
def test_wrong_names_are_refused(
    name: str, options: Any, kind: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TASK_SOURCE)
    with pytest.raises(kind, match=message):
        load_task(name.format(file=path), **options)


def test_an_import_error_inside_the_users_module_is_shown_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import a_package_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_task(f"{path}:make_task")


Pair = namedtuple("Pair", ["left", "right"])


class HasTo(dict[str, Any]):
    def to(self, device: torch.device) -> HasTo:
        return HasTo({key: value.to(device) for key, value in self.items()})


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(3),
        [torch.zeros(3), "text"],
        (torch.zeros(3), {"a": torch.zeros(3)}),
        Pair(torch.zeros(3), 1),
        {"x": torch.zeros(3), "y": [torch.zeros(3)]},
        HasTo(x=torch.zeros(3)),
    ],
)
def test_move_to_keeps_the_structure(batch: Any) -> None:
    moved = move_to(batch, torch.device("meta"))
    assert type(moved) is type(batch)

    def tensors(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        parts = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, (list, tuple))
            else []
        )
        return [tensor for part in parts for tensor in tensors(part)]

    found = tensors(moved)
    assert found
    assert all(tensor.device.type == "meta" for tensor in found)
    assert batch_size(batch) == 3


def test_supervised_and_accuracy_want_pairs() -> None:
    with pytest.raises(TypeError, match=r"batches of the form \(inputs, targets\), but got dict"):
        cross_entropy(nn.Identity(), {"x": 1})
    assert lrfinder.accuracy(
        nn.Identity(), (torch.eye(3), torch.tensor([0, 1, 0]))
    ).item() == pytest.approx(2 / 3)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(
        ValueError, match="`device` must be 'auto' or a device of torch, but got 'gpu'"
    ):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no cuda"):
            resolve_device("cuda:0")


@pytest.mark.parametrize(
    "options", [{"accumulation": 0}, {"clip_norm": 0.0}, {"clip_norm": float("nan")}]
)
def test_step_options_are_checked(options: Any) -> None:
    with pytest.raises(ValueError, match="must hold"):
        StepOptions(**options)


def test_seed_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"`0 <= seed < 2\*\*32` must hold"):
        lrfinder.seed_everything(-1)
