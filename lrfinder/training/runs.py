"""Runs: where a training stands, which is what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lrfinder.distributing import is_main
from lrfinder.groups import learning_rates
from lrfinder.schedules import ScheduleDriver
from lrfinder.snapshots import loader_generators, random_state, set_random_state
from lrfinder.stepping import Replica
from lrfinder.tasks import Batch, Loader
from lrfinder.traces import Trace
from lrfinder.training.checkpoints import (
    best_path,
    check_fingerprint,
    fingerprint,
    load_checkpoint,
    non_persistent_buffers,
    save_checkpoint,
)


class Run:
    """A training and where it stands.

    Args:
        replica: What takes the steps.
        driver: Moves its schedule on.
        loader: Its batches; generators of its own are part of where it stands.
        path: Of the checkpoint, or None.
    """

    def __init__(
        self, replica: Replica, driver: ScheduleDriver, loader: Loader, *, path: Path | None
    ) -> None:
        self.replica = replica
        self.driver = driver
        self.loader = loader
        self.path = path
        self.trace = Trace(replica.group_names, name="train")
        self.epoch = 0
        self.epoch_start = 0  # the step at which this epoch began
        self.skip = 0  # batches of this epoch that were used before the training was killed
        self.best: float | None = None
        self.epochs_without_best = 0
        self._lrs: dict[str, float] = {}
        self._epoch_random: dict[str, Any] = {}
        self._random: dict[str, Any] | None = None

    def epoch_lrs(self) -> dict[str, float]:
        """The LRs that this epoch began with."""
        if not self.skip:
            self._lrs = learning_rates(self.replica.optimizer)
        return self._lrs

    def batches(self) -> Iterator[Batch]:
        """The rest of this epoch's batches, in the order that they have in a training which was never killed."""
        if not self.skip:
            if self.path is not None:
                self._epoch_random = self._random_states()
            yield from self.loader
            return
        self._set_random_states(self._epoch_random)
        rest = islice(iter(self.loader), self.skip, None)
        first = next(rest, None)
        assert self._random is not None
        # Skipping drew random numbers (order, augmentation); what follows must draw those that
        # came after.
        self._set_random_states(self._random)
        self.skip = 0
        if first is not None:
            yield first
            yield from rest

    def is_best(self, value: float | None, direction: str) -> bool:
        """Whether this epoch's value is the best so far; a value that is not finite never is."""
        if value is None:
            return False
        better = self.best is None or (
            value < self.best if direction == "minimize" else value > self.best
        )
        if better and math.isfinite(value):
            self.best, self.epochs_without_best = value, 0
            return True
        self.epochs_without_best += 1
        return False

    def end_epoch(self) -> None:
        """Count the epoch."""
        self.epoch += 1
        self.epoch_start = len(self.trace)

    def save(self, *, best: bool = False) -> None:
        """Write the checkpoint, and the best one beside it."""
        if self.path is None or not is_main():
            return
        replica, scaler = self.replica, self.replica.options.scaler
        state = {
            "fingerprint": fingerprint(replica.model, replica.optimizer, replica.group_names),
            "model": replica.model.state_dict(),
            "buffers": non_persistent_buffers(replica.model),
            "optimizer": replica.optimizer.state_dict(),
            "schedule": self.driver.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": self._random_states(),
            "epoch_random": self._epoch_random,
            "epoch": self.epoch,
            "epoch_start": self.epoch_start,
            "epoch_lrs": self._lrs,
            "best": self.best,
            "epochs_without_best": self.epochs_without_best,
            "trace": self.trace.to_dict(),
        }
        save_checkpoint(self.path, state)
        if best:
            save_checkpoint(best_path(self.path), state)

    def resume(self) -> bool:
        """Go on from the checkpoint where there is one."""
        if self.path is None or not self.path.exists():
            return False
        state = load_checkpoint(self.path)
        replica, scaler = self.replica, self.replica.options.scaler
        check_fingerprint(
            self.path,
            state["fingerprint"],
            fingerprint(replica.model, replica.optimizer, replica.group_names),
        )
        replica.model.load_state_dict(state["model"])
        buffers = non_persistent_buffers(replica.model)
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
        replica.optimizer.load_state_dict(state["optimizer"])
        self.driver.load_state_dict(state["schedule"])
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        self.epoch, self.epoch_start = state["epoch"], state["epoch_start"]
        self.best, self.epochs_without_best = state["best"], state["epochs_without_best"]
        self._lrs, self._epoch_random = state["epoch_lrs"], state["epoch_random"]
        self.trace = Trace.from_dict(state["trace"])
        if self.trace.status == "completed":
            self.trace.set_status("running")  # it goes on where `num_epochs` was raised
        self.skip = (len(self.trace) - self.epoch_start) * replica.options.accumulation
        self._random = state["random"]
        self._set_random_states(self._random)
        return True

    def _random_states(self) -> dict[str, Any]:
        generators = [generator.get_state() for generator in loader_generators(self.loader)]
        return {"global": random_state(), "loader": generators}

    def _set_random_states(self, states: Mapping[str, Any]) -> None:
        for generator, state in zip(loader_generators(self.loader), states["loader"], strict=True):
            generator.set_state(state)
        set_random_state(states["global"])
