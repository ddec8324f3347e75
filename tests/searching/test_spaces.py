"""Tests of the search space: the brackets bound it, and every proposal is a real schedule."""

from __future__ import annotations

import json
import math

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

import lrfinder
from lrfinder.searching.proposals import DECAYS, SCHEDULES
from lrfinder.searching.spaces import WIDE, Space, make_space


def proposals(space: Space, count: int = 20) -> list[dict]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.hparams(study.ask()) for _ in range(count)]


@pytest.mark.parametrize("num_epochs", [1, 2, 12])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_proposal_is_a_schedule_that_torch_takes_and_never_rises(
    schedule, num_epochs
) -> None:
    brackets = {"body": (1e-3, 0.1), "head": (1e-2, 1.0)}
    space = make_space(brackets, schedules=[schedule], num_epochs=num_epochs)
    starts = [space.params({"body": 0.01, "head": 0.5}, decay=decay) for decay in DECAYS]
    first = [space.hparams(FixedTrial(params)) for params in starts if params is not None]
    assert len(first) == 3
    for hparams in [*proposals(space, 8), *first]:
        assert list(hparams["lrs"]) == ["body", "head"]
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in hparams["lrs"]]
        groups = [
            {"params": [p], "name": name, "lr": lr}
            for p, (name, lr) in zip(parameters, hparams["lrs"].items(), strict=True)
        ]
        optimizer = torch.optim.SGD(groups)
        scheduler = lrfinder.build_scheduler(optimizer, hparams["schedule"])
        seen = []
        for _ in range(num_epochs):
            seen.append(list(lrfinder.learning_rates(optimizer).values()))
            optimizer.step()
            scheduler.step()
        assert np.allclose(seen[0], list(hparams["lrs"].values()))
        assert (np.diff(seen, axis=0) <= 1e-12).all()


@given(
    low=st.floats(1e-6, 1e-2),
    width=st.floats(1.0, 1e4),
    ratio=st.floats(1e-3, 1e3),
    point=st.floats(1e-6, 10.0),
)
def test_what_is_included_is_proposed_exactly(low, width, ratio, point) -> None:
    brackets = {"a": (low, low * width), "b": (low * ratio, low * ratio * width)}
    lrs = {"a": point, "b": point * ratio}
    space = make_space(brackets, schedules=["StepLR"], num_epochs=5, include=[lrs])
    params = space.params(lrs)
    assert params is not None
    assert space.base[0] <= params["lr/a"] <= space.base[1]
    assert space.ratios["b"][0] <= params["ratio/b"] <= space.ratios["b"][1]
    proposed = space.hparams(FixedTrial(params))["lrs"]
    assert proposed == pytest.approx(lrs, rel=1e-12)


def test_ratios_reach_the_ends_of_each_bracket_from_the_middle_of_the_reference() -> None:
    space = make_space(
        {"a": (0.01, 1.0), "b": (0.1, 10.0)}, schedules=["ExponentialLR"], num_epochs=3
    )
    middle = 0.1
    low, high = space.ratios["b"]
    assert (low * middle, high * middle) == pytest.approx((0.1, 10.0))


def test_a_refused_group_is_searched_widely_and_is_not_the_reference() -> None:
    space = make_space({"a": None, "b": (0.01, 1.0)}, schedules=["StepLR"], num_epochs=3)
    assert space.reference == "b"
    assert space.wide == ("a",)
    low, high = space.ratios["a"]
    assert (low * 0.1, high * 0.1) == pytest.approx(WIDE)
    assert list(proposals(space, 1)[0]["lrs"]) == ["a", "b"]
    assert make_space({"a": None}, schedules=["StepLR"], num_epochs=3).base == WIDE


def test_a_missing_group_is_left_to_the_sampler_and_a_missing_reference_gives_nothing() -> None:
    space = make_space({"a": (0.01, 1.0), "b": None}, schedules=["StepLR"], num_epochs=3)
    params = space.params({"a": 0.1})
    assert params is not None
    assert "ratio/b" not in params
    assert space.params({"b": 0.1}) is None


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_a_space_comes_back_from_json(schedule) -> None:
    space = make_space(
        {"a": (0.01, 1 / 3), "b": None},
        schedules=[schedule],
        num_epochs=3,
        include=[{"a": math.pi}],
    )
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_an_unknown_schedule_is_refused_with_those_that_can_be_searched() -> None:
    with pytest.raises(ValueError, match=r"StepLR, MultiStepLR, .* but got 'OneCycleLR'"):
        make_space({"a": None}, schedules=["OneCycleLR"], num_epochs=3)
