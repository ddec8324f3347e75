"""The examples of integrations and groups, as a user runs them; in one process, since imports take longest."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("accelerate_loop", ["body", "head", "optimizer steps"]),
        ("bare_tensor", ["group_0", "at [0.9"]),
        ("gan", ["critic", "generator", "ok"]),
        ("groups_people_use", ["layer_3/no_decay", " A ", " B ", "width_x4"]),
        ("lbfgs", ["LBFGS needs a closure", "Epoch [3/3]"]),
        ("lightning_fit", ["body", "head", "optimizer steps"]),
        ("transformers_trainer", [" all ", "train_loss"]),
        ("your_own_study", ["'lr/body':", "'lr/head':", "'gamma':"]),
    ],
)
def test_example(
    name: str,
    shown: list[str],
    tmp_path: Path,
    mlflow_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    out = capfd.readouterr().out
    for text in shown:
        assert text in out
