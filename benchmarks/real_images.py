"""Claim: `train` and `range_test` run on all 50,000 images of CIFAR-10, decoded once.

python -m benchmarks.real_images --data FOLDER      # an image folder: train/<class>/*, test/<class>/*
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any

import lrfinder
from benchmarks.results_file import write_result


def timed(what: str, rows: list[dict[str, Any]], function: Any) -> Any:
    """Call the function, print and keep what it took."""
    start = time.perf_counter()
    result = function()
    rows.append({"what": what, "seconds": time.perf_counter() - start})
    print(f"{what}: {rows[-1]['seconds']:.1f} s")
    return result


def main() -> None:
    """Measure, print and write `results/real_images.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    data = parser.parse_args().data
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LRFINDER_CACHE"] = folder
        timed("first opening, decodes", rows, lambda: lrfinder.image_folder(data))
        images = timed("second opening, from the cache", rows, lambda: lrfinder.image_folder(data))
        task = lrfinder.load_task("cifar10", data=data)
    started = task.start(0)
    result = timed(
        "range test of features and classifier, effort quick",
        rows,
        lambda: lrfinder.range_test(
            started.model,
            started.optimizer,
            task.loss_fn,
            started.train_loader,
            effort="quick",
            planned_steps=task.num_epochs * len(started.train_loader),
        ),
    )
    rows[-1] |= {"steps": result.cost.steps, "suggestion": dict(result.suggestion.lrs)}
    print(result)
    result.suggestion.apply(started.optimizer)
    trace = timed(
        "one epoch of Net with the suggestion, and its evaluation",
        rows,
        lambda: lrfinder.train(
            started.model,
            started.optimizer,
            task.loss_fn,
            started.train_loader,
            num_epochs=1,
            val_loader=started.val_loader,
            metrics=task.metrics,
        ),
    )
    rows[-1] |= {"steps": len(trace), "val/accuracy": trace.last("val/accuracy")}
    print(f"accuracy on the test images after one epoch: {trace.last('val/accuracy'):.3f}")
    sizes = {"train": len(images.train[0]), "test": len(images.val[0])}
    write_result("real_images", rows, images=sizes)


if __name__ == "__main__":
    main()
