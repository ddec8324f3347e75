"""The command `sync`: what recorders could not send is sent."""

from __future__ import annotations

from typing import Annotated

import typer

import lrfinder
from lrfinder.commands.running import command, console


@command
def sync(
    path: Annotated[
        str,
        typer.Argument(help="A spool, or a folder of spools, as the recorder's message named it."),
    ],
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="The MLflow store, where it is not at the address that it was at."),
    ] = None,
) -> None:
    """Send to MLflow what was recorded while it was away; exit status 0 when all of it is there."""
    screen = console()
    synced = lrfinder.sync(path, tracking_uri=tracking_uri)
    if not synced:
        screen.print(f"Nothing waits in {path}.", markup=False, soft_wrap=True)
    for item in synced:
        state = "its training goes on" if item.recording else "complete"
        said = state if item.complete else f"not there: {item.left}. Reason: {item.reason}"
        run = item.run_id or "(run not made yet)"
        screen.print(f"{run}: {said}", markup=False, soft_wrap=True)
    if not all(item.complete for item in synced):
        raise typer.Exit(1)
