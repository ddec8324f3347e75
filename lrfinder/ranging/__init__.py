"""Ranging: the range test of a model. Ramps bracket, a race decides, and nothing is left behind."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrfinder.distributing import spread
from lrfinder.engines import ENGINES, LockstepEngine, first_batch
from lrfinder.groups import learning_rates
from lrfinder.progressing import Progress, shown
from lrfinder.ranging.bare import BareTensor, LossOfTensor
from lrfinder.ranging.deciding import EFFORTS, RangeRun
from lrfinder.ranging.results import Cost, RangeTest
from lrfinder.snapshots import preserved
from lrfinder.stepping import Replica
from lrfinder.sweeping import default_range, is_proportional
from lrfinder.tasks import Loader, LossFn, StepOptions, move_to

__all__ = ["RangeTest", "range_test"]


def range_test(
    model: nn.Module | Tensor,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFn,
    loader: Loader,
    *,
    start_lr: float | None = None,
    end_lr: float | None = None,
    num_steps: int = 100,
    groups: str | Sequence[str] = "each",
    effort: str = "standard",
    planned_steps: int | None = None,
    replicas: int = 2,
    seed: int = 0,
    val_loader: Loader | None = None,
    engine: str = "auto",
    options: StepOptions = StepOptions(),
    progress: Progress | bool | None = None,
) -> RangeTest:
    """Find the learning rates between which each param group learns, and one inside.

    Ramps bracket: the LRs rise from `start_lr` to `end_lr`, of all groups together and then of one
    group with the others held at 1/100 of where the joint loss was lowest. A race decides: LRs
    inside the brackets are trained for up to 120 steps from the same start on the same batches, and
    the means of their weights, which have less noise, are evaluated on the next 8. A Gaussian
    process is fitted to all that they show, and its lowest place is suggested, drawn towards the
    best single LR where short races are known to make too much of the groups' ratios: a quarter of the
    way for Adam and its like, more for a long training (`lrfinder.racing.drawn_to_one`). Whatever happens
    inside, model, optimizer, attached schedulers, scaler, gradients, train/eval flags, random
    states and the loaders' generators are bit for bit as before.

    In processes that `torchrun` has started (see `lrfinder.process_group`) it is one test: each
    takes its share of each batch, and all come to the same result.

    Args:
        model: Any module. One in eval mode is tested in train mode; the flags of one in train mode
            are left as they are. Or the bare tensor that is optimised; several are an
            `nn.ParameterList`.
        optimizer: Any torch optimizer of its parameters, or of some of them: of several optimizers
            (a GAN's) each is tested by itself, the parameters of the others fixed. One that needs a
            closure (LBFGS) is given one.
        loss_fn: `loss_fn(model, batch)` -> scalar tensor.
        loader: An iterable of batches that can be iterated again; repeated where it is short.
        start_lr: Where ramps begin, > 0; by default 1e-5 (SGD) or 1e-6 (Adam and its like).
        end_lr: Where ramps end, > start_lr; by default 10 (SGD) or 3. If the loss is still falling
            there, the ramps are extended once, to 100 times this, and the result says so; likewise
            down to 1/100 of `start_lr` where the loss never falls, as with the small LRs that large
            pretrained models want. Where it falls by no more than its noise they are run once more,
            with three times the steps. With
            "together" both are of the group whose LR is highest.
        num_steps: Optimizer steps of a ramp, >= 2.
        groups: "each": an LR for every group, whatever the optimizer's are now. "together": one
            test, the ratios of the optimizer's LRs are kept: the LR finder that everyone knows. Or
            the names of the groups to test; the others keep their LR throughout.
        effort: "brackets": ramps only, and no suggestion for more than one group. "quick",
            "standard" or "thorough": and a race, of 1,110, 1,365 or 4,620 steps (1,080
            where there is one LR, and twice as many with "thorough"), however many groups there are;
            and 8 forward passes for each candidate that is left at the later rungs.
        planned_steps: Optimizer steps of the training to come: a longer one is served by lower LRs,
            and how much lower is read from the race as far as it goes, and is a stated back-off
            beyond (`lrfinder.racing.horizon`), where groups come nearer to one LR.
        replicas: Batch orders of each ramp, >= 1; with more than four groups, the ramps of single
            groups are run on one.
        seed: Of batch orders and candidates, 0 <= seed < 2**32. The same call gives the same result.
        val_loader: Its first batch is evaluated now and then during the ramps, as `val/loss`.
        engine: "stepping": one replica after the other. "lockstep": all in one step, or an error
            that says why not. "auto": the faster of the two, which is checked on the first steps;
            the result's cost says which it was, and why. They agree but for rounding.
        options: How one optimizer step is taken.
        progress: True for a bar, in a terminal or a notebook; or a function, called with the stage,
            the steps taken and the most that will be.

    Returns:
        The suggestion, the ramps, the race and the cost.

    Raises:
        TypeError: If the loader cannot be iterated again, or the model is neither module nor tensor.
        ValueError: If an argument is out of its bounds, the loader is empty, or the loss is not a
            scalar that needs a gradient. The model is as before.

    Example:
        >>> from lrfinder import param_groups, supervised
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> inputs = torch.randn(64, 4)
        >>> loader = [(x, x.sum(1, keepdim=True)) for x in inputs.split(16)]
        >>> groups = param_groups(model, {"body": "0.*", "head": "2.*"})
        >>> optimizer = torch.optim.SGD(groups, lr=1e-3)
        >>> result = range_test(model, optimizer, supervised(nn.MSELoss()), loader, effort="quick")
        >>> sorted(result.suggestion.lrs), optimizer.param_groups[0]["lr"]
        (['body', 'head'], 0.001)

    Source: ramps: Smith, 2015, arXiv 1506.01186; halving: Jamieson and Talwalkar, 2015, arXiv
    1502.07943; the reading: `lrfinder.suggestions.surrogates`.
    """
    began = time.monotonic()
    loader = spread(loader)
    if isinstance(model, Tensor):
        model, loss_fn = BareTensor(model), LossOfTensor(loss_fn)
    replica = Replica(model, optimizer, loss_fn, options)
    start_lr, end_lr = _checked_range(optimizer, start_lr, end_lr)
    _check_numbers(num_steps=num_steps, replicas=replicas, planned_steps=planned_steps, seed=seed)
    _check_choice("effort", effort, EFFORTS)
    _check_choice("engine", engine, ENGINES)
    tested = _tested_groups(optimizer, groups)
    loaders = [loader] if val_loader is None else [loader, val_loader]
    with (
        shown(progress) as show,
        preserved(model, optimizer, scaler=options.scaler, loaders=loaders) as start,
    ):
        val_batch = None if val_loader is None else first_batch(val_loader, seed=seed)
        runner = LockstepEngine(
            replica,
            start,
            loader,
            engine=engine,
            seed=seed,
            val_batch=move_to(val_batch, replica.device),
        )
        test = RangeRun(
            engine=runner,
            own=learning_rates(optimizer),
            groups=tested,
            without_gradient=_without_gradient(replica, runner, tested),
            keep_ratios=groups == "together",
            is_proportional=is_proportional(optimizer),
            lrs=(start_lr, end_lr, num_steps),
            effort=EFFORTS[effort],
            planned_steps=planned_steps,
            replicas=replicas,
            seed=seed,
            val_every=0 if val_loader is None else max(1, num_steps // 25),
            progress=show,
        )
        suggestion = test.run()
    settings: dict[str, Any] = {
        "optimizer": type(optimizer).__name__,
        "start_lr": test.lrs[0],
        "end_lr": test.lrs[1],
        "num_steps": test.lrs[2],
        "groups": groups if isinstance(groups, str) else list(groups),
        "effort": effort,
        "planned_steps": planned_steps,
        "replicas": replicas,
        "seed": seed,
        "engine": engine,
    }
    return RangeTest(
        suggestion=suggestion,
        ramps=tuple(test.ramps),
        standings=None if test.race is None else test.race.standings,
        cost=Cost(
            runner.steps, time.monotonic() - began, runner.chooser.name, runner.chooser.reason
        ),
        settings=settings,
    )


def _without_gradient(
    replica: Replica, engine: LockstepEngine, groups: Sequence[str]
) -> list[str]:
    """Groups that one step gives no gradient. It also shows a bad loss function before the work."""
    engine.plain.try_step()
    # Not those whose gradient is 0: behind a layer that starts at 0 it is, for one step.
    reached = {
        name
        for name, group in zip(replica.lr_groups, replica.optimizer.param_groups, strict=True)
        if any(p.grad is not None for p in group["params"])
    }
    return [name for name in groups if name not in reached]


# -- arguments ------------------------------------------------------------------------------------


def _checked_range(
    optimizer: torch.optim.Optimizer, start_lr: float | None, end_lr: float | None
) -> tuple[float, float]:
    usual = default_range(optimizer)
    values = [
        given if given is not None else one
        for given, one in zip((start_lr, end_lr), usual, strict=True)
    ]
    for name, value in zip(("start_lr", "end_lr"), values, strict=True):
        if isinstance(value, (bool, str)) or not 0 < value < math.inf:
            raise ValueError(f"`0 < {name} < inf` must hold, but got {name}={value!r}.")
    start, end = float(values[0]), float(values[1])
    if not start < end:
        raise ValueError(
            f"`start_lr < end_lr` must hold, but got start_lr={start:g}, end_lr={end:g}. By "
            f"default they are {usual[0]:g} and {usual[1]:g} for {type(optimizer).__name__}."
        )
    return start, end


def _check_numbers(*, num_steps: int, replicas: int, planned_steps: int | None, seed: int) -> None:
    least = {"num_steps": (num_steps, 2), "replicas": (replicas, 1), "seed": (seed, 0)}
    if planned_steps is not None:
        least["planned_steps"] = (planned_steps, 1)
    for name, (value, minimum) in least.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"`{name}` must be an int, but got {name}={value!r}.")
        if value < minimum:
            raise ValueError(f"`{name} >= {minimum}` must hold, but got {name}={value}.")
    if seed >= 2**32:
        raise ValueError(f"`seed < 2**32` must hold, but got seed={seed}.")


def _check_choice(name: str, value: str, choices: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}, but got {value!r}."
        )


def _tested_groups(optimizer: torch.optim.Optimizer, groups: str | Sequence[str]) -> list[str]:
    own = learning_rates(optimizer)
    if groups == "each":
        return list(own)
    if groups == "together":
        for name, lr in own.items():
            if len(own) > 1 and not lr > 0:
                raise ValueError(
                    f"`lr > 0` must hold for group {name!r} to keep its ratio to the others, but "
                    f"got lr={lr}. Set it, or take groups='each'."
                )
        return list(own)
    names = [groups] if isinstance(groups, str) else list(groups)
    unknown = [name for name in names if name not in own]
    if not names or unknown or len(set(names)) < len(names) or isinstance(groups, str):
        raise ValueError(
            "`groups` must be 'each', 'together' or a list of different names of groups "
            f"({', '.join(map(repr, own))}), but got {groups!r}."
        )
    return [name for name in own if name in names]
