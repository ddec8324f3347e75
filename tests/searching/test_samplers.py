"""Tests of samplers and pruners: by name, with arguments, or as objects."""

from __future__ import annotations

import optuna
import pytest

from lrfinder.searching.samplers import make_pruner, make_sampler, trials_before_pruning
from lrfinder.searching.studies import quiet_optuna


@pytest.mark.parametrize(
    "name", [None, "TPESampler", "RandomSampler", "CmaEsSampler", "QMCSampler"]
)
def test_samplers_by_name_work_and_are_seeded(name) -> None:
    def draws() -> list[float]:
        with quiet_optuna():
            study = optuna.create_study(sampler=make_sampler(name, seed=3, n_trials=6))
            study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=6)
        return [trial.params["x"] for trial in study.trials]

    assert draws() == draws()
    if name in (None, "TPESampler"):
        assert isinstance(make_sampler(name, seed=0, n_trials=6), optuna.samplers.TPESampler)


def test_a_gaussian_process_learns_in_a_search_of_which_most_is_pruned() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number >= 5:
            raise optuna.TrialPruned
        return (x - 0.3) ** 2

    drawn = []
    for name in ("GPSampler", "RandomSampler"):
        with quiet_optuna():
            study = optuna.create_study(sampler=make_sampler(name, seed=3, n_trials=8))
            study.optimize(objective, n_trials=8)
        drawn.append([trial.params["x"] for trial in study.trials])
    assert drawn[0][:4] == drawn[1][:4]
    assert all(a != b for a, b in zip(drawn[0][5:], drawn[1][5:], strict=True))
    assert make_sampler("GPSampler(n_startup_trials=7)", seed=0, n_trials=8)._n_startup_trials == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["MedianPruner", "NopPruner", "HyperbandPruner", None])
def test_pruners_by_name(name) -> None:
    assert type(make_pruner(name, num_epochs=3)).__name__ == name or "MedianPruner"


def test_objects_are_taken_as_they_are() -> None:
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.ThresholdPruner(upper=1.0)
    assert make_sampler(sampler, seed=0, n_trials=1) is sampler
    assert make_pruner(pruner, num_epochs=1) is pruner


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_sampler("Tpe", seed=0, n_trials=1), r"one of .*TPESampler.*'Tpe'"),
        (lambda: make_pruner("Median", num_epochs=1), r"one of .*MedianPruner.*'Median'"),
        (
            lambda: make_sampler("GridSampler", seed=0, n_trials=1),
            "must be given the arguments that it needs",
        ),
        (
            lambda: make_pruner("ThresholdPruner", num_epochs=1),
            "must be given the arguments that it needs",
        ),
    ],
)
def test_a_bad_name_is_told_with_those_that_are_there(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_arguments_are_passed_on_and_may_be_pruners() -> None:
    with quiet_optuna():
        sampler = make_sampler("RandomSampler(seed=7)", seed=0, n_trials=1)
        draws = [optuna.create_study(sampler=s).ask().suggest_float("x", 0, 1)
                 for s in (sampler, optuna.samplers.RandomSampler(seed=7))]  # fmt: skip
        pruner = make_pruner("PatientPruner(MedianPruner(n_startup_trials=3), patience=2)",
                             num_epochs=3)  # fmt: skip
    assert draws[0] == draws[1]
    assert isinstance(pruner, optuna.pruners.PatientPruner)
    assert isinstance(pruner._wrapped_pruner, optuna.pruners.MedianPruner)
    assert (pruner._patience, pruner._wrapped_pruner._n_startup_trials) == (2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RandomSampler(sed=7)", r"must be given the arguments.*'RandomSampler\(sed=7\)'.*sed"),
        ("RandomSampler(seed=print)", "must be a plain value or a sampler, but got 'print'"),
        ("__import__('os').getcwd()", "must be one of"),
        ("RandomSampler(", "must be one of"),
    ],
)
def test_a_text_that_is_no_sampler_is_told_and_runs_nothing(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(text, seed=0, n_trials=1)


@pytest.mark.filterwarnings("ignore:PatientPruner is experimental")
def test_pruners_are_told_how_long_trials_are_and_tell_how_many_they_need() -> None:
    halving = make_pruner("SuccessiveHalvingPruner", num_epochs=12)
    assert vars(halving)["_min_resource"] == 1  # and not "auto", which prunes nothing at first
    assert (
        vars(make_pruner("SuccessiveHalvingPruner(min_resource=3)", num_epochs=12))[
            "_min_resource"
        ]
        == 3
    )
    assert vars(make_pruner("HyperbandPruner", num_epochs=12))["_max_resource"] == 12
    needed = {"MedianPruner": 4, "PercentilePruner(25.0)": 5, "SuccessiveHalvingPruner": 0,
              "HyperbandPruner": 0, "PatientPruner(MedianPruner(3), 1)": 3, "NopPruner": 0}  # fmt: skip
    found = {name: trials_before_pruning(make_pruner(name, num_epochs=12)) for name in needed}
    assert found == needed
