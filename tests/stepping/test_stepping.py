from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrfinder
from lrfinder.stepping import Replica, evaluate
from lrfinder.tasks import StepOptions
from lrfinder.traces import BLOCK, Trace
from tests.helpers import (
    Quadratic,
    TinyNet,
    cross_entropy,
    forever,
    quadratic_groups,
    quadratic_loss,
    tiny_data,
    tiny_loader,
    tiny_optimizer,
)


def test_the_loop_equals_a_bare_torch_loop_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = TinyNet()
    twin = TinyNet()
    twin.load_state_dict(model.state_dict())
    optimizer, twin_optimizer = tiny_optimizer(model), tiny_optimizer(twin)
    trace = Trace(["body", "head"])
    torch.manual_seed(1)
    for _ in range(3):
        Replica(model, optimizer, cross_entropy).run(tiny_loader(), trace=trace)

    losses = []
    torch.manual_seed(1)
    for _ in range(3):
        for inputs, targets in tiny_loader():
            twin_optimizer.zero_grad()
            loss = nn.functional.cross_entropy(twin(inputs), targets)
            loss.backward()
            twin_optimizer.step()
            losses.append(loss.item())
    assert trace.losses.tolist() == losses
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_each_group_really_steps_with_its_own_lr() -> None:
    model = Quadratic(features=2.0, classifier=0.5)
    groups = lrfinder.param_groups(
        model,
        {"features": "x.features", "classifier": {"params": "x.classifier", "lr": 1e-2}},
        lr=1e-5,
    )
    replica = Replica(model, torch.optim.SGD(groups), quadratic_loss)
    replica.step([None])
    # x <- x - lr * h * x from x = 1
    assert torch.equal(model.x["features"], torch.ones(3) - 1e-5 * 2.0)
    assert torch.equal(model.x["classifier"], torch.ones(3) - 1e-2 * 0.5)


@pytest.mark.parametrize("curvature", [0.5, 4.0, 30.0])
def test_sgd_diverges_exactly_past_two_over_the_curvature(curvature: float) -> None:
    def last_loss(lr: float) -> float:
        model = Quadratic(all=curvature)
        optimizer = torch.optim.SGD(lrfinder.param_groups(model, quadratic_groups(model)), lr=lr)
        trace = Trace(["all"])
        Replica(model, optimizer, quadratic_loss).run(forever(), trace=trace, num_steps=200)
        return float(trace.losses[-1] / trace.losses[0])

    assert last_loss(0.98 * 2 / curvature) < 1 < last_loss(1.02 * 2 / curvature)


def test_accumulation_is_the_mean_gradient_of_the_batches() -> None:
    inputs, targets = (
        part.double() if part.is_floating_point() else part for part in tiny_data(16)
    )
    results = []
    for accumulation, batches in (
        (1, [(inputs, targets)]),
        (2, list(zip(inputs.split(8), targets.split(8), strict=True))),
    ):
        torch.manual_seed(0)
        model = nn.Linear(6, 3).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        trace = Trace(["group_0"])
        Replica(model, optimizer, cross_entropy, StepOptions(accumulation=accumulation)).run(
            batches, trace=trace
        )
        assert len(trace) == 1
        results.append((model.weight.detach(), trace.losses[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=1e-12)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-12)


def test_last_batches_are_used_where_accumulation_does_not_divide() -> None:
    model = TinyNet()
    trace = Trace(["body", "head"])
    Replica(model, tiny_optimizer(model), cross_entropy, StepOptions(accumulation=2)).run(
        tiny_loader(), trace=trace
    )
    assert len(trace) == 2  # three batches


def test_clipping_bounds_the_total_norm() -> None:
    model = Quadratic(a=100.0, b=1.0)
    optimizer = torch.optim.SGD(lrfinder.param_groups(model, quadratic_groups(model)), lr=1.0)
    Replica(model, optimizer, quadratic_loss, StepOptions(clip_norm=0.5)).step([None])
    moved = torch.cat([(1 - p).flatten() for p in model.parameters()])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_lbfgs_gets_its_closure() -> None:
    model = Quadratic(a=3.0, b=0.3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=5)
    trace = Trace(["group_0"])
    Replica(model, optimizer, quadratic_loss).run(forever(), trace=trace, num_steps=5)
    assert trace.losses[0] == pytest.approx(0.5 * 3.3 * 3)
    assert trace.losses[-1] < 1e-8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_scaler(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        outputs = model.head(model.body[0](batch[0]))
        seen.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs.float(), batch[1])

    torch.manual_seed(0)
    model = TinyNet()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    options = StepOptions(autocast=dtype, scaler=scaler, clip_norm=1.0)
    trace = Trace(["body", "head"])
    replica = Replica(model, tiny_optimizer(model), loss_fn, options)
    for _ in range(10):
        replica.run(tiny_loader(), trace=trace)
    assert set(seen) == {dtype}
    assert trace.losses[-3:].mean() < trace.losses[:3].mean()


def test_dict_batches() -> None:
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])

    inputs, targets = tiny_data()
    model = TinyNet()
    trace = Trace(["body", "head"])
    Replica(model, tiny_optimizer(model), loss_fn).run(
        [{"inputs": inputs, "labels": targets}], trace=trace
    )
    assert len(trace) == 1
    assert evaluate(model, loss_fn, [{"inputs": inputs, "labels": targets}])["val/loss"] > 0


