"""The command `search`: an Optuna study, each trial a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import lrfinder
from lrfinder.commands import options
from lrfinder.commands.running import command, console, progress, ui_hint

if TYPE_CHECKING:
    import optuna


@command
def search(
    task: options.Task = "digits",
    data: options.Data = None,
    n_trials: Annotated[
        int, typer.Option(help="Trials in all, those of a study that goes on too.")
    ] = 24,
    schedule: options.SearchedSchedule = "StepLR",
    num_epochs: options.NumEpochs = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of a database, as sqlite:///study.db: the same command goes on with it."
        ),
    ] = None,
    study_name: Annotated[
        str | None, typer.Option(help="The study's name there; <task>-<schedule> by default.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="A class of optuna.samplers, as TPESampler or RandomSampler."),
    ] = None,
    pruner: Annotated[
        str | None, typer.Option(help="A class of optuna.pruners, as MedianPruner or NopPruner.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    """Search a learning rate for each group and a schedule, starting from a range test."""
    made = options.load(task, data)
    screen = console()
    with lrfinder.MlflowRecorder(run_name=f"search {made.name}") as recorder:
        recorder.log_params({"task": task, "data": data, "n_trials": n_trials, "seed": seed})
        with progress("search", n_trials) as advance:
            study = lrfinder.search(
                made,
                n_trials,
                schedule=schedule,
                storage=storage,
                study_name=study_name,
                sampler=sampler,
                pruner=pruner,
                recorder=recorder,
                seed=seed,
                num_epochs=num_epochs,
                device=device,
                on_trial=lambda study, trial: advance(best_so_far(study)),
            )
        report = lrfinder.make_report(f"Search: {made.name}", study=study)
        for table in lrfinder.report_tables(report):
            screen.print(table)
        best = lrfinder.best_hparams(study)
        recorder.log_dict(best, "best_hparams.json")
        recorder.log_text(lrfinder.report_html(report), "report.html")
    screen.print(f"best: {best}", markup=False, soft_wrap=True)
    screen.print(ui_hint(recorder), markup=False, soft_wrap=True)


def best_so_far(study: optuna.Study) -> str:
    """The best objective of the completed trials, for a progress bar."""
    try:
        return f"best {study.best_value:.4g}"
    except ValueError:  # no trial was completed yet
        return ""
