"""Tables of the search's benchmark, from its result files."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.markdown import read, rows_to_markdown, source

BAR_SHARE, AIM_SHARE, BAR_RATIO = "1/3", "1/8", 1.02


def searching() -> str:
    """Steps to what cold TPE has at its end, and the loss at equal steps, of each arm and task."""
    data = read("searching")
    items: list[dict[str, Any]] = data["summary"]
    tasks = list(dict.fromkeys(item["task"] for item in items))
    rows = []
    for arm in dict.fromkeys(item["arm"] for item in items):
        mine = {item["task"]: item for item in items if item["arm"] == arm}
        rows.append([arm, *(_cell(mine[task]) for task in tasks), _median(list(mine.values()))])
    header = [
        "search",
        *(f"{task}, {_seeds(items, task)} seeds" for task in tasks),
        "median share",
    ]
    return rows_to_markdown(header, rows) + source(data)


def searching_summary() -> str:
    """Our search against its bars."""
    data = read("searching")
    ours = [item for item in data["summary"] if item["arm"] == "lrfinder"]
    worst = max(ours, key=lambda item: float(item["ratio"]))
    seeds = min(item["seeds"] for item in ours)
    rows = [
        ["steps to the final best of cold TPE, share of its 64 full trials, median over tasks",
         _median(ours), f"<= {BAR_SHARE}, aim {AIM_SHARE}"],
        ["the same, worst task", max(map(_share, ours), key=_order), ""],
        [f"loss at equal steps / cold TPE's, worst task ({worst['task']})",
         f"{worst['ratio']:.3f}", f"<= {BAR_RATIO}"],
        ["tasks, and seeds of each", f"{len(ours)}, {seeds}", ">= 4, >= 10"],
    ]  # fmt: skip
    return rows_to_markdown(["what", "measured", "bar"], rows) + source(data)


def searching_overhead() -> str:
    """What a trial costs beside its training."""
    data = read("searching.overhead")
    rows = [
        [
            row["study"],
            "yes" if row["recorded"] else "no",
            f"{row['milliseconds']:.1f}",
            f"{100 * row['share']:.1f} % [{100 * row['quartile_1']:.1f}, {100 * row['quartile_3']:.1f}]",
            f"{100 * row['least_of_processes']:.1f} to {100 * row['most_of_processes']:.1f} %",
            f"<= {100 * row['bar']:.0f} %",
            f"{row['end_milliseconds']:.0f}",
            f"{100 * row['share_with_end']:.1f} %",
            f"{row['elsewhere_milliseconds']:.0f}",
        ]
        for row in data["rows"]
    ]
    header = ["study", "recorded in MLflow", "ms for each trial",
              "of a trial of 500 steps: median [quartiles]", "medians of processes", "bar",
              "ms at the search's end", "with that, of 64 trials", "CPU ms of others"]  # fmt: skip
    return rows_to_markdown(header, rows) + source(data)


def searching_whole() -> str:
    """What a trial takes beside the processes that work for its search."""
    data = read("searching.whole")
    rows = [
        [
            "yes" if row["recorded"] else "no",
            f"{row['milliseconds']:.0f}",
            f"{row['training_milliseconds']:.0f}",
            f"{row['ratio']:.3f} [{row['quartile_1']:.3f}, {row['quartile_3']:.3f}]",
        ]
        for row in data["rows"]
    ]
    header = ["recorded in MLflow", "ms of a trial", "ms of a training alone"]
    header += ["one over the other: median of blocks [quartiles]"]
    return rows_to_markdown(header, rows) + source(data)


def _variants(name: str) -> Callable[[], str]:
    def table() -> str:
        """Samplers or pruners of our search: the loss at equal steps."""
        data = read(name)
        items: list[dict[str, Any]] = data["summary"]
        tasks = list(dict.fromkeys(item["task"] for item in items))
        rows = []
        for arm in dict.fromkeys(item["arm"] for item in items):
            mine = {item["task"]: item for item in items if item["arm"] == arm}
            losses = [f"{mine[task]['loss']:.4g} ({mine[task]['trials']:.0f})" for task in tasks]
            rows.append([arm.removeprefix("lrfinder, "), *losses])
        header = [name.removeprefix("searching_").rstrip("s")]
        header += [f"{task}, {_seeds(items, task)} seeds" for task in tasks]
        return rows_to_markdown(header, rows) + source(data)

    return table


def _seeds(items: list[dict[str, Any]], task: str) -> int:
    return min(item["seeds"] for item in items if item["task"] == task)


def _share(item: dict[str, Any]) -> str:
    return "never" if item["share"] is None else f"{item['share']:.3f}"


def _order(share: str) -> float:
    return float("inf") if share == "never" else float(share)


def _median(items: list[dict[str, Any]]) -> str:
    shares = [float("inf") if item["share"] is None else item["share"] for item in items]
    median = statistics.median(shares)
    return "never" if median == float("inf") else f"{median:.3f}"


def _cell(item: dict[str, Any]) -> str:
    reached = f"{item['reached']}/{item['seeds']}"
    return f"{_share(item)} ({reached}); {item['ratio']:.3f}"


TABLES: dict[str, Callable[[], str]] = {
    "searching": searching,
    "searching_summary": searching_summary,
    "searching_overhead": searching_overhead,
    "searching_whole": searching_whole,
    "searching_samplers": _variants("searching_samplers"),
    "searching_pruners": _variants("searching_pruners"),
}
