"""lrfinder: a learning rate for each parameter group, a search that starts from it, and a record of both."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lrfinder.checkpoints import CheckpointError
from lrfinder.groups import (
    describe,
    group_names,
    learning_rates,
    param_groups,
    scale_learning_rate,
    set_learning_rate,
)
from lrfinder.schedules import GroupSchedulers, build_scheduler, lr_table, scheduler_names
from lrfinder.snapshots import preserved
from lrfinder.stepping import evaluate
from lrfinder.tasks import (
    StepOptions,
    Task,
    accuracy,
    load_task,
    resolve_device,
    seed_everything,
    supervised,
)
from lrfinder.traces import Trace
from lrfinder.training import StopTraining, train

__version__ = "0.1.0"

# Rooms that need mlflow, optuna or matplotlib are loaded when one of their names is first used.
_LAZY: dict[str, str] = {}

if TYPE_CHECKING:
    pass

__all__ = [
    "CheckpointError",
    "GroupSchedulers",
    "StepOptions",
    "StopTraining",
    "Task",
    "Trace",
    "accuracy",
    "build_scheduler",
    "describe",
    "evaluate",
    "group_names",
    "learning_rates",
    "load_task",
    "lr_table",
    "param_groups",
    "preserved",
    "resolve_device",
    "scale_learning_rate",
    "scheduler_names",
    "seed_everything",
    "set_learning_rate",
    "supervised",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lrfinder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
