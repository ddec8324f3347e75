"""Schedules are torch's own, whichever way they are asked for."""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from lrfinder.groups import learning_rates, set_learning_rate
from lrfinder.schedules import (
    GroupSchedulers,
    LRTable,
    build_scheduler,
    drive,
    lr_table,
    scheduler_names,
    validate_spec,
)

STEPS = 14
BASE = {"body": 0.02, "head": 0.1}
METRICS = [1.0, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]


def decay(step: int) -> float:
    return 1 / (1 + step)


class Decay:
    """A callable object: its attributes are in LambdaLR's state."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, step: int) -> float:
        return self.rate**step


Make = Callable[[torch.optim.Optimizer], Any]
S = torch_schedulers

# name -> arguments in a spec, and the same scheduler as a user of torch makes it
CASES: dict[str, tuple[dict[str, Any], Make]] = {
    "StepLR": ({"step_size": 3, "gamma": 0.5}, lambda o: S.StepLR(o, 3, 0.5)),
    "MultiStepLR": ({"milestones": [2, 5, 5]}, lambda o: S.MultiStepLR(o, [2, 5, 5])),
    "ExponentialLR": ({"gamma": 0.9}, lambda o: S.ExponentialLR(o, 0.9)),
    "CosineAnnealingLR": (
        {"T_max": 6, "eta_min": 1e-3},
        lambda o: S.CosineAnnealingLR(o, 6, 1e-3),
    ),
    "CosineAnnealingWarmRestarts": (
        {"T_0": 3, "T_mult": 2},
        lambda o: S.CosineAnnealingWarmRestarts(o, 3, 2),
    ),
    "ConstantLR": ({"factor": 0.5, "total_iters": 4}, lambda o: S.ConstantLR(o, 0.5, 4)),
    "LinearLR": ({"end_factor": 0.0}, lambda o: S.LinearLR(o, end_factor=0.0)),
    "PolynomialLR": ({"total_iters": 9, "power": 2.0}, lambda o: S.PolynomialLR(o, 9, 2.0)),
    "LambdaLR": ({"lr_lambda": decay}, lambda o: S.LambdaLR(o, decay)),
    "MultiplicativeLR": (
        {"lr_lambda": Decay(0.95)},
        lambda o: S.MultiplicativeLR(o, Decay(0.95)),
    ),
    "OneCycleLR": (
        {"total_steps": STEPS},
        lambda o: S.OneCycleLR(o, [float(g["lr"]) for g in o.param_groups], STEPS),
    ),
    "CyclicLR": (
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "mode": "exp_range", "gamma": 0.9},
        lambda o: S.CyclicLR(o, 0.01, 0.1, 3, mode="exp_range", gamma=0.9),
    ),
    "ReduceLROnPlateau": (
        {"patience": 1, "factor": 0.5},
        lambda o: S.ReduceLROnPlateau(o, patience=1, factor=0.5),
    ),
    "SequentialLR": (
        {
            "schedulers": [
                {"name": "LinearLR", "start_factor": 0.1, "total_iters": 4},
                {"name": "CosineAnnealingLR", "T_max": 8},
                {"name": "ExponentialLR", "gamma": 0.5},
            ],
            "milestones": [4, 10],
        },
        lambda o: S.SequentialLR(
            o,
            [
                S.LinearLR(o, 0.1, total_iters=4),
                S.CosineAnnealingLR(o, 8),
                S.ExponentialLR(o, 0.5),
            ],
            [4, 10],
        ),
    ),
    "ChainedScheduler": (
        {
            "schedulers": [
                {"name": "ConstantLR", "factor": 0.1, "total_iters": 3},
                {"name": "ExponentialLR", "gamma": 0.9},
            ]
        },
        lambda o: S.ChainedScheduler([S.ConstantLR(o, 0.1, 3), S.ExponentialLR(o, 0.9)]),
    ),
}
EVERY = sorted(CASES)


def spec_of(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, **CASES[name][0], **more}


def two_groups(kind: str = "SGD", *, tensor: bool = False) -> torch.optim.Optimizer:
    groups = [
        {
            "params": [nn.Parameter(torch.ones(2))],
            "name": name,
            "lr": torch.tensor(lr, dtype=torch.float64) if tensor else lr,
        }
        for name, lr in BASE.items()
    ]
    options: dict[str, Any] = {"momentum": 0.9} if kind == "SGD" else {"foreach": False}
    return getattr(torch.optim, kind)(groups, lr=1.0, **options)


def train_step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def torch_loop(make: Make, optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """What a user of torch sees."""
    scheduler = make(optimizer)
    table: dict[str, list[float]] = {name: [] for name in BASE}
    for step in range(STEPS):
        for group in optimizer.param_groups:
            table[group["name"]].append(float(group["lr"]))
        train_step(optimizer)
        if isinstance(scheduler, torch_schedulers.ReduceLROnPlateau):
            scheduler.step(METRICS[step])
        else:
            scheduler.step()
    return table


def driven_loop(
    optimizer: torch.optim.Optimizer, driver: Any, interval: str, steps: range = range(STEPS)
) -> dict[str, list[float]]:
    """The LRs at the moment of each update."""
    used: dict[str, list[float]] = {name: [] for name in BASE}

    def spy(opt: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in opt.param_groups:
            used[group["name"]].append(float(group["lr"]))

    handle = optimizer.register_step_pre_hook(spy)
    for step in steps:
        driver.before_step(step)
        train_step(optimizer)
        driver.after_step()
        if interval == "epoch":
            driver.after_epoch(METRICS[step])
    handle.remove()
    return used


def test_there_is_a_case_for_every_scheduler_of_torch() -> None:
    public = {
        name
        for name, value in vars(torch_schedulers).items()
        if isinstance(value, type)
        and issubclass(value, torch_schedulers.LRScheduler)
        and not name.startswith("_")
    }
    assert EVERY == scheduler_names() == sorted(public - {"LRScheduler"})


# -- equal to torch -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_the_table_is_what_a_loop_of_torch_gives(name: str) -> None:
    expected = torch_loop(CASES[name][1], two_groups())
    table = lr_table(spec_of(name), BASE, num_steps=STEPS, metrics=METRICS)
    assert {group: lrs.tolist() for group, lrs in table.items()} == expected
    assert len(set(expected["head"])) > 1
    assert all(lrs.dtype == np.float64 and lrs.shape == (STEPS,) for lrs in table.values())


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", EVERY)
def test_the_lr_used_at_each_step_is_the_table(name: str, interval: str) -> None:
    if (name, interval) == ("ReduceLROnPlateau", "step"):
        return  # refused: its metric is measured after each epoch
    expected = torch_loop(CASES[name][1], two_groups())
    optimizer = two_groups()
    driver = drive(optimizer, spec_of(name, interval=interval))
    assert type(driver.scheduler).__name__ == name
    assert type(driver.scheduler).__module__ == "torch.optim.lr_scheduler"
    assert driven_loop(optimizer, driver, interval) == expected


@pytest.mark.parametrize("name", EVERY)
def test_one_for_each_group_is_torchs_on_that_group_alone(name: str) -> None:
    spec = {"body": spec_of(name), "head": {"name": "StepLR", "step_size": 4}}
    expected = {
        "body": torch_loop(CASES[name][1], one_group("body"))["body"],
        "head": torch_loop(lambda o: torch_schedulers.StepLR(o, 4), one_group("head"))["head"],
    }
    table = lr_table(spec, BASE, num_steps=STEPS, metrics=METRICS)
    assert {group: lrs.tolist() for group, lrs in table.items()} == expected
    optimizer = two_groups()
    assert driven_loop(optimizer, drive(optimizer, spec), "epoch") == expected


def one_group(name: str) -> torch.optim.Optimizer:
    optimizer = two_groups()
    optimizer.param_groups = [g for g in optimizer.param_groups if g["name"] == name]
    return optimizer


@pytest.mark.parametrize("name", EVERY)
def test_an_lr_kept_in_a_tensor(name: str) -> None:
    expected = torch_loop(CASES[name][1], two_groups("Adam", tensor=True))
    optimizer = two_groups("Adam", tensor=True)
    kept = [group["lr"] for group in optimizer.param_groups]
    driver = drive(optimizer, {"body": spec_of(name), "head": spec_of(name)})
    for group, lrs in driven_loop(optimizer, driver, "epoch").items():
        assert lrs == pytest.approx(expected[group], rel=1e-12, abs=1e-15)
    assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, kept, strict=True))


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize(("kind", "key"), [("SGD", "momentum"), ("Adam", "betas")])
def test_momentum_cycles_in_each_group(name: str, kind: str, key: str) -> None:
    whole, each = two_groups(kind), two_groups(kind)
    drivers = [drive(whole, spec_of(name)), drive(each, dict.fromkeys(BASE, spec_of(name)))]
    seen: list[list[Any]] = [[], []]
    for step in range(STEPS):
        for optimizer, driver, values in zip((whole, each), drivers, seen, strict=True):
            values.append([group[key] for group in optimizer.param_groups])
            driven_loop(optimizer, driver, "epoch", range(step, step + 1))
    assert seen[0] == seen[1]
    assert len({str(values) for values in seen[0]}) > 3


def table_of(**spec: Any) -> list[float]:
    (lrs,) = lr_table(spec, 1.0, num_steps=6).values()
    return lrs.tolist()


def test_values_written_out() -> None:
    step_lr = lr_table({"name": "StepLR", "step_size": 10, "gamma": 0.1}, 0.1, num_steps=30)
    expected = [0.1] * 10 + [0.01] * 10 + [0.001] * 10
    assert step_lr["group_0"].tolist() == pytest.approx(expected, rel=1e-12)
    multi = table_of(name="MultiStepLR", milestones=[1, 4], gamma=0.5)
    assert multi == [1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    exponential = table_of(name="ExponentialLR", gamma=0.5)
    assert exponential == [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    cosine = table_of(name="CosineAnnealingLR", T_max=4, eta_min=0.0)
    half = math.sqrt(0.5) / 2
    assert cosine == pytest.approx([1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.5 - half], abs=1e-12)


# -- base LRs -----------------------------------------------------------------------------------


def test_one_number_for_all_groups() -> None:
    spec = {"a": {"name": "StepLR", "step_size": 1}, "b": {"name": "ConstantLR", "factor": 1.0}}
    table = lr_table(spec, 1.0, num_steps=2)
    assert {name: lrs.tolist() for name, lrs in table.items()} == {"a": [1.0, 0.1], "b": [1, 1]}


def test_one_cycle_peaks_at_each_groups_own_lr() -> None:
    table = lr_table({"name": "OneCycleLR", "total_steps": 10}, BASE, num_steps=10)
    assert {name: max(lrs) for name, lrs in table.items()} == BASE
    nested = {
        "name": "SequentialLR",
        "schedulers": [{"name": "ConstantLR", "factor": 0.1}, {"name": "OneCycleLR", "epochs": 1,
                                                              "steps_per_epoch": 10}],
        "milestones": [2],
    }  # fmt: skip
    table = lr_table(nested, BASE, num_steps=12)
    assert {name: max(lrs) for name, lrs in table.items()} == BASE


def test_a_schedule_starts_from_the_lrs_that_the_groups_have_now() -> None:
    optimizer = two_groups()
    drive(optimizer, {"name": "CosineAnnealingLR", "T_max": 4})
    set_learning_rate(optimizer, 0.5)
    scheduler = build_scheduler(optimizer, {"name": "LambdaLR", "lr_lambda": decay})
    assert scheduler.base_lrs == [0.5, 0.5]
    assert learning_rates(optimizer) == {"body": 0.5, "head": 0.5}


def test_the_optimizer_of_a_table_is_none_of_ours() -> None:
    optimizer = two_groups()
    before = [dict(group) for group in optimizer.param_groups]
    lr_table(spec_of("OneCycleLR"), learning_rates(optimizer), num_steps=3)
    validate_spec(spec_of("OneCycleLR"), list(BASE))
    assert [dict(group) for group in optimizer.param_groups] == before


# -- states -------------------------------------------------------------------------------------


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_state_goes_on_where_it_was_taken(name: str, stop: int, each: bool) -> None:
    spec = dict.fromkeys(BASE, spec_of(name)) if each else spec_of(name)
    optimizer = two_groups()
    whole = driven_loop(optimizer, drive(optimizer, spec), "epoch")
    momenta = [group["momentum"] for group in optimizer.param_groups]

    optimizer = two_groups()
    driver = drive(optimizer, spec)
    first = driven_loop(optimizer, driver, "epoch", range(stop))
    states = through_a_file([optimizer.state_dict(), driver.state_dict()])
    for _ in range(2):  # a state is left as it is, so it can be loaded again
        optimizer = two_groups()
        driver = drive(optimizer, spec)
        optimizer.load_state_dict(states[0])
        driver.load_state_dict(states[1])
        rest = driven_loop(optimizer, driver, "epoch", range(stop, STEPS))
        assert {group: first[group] + rest[group] for group in BASE} == whole
        assert [group["momentum"] for group in optimizer.param_groups] == momenta


def test_a_state_is_a_copy() -> None:
    optimizer = two_groups()
    driver = drive(optimizer, spec_of("ReduceLROnPlateau"))
    before = driver.state_dict()
    text = repr(before)
    driven_loop(optimizer, driver, "epoch")
    assert repr(before) == text != repr(driver.state_dict())


def test_numbers_of_numpy_do_not_reach_a_checkpoint() -> None:
    optimizer = two_groups()
    spec = {"name": "MultiStepLR", "milestones": np.array([1, 3]), "gamma": np.float64(0.5)}
    driver = drive(optimizer, spec)
    driven_loop(optimizer, driver, "epoch")
    through_a_file([driver.state_dict(), optimizer.state_dict()])
    assert learning_rates(optimizer) == {"body": 0.005, "head": 0.025}


def test_no_schedule_has_a_state_too() -> None:
    driver = drive(two_groups(), None)
    driver.load_state_dict(through_a_file(driver.state_dict()))
    assert driver.spec is None
    assert not driver.needs_metric


@pytest.mark.parametrize(
    "other",
    [
        None,
        spec_of("ExponentialLR"),
        spec_of("StepLR") | {"gamma": 0.1},
        spec_of("StepLR", interval="step"),
        dict.fromkeys(BASE, spec_of("StepLR")),
    ],
    ids=["none", "class", "argument", "interval", "each"],
)
def test_a_state_of_another_schedule_is_refused(other: Any) -> None:
    state = drive(two_groups(), other).state_dict()
    driver = drive(two_groups(), spec_of("StepLR"))
    message = (
        "A state must be of the same schedule, {'interval': 'epoch', 'name': 'StepLR', "
        "'step_size': 3, 'gamma': 0.5}, but got one of "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        driver.load_state_dict(state)


def test_states_of_group_schedulers() -> None:
    optimizer = two_groups()
    spec = dict.fromkeys(BASE, spec_of("CyclicLR"))
    schedulers = build_scheduler(optimizer, spec)
    assert isinstance(schedulers, GroupSchedulers)
    assert list(schedulers.schedulers) == ["body", "head"]
    train_step(optimizer)
    schedulers.step()
    state = schedulers.state_dict()
    assert schedulers.get_last_lr() == list(learning_rates(optimizer).values())
    other = build_scheduler(two_groups(), spec)
    other.load_state_dict(state)
    other.load_state_dict(state)
    assert other.get_last_lr() == schedulers.get_last_lr()
    with pytest.raises(ValueError, match=r"^The state must be of the groups \['body', 'head'\]"):
        other.load_state_dict({"body": state["body"]})


# -- driving ------------------------------------------------------------------------------------


def test_intervals_of_groups() -> None:
    optimizer = two_groups()
    halve = {"name": "ExponentialLR", "gamma": 0.5}
    driver = drive(
        optimizer, {"body": halve, "head": {**halve, "interval": "epoch"}, "interval": "step"}
    )
    for _ in range(3):
        train_step(optimizer)
        driver.after_step()
    assert learning_rates(optimizer) == {"body": 0.0025, "head": 0.1}
    driver.after_epoch(None)
    assert learning_rates(optimizer) == {"body": 0.0025, "head": 0.05}


def test_a_scheduler_of_torch_is_moved_each_epoch() -> None:
    optimizer = two_groups()
    scheduler = torch_schedulers.MultiStepLR(optimizer, [1, 2], gamma=0.5)
    driver = drive(optimizer, scheduler)
    assert driver.scheduler is scheduler
    assert driver.spec == {"name": "MultiStepLR", "milestones": [1, 2], "gamma": 0.5}
    train_step(optimizer)
    driver.after_step()
    assert learning_rates(optimizer) == BASE
    driver.after_epoch()
    assert learning_rates(optimizer) == {"body": 0.01, "head": 0.05}


def test_group_schedulers_of_ones_own_are_moved_as_they_say() -> None:
    optimizer = two_groups()
    spec = {"body": spec_of("ExponentialLR"), "head": spec_of("ReduceLROnPlateau")}
    driver = drive(optimizer, build_scheduler(optimizer, {**spec, "interval": "epoch"}))
    assert driver.needs_metric
    assert driven_loop(optimizer, driver, "epoch") == {
        name: lrs.tolist()
        for name, lrs in lr_table(spec, BASE, num_steps=STEPS, metrics=METRICS).items()
    }


@pytest.mark.parametrize(
    "spec",
    [
        spec_of("LambdaLR", interval="step"),
        spec_of("SequentialLR"),
        {"body": spec_of("CyclicLR", scale_fn=lambda x: 1.0), "head": spec_of("MultiplicativeLR")},
        {"name": "MultiStepLR", "milestones": (np.int64(2), 3)},
    ],
)
def test_the_spec_in_a_record_is_json(spec: Any) -> None:
    driver = drive(two_groups(), spec)
    assert json.loads(json.dumps(driver.spec)) == driver.spec


def test_callables_in_a_record_are_named() -> None:
    assert drive(two_groups(), spec_of("LambdaLR", interval="step")).spec == {
        "name": "LambdaLR",
        "lr_lambda": f"{__name__}.decay",
        "interval": "step",
    }
    spec = drive(two_groups(), spec_of("MultiplicativeLR")).spec
    assert spec == {"name": "MultiplicativeLR", "lr_lambda": f"{__name__}.Decay"}


def test_a_spec_is_left_as_it_is() -> None:
    spec = {"name": "SequentialLR", **CASES["SequentialLR"][0]}
    before = json.dumps(spec)
    build_scheduler(two_groups(), spec)
    assert json.dumps(spec) == before


def test_a_plateau_needs_its_metric() -> None:
    message = (
        "ReduceLROnPlateau must be given a metric at each of its steps, but got None. Train with "
        "a validation loader that measures it, or pass the metric."
    )
    optimizer = two_groups()
    driver = drive(optimizer, spec_of("ReduceLROnPlateau"))
    assert driver.needs_metric
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        driver.after_epoch(None)
    each = {"body": spec_of("ExponentialLR"), "head": spec_of("ReduceLROnPlateau")}
    scheduler = build_scheduler(optimizer, each)
    assert isinstance(scheduler, GroupSchedulers)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scheduler.step()
    assert learning_rates(optimizer) == BASE  # not even the group that needs none has moved
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lr_table(each, BASE, num_steps=3)
    driver.after_epoch(math.nan)


def test_torchs_warning_of_a_scheduler_that_is_ahead() -> None:
    spec = dict.fromkeys(BASE, spec_of("StepLR"))
    optimizer = two_groups()
    scheduler = build_scheduler(optimizer, spec)
    assert isinstance(scheduler, GroupSchedulers)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
    optimizer = two_groups()
    scheduler = build_scheduler(optimizer, spec)
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
        # In the loop the step came first, even where a GradScaler left the optimizer out of it.
        drive(two_groups(), spec).after_epoch()
        drive(two_groups(), spec_of("StepLR", interval="step")).after_step()


def test_groups_added_later_are_refused() -> None:
    optimizer = two_groups()
    scheduler = build_scheduler(optimizer, dict.fromkeys(BASE, spec_of("StepLR")))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "name": "late"})
    message = "The optimizer must have the 2 groups that the schedulers were built for"
    with pytest.raises(ValueError, match=message):
        scheduler.step()


def negative_from_step_two(step: int) -> float:
    return 1.0 - step


@pytest.mark.parametrize("each", [False, True])
def test_an_lr_that_turns_negative_is_an_error(each: bool) -> None:
    one = {"name": "LambdaLR", "lr_lambda": negative_from_step_two}
    spec: Any = {"body": spec_of("StepLR"), "head": one} if each else one
    group, lr = ("head", -0.1) if each else ("body", -0.02)
    message = (
        "LambdaLR must give learning rates that are finite and >= 0, but gave group "
        f"{group!r} lr={lr}."
    )
    optimizer = two_groups()
    driver = drive(optimizer, spec)
    driver.after_epoch()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        driver.after_epoch()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lr_table(spec, BASE, num_steps=3)


def test_a_schedule_past_its_end() -> None:
    spec = {"name": "OneCycleLR", "total_steps": 4}
    assert lr_table(spec, 0.1, num_steps=5)["group_0"].shape == (5,)
    message = (
        "OneCycleLR must take its next step, but torch refuses: Tried to step 5 times. The "
        "specified number of total steps is 4"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lr_table(spec, 0.1, num_steps=6)


# -- wrong specs --------------------------------------------------------------------------------

ALL = ", ".join(EVERY)
STEP = {"name": "StepLR", "step_size": 3}
BAD_SPECS: list[tuple[Any, str]] = [
    (
        {"name": "StepLr", "step_size": 3},
        "The schedule must have the name of a scheduler of torch, but got name='StepLr'. Did you "
        f"mean 'StepLR'? torch has {ALL}.",
    ),
    (
        {"step_size": 3},
        "The schedule must have the name of a scheduler of torch, but got name=None. torch has "
        f"{ALL}.",
    ),
    (
        {"name": "LRScheduler"},
        "The schedule must have the name of a scheduler of torch, but got name='LRScheduler'. Did "
        f"you mean 'ChainedScheduler'? torch has {ALL}.",
    ),
    (
        {"name": "StepLR", "gama": 0.1},
        "The schedule must have the arguments of StepLR(step_size, gamma=0.1), but StepLR does "
        "not take 'gama' and StepLR needs 'step_size'.",
    ),
    (
        {**STEP, "last_epoch": 3},
        "The schedule must have the arguments of StepLR(step_size, gamma=0.1), but StepLR does "
        "not take 'last_epoch'.",
    ),
    (
        {**STEP, "gamma": math.nan},
        "The schedule (StepLR) must have finite numbers, but got gamma=nan.",
    ),
    (
        {**STEP, "interval": "batch"},
        "The schedule must have an 'interval' of 'epoch' or 'step', but got 'batch'.",
    ),
    (
        {"name": "ReduceLROnPlateau", "interval": "step"},
        "The schedule must have the interval 'epoch', since the metric of ReduceLROnPlateau is "
        "measured after each epoch, but got 'step'.",
    ),
    (
        {"name": "MultiStepLR", "milestones": ["3"]},
        "The schedule (MultiStepLR) must have milestones that are integers >= 0 in rising order, "
        "but got ['3'].",
    ),
    (
        {"name": "MultiStepLR", "milestones": [5, 3]},
        "The schedule (MultiStepLR) must have milestones that are integers >= 0 in rising order, "
        "but got [5, 3].",
    ),
    (
        {"name": "ReduceLROnPlateau", "factor": 2.0},
        "The schedule must be one that torch takes, but {'name': 'ReduceLROnPlateau', 'factor': "
        "2.0, 'interval': 'epoch'} is refused: ValueError: Factor should be < 1.0.",
    ),
    (
        {"name": "StepLR", "step_size": 0},
        "StepLR must take its next step, but torch refuses: integer modulo by zero",
    ),
    (
        {"name": "LambdaLR", "lr_lambda": lambda step: -1.0},
        "LambdaLR must give learning rates that are finite and >= 0, but gave group 'body' "
        "lr=-0.02.",
    ),
    (
        {"name": "SequentialLR", "schedulers": {"name": "StepLR"}, "milestones": []},
        "The schedule (SequentialLR) must have a list of specs as 'schedulers', but got {'name': "
        "'StepLR'}.",
    ),
    (
        {"name": "ChainedScheduler", "schedulers": [{**STEP, "interval": "step"}]},
        "The schedule, schedulers[0] must not have an 'interval', since ChainedScheduler steps "
        "it, but got 'step'. Give it beside 'ChainedScheduler'.",
    ),
    (
        {"name": "ChainedScheduler", "schedulers": [STEP, {"name": "StepLR"}]},
        "The schedule, schedulers[1] must have the arguments of StepLR(step_size, gamma=0.1), but "
        "StepLR needs 'step_size'.",
    ),
    (
        {
            "name": "SequentialLR",
            "schedulers": [STEP, {"name": "ChainedScheduler", "schedulers": [STEP]}],
            "milestones": [2],
        },
        "The schedule, schedulers[1] must not be a ChainedScheduler, which torch's SequentialLR "
        "cannot start at a milestone. List its schedulers and milestones in the outer "
        "SequentialLR.",
    ),
    (
        {"body": STEP},
        "A spec for each group must name each of 'body', 'head', but it lacks 'head'. For a "
        'constant learning rate give {"name": "ConstantLR", "factor": 1.0}.',
    ),
    (
        {"body": STEP, "heda": STEP},
        "A spec for each group must name each of 'body', 'head', but it lacks 'head' and has "
        "'heda', which are no groups. For a constant learning rate give "
        '{"name": "ConstantLR", "factor": 1.0}.',
    ),
    (
        {"body": STEP, "head": "StepLR"},
        "A spec for each group must hold a mapping for each, and at most an 'interval' beside "
        "them, but got {'head': 'StepLR'}.",
    ),
    (
        {"body": STEP, "head": {"name": "Step"}},
        "The schedule of group 'head' must have the name of a scheduler of torch, but got "
        f"name='Step'. Did you mean 'StepLR'? torch has {ALL}.",
    ),
    (
        {"name": "OneCycleLR"},
        "The schedule must be one that torch takes, but {'name': 'OneCycleLR', 'interval': "
        "'epoch'} is refused: ValueError: You must define either total_steps OR (epochs AND "
        "steps_per_epoch)",
    ),
]


@pytest.mark.parametrize(("spec", "message"), BAD_SPECS, ids=range(len(BAD_SPECS)))
def test_bad_specs_are_refused_before_anything_is_changed(spec: Any, message: str) -> None:
    optimizer = two_groups()
    before = [dict(group) for group in optimizer.param_groups]
    for call in (build_scheduler, drive):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(optimizer, spec)
    assert [dict(group) for group in optimizer.param_groups] == before
    with pytest.raises(ValueError, match=re.escape(message.split("but g")[0])):
        validate_spec(spec, list(BASE))
    with pytest.raises(ValueError, match=re.escape(message.split("but g")[0])):
        lr_table(spec, BASE, num_steps=3)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_scheduler_that_does_not_suit_the_optimizer(tensor: bool) -> None:
    groups = [
        {"params": [nn.Parameter(torch.ones(1))], "lr": torch.tensor(0.1) if tensor else 0.1}
    ]
    optimizer = torch.optim.Adagrad(groups, lr=0.1, foreach=False)
    before = [dict(group) for group in optimizer.param_groups]
    spec = {
        "name": "ChainedScheduler",
        "schedulers": [{"name": "LinearLR"}, spec_of("OneCycleLR")],
    }
    message = "optimizer must support momentum or beta1 with `cycle_momentum` option enabled"
    with pytest.raises(ValueError, match=message):
        build_scheduler(optimizer, spec)
    assert [dict(group) for group in optimizer.param_groups] == before
    assert learning_rates(optimizer) == {"group_0": pytest.approx(0.1)}
    spec["schedulers"][1]["cycle_momentum"] = False
    build_scheduler(optimizer, spec)


@pytest.mark.parametrize("call", [build_scheduler, drive])
def test_what_is_no_spec(call: Any) -> None:
    with pytest.raises(TypeError, match=r"^A schedule.* must be a .*, but got .*(str|StepLR)"):
        call(two_groups(), "StepLR")


def test_a_scheduler_of_another_optimizer() -> None:
    scheduler = torch_schedulers.StepLR(two_groups(), 3)
    message = (
        "The StepLR must belong to the optimizer that is trained, but it belongs to another. "
        "Build it from this one, or give a spec."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        drive(two_groups(), scheduler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "`num_steps >= 1` must hold, but got num_steps=0."),
        (
            {"num_steps": 3, "metrics": [1.0]},
            "`metrics` must have one value for each of the 3 steps, but got 1.",
        ),
        (
            {"num_steps": 3, "base_lrs": {"a": math.nan}},
            "`0 <= lr < inf` must hold for group 'a', but got lr=nan.",
        ),
    ],
)
def test_bad_arguments_of_a_table(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lr_table(STEP, **{"base_lrs": 0.1, **arguments})


# -- tables as schedules ------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [False, True])
def test_a_table_sets_the_lr_of_each_step(tensor: bool) -> None:
    optimizer = two_groups("Adam", tensor=tensor)
    kept = optimizer.param_groups[0]["lr"]
    lrs = {"head": [0.1, 0.2, 0.0], "body": np.array([1.0, 2.0, 3.0])}
    table = LRTable(optimizer, lrs)
    assert driven_loop(optimizer, table, "step", range(3)) == {
        "body": [1.0, 2.0, 3.0],
        "head": [0.1, 0.2, 0.0],
    }
    assert not tensor or optimizer.param_groups[0]["lr"] is kept
    optimizer.load_state_dict(optimizer.state_dict())
    table.before_step(1)
    assert learning_rates(optimizer) == {"body": 2.0, "head": 0.2}
    for step in (3, -1):
        with pytest.raises(ValueError, match=rf"^`0 <= step < 3` must hold .*got step={step}\.$"):
            table.before_step(step)


@pytest.mark.parametrize(
    ("lrs", "message"),
    [
        (
            {"body": [0.1]},
            "A table must have LRs for each group ('body', 'head'), but got 'body'.",
        ),
        (
            {"body": [0.1], "head": [0.1, 0.2]},
            "A table must have the shape (num_steps,), num_steps >= 1, for each group, but got "
            "{'body': (1,), 'head': (2,)}.",
        ),
        (
            {"body": [], "head": []},
            "A table must have the shape (num_steps,), num_steps >= 1, for each group, but got "
            "{'body': (0,), 'head': (0,)}.",
        ),
        (
            {"body": [0.1, 0.1], "head": [0.1, -0.2]},
            "`0 <= lr < inf` must hold for group 'head', but got lr=-0.2.",
        ),
        (
            {"body": [0.1, math.inf], "head": [0.1, -0.2]},
            "`0 <= lr < inf` must hold for group 'body', but got lr=inf.",
        ),
    ],
)
def test_bad_tables(lrs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LRTable(two_groups(), lrs)
