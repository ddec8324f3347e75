"""Completion of command lines, as the shells ask for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


def ask(instruction: str, **environment: str) -> str:
    code = "import sys, lrfinder.commands; sys.exit(lrfinder.commands.main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_LRFINDER_COMPLETE": instruction, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    script = ask(f"source_{shell}")
    assert f"_LRFINDER_COMPLETE=complete_{shell}" in script
    assert re.search(r"\blrfinder\b", script)


def test_commands_and_options_are_completed() -> None:
    line = {"COMP_WORDS": "lrfinder ra", "COMP_CWORD": "1"}
    assert ask("complete_bash", **line).split() == ["range_test"]
    line = {"COMP_WORDS": "lrfinder range_test --eff", "COMP_CWORD": "2"}
    assert ask("complete_bash", **line).split() == ["--effort"]
