"""Claim: a curve that shows an LR is read right, and one that shows none is refused.

On curves with known answers, with noise of several kinds and sizes: how often a reading says "ok"
and is more than half a decade off, or should have refused; and how often it refuses without need.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import torch
from torch import nn

import lrfinder
from benchmarks.range_test.curves import FAMILIES, NOISES, Curve
from benchmarks.range_test.tasks import mlp
from benchmarks.range_test.truth import Row
from benchmarks.results_file import write_result
from lrfinder.suggestions.curves import Reading, combined, read_ramp, stop_rule
from lrfinder.traces import Trace

NAME = "range_test_refusals"
SIZES = (0.0, 0.03, 0.1, 0.3, 1.0)  # sd of the noise over the drop
REPLICAS = 2  # batch orders, the default of a range test
WRONG = 0.5  # decades
WHOLE_TESTS = 20


def run(*, count: int) -> None:
    """Measure, print and write."""
    rows = [
        measure(family, noise, size, count)
        for family in FAMILIES
        for noise in NOISES
        for size in (SIZES if noise == "independent" else SIZES[2:4])
    ]
    for row in rows:
        print(
            f"{row['family']:20s} {row['noise']:12s} {row['size']:5.2f}  wrong {row['wrong']:.3f}  "
            f"needless {row['needless']:.3f}  {row['statuses']}"
        )
    whole = nothing_to_learn(WHOLE_TESTS)
    print(f"nothing to learn: {whole}")
    write_result(
        NAME,
        rows,
        command="range_test refusals",
        compact=True,
        count=count,
        nothing_to_learn=whole,
    )


def measure(family: str, noise: str, size: float, count: int) -> Row:
    """Read `count` curves of one family and noise."""
    wrong = needless = 0
    statuses: Counter[str] = Counter()
    for number in range(count):
        rng = np.random.default_rng([number, zlib.crc32(f"{family} {noise} {size}".encode())])
        curve = FAMILIES[family](rng)
        reading = combined([_read(curve, noise, size, rng) for _ in range(REPLICAS)])
        statuses[reading.status] += 1
        if reading.status == "ok":
            wrong += error(curve, reading) > WRONG
        else:
            needless += curve.answer is not None
    answered = FAMILIES[family](np.random.default_rng(0)).answer is not None
    return {
        "family": family, "answered": answered, "noise": noise, "size": size,
        "wrong": wrong / count, "needless": needless / count, "statuses": dict(statuses),
    }  # fmt: skip


def _read(curve: Curve, noise: str, size: float, rng: np.random.Generator) -> Reading:
    """One ramp with noise, ended by the stop rule as in a sweep."""
    losses = curve.losses + size * curve.drop * NOISES[noise](rng, len(curve.losses))
    # What an LR did shows in the loss of the step after it.
    observed = np.concatenate([losses[:1], losses[:-1]])
    trace = Trace(["all"])
    stopped = False
    for x, loss in zip(curve.decades, observed, strict=True):
        trace.append([10**x], float(loss))
        stopped = not math.isfinite(loss) or stop_rule(trace) is not None
        if stopped:
            break
    lrs = 10 ** curve.decades[: len(trace)]
    return read_ramp(lrs, observed[: len(trace)], stopped=stopped)


def error(curve: Curve, reading: Reading) -> float:
    """Decades between the minimum that was read and the answer; infinite where there is none."""
    if curve.answer is None:
        return math.inf
    x = math.log10(reading.minimum)
    return max(curve.answer[0] - x, x - curve.answer[1], 0.0)


# -- whole range tests ----------------------------------------------------------------------------


def nothing_to_learn(count: int) -> Row:
    """Range tests of an MLP whose output starts at 0, on targets of pure noise: every suggestion is wrong.

    No batch comes twice, so that there is nothing to learn by heart either.
    """
    statuses: Counter[str] = Counter()
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = (torch.randn(20_000, size, generator=generator) for size in (10, 1))
        torch.manual_seed(seed)
        model = mlp(10, 48, 48, 1, scales={2: 0.0})
        nn.init.zeros_(model.get_parameter("head.bias"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        result = lrfinder.range_test(
            model,
            optimizer,
            lrfinder.supervised(nn.MSELoss()),
            lrfinder.TensorLoader(inputs, targets, batch_size=32, shuffle=True, seed=seed),
            seed=seed,
        )
        (bracket,) = result.suggestion.brackets.values()
        statuses[bracket.status if bracket.refused else "suggested"] += 1
    return {"runs": count, "suggested": statuses["suggested"], "statuses": dict(statuses)}
