"""Lockstep: trainings taken further together, one optimizer step of all of them at a time.

Each training is a coroutine that asks for its steps. Those that are under way share a stack; one
that ends, diverges or is pruned gives its row to the next that waits, as requests do in an
inference server. Each has a model and an optimizer of its own, which are views of the stack, so any
step can be taken alone as well: that is what the shared step is checked and timed against.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from lrfinder.engines.checking import original_unused
from lrfinder.engines.choosing import Chooser
from lrfinder.engines.evaluating import Evaluator
from lrfinder.engines.fitting import Unfit, alike, out_of_memory
from lrfinder.engines.formations import Formation
from lrfinder.engines.jobs import END, Job, Raised
from lrfinder.stepping import Evaluation, Replica


class Lockstep:
    """Takes jobs further, together where that is faster.

    Args:
        chooser: Says whether a step is taken together, and learns from how long it took.
        capacity: Jobs at a time, >= 1. Halved where the memory does not suffice.
        original: What the jobs' replicas are copies of, if they are: their losses must not use it.
    """

    def __init__(
        self, chooser: Chooser, *, capacity: int, original: Replica | None = None
    ) -> None:
        self.chooser = chooser
        self._original = original
        self.capacity = capacity
        self._formation: Formation | None = None
        self._shared = False  # whether a stack is tried
        self._rows = 1  # of a stack
        self._looks = False  # whether one replica is looked at before
        self._evaluator = Evaluator()
        self._more_to_come = False  # whether jobs wait for others to end
        self._live: Job | None = None  # whose random states the process has

    def run(
        self,
        jobs: Iterable[Job | None],
        count: int,
        *,
        num_steps: int | None = None,
        on_end: Callable[[Job], None],
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Take jobs to their end.

        Args:
            jobs: Drawn one by one, as rows become free; None where there is none for now.
            count: How many there are, or at most will be.
            num_steps: How many steps each is to take; None where it is not known.
            on_end: Called with each job that has ended; its replica is its own again.
            after_step: Called after each step of all that are under way.

        Raises:
            Unfit: If jobs play copies of an original, which turned out not to be what it is.
            BaseException: What a job raises itself, or does not take for its own end where one of
                its steps raised it. It is raised in all others that are under way too, so that
                they can say that they were interrupted.
        """
        active: list[Job] = []
        held: deque[Job] = deque()  # under way, but without a row
        waiting = iter(jobs)
        self._rows = max(1, min(count, self.capacity))  # others would be made for nobody
        self._shared = self.chooser.worth(self._rows, num_steps)
        self._looks = self._shared and self.chooser.looks
        try:
            while True:
                self._end_look(active, held)
                self._fill(active, held, waiting, on_end)
                if not active:
                    return
                if not self._shared:  # for good: the others wait for this one's end
                    self._enter(active[0])
                    active[0].to_its_end(after_step)
                    self._enter(None)
                    on_end(active.pop())
                    continue
                asking = [job for job in active if isinstance(job.request, Evaluation)]
                if asking:
                    answers: Sequence[Any] = self._evaluate(asking)
                else:
                    answers = self._step(active, held)
                    asking = list(active)  # of whom some may be held now
                    if after_step is not None:
                        after_step()
                for job, answer in zip(asking, answers, strict=True):
                    if not job.is_quiet or isinstance(answer, Raised):
                        self._enter(job)
                    job.take(answer)
                for job in [job for job in active if job.request is None]:
                    self._leave(active, job)
                    self._enter(None)  # `on_end` may look at the random states of this one
                    on_end(job)
        except BaseException as error:
            for job in (*active, *held):
                if job.request is not None:
                    with contextlib.suppress(type(error), StopIteration):
                        job.steps.throw(error)
            raise
        finally:
            note = "" if self._formation is None else self._formation.note
            if note not in self.chooser.reason:
                self.chooser.reason += note
            self._formation = self._live = None

    # -- who is in --------------------------------------------------------------------------------

    def _end_look(self, active: list[Job], held: deque[Job]) -> None:
        """After the steps of one replica that were looked at, all may begin."""
        if self._looks and not self.chooser.looks:
            self._looks, self._shared = False, not self.chooser.refused
            held.extend(active)
            active.clear()

    def _fill(
        self,
        active: list[Job],
        held: deque[Job],
        waiting: Iterator[Job | None],
        on_end: Callable[[Job], None],
    ) -> None:
        """Give free rows to those that have begun before, then to those that wait."""
        most = min(self.capacity, self._rows) if self._shared and not self._looks else 1
        while len(active) < most:
            self._enter(None)  # making a job draws random numbers too
            job = held.popleft() if held else next(waiting, END)
            self._more_to_come = job is None
            if job is None or isinstance(job, str):
                return
            if job.request is None:
                self._enter(job)
                job.begin()
            if job.request is None:
                self._enter(None)
                on_end(job)
            else:
                active.append(job)
                self._join(job)

    def _join(self, job: Job) -> None:
        if not self._shared or self._looks:
            return
        try:
            if self._formation is None:
                self._formation = Formation(job, self._rows, enter=self._enter)
            self._formation.add(job)
        except Unfit as error:
            self._refuse(error)

    def _enter(self, job: Job | None) -> None:
        """Let the process's random states be those of a job; None: of nobody."""
        if self._live is not job:
            if self._live is not None:
                self._live.stream.keep()
            if job is not None:
                job.stream.put()
            self._live = job

    def _leave(self, active: list[Job], job: Job) -> None:
        if self._live is job:
            self._enter(None)
        row = active.index(job)
        last = active.pop()
        if last is not job:
            active[row] = last
        if self._formation is not None:
            self._formation.remove(job.replica)

    def _disband(self, active: list[Job], held: deque[Job]) -> None:
        """From here on they go one after the other; all but the first are held."""
        self._shared = False
        if self._formation is not None:
            self._formation.disband()
            self._formation = None
        held.extendleft(reversed(active[1:]))
        del active[1:]

    # -- the step ---------------------------------------------------------------------------------

    def _step(self, active: list[Job], held: deque[Job]) -> Sequence[Tensor | Raised]:
        if self._looks:
            with original_unused(self._original), self.chooser.looking():
                losses: Sequence[Any] = [self._alone(job, 0) for job in active]
            return losses
        way = self.chooser.way(len(active))
        # Where more are to come, there may be enough of them again.
        if way == "alone" and (self.chooser.refused or not self._more_to_come):
            self._disband(active, held)
        # Plans of one order ask for the very same batches.
        parts = list(
            {tuple(map(id, part)): part for part in (job.parts for job in active)}.values()
        )
        one_shape = len({len(part) for part in parts}) == 1 and all(
            map(alike, zip(*parts, strict=True))
        )
        # The last batch of an epoch is smaller, and not all end theirs at once.
        if way == "alone" or len(active) == 1 or not one_shape:
            return [self._alone(job, row) for row, job in enumerate(active)]
        try:
            formation = self._formation
            assert formation is not None  # those that go alone have none
            if way == "check":
                taken = formation.check(active, chooser=self.chooser, original=self._original)
                if taken is None:
                    return self._step(active, held)
                self.chooser.used.add("lockstep")
                return taken
            with self.chooser.timed(way, len(active)):
                if way == "stepping":
                    losses = [self._alone(job, row) for row, job in enumerate(active)]
                else:
                    losses = formation.step(active)
        except Unfit as error:
            self._refuse(error)
            return self._step(active, held)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._halve(active, held)
            return self._step(active, held)
        return losses

    def _refuse(self, error: Unfit) -> None:
        """From here on all are stepped alone; but copies that were never checked may be none at all."""
        self.chooser.refuse(str(error))
        if self._original is not None and not self.chooser.checked:
            raise error

    def _halve(self, active: list[Job], held: deque[Job]) -> None:
        """Half of them wait for the others."""
        self.capacity = (len(active) + 1) // 2
        while len(active) > self.capacity:
            job = active[-1]
            self._leave(active, job)
            held.appendleft(job)

    def _evaluate(self, asking: Sequence[Job]) -> Sequence[Any]:
        """What jobs are sent that ask to be evaluated: of all at once, where that gives the same."""
        is_quiet = len(asking) > 1 and all(job.is_quiet for job in asking)
        if self._formation is not None and is_quiet:
            self._enter(None)
            requests = [job.request for job in asking if isinstance(job.request, Evaluation)]
            replicas = [job.replica for job in asking]
            values = self._evaluator.values(self._formation.stack, replicas, requests)
            if values is not None:
                return values
        answers = []
        for job in asking:
            self._enter(job)
            assert job.request is not None
            try:
                answers.append(job.replica.answer(job.request))
            except Exception as error:
                answers.append(Raised(error))
        return answers

    def _alone(self, job: Job, row: int) -> Tensor | Raised:
        """The loss of its step; what that raises is its own affair, and no other's."""
        self._enter(job)
        try:
            loss = job.replica.step(job.parts)
        except Unfit:
            raise
        except Exception as error:
            return Raised(error)
        if self._formation is not None:
            self._formation.load(row)
        return loss
