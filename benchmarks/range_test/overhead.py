"""Claim: a step of a range test costs next to nothing more than a plain training step.

A whole call of one ramp, with snapshot, trace, stop rule and restoring, over its steps, against
the loop that everyone writes, on the same batches, in turns within one run. And what range tests
take in all.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import lrfinder
from benchmarks.range_test.tasks import Problem, problems
from benchmarks.range_test.truth import Row
from benchmarks.results_file import interleave, paired_ratio, write_result

NAME = "range_test_overhead"
BAR = 1.05
NUM_STEPS = 100
RANGE = (1e-7, 1e-4)  # so low that no ramp stops early
COMPARED = ("mlp-sgd", "net")
WHOLE = "mlp-sgd"  # of which whole range tests are timed too, on its own data


def run(*, rounds: int) -> None:
    """Measure, print and write; on random images."""
    known = problems()
    rows = []
    for name in COMPARED:
        problem = known[name]
        rows.append(compare(problem, _batches(problem), rounds))
        print(f"{problem.title:24s} sweep / bare loop {rows[-1]['ratio']:.3f} a step", flush=True)
    for options in ({"groups": "together"}, {"groups": "each"}):
        rows.append(whole(known[WHOLE], options))
        print(rows[-1], flush=True)
    write_result(NAME, rows, command="range_test overhead", bar=BAR, rounds=rounds)


def _batches(problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """The batches of each arm; images are random, since only time is measured."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 32, 32) if problem.name == "net" else (1, 8, 8)
    size = problem.batch_size
    return [
        (
            torch.randn(size, *shape, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )
        for _ in range(NUM_STEPS)
    ]


def _fresh(problem: Problem) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = problem.model(0)
    return model, problem.make_optimizer(lrfinder.param_groups(model, problem.groups))


def compare(problem: Problem, data: Sequence[Any], rounds: int) -> Row:
    """Time per step of a ramp over that of a bare loop, round by round."""

    def bare() -> float:
        model, optimizer = _fresh(problem)
        began = time.perf_counter()
        for inputs, targets in data:
            optimizer.zero_grad()
            loss = problem.criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - began) / len(data)

    def sweep() -> float:
        model, optimizer = _fresh(problem)
        began = time.perf_counter()
        result = lrfinder.range_test(
            model, optimizer, lrfinder.supervised(problem.criterion), data,
            start_lr=RANGE[0], end_lr=RANGE[1], num_steps=NUM_STEPS,
            groups=list(problem.groups)[:1], effort="brackets", replicas=3,
        )  # fmt: skip
        return (time.perf_counter() - began) / result.cost.steps

    seconds = interleave({"bare loop": bare, "range test": sweep}, rounds=rounds)
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    return {
        "what": f"{problem.title}: ramps / bare loop, time per step",
        "ms_per_step": milliseconds,
        **paired_ratio(seconds, "range test", "bare loop"),
        "bar": BAR,
    }


def whole(problem: Problem, options: dict[str, str]) -> Row:
    """Steps and seconds of a range test at its defaults, and one replica after the other: medians of five."""
    task = problem.task(one_lr=options["groups"] == "together")
    steps = []

    def test(engine: str, seeds: Iterator[int]) -> float:
        seed = next(seeds)
        started = task.start(seed, device="cpu")
        began = time.perf_counter()
        result = lrfinder.range_test(
            started.model,
            started.optimizer,
            task.loss_fn,
            started.train_loader,
            seed=seed,
            engine=engine,
            **options,
        )
        steps.append(result.cost.steps)
        return time.perf_counter() - began

    arms = {
        engine: functools.partial(test, engine, itertools.count())
        for engine in ("auto", "stepping")
    }
    seconds = interleave(arms, rounds=5)
    number = len(task.groups)
    return {
        "what": f"{problem.title}: a range test of {number} LR{'s' if number > 1 else ''}",
        "steps": int(statistics.median(steps)),
        "seconds": statistics.median(seconds["auto"]),
        "seconds_stepping": statistics.median(seconds["stepping"]),
        "faster": paired_ratio(seconds, "stepping", "auto"),
    }
