"""The command `range_test`: a learning rate range test for each group."""

from __future__ import annotations

from typing import Annotated

import typer

import lrfinder
from lrfinder.commands import options, running
from lrfinder.commands.running import command, console, ui_hint


@command
def range_test(
    task: options.Task = "digits",
    data: options.Data = None,
    start_lr: Annotated[
        float | None, typer.Option(help="Ramps begin here; by default as the optimizer needs it.")
    ] = None,
    end_lr: Annotated[
        float | None, typer.Option(help="Ramps end here; by default as the optimizer needs it.")
    ] = None,
    num_steps: Annotated[int, typer.Option(help="Optimizer steps of a ramp.")] = 100,
    groups: Annotated[
        str,
        typer.Option(
            help="each: a test for every group; together: one for all; or names, as body,head."
        ),
    ] = "each",
    replicas: Annotated[int, typer.Option(help="Batch orders that are tried.")] = 2,
    effort: Annotated[
        str,
        typer.Option(
            help="brackets (ramps only), quick, standard or thorough (ramps and a race)."
        ),
    ] = "standard",
    engine: Annotated[str, typer.Option(help="auto, stepping or lockstep.")] = "auto",
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    """Find the learning rates between which each param group learns, and one inside."""
    made = options.load(task, data)
    screen = console()
    with running.recorder(f"range test {made.name}") as recorder:
        recorder.log_params(
            {"task": task, "data": data, "effort": effort, "seed": seed, "num_steps": num_steps}
        )
        started = made.start(seed, device=device)
        result = lrfinder.range_test(
            started.model,
            started.optimizer,
            made.loss_fn,
            started.train_loader,
            start_lr=start_lr,
            end_lr=end_lr,
            num_steps=num_steps,
            groups=options.read_groups(groups),
            replicas=replicas,
            effort=effort,
            planned_steps=lrfinder.planned_steps(started, made.num_epochs, made.options),
            engine=engine,
            seed=seed,
            options=made.options,
            progress=lrfinder.is_main(),
        )
        report = lrfinder.make_report(f"Range test: {made.name}", result=result)
        record_range_test(recorder, result)
        recorder.log_text(lrfinder.report_html(report), "report.html")
    for table in lrfinder.report_tables(report):
        screen.print(table)
    cost = f"{result.cost.steps} steps in {result.cost.seconds:.1f} s"
    screen.print(f"Range test: {cost}.", markup=False)
    screen.print(ui_hint(recorder), markup=False, soft_wrap=True)


def record_range_test(recorder: lrfinder.Recorder, result: lrfinder.RangeTest) -> None:
    """Keep a range test in a run: its figure, its ramps, brackets, what it suggests and its cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    result.plot(figure.subplots())
    recorder.log_figure(figure, "range_test.png")
    recorder.log_dict(result.to_dict(), "range_test.json")
    for trace in result.traces:
        recorder.log_trace(trace)
    brackets = result.suggestion.brackets
    recorder.log_params(
        {"suggested": dict(result.suggestion.lrs), "one_lr": dict(result.suggestion.control or {}),
         "bracket": {name: {"low": b.low, "high": b.high} for name, b in brackets.items()}}
    )  # fmt: skip
    cost = {"range_test/steps": result.cost.steps, "range_test/seconds": result.cost.seconds}
    recorder.log_metrics(0, cost)
    recorder.set_tags({f"range_test.{name}": bracket.status for name, bracket in brackets.items()})
