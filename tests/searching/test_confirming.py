"""Tests of confirming: the best trials again on new seeds, and the best mean is what counts."""

from __future__ import annotations

import functools
import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest

import lrfinder
from lrfinder.searching.confirming import CONFIRMED_KEY, best_trials, most_trials
from tests.searching.test_searching import quiet_search, tiny_task

cold = functools.partial(
    quiet_search, warm_start=False, pruner="NopPruner", sampler="RandomSampler(seed=3)"
)


def test_the_best_are_trained_again_on_new_seeds_and_the_best_mean_counts() -> None:
    study = cold(tiny_task(), 6, confirm=4)
    again = lrfinder.confirmed(study)
    assert len(again) == 4
    assert {item.trial for item in again} == {trial.number for trial in best_trials(study)[:4]}
    assert [len(item.seeds) for item in again] == [5, 5, 2, 2]
    assert again[0].mean <= again[1].mean
    assert all(0 not in item.seeds for item in again)  # the search's own
    for item in again:
        assert item.mean == pytest.approx(statistics.fmean(item.values))
        assert item.spread == pytest.approx(statistics.stdev(item.values))
        assert item.searched == study.trials[item.trial].value
        alone = lrfinder.train_task(
            tiny_task(), **item.hparams, seed=item.seeds[0], device="cpu"
        ).last("val/loss")
        assert item.values[0] == pytest.approx(alone, rel=1e-3)
    assert lrfinder.best_hparams(study) == again[0].hparams
    page = lrfinder.report_html(lrfinder.make_report("s", study=study))
    assert "new seeds" in page
    assert f"Trial {again[0].trial} is the best of them" in page


def test_the_luckiest_trial_gives_way_to_the_best_mean() -> None:
    """A study of which one trial was lucky: its value is far below what its LRs give."""
    study = cold(tiny_task(), 3, confirm=0, hparams=_one_of_three)
    worst = best_trials(study)[-1]
    lucky = optuna.create_study()
    for trial in study.trials:
        frozen = optuna.trial.create_trial(
            value=-1.0 if trial.number == worst.number else trial.value,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
        )
        lucky.add_trial(frozen)
    assert lrfinder.best_hparams(lucky) == worst.user_attrs["hparams"]
    for key, value in study.user_attrs.items():
        lucky.set_user_attr(key, value)
    storage = lucky._storage
    done = quiet_search(
        tiny_task(), 3, warm_start=False, hparams=_one_of_three, confirm=3,
        storage=storage, study_name=lucky.study_name,
    )  # fmt: skip
    assert lrfinder.best_hparams(done) != worst.user_attrs["hparams"]
    assert lrfinder.confirmed(done)[0].trial != worst.number


def _one_of_three(trial: optuna.Trial) -> dict[str, Any]:
    lr = (0.1, 0.03, 1e-7)[trial.number % 3]
    return {"lrs": {"body": lr, "head": lr}}


def test_what_was_confirmed_is_not_trained_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"storage": f"sqlite:///{tmp_path / 's.db'}", "study_name": "s"}
    first = cold(tiny_task(), 3, confirm=2, **options).user_attrs[CONFIRMED_KEY]

    def make_model() -> Any:
        raise AssertionError("was trained")

    again = cold(tiny_task(make_model=make_model), 3, confirm=2, **options)
    assert again.user_attrs[CONFIRMED_KEY] == first


def test_a_training_that_diverges_counts_as_infinitely_bad() -> None:
    item = lrfinder.Confirmed(0, {}, (1, 2), (0.5, math.inf), 0.4)
    assert item.mean == math.inf
    assert math.isnan(item.spread)


def test_by_default_a_short_search_confirms_none_and_a_long_one_a_few() -> None:
    assert [most_trials(None, count) for count in (0, 15, 16, 24, 64)] == [0, 0, 2, 3, 4]
    assert most_trials(3, 5) == 3
    with pytest.raises(ValueError, match="`confirm >= 0` must hold, but got confirm=-1"):
        cold(tiny_task(), 1, confirm=-1)


def test_every_confirming_training_has_its_run(mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    with lrfinder.MlflowRecorder(run_name="search") as recorder:
        study = cold(tiny_task(), 2, confirm=2, recorder=recorder)
    runs = MlflowClient(mlflow_uri).search_runs(
        ["0"], f"tags.lrfinder.parent = '{recorder.run_id}'"
    )
    again = [run for run in runs if "lrfinder.confirms_trial" in run.data.tags]
    found = sorted(
        (int(run.data.tags["lrfinder.confirms_trial"]), int(run.data.tags["lrfinder.seed"]))
        for run in again
    )
    assert found == sorted((c.trial, seed) for c in lrfinder.confirmed(study) for seed in c.seeds)
    assert len(found) == 7


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        cold(tiny_task(), 3, on_trial=stop, at_once=1)
    assert "With a storage" in caught.value.__notes__[0]
    storage = f"sqlite:///{tmp_path / 's.db'}"
    with pytest.raises(KeyboardInterrupt) as caught:
        cold(tiny_task(), 3, on_trial=stop, at_once=1, storage=storage, study_name="s")
    (note,) = caught.value.__notes__
    assert note == "1 finished trials are kept in study 's': the same call goes on."
    assert len(cold(tiny_task(), 3, storage=storage, study_name="s").trials) == 3
