"""What every table is made of: a result file, rows of Markdown, and where the figures come from."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.results_file import RESULTS


def read(name: str) -> dict[str, Any]:
    """One result file."""
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def rows_to_markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def source(data: dict[str, Any]) -> str:
    """Where and how a table was measured."""
    found = data["environment"]
    place = f"{found['cpu_cores']} CPU cores" + (f", {found['gpu']}" if "gpu" in found else "")
    return f"\n`{data['command']}`, {found['date']}, torch {found['torch']}, {place}.\n"
