"""Rows: replicas whose tensors are rows of shared ones.

A replica that joins keeps its model and its optimizer: their tensors become views of row k of the
stack, so whatever looks at them (evaluation, a checkpoint, a scheduler) sees the row.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from lrfinder.engines.fitting import check_kind, kind_of
from lrfinder.engines.skeletons import rows_like, trained_names
from lrfinder.stepping import Replica


class Rows:
    """Replicas in rows 0 .. n - 1 of tensors of shape (capacity, *shape).

    Args:
        start: A replica of the kind that will join. Its frozen parameters and the buffers that are
            not `changing` are shared by all rows, and must not change.
        capacity: Rows, >= 1.
        changing: Names of the buffers that a step changes.

    Raises:
        Unfit: If the optimizer holds tensors that are no parameters of the model, or a parameter has
            hooks.
    """

    def __init__(self, start: Replica, capacity: int, *, changing: Iterable[str] = ()) -> None:
        changing = set(changing)
        self.capacity = capacity
        self.replicas: list[Replica] = []
        self._held: dict[int, list[nn.Parameter]] = {}  # id of a replica -> its trained parameters
        self.trained = trained_names(start)
        self.options = start.options
        self.device = start.device
        own = dict(start.model.named_parameters())
        buffers = dict(start.model.named_buffers())
        self._kind = kind_of(start)
        self._shared: dict[str, Tensor] = {
            name: tensor
            for name, tensor in (own | buffers).items()
            if name not in self.trained and name not in changing
        }
        self.buffer_names = [name for name in buffers if name in changing]
        self.parameters = [rows_like(own[name], capacity) for name in self.trained]
        self.buffers = [rows_like(buffers[name], capacity) for name in self.buffer_names]
        self._replaced: set[int] = set()  # buffers in whose place the model puts other tensors
        self._leaves: list[Tensor] = []  # the rows in use of the parameters, once they are needed

    def add(self, replica: Replica) -> None:
        """Take a replica in, as it stands: its tensors become views of the next row.

        Raises:
            Unfit: If it is of another kind than the start, or its shared tensors differ.
        """
        self._check_same_kind(replica)
        row = len(self.replicas)
        self.replicas.append(replica)
        own = dict(replica.model.named_parameters())
        self._held[id(replica)] = [own[name] for name in self.trained]
        for stack, tensor in zip(self._stacks(), self._tensors(replica), strict=True):
            stack[row].copy_(tensor)
            tensor.data = stack[row]
        self._leaves = []

    def remove(self, replica: Replica) -> tuple[int, int]:
        """Let a replica go with what it has become; the last row moves to its place.

        Returns:
            The row that it had, and the row that moved there.
        """
        row, last = self.row(replica), len(self.replicas) - 1
        self.take_replaced(row)
        for tensor in self._tensors(replica):
            tensor.data = tensor.data.clone()
        del self._held[id(replica)]
        moved = self.replicas.pop()
        if row != last:
            self.replicas[row] = moved
            self.take_replaced(last, moved)
            for stack, tensor in zip(self._stacks(), self._tensors(moved), strict=True):
                stack[row].copy_(stack[last])
                tensor.data = stack[row]
        self._leaves = []
        return row, last

    def trained_of(self, replica: Replica) -> list[nn.Parameter]:
        """The trained parameters of a replica that is in, in the order of `trained`."""
        return self._held[id(replica)]

    def row(self, replica: Replica) -> int:
        """Where a replica is."""
        return next(k for k, other in enumerate(self.replicas) if other is replica)

    @property
    def replaces(self) -> bool:
        """Whether a model was seen to put another tensor in a buffer's place."""
        return bool(self._replaced)

    def take_replaced(self, row: int, replica: Replica | None = None) -> None:
        """Bring home buffers in whose place the replica's own model has put others, as an evaluation may."""
        buffers = self._buffers_of(replica or self.replicas[row]) if self._replaced else []
        for index in self._replaced:
            buffer, home = buffers[index], self.buffers[index][row]
            if buffer.data_ptr() != home.data_ptr():
                home.copy_(buffer)
                buffer.data = home

    def _stacks(self) -> list[Tensor]:
        return [*self.parameters, *self.buffers]

    def _tensors(self, replica: Replica) -> list[Tensor]:
        return [*self._held[id(replica)], *self._buffers_of(replica)]

    def _buffers_of(self, replica: Replica) -> list[Tensor]:
        buffers = dict(replica.model.named_buffers()) if self.buffer_names else {}
        return [buffers[name] for name in self.buffer_names]

    def _check_same_kind(self, replica: Replica) -> None:
        if len(self.replicas) >= self.capacity:
            raise ValueError(
                f"A stack must hold at most {self.capacity} replicas, but got one more."
            )
        check_kind(replica, self._kind, self._shared)
