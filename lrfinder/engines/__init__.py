"""Engines: take many replicas of one model further, each its own way, all from the same start.

An engine is given plans and nothing else, so what asks for ramps and races does not know how they
are run. The plain engine here lets one model play all replicas in turn; each step is the loop's.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lrfinder.engines.batches import GIB, BatchOrders, derived_seed, num_bytes
from lrfinder.schedules import LRTable
from lrfinder.snapshots import Snapshot, random_state, set_random_state, trained_tensors
from lrfinder.stepping import OnStep, Replica, StopRule, evaluate
from lrfinder.tasks import Batch, Loader, seed_everything
from lrfinder.traces import Trace


class Plan:
    """The way of one replica: its LRs, its batches, and its trace, which says how far it has come.

    Args:
        lrs: Group -> LRs of its steps, shape (num_steps,), finite and >= 0; all groups of the
            engine, in its order.
        order: Number of its batch order, >= 0; plans of one order see the same batches and start
            from the same random states, so that a comparison of them is paired.
        name: What its trace is called.
        val_every: Steps between two evaluations on the engine's validation batch; 0 for none.
    """

    def __init__(
        self,
        lrs: Mapping[str, ArrayLike],
        *,
        order: int = 0,
        name: str = "",
        val_every: int = 0,
    ) -> None:
        self.lrs: dict[str, NDArray[np.float64]] = {
            group: np.asarray(values, dtype=np.float64) for group, values in lrs.items()
        }
        self.num_steps = len(next(iter(self.lrs.values())))
        self.order = order
        self.val_every = val_every
        self.trace = Trace(list(self.lrs), name=name)

    @classmethod
    def constant(
        cls, lrs: Mapping[str, float], num_steps: int, *, order: int = 0, name: str = ""
    ) -> Plan:
        """A plan whose LRs stay as they are."""
        table = {group: np.full(num_steps, lr) for group, lr in lrs.items()}
        return cls(table, order=order, name=name)

    @property
    def ended(self) -> bool:
        """Whether it has taken all its steps, diverged or was stopped."""
        return self.trace.status != "running"


class Engine(Protocol):
    """What takes plans further.

    Attributes:
        group_names: Names of the param groups, in the optimizer's order.
        steps: Optimizer steps taken so far, over all replicas, with those that were taken again.
    """

    group_names: tuple[str, ...]
    steps: int

    def advance(
        self, plans: Sequence[Plan], num_steps: int, *, should_stop: StopRule | None = None
    ) -> None:
        """Take each plan `num_steps` further from where it stands, or to its end.

        A plan begins from the start, which is the same for all. Its trace gets a row for each
        step; the status "completed" at its end, "diverged" at a loss that is not finite, and
        "stopped" with the reason that `should_stop(trace)` gave.
        """

    def release(self, plans: Iterable[Plan]) -> None:
        """Forget where these plans stand: they will not be taken further."""


class SteppingEngine:
    """One model plays all replicas, one after the other. The reference for every other engine.

    A plan starts from the snapshot with random states seeded from (seed, order). Where it stands
    is kept in CPU memory until it is taken further; what does not fit into the budget is trained
    again from the snapshot, which gives the same bits on a device that computes alike each time.

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
        self.steps = 0
        self.orders = BatchOrders(loader, seed=seed, memory=memory)
        self._replica = replica
        self._start = start
        self._seed = seed
        self._val_batch = val_batch
        self._memory = memory
        self._states: dict[int, _State] = {}  # id of a plan -> where it stands
        self._state_bytes = 0

    def advance(
        self, plans: Sequence[Plan], num_steps: int, *, should_stop: StopRule | None = None
    ) -> None:
        """See `Engine`."""
        for plan in plans:
            if plan.trace.group_names != self.group_names:
                raise ValueError(
                    f"A plan must have LRs for the groups {list(self.group_names)}, in this "
                    f"order, but got {list(plan.trace.group_names)}."
                )
            if not plan.ended:
                self._bring_back(plan)
                target = min(len(plan.trace) + num_steps, plan.num_steps)
                self._train(plan, plan.trace, target, should_stop)
                if len(plan.trace) >= plan.num_steps and plan.trace.status == "running":
                    plan.trace.set_status("completed")
                if not plan.ended:
                    self._keep(plan)

    def release(self, plans: Iterable[Plan]) -> None:
        """See `Engine`."""
        for plan in plans:
            state = self._states.pop(id(plan), None)
            self._state_bytes -= 0 if state is None else state.size

    def try_step(self) -> None:
        """Take one step from the start, and leave the gradients to be looked at."""
        plan = Plan.constant(dict.fromkeys(self.group_names, 0.0), 1)
        self.advance([plan], 1)

    def _bring_back(self, plan: Plan) -> None:
        """Make the model what this plan left behind."""
        self._start.restore()
        if not self._replica.model.training:
            self._replica.model.train()
        state = self._states.get(id(plan))
        if state is not None:
            state.load()
            self.release([plan])
            return
        seed_everything(derived_seed(self._seed, plan.order, 1))
        if len(plan.trace):
            again = Trace(plan.trace.group_names)
            self._train(plan, again, len(plan.trace), None)

    def _train(self, plan: Plan, trace: Trace, target: int, should_stop: StopRule | None) -> None:
        replica, begun = self._replica, len(trace)
        skip = begun * replica.options.accumulation
        replica.run(
            self.orders.batches(plan.order, skip=skip),
            trace=trace,
            schedule=LRTable(replica.optimizer, plan.lrs),
            num_steps=target - begun,
            on_step=self._validation(plan, trace) if plan.val_every else None,
            should_stop=should_stop,
        )
        self.steps += len(trace) - begun

    def _validation(self, plan: Plan, trace: Trace) -> OnStep:
        replica = self._replica

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

    def _keep(self, plan: Plan) -> None:
        state = _State(self._replica)
        if self._state_bytes + state.size <= self._memory:
            self._states[id(plan)] = state
            self._state_bytes += state.size


