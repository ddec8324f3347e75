"""What is shipped, and that what is written twice is equal."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_python_env_lists_the_dependencies() -> None:
    environment = yaml.safe_load((ROOT / "python_env.yaml").read_text())
    assert environment == {"dependencies": PYPROJECT["project"]["dependencies"]}


def test_no_room_is_open_to_the_commands() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    (public_names,) = [contract for contract in contracts if contract["id"] == "public-names"]
    package = ROOT / "lrfinder"
    rooms = {path.stem for path in package.glob("*.py") if path.stem[0] != "_"}
    rooms |= {path.parent.name for path in package.glob("*/__init__.py")}
    rooms -= {"commands", "integrations"}
    assert sorted(public_names["forbidden_modules"]) == sorted(
        f"lrfinder.{room}" for room in rooms
    )


def test_version_is_one() -> None:
    import lrfinder

    assert lrfinder.__version__ == PYPROJECT["project"]["version"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_wheel_holds_the_package_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"lrfinder", "lrfinder-0.1.0.dist-info"}
    assert "lrfinder/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    entry_points = (
        zipfile.ZipFile(wheel).read("lrfinder-0.1.0.dist-info/entry_points.txt").decode()
    )
    assert "lrfinder = lrfinder.commands:main" in entry_points


def test_sdist_holds_the_project_and_nothing_that_runs_left_behind(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    for wanted in ("MLproject", "python_env.yaml", "LICENSE", "README.md", "pyproject.toml"):
        assert wanted in names
    assert "tests/test_package.py" in names
    assert not [
        n for n in names if n.endswith((".pyc", ".db")) or n.startswith((".venv", "mlruns"))
    ]
