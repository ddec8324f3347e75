"""Formations: jobs that are in step, their stack and its update, and a step of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lrfinder.engines.capturing import Capturing, device_of
from lrfinder.engines.checking import check_together
from lrfinder.engines.choosing import Chooser
from lrfinder.engines.fitting import changing_buffers
from lrfinder.engines.jobs import Job, scale_of
from lrfinder.engines.stacking import Stack
from lrfinder.engines.updates import Update, make_update
from lrfinder.stepping import Replica


class Formation:
    """Jobs whose replicas are rows of one stack, in the order in which they are there.

    Args:
        first: Of which kind they are; it has asked for a step, and is to be added as the others.
        rows: How many there may be, >= 1.
        enter: Lets the process's random states be those of a job; None: of nobody.

    Raises:
        Unfit: If its replica cannot be stacked.
    """

    def __init__(self, first: Job, rows: int, *, enter: Callable[[Job | None], None]) -> None:
        self._enter = enter
        enter(None)
        changing = changing_buffers(first.replica, first.parts, first.stream)
        fold = first.replica.device.type == "cpu"
        self.stack = Stack(first.replica, rows, changing=changing, fold=fold)
        self._update: Update = make_update(self.stack, first.replica)
        self._capturing: Capturing | None = None

    @property
    def note(self) -> str:
        """What is to be said about how its steps are taken."""
        return "" if self._capturing is None else self._capturing.note

    # -- who is in --------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Give a job the next row.

        Raises:
            Unfit: If its replica is of another kind.
        """
        self.stack.add(job.replica)
        self._update.add(job.replica)
        if self._capturing is None and job.replica.options.graph:
            place = device_of(job.replica.device)
            self._capturing = Capturing(self.stack, self._update, place)

    def remove(self, replica: Replica) -> None:
        """Let one go with what it has become; the last row moves to its place."""
        self._update.remove(replica, *self.stack.remove(replica))

    def disband(self) -> None:
        """Let all go."""
        while self.stack.replicas:
            self.remove(self.stack.replicas[-1])

    def load(self, row: int) -> None:
        """Take over what a row's own optimizer has made of its state."""
        self._update.load(row)

    # -- the step ---------------------------------------------------------------------------------

    def step(self, jobs: Sequence[Job]) -> Sequence[Tensor]:
        """Take the step that all jobs ask for, and return their losses before it."""
        if self._capturing is not None:
            self._enter(None)
            streams = [job.stream for job in jobs]
            taken = self._capturing.step([job.parts for job in jobs], streams)
            if taken is not None:
                return taken.unbind()
        losses, gradients = self._gradients(jobs)
        self._update.step(gradients)
        return losses.unbind()

    def check(
        self, jobs: Sequence[Job], *, chooser: Chooser, original: Replica | None
    ) -> Sequence[Tensor] | None:
        """Compare the gradients of the next step both ways; see `check_together`.

        Returns:
            As `step`, if that step was good for it; None where it is still to be taken.
        """
        self._enter(None)  # so that the streams are what they will be again
        found = check_together(
            self.stack,
            [job.stream for job in jobs],
            lambda: self._gradients(jobs),
            lambda row: self._plainly(jobs[row]),
            chooser=chooser,
            original=original,
        )
        if found is None:
            return None
        self._update.step(found[1])
        return found[0].unbind()

    def _gradients(self, jobs: Sequence[Job]) -> tuple[Tensor, list[Tensor | None]]:
        self._enter(None)
        parts, streams = [job.parts for job in jobs], [job.stream for job in jobs]
        return self.stack.gradients(parts, streams, scale_of(jobs))

    def _plainly(self, job: Job) -> tuple[Tensor, list[Tensor | None]]:
        """The loss and the gradients of the step that a job asks for, taken alone."""
        self._enter(job)
        loss = job.replica.backward(job.parts)
        gradients = [parameter.grad for parameter in self.stack.trained_of(job.replica)]
        for parameter in job.replica.parameters:
            parameter.grad = None
        self._enter(None)
        return loss, gradients
