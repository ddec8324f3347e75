"""Reading: what a study found, and which parameters mattered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optuna

from lrfinder.searching.confirming import best_trials, confirmed
from lrfinder.searching.studies import quiet_optuna

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def best_hparams(study: optuna.Study) -> dict[str, Any]:
    """What to train with: `{"lrs": {group: lr}, "schedule": spec}`, ready for `train` and `train_task`.

    That of the best mean on new seeds, where the best trials were trained again
    (`lrfinder.confirmed` has the mean and its spread); else that of the best trial. With several
    objectives the first one decides; `study.best_trials` has the others. What a function of your
    own added is under "options".

    Raises:
        ValueError: If no trial was completed, or the study is none of `lrfinder.search`.
    """
    again = confirmed(study)
    if again:
        return dict(again[0].hparams)
    best = best_trials(study)
    if not best:
        trials = study.get_trials(deepcopy=False)
        reasons = {trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs}
        raise ValueError(
            f"Study {study.study_name!r} must have a completed trial, "
            f"but none of its {len(trials)} was completed. "
            + (f"Their reasons: {'; '.join(sorted(reasons))}" if reasons else "Run more trials.")
        )
    hparams: dict[str, Any] | None = best[0].user_attrs.get("hparams")
    if hparams is None:
        raise ValueError(
            f"Study {study.study_name!r} must be one of `lrfinder.search`, but it is not."
        )
    return hparams


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each parameter mattered for the (first) objective, the most important first.

    Law: the share of the objective's variance over completed trials that each explains, as
    Optuna's default evaluator (fANOVA) has it; they sum to 1.

    Raises:
        ValueError: If fewer than two trials were completed, or all objectives are the same.

    Source: Hutter, Hoos and Leyton-Brown, 2014, ICML.
    """
    values = [trial.values[0] for trial in best_trials(study)]
    if len(set(values)) < 2:
        raise ValueError(
            f"Study {study.study_name!r} must have two completed trials with different objectives, "
            f"but it has {len(values)} with {len(set(values))} different ones. Run more trials."
        )
    target = None if len(study.directions) == 1 else _first
    with quiet_optuna():
        return optuna.importance.get_param_importances(study, target=target)


def contour_figure(study: optuna.Study, params: Sequence[str] | None = None) -> Figure:
    """Optuna's contour plot of the (first) objective over pairs of parameters.

    Args:
        study: Of `lrfinder.search`.
        params: Names of at least two parameters; None for the two that mattered most.

    Raises:
        ValueError: If a parameter is not in the study, or too few trials were completed.
    """
    from optuna.visualization.matplotlib import plot_contour

    return _figure(plot_contour, study, list(importances(study))[:2] if params is None else params)


def slice_figure(study: optuna.Study, params: Sequence[str] | None = None) -> Figure:
    """Optuna's slice plot of the (first) objective against each parameter.

    Args:
        study: Of `lrfinder.search`.
        params: Names of parameters; None for all.

    Raises:
        ValueError: If a parameter is not in the study.
    """
    from optuna.visualization.matplotlib import plot_slice

    return _figure(plot_slice, study, params)


def _figure(plot: Callable[..., Any], study: optuna.Study, params: Sequence[str] | None) -> Figure:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import numpy as np

    target = {} if len(study.directions) == 1 else {"target": _first}
    # Optuna takes a style of its own, and would leave it to all figures that follow.
    with quiet_optuna(), mpl.rc_context():
        drawn = plot(study, params=None if params is None else list(params), **target)
    figure: Figure = np.ravel(drawn)[0].figure
    plt.close(figure)  # it is whoever's asked for it, and pyplot shows it to nobody else
    return figure


def _first(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])
