"""Recorders: what a record of a run can be told, whoever keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias

import torch
from torch import Tensor

from lrfinder.traces import Trace
from lrfinder.tracking.watching import WATCHABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RunStatus: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]


class Recorder(Protocol):
    """What a record can be told; `MlflowRecorder` sends it to MLflow, `NullRecorder` drops it.

    No method waits for a device or a store but `child`, `flush` and `close`, and `run_id` for a
    child that does not wait.
    """

    @property
    def run_id(self) -> str | None:
        """The run's id in its store."""

    @property
    def known_run_id(self) -> str | None:
        """As `run_id`, without waiting for it."""

    def log_step(
        self,
        step: int,
        loss: Tensor | float,
        optimizer: torch.optim.Optimizer,
        **metrics: Tensor | float,
    ) -> None:
        """Record an optimizer step: `train/loss`, `lr/<group>` and the given metrics."""

    def log_metrics(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Record values at an optimizer step, as `val/loss` at an epoch's end."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record chosen values; nested mappings are flattened."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; the last value of each stands."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a matplotlib figure, in the format of the name's suffix (`.png`)."""

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as an artifact."""

    def log_dict(self, value: Any, name: str) -> None:
        """Keep a JSON-able value as an artifact; non-finite numbers as text."""

    def log_trace(self, trace: Trace, name: str | None = None) -> None:
        """Keep a whole trace, at full resolution."""

    def log_file(self, path: str | Path, name: str | None = None) -> None:
        """Keep a file as an artifact."""

    def log_model(self, model: torch.nn.Module, name: str = "model.pt") -> None:
        """Keep the model's `state_dict` as an artifact."""

    def log_dataset(
        self,
        name: str,
        *,
        digest: str,
        profile: Mapping[str, Any] | None = None,
        source: str = "",
        context: str = "training",
    ) -> None:
        """Record which data are used."""

    def watch(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 10,
        what: Sequence[str] = WATCHABLE,
    ) -> None:
        """Let `log_step` record more of each group: norms, ratios, options."""

    def log_links(
        self, run_ids: Sequence[str], metrics: Sequence[str], *, filter: str = ""
    ) -> dict[str, str]:
        """The pages that compare some runs, by title; kept with this run."""

    def child(
        self,
        run_name: str | None = None,
        *,
        wait: bool = True,
        unique_for: float | None = None,
        **tags: Any,
    ) -> Recorder:
        """A recorder of a run below this one, whose making and end wait for the store, or leave that to this one."""

    def find_run(self, tags: Mapping[str, Any], *, since: float = 0.0) -> str | None:
        """The id of a run of this experiment that has these tags, whoever made it."""

    def end_lost_run(self, run_id: str, reason: str) -> None:
        """End a run that nobody records any more."""

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was recorded is in the store."""

    def close(self, status: RunStatus | None = None) -> None:
        """Flush, and end the run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class NullRecorder:
    """A recorder that keeps nothing.

    Example:
        >>> with NullRecorder() as recorder:
        ...     recorder.log_metrics(0, {"val/loss": 0.5})
    """

    @property
    def run_id(self) -> None:
        """There is no run."""
        return None

    @property
    def known_run_id(self) -> None:
        """There is no run."""
        return None

    def log_step(
        self,
        step: int,
        loss: Tensor | float,
        optimizer: torch.optim.Optimizer,
        **metrics: Tensor | float,
    ) -> None:
        """Do nothing."""

    def log_metrics(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Do nothing."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Do nothing."""

    def log_text(self, text: str, name: str) -> None:
        """Do nothing."""

    def log_dict(self, value: Any, name: str) -> None:
        """Do nothing."""

    def log_trace(self, trace: Trace, name: str | None = None) -> None:
        """Do nothing."""

    def log_file(self, path: str | Path, name: str | None = None) -> None:
        """Do nothing."""

    def log_model(self, model: torch.nn.Module, name: str = "model.pt") -> None:
        """Do nothing."""

    def log_dataset(
        self,
        name: str,
        *,
        digest: str,
        profile: Mapping[str, Any] | None = None,
        source: str = "",
        context: str = "training",
    ) -> None:
        """Do nothing."""

    def watch(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 10,
        what: Sequence[str] = WATCHABLE,
    ) -> None:
        """Do nothing."""

    def log_links(
        self, run_ids: Sequence[str], metrics: Sequence[str], *, filter: str = ""
    ) -> dict[str, str]:
        """There are no pages."""
        return {}

    def child(
        self,
        run_name: str | None = None,
        *,
        wait: bool = True,
        unique_for: float | None = None,
        **tags: Any,
    ) -> NullRecorder:
        """This recorder."""
        return self

    def find_run(self, tags: Mapping[str, Any], *, since: float = 0.0) -> str | None:
        """There are no runs."""
        return None

    def end_lost_run(self, run_id: str, reason: str) -> None:
        """Do nothing."""

    def flush(self, timeout: float | None = None) -> None:
        """Do nothing."""

    def close(self, status: RunStatus | None = None) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None
