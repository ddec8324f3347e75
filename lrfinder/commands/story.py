"""The command `main`: range test, search, training beside baselines, and a report of all that."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

import lrfinder
from lrfinder.commands import options
from lrfinder.commands.range_testing import record_range_test
from lrfinder.commands.running import command, console, progress, ui_hint

if TYPE_CHECKING:
    import optuna

MIN_SEEDS = 3


@command
def story(
    task: options.Task = "digits",
    data: options.Data = None,
    n_trials: Annotated[int, typer.Option(help="Trials of the search.")] = 12,
    schedule: options.SearchedSchedule = "StepLR",
    num_epochs: options.NumEpochs = None,
    n_seeds: Annotated[
        int, typer.Option(help="Seeds that each configuration is trained on, at least 3.")
    ] = 5,
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    """Find learning rates and a schedule, and train with them beside baselines."""
    if n_seeds < MIN_SEEDS:
        raise ValueError(
            f"`n_seeds >= {MIN_SEEDS}` must hold, for a spread, but got n_seeds={n_seeds}."
        )
    made = options.load(task, data)
    with lrfinder.MlflowRecorder(run_name=f"main {made.name}") as recorder:
        recorder.log_params(
            {"task": task, "data": data, "n_trials": n_trials, "schedule": schedule, "seed": seed,
             "n_seeds": n_seeds, "num_epochs": num_epochs or made.num_epochs, "device": device}
        )  # fmt: skip
        plan = _Plan(made, seed=seed, device=device, num_epochs=num_epochs or made.num_epochs)
        result = plan.test_ranges(recorder)
        study = plan.search(recorder, result, n_trials=n_trials, schedule=schedule)
        # Other seeds than the search's: what is best on that one may have been lucky.
        seeds = tuple((seed + 1 + i) % 2**32 for i in range(n_seeds))
        comparison = plan.compare(recorder, result, lrfinder.best_hparams(study), seeds)
        report = lrfinder.make_report(
            f"Learning rates of {made.name}",
            facts=plan.facts(n_trials),
            comparison=comparison,
            result=result,
            study=study,
            costs=plan.costs,
        )
        _record(recorder, report, comparison, lrfinder.best_hparams(study))
    for table in lrfinder.report_tables(report):
        plan.screen.print(table)
    plan.screen.print(report.headline, style="bold", markup=False)
    plan.screen.print(ui_hint(recorder), markup=False, soft_wrap=True)


@dataclass(frozen=True)
class _Configuration:
    """What an arm trains with."""

    name: str
    note: str
    lrs: dict[str, float]
    schedule: dict[str, Any] | None = None


class _Plan:
    """The stages, with what each cost."""

    def __init__(self, task: lrfinder.Task, *, seed: int, device: str, num_epochs: int) -> None:
        self.task = task
        self.seed = seed
        self.device = device
        self.num_epochs = num_epochs
        self.costs: list[tuple[str, int, float]] = []
        self.screen = console()

    def _spent(self, stage: str, steps: int, began: float) -> None:
        """Note what a stage cost, and tell that it is done."""
        seconds = time.monotonic() - began
        self.costs.append((stage, steps, seconds))
        self.screen.print(f"{stage}: {steps} steps, {seconds:.1f} s", style="dim", markup=False)

    def facts(self, n_trials: int) -> dict[str, str]:
        return {
            "task": self.task.description or self.task.name,
            "groups": ", ".join(self.task.groups),
            "epochs": str(self.num_epochs),
            "trials": str(n_trials),
            "device": str(lrfinder.resolve_device(self.device)),
        }

    def test_ranges(self, recorder: lrfinder.MlflowRecorder) -> lrfinder.RangeTest:
        began = time.monotonic()
        started = self.task.start(self.seed, device=self.device)
        with recorder.child("range test") as child:
            result = lrfinder.range_test(
                started.model,
                started.optimizer,
                self.task.loss_fn,
                started.train_loader,
                planned_steps=lrfinder.planned_steps(started, self.num_epochs, self.task.options),
                seed=self.seed,
                options=self.task.options,
                progress=lrfinder.is_main(),
            )
            record_range_test(child, result)
        self._spent("range test", result.cost.steps, began)
        return result

    def search(
        self,
        recorder: lrfinder.MlflowRecorder,
        result: lrfinder.RangeTest,
        *,
        n_trials: int,
        schedule: str,
    ) -> optuna.Study:
        began = time.monotonic()
        study = lrfinder.search(
            self.task,
            n_trials,
            schedule=options.read_names(schedule),
            warm_start=result,
            recorder=recorder,
            seed=self.seed,
            num_epochs=self.num_epochs,
            device=self.device,
            progress=lrfinder.is_main(),
        )
        done = [trial for trial in study.trials if trial.state.is_finished()]
        steps = sum(trial.user_attrs.get("steps", 0) for trial in done)
        self._spent(f"search, {len(done)} trials", steps, began)
        return study

    def compare(
        self,
        recorder: lrfinder.MlflowRecorder,
        result: lrfinder.RangeTest,
        found: Mapping[str, Any],
        seeds: Sequence[int],
    ) -> lrfinder.ArmComparison:
        configurations = _configurations(self.task, result, found, self.device)
        with progress("training", len(configurations) * len(seeds)) as advance:
            arms = [self._train_arm(recorder, item, seeds, advance) for item in configurations]
        measures = [lrfinder.Measure.named(name) for name in arms[0].values]
        return lrfinder.ArmComparison(
            found=arms[0], baselines=tuple(arms[1:]), measures=tuple(measures)
        )

    def _train_arm(
        self,
        recorder: lrfinder.MlflowRecorder,
        configuration: _Configuration,
        seeds: Sequence[int],
        advance: Callable[[str], None],
    ) -> lrfinder.Arm:
        began = time.monotonic()
        tags: dict[str, Any] = {"lrfinder.arm": configuration.name}
        traces = lrfinder.train_seeds(
            self.task,
            seeds,
            lrs=configuration.lrs,
            schedule=configuration.schedule,
            device=self.device,
            num_epochs=self.num_epochs,
            record=lambda seed: recorder.child(f"{configuration.name} seed {seed}", **tags),
            on_training=lambda seed, trace: advance(configuration.name),
        )
        steps = sum(len(trace) for trace in traces)
        values = {
            name: [float("nan") if t.status == "diverged" else t.last(name) for t in traces]
            for name in ("val/loss", *(f"val/{metric}" for metric in self.task.metrics))
        }
        self._spent(f"training of {configuration.name}, {len(seeds)} seeds", steps, began)
        return lrfinder.Arm(
            name=configuration.name,
            note=configuration.note,
            lrs=configuration.lrs,
            schedule=configuration.schedule,
            seeds=tuple(seeds),
            values=values,
            steps=steps,
            seconds=self.costs[-1][2],
        )


def _configurations(
    task: lrfinder.Task, result: lrfinder.RangeTest, found: Mapping[str, Any], device: str
) -> list[_Configuration]:
    """What was found, and what it has to beat."""
    schedule = dict(found["schedule"])
    own = lrfinder.learning_rates(task.start(0, device=device).optimizer)
    default = _default_lr(task, device)
    note = "the best trial of the search, which saw the same validation set on another seed"
    items = [_Configuration("found", note, dict(found["lrs"]), schedule)]
    if default is not None:
        lrs = dict.fromkeys(own, default)
        items.append(
            _Configuration("default", "torch's default LR for this optimizer, constant", lrs)
        )
    if default is None or set(own.values()) != {default}:
        items.append(_Configuration("own", "the LRs of the task's optimizer, constant", own))
    control = result.suggestion.control
    if control:
        note = "the best one LR for all groups in the range test's race"
        items.append(_Configuration("one-lr", f"{note}, constant", dict(control)))
        note = f"{note}, with the schedule that was found"
        rescaled = _rescaled(schedule, found["lrs"], control)
        items.append(_Configuration("one-lr-scheduled", note, dict(control), rescaled))
    return items


def _default_lr(task: lrfinder.Task, device: str) -> float | None:
    """The LR that the optimizer's class has in torch; None where it has none."""
    kind = type(task.start(0, device=device).optimizer)
    parameter = inspect.signature(kind).parameters.get("lr")
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return None
    return float(parameter.default)


def _rescaled(
    schedule: dict[str, Any], lrs: Mapping[str, float], control: Mapping[str, float]
) -> dict[str, Any]:
    """The schedule for other LRs: `eta_min`, an LR itself, keeps its share of the lowest."""
    if "eta_min" not in schedule:
        return schedule
    share = min(control.values()) / min(lrs.values())
    return {**schedule, "eta_min": schedule["eta_min"] * share}


def _record(
    recorder: lrfinder.MlflowRecorder,
    report: lrfinder.Report,
    comparison: lrfinder.ArmComparison,
    best: Mapping[str, Any],
) -> None:
    """Keep the report, its picture and its numbers in the run."""
    recorder.log_text(lrfinder.report_html(report), "report.html")
    recorder.log_figure(lrfinder.arms_figure(comparison), "comparison.png")
    recorder.log_dict(dict(best), "best_hparams.json")
    for arm in comparison.arms:
        recorder.log_metrics(0, {f"{name}/{arm.name}": arm.mean(name) for name in arm.values})
    recorder.set_tags({"lrfinder.result": report.headline})
