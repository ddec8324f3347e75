"""Systems: how busy the machine is while a training runs, by MLflow's own monitors."""

from __future__ import annotations

import logging
import resource
import sys
import time
from typing import Any

import torch

INTERVAL = 10.0  # seconds between two samples, as MLflow takes them

_log = logging.getLogger("lrfinder")
_said: set[str] = set()


class SystemMonitor:
    """Samples the load of the machine; a sample takes about a millisecond.

    What cannot be measured, for want of a package or a driver, is said once in the log.
    """

    def __init__(self) -> None:
        import psutil
        from mlflow.system_metrics.metrics import cpu_monitor, gpu_monitor

        # MLflow types neither.
        make_cpu: Any = cpu_monitor.CPUMonitor
        make_gpu: Any = gpu_monitor.GPUMonitor
        self._process = psutil.Process()
        self._monitors: list[Any] = [make_cpu()]
        if torch.cuda.is_available():
            try:
                self._monitors.append(make_gpu())
            except (ImportError, RuntimeError) as error:
                _say(f"The load of the GPU is not recorded: {error}")
        psutil.cpu_percent()  # the first answer is about no time at all
        self._next = time.monotonic() + INTERVAL

    def is_due(self) -> bool:
        """Whether it is time for the next sample."""
        return time.monotonic() >= self._next

    def sample(self) -> dict[str, float]:
        """`system/...`, in the names of MLflow, whose pages show them in a part of their own."""
        self._next = time.monotonic() + INTERVAL
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        memory = self._process.memory_info().rss
        found["process_memory_megabytes"] = memory / 1e6
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        found["process_peak_memory_megabytes"] = max(peak, memory) / 1e6
        if torch.cuda.is_available():
            found["gpu_peak_memory_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
        return {f"system/{name}": float(value) for name, value in found.items()}


def _say(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.warning(message)
