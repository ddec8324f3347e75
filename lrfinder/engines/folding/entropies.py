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
        losses = functional.cross_entropy(
            scores.transpose(1, 2),
            targets,
            ignore_index=self.criterion.ignore_index,
            label_smoothing=self.criterion.label_smoothing,
            reduction="none",
        )
        counted = (targets != self.criterion.ignore_index).sum(1)
        return Stacked(losses.sum(1) / counted, 0)
