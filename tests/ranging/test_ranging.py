"""Tests of the whole range test: nothing left behind, the same again, known answers, clear errors."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lrfinder
from lrfinder.snapshots import loader_generators, random_state
from tests.helpers import (
    TINY_GROUPS,
    Quadratic,
    TinyNet,
    cross_entropy,
    quadratic_groups,
    quadratic_loss,
    same,
    tiny_data,
    tiny_loader,
    tiny_optimizer,
)

QUICK: dict[str, Any] = {"effort": "quick", "num_steps": 40, "replicas": 1}


def quadratic_test(
    *, loss_fn: Callable[..., Tensor] = quadratic_loss, lr: float = 0.1, **options: Any
) -> lrfinder.RangeTest:
    model = Quadratic(a=30.0, b=1.0)
    optimizer = torch.optim.SGD(lrfinder.param_groups(model, quadratic_groups(model)), lr=lr)
    return lrfinder.range_test(model, optimizer, loss_fn, [None], **({"replicas": 1} | options))


def tiny_test(**options: Any) -> lrfinder.RangeTest:
    torch.manual_seed(0)
    model = TinyNet()
    return lrfinder.range_test(
        model, tiny_optimizer(model), cross_entropy, tiny_loader(), **(QUICK | options)
    )


@pytest.fixture(scope="module")
def tiny_result() -> lrfinder.RangeTest:
    return tiny_test(replicas=2)


# -- known answers --------------------------------------------------------------------------------


def test_each_group_of_a_quadratic_gets_its_own_learning_rate() -> None:
    result = quadratic_test(effort="standard", planned_steps=36)
    suggestion = result.suggestion
    assert suggestion.lrs["a"] == pytest.approx(1 / 30, rel=0.9)
    assert 0.1 < suggestion.lrs["b"] < 2
    assert suggestion.control is not None
    assert suggestion.control["a"] == suggestion.control["b"] < 2 / 30
    assert {type(lr) for lr in (*suggestion.lrs.values(), *suggestion.control.values())} == {float}
    assert suggestion.evidence is not None
    assert suggestion.evidence.advantage > 0
    assert suggestion.evidence.standard_error > 0
    for name, bracket in suggestion.brackets.items():
        assert bracket.low <= suggestion.lrs[name] == bracket.suggested <= bracket.high
        assert bracket.status in ("ok", "noisy")
    assert result.cost.steps > 1000
    assert result.race is not None
    assert set(result.race.columns) >= {"candidate", "lr/a", "lr/b", "rung", "score"}


def test_together_keeps_the_ratios() -> None:
    model = Quadratic(a=1.0, b=1.0)
    groups = lrfinder.param_groups(
        model, {"a": {"params": "x.a", "lr": 0.01}, "b": {"params": "x.b", "lr": 0.1}}
    )
    optimizer = torch.optim.SGD(groups)
    result = lrfinder.range_test(model, optimizer, quadratic_loss, [None], groups="together")
    lrs = result.suggestion.lrs
    assert lrs["b"] == pytest.approx(10 * lrs["a"])
    assert 0.2 < lrs["b"] < 2
    assert result.suggestion.control == lrs
    assert result.suggestion.evidence is None
    assert {ramp.group for ramp in result.ramps} == {None}
    for bracket in result.suggestion.brackets.values():
        assert bracket.low < bracket.suggested < bracket.high  # type: ignore[operator]


def test_one_group_is_the_plain_finder_at_every_effort() -> None:
    for effort in ("brackets", "quick"):
        model = Quadratic(only=4.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        result = lrfinder.range_test(model, optimizer, quadratic_loss, [None], effort=effort)
        assert 0.02 < result.suggestion.lrs["group_0"] < 0.5
        assert (result.race is None) == (effort == "brackets")


def test_brackets_alone_do_not_decide_between_groups() -> None:
    result = quadratic_test(effort="brackets")
    assert result.suggestion.lrs == {}
    assert result.suggestion.control is None
    assert result.race is None
    brackets = result.suggestion.brackets
    assert [bracket.status for bracket in brackets.values()] == ["bracket_only"] * 2
    assert brackets["a"].high < brackets["b"].high
    with pytest.raises(lrfinder.RefusedSuggestion, match="take effort='quick'"):
        result.suggestion.apply(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))


def test_some_groups_by_name_leave_the_others_at_their_own() -> None:
    model = Quadratic(a=30.0, b=1.0, c=1.0)
    optimizer = torch.optim.SGD(lrfinder.param_groups(model, quadratic_groups(model)), lr=0.02)
    result = lrfinder.range_test(
        model, optimizer, quadratic_loss, [None], groups=["c", "a"], **QUICK
    )
    assert list(result.suggestion.lrs) == ["a", "c"]
    for trace in result.traces:
        assert set(trace.lrs["b"].tolist()) == {0.02}
    assert result.race is not None
    assert set(result.race["lr/b"]) == {0.02}


def test_a_training_to_come_is_reckoned_with_and_told() -> None:
    # Which engine is faster is measured, and they differ by rounding.
    unknown, long = (tiny_test(planned_steps=steps, engine="stepping") for steps in (None, 10**6))
    assert "For a training of 1,000,000 steps" in str(long)
    assert "after 120 steps at a constant LR, lowered by 1.62 decades" in str(long)
    assert "For a training of" not in str(unknown)
    assert long.standings == unknown.standings  # the same race, read elsewhere
    assert "drawn towards the best single LR" in str(long)
    assert long.suggestion.control is not None
    expected = {
        name: (lr * 10**-1.62 * long.suggestion.control[name]) ** 0.5
        for name, lr in unknown.suggestion.lrs.items()
    }
    assert long.suggestion.lrs == pytest.approx(expected, rel=0.01)


def test_a_landscape_that_does_not_hold_gives_way_to_the_best_single_lr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lrfinder.ranging.deciding.holds", lambda *_: False)
    suggestion = quadratic_test().suggestion
    assert suggestion.lrs == suggestion.control
    # Nothing is told of an advantage of what is not suggested.
    assert suggestion.evidence is None
    assert "so the best single LR is suggested" in str(suggestion)


@pytest.mark.parametrize(("scale", "shift"), [(0.25, 16.0), (8.0, -64.0)])
def test_the_unit_and_sign_of_the_loss_do_not_matter(scale: float, shift: float) -> None:
    # LRs have the unit of weight / gradient under SGD; Adam's do not see the loss's unit at all.
    def test(factor: float, offset: float) -> lrfinder.RangeTest:
        torch.manual_seed(0)
        model = TinyNet(dropout=0.0).double()
        groups = lrfinder.param_groups(model, TINY_GROUPS)
        optimizer = torch.optim.Adam(groups, lr=0.1, eps=1e-30)
        loader = [(x.double(), y) for x, y in tiny_loader(shuffle=False)]

        def loss_fn(model: nn.Module, batch: Any) -> Tensor:
            return factor * cross_entropy(model, batch) + offset

        return lrfinder.range_test(model, optimizer, loss_fn, loader, **QUICK)

    plain, moved = test(1.0, 0.0), test(scale, shift)
    assert moved.suggestion.lrs == pytest.approx(plain.suggestion.lrs, rel=1e-6)
    for name, bracket in plain.suggestion.brackets.items():
        assert moved.suggestion.brackets[name].status == bracket.status
        assert moved.suggestion.brackets[name].low == pytest.approx(bracket.low, rel=1e-6)


@pytest.mark.parametrize("engine", ["stepping", "lockstep"])
def test_two_calls_give_the_same_and_seeds_differ(engine: str) -> None:
    def told(seed: int) -> dict[str, Any]:
        result = tiny_test(replicas=2, engine=engine, seed=seed)
        assert result.cost.engine == engine
        return {**result.to_dict(), "cost": result.cost.steps}

    first = told(0)
    assert told(0) == first
    assert told(1) != first


def test_engines_agree_and_auto_says_which_it_took() -> None:
    results = [tiny_test(replicas=2, engine=engine) for engine in ("stepping", "lockstep", "auto")]
    for result in results[1:]:
        assert result.cost.steps == pytest.approx(results[0].cost.steps, rel=0.05)
        for name, bracket in results[0].suggestion.brackets.items():
            other = result.suggestion.brackets[name]
            assert other.status == bracket.status
            assert other.low == pytest.approx(bracket.low, rel=0.05)
    assert results[2].cost.engine in ("stepping", "lockstep")
    assert "ms" in results[2].cost.reason
    assert results[2].cost.reason in str(results[2])


# -- nothing is left behind -----------------------------------------------------------------------


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> dict[str, Any]:
    names = {id(p): name for name, p in model.named_parameters()}
    buffers = {
        f"{path}.{key}": value
        for path, module in model.named_modules()
        for key, value in module._buffers.items()
    }
    state = {
        "parameters": {name: p.detach() for name, p in model.named_parameters()},
        "buffers": buffers,
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "flags": [module.training for module in model.modules()],
        "state": {names[id(p)]: value for p, value in optimizer.state.items()},
        "groups": [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ],
        "random": random_state(),
        "loader": [g.get_state() for g in loader_generators(loader)],
    }
    return copy.deepcopy(state)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, amsgrad=True),
    "AdamW tensor lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.01)),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.9),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.01),
}
ENDINGS = ["done", "error", "interrupt"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("generator", [False, True])
def test_everything_is_as_before(kind: str, ending: str, generator: bool) -> None:
    torch.manual_seed(1)
    model = TinyNet()
    optimizer = OPTIMIZERS[kind](lrfinder.param_groups(model, TINY_GROUPS))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    loader = tiny_loader(generator=torch.Generator().manual_seed(4) if generator else None)
    # In the middle of a training, with momentum, gradients and a frozen BatchNorm.
    lrfinder.train(
        model, optimizer, cross_entropy, loader, num_epochs=1, scheduler=scheduler, verbose=False
    )
    model.body[1].eval()
    before = everything(model, optimizer, loader)
    scheduled = copy.deepcopy(scheduler.state_dict())
    calls = 0

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        random.random()
        np.random.rand()
        if calls == 40 and ending != "done":
            raise ZeroDivisionError if ending == "error" else KeyboardInterrupt
        return cross_entropy(model, batch)

    def test() -> None:
        lrfinder.range_test(model, optimizer, loss_fn, loader, val_loader=tiny_loader(), **QUICK)

    if ending == "done":
        test()
    else:
        with pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
            test()
    assert same(everything(model, optimizer, loader), before)
    assert scheduler.state_dict() == scheduled


def test_training_goes_on_as_if_it_had_not_been_run() -> None:
    def weights(*, tested: bool) -> dict[str, Any]:
        torch.manual_seed(2)
        model = TinyNet()
        optimizer = tiny_optimizer(model)
        loader = tiny_loader()
        spec = {"name": "StepLR", "step_size": 1}
        scheduler: Any = lrfinder.build_scheduler(optimizer, spec)
        for epoch in range(3):
            options: Any = {"num_epochs": 1, "scheduler": scheduler, "verbose": False}
            lrfinder.train(model, optimizer, cross_entropy, loader, **options)
            if tested and epoch == 0:
                lrfinder.range_test(model, optimizer, cross_entropy, loader, **QUICK)
        return model.state_dict()

    assert same(weights(tested=True), weights(tested=False))


def test_with_a_scaler_and_clipping_and_accumulation() -> None:
    torch.manual_seed(0)
    model = TinyNet()
    optimizer = tiny_optimizer(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    options = lrfinder.StepOptions(accumulation=2, clip_norm=1.0, scaler=scaler)
    lrfinder.train(
        model,
        optimizer,
        cross_entropy,
        tiny_loader(),
        num_epochs=1,
        options=options,
        verbose=False,
    )
    before = copy.deepcopy(scaler.state_dict())
    result = lrfinder.range_test(
        model, optimizer, cross_entropy, tiny_loader(), options=options, **QUICK
    )
    assert scaler.state_dict() == before
    assert set(result.suggestion.lrs) == {"body", "head"}


def test_a_model_in_eval_mode_is_tested_in_train_mode_and_stays() -> None:
    torch.manual_seed(0)
    model = TinyNet().eval()
    seen = set()

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        seen.add(model.training)
        return cross_entropy(model, batch)

    optimizer = tiny_optimizer(model)
    lrfinder.range_test(model, optimizer, loss_fn, tiny_loader(), **QUICK)
    assert seen == {True}
    assert not any(module.training for module in model.modules())


def test_the_recorded_learning_rates_are_those_that_were_used() -> None:
    torch.manual_seed(0)
    model = TinyNet()
    optimizer = tiny_optimizer(model)
    used: list[list[float]] = []
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: used.append([group["lr"] for group in opt.param_groups])
    )
    result = lrfinder.range_test(
        model, optimizer, cross_entropy, tiny_loader(), effort="brackets", num_steps=20
    )
    recorded = [
        list(row)
        for trace in result.traces
        for row in zip(trace.lrs["body"].tolist(), trace.lrs["head"].tolist(), strict=True)
    ]
    assert used[1:] == recorded  # the first step only looks for gradients
    assert len(used) == result.cost.steps


# -- loss functions, loaders and models of all kinds ----------------------------------------------


def test_a_negative_loss_works() -> None:
    plain = quadratic_test(effort="quick")
    lowered = quadratic_test(effort="quick", loss_fn=lambda model, batch: model() - 1000.0)
    assert lowered.suggestion.lrs == pytest.approx(plain.suggestion.lrs, rel=1.0)
    assert all(trace.status == "stopped" for trace in lowered.traces[:1])


def test_a_constant_loss_is_refused_as_flat() -> None:
    result = quadratic_test(loss_fn=lambda model, batch: 0.0 * model() + 1.0)
    assert {b.status for b in result.suggestion.brackets.values()} == {"flat"}
    assert result.suggestion.lrs == {}
    assert result.race is None
    assert "flat" in str(result)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_its_replica_at_once(value: float) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        loss = model()
        return loss + value if loss.item() > 50.0 else loss

    result = quadratic_test(loss_fn=loss_fn, effort="brackets")
    joint = result.traces[0]
    assert joint.status == "diverged"
    assert joint.diverged_at == len(joint) - 1 < 99
    always = quadratic_test(loss_fn=lambda model, batch: model() + value)
    assert {b.status for b in always.suggestion.brackets.values()} == {"diverged"}
    assert always.cost.steps == 2


def test_a_range_that_is_too_narrow_is_extended_and_says_so() -> None:
    result = quadratic_test(start_lr=1e-5, end_lr=1e-2, num_steps=60)
    assert set(result.suggestion.lrs) == {"a", "b"}
    assert "extended to 1." in str(result)
    assert result.settings["end_lr"] == 1.0
    assert result.settings["num_steps"] == 100  # as steep as before
    assert all(len(ramp.lrs) == 100 for ramp in result.ramps)
    narrow = quadratic_test(start_lr=1e-7, end_lr=1e-5)
    assert {b.status for b in narrow.suggestion.brackets.values()} == {"edge"}
    assert "Raise `end_lr`" in str(narrow)


def test_a_range_that_is_too_high_and_one_too_short_are_refused() -> None:
    high = quadratic_test(start_lr=1e3, end_lr=1e4)
    assert {b.status for b in high.suggestion.brackets.values()} == {"diverged"}
    assert "`start_lr`" in str(high)
    short = quadratic_test(num_steps=2)
    assert {b.status for b in short.suggestion.brackets.values()} == {"too_short"}


def test_a_group_without_gradient_is_refused_and_the_others_are_tested() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(6, 3)
            self.unused = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.used(inputs)

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(
        lrfinder.param_groups(model, {"used": "used.*", "unused": "unused.*"}), lr=0.1
    )
    result = lrfinder.range_test(model, optimizer, cross_entropy, tiny_loader(), **QUICK)
    assert list(result.suggestion.brackets) == ["used", "unused"]
    assert list(result.suggestion.lrs) == ["used"]
    assert result.suggestion.brackets["unused"].status == "flat"
    assert "gradient" in result.suggestion.brackets["unused"].message


def test_dict_batches_closures_and_one_batch() -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    inputs, targets = tiny_data()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=2)
    batch = {"x": inputs, "y": targets}
    result = lrfinder.range_test(model, optimizer, loss_fn, [batch], effort="brackets")
    assert list(result.suggestion.brackets) == ["group_0"]


def test_validation_losses_are_in_the_ramps() -> None:
    result = tiny_test(val_loader=tiny_loader(shuffle=False), effort="brackets")
    for trace in result.traces:
        steps, values = trace.metrics["val/loss"]
        assert steps.tolist() == list(range(0, len(trace), 1))
        assert len(values) == len(trace)


# -- the result -----------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(tiny_result: lrfinder.RangeTest, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for result in (tiny_result, quadratic_test(effort="brackets"), quadratic_test(num_steps=2)):
        result.save(path)
        loaded = lrfinder.RangeTest.load(path)
        assert json.dumps(loaded.to_dict()) == json.dumps(result.to_dict())
        assert str(loaded) == str(result)
        assert loaded.suggestion.lrs == result.suggestion.lrs
        assert loaded.to_frame().equals(result.to_frame())


def test_another_file_is_refused(tmp_path: Path) -> None:
    for text in ("{}", "[1]", "no JSON"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match="must be a range test"):
            lrfinder.RangeTest.load(tmp_path / "x.json")


def test_frames(tiny_result: lrfinder.RangeTest) -> None:
    frame = tiny_result.to_frame()
    assert list(frame.columns) == ["group", "replica", "step", "lr", "loss"]
    assert set(frame["group"]) == {"all", "body", "head"}
    assert set(frame["replica"]) == {0, 1}
    assert len(frame) == sum(len(trace) for trace in tiny_result.traces)
    race = tiny_result.race
    assert race is not None
    assert len(race) == 9 + 16
    assert race["score"].notna().all()
    assert race.iloc[0]["rung"] == 120


def test_the_table_shows_what_matters(tiny_result: lrfinder.RangeTest) -> None:
    text = str(tiny_result)
    for word in ("body", "head", "suggested", "spread", "dec", "optimizer steps"):
        assert word in text
    assert f"{tiny_result.suggestion.lrs['body']:.2g}" in text


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    result = tiny_test(progress=lambda *args: told.append(args))
    assert [stage for stage, _, _ in told] == sorted(
        (stage for stage, _, _ in told), key=["ramps", "race"].index
    )
    steps = [done for _, done, _ in told]
    assert steps == sorted(steps)
    assert steps[-1] == result.cost.steps <= told[-1][2]


# -- bad input ------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "start >= end": (
        {"start_lr": 0.1, "end_lr": 0.01},
        "`start_lr < end_lr`.*start_lr=0.1, end_lr=0.01",
    ),
    "start = end": ({"start_lr": 0.1, "end_lr": 0.1}, "start_lr < end_lr"),
    "start over the usual end": ({"start_lr": 100.0}, "start_lr < end_lr"),
    "NaN": ({"start_lr": math.nan}, "`0 < start_lr < inf`.*nan"),
    "zero": ({"start_lr": 0.0}, "0 < start_lr"),
    "negative": ({"end_lr": -1.0}, "0 < end_lr"),
    "infinite": ({"end_lr": math.inf}, "end_lr < inf"),
    "text": ({"end_lr": "1"}, "0 < end_lr"),
    "one step": ({"num_steps": 1}, "num_steps >= 2"),
    "half a step": ({"num_steps": 10.5}, "`num_steps` must be an int"),
    "no replica": ({"replicas": 0}, "replicas >= 1"),
    "seed": ({"seed": -1}, "seed >= 0"),
    "large seed": ({"seed": 2**32}, r"seed < 2\*\*32"),
    "planned": ({"planned_steps": 0}, "planned_steps >= 1"),
    "effort": ({"effort": "lots"}, "`effort` must be one of 'brackets', 'quick'.*'lots'"),
    "engine": (
        {"engine": "rocket"},
        "`engine` must be one of 'auto', 'stepping', 'lockstep'.*'rocket'",
    ),
    "group": ({"groups": ["tail"]}, "'body', 'head'.*tail"),
    "group as text": ({"groups": "tail"}, "'each', 'together' or a list"),
    "no group": ({"groups": []}, "list of different names"),
    "twice": ({"groups": ["body", "body"]}, "different names"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_test(**options)


def test_an_end_that_is_an_int_works() -> None:
    assert tiny_test(end_lr=10, effort="brackets").settings["end_lr"] == 10.0


def no_scalar(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def no_gradient(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch).detach()


@pytest.mark.parametrize(
    ("loss_fn", "loader", "message"),
    [
        (cross_entropy, [], "empty"),
        (cross_entropy, iter([1]), "iterated again"),
        (no_scalar, None, "scalar"),
        (no_gradient, None, "needs a gradient"),
    ],
)
def test_bad_losses_and_loaders_leave_the_model_as_it_was(
    loss_fn: Any, loader: Any, message: str
) -> None:
    torch.manual_seed(0)
    model = TinyNet()
    optimizer = tiny_optimizer(model)
    own: DataLoader[Any] = tiny_loader()
    before = everything(model, optimizer, own)
    with pytest.raises((ValueError, TypeError), match=message):
        lrfinder.range_test(model, optimizer, loss_fn, own if loader is None else loader)
    assert same(everything(model, optimizer, own), before)


def test_ratios_need_learning_rates() -> None:
    with pytest.raises(ValueError, match=r"lr > 0.*'a'.*groups='each'"):
        quadratic_test(groups="together", lr=0.0)


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters of this model"):
        lrfinder.range_test(TinyNet(), tiny_optimizer(TinyNet()), cross_entropy, tiny_loader())


@pytest.mark.parametrize("unit", [1e3, 1e4])
def test_a_range_that_begins_too_high_is_begun_lower_and_says_so(unit: float) -> None:
    """Weights held as w / unit want 1 / unit of the LR: far below where Adam's ramps begin."""
    torch.manual_seed(0)
    held = nn.Parameter(torch.randn(8) / unit)
    inputs = torch.randn(64, 8)
    batches = [(x, x.sum(1) + 0.1 * torch.randn(16)) for x in inputs.split(16)]

    def loss_fn(tensor: Any, batch: Any) -> Any:
        return (batch[0] @ (unit * tensor) - batch[1]).square().mean()

    optimizer = torch.optim.Adam([held], lr=1e-3)
    result = lrfinder.range_test(held, optimizer, loss_fn, batches, start_lr=30 / unit)
    assert result.settings["start_lr"] == pytest.approx(0.3 / unit)
    assert "so the ramps were begun at" in result.suggestion.message
    assert 0.01 < unit * result.suggestion.lrs["group_0"] < 1.0


def test_ramps_that_show_nothing_are_run_again_with_more_steps_and_say_so() -> None:
    """The loss falls by 46, and its noise has an sd of 120."""
    noisy = quadratic_test(
        loss_fn=lambda model, batch: model() + 120.0 * torch.randn(()),
        replicas=3,
        effort="brackets",
    )
    assert noisy.settings["num_steps"] == 300
    assert noisy.settings["start_lr"] == 1e-5
    assert {b.status for b in noisy.suggestion.brackets.values()} == {"bracket_only"}
    assert "run again with 300" in noisy.suggestion.message
    assert all(len(ramp.lrs) == 300 for ramp in noisy.ramps)
    hopeless = quadratic_test(
        loss_fn=lambda model, batch: model() + 1000.0 * torch.randn(()), effort="brackets"
    )
    assert hopeless.suggestion.lrs == {}
    assert "run again with 300" in hopeless.suggestion.message
