"""Samplers and pruners of Optuna: by name, with arguments, or objects; and the defaults."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

STARTUP = 4  # completed trials after which others are judged, or proposed, by them


def make_sampler(
    sampler: str | BaseSampler | None, *, seed: int, n_trials: int, conditional: bool = False
) -> BaseSampler:
    """A sampler of its class name in `optuna.samplers`; None for a multivariate TPE.

    Args:
        sampler: An object, a name as "GPSampler", or a name with arguments as
            "TPESampler(multivariate=False, n_startup_trials=4)".
        seed: Of a sampler that takes one and is given none.
        n_trials: How many trials there will be about.
        conditional: Whether some parameters are only there where another has some value.

    Raises:
        ValueError: If there is no such class, or it does not take these arguments.
    """
    if isinstance(sampler, BaseSampler):
        return sampler
    if sampler is None or sampler == "TPESampler":
        # A third of a short search is enough to begin with: its first trials come from the range
        # test.
        startup = min(10, max(3, n_trials // 3))
        return optuna.samplers.TPESampler(
            multivariate=True,
            group=conditional,
            constant_liar=True,
            n_startup_trials=startup,
            seed=seed,
        )
    # A Gaussian process learns from completed trials alone, and where others are pruned ten of them are rare.
    known = {"GPSampler": {"n_startup_trials": STARTUP}}
    made = _make(
        "sampler", sampler, optuna.samplers, BaseSampler, lambda name: {"seed": seed, **known.get(name, {})}
    )  # fmt: skip
    assert isinstance(made, BaseSampler)
    return made


def make_pruner(pruner: str | BasePruner | None, *, num_epochs: int) -> BasePruner:
    """A pruner of its class name in `optuna.pruners`; None for the median of the trials before.

    Args:
        pruner: An object, a name as "HyperbandPruner", or a name with arguments, which may be
            pruners too: "PatientPruner(MedianPruner(), patience=2)".
        num_epochs: Length of a trial.

    Raises:
        ValueError: If there is no such class, or it does not take these arguments.
    """
    if isinstance(pruner, BasePruner):
        return pruner
    if pruner is None or pruner == "MedianPruner":
        # A trial whose LR decays late looks bad early: its first third is never judged.
        return optuna.pruners.MedianPruner(
            n_startup_trials=STARTUP, n_warmup_steps=max(1, num_epochs // 3)
        )
    # What they find out for themselves when a first trial is complete is known here; until then
    # they prune nothing, whatever is under way.
    known = {
        "SuccessiveHalvingPruner": {"min_resource": max(1, (num_epochs - 1) // 100)},
        "HyperbandPruner": {"max_resource": num_epochs},
    }
    made = _make(
        "pruner", pruner, optuna.pruners, BasePruner, lambda name: dict(known.get(name, {}))
    )
    assert isinstance(made, BasePruner)
    return made


def trials_before_pruning(pruner: BasePruner) -> int:
    """How many trials must be complete before the pruner compares others with them; 0 where none must.

    Example:
        >>> trials_before_pruning(make_pruner("MedianPruner(3)", num_epochs=9))
        3
    """
    # Optuna keeps them where only its own classes look.
    inner = vars(pruner).get("_wrapped_pruner")
    if isinstance(inner, BasePruner):
        return trials_before_pruning(inner)
    return int(vars(pruner).get("_n_startup_trials", 0))


Defaults = Callable[[str], Mapping[str, Any]]  # name of a class -> arguments


def _make(kind: str, text: str, module: Any, base: type, defaults: Defaults) -> object:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        tree = ast.Constant(text)
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and not key.startswith(("Base", "_"))
    }
    return _Maker(kind, text, classes, defaults).make(tree)


class _Maker:
    """Makes what a text names; runs no code of the text."""

    def __init__(
        self, kind: str, text: str, classes: Mapping[str, type], defaults: Defaults
    ) -> None:
        self.kind, self.text, self.classes, self.defaults = kind, text, classes, defaults

    def make(self, tree: ast.expr) -> Any:
        call = tree if isinstance(tree, ast.Call) else None
        named = tree if call is None else call.func
        name = named.id if isinstance(named, ast.Name) else ""
        if name not in self.classes:
            raise ValueError(
                f"`{self.kind}` must be one of {', '.join(sorted(self.classes))}, "
                f"but got {self.text!r}."
            )
        arguments = [self._value(value) for value in call.args] if call else []
        options = {k.arg: self._value(k.value) for k in call.keywords if k.arg} if call else {}
        reason: Exception | None = None
        defaults = self.defaults(name)
        # Not every sampler takes a seed.
        for more in (defaults, {}) if defaults else ({},):
            try:
                return self.classes[name](*arguments, **{**more, **options})
            except (TypeError, ValueError) as error:
                reason = error
            except ImportError as error:
                raise ValueError(
                    f"`{self.kind}` {name} needs a package that is not installed: {error}"
                ) from error
        raise ValueError(
            f"`{self.kind}` {name} must be given the arguments that it needs, as "
            f"'{name}(...)' or an object, but got {self.text!r}: {reason}"
        ) from reason

    def _value(self, tree: ast.expr) -> Any:
        named = tree.func if isinstance(tree, ast.Call) else tree
        if isinstance(named, ast.Name) and named.id in self.classes:
            return self.make(tree)
        try:
            return ast.literal_eval(tree)
        except ValueError:
            raise ValueError(
                f"An argument of `{self.kind}` must be a plain value or a {self.kind}, "
                f"but got {ast.unparse(tree)!r} in {self.text!r}."
            ) from None
