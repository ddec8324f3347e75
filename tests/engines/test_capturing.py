"""Tests of capturing: steps that are run again without Python are those that Python takes.

On a CPU a step is recorded by `make_fx`: the same operations on the same memory, as a CUDA graph has
them. What only a GPU has is tested where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from lrfinder.engines import LockstepEngine, Plan, formations
from lrfinder.engines.capturing import MOST_CAPTURES, WARM_UP, Capturing, Gradients
from tests.engines.models import batches, loss_fn, make, make_engine, plans, sgd

Make = Callable[[Any], torch.optim.Optimizer]


class Recorded:
    """A CPU that runs recorded operations, and what it was asked for."""

    def __init__(self) -> None:
        self.capturing: Capturing | None = None
        self.recorded = self.replayed = self.aside_taken = 0
        self.spoils: Callable[[Gradients], Gradients] = lambda found: found

    def aside(self, call: Callable[[], Gradients]) -> Gradients:
        self.aside_taken += 1
        return call()

    def record(self, call: Callable[[], Gradients]) -> Callable[[], Gradients]:
        self.recorded += 1
        capturing = self.capturing
        assert capturing is not None
        stack, update = capturing._stack, capturing._update
        changed = [*stack.parameters, *stack.buffers, *update.tensors()]
        before = [tensor.clone() for tensor in changed]

        def flat() -> list[Tensor]:
            losses, gradients = call()
            assert all(gradient is not None for gradient in gradients)
            return [losses, *(g for g in gradients if g is not None)]

        graph = make_fx(flat)()
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)  # recording, too, has taken the step

        def replay() -> Gradients:
            self.replayed += 1
            with torch.no_grad():
                losses, *gradients = graph()
            return self.spoils((losses, list(gradients)))

        return replay

    def wait(self) -> None:
        """Nothing to wait for."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    made = Recorded()

    def capturing(*args: Any) -> Capturing:
        made.capturing = Capturing(*args)
        made.capturing._seconds["plainly"] = [1e9] * 3  # whatever is recorded is faster
        return made.capturing

    monkeypatch.setattr(formations, "Capturing", capturing)
    monkeypatch.setattr(formations, "device_of", lambda place: made)
    return made


def losses(kind: str, name: str, steps: int = 30, **options: Any) -> tuple[Any, LockstepEngine]:
    engine: Any = make_engine(kind, make(name), batches(name), **options)
    # Learning rates that change at each step, and end at different ones.
    some = [
        Plan(
            {"body": np.geomspace(0.001, 0.05, steps) * 0.5**n, "head": np.full(steps, 0.02)},
            order=n % 2,
        )
        for n in range(3)
    ]
    engine.advance(some, steps)
    return np.array([plan.trace.losses for plan in some]), engine


OPTIMIZERS: dict[str, Make] = {
    "SGD": sgd,
    "SGD nesterov": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.8, nesterov=True),
    "Adam": lambda g: torch.optim.Adam(g, lr=0.1, weight_decay=0.01),
    "AdamW": lambda g: torch.optim.AdamW(g, lr=0.1, betas=(0.8, 0.99)),
}


@pytest.mark.parametrize(
    ("kind", "clip_norm"), [*((kind, None) for kind in OPTIMIZERS), ("SGD", 0.5), ("AdamW", 0.5)]
)
def test_the_same_numbers(kind: str, clip_norm: float | None, device: Recorded) -> None:
    options: dict[str, Any] = {"make_optimizer": OPTIMIZERS[kind], "clip_norm": clip_norm}
    found, engine = losses("lockstep", "mlp", graph=True, **options)
    # The first step is plain, and so is the one before which a graph was made.
    assert (device.recorded, device.aside_taken, device.replayed) == (1, WARM_UP, 30 - WARM_UP - 2)
    assert engine.chooser.reason == "it was asked for"
    np.testing.assert_allclose(found, losses("stepping", "mlp", **options)[0], rtol=1e-10)


@pytest.mark.parametrize("name", ["Net", "cnn with BatchNorm"])
def test_models(name: str, device: Recorded) -> None:
    found, _ = losses("lockstep", name, 12, graph=True)
    assert device.replayed == 12 - WARM_UP - 2
    np.testing.assert_allclose(found, losses("stepping", name, 12)[0], rtol=1e-9)


