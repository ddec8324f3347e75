from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrfinder
from lrfinder.snapshots import Snapshot, preserved, random_state, set_random_state
from lrfinder.stepping import Replica
from lrfinder.tasks import StepOptions
from lrfinder.traces import Trace
from tests.helpers import TINY_GROUPS, TinyNet, cross_entropy, same, tiny_loader

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "SGD plain": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "AdamW tensor lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.01)),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=0.01),
    "RAdam": lambda groups: torch.optim.RAdam(groups, lr=0.01),
    "Adamax": lambda groups: torch.optim.Adamax(groups, lr=0.01),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01, lr_decay=0.1),
    "Adadelta": lambda groups: torch.optim.Adadelta(groups, lr=0.5),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda groups: torch.optim.Rprop(groups, lr=0.01),
    "ASGD": lambda groups: torch.optim.ASGD(groups, lr=0.01),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.01),
}


def make(kind: str, *, frozen: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = TinyNet()
    groups: dict[str, Any] = TINY_GROUPS
    if frozen:
        model.body.requires_grad_(False)
        model.body[1].eval()
        groups = {"head": "head.*"}
    return model, OPTIMIZERS[kind](lrfinder.param_groups(model, groups))


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = {id(p): name for name, p in model.named_parameters()}
    return copy.deepcopy(
        {
            "parameters": {name: p.detach() for name, p in model.named_parameters()},
            "buffers": dict(model.named_buffers()),
            "gradients": {name: p.grad for name, p in model.named_parameters()},
            "flags": [module.training for module in model.modules()],
            "state": {names[id(p)]: value for p, value in optimizer.state.items()},
            "groups": [
                {k: v for k, v in group.items() if k != "params"}
                for group in optimizer.param_groups
            ],
            "random": random_state(),
        }
    )


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, count: int = 4) -> None:
    trace = Trace(lrfinder.group_names(optimizer))
    replica = Replica(model, optimizer, cross_entropy)
    while len(trace) < count:
        replica.run(loader, trace=trace, num_steps=count - len(trace))


def disturb(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> None:
    """What a range test does, and worse."""
    lrfinder.set_learning_rate(optimizer, 0.5)
    for group in optimizer.param_groups:
        group["extra"] = 1
    steps(model, optimizer, loader, 5)
    model.eval()
    random.random()
    np.random.rand()


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen"])
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_everything_is_put_back_bit_for_bit(kind: str, trained: bool, frozen: bool) -> None:
    model, optimizer = make(kind, frozen=frozen)
    loader = tiny_loader(generator=torch.Generator().manual_seed(1))
    if trained:
        steps(model, optimizer, loader)
    tensors = [
        *model.parameters(),
        *(t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)),
    ]
    before, order = everything(model, optimizer), loader.generator.get_state()
    snapshot = Snapshot(model, optimizer, loaders=[loader])
    for _ in range(2):  # as often as wanted
        disturb(model, optimizer, loader)
        assert not same(everything(model, optimizer), before)
        snapshot.restore()
        assert same(everything(model, optimizer), before)
        assert torch.equal(loader.generator.get_state(), order)
    after = [
        *model.parameters(),
        *(t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)),
    ]
    assert all(a is b for a, b in zip(tensors, after, strict=True)), (
        "the objects must stay the same ones"
    )


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_training_goes_on_as_if_nothing_had_happened(
    kind: str, error: type[BaseException] | None
) -> None:
    def train(*, interrupted: bool) -> dict[str, Any]:
        model, optimizer = make(kind)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        loader = tiny_loader()  # draws its order from torch's global random state
        steps(model, optimizer, loader)
        scheduler.step()
        if interrupted:
            try:
                with preserved(model, optimizer, loaders=[loader]):
                    disturb(model, optimizer, loader)
                    if error is not None:
                        raise error
            except (RuntimeError, KeyboardInterrupt):
                pass
        steps(model, optimizer, loader)
        scheduler.step()
        return {**everything(model, optimizer), "last": scheduler.get_last_lr()}

    assert same(train(interrupted=True), train(interrupted=False))


def test_lbfgs_state_of_nested_lists_is_put_back() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, history_size=3)
    steps(model, optimizer, tiny_loader(shuffle=False))
    before = everything(model, optimizer)
    with preserved(model, optimizer):
        steps(model, optimizer, tiny_loader(shuffle=False))
        assert not same(everything(model, optimizer), before)
    assert same(everything(model, optimizer), before)


def test_scaler_is_put_back() -> None:
    model, optimizer = make("SGD")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=2)
    replica = Replica(model, optimizer, cross_entropy, StepOptions(scaler=scaler))
    replica.run(tiny_loader(), trace=Trace(["body", "head"]))
    before = scaler.state_dict()
    with preserved(model, optimizer, scaler=scaler):
        replica.run(tiny_loader(), trace=Trace(["body", "head"]))
        assert scaler.state_dict() != before
    assert scaler.state_dict() == before


def test_frozen_parameters_are_not_copied() -> None:
    model, optimizer = make("SGD", frozen=True)
    seen: list[Tensor] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is torch.ops.aten.clone.default:
                seen.append(args[0])
            return function(*args, **(kwargs or {}))

    with Spy():
        Snapshot(model, optimizer)
    cloned = {tensor.data_ptr() for tensor in seen}
    assert all(p.data_ptr() in cloned for p in model.head.parameters())
    assert not any(p.data_ptr() in cloned for p in model.body.parameters())


def test_random_state_survives_a_checkpoint(tmp_path: Any) -> None:
    np.random.randn()  # leaves a cached second number, which is part of the state
    state = random_state()
    torch.save(state, tmp_path / "state.pt")
    expected = (random.random(), np.random.randn(), torch.rand(2).tolist())
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (random.random(), np.random.randn(), torch.rand(2).tolist()) == expected
