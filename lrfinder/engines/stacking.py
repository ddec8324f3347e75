"""Stacking: models of one architecture as rows of shared tensors, whose losses are taken in one call.

What no step changes and all replicas have alike stays one tensor, and what is computed of such
tensors alone, as a frozen trunk on a batch that all see, is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lrfinder.engines.calling import Attention, attention_by_parts, call_for_all
from lrfinder.engines.compiling import Compiled
from lrfinder.engines.fitting import (
    Unfit,
    added,
    first_line,
    moved,
    out_of_memory,
    stacked,
)
from lrfinder.engines.folding import folded_loss
from lrfinder.engines.randomness import RandomPerReplica, Stream
from lrfinder.engines.rows import Rows
from lrfinder.engines.skeletons import places_of, put, skeleton_of
from lrfinder.stepping import Replica, autocast, check_loss
from lrfinder.tasks import Batch


class Stack(Rows):
    """Replicas in rows 0 .. n - 1 of stacked tensors, and what they compute together.

    Law: losses[k] = loss_fn(model_k, batch_k) and gradients[p][k] = d losses[k] / d p_k, for all k in
    one call of `torch.func.vmap`.

    Args:
        start: This and what follows: as of `Rows`.
        capacity: Likewise.
        changing: Likewise.
        fold: Whether convolutions work on all replicas' channels side by side; see `folding`.

    Raises:
        Unfit: If the optimizer holds tensors that are no parameters of the model, a parameter has
            hooks, or the model cannot be copied.

    Source: vmap over stacked models: Horace He and Richard Zou, functorch, 2021.
    """

    def __init__(
        self, start: Replica, capacity: int, *, changing: Iterable[str] = (), fold: bool = True
    ) -> None:
        super().__init__(start, capacity, changing=changing)
        model = start.model
        own, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        is_plain = self.options.compile is not None
        self.skeleton = skeleton_of(
            model, set(self.trained), set(self.buffer_names), fold=None if is_plain else fold
        )
        self.loss_fn = start.loss_fn if is_plain else folded_loss(start.loss_fn)
        self._compiled = (
            Compiled(
                self.skeleton, self.loss_fn, [*self.trained, *self.buffer_names], self.options
            )
            if is_plain
            else None
        )
        places = places_of(model, self.skeleton)
        self._places = [places[id(own[name])] for name in self.trained]
        self._first = [found[0] for found in self._places]
        self._buffer_places = [places[id(buffers[name])] for name in self.buffer_names]
        self._versions = [
            (name, b, b._version) for name, b in buffers.items() if name in self._shared
        ]
        self._ones = torch.ones((), device=self.device)  # each loss counts by itself
        self.draws: bool | None = None  # known after the first call
        self._attends: bool | None = None  # likewise
        self._checked = False

    def gradients(
        self,
        parts: Sequence[Sequence[Batch]],
        streams: Sequence[Stream],
        scale: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Losses and gradients of all replicas.

        Args:
            parts: Row -> its batches, whose mean loss counts; as many for each row.
            streams: Row -> where its random numbers come from; moved on.
            scale: Losses -> what is differentiated instead of them, elementwise.

        Returns:
            Losses before the step, detached, shape (n,), and for each trained parameter the
            gradients of shape (n, *shape), or None where the loss does not depend on it.

        Raises:
            Unfit: If torch cannot do it for all at once, with torch's reason. Then all is as before.
        """
        share = 1.0 / len(parts[0])
        total: Tensor | None = None
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        for batches in zip(*parts, strict=True):
            batch, dims = stacked(moved(batches, self.device))
            losses, found = self.gradients_of(batch, dims, streams, share=share, scale=scale)
            gradients = [added(a, b) for a, b in zip(gradients, found, strict=True)]
            total = losses if total is None else total + losses
        assert total is not None
        return total, gradients

    def gradients_of(
        self,
        batch: Batch,
        dims: Any,
        streams: Sequence[Stream],
        *,
        share: float = 1.0,
        scale: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """As `gradients`, of one batch, which counts for a share.

        Args:
            batch: Of all rows, on the device.
            dims: Which of its parts are stacked, as vmap's `in_dims`.
            streams: As of `gradients`.
            share: Factor of the losses.
            scale: As of `gradients`.
        """
        count = len(self.replicas)
        if not self._leaves:
            self._leaves = [stack[:count].detach().requires_grad_() for stack in self.parameters]
        for row in range(count) if self._replaced else ():
            self.take_replaced(row)
        losses = self._losses(batch, dims, streams)
        losses = losses if share == 1.0 else losses * share
        target = losses if scale is None else scale(losses)
        if self._ones.shape != target.shape or self._ones.dtype != target.dtype:
            self._ones = torch.ones_like(target)
        found = torch.autograd.grad(target, self._leaves, self._ones, allow_unused=True)
        return losses.detach(), list(found)

    def put(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Let the skeleton have these, in the order of the stack's own."""
        put(self._places, parameters)
        put(self._buffer_places, buffers)

    def holds(self, buffers: Sequence[Tensor]) -> bool:
        """Whether the skeleton has these buffers still."""
        held = [module._buffers[key] for (module, key), *_ in self._buffer_places]
        return all(own is given for own, given in zip(held, buffers, strict=True))

    @property
    def compiles(self) -> bool:
        """Whether the next call is a compiled one: never the first, which shows what the model does."""
        known = self.draws is False and not self._replaced
        return self._compiled is not None and known and not self._compiled.reason

    @property
    def note(self) -> str:
        """What is to be said about the way in which it computes."""
        if self._compiled is None or self.draws is None:
            return ""
        return self._compiled.note(draws=self.draws, replaces=self.replaces)

    def _losses(self, batch: Batch, dims: Any, streams: Sequence[Stream]) -> Tensor:
        """Losses of one batch for each row, with their graph."""
        buffers = [stack[: len(self.replicas)] for stack in self.buffers]
        before = [buffer.clone() for buffer in buffers]
        states = [stream.state for stream in streams]
        try:
            losses, replaced = self._called(batch, dims, buffers, before, streams)
        except Exception as error:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            for stream, state in zip(streams, states, strict=True):
                stream.state = state
            if out_of_memory(error):
                raise
            raise Unfit(f"torch.func cannot run it: {first_line(error)}") from error
        for index, value in replaced.items():
            self._replaced.add(index)
            buffers[index].copy_(value.detach())
        for name, buffer, version in self._versions:
            if buffer._version != version:
                raise Unfit(f"the buffer {name!r} changed, which it did not in the first step")
        if not losses.requires_grad:
            raise Unfit("the loss needs no gradient")
        return losses

    def _called(
        self,
        batch: Batch,
        dims: Any,
        buffers: list[Tensor],
        before: list[Tensor],
        streams: Sequence[Stream],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        def losses(
            parameters: list[Tensor], buffers: list[Tensor], batch: Batch
        ) -> tuple[Tensor, dict[int, Tensor]]:
            self.put(parameters, buffers)
            with autocast(self.device, self.options.autocast):
                loss = self.loss_fn(self.skeleton, batch)
            if not self._checked:
                check_loss(loss, needs_gradient=False)
                self._checked = True
            for name, given, (module, key) in zip(
                self.trained, parameters, self._first, strict=True
            ):
                if module._parameters.get(key) is not given:
                    raise Unfit(f"the model puts another tensor in the place of {name!r}")
            after = [module._buffers[key] for (module, key), *_ in self._buffer_places]
            new = {i: b for i, (a, b) in enumerate(zip(buffers, after, strict=True)) if a is not b}
            return loss.reshape(()), new  # type: ignore[return-value]

        if self.compiles and self._compiled is not None:
            with attention_by_parts(self._attends):
                found = self._compiled.losses(self._leaves, buffers, batch, dims, before=before)
            if found is not None:
                return found, {}
        is_proven = self.draws is not None
        watch = Attention()
        with (
            RandomPerReplica(streams, self.draws) as randomness,
            attention_by_parts(self._attends),
            nullcontext() if is_proven else watch,
        ):
            result = call_for_all(
                losses,
                self._leaves,
                buffers,
                batch,
                dims,
                randomness=randomness.mode,
                is_proven=is_proven,
            )
        if not is_proven:
            self._attends = watch.seen
        self.draws = randomness.draws
        return result
