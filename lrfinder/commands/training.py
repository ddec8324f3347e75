"""The command `train`: one training, recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

import lrfinder
from lrfinder.commands import options, running
from lrfinder.commands.running import command, console, progress, ui_hint


@command
def train(
    task: options.Task = "digits",
    data: options.Data = None,
    lrs: Annotated[
        str | None,
        typer.Option(
            help="One learning rate, or one for each group: features=1e-5,classifier=1e-2. "
            "By default those of the task's optimizer."
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Any class of torch.optim.lr_scheduler, or a spec in JSON: "
            '\'{"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 300, "interval": "step"}\'. '
            "By default the learning rates stay as they are."
        ),
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="The schedule's gamma.")] = None,
    step_size: Annotated[int | None, typer.Option(help="The schedule's step_size.")] = None,
    milestones: Annotated[
        str | None, typer.Option(help="The schedule's milestones, as 10,20.")
    ] = None,
    num_epochs: options.NumEpochs = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="A file; a training that was killed goes on from it."),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            help="What of the model the record keeps: nothing, or the checkpoints (the last and "
            "the best one)."
        ),
    ] = "nothing",
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    """Train a task with a learning rate for each group and a schedule."""
    spec = options.read_schedule(schedule, gamma=gamma, step_size=step_size, milestones=milestones)
    rates = options.read_lrs(lrs)
    if keep not in ("nothing", "checkpoints"):
        raise ValueError(f"`keep` must be nothing or checkpoints, but got {keep!r}.")
    if keep == "checkpoints" and checkpoint is None:
        raise ValueError("`keep` checkpoints needs a `checkpoint` path, but none was given.")
    made = options.load(task, data)
    epochs = made.num_epochs if num_epochs is None else num_epochs
    with running.recorder(f"train {made.name}") as recorder:
        recorder.log_params({"task": task, "data": data, "device": device})
        with progress("training", epochs) as advance:
            trace = lrfinder.train_task(
                made,
                lrs=rates,
                schedule=spec,
                seed=seed,
                device=device,
                num_epochs=num_epochs,
                recorder=recorder,
                checkpoint=checkpoint,
                on_epoch=lambda epoch, values, trace: advance(_note(values)),
                verbose=True,
            )
        if keep == "checkpoints" and checkpoint is not None:
            path = Path(checkpoint)
            best = path.with_name(f"{path.stem}.best{path.suffix}")
            for file in (path, best):
                if file.is_file():
                    recorder.log_file(file, f"checkpoints/{file.name}")
    screen = console()
    measured = {name: trace.last(name) for name in trace.metrics}
    ending = f"{trace.status} after {len(trace)} steps. {trace.message}".strip()
    screen.print(f"{made.name}: {ending}", markup=False)
    for name, value in measured.items():
        if not math.isnan(value):
            screen.print(f"  {name} {value:.4g}", markup=False)
    screen.print(ui_hint(recorder), markup=False, soft_wrap=True)


def _note(values: object) -> str:
    items = values.items() if isinstance(values, dict) else ()
    return " ".join(f"{name} {value:.4g}" for name, value in items)
