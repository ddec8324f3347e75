"""Stepping: one replica takes optimizer steps, one after the other. The plain engine and the readable reference.

Any model, any `torch.optim.Optimizer`, any batch. `Replica.run` is the one loop of the toolkit:
ramps, races, trainings and trials differ in their schedule and in what they do with the trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrfinder.distributing import loss_of, mean
from lrfinder.groups import check_optimizer, group_names, lr_groups, shared_lrs
from lrfinder.schedules import StepSchedule
from lrfinder.snapshots import random_state, set_random_state
from lrfinder.stepping.checks import check_loss, check_same_model, needs_closure
from lrfinder.stepping.evaluating import Evaluation, Metrics, autocast, evaluate
from lrfinder.tasks import Batch, LossFn, StepOptions, move_to
from lrfinder.traces import Trace

__all__ = [
    "Evaluation",
    "Metrics",
    "OnStep",
    "Replica",
    "Request",
    "Steps",
    "StopRule",
    "autocast",
    "check_loss",
    "evaluate",
    "take_alone",
]

OnStep = Callable[[int, Tensor], None]
StopRule = Callable[[Trace], str | None]
# A training as a coroutine: it gives the batches of each optimizer step, and is sent the loss; or
# asks to be evaluated, and is sent the values.
Request = list[Batch] | Evaluation
Steps = Generator[Request, Any, None]


class Replica:
    """One copy of a model in training.

    Args:
        model: Any module; its train/eval flags are left as they are.
        optimizer: Any torch optimizer of its parameters, also those that need a closure (LBFGS).
        loss_fn: `loss_fn(model, batch)` -> scalar tensor that needs a gradient.
        options: Accumulation, clipping, autocast and scaler.

    Raises:
        ValueError: If the optimizer has no parameters, two groups share a name or a parameter, an
            LR is negative or not finite, or none of its parameters belongs to the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFn,
        options: StepOptions = StepOptions(),
    ) -> None:
        given: Any = model  # which may be anything, whatever its annotation says
        if not isinstance(given, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module, but got {type(given).__name__}.")
        check_optimizer(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.options = options
        self.group_names = group_names(optimizer)
        self.lr_groups = lr_groups(optimizer)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.needs_closure = needs_closure(optimizer)
        if self.needs_closure and options.scaler is not None:
            raise ValueError(
                "A GradScaler takes no closure, which must be given to "
                f"{type(optimizer).__name__}. Train it without a scaler."
            )
        check_same_model(model, self.parameters)
        self.checked_loss = False
        # Made here, where processes that train together take over the first one's weights.
        self._loss = loss_of(model, loss_fn)

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Take one optimizer step on the mean gradient of the batches.

        Law: g = (1/A) sum_a grad loss(model, batch_a), clipped to a 2-norm of `clip_norm`; one
        `optimizer.step()`.

        Returns:
            The mean loss before the step, detached, a scalar on the model's device. Non-finite
            losses are returned as they are.
        """
        if self.needs_closure:
            # The optimizer asks for the loss as often as it likes; the first answer is the loss
            # before the step.
            losses: list[Tensor] = []

            def closure() -> Tensor:
                losses.append(self.backward(batches))
                self._clip()
                return losses[-1]

            # torch types the closure's result as float, and its own optimizers take a tensor.
            self.optimizer.step(closure)  # type: ignore[arg-type]
            return losses[0]
        loss = self.backward(batches)
        self.update()
        return loss

    def answer(self, request: Request) -> Any:
        """What a training is sent that asks for a step, or to be evaluated."""
        if not isinstance(request, Evaluation):
            return self.step(request)
        if request.midway:
            with _unchanged(self.model):
                return self._evaluate(request)
        return self._evaluate(request)

    def _evaluate(self, request: Evaluation) -> dict[str, float]:
        return evaluate(
            self.model,
            self.loss_fn,
            request.loader,
            metrics=request.metrics,
            autocast_dtype=self.options.autocast,
            midway=request.midway,
        )

    def update(self) -> None:
        """Clip the gradients that are there, and take the optimizer's step with them."""
        scaler = self.options.scaler
        if scaler is None:
            self._clip()
            self.optimizer.step()
            return
        if self.options.clip_norm is not None:
            scaler.unscale_(self.optimizer)
            self._clip()
        scaler.step(self.optimizer)
        scaler.update()

    def run(
        self,
        batches: Iterable[Batch],
        *,
        trace: Trace,
        schedule: StepSchedule | None = None,
        num_steps: int | None = None,
        on_step: OnStep | None = None,
        should_stop: StopRule | None = None,
    ) -> None:
        """Take the steps of `steps`, each when it is asked for."""
        take_alone(
            self.steps(
                batches,
                trace=trace,
                schedule=schedule,
                num_steps=num_steps,
                on_step=on_step,
                should_stop=should_stop,
            ),
            self.answer,
        )

    def steps(
        self,
        batches: Iterable[Batch],
        *,
        trace: Trace,
        schedule: StepSchedule | None = None,
        num_steps: int | None = None,
        on_step: OnStep | None = None,
        should_stop: StopRule | None = None,
    ) -> Steps:
        """Ask for steps until the batches end, `num_steps` are taken, or the loss is not finite. The loop.

        A coroutine: whoever drives it takes each optimizer step that it asks for, alone (`run`) or
        together with other replicas, and sends it the loss.

        A loss that is not finite sets the trace's status to "diverged"; on an accelerator it is
        seen up to `lrfinder.traces.BLOCK` steps late, since losses are not waited for.

        Args:
            batches: The last ones are used too where they are fewer than `accumulation`.
            trace: Rows are appended to it; its length is the number of the next step.
            schedule: Sets the LRs before each step, or moves on after it; None leaves the LRs as
                they are.
            num_steps: The most steps to take here, >= 0; None for as many as there are batches.
            on_step: Called after each step with its number and loss, while the optimizer still
                holds the LRs that the step used.
            should_stop: Called after each step with the trace; a reason in words ends the run with
                status "stopped". It should look at `trace.settled_losses`, which costs no wait.

        Yields:
            The batches of one optimizer step, >= 1 of them; to be sent the loss before the step,
            as `step` returns it.
        """
        for parts in _take(batches, self.options.accumulation, num_steps):
            step = len(trace)
            if schedule is not None:
                schedule.before_step(step)
            lrs = [group["lr"] for group in self.optimizer.param_groups]
            if len(self.group_names) < len(lrs):
                lrs = shared_lrs(self.optimizer.param_groups, self.lr_groups)
            loss = yield parts
            trace.append(lrs, loss)
            if on_step is not None:
                on_step(step, loss)
            if trace.settled_diverged_at is not None:
                break
            if should_stop is not None and (reason := should_stop(trace)) is not None:
                trace.set_status("stopped", reason)
                break
            if schedule is not None:
                schedule.after_step()
        if trace.diverged_at is not None:
            trace.set_status("diverged", f"The loss was not finite at step {trace.diverged_at}.")

    def backward(self, batches: Sequence[Batch]) -> Tensor:
        """Leave the gradients of the mean loss of the batches, scaled by the scaler; returns that loss, detached.

        Both are means over the processes that train the model together, where there are several.
        """
        self.optimizer.zero_grad(set_to_none=True)
        share = 1.0 / len(batches)
        total: Tensor | None = None
        for batch in batches:
            with autocast(self.device, self.options.autocast):
                loss = self._loss(move_to(batch, self.device))
            if not self.checked_loss:
                check_loss(loss)
                self.checked_loss = True
            if share != 1.0:
                loss = loss * share
            scaled: Any = loss if self.options.scaler is None else self.options.scaler.scale(loss)
            scaled.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None  # `run` gives at least one batch
        return mean(total)

    def _clip(self) -> None:
        if self.options.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers and random states are as before after this."""
    state = random_state()
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        buffers = dict(model.named_buffers())
        with torch.no_grad():
            for name, value in kept.items():
                buffers[name].copy_(value)
        set_random_state(state)


def take_alone(
    steps: Steps, answer: Callable[[Request], Any], request: Request | None = None
) -> None:
    """Take the steps that a coroutine asks for, until it ends. What `answer` raises is raised in it.

    Args:
        steps: Asks for them.
        answer: Takes one, and says what came of it.
        request: What it asks for now; None where it has not begun.
    """
    try:
        if request is None:
            request = next(steps)
        while True:
            try:
                answered = answer(request)
            except BaseException as error:
                request = steps.throw(error)
            else:
                request = steps.send(answered)
    except StopIteration:
        return


def _take(
    batches: Iterable[Batch], accumulation: int, num_steps: int | None
) -> Iterator[list[Batch]]:
    """Lists of `accumulation` batches, `num_steps` of them at most; never draws a batch that it does not use."""
    iterator = iter(batches)
    taken = 0
    if accumulation == 1:  # the same as below, in less time
        for batch in itertools.islice(iterator, num_steps):
            yield [batch]
        return
    while num_steps is None or taken < num_steps:
        parts = [batch for _, batch in zip(range(accumulation), iterator, strict=False)]
        if not parts:
            return
        yield parts
        taken += 1
