"""Artifacts: what a run keeps beside its metrics, as the bytes of files below it."""

from __future__ import annotations

import io
import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import torch

from lrfinder.traces import Trace
from lrfinder.tracking.names import jsonable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHART_POINTS = 320  # steps of a curve that MLflow's charts show
FIGURES = (".png", ".svg", ".pdf", ".jpg")  # the first one is that of a name without any


def figure_artifact(figure: Figure, name: str) -> dict[str, bytes]:
    """A matplotlib figure, drawn now, in the format of the name's suffix."""
    name = with_suffix(name, *FIGURES)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=PurePosixPath(name).suffix[1:], bbox_inches="tight")
    return {check_artifact_name(name): buffer.getvalue()}


def json_artifact(value: Any, name: str) -> dict[str, bytes]:
    """A JSON-able value; non-finite numbers as text, since JSON has none."""
    text = json.dumps(jsonable(value), indent=1, allow_nan=False, ensure_ascii=False)
    return {check_artifact_name(with_suffix(name, ".json")): text.encode()}


def trace_file(trace: Trace) -> bytes:
    """A trace at full resolution, as whoever delivers makes a table and a figure of it."""
    import pyarrow

    buffer = pyarrow.BufferOutputStream()
    table = pyarrow.table(trace.columns())
    with pyarrow.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return bytes(buffer.getvalue())


def trace_summary(trace: Trace) -> dict[str, Any]:
    """A trace in short."""
    diverged_at = trace.diverged_at  # with it all losses are on the CPU
    return {
        "name": trace.name,
        "groups": list(trace.group_names),
        "steps": len(trace),
        "status": trace.status,
        "message": trace.message,
        "diverged_at": diverged_at,
        "last": {
            "train/loss": trace.settled_losses[-1] if len(trace) else None,
            **{metric: trace.last(metric) for metric in trace.metrics},
        },
    }


def model_artifact(model: torch.nn.Module, name: str) -> dict[str, bytes]:
    """The model's `state_dict`, for `torch.load`."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return {check_artifact_name(name): buffer.getvalue()}


def with_suffix(name: str, *suffixes: str) -> str:
    """The name, with the first suffix added if it has none of them.

    Example:
        >>> with_suffix("trial.0", ".png", ".svg"), with_suffix("lr.svg", ".png", ".svg")
        ('trial.0.png', 'lr.svg')
    """
    return name if name.endswith(suffixes) else name + suffixes[0]


def check_artifact_name(name: str) -> str:
    """The path of an artifact below its run.

    Raises:
        ValueError: If it is not a plain relative path.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or path.as_posix() != name:
        raise ValueError(
            "The name of an artifact must be a relative path without '..', as 'plots/lr.png', "
            f"but got {name!r}."
        )
    return name
