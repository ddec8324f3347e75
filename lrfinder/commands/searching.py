"""The command `search`: an Optuna study, each trial a run."""

from __future__ import annotations

from typing import Annotated

import typer

import lrfinder
from lrfinder.commands import options
from lrfinder.commands.running import command, console, ui_hint


@command
def search(
    task: options.Task = "digits",
    data: options.Data = None,
    n_trials: Annotated[
        int | None,
        typer.Option(
            help="Trials in all, those of a study that goes on too; 24 where no budget is given."
        ),
    ] = None,
    n_steps: Annotated[
        int | None,
        typer.Option(help="No trial begins after so many optimizer steps, the range test's too."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="No trial begins after so many seconds, those of earlier calls too."),
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option(
            help="How many of the best trials are trained again on new seeds; by default an "
            "eighth, at most 4, and none of fewer than 16."
        ),
    ] = None,
    schedule: options.SearchedSchedule = "StepLR",
    gamma: Annotated[
        str, typer.Option(help="One gamma for all groups: one, or each its own: each.")
    ] = "one",
    warm_up: Annotated[
        int, typer.Option(help="Epochs of the longest linear warm-up that is searched.")
    ] = 0,
    num_epochs: options.NumEpochs = None,
    metric: Annotated[
        str,
        typer.Option(
            help="What is searched for: val/loss, val/<metric>, steps or seconds; several with a comma."
        ),
    ] = "val/loss",
    direction: Annotated[
        str, typer.Option(help="minimize or maximize, or one for each metric with a comma.")
    ] = "minimize",
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
        typer.Option(
            help="A class of optuna.samplers, as GPSampler or TPESampler(n_startup_trials=4)."
        ),
    ] = None,
    pruner: Annotated[
        str | None, typer.Option(help="A class of optuna.pruners, as MedianPruner or NopPruner.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, stepping (one trial after the other), or lockstep.")
    ] = "auto",
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    """Search a learning rate for each group and a schedule, starting from a range test."""
    if n_trials is None and n_steps is None and timeout is None:
        n_trials = 24
    made = options.load(task, data)
    screen = console()
    with lrfinder.MlflowRecorder(run_name=f"search {made.name}") as recorder:
        recorder.log_params({"task": task, "data": data, "n_trials": n_trials, "seed": seed})
        study = lrfinder.search(
            made,
            n_trials,
            n_steps=n_steps,
            timeout=timeout,
            confirm=confirm,
            schedule=options.read_names(schedule),
            gamma=gamma,
            warm_up=warm_up,
            metric=options.read_names(metric),
            direction=options.read_names(direction),
            storage=storage,
            study_name=study_name,
            sampler=sampler,
            pruner=pruner,
            recorder=recorder,
            engine=engine,
            seed=seed,
            num_epochs=num_epochs,
            device=device,
            progress=lrfinder.is_main(),
        )
        report = lrfinder.make_report(f"Search: {made.name}", study=study)
        for table in lrfinder.report_tables(report):
            screen.print(table)
        best = lrfinder.best_hparams(study)
        recorder.log_dict(best, "best_hparams.json")
        recorder.log_text(lrfinder.report_html(report), "report.html")
    screen.print(f"best: {best}", markup=False, soft_wrap=True)
    screen.print(ui_hint(recorder), markup=False, soft_wrap=True)
