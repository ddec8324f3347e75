"""Waves: the engine that takes the steps of many plans together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from lrfinder.engines.batches import GIB
from lrfinder.engines.choosing import Chooser
from lrfinder.engines.courses import SharedOrders
from lrfinder.engines.fitting import Unfit, capacity_for
from lrfinder.engines.jobs import Job
from lrfinder.engines.lockstep import Lockstep
from lrfinder.engines.one_by_one import SteppingEngine
from lrfinder.engines.plans import Plan
from lrfinder.engines.randomness import Stream
from lrfinder.engines.skeletons import twin_of
from lrfinder.snapshots import Snapshot, trained_tensors
from lrfinder.stepping import Replica, StopRule
from lrfinder.tasks import Batch, Loader


class LockstepEngine:
    """As many replicas as fit take each step together, where that is faster and gives the same.

    On its first steps it checks and times the shared step against the plain engine's, and goes on
    with the faster; what cannot be run together is run by the plain engine. The losses are those of
    `SteppingEngine` but for rounding, dropout masks included.

    Args:
        replica: As of `SteppingEngine`.
        start: As of `SteppingEngine`.
        loader: As of `SteppingEngine`.
        engine: "auto"; "lockstep" to raise a ValueError where it cannot be; "stepping" for never.
        seed: As of `SteppingEngine`.
        val_batch: As of `SteppingEngine`.
        memory: As of `SteppingEngine`.

    Attributes:
        chooser: Says which engine took the steps, and why.
    """

    def __init__(
        self,
        replica: Replica,
        start: Snapshot,
        loader: Loader,
        *,
        engine: str = "auto",
        seed: int = 0,
        val_batch: Batch = None,
        memory: int = GIB,
    ) -> None:
        self.plain = SteppingEngine(
            replica, start, loader, seed=seed, val_batch=val_batch, memory=memory
        )
        self.group_names = self.plain.group_names
        self.chooser = Chooser(engine, replica.device)
        self._courses = self.plain.courses
        self._orders = SharedOrders(self._courses.orders)
        self._replica = replica
        self._free: list[Replica] = []
        self._capacity = capacity_for(replica)
        self.chooser.consider(replica)

    @property
    def steps(self) -> int:
        """See `Engine`."""
        return self._courses.taken

    def release(self, plans: Iterable[Plan]) -> None:
        """See `Engine`."""
        self._courses.release(plans)

    def advance(
        self, plans: Sequence[Plan], num_steps: int, *, should_stop: StopRule | None = None
    ) -> None:
        """See `Engine`."""
        for plan in plans:
            self._courses.check(plan)
        left = [plan for plan in plans if not plan.ended]
        longest = max((min(num_steps, p.num_steps - len(p.trace)) for p in left), default=0)
        if self.chooser.worth(min(len(left), self._capacity), longest):
            try:
                self._advance_together(left, num_steps, should_stop)
                return
            except Unfit as error:
                self.chooser.refuse(str(error))
        self.plain.advance(left, num_steps, should_stop=should_stop)

    def _advance_together(
        self, plans: Sequence[Plan], num_steps: int, should_stop: StopRule | None
    ) -> None:
        self.plain.at_start()  # of which the copies are made
        playing: dict[Job, Plan] = {}

        def jobs() -> Iterator[Job]:
            for plan in plans:
                if self._free:
                    member = self._free.pop()
                    put_to_start(member, self._replica)
                else:
                    member = copied(self._replica)
                is_there = self._courses.begin(plan, member)
                steps = self._courses.steps(
                    plan,
                    member,
                    num_steps,
                    is_there=is_there,
                    should_stop=should_stop,
                    batches=self._orders,
                )
                job = Job(member, steps, Stream(member.device), is_quiet=True)
                playing[job] = plan
                yield job

        def on_end(job: Job) -> None:
            plan = playing.pop(job)
            if not plan.ended:
                job.stream.put()
                self._courses.keep(plan, job.replica)
            self._free.append(job.replica)

        lockstep = Lockstep(self.chooser, capacity=self._capacity, original=self._replica)
        lockstep.run(
            jobs(), len(plans), num_steps=num_steps, on_end=on_end, after_step=self._orders.forget
        )
        self._capacity = lockstep.capacity


def copied(replica: Replica) -> Replica:
    """A replica with a model and an optimizer of its own, which shares what is not trained.

    Raises:
        Unfit: If the model or the optimizer cannot be copied, or has hooks that know this one, or
            if the copied optimizer is of no parameter of the copied model.
    """
    model, optimizer = replica.model, replica.optimizer
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise Unfit("the optimizer has hooks")
    trained = {id(tensor) for tensor in trained_tensors(model, optimizer)}
    memo: dict[int, Any] = {id(p): p for p in model.parameters() if id(p) not in trained}
    try:
        twin, made = twin_of(model, memo), copy.deepcopy(optimizer, memo)
    except Exception as error:  # whatever a user's own class raises
        raise Unfit(f"it cannot be copied: {error}") from error
    # torch copies the groups and the state alone.
    for name, value in vars(optimizer).items():
        if name not in vars(made) and not callable(value):
            vars(made)[name] = copy.deepcopy(value, memo)
    options = replica.options
    if options.scaler is not None:
        options = replace(options, scaler=copy.deepcopy(options.scaler))
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if not held & {id(p) for p in twin.parameters()}:
        # As a Keras model does, which is built again from its configuration.
        raise Unfit("a copy of the model makes its parameters anew")
    return Replica(twin, made, replica.loss_fn, options)


def put_to_start(member: Replica, start: Replica) -> None:
    """Make a copy what the replica is that it was made of."""
    pairs = zip(
        trained_tensors(member.model, member.optimizer),
        trained_tensors(start.model, start.optimizer),
        strict=True,
    )
    buffers = zip(member.model.buffers(), start.model.buffers(), strict=True)
    with torch.no_grad():
        for own, other in (*pairs, *buffers):
            own.detach().copy_(other)
            own.grad = None
    state = member.optimizer.state
    state.clear()
    for own, other in zip(member.parameters, start.parameters, strict=True):
        if other in start.optimizer.state:
            state[own] = copy.deepcopy(start.optimizer.state[other])
    groups = zip(member.optimizer.param_groups, start.optimizer.param_groups, strict=True)
    for group, options in groups:
        group.update({k: copy.deepcopy(v) for k, v in options.items() if k != "params"})
    for module, twin in zip(member.model.modules(), start.model.modules(), strict=True):
        module.training = twin.training
    scaler, other_scaler = member.options.scaler, start.options.scaler
    if scaler is not None and other_scaler is not None:
        vars(scaler).update(copy.deepcopy(vars(other_scaler)))
