"""Every notebook runs from its first cell to its last, and its results show themselves."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
# What the results of each show: tables, and figures.
SHOWN = {"notebook_1_range_test": (2, 2), "notebook_2_search": (2, 3), "notebook_3_compare_runs": (2, 1)}  # fmt: skip


def executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the client and its event loop
        NotebookClient(
            notebook, timeout=240, resources={"metadata": {"path": str(folder)}}
        ).execute()
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_its_results(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = executed(path, tmp_path, monkeypatch)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    pages = [out["data"]["text/html"] for out in outputs if "text/html" in out.get("data", {})]
    tables, figures = SHOWN[path.stem]
    assert sum("<table" in page for page in pages) >= tables
    assert sum(page.count("<svg") for page in pages) >= figures
    said = [out["text"] for out in outputs if out.get("name") == "stderr"]
    # Optuna's own, where a notebook has no ipywidgets.
    assert not [text for text in said if "Warning" in text and "IProgress" not in text]


def test_there_are_three() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    """They would be of some day and some version; who opens it runs it."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [
        cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")
    ]
