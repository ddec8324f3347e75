"""Courses: plans as trainings that ask for their steps, and where each of them stands."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from lrfinder.engines.averaging import AVERAGED_LOSS, NUM_BATCHES, AveragedWeights
from lrfinder.engines.batches import BatchOrders, derived_seed
from lrfinder.engines.plans import Plan
from lrfinder.engines.states import State
from lrfinder.schedules import LRTable
from lrfinder.snapshots import random_state, set_random_state
from lrfinder.stepping import Evaluation, OnStep, Replica, Steps, StopRule, evaluate
from lrfinder.tasks import Batch, Loader, seed_everything
from lrfinder.traces import Trace


class Courses:
    """What all engines share: the batches of each order, and where plans stand.

    Where a plan stands is kept in CPU memory until it is taken further; what does not fit into the
    budget is trained again from the start, which gives the same bits on a device that computes
    alike each time.

    Args:
        group_names: Groups that each plan must have LRs for.
        loader: Gives the batches.
        seed: Of the batch orders and of each plan's random states.
        val_batch: What plans with `val_every` are evaluated on.
        memory: Bytes for the states of plans, and as much again for batches.

    Attributes:
        taken: Optimizer steps taken so far, with those that were taken again.
    """

    def __init__(
        self,
        group_names: Sequence[str],
        loader: Loader,
        *,
        seed: int,
        val_batch: Batch,
        memory: int,
    ) -> None:
        self.group_names = tuple(group_names)
        self.orders = BatchOrders(loader, seed=seed, memory=memory)
        self.taken = 0
        self.state_bytes = 0
        self.states: dict[int, State] = {}  # id of a plan -> where it stands
        self._seed = seed
        self._val_batch = val_batch
        self._memory = memory

    def check(self, plan: Plan) -> None:
        """Raise a ValueError where a plan is of other groups."""
        if plan.trace.group_names != self.group_names:
            raise ValueError(
                f"A plan must have LRs for the groups {list(self.group_names)}, in this "
                f"order, but got {list(plan.trace.group_names)}."
            )

    def begin(self, plan: Plan, replica: Replica) -> bool:
        """Make a replica that is at the start, and the process's random states, what the plan left behind.

        Returns:
            Whether it is; otherwise its steps are to be taken again.
        """
        state = self.states.get(id(plan))
        if state is None:
            seed_everything(derived_seed(self._seed, plan.order, 1))
            return not len(plan.trace)
        state.load(replica)
        self.release([plan])
        return True

    def steps(
        self,
        plan: Plan,
        replica: Replica,
        num_steps: int,
        *,
        is_there: bool,
        should_stop: StopRule | None = None,
        batches: BatchOrders | None = None,
    ) -> Steps:
        """Ask for the steps that take a plan `num_steps` further, or to its end.

        Args:
            plan: It has not ended.
            replica: What `begin` was given.
            num_steps: >= 0.
            is_there: What `begin` returned.
            should_stop: As in `Replica.run`.
            batches: Where the batches are drawn from in the place of `orders`.
        """
        target = min(len(plan.trace) + num_steps, plan.num_steps)
        if not is_there:
            again = Trace(self.group_names)
            yield from self._steps(plan, replica, again, len(plan.trace), None, batches)
        yield from self._steps(plan, replica, plan.trace, target, should_stop, batches)
        if len(plan.trace) >= plan.num_steps and plan.trace.status == "running":
            plan.trace.set_status("completed")

    def _steps(
        self,
        plan: Plan,
        replica: Replica,
        trace: Trace,
        target: int,
        should_stop: StopRule | None,
        batches: BatchOrders | None,
    ) -> Steps:
        begun = len(trace)
        orders = batches or self.orders
        weights = self._averaged(plan, replica, target, begun=begun)
        yield from replica.steps(
            orders.batches(plan.order, skip=begun * replica.options.accumulation),
            trace=trace,
            schedule=LRTable(replica.optimizer, plan.lrs),
            num_steps=target - begun,
            on_step=self._on_step(plan, replica, trace, weights),
            should_stop=should_stop,
        )
        self.taken += len(trace) - begun
        if weights is not None and trace is plan.trace and trace.status == "running":
            skip = target * replica.options.accumulation
            upcoming = _Upcoming(orders, plan.order, skip)
            with weights.put():
                values = yield Evaluation(upcoming, midway=True)
            trace.add_metric(AVERAGED_LOSS, target - 1, values["val/loss"])

    def _averaged(
        self, plan: Plan, replica: Replica, target: int, *, begun: int
    ) -> AveragedWeights | None:
        """The mean of the weights up to a step after which it is to be looked at, where it can be."""
        if target not in plan.averaged_after:
            return None
        weights = AveragedWeights(replica, target, begun=begun)
        return weights if weights.is_whole else None

    def _on_step(
        self, plan: Plan, replica: Replica, trace: Trace, weights: AveragedWeights | None
    ) -> OnStep | None:
        """What is done after each step."""
        validate = self._validation(plan, replica, trace) if plan.val_every else None
        if weights is None:
            return validate

        def on_step(step: int, loss: Tensor) -> None:
            if validate is not None:
                validate(step, loss)
            weights.see(step + 1)

        return on_step

    def _validation(self, plan: Plan, replica: Replica, trace: Trace) -> OnStep:
        def validate(step: int, loss: Tensor) -> None:
            if step % plan.val_every == 0:
                # What the loss function draws must not be missing in the training.
                state = random_state()
                dtype = replica.options.autocast
                values = evaluate(
                    replica.model, replica.loss_fn, [self._val_batch], autocast_dtype=dtype
                )
                set_random_state(state)
                trace.add_metric("val/loss", step, values["val/loss"])

        return validate

    def keep(self, plan: Plan, replica: Replica) -> None:
        """Remember where a plan stands that was played by this replica, if there is room."""
        state = State(replica)
        if self.state_bytes + state.size <= self._memory:
            self.states[id(plan)] = state
            self.state_bytes += state.size

    def release(self, plans: Iterable[Plan]) -> None:
        """Forget where these plans stand."""
        for plan in plans:
            state = self.states.pop(id(plan), None)
            self.state_bytes -= 0 if state is None else state.size


@dataclass(frozen=True)
class _Upcoming:
    """The next batches of an order, to be iterated as often as wanted."""

    orders: BatchOrders
    order: int
    skip: int

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(self.orders.batches(self.order, skip=self.skip), NUM_BATCHES)


class SharedOrders(BatchOrders):
    """Batch orders of which all that ask for one batch between two calls of `forget` get the very same.

    So it is drawn once, and whoever stacks batches sees by identity that there is nothing to stack.

    Args:
        orders: Where the batches come from.
    """

    def __init__(self, orders: BatchOrders) -> None:
        self._orders = orders
        self._given: dict[tuple[int, int], Batch] = {}
        self._iterators: dict[int, tuple[int, Iterator[Batch]]] = {}

    def batches(self, order: int, *, skip: int = 0) -> Iterator[Batch]:
        """As of `BatchOrders`."""
        index = skip
        while True:
            yield self._batch(order, index)
            index += 1

    def forget(self) -> None:
        """A step was taken: no one asks for its batches again."""
        self._given.clear()

    def _batch(self, order: int, index: int) -> Batch:
        if (order, index) not in self._given:
            at, iterator = self._iterators.get(order, (-1, iter(())))
            if at != index:
                iterator = self._orders.batches(order, skip=index)
            self._given[order, index] = next(iterator)
            self._iterators[order] = (index + 1, iterator)
        return self._given[order, index]
