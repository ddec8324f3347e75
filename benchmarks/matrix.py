"""Claim: the wheel without extras works with the oldest and the newest releases that its bounds allow, on each Python.

python -m benchmarks.matrix

Each cell is an environment of its own, made by uv and deleted after (some 6 GB with CUDA's libraries):
the wheel, and of each direct dependency the oldest release that its bounds and the Python allow, or the
newest; "mixed" is the oldest torch, MLflow and Optuna among the newest of all others. There
`import lrfinder`, the range test and the recorded loop of `examples/` and a small search from the
command line are run, in a folder outside of the clone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from benchmarks.results_file import write_result

ROOT = Path(__file__).parent.parent
MIXED = ("torch", "torchvision", "mlflow", "optuna")
SHOWN = ("torch", "torchvision", "mlflow", "optuna", "numpy", "pandas", "matplotlib", "typer")
VERSIONS = f"""
import json, platform
from importlib.metadata import version
print(json.dumps({{"python": platform.python_version()}} | {{n: version(n) for n in {SHOWN!r}}}))
"""
SMOKES: Mapping[str, list[str]] = {
    "import": ["-c", "import lrfinder; print(lrfinder.__version__)"],
    "range test": ["range_test.py", "curves.png"],
    "record": ["record_your_own_loop.py"],
    "search": ["-m", "lrfinder", "search", "--task", "digits", "--n_trials", "3", "--num_epochs", "1"],
}  # fmt: skip


def build_wheel(folder: Path) -> Path:
    """The wheel of this clone."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "--directory"]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def lowest(requirement: Requirement) -> str:
    """The oldest release that a `>=` allows."""
    (version,) = [one.version for one in requirement.specifier if one.operator == ">="]
    return version


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder outside of the clone, that sees nothing of this environment."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    environment |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "UV_HTTP_TIMEOUT": "300",
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def cell(wheel: Path, python: str, bounds: str, pins: list[str], folder: Path) -> dict[str, Any]:
    """One environment: what was installed, and what of it ran."""
    row: dict[str, Any] = {"wanted_python": python, "bounds": bounds, "pins": pins}
    began = time.monotonic()
    environment = folder / "env"
    interpreter = str(environment / "bin" / "python")
    resolution = "lowest-direct" if bounds == "oldest" else "highest"
    # `lowest-direct` is of what the command line names: so it names what the wheel depends on.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Wheels alone: the oldest release is the oldest that this Python installs without a compiler.
    if bounds == "mixed":
        named = [Requirement(text) for text in project["dependencies"]]
        pins = [*pins, *(f"{r.name}=={lowest(r)}" for r in named if r.name in MIXED)]
    install = ["uv", "pip", "install", "--python", interpreter, "--only-binary", ":all:"]
    install += ["--resolution", resolution, str(wheel), *project["dependencies"], *pins]
    make = ["uv", "venv", "--no-python-downloads", "--python", python, str(environment)]
    for command in (make, install):
        done = run(command, folder)
        if done.returncode:
            return row | {"failed": {"install": done.stderr.strip()[-1500:]}}
    row |= json.loads(run([interpreter, "-c", VERSIONS], folder).stdout)
    row["install_seconds"] = round(time.monotonic() - began, 1)
    failed = {}
    for name, arguments in SMOKES.items():
        examples = [
            str(ROOT / "examples" / word) if word.endswith(".py") else word for word in arguments
        ]
        done = run([interpreter, *examples], folder)
        if done.returncode:
            failed[name] = (done.stdout + done.stderr).strip()[-1500:]
    return row | {"ran": [name for name in SMOKES if name not in failed], "failed": failed}


def main(argv: list[str] | None = None) -> int:
    """Make each environment, print what ran, and write `results/matrix.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pythons", nargs="+", default=["3.11", "3.12", "3.13"])
    parser.add_argument("--bounds", nargs="+", default=["oldest", "newest", "mixed"])
    parser.add_argument("--pins", nargs="*", default=[], help="as torch==2.11.0, in each cell")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="lrfinder-matrix-") as place:
        wheel = build_wheel(Path(place))
        for bounds in given.bounds:
            for python in given.pythons:
                folder = Path(place) / "cell"
                folder.mkdir()
                rows.append(cell(wheel, python, bounds, given.pins, folder))
                shutil.rmtree(folder)
                print(json.dumps(rows[-1], indent=1), flush=True)
                if not given.no_save:
                    write_result("matrix", rows)
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
