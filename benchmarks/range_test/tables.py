"""The tables of the range test's benchmark, from its result files."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.markdown import read, rows_to_markdown, source
from benchmarks.range_test import groups, one_lr, overhead, refusals
from benchmarks.range_test.truth import Row, joint_gain, truth_rows

BARS = {"error": 0.3, "spread": 0.15, "ratio": 1.15, "refused": 0.05}
GROUP_BARS = {
    "ratio": ("the suggestion / best one LR of the grid, geometric mean", 0.97),
    "ratio_worst_task": ("the same, worst task", 1.03),
    "ratio_worst_run": ("the same, worst run", 1.10),
    "ratio_close": ("share of runs at 1.03 or better", None),
    "control_ratio": ("the test's own best one LR / that of the grid, geometric mean", None),
    "control_ratio_worst_run": ("the same, worst run", None),
    "recovered": ("share of the joint gain recovered, median over tasks that have one", 0.5),
    "long_ratio": ("trained 4 x longer: the suggestion / best one LR, geometric mean", None),
    "long_ratio_worst_run": ("the same, worst run", 1.05),
    "long_control_ratio": ("the test's own best one LR / that of the grid, geometric mean", None),
    "refused": ("share of runs without a suggestion", 0.05),
    "steps_two_groups": ("optimizer steps, two groups, median", 2000),
    "seconds_two_groups": ("seconds, two groups, median", None),
}


# -- one LR ---------------------------------------------------------------------------------------


def _by_method(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Method -> task -> row, ours first."""
    names = [*one_lr.OURS, *(row["method"] for row in rows)]
    found = {
        name: {row["task"]: row for row in rows if row["method"] == name}
        for name in dict.fromkeys(names)
    }
    return {name: tasks for name, tasks in found.items() if tasks}


def _worst(tasks: dict[str, Row], key: str) -> float:
    """The largest over the tasks; NaN if a task has no figure, since every run was refused."""
    values = [row.get(key, math.nan) for row in tasks.values()]
    return float(np.max(values))


def _refused(tasks: dict[str, Row]) -> float:
    runs = sum(row["runs"] for row in tasks.values())
    return float(sum(row["refused"] for row in tasks.values()) / runs)


def worst_task() -> str:
    """Each method on its worst task, against the bars."""
    data = read(one_lr.NAME)
    rows = [
        [
            name,
            _number(_worst(tasks, "error")),
            _number(_worst(tasks, "spread")),
            _ratio(_worst(tasks, "ratio")),
            _percent(_refused(tasks)),
            str(int(np.median([row["steps"] for row in tasks.values()]))),
        ]
        for name, tasks in _by_method(data["rows"]).items()
    ]
    bars = [str(BARS["error"]), str(BARS["spread"]), str(BARS["ratio"]), _percent(BARS["refused"])]
    rows.append(["*bar*", *(f"*{bar}*" for bar in bars), ""])
    header = ["method", "error, decades", "spread, decades", "loss / best", "refused", "steps"]
    return rows_to_markdown(header, rows) + source(data)


def _per_task(key: str, show: Callable[[float], str]) -> str:
    data = read(one_lr.NAME)
    tasks = list(dict.fromkeys(row["task"] for row in data["rows"]))
    rows = [
        [name, *(show(found[task].get(key, math.nan)) if task in found else "" for task in tasks)]
        for name, found in _by_method(data["rows"]).items()
    ]
    return rows_to_markdown(["method", *tasks], rows) + source(data)


def errors() -> str:
    """Median error of each method on each task."""
    return _per_task("error", _number)


def losses() -> str:
    """Loss at the suggestion over the grid's best, of each method on each task."""
    return _per_task("ratio", _ratio)


# -- groups ---------------------------------------------------------------------------------------


def groups_summary() -> str:
    """What the bars are set for."""
    data = read(groups.NAME)
    rows = [
        [text, _figure(data["summary"][key]), "" if bar is None else f"<= {bar}".replace("<= 0.5", ">= 0.5")]
        for key, (text, bar) in GROUP_BARS.items()
        if key in data["summary"]
    ]  # fmt: skip
    return rows_to_markdown(["what", "measured", "bar"], rows) + source(data)