def test_learning_rates_that_are_alike_are_a_table_too(device: Recorded) -> None:
    results = []
    for kind, graph in (("lockstep", True), ("stepping", False)):
        engine = make_engine(kind, make("mlp"), batches("mlp"), graph=graph)
        table = np.geomspace(0.001, 0.1, 25)
        some = [Plan({"body": table, "head": table}, order=order) for order in range(3)]
        engine.advance(some, 25)
        results.append([plan.trace.losses for plan in some])
    assert device.recorded == 1
    np.testing.assert_allclose(results[0], results[1], rtol=1e-10)


def test_rows_that_change_hands(device: Recorded) -> None:
    """A replica that ends gives its row to another, on other batches; then there are fewer rows."""
    results = []
    for kind, graph in (("lockstep", True), ("stepping", False)):
        engine: Any = make_engine(kind, make("mlp"), batches("mlp"), graph=graph,
                                  make_optimizer=OPTIMIZERS["Adam"])  # fmt: skip
        engine._capacity = 3
        some = [
            Plan.constant({"body": 0.01, "head": 0.02 * (1 + n)}, 14 + 5 * n) for n in range(5)
        ]
        engine.advance(some, 99)
        results.append(np.concatenate([plan.trace.losses for plan in some]))
    assert device.recorded == 3  # of one batch for all, of one each, and of two
    np.testing.assert_allclose(results[0], results[1], rtol=1e-10)


def test_a_replica_that_diverges_does_not_touch_the_others(device: Recorded) -> None:
    results = []
    for kind, graph in (("lockstep", True), ("stepping", False)):
        engine = make_engine(kind, make("mlp"), batches("mlp"), graph=graph)
        lrs = [np.full(30, 0.01), np.r_[np.full(9, 0.01), np.full(21, 1e200)]]
        some = [Plan({"body": table, "head": table}) for table in (*lrs, lrs[0])]
        engine.advance(some, 30)
        assert [plan.trace.status for plan in some] == ["completed", "diverged", "completed"]
        results.append([some[0].trace.losses, some[2].trace.losses])
    assert device.replayed > 0
    np.testing.assert_allclose(results[0], results[1], rtol=1e-10)


