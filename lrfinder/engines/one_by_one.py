"""One by one: the plain engine, in which one model plays all replicas in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lrfinder.engines.batches import GIB
from lrfinder.engines.courses import Courses
from lrfinder.engines.plans import Plan
from lrfinder.snapshots import Snapshot
from lrfinder.stepping import Replica, StopRule, take_alone
from lrfinder.tasks import Batch, Loader


class SteppingEngine:
    """One model plays all replicas, one after the other. The reference for every other engine.

    A plan starts from the snapshot with random states seeded from (seed, order); see `Courses` for
    where it stands while others are taken further.

    Args:
        replica: The model, which ends wherever its last plan left it: the caller restores it.
        start: Where all plans start. A model in eval mode is put in train mode; the flags of one in
            train mode are left as they are, so that a BatchNorm which its owner froze stays so.
        loader: Gives the batches.
        seed: Of the batch orders and of each plan's random states.
        val_batch: What plans with `val_every` are evaluated on.
        memory: Bytes for the states of plans, and as much again for batches.
    """

    def __init__(
        self,
        replica: Replica,
        start: Snapshot,
        loader: Loader,
        *,
        seed: int = 0,
        val_batch: Batch = None,
        memory: int = GIB,
    ) -> None:
        self.group_names = tuple(replica.group_names)
        self.courses = Courses(
            self.group_names, loader, seed=seed, val_batch=val_batch, memory=memory
        )
        self._replica = replica
        self._start = start

    @property
    def steps(self) -> int:
        """See `Engine`."""
        return self.courses.taken

    def advance(
        self, plans: Sequence[Plan], num_steps: int, *, should_stop: StopRule | None = None
    ) -> None:
        """See `Engine`."""
        for plan in plans:
            self.courses.check(plan)
            if plan.ended:
                continue
            replica = self.at_start()
            is_there = self.courses.begin(plan, replica)
            steps = self.courses.steps(
                plan, replica, num_steps, is_there=is_there, should_stop=should_stop
            )
            take_alone(steps, replica.answer)
            if not plan.ended:
                self.courses.keep(plan, replica)

    def release(self, plans: Iterable[Plan]) -> None:
        """See `Engine`."""
        self.courses.release(plans)

    def at_start(self) -> Replica:
        """The replica, at the start and in train mode."""
        self._start.restore()
        if not self._replica.model.training:
            self._replica.model.train()
        return self._replica

    def try_step(self) -> None:
        """Take one step from the start, and leave the gradients to be looked at."""
        plan = Plan.constant(dict.fromkeys(self.group_names, 0.0), 1)
        self.advance([plan], 1)
