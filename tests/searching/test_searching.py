"""Tests of the search: warm, recorded, resumable, and never stopped by a bad trial."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import nn

import lrfinder
from lrfinder.datasets import TensorLoader
from lrfinder.snapshots import random_state
from tests.helpers import (
    TINY_GROUPS,
    Quadratic,
    TinyNet,
    cross_entropy,
    quadratic_loss,
    same,
    tiny_data,
)


def tiny_task(**options: Any) -> lrfinder.Task:
    defaults: dict[str, Any] = {
        "name": "tiny",
        "make_model": TinyNet,
        "groups": TINY_GROUPS,
        "make_optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        "loss_fn": cross_entropy,
        "train_loader": TensorLoader(*tiny_data(48), batch_size=8, shuffle=True).seeded,
        "val_loader": TensorLoader(*tiny_data(48, seed=1), batch_size=48),
        "metrics": {"accuracy": lrfinder.accuracy},
        "num_epochs": 3,
    }
    return lrfinder.Task(**(defaults | options))


@pytest.fixture(scope="module")
def measured() -> lrfinder.RangeTest:
    """A range test of the tiny task."""
    started = tiny_task().start(0, device="cpu")
    return lrfinder.range_test(
        started.model,
        started.optimizer,
        cross_entropy,
        started.train_loader,
        num_steps=100,
        effort="quick",
        replicas=2,
    )


def quiet_search(*args: Any, **options: Any) -> optuna.Study:
    return lrfinder.search(*args, **({"device": "cpu"} | options))


def with_points(
    result: lrfinder.RangeTest, lrs: dict[str, float], control: dict[str, float]
) -> lrfinder.RangeTest:
    suggestion = dataclasses.replace(result.suggestion, lrs=lrs, control=control)
    return dataclasses.replace(result, suggestion=suggestion)


def test_the_first_trials_are_the_suggestion_the_control_their_middle_and_the_race_s_winner(
    measured: lrfinder.RangeTest,
) -> None:
    lrs, control = {"body": 0.01, "head": 0.4}, {"body": 0.04, "head": 0.04}
    result = with_points(measured, lrs, control)
    study = quiet_search(tiny_task(), 6, warm_start=result, pruner="NopPruner")
    assert len(study.trials) == 6
    winner = next(one for one in measured.standings or () if one.kind == "joint")
    middle = {"body": 0.02, "head": math.sqrt(0.4 * 0.04)}
    expected = [
        (lrs, 0.2),
        (control, 0.2),
        (lrs, 0.5),
        (lrs, 0.1),
        (middle, 0.2),
        (winner.lrs, 0.2),
    ]
    space = study.user_attrs["lrfinder.space"]
    low, high = space["base"]
    for trial, (point, gamma) in zip(study.trials, expected, strict=True):
        hparams = trial.user_attrs["hparams"]
        assert hparams["lrs"] == pytest.approx(point)
        assert hparams["schedule"]["gamma"] == gamma
        assert low <= trial.params[f"lr/{space['reference']}"] <= high
    # Those that hardly differ are trained once.
    near = with_points(measured, lrs, {name: 1.2 * lr for name, lr in lrs.items()})
    queued = quiet_search(tiny_task(), 5, warm_start=near, pruner="NopPruner").trials
    fixed = [trial for trial in queued if "fixed_params" in trial.system_attrs]
    assert [trial.number for trial in fixed] == [0, 1, 2, 3]


def test_the_box_of_the_race_bounds_the_search(measured: lrfinder.RangeTest) -> None:
    space = quiet_search(tiny_task(), 1, warm_start=measured).user_attrs["lrfinder.space"]
    raced = [one.lrs["body"] for one in measured.standings or () if one.kind == "equal"]
    minimum = min(raced) * 10**1.5
    low, high = space["base"]
    assert low <= minimum / 100 * 1.0001
    assert high >= minimum * 10 * 0.9999
    assert (low, high) == pytest.approx((minimum / 100, minimum * 10), rel=1e-6)


def test_the_best_hparams_are_those_of_the_lowest_loss_and_train_the_task(
    measured: lrfinder.RangeTest,
) -> None:
    study = quiet_search(tiny_task(), 5, warm_start=measured, schedule="CosineAnnealingLR")
    best = lrfinder.best_hparams(study)
    trace = lrfinder.train_task(
        tiny_task(), lrs=best["lrs"], schedule=best["schedule"], device="cpu"
    )
    assert trace.status == "completed"
    # The same seed, LRs and schedule: the very loss that the trial reported.
    assert trace.last("val/loss") == study.best_value
    assert study.best_value == min(
        trial.value for trial in study.trials if trial.state is TrialState.COMPLETE
    )


def test_a_metric_can_be_maximised(measured: lrfinder.RangeTest) -> None:
    study = quiet_search(
        tiny_task(), 3, warm_start=measured, metric="val/accuracy", direction="maximize"
    )
    assert 0.0 <= study.best_value <= 1.0
    assert study.direction is optuna.study.StudyDirection.MAXIMIZE


def test_the_same_call_goes_on_and_reaches_n_trials(
    measured: lrfinder.RangeTest, tmp_path: Path
) -> None:
    options = {"storage": f"sqlite:///{tmp_path / 's.db'}", "study_name": "s"}
    quiet_search(tiny_task(), 3, warm_start=measured, **options)
    seen: list[int] = []
    # No range test is made again: what the study searches is in the study.
    study = quiet_search(
        tiny_task(), 5, on_trial=lambda study, trial: seen.append(trial.number), **options
    )
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4]
    assert seen == [3, 4]
    assert len({str(trial.params) for trial in study.trials}) == 5
    assert len(quiet_search(tiny_task(), 5, **options).trials) == 5


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            {"schedule": "ExponentialLR"},
            r"schedules is \['StepLR'\] there and \['ExponentialLR'\]",
        ),
        ({"num_epochs": 2}, "num_epochs is 3 there and 2 here"),
        ({"metric": "val/accuracy", "direction": "maximize"}, "metric is 'val/loss' there"),
        ({"seed": 7}, "seed is 0 there and 7 here"),
    ],
)
def test_a_study_of_another_search_is_not_mixed(
    measured: lrfinder.RangeTest, tmp_path: Path, changed, difference
) -> None:
    options = {"storage": f"sqlite:///{tmp_path / 's.db'}", "study_name": "s"}
    quiet_search(tiny_task(), 1, warm_start=measured, **options)
    with pytest.raises(ValueError, match=difference):
        quiet_search(tiny_task(), 2, **(options | changed))
    other = tiny_task(groups={"all": "*"})
    with pytest.raises(ValueError, match="group_names"):
        quiet_search(other, 2, **options)


def test_a_study_of_something_else_is_not_touched(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 's.db'}"
    theirs = optuna.create_study(storage=storage, study_name="s")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="made by something else"):
        quiet_search(tiny_task(), 2, storage=storage, study_name="s")
    assert len(theirs.trials) == 1


def test_a_trial_that_diverges_is_pruned_with_its_reason(measured: lrfinder.RangeTest) -> None:
    # Plain SGD on curvature 100 overflows at every LR of this bracket but the lowest.
    task = tiny_task(
        name="steep",
        make_model=lambda: Quadratic(body=1e6, head=1e6),
        groups={"body": "x.body", "head": "x.head"},
        make_optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        loss_fn=quadratic_loss,
        train_loader=[torch.zeros(1)] * 30,
        val_loader=[torch.zeros(1)],
        metrics={},
    )
    study = quiet_search(task, 3, warm_start=measured)
    assert len(study.trials) == 3
    diverged = [trial for trial in study.trials if trial.state is TrialState.PRUNED]
    assert diverged
    for trial in diverged:
        assert "not finite" in trial.user_attrs["reason"]
        # What the sampler learns from: the worst value there is.
        assert math.isnan(list(trial.intermediate_values.values())[-1])


def test_a_trial_that_raises_fails_with_its_reason_and_the_search_goes_on(
    measured: lrfinder.RangeTest,
) -> None:
    calls = 0

    def make_model() -> nn.Module:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")
        return TinyNet()

    study = quiet_search(tiny_task(make_model=make_model), 3, warm_start=measured)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "RuntimeError: out of memory"
    assert "hparams" in study.trials[1].user_attrs


def test_a_trial_that_raises_in_the_middle_of_its_training_fails_and_the_search_goes_on(
    measured: lrfinder.RangeTest,
) -> None:
    batches = 0

    class Breaks(TinyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal batches
            batches += self.training
            if batches == 25:  # a trial takes eighteen steps
                raise RuntimeError("out of memory")
            return super().forward(x)

    task = tiny_task(make_model=Breaks)
    study = quiet_search(task, 3, warm_start=measured, engine="stepping", pruner="NopPruner")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "RuntimeError: out of memory"


def test_trials_that_raise_in_lockstep_fail_and_the_others_go_on(
    measured: lrfinder.RangeTest,
) -> None:
    calls = 0

    def breaks(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (4, 5):  # of the three that are under way
            raise RuntimeError("out of memory")
        return lrfinder.accuracy(model, batch)

    task = tiny_task(metrics={"accuracy": breaks})
    study = quiet_search(
        task, 6, warm_start=measured, engine="lockstep", at_once=3, pruner="NopPruner", confirm=0
    )
    states = [trial.state.name for trial in study.trials]
    assert len(states) == 6
    assert 1 <= states.count("FAIL") <= 2
    assert states.count("COMPLETE") == 6 - states.count("FAIL")
    for trial in study.trials:
        if trial.state.name == "FAIL":
            assert trial.user_attrs["reason"] == "RuntimeError: out of memory"


def test_without_a_completed_trial_the_reasons_are_told(measured: lrfinder.RangeTest) -> None:
    def make_model() -> nn.Module:
        raise RuntimeError("no such layer")

    study = quiet_search(tiny_task(make_model=make_model), 2, warm_start=measured)
    with pytest.raises(ValueError, match=r"must have a completed trial.*no such layer"):
        lrfinder.best_hparams(study)


def test_ctrl_c_leaves_no_trial_running_and_the_interrupted_one_is_made_up(
    measured: lrfinder.RangeTest, tmp_path: Path
) -> None:
    options = {"storage": f"sqlite:///{tmp_path / 's.db'}", "study_name": "s"}
    calls = 0

    def make_model() -> nn.Module:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return TinyNet()

    task = tiny_task(make_model=make_model)
    with pytest.raises(KeyboardInterrupt):
        quiet_search(task, 3, warm_start=measured, **options)
    study = quiet_search(task, 3, **options)
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") + states.count("PRUNED") == 3
    assert states[1] == "FAIL"
    assert "KeyboardInterrupt" in study.trials[1].user_attrs["reason"]


def test_trials_in_lockstep_are_trained_as_each_alone(measured: lrfinder.RangeTest) -> None:
    """Shuffled with the random state of the process, with dropout, at different LRs, four at a time."""
    task = tiny_task()
    study = quiet_search(
        task, 7, warm_start=measured, engine="lockstep", at_once=4, pruner="NopPruner"
    )
    assert study.user_attrs["lrfinder.engine"]["engine"] == "lockstep"
    assert [trial.number for trial in study.trials] == list(range(7))
    for trial in study.trials:
        assert trial.state is TrialState.COMPLETE
        hparams = trial.user_attrs["hparams"]
        alone = lrfinder.train_task(task, **hparams, seed=0, num_epochs=task.num_epochs)
        assert trial.value == pytest.approx(alone.last("val/loss"), rel=1e-3)
        assert trial.user_attrs["steps"] == len(alone)


def test_a_pruned_trial_makes_room_at_once(measured: lrfinder.RangeTest) -> None:
    begun: list[int] = []

    def make_model() -> nn.Module:
        begun.append(1)
        return TinyNet()

    ended: list[int] = []
    study = quiet_search(
        tiny_task(make_model=make_model), 6, warm_start=measured, engine="lockstep", at_once=2,
        pruner=optuna.pruners.ThresholdPruner(upper=1e-9),
        on_trial=lambda study, trial: ended.append(len(begun)),
    )  # fmt: skip
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 6
    assert ended == [2, 2, 4, 4, 6, 6]  # two are under way, and as two end two begin


@pytest.mark.parametrize("engine", ["stepping", "lockstep"])
def test_a_trial_s_model_is_gone_before_the_next_one_is_asked_for(engine: str) -> None:
    models: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def make_model() -> nn.Module:
        model = TinyNet()
        models.append(weakref.ref(model))
        return model

    def hparams(trial: optuna.Trial) -> dict[str, Any]:
        gc.collect()  # what torch makes with a process's first optimizer goes in circles
        alive.append(sum(model() is not None for model in models))
        return {"lrs": {"body": 0.1, "head": 0.1}}

    quiet_search(
        tiny_task(make_model=make_model), 4, warm_start=False, hparams=hparams, engine=engine,
        at_once=1,
    )  # fmt: skip
    assert len(models) == 4
    assert alive[-4:] == [0, 0, 0, 0]


def test_a_pruner_ends_a_training_early(measured: lrfinder.RangeTest) -> None:
    pruner = optuna.pruners.ThresholdPruner(upper=1e-9)
    study = quiet_search(tiny_task(), 3, warm_start=measured, pruner=pruner)
    assert len(study.trials) == 3
    for trial in study.trials:
        assert trial.state is TrialState.PRUNED
        assert trial.user_attrs["steps"] == 6  # one epoch
        assert "Pruned after epoch 1" in trial.user_attrs["reason"]


def test_every_trial_has_its_run_and_they_link_both_ways(
    measured: lrfinder.RangeTest, mlflow_uri: str
) -> None:
    from mlflow import MlflowClient

    calls = 0

    def make_model() -> nn.Module:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("broken")
        return TinyNet()

    with lrfinder.MlflowRecorder(run_name="search") as recorder:
        study = quiet_search(
            tiny_task(make_model=make_model), 3, warm_start=measured, recorder=recorder,
            pruner="NopPruner",
        )  # fmt: skip
    client = MlflowClient(mlflow_uri)
    runs = client.search_runs(["0"], f"tags.lrfinder.parent = '{recorder.run_id}'")
    by_id = {run.info.run_id: run for run in runs}
    assert len(by_id) == 3
    for trial in study.trials:
        run = by_id[trial.user_attrs["mlflow_run_id"]]
        assert run.data.tags["optuna.trial_number"] == str(trial.number)
        assert run.data.tags["optuna.study_name"] == study.study_name
        if trial.state is TrialState.FAIL:
            assert run.info.status == "FAILED"
            continue
        assert run.info.status == "FINISHED"
        assert run.data.metrics["val/loss"] == pytest.approx(trial.value)
        lrs = trial.user_attrs["hparams"]["lrs"]
        for name, lr in lrs.items():
            assert float(run.data.params[f"cfg/lrs/{name}"]) == lr
        history = client.get_metric_history(run.info.run_id, "lr/head")
        assert len(history) == 18
        assert history[0].value == pytest.approx(lrs["head"])
    parent = client.get_run(recorder.run_id)
    assert parent.data.metrics["search/best val/loss"] == pytest.approx(study.best_value)


def test_nothing_is_printed_and_nothing_is_left_changed(
    measured: lrfinder.RangeTest, capfd: pytest.CaptureFixture[str]
) -> None:
    before, verbosity = random_state(), optuna.logging.get_verbosity()
    quiet_search(tiny_task(), 2, warm_start=measured)
    assert same(random_state(), before)
    assert optuna.logging.get_verbosity() == verbosity
    assert logging.getLogger("optuna").level == verbosity
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_range_test_is_made_where_none_is_given() -> None:
    task = tiny_task(train_loader=TensorLoader(*tiny_data(512), batch_size=8, shuffle=True).seeded)
    study = quiet_search(task, 3, num_epochs=1)
    assert study.user_attrs["lrfinder.space"]["group_names"] == ["body", "head"]
    assert sum(trial.state.is_finished() for trial in study.trials) == 3
    assert study.user_attrs["lrfinder.range_test"]["steps"] > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "`n_trials >= 1` must hold, but got n_trials=0"),
        ({"num_epochs": 0}, "`num_epochs >= 1` must hold"),
        ({"schedule": "Nope"}, "`schedule` must be one that can be searched"),
        ({"metric": "val/f1"}, "`metric` must be one of val/loss, val/accuracy"),
        ({"direction": "up"}, "`direction` must be"),
        ({"engine": "warp"}, "`engine` must be"),
        ({"at_once": 0}, "`at_once >= 1` must hold"),
        ({"sampler": "Nope"}, "`sampler` must be one of"),
        ({"pruner": "Nope"}, "`pruner` must be one of"),
        ({"storage": "Nope"}, "`storage` must be the URL"),
        ({"device": "tpu9"}, "`device`"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(options, message) -> None:
    def make_model() -> nn.Module:
        raise AssertionError("was trained")

    arguments = {"n_trials": 2, "device": "cpu"} | options
    with pytest.raises(ValueError, match=message):
        lrfinder.search(tiny_task(make_model=make_model), **arguments)


def test_a_task_without_validation_and_a_range_test_of_other_groups_are_refused(
    measured: lrfinder.RangeTest,
) -> None:
    with pytest.raises(ValueError, match="must have a `val_loader`"):
        quiet_search(tiny_task(val_loader=None), 1, warm_start=measured)
    with pytest.raises(ValueError, match="must be a range test of the groups"):
        quiet_search(tiny_task(groups={"all": "*"}), 1, warm_start=measured)


def test_a_refused_group_is_searched_widely(measured: lrfinder.RangeTest) -> None:
    suggestion = measured.suggestion
    refused = dataclasses.replace(
        suggestion.brackets["head"], status="flat", message="It was flat.", suggested=None
    )
    without = dataclasses.replace(
        suggestion,
        brackets={**suggestion.brackets, "head": refused},
        lrs={"body": suggestion.lrs["body"]},
    )
    result = dataclasses.replace(measured, suggestion=without)
    study = quiet_search(tiny_task(), 2, warm_start=result)
    space = study.user_attrs["lrfinder.space"]
    assert space["wide"] == ["head"]
    low, high = space["ratios"]["head"]
    assert high / low == pytest.approx(1e7)
    assert study.trials[0].user_attrs["hparams"]["lrs"]["body"] == pytest.approx(
        suggestion.lrs["body"]
    )


def test_two_processes_share_a_fresh_study(tmp_path: Path) -> None:
    code = (
        "import sys, lrfinder\n"
        "from tests.searching.test_searching import tiny_task\n"
        "lrfinder.search(tiny_task(), 4, storage=sys.argv[1], study_name='s', device='cpu')\n"
    )
    storage = f"sqlite:///{tmp_path / 's.db'}"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, storage],
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors
    trials = optuna.load_study(storage=storage, study_name="s").trials
    queued = [trial for trial in trials if "fixed_params" in trial.system_attrs]
    assert len(queued) <= 6
    assert sum(trial.state.is_finished() for trial in trials) == 4
    assert all(trial.state.is_finished() or trial in queued for trial in trials)
