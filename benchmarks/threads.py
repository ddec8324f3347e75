"""Claim: on a machine that others use too, a tiny model trains fastest on one CPU thread.

The digits MLP on one and on all threads, alone and beside busy neighbours. torch's threads wait for each other at
each operation, so one that is not running holds up all. That is why the commands train the digits on one thread:

    python -m benchmarks.threads
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import lrfinder
from benchmarks.results_file import interleave, write_result


def milliseconds_per_step(threads: int) -> float:
    """One epoch of the digits MLP."""
    torch.set_num_threads(threads)
    started = lrfinder.load_task("digits").start(0, device="cpu")
    loss_fn = lrfinder.load_task("digits").loss_fn
    start = time.perf_counter()
    trace = lrfinder.train(
        started.model,
        started.optimizer,
        loss_fn,
        started.train_loader,
        num_epochs=1,
        verbose=False,
    )
    return 1e3 * (time.perf_counter() - start) / len(trace)


def _busy() -> None:
    torch.set_num_threads(1)
    matrix = torch.randn(300, 300)
    while True:
        matrix @ matrix


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that keep as many cores busy."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_busy, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(5.0 if count else 0.0)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def main() -> None:
    """Measure, print and write `results/threads.json`."""
    cores = os.cpu_count() or 1
    rows = []
    for count in (0, cores):
        with neighbours(count):
            arms = {n: (lambda n=n: milliseconds_per_step(n)) for n in dict.fromkeys((1, cores))}
            taken = interleave({str(n): arm for n, arm in arms.items()}, rounds=9)
        for threads, values in taken.items():
            low, _, high = statistics.quantiles(values, n=4)
            row = {
                "busy_neighbours": count,
                "threads": int(threads),
                "ms_per_step": statistics.median(values),
                "quartile_1": low,
                "quartile_3": high,
            }
            rows.append(row)
            print(
                f"{count} busy neighbours, {threads} threads: {row['ms_per_step']:.2f} ms/step [{low:.2f}, {high:.2f}]"
            )
    write_result("threads", rows)


if __name__ == "__main__":
    main()
