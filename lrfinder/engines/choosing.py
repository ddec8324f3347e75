"""Choosing: whether steps are taken together or one after the other, by what was measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from lrfinder.distributing import is_distributed
from lrfinder.stepping import Replica

Way = Literal["check", "stepping", "lockstep", "alone"]

# Steps of each way that are timed before one is chosen. What else runs on the machine makes a step
# look longer, never shorter, so the quickest counts; and as nobody looks at lockstep again where it
# was given up, more are timed before that.
SAMPLES, SAMPLES_TO_GIVE_UP = 2, 4
CLEAR = 1.3  # ratio of two steps that makes one sample enough
# A first gradient of all that is so long, in seconds, and so many times what they take alone, says enough.
LONG, HOPELESS = 0.05, 1.5
LEAST_STEPS = 12  # of a training, below which a probe does not pay
# Channels in and out with which a convolution fills a CPU's vectors by itself, and the seconds of a
# step for each such layer beyond which it is the computing that counts, and not the calling.
WIDE, BUSY = 32, 0.0015


class Chooser:
    """Takes the faster way, and says which and why.

    Measured for a number n of replicas, it holds for more where lockstep was faster, and for fewer
    where it was not: what lockstep saves is the work that does not grow with n.

    Args:
        engine: "auto", "lockstep" (which is checked too, and refused with an error) or "stepping".
        device: What to wait for when a step is timed.

    Attributes:
        reason: Why it is what it is, in words.
        note: What is to be said beside the times.
        checked: Whether the first step was found to be the same both ways.
    """

    def __init__(self, engine: str, device: torch.device) -> None:
        self.engine = engine
        self.device = device
        self.checked = False
        self.reason = (
            "it was asked for" if engine != "auto" else "there was one training at a time"
        )
        self.refused = engine == "stepping"
        self.note = ""  # added to a reason
        self.used: set[str] = set()
        self._samples: dict[tuple[int, str], list[float]] = {}
        self._least: dict[
            int, float
        ] = {}  # seconds that so many take one after the other, or more
        self._fast: int | None = None  # fewest replicas for which lockstep was faster
        self._slow = 1  # most replicas for which it was not
        self._wide = 0  # wide convolutions, where most of what is trained is theirs
        self._alone: list[float] = []  # seconds of steps of such a model
        if is_distributed():
            self.refuse("several processes train one model together, a step after the other")

    @property
    def name(self) -> str:
        """Which engine took the steps: "lockstep" where it took any, "stepping" otherwise."""
        return "lockstep" if "lockstep" in self.used else "stepping"

    def consider(self, replica: Replica) -> None:
        """What can be told of replicas of this kind before a step is taken."""
        if replica.needs_closure:
            self.refuse(f"{type(replica.optimizer).__name__} needs a closure")
        elif self.engine == "auto" and self.device.type == "cpu":
            self._wide = _wide_convolutions(replica)

    @property
    def looks(self) -> bool:
        """Whether the next steps are to be taken by one replica alone, to see how long they take."""
        return not self.refused and self._wide > 0 and len(self._alone) < SAMPLES

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Learn from the step inside, which one replica takes alone.

        A probe of a large model takes many of its steps. On a CPU wide convolutions are no faster
        for several replicas at once, unless they are so small that calling them takes the time.
        """
        began = time.perf_counter()
        yield
        self._alone.append(time.perf_counter() - began)
        if len(self._alone) == SAMPLES and min(self._alone) > BUSY * self._wide:
            self.refuse(
                f"a step of one replica took {1e3 * min(self._alone):.3g} ms in {self._wide} wide "
                "convolutions, which a CPU does not do faster for several at once"
            )

    def worth(self, count: int, num_steps: int | None) -> bool:
        """Whether so many replicas are to be tried together, for so many steps (None: not known)."""
        if self.refused or count < 2:
            return False
        if self.engine == "lockstep" or (self._fast is not None and count >= self._fast):
            return True
        if count <= self._slow:
            return False
        if num_steps is not None and num_steps < LEAST_STEPS:
            if not self._samples:
                self.reason = f"{num_steps} steps are too few for a probe to pay"
            return False
        return True

    def way(self, count: int) -> Way:
        """How the next step is taken."""
        if self.refused:
            return "alone"
        if not self.checked:
            return "check"
        if self.engine == "lockstep":
            return "lockstep"
        if self._fast is not None and count >= self._fast:
            return "lockstep"
        if count <= self._slow:
            return "alone"
        taken = {
            kind: len(self._samples.get((count, kind), ())) for kind in ("stepping", "lockstep")
        }
        if count in self._least and not taken["lockstep"]:
            return "lockstep"  # which may be told from the check already
        return "stepping" if taken["stepping"] <= taken["lockstep"] else "lockstep"

    def refuse(self, reason: str) -> None:
        """Lockstep is out of the question from here on.

        Raises:
            ValueError: If it was asked for by name.
        """
        self.refused = True
        self.reason = reason
        if self.engine == "lockstep":
            raise ValueError(
                f"A training must fit into lockstep for engine='lockstep', but {reason}. Take engine='auto'."
            )

    @contextmanager
    def timed(self, way: Way, count: int) -> Iterator[None]:
        """Learn from the step inside, while there is no verdict for so many replicas."""
        self.used.add(way)
        known = self.engine != "auto" or count <= self._slow
        if known or (self._fast is not None and count >= self._fast):
            yield
            return
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        self._samples.setdefault((count, way), []).append(time.perf_counter() - began)
        self._judge(count)

    def _judge(self, count: int) -> None:
        samples = [self._samples.get((count, kind), []) for kind in ("stepping", "lockstep")]
        if not all(samples):
            least, together = self._least.get(count, 0.0), min(samples[1], default=math.inf)
            if together * CLEAR < least:
                self._decide(count, least, together)
            return
        stepping, lockstep = map(min, samples)
        taken, ratio = min(map(len, samples)), lockstep / stepping
        needed = SAMPLES if ratio < 1 else SAMPLES_TO_GIVE_UP
        if ratio < 1 / CLEAR:
            needed = 1
        elif ratio > HOPELESS:
            needed -= 1
        if taken >= needed:
            self._decide(count, stepping, lockstep)

    def look(self, count: int, alone: Sequence[float], together: float) -> None:
        """Learn from the check's seconds for the gradients of some replicas, and of all together."""
        if self.engine != "auto" or (self._fast is not None and count >= self._fast):
            return
        self._least[count] = count * min(alone)
        one = sum(alone) / len(alone)
        if together > max(LONG, HOPELESS * count * one):
            self._decide(count, count * one, together)

    def _decide(self, count: int, stepping: float, lockstep: float) -> None:
        if lockstep < stepping:
            self._fast = count if self._fast is None else min(self._fast, count)
        else:
            self._slow = max(self._slow, count)
        self.reason = (
            f"a step of {count} replicas took {1e3 * lockstep:.3g} ms together and "
            f"{1e3 * stepping:.3g} ms one after the other{self.note}"
        )

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)


def _wide_convolutions(replica: Replica) -> int:
    """How many there are, if they hold most of what is trained; otherwise 0."""
    trained = {id(p): p.numel() for p in replica.parameters if p.requires_grad}
    wide = [
        module
        for module in replica.model.modules()
        if isinstance(module, nn.Conv2d)
        and min(module.in_channels, module.out_channels) // module.groups >= WIDE
    ]
    share = sum(trained.get(id(module.weight), 0) for module in wide)
    return len(wide) if 2 * share > sum(trained.values()) else 0
