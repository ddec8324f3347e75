"""The pages: their code runs, what they name exists, and the reference holds every public name."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import lrfinder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SCRIPTS = [ROOT / "README.md", DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_TEST = re.compile(r"`(tests/\S+\.py)::(\w+)`")


def code_of(page: Path) -> str:
    blocks = BLOCK.findall(page.read_text())
    # The README's first block is a whole script; the others are parts of the reader's own.
    return blocks[0] if page.name == "README.md" else "\n".join(blocks)


@pytest.mark.parametrize("page", SCRIPTS, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_as_one_script(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = code_of(page)
    assert code.count("\n") > 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    # In this process, which has imported all that it needs.
    exec(compile(code, str(page), "exec"), {"__name__": "page"})
    drawn = re.findall(r'savefig\("(\S+)"\)', code)
    assert all((tmp_path / name).stat().st_size > 3000 for name in drawn)


def test_every_test_that_a_page_names_exists() -> None:
    named = NAMED_TEST.findall((DOCS / "coming-from.md").read_text())
    assert len(named) > 20
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert not missing


@pytest.mark.parametrize("name", lrfinder.__all__)
def test_a_public_name_is_documented_and_typed(name: str) -> None:
    found: Any = getattr(lrfinder, name)
    assert len((inspect.getdoc(found) or "").split()) > 3
    functions = [found] if inspect.isfunction(found) else []
    if inspect.isclass(found):
        own = {key: value for key, value in vars(found).items() if not key.startswith("_")}
        functions += [value for value in own.values() if inspect.isfunction(value)]
        assert all(inspect.getdoc(value) for value in functions), functions
    for function in functions:
        hints = function.__annotations__
        wanted = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        assert not [p for p in [*wanted, "return"] if p not in hints], function


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name_once() -> None:
    listed = re.findall(
        r"^::: lrfinder\.(\w+)$", "\n".join(hooks().reference_pages().values()), re.M
    )
    assert sorted(name for name in listed if name != "integrations") == sorted(lrfinder.__all__)
