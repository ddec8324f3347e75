"""Tests of the bar: nothing without a terminal, and whole at its end with one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = """
import torch
import lrfinder
from tests.helpers import TinyNet, cross_entropy, tiny_loader, tiny_optimizer
model = TinyNet()
lrfinder.range_test(
    model, tiny_optimizer(model), cross_entropy, tiny_loader(), effort="quick", progress=True
)
"""


def bar(stderr: int) -> None:
    subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, stderr=stderr, check=True, timeout=120)


def test_a_terminal_sees_the_stages() -> None:
    own, terminal = pty.openpty()
    bar(terminal)
    shown = os.read(own, 100_000).decode()
    os.close(terminal)
    os.close(own)
    assert "race" in shown
    assert "steps" in shown


def test_a_file_sees_nothing(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as file:
        bar(file.fileno())
    assert (tmp_path / "stderr").read_bytes() == b""
