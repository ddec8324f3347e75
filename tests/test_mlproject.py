"""MLproject names every option of every command, and every one of them reaches the command."""

from __future__ import annotations

import re
import shlex
import string
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ENTRY_POINTS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "MLproject").read_text())[
    "entry_points"
]
NAMES = ["main", "range_test", "train", "search", "compare"]


def command_options(name: str) -> dict[str, Any]:
    """The options of a command as click sees them: ``num_epochs`` -> its parameter."""
    import typer

    from lrfinder.commands import app

    group: Any = typer.main.get_command(app)
    assert name in group.commands, (
        f"`lrfinder {name}` is missing; there are {sorted(group.commands)}"
    )
    options = {}
    for parameter in group.commands[name].params:
        if "--help" in parameter.opts or parameter.hidden:
            continue
        assert parameter.param_type_name == "option", f"MLproject cannot give {parameter.name!r}"
        assert not parameter.is_flag, f"MLproject cannot give the flag {parameter.opts[0]}"
        long = [word for word in parameter.opts if word.startswith("--")]
        options[long[0].removeprefix("--").replace("-", "_")] = parameter
    return options


def test_entry_points_are_the_five() -> None:
    assert list(ENTRY_POINTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_command_line_uses_each_parameter_once(name: str) -> None:
    entry = ENTRY_POINTS[name]
    words = shlex.split(entry["command"])
    assert words[:4] == ["python", "-m", "lrfinder", name]
    fields = [field for _, field, _, _ in string.Formatter().parse(entry["command"]) if field]
    assert fields == list(entry["parameters"])
    # MLflow quotes the values itself: quotes of ours would break that.
    pairs = [("--" + field.replace("_", "-"), f"{{{field}}}") for field in fields]
    assert words[4:] == [word for pair in pairs for word in pair]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_the_command_s_options(name: str) -> None:
    options = command_options(name)
    parameters = ENTRY_POINTS[name]["parameters"]
    assert sorted(parameters) == sorted(options)
    for key, parameter in parameters.items():
        default = options[key].default
        default = default() if callable(default) else default
        # '' leaves it to the command; any other default is written twice and must agree.
        written = parameter["default"]
        if written != "":
            assert str(written) == str(getattr(default, "value", default)), key
        else:
            assert not options[key].required, f"--{key} is required, but MLproject leaves it out"


@pytest.mark.parametrize("name", NAMES)
def test_types_are_the_command_s(name: str) -> None:
    from lrfinder.commands import app

    (function,) = [item.callback for item in app.registered_commands if item.name == name]
    hints = typing.get_type_hints(function)
    for key, parameter in ENTRY_POINTS[name]["parameters"].items():
        (kind,) = {*(typing.get_args(hints[key]) or (hints[key],))} - {type(None)}
        # Never `path`: MLflow then wants even the default to exist.
        assert parameter["type"] == {int: "int", float: "float", str: "string"}[kind], key


@pytest.mark.parametrize("name", NAMES)
def test_what_mlflow_makes_of_it_is_understood(name: str) -> None:
    """Values that a shell or a careless template would spoil arrive as they were typed."""
    from mlflow.projects.utils import load_project

    from lrfinder.environments import given_options

    entry = load_project(str(ROOT)).get_entry_point(name)
    values = {key: f'[0.1, "q {key}"] $(echo 3) *' for key in ENTRY_POINTS[name]["parameters"]}
    words = shlex.split(entry.compute_command(values, None))
    typed = [
        word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", value)
    ]
    assert words[4:] == typed
    untouched = given_options(shlex.split(entry.compute_command({}, None))[4:])
    defaults = [p["default"] for p in ENTRY_POINTS[name]["parameters"].values()]
    assert untouched[1::2] == [str(value) for value in defaults if value != ""]
    assert all(re.fullmatch(r"--[a-z-]+", word) for word in untouched[0::2])
