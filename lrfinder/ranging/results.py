"""Results: what a range test found, to print, plot, keep and take up again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from lrfinder.plotting import plot_range_test
from lrfinder.racing import Standing
from lrfinder.rendering.figures import figure_svg, themed
from lrfinder.rendering.fragments import html_fragment
from lrfinder.suggestions import Bracket, Evidence, Suggestion
from lrfinder.suggestions.tables import suggestion_table, suggestion_texts
from lrfinder.sweeping import Ramp
from lrfinder.traces import Trace

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "lrfinder.RangeTest 2"


@dataclass(frozen=True)
class Cost:
    """What a range test took.

    Args:
        steps: Optimizer steps, over all replicas.
        seconds: Of wall time.
        engine: What took them: "stepping", or "lockstep" where any were taken together.
        reason: Why, in words.
    """

    steps: int
    seconds: float
    engine: str = "stepping"
    reason: str = ""

    def __str__(self) -> str:
        """In words."""
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.steps:,} optimizer steps in {self.seconds:.1f} s, {self.engine}{why}"


@dataclass(frozen=True)
class RangeTest:
    """What a range test found; see `lrfinder.range_test`.

    Args:
        suggestion: A learning rate for each group, with its bracket.
        ramps: The ramps, all groups together first.
        standings: Every candidate of the race, the best first; None where no race was run.
        cost: Steps and seconds.
        settings: With what it was run, JSON-able.
    """

    suggestion: Suggestion
    ramps: tuple[Ramp, ...]
    standings: tuple[Standing, ...] | None
    cost: Cost
    settings: Mapping[str, Any]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The traces of the ramps."""
        return tuple(ramp.trace for ramp in self.ramps)

    @property
    def race(self) -> pd.DataFrame | None:
        """The race, the best first: candidate, kind, `lr/<group>`, rung, score, diverged."""
        import pandas as pd

        if self.standings is None:
            return None
        rows = [
            {
                "candidate": standing.candidate,
                "kind": standing.kind,
                **{f"lr/{name}": lr for name, lr in standing.lrs.items()},
                "rung": standing.rung,
                "score": standing.score,
                "diverged": standing.diverged,
            }
            for standing in self.standings
        ]
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """The ramps, one row for each step: group ('all' for the joint ramp), replica, step, lr, loss.

        The lr is the one that rose; the loss was measured before the step.
        """
        import pandas as pd

        parts = [
            pd.DataFrame(
                {
                    "group": ramp.group or "all",
                    "replica": ramp.replica,
                    "step": ramp.trace.steps,
                    "lr": ramp.lrs[: len(ramp.trace)],
                    "loss": ramp.trace.losses,
                }
            )
            for ramp in self.ramps
        ]
        return pd.concat(parts, ignore_index=True)

    def plot(self, ax: Axes | None = None, *, width: float | None = None) -> Axes:
        """Draw the ramps and what was read from them; see `lrfinder.plot_range_test`."""
        return plot_range_test(self, ax, width=width)

    def __str__(self) -> str:
        """A table with LR, bracket, spread and status of each group, the reasons, and the cost."""
        return f"{self.suggestion}\nCost: {self.cost}."

    def _repr_html_(self) -> str:
        """Table and curves, as a notebook shows them; nothing outside is referred to."""
        with themed():
            figure = cast("Figure", self.plot().figure)
        return html_fragment(
            tables=[suggestion_table(self.suggestion)],
            texts=[*suggestion_texts(self.suggestion), f"Cost: {self.cost}."],
            svgs=[figure_svg(figure)],
        )

    # -- JSON -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write it as JSON, from which `load` makes an equal one."""
        text = json.dumps(self.to_dict(), allow_nan=False, indent=1)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{str(path)!r} must be a range test in JSON, but: {error}."
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"{str(path)!r} must be a range test of the format {FORMAT!r}, but got {found!r}."
            )
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; numbers that are not finite as text."""
        ramps = [
            {
                "group": ramp.group,
                "replica": ramp.replica,
                "lrs": list(ramp.lrs),
                "trace": ramp.trace.to_dict(),
            }
            for ramp in self.ramps
        ]
        standings = self.standings and [dataclasses.asdict(item) for item in self.standings]
        parts = {
            "format": FORMAT,
            "suggestion": dataclasses.asdict(self.suggestion),
            "standings": standings,
            "cost": dataclasses.asdict(self.cost),
            "settings": dict(self.settings),
        }
        return cast("dict[str, Any]", _encoded(parts)) | {"ramps": ramps}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` was made of."""
        found = data["suggestion"]
        evidence = found["evidence"]
        suggestion = Suggestion(
            lrs=found["lrs"],
            brackets={name: _bracket(item) for name, item in found["brackets"].items()},
            control=found["control"],
            evidence=None if evidence is None else Evidence(**_floats(evidence, EVIDENCE_FLOATS)),
            message=found["message"],
        )
        ramps = tuple(
            Ramp(
                ramp["group"],
                ramp["replica"],
                tuple(ramp["lrs"]),
                Trace.from_dict(ramp["trace"]),
            )
            for ramp in data["ramps"]
        )
        standings = data["standings"]
        return cls(
            suggestion=suggestion,
            ramps=ramps,
            standings=None
            if standings is None
            else tuple(
                Standing(
                    **item
                    | {key: tuple(item[key]) for key in ("scores", "averaged") if key in item}
                )
                for item in standings
            ),
            cost=Cost(**data["cost"]),
            settings=data["settings"],
        )


EVIDENCE_FLOATS = ("advantage", "standard_error", "share")


def _bracket(data: Mapping[str, Any]) -> Bracket:
    fields = _floats(data, ("low", "high", "spread"))
    best = fields["best"]
    return Bracket(**fields | {"best": None if best is None else (best[0], best[1])})


def _floats(data: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return dict(data) | {name: float(data[name]) for name in names}


def _encoded(value: Any) -> Any:
    """JSON has no NaN and no infinity: these become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _encoded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(part) for part in value]
    return value
