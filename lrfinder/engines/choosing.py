"""Choosing: whether steps are taken together or one after the other, by what was measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from lrfinder.distributing import is_distributed
from lrfinder.stepping import Replica

Step = tuple[Tensor, Sequence[Tensor | None]]  # a loss and its gradients
Way = Literal["check", "stepping", "lockstep", "alone"]

SAMPLES = 2  # steps of each way that are timed before one is chosen
CLEAR = 1.3  # ratio of two steps that makes one sample enough
# A first gradient of all that is so long, in seconds, and so many times what they take alone, says enough.
LONG, HOPELESS = 0.05, 1.5
LEAST_STEPS = 12  # of a training, below which a probe does not pay

# Largest difference of a gradient, as a share of the largest gradient of its replica.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3}
LOW_PRECISION = 0.1


class Chooser:
    """Takes the faster way, and says which and why.

    Measured for a number n of replicas, it holds for more where lockstep was faster, and for fewer
    where it was not: what lockstep saves is the work that does not grow with n.

    Args:
        engine: "auto", "lockstep" (which is checked too, and refused with an error) or "stepping".
        device: What to wait for when a step is timed.

    Attributes:
        reason: Why it is what it is, in words.
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
        self.used: set[str] = set()
        self._samples: dict[tuple[int, str], list[float]] = {}
        self._fast: int | None = None  # fewest replicas for which lockstep was faster
        self._slow = 1  # most replicas for which it was not
        if is_distributed():
            self.refuse("several processes train one model together, a step after the other")

    @property
    def name(self) -> str:
        """Which engine took the steps: "lockstep" where it took any, "stepping" otherwise."""
        return "lockstep" if "lockstep" in self.used else "stepping"

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
            return
        stepping, lockstep = map(min, samples)
        is_clear = not 1 / CLEAR < lockstep / stepping < CLEAR
        if min(map(len, samples)) < SAMPLES and not is_clear:
            return
        self._decide(count, stepping, lockstep)

    def look(self, count: int, one: float, together: float) -> None:
        """Learn from the check's seconds for the gradients of one replica, and of all together."""
        known = self._fast is not None and count >= self._fast
        if self.engine == "auto" and not known and together > max(LONG, HOPELESS * count * one):
            self._decide(count, count * one, together)

    def _decide(self, count: int, stepping: float, lockstep: float) -> None:
        if lockstep < stepping:
            self._fast = count if self._fast is None else min(self._fast, count)
        else:
            self._slow = max(self._slow, count)
        self.reason = (
            f"a step of {count} replicas took {1e3 * lockstep:.3g} ms together and "
            f"{1e3 * stepping:.3g} ms one after the other"
        )

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)


def tolerance(replica: Replica) -> float:
    """The largest difference that rounding explains, as a share of the largest entry."""
    dtypes = {parameter.dtype for parameter in replica.parameters}
    if replica.options.autocast is not None or not dtypes <= TOLERANCES.keys():
        return LOW_PRECISION
    return max(TOLERANCES[dtype] for dtype in dtypes)


def differs(own: Step, other: Step, limit: float) -> str | None:
    """What differs between two ways to take a step of one replica by more than rounding; None if nothing does.

    Args:
        own: Its loss and its gradients, taken alone.
        other: The same, taken together with others.
        limit: See `tolerance`.
    """
    (loss, gradients), (other_loss, others) = own, other
    if not bool(torch.isfinite(loss)) and not bool(torch.isfinite(other_loss)):
        return None  # a replica that diverges has no gradients to compare
    if not bool((loss - other_loss).abs() <= limit * (1 + loss.abs())):
        return f"the loss was {float(loss):.9g} alone and {float(other_loss):.9g} together"
    largest = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    for gradient, twin in zip(gradients, others, strict=True):
        if (gradient is None) != (twin is None):
            return "a parameter had a gradient in one of the two alone"
        if gradient is None or twin is None:
            continue
        gap = float((gradient - twin).abs().max())
        if math.isfinite(largest) and not gap <= limit * largest:
            return f"a gradient was off by {gap:.3g}, of at most {largest:.3g}"
    return None
