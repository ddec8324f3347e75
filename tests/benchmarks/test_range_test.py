"""The benchmark of the range test: its tasks, its truth, and the answers of its synthetic curves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import lrfinder
from benchmarks.markdown import read
from benchmarks.range_test import groups, one_lr, peers, refusals
from benchmarks.range_test.curves import FAMILIES, NOISES
from benchmarks.range_test.figures import EXAMPLES
from benchmarks.range_test.tasks import Problem, problems
from benchmarks.range_test.training import CAP, final_losses, learning_rate_factor
from benchmarks.range_test.truth import joint_gain, region, truth_rows

NAMES = list(problems())
WITHOUT_IMAGES = [name for name in NAMES if name not in ("net", "resnet18")]


def problem(name: str) -> Problem:
    return problems()[name]


# -- tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_every_parameter(name: str) -> None:
    model = problem(name).model(0)
    found = lrfinder.param_groups(model, problem(name).groups)
    held = sum(p.numel() for group in found for p in group["params"])
    assert held == sum(p.numel() for p in model.parameters())
    assert [group["name"] for group in found] == list(problem(name).groups)


@pytest.mark.parametrize("name", WITHOUT_IMAGES)
def test_a_task_starts_and_is_the_same_for_the_same_seed(name: str) -> None:
    task = problem(name).task()
    losses = []
    for seed in (3, 3, 4):
        started = task.start(seed, device="cpu")
        batch = next(iter(started.train_loader))
        assert len(batch[0]) == problem(name).batch_size
        losses.append(task.loss_fn(started.model, batch).item())
    assert np.isfinite(losses).all()
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", WITHOUT_IMAGES)
def test_training_and_validation_data_differ(name: str) -> None:
    (inputs, _), (val_inputs, _) = problem(name).data
    assert len(inputs) > len(val_inputs) > 100
    if "chars" not in name and name != "transformer":  # texts repeat themselves
        known = {tuple(row.tolist()) for row in inputs.flatten(1)}
        assert not any(tuple(row.tolist()) in known for row in val_inputs[:50].flatten(1))


def test_an_epoch_uses_no_sample_twice() -> None:
    orders = problem("fine-tune").orders(0, 30)
    per_epoch = len(problem("fine-tune").data[0][0]) // 32
    assert orders.shape == (30, 32)
    assert orders[:per_epoch].unique().numel() == per_epoch * 32
    assert not torch.equal(orders[:per_epoch], orders[per_epoch : 2 * per_epoch])


def test_a_task_on_images_asks_for_them() -> None:
    with pytest.raises(ValueError, match="--data FOLDER"):
        _ = problem("net").data


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp-sgd", "mlp-adamw", "friedman-adamw", "chars-sgd", "cnn"])
def test_replicas_in_one_step_are_as_a_plain_loop(name: str) -> None:
    one = problem(name)
    lrs = 10 ** np.linspace(-2.5, -1.5, 2 * len(one.groups)).reshape(2, -1)
    batched = final_losses(one, lrs, [0, 7], 5)
    plain = final_losses(dataclasses.replace(one, batched=False), lrs, [0, 7], 5)
    # AdamW's first steps are as large for a gradient that is rounding error as for any other.
    assert batched == pytest.approx(plain, rel=3e-3)
    assert len(np.unique(batched)) == 4


@pytest.mark.parametrize("batched", [True, False])
def test_what_diverges_counts_as_the_cap_and_harms_no_other(batched: bool) -> None:
    one = dataclasses.replace(problem("mlp-sgd"), batched=batched)
    alone = final_losses(one, [[0.03, 0.03]], [1], 8)
    both = final_losses(one, [[0.03, 0.03], [1e6, 1e6]], [1], 8)
    start = final_losses(one, [[0.0, 0.0]], [1], 1)
    assert both[0] == pytest.approx(alone[0], rel=1e-4)
    assert both[1] == pytest.approx(CAP * start[0], rel=1e-4)


def test_rates_fall_to_a_tenth_at_seventy_percent() -> None:
    assert [learning_rate_factor(step, 10) for step in range(10)] == 7 * [1.0] + 3 * [0.1]


# -- truth ----------------------------------------------------------------------------------------


def test_the_region_is_interpolated_around_the_best() -> None:
    line = {"decades": [-3.0, -2.0, -1.0, 0.0], "losses": [2.0, 1.0, 1.1, 1.0001]}
    # 5 % above 1: a twentieth of the way to 2, half the way to 1.1; the dip beyond is not part of it.
    assert region({"line": line}) == pytest.approx((-2.05, -1.5))
    line["losses"] = [3.0, 2.0, 1.0, 1.01]
    assert region({"line": line})[1] == 0.0


def test_the_joint_gain_is_that_of_the_means_with_a_paired_error() -> None:
    row = {"fresh": {"one_lr": [1.0, 3.0], "vector": [0.9, 2.7]}}
    gain, error = joint_gain(row)
    assert gain == pytest.approx(0.1)
    assert error == pytest.approx(0.05)  # of .1 and .3, over a mean of 2


def test_methods_are_judged_by_the_grid() -> None:
    one = dataclasses.replace(problem("mlp-sgd"), num_steps=2)
    best = final_losses(one, [[0.1, 0.1]], range(2000, 2008), 2)[0]
    truth = {
        "line": {"decades": [-2.0, -1.0, 0.0], "losses": [2.0, 1.0, 2.0]},
        "fresh": {"one_lr": best.tolist()},
    }
    usual = {"steps": 100, "seconds": 1.0, "message": ""}
    found = [{"method": "a", "lr": lr, **usual} for lr in (0.1, 0.1, 10**-0.5)]
    found += [{"method": "b", "lr": None, **usual, "message": "no minimum"}]
    assert one_lr.judged(one, truth, found[-1:])[0]["refused"] == 1
    right, refused = one_lr.judged(one, truth, found)
    assert right["error"] == 0.0
    assert right["spread"] == pytest.approx(np.std([-1, -1, -0.5], ddof=1), abs=1e-3)
    assert right["refused"] == 0
    assert right["ratio"] >= 0.8
    assert refused["refused"] == refused["runs"] == 1
    assert refused["reasons"] == ["no minimum"]
    assert "ratio" not in refused


def test_the_summary_counts_tasks_alike_and_refusals() -> None:
    usual = {"long": False, "status": {"a": "ok", "b": "ok"}, "steps": 10, "seconds": 1.0}
    rows = [{"task": "x", "ratio": 0.8, **usual}, {"task": "x", "ratio": 1.25, **usual}]
    rows += [{"task": "y", "ratio": 1.21, "recovered": 0.5, **usual}, {"task": "y", **usual}]
    found = groups.summary(rows)
    assert found["ratio"] == pytest.approx(1.1)
    assert found["ratio_worst_task"] == pytest.approx(1.21)
    assert found["ratio_worst_run"] == 1.25
    assert found["recovered"] == 0.5
    assert found["refused"] == 0.25
    assert found["ratio_close"] == pytest.approx(1 / 3, abs=1e-4)


# -- peers ----------------------------------------------------------------------------------------


def test_a_peer_that_crashes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes(problem: Problem, seed: int) -> dict[str, float]:
        raise IndexError("nothing left")

    def answers(problem: Problem, seed: int) -> dict[str, float]:
        return {"one": 0.1, "two": float("nan")}

    monkeypatch.setattr(peers, "FINDERS", {crashes: ("zero",), answers: ("one", "two")})
    rows = {row["method"]: row for row in peers.answers(problem("mlp-sgd"), 0)}
    assert rows["zero"]["lr"] is None
    assert rows["zero"]["message"] == "IndexError: nothing left"
    assert rows["one"]["lr"] == 0.1
    assert rows["two"]["lr"] is None


# -- synthetic curves -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(20))
def test_a_curve_has_the_answer_that_it_claims(family: str, seed: int) -> None:
    curve = FAMILIES[family](np.random.default_rng(seed))
    assert (np.diff(curve.decades) > 0).all()
    assert curve.drop > 0
    lowest = float(curve.decades[np.nanargmin(curve.losses)])
    if curve.answer is not None:
        assert curve.answer[0] <= lowest <= curve.answer[1]
        assert curve.answer[1] - curve.answer[0] < 2.5
        assert curve.decades[5] < lowest < curve.decades[-3]
        # It is worse on both sides, or not a number.
        ends = curve.losses[[0, -1]] - np.nanmin(curve.losses)
        assert not (ends < 0.5 * curve.drop).any()
    elif family == "edge":
        assert lowest == curve.decades[-1]
    elif family == "too short":
        assert len(curve.losses) < 12
    else:
        assert curve.losses[0] == pytest.approx(np.nanmin(curve.losses), abs=1e-3)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_its_size(noise: str) -> None:
    values = NOISES[noise](np.random.default_rng(0), 20_000)
    spread = 1.4826 * np.median(np.abs(values - np.median(values)))
    assert spread == pytest.approx(0.5 if noise == "spiky" else 1.0, rel=0.1)
    if noise == "correlated":
        assert np.corrcoef(values[1:], values[:-1])[0, 1] == pytest.approx(0.8, abs=0.02)


def test_readings_are_counted() -> None:
    row = refusals.measure("falls then rises", "independent", 0.03, 5)
    assert sum(row["statuses"].values()) == 5
    assert row["answered"]
    assert row["wrong"] == 0
    assert not refusals.measure("too short", "independent", 0.03, 2)["answered"]


def test_whole_tests_are_counted() -> None:
    found = refusals.nothing_to_learn(1)
    assert found["runs"] == sum(found["statuses"].values()) == 1
    assert found["suggested"] == found["statuses"].get("suggested", 0)


# -- what is published ----------------------------------------------------------------------------


def test_every_task_is_published() -> None:
    truth = set(truth_rows())
    known = problems()
    for file, use in (("range_test_one_lr", "one"), ("range_test_groups", "groups")):
        rows = read(file)["rows"]
        wanted = {name for name in known if use in known[name].uses}
        quick = {name for name in wanted if not known[name].slow}
        assert quick <= {row["task"] for row in rows} <= wanted & truth


def test_every_picture_is_there() -> None:
    folder = Path(__file__).parents[2] / "docs" / "figures"
    wanted = [f"reading_{example.name}" for example in EXAMPLES]
    tasks = [name for name in NAMES if not problem(name).slow]
    for name in [*wanted, *(f"range_test_{name}" for name in tasks)]:
        assert 0 < (folder / f"{name}.png").stat().st_size <= 100_000


def test_the_groups_of_the_picture_differ_as_the_page_says() -> None:
    (example,) = (example for example in EXAMPLES if example.apart > 1)
    body, head = truth_rows()[example.task]["vector"]
    assert 10 ** abs(head - body) > example.apart == 30
