"""The range test against the truth, and against its peers.

    python -m benchmarks.range_test truth --data FOLDER      # the grids, once
    python -m benchmarks.range_test groups                   # an LR for each group
    python -m benchmarks.range_test one-lr --peers-env DIR   # one LR, beside the peers
    python -m benchmarks.range_test refusals                 # curves with known answers
    python -m benchmarks.range_test overhead                 # time
    python -m benchmarks.range_test figures --data FOLDER    # the pages' figures

`--tasks` picks some by name; FOLDER holds CIFAR-10's images, and is needed for `net` and `resnet18`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.range_test import figures, groups, one_lr, overhead, refusals, truth
from benchmarks.range_test.tasks import Problem, problems


def main(argv: list[str] | None = None) -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.range_test")
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("truth", "groups", "one-lr", "refusals", "overhead", "figures"):
        part = parts.add_parser(name)
        part.add_argument("--threads", type=int, default=1)
        if name in ("truth", "groups", "one-lr", "figures"):
            part.add_argument("--tasks", nargs="*")
            part.add_argument("--data")
        if name == "truth":
            part.add_argument("--fresh", action="store_true", help="keep what the grids chose")
        if name == "refusals":
            part.add_argument("--curves", type=int, default=200)
        if name == "overhead":
            part.add_argument("--rounds", type=int, default=15)
        if name in ("groups", "one-lr"):
            part.add_argument("--seeds", type=int, default=12 if name == "groups" else 10)
            part.add_argument("--no-save", action="store_true")
        if name == "groups":
            part.add_argument("--effort")
            part.add_argument("--engine")
        if name == "one-lr":
            part.add_argument("--peers-env")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.part == "truth":
        truth.run(_chosen(options), fresh=options.fresh)
    elif options.part == "groups":
        groups.run(
            _chosen(options, "groups"),
            num_seeds=options.seeds,
            options=_given(effort=options.effort, engine=options.engine),
            save=not options.no_save,
        )
    elif options.part == "one-lr":
        one_lr.run(
            _chosen(options, "one"),
            num_seeds=options.seeds,
            peers_env=options.peers_env,
            data=options.data,
            save=not options.no_save,
        )
    elif options.part == "refusals":
        refusals.run(count=options.curves)
    elif options.part == "figures":
        figures.run(_chosen(options))
    else:
        overhead.run(rounds=options.rounds)


def _chosen(options: argparse.Namespace, use: str | None = None) -> list[Problem]:
    """The tasks that were named, or all; those on images only where there are some."""
    found = problems(options.data)
    names = options.tasks or [
        name for name in found if options.data or name not in ("net", "resnet18")
    ]
    unknown = [name for name in names if name not in found]
    if unknown:
        raise SystemExit(f"Tasks must be of {', '.join(found)}, but got {', '.join(unknown)}.")
    return [found[name] for name in names if use is None or use in found[name].uses]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


if __name__ == "__main__":
    main()