def test_no_batch_is_drawn_that_is_not_used() -> None:
    drawn = []

    def batches() -> Any:
        for index in range(100):
            drawn.append(index)
            yield None

    model = Quadratic(a=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Replica(model, optimizer, quadratic_loss, StepOptions(accumulation=2)).run(
        batches(), trace=Trace(["group_0"]), num_steps=3
    )
    assert drawn == [0, 1, 2, 3, 4, 5]


def test_non_finite_loss_stops_at_once_with_a_status() -> None:
    model = Quadratic(a=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
    trace = Trace(["group_0"])
    Replica(model, optimizer, quadratic_loss).run(forever(), trace=trace, num_steps=1000)
    assert trace.status == "diverged"
    assert trace.message == f"The loss was not finite at step {len(trace) - 1}."
    assert not math.isfinite(trace.losses[-1])
    assert all(map(math.isfinite, trace.losses[:-1]))


def test_stop_rule_gives_its_reason() -> None:
    model = Quadratic(a=1.0)
    trace = Trace(["group_0"])
    Replica(model, torch.optim.SGD(model.parameters(), lr=0.1), quadratic_loss).run(
        forever(),
        trace=trace,
        should_stop=lambda t: "enough" if t.settled_losses[-1] < 1 else None,
    )
    assert (trace.status, trace.message) == ("stopped", "enough")
    assert trace.losses[-1] < 1 <= trace.losses[-2]


def test_evaluate_weighs_batches_by_their_samples_and_restores_flags() -> None:
    model = TinyNet()
    model.body[1].eval()  # a BatchNorm that its owner froze
    flags = [module.training for module in model.modules()]
    inputs, targets = tiny_data(20)
    values = evaluate(
        model,
        cross_entropy,
        [(inputs[:16], targets[:16]), (inputs[16:], targets[16:])],
        metrics={"accuracy": lrfinder.accuracy},
    )
    assert [module.training for module in model.modules()] == flags
    model.eval()
    with torch.no_grad():
        outputs = model(inputs)
    assert values["val/loss"] == pytest.approx(
        nn.functional.cross_entropy(outputs, targets).item(), rel=1e-6
    )
    assert values["val/accuracy"] == pytest.approx(
        (outputs.argmax(1) == targets).double().mean().item()
    )


def test_evaluate_restores_flags_after_an_error() -> None:
    model = TinyNet()

    def fails(model: nn.Module, batch: Any) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        evaluate(model, fails, [None])
    assert all(module.training for module in model.modules())


def _no_gradient(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).detach().mean()


def _vector(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).mean(dim=0)


def _number(model: nn.Module, batch: Any) -> Any:
    return 1.0


@pytest.mark.parametrize(
    ("loss_fn", "kind", "message"),
    [
        (_no_gradient, ValueError, "must return a loss that needs a gradient"),
        (_vector, ValueError, r"must return a scalar, but got shape \(3,\)"),
        (_number, TypeError, "must return a tensor, but got float"),
    ],
)
def test_bad_losses_are_refused_before_torch_sees_them(
    loss_fn: Any, kind: Any, message: str
) -> None:
    model = TinyNet()
    with pytest.raises(kind, match=message):
        Replica(model, tiny_optimizer(model), loss_fn).step([tiny_data()])


def test_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold parameters of this model"):
        Replica(TinyNet(), tiny_optimizer(TinyNet()), cross_entropy)


def test_closure_and_scaler_do_not_go_together() -> None:
    model = TinyNet()
    options = StepOptions(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="A GradScaler takes no closure"):
        Replica(model, torch.optim.LBFGS(model.parameters()), cross_entropy, options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_wait_for_the_device_between_blocks() -> None:
    torch.manual_seed(0)
    model = TinyNet().cuda()
    replica = Replica(model, tiny_optimizer(model), cross_entropy)
    batch = tuple(part.cuda() for part in tiny_data())
    trace = Trace(["body", "head"])
    replica.run(forever(batch), trace=trace, num_steps=BLOCK)  # warm-up, and an empty block
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(BLOCK - 1):
            trace.append(
                [group["lr"] for group in replica.optimizer.param_groups], replica.step([batch])
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(trace) == 2 * BLOCK - 1
