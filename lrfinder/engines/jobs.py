"""Jobs: trainings that are under way, as those see them who take their steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrfinder.engines.randomness import Stream
from lrfinder.stepping import Evaluation, Replica, Request, Steps, take_alone
from lrfinder.tasks import Batch

END = "no more jobs"


@dataclass(frozen=True)
class Raised:
    """What a job is given in the place of an answer."""

    error: Exception


@dataclass(eq=False)
class Job:
    """A training that is under way.

    Args:
        replica: Who takes its steps.
        steps: Asks for them.
        stream: Where its random numbers come from.
        is_quiet: Whether it draws none of them between its steps, as a training does that shuffles
            its data with the random state of the process.
    """

    replica: Replica
    steps: Steps
    stream: Stream
    is_quiet: bool = False
    request: Request | None = None  # what it asks for now; None where it has ended
    num_steps: int | None = None  # that it is to take, where that is known

    def begin(self) -> None:
        """Go on to its first request."""
        self.request = next(self.steps, None)

    @property
    def parts(self) -> list[Batch]:
        """The batches of the step that it asks for; none where it asks for something else."""
        return [] if self.request is None or isinstance(self.request, Evaluation) else self.request

    def take(self, answer: Any) -> None:
        """Give it what it asked for, and go on to its next request.

        What its step, or its evaluation, has raised is raised in it: it may take that for its end.
        """
        try:
            if isinstance(answer, Raised):
                self.request = self.steps.throw(answer.error)
            else:
                self.request = self.steps.send(answer)
        except StopIteration:
            self.request = None

    def to_its_end(self, after_step: Callable[[], None] | None) -> None:
        """Take the steps that are left, alone, as `take_alone` does, which costs the least.

        What a step raises is raised in the training, which may take it for its end: it has failed.
        """
        answer = self.replica.answer if after_step is None else self._then(after_step)
        try:
            take_alone(self.steps, answer, self.request)
        finally:
            self.request = None

    def _then(self, after_step: Callable[[], None]) -> Callable[[Request], Any]:
        """The replica's answers, with something done after each step."""

        def answer(request: Request) -> Any:
            answered = self.replica.answer(request)
            if not isinstance(request, Evaluation):
                after_step()
            return answered

        return answer


def scale_of(jobs: Sequence[Job]) -> Callable[[Tensor], Tensor] | None:
    """Losses of all -> what is differentiated, each by its own scaler; None where there is none."""
    scalers = [job.replica.options.scaler for job in jobs]
    if scalers[0] is None:
        return None

    def scaled(losses: Tensor) -> Tensor:
        parts = zip(scalers, losses.unbind(), strict=True)
        return torch.stack([loss if s is None else s.scale(loss) for s, loss in parts])

    return scaled