class Warming:
    """A loss that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        return loss_fn(model, batch)


def counting() -> Any:
    calls = [0]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        calls[0] += 1
        return loss_fn(model, batch)

    return loss


def hidden() -> Any:
    """Of what nothing can be seen: it is another loss from its tenth call by a graph on."""
    calls = iter(range(10**6))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        smoothing = 0.0 if next(calls) < 10 else 0.5
        return functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing)

    return loss


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dampening": (
        {"make_optimizer": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.5, dampening=0.1)},
        "on the host",
    ),
    "affine": ({"make_optimizer": lambda g: torch.optim.NAdam(g, lr=0.1)}, "on the host"),
    "accumulation": ({"accumulation": 2}, "several batches"),
    "a counter": ({"loss": Warming()}, "a number of its own"),
    "a counter in a closure": ({"loss": counting()}, "a number of its own"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_captured_goes_on_and_the_reason_is_told(kind: str, device: Recorded) -> None:
    options, reason = REFUSED[kind]
    found, engine = losses("lockstep", "mlp", 16, graph=True, **options)
    assert device.replayed == 0
    assert "no graph takes its steps" in engine.chooser.reason
    assert reason in engine.chooser.reason
    np.testing.assert_allclose(found, losses("stepping", "mlp", 16, **options)[0], rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mlp with dropout", "draws random numbers"), ("replaced buffer", "a buffer's place")],
)
def test_models_that_are_not_captured(name: str, reason: str, device: Recorded) -> None:
    found, engine = losses("lockstep", name, 12, graph=True)
    assert device.recorded == 0
    assert reason in engine.chooser.reason
    np.testing.assert_allclose(found, losses("stepping", name, 12)[0], rtol=1e-10)


def test_a_capture_that_fails(device: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(call: Any) -> Any:
        call()
        raise RuntimeError("operation not permitted when stream is capturing")

    def record(call: Any) -> Any:
        assert device.capturing is not None
        stack, update = device.capturing._stack, device.capturing._update
        changed = [*stack.parameters, *stack.buffers, *update.tensors()]
        before = [tensor.clone() for tensor in changed]
        try:
            return fails(call)
        finally:
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)

    monkeypatch.setattr(device, "record", record)
    options: dict[str, Any] = {"make_optimizer": OPTIMIZERS["Adam"]}
    found, engine = losses("lockstep", "mlp", graph=True, **options)
    assert "cannot be captured: operation not permitted" in engine.chooser.reason
    np.testing.assert_allclose(found, losses("stepping", "mlp", **options)[0], rtol=1e-10)


@pytest.mark.parametrize("part", [0, 1])
def test_a_wrong_graph_is_found_out_before_its_first_step_counts(
    part: int, device: Recorded
) -> None:
    def spoiled(found: Gradients) -> Gradients:
        step, gradients = found
        if part == 0:
            return step + 1.0, gradients
        return step, [2 * gradient for gradient in gradients if gradient is not None]

    device.spoils = spoiled
    options: dict[str, Any] = {"make_optimizer": OPTIMIZERS["Adam"]}
    found, engine = losses("lockstep", "mlp", graph=True, **options)
    assert device.replayed == 1
    assert "by a graph was not the same" in engine.chooser.reason
    np.testing.assert_allclose(found, losses("stepping", "mlp", **options)[0], rtol=1e-10)


def test_a_loss_that_becomes_another_is_found_out_later(device: Recorded) -> None:
    _, engine = losses("lockstep", "mlp", 40, graph=True, loss=hidden())
    assert "by a graph was not the same" in engine.chooser.reason
    assert 0 < device.replayed < 16


def test_a_graph_that_is_slower_is_left(device: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("lockstep", make("mlp"), batches("mlp"), graph=True)
    made: list[Capturing] = []

    def capturing(*args: Any) -> Capturing:
        made.append(Capturing(*args))
        made[0]._seconds["plainly"] = [0.0] * 3
        device.capturing = made[0]
        return made[0]

    monkeypatch.setattr(formations, "Capturing", capturing)
    engine.advance(plans(3, num_steps=20), 20)
    assert "ms by a graph and 0 plainly" in made[0].reason
    assert device.replayed == 2 + 3  # two of which were compared


def test_batches_that_differ_each_time_are_not_captured_for_ever(device: Recorded) -> None:
    sizes = [n for n in range(2, 2 + MOST_CAPTURES + 3) for _ in range(WARM_UP + 2)]
    torch.manual_seed(0)
    data = [(torch.randn(n, 6).double(), torch.randint(5, (n,))) for n in sizes]
    results = []
    for kind, graph in (("lockstep", True), ("stepping", False)):
        engine: Any = make_engine(kind, make("mlp"), data, graph=graph)
        some = plans(3, num_steps=len(sizes), orders=1)
        engine.advance(some, len(sizes))
        results.append([plan.trace.losses for plan in some])
        if graph:
            assert "change too often" in engine.chooser.reason
    assert device.recorded == MOST_CAPTURES
    np.testing.assert_allclose(results[0], results[1], rtol=1e-10)


def test_a_cpu_captures_nothing() -> None:
    found, engine = losses("lockstep", "mlp", 12, graph=True)
    assert "nothing captures steps on a cpu" in engine.chooser.reason
    np.testing.assert_allclose(found, losses("stepping", "mlp", 12)[0], rtol=1e-10)


# -- on a GPU -------------------------------------------------------------------------------------


def on_cuda(kind: str, name: str, steps: int, **options: Any) -> tuple[Any, Any]:
    data = [(x.cuda(), y.cuda()) for x, y in batches(name)]
    engine = make_engine(kind, make(name).cuda(), data, **options)
    lrs = np.geomspace(0.001, 0.05, steps)
    some = [Plan({"body": lrs * 0.5**n, "head": lrs}, order=n % 2) for n in range(3)]
    engine.advance(some, steps)
    return [plan.trace.losses for plan in some], engine


@pytest.mark.gpu
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "Net", "cnn with BatchNorm"])
def test_fifty_steps_by_a_cuda_graph(kind: str, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    options: dict[str, Any] = {"make_optimizer": OPTIMIZERS[kind]}
    graphs, engine = on_cuda("lockstep", name, 50, graph=True, **options)
    assert "cannot be captured" not in engine.chooser.reason
    assert "not the same" not in engine.chooser.reason
    np.testing.assert_allclose(graphs, on_cuda("lockstep", name, 50, **options)[0], rtol=1e-6)


@pytest.mark.gpu
def test_no_step_by_a_graph_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    real = Capturing._replay
    watched: list[int] = []

    def replay(self: Capturing, *args: Any, taken: int) -> Any:
        is_compared = taken == WARM_UP + 2 or not taken & (taken - 1)
        if is_compared or len(self._seconds["by a graph"]) < 3:
            return real(self, *args, taken=taken)
        watched.append(taken)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return real(self, *args, taken=taken)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Capturing, "_replay", replay)
    on_cuda("lockstep", "mlp", 40, graph=True)
    assert len(watched) > 10
