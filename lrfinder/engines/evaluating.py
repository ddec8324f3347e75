"""Evaluating: replicas of a stack whose epochs end at once, on the same batches in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from lrfinder.engines.calling import attention_by_parts, loops_refused
from lrfinder.engines.checking import tolerance
from lrfinder.engines.fitting import Unfit, alike, first_line, stacked
from lrfinder.engines.stacking import Stack
from lrfinder.stepping import Evaluation, Replica, autocast
from lrfinder.stepping.evaluating import eval_mode, midway_mode
from lrfinder.tasks import Batch, batch_size, move_to
from lrfinder.tasks.losses import evaluated

Functions = Mapping[str, Callable[[nn.Module, Batch], Tensor]]

SLOW = 1.05  # times what they take one after the other, with which it is not worth while


class Evaluator:
    """Evaluates replicas together, as `lrfinder.stepping.evaluate` does each, until that fails.

    The first time it is compared with the plain way, for one replica, and timed.

    Attributes:
        reason: Why replicas are evaluated one after the other; empty while they are not.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._proven = False

    def values(
        self, stack: Stack, replicas: Sequence[Replica], requests: Sequence[Evaluation]
    ) -> list[dict[str, float]] | None:
        """Values of each replica, or None where each is to be evaluated by itself.

        Args:
            stack: What the replicas are in.
            replicas: Those that ask, >= 2.
            requests: Of each.
        """
        if self.reason:
            return None
        try:
            return self._checked(stack, replicas, requests)
        except Exception as error:  # the plain way meets it too, if it is the user's own
            self.reason = f"they are evaluated one after the other: {first_line(error)}"
            return None

    def _checked(
        self, stack: Stack, replicas: Sequence[Replica], requests: Sequence[Evaluation]
    ) -> list[dict[str, float]]:
        rows = [stack.row(replica) for replica in replicas]
        found = together(stack, rows, requests)
        if self._proven:
            return found
        began = time.perf_counter()
        together(stack, rows, requests)  # now that all is ready for it
        between = time.perf_counter()
        own = replicas[0].answer(requests[0])
        first = time.perf_counter() - between
        replicas[0].answer(requests[0])
        alone = min(first, time.perf_counter() - between - first)
        limit = tolerance(replicas[0])
        for name, value in own.items():
            if not abs(value - found[0][name]) <= limit * (1 + abs(value)) and value == value:
                raise Unfit(f"{name} was {value:.9g} alone and {found[0][name]:.9g} together")
        if between - began > SLOW * alone * len(rows):
            raise Unfit("it took longer together")
        self._proven = True
        return found


def together(
    stack: Stack, rows: Sequence[int], requests: Sequence[Evaluation]
) -> list[dict[str, float]]:
    """Values of some rows of a stack.

    Law: as of `evaluate`, for all rows in one call of `torch.func.vmap` for each batch.

    Raises:
        Unfit: If their metrics or batches are not alike, or an evaluation changes a buffer.
    """
    metrics = requests[0].metrics or {}
    if any(dict(request.metrics or {}) != dict(metrics) for request in requests[1:]):
        raise Unfit("their metrics are not the same")
    midway = requests[0].midway
    if any(request.midway != midway for request in requests[1:]):
        raise Unfit("some are looks midway and some are not")
    functions: Functions = {"loss": stack.loss_fn, **metrics}
    index = torch.tensor(rows, device=stack.device)
    parameters = [tensor.index_select(0, index) for tensor in stack.parameters]
    buffers = [tensor.index_select(0, index) for tensor in stack.buffers]
    kept = [buffer.clone() for buffer in buffers]
    sums: list[Any] = [0.0] * len(functions)
    count = 0
    mode = midway_mode if midway else eval_mode
    with mode(stack.skeleton), torch.no_grad(), _by_parts():
        for batches in _zipped(requests):
            moved = [move_to(batch, stack.device) for batch in batches]
            size = batch_size(moved[0])
            count += size
            batch, dims = stacked(moved)
            call = vmap(_caller(stack, functions), in_dims=(0, 0, dims), randomness="error")
            for number, value in enumerate(call(parameters, buffers, batch)):
                sums[number] = sums[number] + value.detach() * size
    if not midway and not all(map(torch.equal, buffers, kept)):
        raise Unfit("an evaluation changes a buffer")
    if count == 0:
        raise ValueError("The validation loader must give at least one batch, but it is empty.")
    table = torch.stack([total.double() for total in sums]).cpu() / count
    return [
        {f"val/{name}": value for name, value in zip(functions, column, strict=True)}
        for column in table.T.tolist()
    ]


def _caller(stack: Stack, functions: Functions) -> Callable[..., list[Tensor]]:
    def call(parameters: list[Tensor], buffers: list[Tensor], batch: Batch) -> list[Tensor]:
        stack.put(parameters, buffers)
        with autocast(stack.device, stack.options.autocast):
            found = evaluated(functions.values(), stack.skeleton, batch)
            values = [torch.as_tensor(value) for value in found]
        if not stack.holds(buffers):
            raise Unfit("an evaluation puts another tensor in a buffer's place")
        return values

    return call


def _zipped(requests: Sequence[Evaluation]) -> Iterator[list[Batch]]:
    """The batches of all requests, one of each at a time."""
    try:
        for batches in zip(*(request.loader for request in requests), strict=True):
            if not alike(batches):
                raise Unfit("their validation batches are not alike")
            yield list(batches)
    except ValueError as error:
        raise Unfit("their validation sets are of different lengths") from error


@contextmanager
def _by_parts() -> Iterator[None]:
    """In here attention is computed in a way that vmap has rules for, and a loop over replicas is an error."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with attention_by_parts(None), loops_refused():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
