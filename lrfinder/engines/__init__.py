"""Engines: take many replicas of one model further, each its own way, all from the same start.

An engine is given plans and nothing else, so what asks for ramps and races does not know how they
are run. The plain one lets one model play all replicas in turn; the other takes their steps
together. Each step is the loop's.
"""

from __future__ import annotations

import itertools

from lrfinder.engines.batches import BatchOrders
from lrfinder.engines.one_by_one import SteppingEngine
from lrfinder.engines.plans import Engine, Plan
from lrfinder.engines.waves import LockstepEngine
from lrfinder.tasks import Batch, Loader

__all__ = ["ENGINES", "Engine", "LockstepEngine", "Plan", "SteppingEngine", "first_batch"]

ENGINES = ("auto", "stepping", "lockstep")


def first_batch(loader: Loader, *, seed: int) -> Batch:
    """The first batch of a loader, drawn without a trace in any random state."""
    return next(itertools.islice(BatchOrders(loader, seed=seed).batches(0), 1))
