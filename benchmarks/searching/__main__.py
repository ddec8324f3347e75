"""Claim: a search that starts from a range test finds sooner what a cold one finds at its end, and no worse.

Each arm searches learning rates and a StepLR on small tasks, from several seeds; its cost is in
optimizer steps, those of range tests included. What a trial is worth is its mean validation loss on
fresh seeds, which no search sees. All searches of a task are trained in lockstep, each one trial
after the other. About an hour on a quiet core:

    python -m benchmarks.searching
    python -m benchmarks.searching --seeds 2 --tasks mlp-sgd --no-save
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

import torch

from benchmarks.markdown import read
from benchmarks.results_file import command_of, write_result
from benchmarks.searching.arms import VARIANTS, arms, warm
from benchmarks.searching.running import measure
from benchmarks.searching.settings import EPOCHS, FRESH
from benchmarks.searching.summary import summary
from lrfinder.searching.studies import quiet_optuna


def main() -> None:
    """Measure, print and write `results/searching.json`, a few seeds at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--fresh", type=int, default=24, help="seeds that worth is measured on")
    parser.add_argument("--way", type=int, default=6, help="of these, for the best on the way")
    parser.add_argument("--block", type=int, default=5, help="seeds that are trained together")
    parser.add_argument("--tasks", default=",".join(EPOCHS))
    parser.add_argument("--variants", choices=list(VARIANTS))
    parser.add_argument("--more", action="store_true", help="go on with the result file's rows")
    parser.add_argument("--arms", default="", help="only these, by name; with --more made anew")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    shown = ("variants", "seeds", "fresh", "way", "tasks")  # what the rows depend on
    command = command_of("searching", parser, options, shown)
    torch.set_num_threads(1)
    made = arms()
    if options.variants:
        made = [
            functools.partial(warm, name=f"lrfinder, {name}", **{options.variants: name})
            for name in VARIANTS[options.variants]
        ]
    file = f"searching_{options.variants}s" if options.variants else "searching"
    wanted = [name.strip() for name in options.arms.split(";") if name.strip()]
    made = [arm for arm in made if not wanted or arm.keywords["name"] in wanted]
    rows: list[dict[str, Any]] = read(file)["rows"] if options.more else []
    rows = [row for row in rows if row["arm"] not in wanted]
    for first in range(0, options.seeds, options.block):
        for name in options.tasks.split(","):
            known = {
                row["seed"]
                for row in rows
                if row["task"] == name and (not wanted or row["arm"] in wanted)
            }
            block = range(first, min(first + options.block, options.seeds))
            seeds = [seed for seed in block if seed not in known]
            if not seeds:
                continue
            began = time.perf_counter()
            with quiet_optuna():
                rows += measure(
                    name, made, seeds, range(FRESH, FRESH + options.fresh), options.way
                )
            for row in summary([row for row in rows if row["task"] == name]):
                print(*(f"{key}={value:.4g}" if isinstance(value, float) else value
                        for key, value in row.items()))  # fmt: skip
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
            if not options.no_save:
                write_result(file, rows, command=command, compact=True, summary=summary(rows))


if __name__ == "__main__":
    main()
