"""What every benchmark shares: a result file that says where it was measured, and ratios of interleaved runs."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """The machine and the versions that a figure depends on."""
    import torch

    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    for package in ("torch", "torchvision", "mlflow", "optuna"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def command_of(
    module: str, parser: argparse.ArgumentParser, options: argparse.Namespace, shown: Sequence[str]
) -> str:
    """What measures a result, for `write_result`: the module, and the options that are not as they are by default.

    Args:
        module: After `benchmarks.`.
        parser: Knows the defaults.
        options: As they are.
        shown: Those that the rows depend on.
    """
    changed = [name for name in shown if getattr(options, name) != parser.get_default(name)]
    return " ".join([module, *(f"--{name} {getattr(options, name)}" for name in changed)])


def write_result(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str | None = None,
    compact: bool = False,
    **more: Any,
) -> Path:
    """Write `results/<name>.json`: the command, the environment and one row for each measured thing.

    Args:
        name: Of the file.
        rows: What was measured, JSON-able.
        command: What measures it, after `python -m benchmarks.`; None for this call, whose module
            has the file's name.
        compact: Whether a row is one line.
        more: Further entries of the file.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    # Where somebody's data lie is nobody else's affair.
    arguments = re.sub(r"(--data[ =])\S+", r"\1FOLDER", " ".join(sys.argv[1:]))
    given = f"{name} {arguments}".strip() if command is None else command
    data = {
        "command": f"python -m benchmarks.{given}",
        "environment": environment(),
        "rows": [] if compact else list(rows),
        **more,
    }
    text = json.dumps(data, indent=2) + "\n"
    if compact:
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        text = text.replace('"rows": []', f'"rows": [\n{lines}\n  ]', 1)
    path.write_text(text)
    return path


def interleave(
    arms: Mapping[str, Callable[[], float]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Run every arm once a round, in an order that turns, so that a noisy neighbour hits all of them alike.

    Args:
        arms: Name -> function that does the work and returns its seconds.
        rounds: Rounds that count.
        warmup: Rounds before, that do not.
    """
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken = arms[name]()
            if turn >= warmup:
                seconds[name].append(taken)
    return seconds


def paired_ratio(seconds: Mapping[str, Sequence[float]], arm: str, base: str) -> dict[str, float]:
    """Median over rounds of arm / base of the same round, and the quartiles of these ratios."""
    ratios = [a / b for a, b in zip(seconds[arm], seconds[base], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {"ratio": statistics.median(ratios), "quartile_1": low, "quartile_3": high}
