"""The tables of what a search survives, and of how many machines a storage serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.markdown import read, rows_to_markdown, source

RUNS = ("trials_without_run", "trials_with_two_runs", "runs_that_differ")
FLEETS = (10, 100, 1000)


def _rows(part: str) -> list[dict[str, Any]]:
    return [row for row in read("faults")["rows"] if row["part"] == part]


def survived() -> str:
    """Kills and an outage: what was lost, doubled or left over."""
    header = [
        "what",
        "trials",
        "made up",
        "lost",
        "counted twice",
        "left running",
        "runs that differ",
    ]
    rows = []
    for row in (*_rows("kills"), *_rows("outage")):
        beside = f", beside {row['busy']} processes that count" if row.get("busy") else ""
        what = f"{row['kills']} x `kill -9` of a worker, of three{beside}" if "kills" in row else (
            f"PostgreSQL stopped for {row['seconds']:.0f} s; trials go on "
            f"{row['again_after_seconds']:.1f} s after its start"
        )  # fmt: skip
        differ = str(sum(row[key] for key in RUNS)) if "runs" in row else ""
        counts = [row[key] for key in ("made_up", "finished_and_lost", "counted_twice", "running")]
        trials = f"{row['counted']} of {row['n_trials']}"
        rows.append([what, trials, *map(str, counts), differ])
    return rows_to_markdown(header, rows) + source(read("faults"))


def workers() -> str:
    """Workers that begin a fresh study at once."""
    header = ["storage", "a trial waits for", "workers", "trials", "starts done twice", "seconds"]
    header += ["times one worker"]
    header += ["trials a minute, each worker"]
    rows = []
    alone: dict[str, float] = {}
    for row in _rows("start"):
        if row["workers"] == 1:
            alone[row["storage"]] = row["seconds"]
        ratio = alone[row["storage"]] / row["seconds"]
        counts = [row["workers"], f"{row['counted']} of {row['n_trials']}", row["starts_twice"]]
        times = [row["seconds"], ratio, row["per_worker_per_minute"]]
        waits = f"{row['seconds_of_a_trial']:.0f} s"
        rows.append([row["storage"], waits, *map(str, counts), *(f"{time:.2f}" for time in times)])
    return rows_to_markdown(header, rows) + source(read("faults"))


def saturation() -> str:
    """What a trial costs in a storage, and the length of a trial below which it is the storage that is waited for.

    Law: W workers with trials of T seconds take W / T a second; the storage gives one in t(W), the
    time for which a worker holds the study's lock with W trials under way. So T >= W t(W).
    """
    header = ["storage", "ms of a trial, alone"]
    for fleet in FLEETS:
        header += [f"{fleet:,} workers: ms in the lock", "shortest trial"]
    rows = []
    costs = _rows("cost")
    for storage in dict.fromkeys(row["storage"] for row in costs):
        own = {row["others"]: row for row in costs if row["storage"] == storage}
        cells = [storage, f"{own[0]['ms']:.0f}"]
        for fleet in FLEETS:
            if fleet not in own:
                cells += ["", ""]
                continue
            held = own[fleet]["ms_in_lock"]
            cells += [f"{held:.0f}", _duration(fleet * held / 1000)]
        rows.append(cells)
    return rows_to_markdown(header, rows) + source(read("faults"))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


TABLES: dict[str, Callable[[], str]] = {
    "faults_survived": survived,
    "faults_workers": workers,
    "faults_saturation": saturation,
}
