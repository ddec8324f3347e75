"""Deciding: the course of a range test. Ramps, then a race, then what follows from the two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrfinder.engines import Engine
from lrfinder.progressing import Progress
from lrfinder.racing import (
    LINE,
    RUNGS,
    Candidate,
    Kind,
    Landscape,
    Race,
    box,
    drawn_to_one,
    holds,
    horizon,
    line,
    lowered,
    num_race_steps,
    race,
)
from lrfinder.suggestions import Bracket, Evidence, Suggestion, ramp_bracket, refused, with_lr
from lrfinder.suggestions.curves import DOUBTED, BracketStatus, Reading, combined
from lrfinder.sweeping import HELD_AT, Ramp, ramp_groups, ramp_lrs, ramp_together

# A range in which the loss falls to the end, or never falls, is extended by this factor, once.
EXTENSION = 100.0
# Where the loss then still falls by no more than its noise, ramps of so many times the steps show
# what a few steps cannot.
SLOWER = 3
FEW_GROUPS = 4  # up to which the ramp of each is run on every batch order
RAMP_MARGIN = 0.5  # decades below the minimum of a ramp, where no race decides


@dataclass(frozen=True)
class Effort:
    """How much a range test spends.

    Args:
        box_candidates: Candidates in the box, beside the line of one LR.
        race_orders: Batch orders of the race.
    """

    box_candidates: int
    race_orders: int


EFFORTS: dict[str, Effort | None] = {
    "brackets": None,
    "quick": Effort(box_candidates=16, race_orders=1),
    "standard": Effort(box_candidates=22, race_orders=1),
    "thorough": Effort(box_candidates=48, race_orders=2),
}


@dataclass(kw_only=True)
class RangeRun:
    """One range test: what was asked, and what was found so far.

    Args:
        engine: What trains the replicas; whoever calls puts the model back.
        own: Group -> LR that the optimizer has.
        groups: Groups to test.
        without_gradient: Those of them that get no gradient.
        keep_ratios: Whether the ratios of the groups' own LRs are kept.
        is_proportional: Whether a step of the optimizer is in proportion to the gradient.
        lrs: Start, end and number of steps of a ramp.
        effort: Of the race; None for ramps only.
        planned_steps: Of the training to come, or None.
        replicas: Batch orders of each ramp.
        seed: Of the candidates.
        val_every: Steps between two validations in a ramp; 0 for none.
        progress: As in `lrfinder.range_test`.
    """

    engine: Engine
    own: Mapping[str, float]
    groups: Sequence[str]
    without_gradient: Sequence[str]
    keep_ratios: bool
    is_proportional: bool
    lrs: tuple[float, float, int]
    effort: Effort | None
    planned_steps: int | None
    replicas: int
    seed: int
    val_every: int
    progress: Progress | None
    ramps: list[Ramp] = field(default_factory=list)
    race: Race | None = None
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tested = [name for name in self.groups if name not in self.without_gradient]
        self.held = {name: lr for name, lr in self.own.items() if name not in self.tested}
        self.one_lr = self.keep_ratios or len(self.tested) == 1
        highest = max((self.own[name] for name in self.tested), default=0.0)
        keep = self.keep_ratios and len(self.tested) > 1
        self.ratios = {name: self.own[name] / highest if keep else 1.0 for name in self.tested}

    def run(self) -> Suggestion:
        """Ramp, race and decide."""
        if not self.tested:
            return self._refusal(None)
        joint = self._ramp()
        reading = combined(joint)
        asked = self.lrs
        # A loss that is not finite before the first step is so at any LR.
        can_start = all(math.isfinite(ramp.trace.losses[0]) for ramp in self.ramps)
        rose = can_start and reading.status in ("diverged", "monotone")
        if rose or reading.status == "edge":
            joint = self._extended(down=rose)
            reading = combined(joint)
        if can_start and reading.status in DOUBTED:
            joint = self._slower(asked)
            reading = combined(joint)
        if reading.status != "ok":
            return self._refusal(reading)
        readings = {} if self.one_lr else self._ramp_groups(reading)
        brackets = {
            name: ramp_bracket(readings.get(name, joint), reading, self.ratios[name])
            for name in self.tested
        }
        if self.effort is None:
            return self._from_ramps(reading, brackets)
        self.race = self._race(self.effort, reading)
        return self._from_race(self.race, brackets)

    # -- ramps ------------------------------------------------------------------------------------

    def _ramp(self) -> list[Reading]:
        """Ramp all groups together, and read it on each batch order."""
        lrs = ramp_lrs(*self.lrs)
        ramps = ramp_together(self.engine, self.ratios, self.held, lrs, **self._options())
        self.ramps += ramps
        return [ramp.read() for ramp in ramps]

    def _ramp_groups(self, joint: Reading) -> dict[str, list[Reading]]:
        """Ramp each group with the others held low, and read each on each batch order."""
        low = dict.fromkeys(self.tested, joint.minimum * HELD_AT)
        held = {
            group: self.held | {name: lr for name, lr in low.items() if name != group}
            for group in self.tested
        }
        options = self._options() | {"replicas": self._group_replicas()}
        ramps = ramp_groups(self.engine, held, ramp_lrs(*self.lrs), **options)
        self.ramps += [ramp for some in ramps.values() for ramp in some]
        return {group: [ramp.read() for ramp in some] for group, some in ramps.items()}

    def _options(self) -> dict[str, Any]:
        return {
            "replicas": self.replicas,
            "val_every": self.val_every,
            "on_ramp": lambda steps: self._tell("ramps"),
        }

    def _group_replicas(self) -> int:
        """Batch orders of the ramp of one group: with many groups it is but a picture."""
        return self.replicas if len(self.tested) <= FEW_GROUPS else 1

    def _extended(self, *, down: bool) -> list[Reading]:
        """The joint ramps again, from further below or up to further up, as steep as before."""
        start, end, num_steps = self.lrs
        more = math.ceil(num_steps * math.log10(EXTENSION) / math.log10(end / start))
        low, high = (start / EXTENSION, end) if down else (start, end * EXTENSION)
        return self._ramp_again(
            (low, high, num_steps + more),
            f"The loss only rose from LR {start:.2g} on, so the ramps were begun at {low:.2g}."
            if down
            else f"The loss was still falling at LR {end:.2g}, so the ramps were extended to {high:.2g}.",
        )

    def _slower(self, lrs: tuple[float, float, int]) -> list[Reading]:
        """The joint ramps again, with more steps in the range that was asked for."""
        start, end, num_steps = lrs
        return self._ramp_again(
            (start, end, SLOWER * num_steps),
            f"The loss fell by no more than its noise within {num_steps} steps, so the ramps were "
            f"run again with {SLOWER * num_steps}.",
        )

    def _ramp_again(self, lrs: tuple[float, float, int], message: str) -> list[Reading]:
        """Drop the joint ramps, say why, and run them with other LRs."""
        self.lrs = lrs
        self.ramps.clear()
        self.messages.append(message)
        return self._ramp()

    def _from_ramps(self, joint: Reading, brackets: dict[str, Bracket]) -> Suggestion:
        if not self.one_lr:
            message = "A ramp brackets, but does not decide between groups: take effort='quick'."
            made = {
                name: refused(bracket, status="bracket_only", message=message)
                if bracket.status in ("ok", "noisy")
                else bracket
                for name, bracket in brackets.items()
            }
            return self._suggestion({}, made)
        lr = joint.minimum * 10**-RAMP_MARGIN
        lrs = {name: lr * self.ratios[name] for name in self.tested}
        made = {name: with_lr(brackets[name], lr) for name, lr in lrs.items()}
        return self._suggestion(lrs, made)

    # -- the race ---------------------------------------------------------------------------------

    def _race(self, effort: Effort, joint: Reading) -> Race:
        candidates: list[Candidate] = line(joint.minimum, self.ratios, self.held)
        if not self.one_lr:
            candidates += box(
                joint.minimum, self.tested, self.held, count=effort.box_candidates, seed=self.seed
            )
        return race(
            self.engine,
            candidates,
            num_orders=effort.race_orders,
            on_steps=lambda steps: self._tell("race"),
        )

    def _from_race(self, race: Race, brackets: dict[str, Bracket]) -> Suggestion:
        if not race.best:
            return self._race_refusal(race, brackets)
        kind: Kind = "equal" if self.one_lr else "joint"
        steps, back_off = horizon(self.planned_steps, kind)
        if self.planned_steps is not None:
            by = f", lowered by {back_off:.2f} decades" if back_off else ""
            if not self.one_lr and (back_off or not self.is_proportional):
                by += ", and drawn towards the best single LR"
            self.messages.append(
                f"For a training of {self.planned_steps:,} steps the LRs are those that are "
                f"expected to be best after {steps:.0f} steps at a constant LR{by}."
            )
        on_line = [standing for standing in race.standings if standing.kind == "equal"]
        line_landscape = Landscape(on_line, self.tested, race.start)
        line_steps, line_back_off = horizon(self.planned_steps, "equal")
        control = lowered(line_landscape.best(line_steps, seed=self.seed), line_back_off)
        lrs, evidence = control, None
        if not self.one_lr:
            landscape = Landscape(race.standings, self.tested, race.start)
            drawn = drawn_to_one(
                lowered(landscape.best(steps, seed=self.seed), back_off),
                control,
                back_off,
                is_proportional=self.is_proportional,
            )
            raced = lowered(drawn, -back_off)
            if holds(self.engine, raced | self.held, race):
                lrs = drawn
                # Both as the race tells them: of what comes later it shows nothing.
                single = line_landscape.best(steps, seed=self.seed)
                share, error = landscape.advantage(raced, single, steps)
                drop = race.start - race.best[0].score
                evidence = Evidence(share * drop, error * drop, share, round(steps))
            else:
                # Nothing is suggested on the word of the landscape alone.
                self.messages.append(
                    "Trained with the LRs that the race suggested for each group, the loss fell "
                    "less than it should have, so the best single LR is suggested."
                )
            self._tell("race")
        made = {}
        for name, lr in lrs.items():
            top = [standing.lrs[name] for standing in race.best]
            best = None if self.one_lr else (min(top), max(top))
            made[name] = with_lr(brackets[name], lr, best)
        return self._suggestion(lrs, made, control, evidence)

    # -- refusals ---------------------------------------------------------------------------------

    def _refusal(self, reading: Reading | None) -> Suggestion:
        """No group gets an LR, since the joint ramp shows none."""
        if reading is None:
            return self._suggestion({}, {})
        made = {
            name: Bracket(
                low=reading.low * self.ratios[name],
                suggested=None,
                high=reading.high * self.ratios[name],
                spread=math.nan,
                status=reading.status,
                message=reading.message,
            )
            for name in self.tested
        }
        return self._suggestion({}, made)

    def _race_refusal(self, race: Race, brackets: dict[str, Bracket]) -> Suggestion:
        diverged = all(standing.diverged for standing in race.standings)
        status: BracketStatus = "diverged" if diverged else "flat"
        message = (
            "Every candidate of the race diverged. Warm up, clip the gradients, or lower the LRs."
            if diverged
            else f"No candidate made the loss fall below its start within {RUNGS[-1]} steps. Take "
            "larger batches (options.accumulation) or effort='thorough'."
        )
        made = {
            name: refused(bracket, status=status, message=message)
            for name, bracket in brackets.items()
        }
        return self._suggestion({}, made)

    # -- the whole --------------------------------------------------------------------------------

    def _suggestion(
        self,
        lrs: Mapping[str, float],
        made: Mapping[str, Bracket],
        control: Mapping[str, float] | None = None,
        evidence: Evidence | None = None,
    ) -> Suggestion:
        """With brackets in the optimizer's order, and for the groups that could not be tested."""
        start, end, _ = self.lrs
        message = (
            "No gradient reaches its parameters. Check that they are used by the loss and have "
            "requires_grad=True, or leave the group out with `groups`."
        )
        dead = Bracket(start, None, end, math.nan, "flat", message)
        brackets = {name: made.get(name, dead) for name in self.groups}
        return Suggestion(lrs, brackets, control, evidence, " ".join(self.messages))

    # -- cost -------------------------------------------------------------------------------------

    def _tell(self, stage: str) -> None:
        if self.progress is not None:
            self.progress(stage, self.engine.steps, max(self.most_steps(), self.engine.steps))

    def most_steps(self) -> int:
        """Optimizer steps if nothing diverges and every state fits into the budget."""
        num_ramps = self.replicas
        num_ramps += 0 if self.one_lr else len(self.tested) * self._group_replicas()
        steps = 1 + num_ramps * self.lrs[2]
        if self.effort is not None:
            in_box = 0 if self.one_lr else self.effort.box_candidates
            steps += num_race_steps(len(LINE), in_box, self.effort.race_orders)
            steps += 0 if self.one_lr else RUNGS[1]
        return steps
