"""Losses: the loss and the accuracy of `(inputs, targets)` batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from lrfinder.tasks.placing import Batch


class supervised:  # noqa: N801 - reads as a function: loss_fn = supervised(nn.CrossEntropyLoss())
    """The loss of `(inputs, targets)` batches: criterion(model(inputs), targets).

    Args:
        criterion: Takes outputs and targets and returns a scalar, as `nn.CrossEntropyLoss()` does
            (a mean over the samples of the batch).

    Example:
        >>> import torch
        >>> loss_fn = supervised(nn.MSELoss())
        >>> float(loss_fn(nn.Identity(), (torch.zeros(4), torch.ones(4))))
        1.0
    """

    def __init__(self, criterion: Callable[[Any, Any], Tensor]) -> None:
        self.criterion = criterion

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of one batch, a scalar tensor."""
        inputs, targets = _pair(batch)
        return self.criterion(model(inputs), targets)

    def __repr__(self) -> str:
        """The criterion in words."""
        return f"supervised({self.criterion!r})"


def accuracy(model: nn.Module, batch: Batch) -> Tensor:
    """Share of samples whose largest output is the target: mean(argmax(model(inputs), dim=1) == targets), in [0, 1].

    Args:
        model: Gives scores of shape (N, C).
        batch: `(inputs, targets)`, targets of shape (N,) with class indices.
    """
    inputs, targets = _pair(batch)
    return _accuracy(model(inputs), targets)


def evaluated(
    functions: Iterable[Callable[[nn.Module, Batch], Any]], model: nn.Module, batch: Batch
) -> list[Any]:
    """What each function `(model, batch) -> value` gives, in eval mode and without gradients.

    `supervised` with a criterion of torch's and `accuracy` share one forward pass: neither changes
    the outputs.

    Example:
        >>> import torch
        >>> calls: list[int] = []
        >>> model = nn.Linear(2, 3)
        >>> _ = model.register_forward_hook(lambda *args: calls.append(1))
        >>> batch = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
        >>> values = evaluated([supervised(nn.CrossEntropyLoss()), accuracy], model, batch)
        >>> len(values), len(calls)
        (2, 1)
    """
    listed = [(function, _of_outputs(function)) for function in functions]
    if sum(of_outputs is not None for _, of_outputs in listed) < 2:
        return [function(model, batch) for function, _ in listed]
    inputs, targets = _pair(batch)
    outputs = model(inputs)
    return [
        function(model, batch) if of_outputs is None else of_outputs(outputs, targets)
        for function, of_outputs in listed
    ]


def _of_outputs(function: Any) -> Callable[[Any, Any], Tensor] | None:
    """A function `(outputs, targets) -> value` that leaves the outputs alone; None where it is not known to."""
    if function is accuracy:
        return _accuracy
    if type(function) is supervised:
        criterion = function.criterion
        is_known = type(criterion).__module__.partition(".")[0] in ("torch", "lrfinder")
        return criterion if is_known else None
    return None


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    # As `argmax`, which is several times slower on the outputs of many replicas as they lie.
    correct: Tensor = outputs.max(dim=1).indices == targets
    return correct.float().mean()


def _pair(batch: Batch) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            "`supervised` and `accuracy` take batches of the form (inputs, targets), but got "
            f"{type(batch).__name__}. For other batches give a function loss_fn(model, batch) of your own."
        )
    return batch[0], batch[1]
