"""Updates: the optimizer step of K replicas, each with its own learning rates and its own state.

SGD, Adam and AdamW of torch are written out for stacked tensors, with a table of learning rates of
shape (K, groups): `native`, `rules`. Other optimizers of torch that work on each element by itself, and in
proportion to the learning rate, step once for all: `affine`. Every other optimizer takes its own
step for each replica: it holds views of the stack, so nothing of it has to be known: `views`.
In any case a replica's optimizer has its state where torch has it, and whoever reads, saves or
steps it need not know that it is in a stack.
"""

from __future__ import annotations

import torch

from lrfinder.engines.stacking import Stack
from lrfinder.engines.updates.affine import AFFINE, Affine
from lrfinder.engines.updates.rules import NATIVE
from lrfinder.engines.updates.views import Update, Views
from lrfinder.schedules.schedulers import mark_stepped
from lrfinder.stepping import Replica

__all__ = ["Update", "make_update"]


def make_update(stack: Stack, start: Replica) -> Update:
    """The fastest way to step the optimizers of replicas as `start`."""
    # A subclass may do anything, so the very class is asked for.
    kind = type(start.optimizer)
    if not _is_plain(start):
        return Views(stack)
    if kind in NATIVE and _is_written_out(start.optimizer):
        return NATIVE[kind](stack)
    return Affine(stack) if kind in AFFINE else Views(stack)


def _is_plain(replica: Replica) -> bool:
    """Whether a step is the optimizer's rule and nothing else, with learning rates that are numbers."""
    optimizer = replica.optimizer
    for group in optimizer.param_groups:
        if any(
            isinstance(value, torch.Tensor) for value in (*group.values(), *group.get("betas", ()))
        ):
            return False
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    hooked = any(hook is not mark_stepped for some in hooks for hook in some.values())
    is_complex = any(parameter.is_complex() for parameter in replica.parameters)
    return not hooked and not is_complex and replica.options.scaler is None


def _is_written_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether nothing is asked of an optimizer of `NATIVE` that is not written here."""
    usual = {"decoupled_weight_decay": type(optimizer) is torch.optim.AdamW}
    usual |= dict.fromkeys(("amsgrad", "maximize", "differentiable", "capturable"), False)
    return not any(
        bool(group[key]) != value
        for group in optimizer.param_groups
        for key, value in usual.items()
        if key in group
    )
