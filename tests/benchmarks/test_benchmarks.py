"""The tables in the pages are what the result files say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.markdown import read
from benchmarks.results_file import RESULTS, paired_ratio

ROOT = Path(__file__).parents[2]


def test_every_table_is_what_its_result_file_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out
    assert "<!-- table: house -->" in (ROOT / "README.md").read_text()


def test_a_stale_table_is_noticed() -> None:
    text = (ROOT / "README.md").read_text()
    shown = f"{read('overhead')['rows'][1]['ratio']:.3f}"
    assert shown in text
    assert tables.fill(text.replace(shown, "0.500")) == text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_each_result_says_where_it_was_measured(path: Path) -> None:
    data = json.loads(path.read_text())
    module = data["command"].split()[2]
    assert importlib.util.find_spec(module) is not None
    assert path.stem.startswith(module.removeprefix("benchmarks."))
    assert {"date", "python", "cpu_cores", "torch"} <= data["environment"].keys()
    assert data["rows"]


def test_ratios_are_taken_round_by_round() -> None:
    seconds = {"ours": [2.0, 20.0, 2.0, 2.2], "bare": [1.0, 10.0, 1.0, 1.0]}
    assert paired_ratio(seconds, "ours", "bare")["ratio"] == 2.0


def test_ratios_meet_their_bars() -> None:
    overhead, imports, lrs = (read(name) for name in ("overhead", "imports", "recorded_lrs"))
    assert all(row["ratio"] <= row["bar"] for row in overhead["rows"][1:])
    assert imports["rows"][-1]["ratio"] <= imports["bar"]
    assert imports["heavy_modules_loaded"] == "[]"
    assert lrs["agree"] == lrs["total"] > 0


def test_records_are_complete_and_meet_their_bars() -> None:
    rows = tables.read("records")["rows"]
    losses = [row for row in rows if "missing" in row]
    assert len(losses) == 3
    assert all((row["missing"], row["doubled"]) == (0, 0) for row in losses)
    assert all(row["rows"] > 1000 for row in losses)
    rates = [row for row in rows if "times" in row]
    assert len(rates) == 3
    assert all(row["times"] >= row["bar"] for row in rates)
    assert all(row["microseconds"] <= row["bar"] for row in rows if "microseconds" in row)
    assert all(row["mebibytes"] <= row["bar"] for row in rows if "mebibytes" in row)
