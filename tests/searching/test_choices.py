"""Tests of what a search may choose: by its user's function, of several schedules, for several objectives."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
import pytest
import torch
from optuna.trial import TrialState

import lrfinder
from lrfinder.datasets import TensorLoader
from tests.helpers import TinyNet, tiny_data
from tests.searching.test_searching import quiet_search, tiny_task

cold = functools.partial(quiet_search, warm_start=False, pruner="NopPruner")


def test_values_that_are_given_are_used_and_not_searched() -> None:
    study = cold(tiny_task(), 4, hparams=lambda trial: {"gamma": 0.3, "lr/head": 0.02})
    for trial in study.trials:
        hparams = trial.user_attrs["hparams"]
        assert hparams["schedule"]["gamma"] == 0.3
        assert hparams["lrs"]["head"] == 0.02
        assert set(trial.params) == {"lr/body", "step_size"}


def test_a_parameter_that_is_suggested_is_narrowed_and_first_trials_stay_inside() -> None:
    started = tiny_task().start(0, device="cpu")
    measured = lrfinder.range_test(
        started.model, started.optimizer, tiny_task().loss_fn, started.train_loader,
        effort="quick", replicas=1,
    )  # fmt: skip

    def narrow(trial: optuna.Trial) -> dict[str, Any]:
        return {"gamma": trial.suggest_float("gamma", 0.7, 0.8)}

    study = quiet_search(tiny_task(), 4, warm_start=measured, hparams=narrow)
    gammas = [trial.params["gamma"] for trial in study.trials]
    assert all(0.7 <= gamma <= 0.8 for gamma in gammas)
    assert len(set(gammas)) == 4
    # The first trial's gamma of 0.2 is left out; the rest of it stays.
    assert study.trials[0].params["lr/body"] == pytest.approx(measured.suggestion.lrs["body"])


def test_all_lrs_and_the_schedule_can_be_taken_over() -> None:
    spec = {"name": "CosineAnnealingLR", "T_max": 3}

    def own(trial: optuna.Trial) -> dict[str, Any]:
        lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        return {"lrs": {"body": lr, "head": lr}, "schedule": spec}

    study = cold(tiny_task(), 3, hparams=own)
    for trial in study.trials:
        lr = trial.params["lr"]
        assert trial.user_attrs["hparams"] == {"lrs": {"body": lr, "head": lr}, "schedule": spec}
        assert set(trial.params) == {"lr"}


def made_task(batch_size: int = 8) -> lrfinder.Task:
    loader = TensorLoader(*tiny_data(48), batch_size=batch_size, shuffle=True).seeded
    return tiny_task(train_loader=loader, num_epochs=2)


def test_options_reach_the_task_and_the_optimizer_and_trials_are_grouped_by_what_can_be_stacked() -> (
    None
):
    def own(trial: optuna.Trial) -> dict[str, Any]:
        size = trial.suggest_categorical("batch_size", [8, 16])
        decay = trial.suggest_categorical("weight_decay/head", [0.0, 0.1])
        return {"batch_size": size, "weight_decay/head": decay, "momentum": 0.5}

    study = cold(made_task, 8, hparams=own, at_once=4, sampler="RandomSampler(seed=1)")
    assert len({trial.params["batch_size"] for trial in study.trials}) == 2
    for trial in study.trials:
        if trial.state is not TrialState.COMPLETE:
            continue
        options = trial.user_attrs["hparams"]["options"]
        assert options["batch_size"] == trial.params["batch_size"]
        assert trial.user_attrs["steps"] == 2 * 48 // options["batch_size"]
        alone = lrfinder.train_task(made_task, **trial.user_attrs["hparams"], device="cpu")
        assert trial.value == pytest.approx(alone.last("val/loss"), rel=1e-3)
    assert sum(trial.state is TrialState.COMPLETE for trial in study.trials) >= 3
    best = lrfinder.best_hparams(study)
    assert set(best) == {"lrs", "schedule", "options"}


def test_an_option_that_nobody_takes_fails_the_trials_with_what_can_be_given() -> None:
    study = cold(tiny_task(), 1, hparams=lambda trial: {"wheight_decay": 0.1})
    (trial,) = study.trials
    assert trial.state is TrialState.FAIL
    assert "an option of SGD (momentum," in trial.user_attrs["reason"]
    assert "but got 'wheight_decay'" in trial.user_attrs["reason"]


def test_what_a_function_must_return_is_told_before_anything_is_trained() -> None:
    with pytest.raises(TypeError, match=r"must be a function .* but it returned NoneType"):
        cold(tiny_task(), 1, hparams=lambda trial: None)
    with pytest.raises(ValueError, match="must hold an LR for each of body, head"):
        cold(tiny_task(), 1, hparams=lambda trial: {"lrs": {"body": 0.1}})


def test_a_study_of_another_function_is_not_mixed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"storage": f"sqlite:///{tmp_path / 's.db'}", "study_name": "s"}
    cold(tiny_task(), 1, hparams=lambda trial: {"gamma": 0.3}, **options)
    with pytest.raises(
        ValueError, match=r"hparams is \{'gamma': '0.3'\} there and \{'gamma': '0.4'\}"
    ):
        cold(tiny_task(), 2, hparams=lambda trial: {"gamma": 0.4}, **options)


def test_of_several_schedules_one_is_chosen_with_its_own_parameters() -> None:
    names = ["StepLR", "ExponentialLR", "CosineAnnealingLR"]
    study = cold(tiny_task(num_epochs=4), 9, schedule=names, sampler="RandomSampler(seed=0)")
    seen = set()
    for trial in study.trials:
        name = trial.params["schedule_name"]
        seen.add(name)
        assert trial.user_attrs["hparams"]["schedule"]["name"] == name
        others = [other for other in names if other != name]
        assert not any(key.startswith(f"{other}/") for key in trial.params for other in others)
    assert seen == set(names)
    # The default sampler takes such a space too.
    assert len(cold(tiny_task(), 5, schedule=names).trials) == 5


def test_a_gamma_for_each_group_and_a_warm_up() -> None:
    study = cold(tiny_task(num_epochs=6), 9, gamma="each", warm_up=2,
                 sampler="RandomSampler(seed=0)")  # fmt: skip
    warm = 0
    for trial in study.trials:
        spec = trial.user_attrs["hparams"]["schedule"]
        assert set(spec) == {"body", "head"}
        epochs = trial.params["warm_up"]
        table = lrfinder.lr_table(spec, {"body": 1.0, "head": 1.0}, num_steps=7)
        if epochs:
            warm += 1
            assert table["body"][0] == pytest.approx(0.1)
            assert table["body"][epochs] == pytest.approx(1.0)
        else:
            assert spec["head"]["gamma"] == trial.params["gamma/head"]
    assert 0 < warm < 9


def test_several_objectives_make_a_front() -> None:
    study = cold(tiny_task(), 6, metric=["val/loss", "steps"], direction=["minimize", "minimize"],
                 hparams=None)  # fmt: skip
    done = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert done
    assert all(trial.values[1] == 18 for trial in done)
    best = min(done, key=lambda trial: trial.values[0])
    assert lrfinder.best_hparams(study) == best.user_attrs["hparams"]
    assert best.number in {trial.number for trial in study.best_trials}
    report = lrfinder.make_report("s", study=study)
    assert "objective 2" in lrfinder.report_html(report)


def test_a_trial_of_several_objectives_that_diverges_is_pruned() -> None:
    study = cold(tiny_task(), 2, metric=["val/loss", "seconds"],
                 hparams=lambda trial: {"lrs": {"body": 1e20, "head": 1e20}})  # fmt: skip
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert all("not finite" in trial.user_attrs["reason"] for trial in study.trials)


def test_importances_and_figures_of_what_was_searched() -> None:
    study = cold(tiny_task(), 8, sampler="RandomSampler(seed=0)")
    found = lrfinder.importances(study)
    assert set(found) == {"lr/body", "ratio/head", "gamma", "step_size"}
    assert sum(found.values()) == pytest.approx(1.0)
    style = dict(mpl.rcParams)
    contour, slices = lrfinder.contour_figure(study), lrfinder.slice_figure(study)
    assert dict(mpl.rcParams) == style  # what follows keeps its own
    assert set(list(found)[:2]) <= {text.get_text() for axes in contour.axes
                                    for text in (axes.xaxis.label, axes.yaxis.label)}  # fmt: skip
    assert len(slices.axes) >= 4
    with pytest.raises(ValueError, match="must have two completed trials"):
        lrfinder.importances(cold(tiny_task(), 1))


def test_a_search_of_one_group_and_no_range_test() -> None:
    task = tiny_task(groups={"all": "*"}, make_model=TinyNet,
                     make_optimizer=lambda groups: torch.optim.AdamW(groups))  # fmt: skip
    study = cold(task, 2)
    assert study.user_attrs["lrfinder.space"]["wide"] == ["all"]
    assert "lrfinder.range_test" not in study.user_attrs
