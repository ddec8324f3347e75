"""Averaging: what a replica's weights come to without the noise that a high LR leaves in them.

A training ends at LRs that have fallen, one of some dozens of steps does not. The mean of the weights
along its way is about where it would be if it had cooled down, at no step's cost.

Source: Polyak and Juditsky, 1992; weights averaged in the place of a falling LR: Sandler et al., 2023,
arXiv 2301.02312.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lrfinder.snapshots import trained_tensors
from lrfinder.stepping import Replica

AVERAGED_LOSS = "averaged/loss"  # the metric of a trace
NUM_POINTS = 8  # at which the weights are looked at, evenly, the last one at the end
NUM_BATCHES = 8  # the next ones of the plan's order, which it has not been trained on


class AveragedWeights:
    """The mean of the trained tensors of a replica at some points of the second half of its way.

    Law: mean = (1/n) sum_i w_{R - i s}, i = 0 .. n - 1, of weights w_t after t steps, with s =
    max(1, floor(R / 16)) steps from one to the next and n = 8, or as many as lie in the last half of R.

    Args:
        replica: Whose.
        after: R, the step at whose end the mean is complete.
        begun: Steps that it had taken when this was made: points up to there were missed.
    """

    def __init__(self, replica: Replica, after: int, *, begun: int) -> None:
        self._tensors = trained_tensors(replica.model, replica.optimizer)
        stride = max(1, after // (2 * NUM_POINTS))
        points = [after - stride * i for i in range(NUM_POINTS)]
        self._points = {point for point in points if point > after - after // 2}
        self.is_whole = all(point > begun for point in self._points)
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def see(self, taken: int) -> None:
        """The replica has taken so many steps."""
        if taken not in self._points:
            return
        if self._sums:
            torch._foreach_add_(self._sums, self._tensors)
        else:
            self._sums = [tensor.detach().clone() for tensor in self._tensors]

    @contextmanager
    def put(self) -> Iterator[None]:
        """Let the replica have the mean in here."""
        with torch.no_grad():
            own = [tensor.detach().clone() for tensor in self._tensors]
            for tensor, total in zip(self._tensors, self._sums, strict=True):
                tensor.copy_(total / len(self._points))
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(self._tensors, own, strict=True):
                    tensor.copy_(value)