def groups_per_task() -> str:
    """Each task: what there is to gain, and what was gained."""
    data = read(groups.NAME)
    truths = truth_rows()
    rows = []
    for name in dict.fromkeys(row["task"] for row in data["rows"]):
        own = [row for row in data["rows"] if row["task"] == name]
        short = [row for row in own if not row["long"]]
        long = [row for row in own if row["long"]]
        truth = truths[name]
        rows.append(
            [
                truth["title"],
                f"{np.mean(truth['fresh']['one_lr']):.4f}",
                _gain(truth),
                *_ratios(short),
                _gain(truth, long=True),
                *_ratios(long),
            ]
        )
    header = [
        "task", "best one LR: loss", "joint gain of the grid", "suggestion", "worst run", "own one LR",
        "4 x longer: joint gain", "suggestion", "worst run", "own one LR",
    ]  # fmt: skip
    return rows_to_markdown(header, rows) + source(data)


def _ratios(rows: list[Row]) -> list[str]:
    """Geometric mean and worst of the suggestion, geometric mean of the control."""
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    controls = [row["control_ratio"] for row in rows if "control_ratio" in row]
    if not ratios:
        return ["refused" if rows else "", "", ""]
    own = _ratio(groups.geometric(controls)) if controls else ""
    return [_ratio(groups.geometric(ratios)), _ratio(max(ratios)), own]


def _gain(truth: Row, *, long: bool = False) -> str:
    if "vector" not in truth or (long and "long" not in truth):
        return ""
    gain, error = joint_gain(truth, long=long)
    return f"{100 * gain:.1f} ± {100 * error:.1f} %"


# -- refusals and time ----------------------------------------------------------------------------


def refusal_rates() -> str:
    """Wrong and needless, for each family and noise."""
    data = read(refusals.NAME)
    cells = list(dict.fromkeys((row["noise"], row["size"]) for row in data["rows"]))
    found = {(row["family"], row["noise"], row["size"]): row for row in data["rows"]}
    rows = []
    for family in dict.fromkeys(row["family"] for row in data["rows"]):
        line = [family]
        for noise, size in cells:
            row = found[family, noise, size]
            needless = f" / {_percent(row['needless'])}" if row["answered"] else ""
            line.append(_percent(row["wrong"]) + needless)
        rows.append(line)
    header = ["curve", *(f"{noise} {size:g}" for noise, size in cells)]
    whole = data["nothing_to_learn"]
    text = (
        f"\nWhole range tests, ramps and race, on targets of pure noise: an LR was suggested in "
        f"{whole['suggested']} of {whole['runs']}, and refused in the others.\n"
    )
    return rows_to_markdown(header, rows) + text + source(data)


def time_taken() -> str:
    """Ramps against bare steps, and whole tests."""
    data = read(overhead.NAME)
    rows = []
    for row in data["rows"]:
        if "ratio" in row:
            spread = f"[{row['quartile_1']:.3f}, {row['quartile_3']:.3f}]"
            rows.append([row["what"], f"{row['ratio']:.3f} {spread}", f"<= {row['bar']}"])
        else:
            faster = row["faster"]
            measured = (
                f"{row['seconds']:.2f} s, {row['steps']} steps; one replica after the other "
                f"{row['seconds_stepping']:.2f} s: x {faster['ratio']:.2f} "
                f"[{faster['quartile_1']:.2f}, {faster['quartile_3']:.2f}]"
            )
            rows.append([row["what"], measured, ""])
    return rows_to_markdown(["what", "measured: median [quartiles]", "bar"], rows) + source(data)


# -- numbers --------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return "refused" if math.isnan(value) else f"{value:.2f}"


def _ratio(value: float) -> str:
    if math.isnan(value):
        return "refused"
    return f"{value:.3f}" if value < 2 else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _figure(value: Any) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


TABLES: dict[str, Callable[[], str]] = {
    "one_lr_worst_task": worst_task,
    "one_lr_errors": errors,
    "one_lr_losses": losses,
    "groups_summary": groups_summary,
    "groups_per_task": groups_per_task,
    "refusal_rates": refusal_rates,
    "range_test_time": time_taken,
}
