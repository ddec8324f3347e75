"""Claim: `import lrfinder` costs no more than 1.1 x `import torch`, and loads none of the heavy rooms.

python -m benchmarks.imports
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.results_file import interleave, paired_ratio, write_result

HEAVY = ("mlflow", "optuna", "matplotlib", "pandas", "rich", "typer", "sklearn", "torchvision")


def seconds_to_import(module: str) -> float:
    """Wall time of a new interpreter that imports the module."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write `results/imports.json`."""
    code = f"import sys, lrfinder; print([m for m in {HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    arms = {name: (lambda name=name: seconds_to_import(name)) for name in ("torch", "lrfinder")}
    seconds = interleave(arms, rounds=21)
    rows = [
        {
            "module": name,
            "seconds": statistics.median(values),
            **paired_ratio(seconds, name, "torch"),
        }
        for name, values in seconds.items()
    ]
    for row in rows:
        print(f"import {row['module']:10s} {row['seconds']:.3f} s   x{row['ratio']:.4f}")
    print(f"heavy modules that `import lrfinder` loads: {loaded}")
    write_result("imports", rows, heavy_modules_loaded=loaded, bar=1.1)


if __name__ == "__main__":
    main()