class _State:
    """Where a replica stands, in CPU memory; loaded into a model that was just put to its start."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        model, optimizer = replica.model, replica.optimizer
        self._tensors = [_on_cpu(tensor) for tensor in self._trained()]
        # By name, since a module may have put a new tensor in a buffer's place.
        self._buffers = {name: _on_cpu(buffer) for name, buffer in model.named_buffers()}
        self._optimizer = {p: _moved(value) for p, value in optimizer.state.items()}
        self._groups = [
            {key: _moved(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        scaler = replica.options.scaler
        self._scaler = None if scaler is None else copy.deepcopy(vars(scaler))
        self._random = random_state()
        parts = (self._tensors, self._buffers, list(self._optimizer.values()))
        self.size = sum(num_bytes(part) for part in parts)

    def load(self) -> None:
        optimizer, scaler = self._replica.optimizer, self._replica.options.scaler
        buffers = dict(self._replica.model.named_buffers())
        with torch.no_grad():
            for tensor, value in zip(self._trained(), self._tensors, strict=True):
                tensor.copy_(value)
            for name, value in self._buffers.items():
                buffers[name].copy_(value)
        optimizer.state.clear()
        for parameter, value in self._optimizer.items():
            optimizer.state[parameter] = _moved(value, back=True)
        for group, options in zip(optimizer.param_groups, self._groups, strict=True):
            # LRs are the plan's affair, and one kept in a tensor must stay that tensor.
            group.update({k: _moved(v, back=True) for k, v in options.items() if k != "lr"})
        if scaler is not None and self._scaler is not None:
            vars(scaler).update(copy.deepcopy(self._scaler))
        set_random_state(self._random)

    def _trained(self) -> list[Tensor]:
        return trained_tensors(self._replica.model, self._replica.optimizer)


class _Moved:
    """A tensor's value in CPU memory, and where it came from."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        self.value = _on_cpu(tensor)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _moved(value: Any, *, back: bool = False) -> Any:
    """A copy of a nested value of an optimizer, with its tensors on the CPU, or back again."""
    if isinstance(value, _Moved) and back:
        return value.value.to(value.device, copy=True)
    if isinstance(value, Tensor):
        return _Moved(value)
    if isinstance(value, dict):
        return {key: _moved(part, back=back) for key, part in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_moved(part, back=back) for part in value)
    return copy.deepcopy(value)


def first_batch(loader: Loader, *, seed: int) -> Batch:
    """The first batch of a loader, drawn without a trace in any random state."""
    return next(itertools.islice(BatchOrders(loader, seed=seed).batches(0), 1))
