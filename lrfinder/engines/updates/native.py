"""Native: what optimizers have in common that are written out for stacked tensors."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrfinder.engines.stacking import Stack
from lrfinder.engines.updates.views import Gradients, clip, column_of, shaped
from lrfinder.stepping import Replica


class Native:
    """An optimizer written out for stacked tensors.

    Its state lies in stacks too, one for each kind and parameter; the replicas' optimizers hold
    views of them once there is something in them. What no step changes (columns of learning rates
    that stay as they are, slices of the stacks) is kept from one step to the next.
    """

    states: tuple[str, ...] = ()  # as torch's optimizer names them
    options: tuple[str, ...] = ()  # of a group, likewise
    keeps_counts = True  # whether torch's optimizer keeps the number of its steps

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        shape = (len(stack.parameters), stack.capacity)
        self._rows = {
            kind: [torch.zeros_like(p) for p in stack.parameters] for kind in self.states
        }
        # Steps that each parameter of each row has taken: as numbers, and as torch keeps them.
        self._taken = np.zeros(shape, dtype=np.int64)
        self._counts = torch.zeros(shape, device=stack.device)
        self._shown = np.zeros(shape, dtype=bool)  # whether the optimizer of a row has its state
        self._all_shown = False  # whether those of all rows in use have all of it
        self._since = 0  # steps of all parameters of all rows that `_taken` does not have yet
        self._group_of: list[int] = []
        self._picked = itemgetter(*self.options)
        self._known: list[tuple[Any, ...]] = []  # the options of all groups of all rows
        self._values: list[dict[str, Any]] = []  # group -> option -> its value in each row
        self._columns: list[dict[str, Any]] = []  # group -> option -> number or column
        self._shaped: dict[tuple[Any, ...], Any] = {}  # of these columns
        self._corrections: dict[tuple[Any, ...], Any] = {}  # of this step
        self._resolved: list[Any] = []  # what `_resolve` gave for each parameter
        self._is_on_device = False
        self.version = 0  # grows where an option changes other than in place
        self._slices: list[tuple[Tensor, ...]] = []  # the rows in use of parameters and states

    # -- who is in --------------------------------------------------------------------------------

    def add(self, replica: Replica) -> None:
        """See `Update`."""
        groups = replica.optimizer.param_groups
        where = {id(p): g for g, group in enumerate(groups) for p in group["params"]}
        self._group_of = [where[id(p)] for p in self._stack.trained_of(replica)]
        self._slices = []
        self._settle(len(self._stack.replicas) - 1)
        self.load(len(self._stack.replicas) - 1)

    def load(self, row: int) -> None:
        """See `Update`."""
        replica = self._stack.replicas[row]
        self._settle(len(self._stack.replicas))
        self._all_shown = False
        for index, parameter in enumerate(self._stack.trained_of(replica)):
            state = replica.optimizer.state.get(parameter) or {}
            begun = all(state.get(kind) is not None for kind in self.states)
            taken = int(state.get("step", 1)) if begun else 0
            self._taken[index, row] = taken
            self._counts[index, row] = taken
            self._shown[index, row] = begun
            for kind in self.states:
                home = self._rows[kind][index][row]
                if not begun:
                    home.zero_()
                elif state[kind].data_ptr() != home.data_ptr():
                    home.copy_(state[kind])
            if begun:
                self._show(replica, index, row)

    def remove(self, replica: Replica, row: int, last: int) -> None:
        """See `Update`."""
        self._slices = []
        self._settle(last + 1)
        for state in replica.optimizer.state.values():
            for kind, value in state.items():
                if isinstance(value, Tensor):
                    # As torch has it: the count of steps is on the CPU.
                    state[kind] = value.cpu().clone() if kind == "step" else value.clone()
        if row == last:
            return
        self._taken[:, row] = self._taken[:, last]
        self._shown[:, row] = self._shown[:, last]
        self._counts[:, row] = self._counts[:, last]
        for index in range(len(self._stack.parameters)):
            for kind in self.states:
                self._rows[kind][index][row].copy_(self._rows[kind][index][last])
            if self._shown[index, row]:
                self._show(self._stack.replicas[row], index, row)

    def _show(self, replica: Replica, index: int, row: int) -> None:
        """Let the replica's optimizer see its state."""
        parameter = self._stack.trained_of(replica)[index]
        state = {kind: self._rows[kind][index][row] for kind in self.states}
        replica.optimizer.state[parameter] = self._as_torch(state, self._counts[index, row])

    def _as_torch(self, state: dict[str, Any], count: Tensor) -> dict[str, Any]:
        return state

    # -- on a device alone ------------------------------------------------------------------------

    def is_capturable(self) -> bool:
        """Whether a step can be told by what lies on the device."""
        return True

    def keep_on_device(self) -> None:
        """From here on learning rates are a table, also where all are alike, and steps are counted on the device."""
        self._is_on_device = True
        self._known = []
        for values in self._values:
            values.clear()

    @property
    def is_shown(self) -> bool:
        """Whether the replicas' optimizers have their states, which a first step gives them."""
        return self._all_shown

    def tensors(self) -> list[Tensor]:
        """What a step changes beside the parameters."""
        return [self._counts, *(rows for kind in self._rows.values() for rows in kind)]

    def on_host(self) -> tuple[int, NDArray[np.int64]]:
        """What a step changes on the host."""
        return self._since, self._taken.copy()

    def put_on_host(self, kept: tuple[int, NDArray[np.int64]]) -> None:
        """Put back what `on_host` returned."""
        self._since, self._taken[:] = kept
        self._corrections.clear()

    def count_on_host(self) -> None:
        """A step was taken on the device, of all parameters of all rows in use."""
        self._corrections.clear()
        if self.keeps_counts:
            self._taken[:, : len(self._stack.replicas)] += 1
        else:
            self._since += 1

    # -- the step ---------------------------------------------------------------------------------

    def step(self, gradients: Gradients) -> None:
        """See `Update`."""
        replicas = self._stack.replicas
        count = len(replicas)
        self.gather()
        if not self._slices:
            stacks = (self._stack.parameters, *self._rows.values())
            self._slices = [tuple(s[:count] for s in each) for each in zip(*stacks, strict=True)]
        with torch.no_grad():
            if replicas[0].options.clip_norm is not None:
                clip(gradients, replicas[0].options.clip_norm)
            used = [index for index, gradient in enumerate(gradients) if gradient is not None]
            self._since += 1
            if self.keeps_counts or len(used) < len(gradients):
                self._settle(count, None if len(used) == len(gradients) else used)
            if not self._resolved:
                self._resolved = [self._resolve(index) for index in range(len(gradients))]
            for index in used:
                gradient = gradients[index]
                assert gradient is not None
                self._update(index, gradient, *self._slices[index])
            if not self._all_shown:
                for index in used:
                    for row in np.flatnonzero(~self._shown[index, :count]).tolist():
                        self._show(replicas[row], index, row)
                        self._shown[index, row] = True
                self._all_shown = bool(self._shown[:, :count].all())
        for replica in replicas:
            # What torch's optimizers note themselves, for schedulers that warn without it.
            vars(replica.optimizer)["_opt_called"] = True

    def _update(self, index: int, gradient: Tensor, parameter: Tensor, *states: Tensor) -> None:
        raise NotImplementedError

    def _resolve(self, index: int) -> Any:
        """Options of a parameter in the form that its update needs; kept until one changes that is no schedule's."""

    def _settle(self, count: int, used: list[int] | None = None) -> None:
        """Count the steps that `count` rows have taken since, the last of the `used` parameters alone."""
        self._corrections.clear()
        since, self._since = self._since, 0
        if used is not None:
            since -= 1
            self._taken[used, :count] += 1
            self._counts[used, :count] += 1
        if since:
            self._taken[:, :count] += since
            self._counts[:, :count] += since

    def gather(self) -> None:
        """Look at the options of all replicas' groups; columns are made anew where one has changed."""
        replicas, device = self._stack.replicas, self._stack.device
        known = [self._picked(g) for r in replicas for g in r.optimizer.param_groups]
        if known == self._known:
            return
        self._known = known
        number = len(replicas[0].optimizer.param_groups)
        if len(self._columns) != number:
            self._values, self._columns = [{} for _ in range(number)], [{} for _ in range(number)]
        for group, values in enumerate(self._values):
            rows = zip(*known[group::number], strict=True)
            for name, given in zip(self.options, rows, strict=True):
                if values.get(name) == given:
                    continue
                values[name] = given
                if name == "betas":
                    first, second = zip(*given, strict=True)
                    self._put(group, "beta1", column_of(first, device))
                    self._put(group, "beta2", column_of(second, device))
                else:
                    is_table = name == "lr" and self._is_on_device
                    self._put(group, name, column_of(given, device, is_table=is_table))

    def _put(self, group: int, name: str, column: Any) -> None:
        """Keep a column in the place of the one before: where that was, since a schedule changes it at each step."""
        columns = self._columns[group]
        before: Any = columns.get(name)
        made = [key for key in self._shaped if key[:2] == (group, name)]
        are_columns = isinstance(column, Tensor) and isinstance(before, Tensor)
        if are_columns and len(column) == len(before):
            before.copy_(column)
            for key in made:
                self._shaped[key].view(-1).copy_(column)
            return
        columns[name] = column
        self._resolved.clear()
        self.version += 1
        for key in made:
            del self._shaped[key]

    def _option(self, index: int, name: str) -> Any:
        """An option of a parameter's group: a number where all replicas have the same, or their column.

        A column is of float64, of shape (n,).
        """
        return self._columns[self._group_of[index]][name]

    def _factor(self, index: int, name: str) -> Any:
        """An option as a factor of the parameter's stack: a number, or of shape (n, 1, ...)."""
        column = self._option(index, name)
        if not isinstance(column, Tensor):
            return column
        like = self._stack.parameters[index]
        key = (self._group_of[index], name, like.dtype, like.dim())
        if key not in self._shaped:
            self._shaped[key] = shaped(column, like)
        return self._shaped[key]

    def _correction(self, index: int, name: str) -> Any:
        """1 - base^t of each row's number of steps t; a number where all have the same."""
        base, taken = self._option(index, name), self._taken[index, : len(self._stack.replicas)]
        key = (name, self._group_of[index], taken.tobytes())
        if key not in self._corrections:
            if self._is_on_device or isinstance(base, Tensor) or (taken != taken[0]).any():
                self._corrections[key] = 1 - base ** self._counts[index, : len(taken)].double()
            else:
                self._corrections[key] = 1 - base ** int(taken[0])
        return self._corrections[key]
