"""lrfinder: a learning rate for each parameter group, a search that starts from it, and a record of both."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lrfinder.distributing import is_main, process_group, spread
from lrfinder.groups import (
    group_names,
    learning_rates,
    lr_groups,
    param_groups,
    scale_learning_rate,
    set_learning_rate,
)
from lrfinder.groups.descriptions import describe
from lrfinder.groups.layouts import layerwise_groups, split_decay, width_groups
from lrfinder.schedules import GroupSchedulers, build_scheduler, lr_table, scheduler_names
from lrfinder.snapshots import preserved
from lrfinder.stepping import evaluate
from lrfinder.tasks import (
    StepOptions,
    Task,
    accuracy,
    load_task,
    planned_steps,
    resolve_device,
    seed_everything,
    supervised,
)
from lrfinder.traces import Trace
from lrfinder.training import StopTraining, train
from lrfinder.training.checkpoints import CheckpointError

__version__ = "0.1.0"

# Rooms that need mlflow, optuna or matplotlib are loaded when one of their names is first used.
_LAZY: dict[str, str] = {
    "Arm": "lrfinder.reporting.arms",
    "ArmComparison": "lrfinder.reporting.arms",
    "Measure": "lrfinder.reporting.arms",
    "Comparison": "lrfinder.comparing",
    "compare": "lrfinder.comparing",
    "CropAndFlip": "lrfinder.datasets",
    "Standardize": "lrfinder.datasets",
    "TensorLoader": "lrfinder.datasets",
    "EnvironmentLinkError": "lrfinder.environments",
    "given_options": "lrfinder.environments",
    "link_environment": "lrfinder.environments",
    "arms_figure": "lrfinder.reporting.figures",
    "ImageData": "lrfinder.datasets.images",
    "image_folder": "lrfinder.datasets.images",
    "Net": "lrfinder.shipped.networks",
    "SimpleModel": "lrfinder.shipped.networks",
    "plot_lr_table": "lrfinder.plotting",
    "plot_range_test": "lrfinder.plotting",
    "plot_search": "lrfinder.plotting",
    "plot_traces": "lrfinder.plotting",
    "RangeTest": "lrfinder.ranging",
    "range_test": "lrfinder.ranging",
    "NullRecorder": "lrfinder.tracking.recorders",
    "Recorder": "lrfinder.tracking.recorders",
    "Synced": "lrfinder.delivering.syncing",
    "sync": "lrfinder.delivering.syncing",
    "Report": "lrfinder.reporting",
    "comparison_report": "lrfinder.reporting.comparisons",
    "make_report": "lrfinder.reporting",
    "report_html": "lrfinder.reporting",
    "report_tables": "lrfinder.reporting",
    "StorageError": "lrfinder.searching.storages",
    "best_hparams": "lrfinder.searching",
    "confirmed": "lrfinder.searching",
    "importances": "lrfinder.searching",
    "Confirmed": "lrfinder.searching.confirming",
    "contour_figure": "lrfinder.searching.reading",
    "slice_figure": "lrfinder.searching.reading",
    "search": "lrfinder.searching",
    "suggest_lrs": "lrfinder.searching.brackets",
    "RecordError": "lrfinder.delivering.stores",
    "Bracket": "lrfinder.suggestions",
    "Evidence": "lrfinder.suggestions",
    "RefusedSuggestion": "lrfinder.suggestions",
    "Suggestion": "lrfinder.suggestions",
    "MlflowRecorder": "lrfinder.tracking",
    "train_seeds": "lrfinder.training.together",
    "train_task": "lrfinder.searching.recipes",
}

if TYPE_CHECKING:
    from lrfinder.comparing import Comparison, compare
    from lrfinder.datasets import CropAndFlip, Standardize, TensorLoader
    from lrfinder.datasets.images import ImageData, image_folder
    from lrfinder.delivering.stores import RecordError
    from lrfinder.delivering.syncing import Synced, sync
    from lrfinder.environments import EnvironmentLinkError, given_options, link_environment
    from lrfinder.plotting import plot_lr_table, plot_range_test, plot_search, plot_traces
    from lrfinder.ranging import RangeTest, range_test
    from lrfinder.reporting import Report, make_report, report_html, report_tables
    from lrfinder.reporting.arms import Arm, ArmComparison, Measure
    from lrfinder.reporting.comparisons import comparison_report
    from lrfinder.reporting.figures import arms_figure
    from lrfinder.searching import best_hparams, confirmed, importances, search
    from lrfinder.searching.brackets import suggest_lrs
    from lrfinder.searching.confirming import Confirmed
    from lrfinder.searching.reading import contour_figure, slice_figure
    from lrfinder.searching.recipes import train_task
    from lrfinder.searching.storages import StorageError
    from lrfinder.shipped.networks import Net, SimpleModel
    from lrfinder.suggestions import Bracket, Evidence, RefusedSuggestion, Suggestion
    from lrfinder.tracking import MlflowRecorder
    from lrfinder.tracking.recorders import NullRecorder, Recorder
    from lrfinder.training.together import train_seeds

__all__ = [
    "Arm",
    "ArmComparison",
    "Bracket",
    "CheckpointError",
    "Comparison",
    "Confirmed",
    "CropAndFlip",
    "EnvironmentLinkError",
    "Evidence",
    "GroupSchedulers",
    "ImageData",
    "Measure",
    "MlflowRecorder",
    "Net",
    "NullRecorder",
    "RangeTest",
    "RecordError",
    "Recorder",
    "RefusedSuggestion",
    "Report",
    "SimpleModel",
    "Standardize",
    "StepOptions",
    "StopTraining",
    "StorageError",
    "Suggestion",
    "Synced",
    "Task",
    "TensorLoader",
    "Trace",
    "accuracy",
    "arms_figure",
    "best_hparams",
    "build_scheduler",
    "compare",
    "comparison_report",
    "confirmed",
    "contour_figure",
    "describe",
    "evaluate",
    "given_options",
    "group_names",
    "image_folder",
    "importances",
    "is_main",
    "layerwise_groups",
    "learning_rates",
    "link_environment",
    "load_task",
    "lr_groups",
    "lr_table",
    "make_report",
    "param_groups",
    "planned_steps",
    "plot_lr_table",
    "plot_range_test",
    "plot_search",
    "plot_traces",
    "preserved",
    "process_group",
    "range_test",
    "report_html",
    "report_tables",
    "resolve_device",
    "scale_learning_rate",
    "scheduler_names",
    "search",
    "seed_everything",
    "set_learning_rate",
    "slice_figure",
    "split_decay",
    "spread",
    "suggest_lrs",
    "supervised",
    "sync",
    "train",
    "train_seeds",
    "train_task",
    "width_groups",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lrfinder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
