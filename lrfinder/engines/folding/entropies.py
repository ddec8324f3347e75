"""Entropies: the cross entropies of all replicas in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from lrfinder.engines.folding.lifting import AVAILABLE, Stacked, apply
from lrfinder.tasks import LossFn, supervised


def folded_loss(loss_fn: LossFn) -> LossFn:
    """The loss with its cross entropy replaced, where it is torch's very own."""
    if AVAILABLE and type(loss_fn) is supervised:
        criterion = loss_fn.criterion
        if type(criterion) is nn.CrossEntropyLoss and criterion.reduction == "mean":
            return loss_fn if criterion.weight is not None else supervised(_Entropy(criterion))
    return loss_fn


class _Entropy:
    """A CrossEntropyLoss."""

    def __init__(self, criterion: nn.CrossEntropyLoss) -> None:
        self.criterion = criterion

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        if scores.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
            result: Tensor = self.criterion(scores, targets)
            return result
        return apply(self.rule, self.criterion, (scores, targets))  # type: ignore[no-any-return]

    def rule(self, count: int, parts: Sequence[Stacked | None]) -> Stacked:
        """Of all replicas: the mean over the samples that are not ignored."""
        scores, targets = (part.first(count) for part in parts if part is not None)
        # Classes before samples: as a folded linear layer leaves them, and quicker for few classes.
        scores = scores.transpose(1, 2)
        ignored, smoothing = self.criterion.ignore_index, self.criterion.label_smoothing
        # On a GPU a look at the targets would wait for it.
        if targets.device.type == "cpu" and not smoothing and not (targets == ignored).any():
            # The same in half as many operations.
            chosen = functional.log_softmax(scores, 1).gather(1, targets.unsqueeze(1))
            return Stacked(chosen.sum((1, 2)) / -targets.shape[1], 0)
        losses = functional.cross_entropy(
            scores, targets, ignore_index=ignored, label_smoothing=smoothing, reduction="none"
        )
        return Stacked(losses.sum(1) / (targets != ignored).sum(1), 0)
