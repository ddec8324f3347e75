"""The command `compare`: runs read back from MLflow, side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import lrfinder
from lrfinder.commands.running import command, console


@command
def compare(
    experiment: Annotated[
        str | None,
        typer.Option(help="The experiment whose runs are compared; MLflow's own by default."),
    ] = None,
    runs: Annotated[
        str | None,
        typer.Option(
            help="Ids or names, as 1a2b,found; one with children stands for these. "
            "By default the newest that have the metric."
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="In place of runs: the best trials of a study.")
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(help="What every run must satisfy too, as \"params.`cfg/seed` = '0'\"."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What they are compared by.")] = "val/loss",
    output: Annotated[
        str,
        typer.Option(
            help="compare.html: figure and tables in one page; another suffix: the figure alone."
        ),
    ] = "compare.html",
) -> None:
    """Compare runs: learning rates and losses in one figure, and a table, here and as a page."""
    names = None if runs is None else [name.strip() for name in runs.split(",") if name.strip()]
    path = Path(output)
    if not path.parent.is_dir():
        raise ValueError(
            f"`output` must lie in a folder that exists, but {path.parent} does not exist."
        )
    # Under `mlflow run` there is a run already, which gets the figure; else none is made to read.
    adopts = "MLFLOW_RUN_ID" in os.environ
    with lrfinder.MlflowRecorder() if adopts else lrfinder.NullRecorder() as recorder:
        comparison = lrfinder.compare(
            names,
            experiment=experiment,
            study=study,
            filter=filter,
            metric=metric,
            direction=lrfinder.Measure.named(metric).direction or "minimize",
        )
        report = lrfinder.comparison_report(comparison)
        page = lrfinder.report_html(report)
        figure = comparison.plot()[0].figure
        if path.suffix == ".html":
            path.write_text(page, encoding="utf-8")
        else:
            figure.savefig(path)
        recorder.log_figure(figure, "comparison.png")
        recorder.log_text(page, "compare.html")
    screen = console()
    for table in lrfinder.report_tables(report):
        screen.print(table)
    screen.print(f"It is in {path.resolve()}.", markup=False, soft_wrap=True)
