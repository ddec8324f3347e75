"""Patterns: which parameters a group takes, and what to say where it takes none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

Pattern: TypeAlias = str | Sequence[str] | Callable[[str, nn.Parameter], bool]
GroupSpec: TypeAlias = Mapping[str, Pattern | Mapping[str, Any]]

SHOWN = 8  # names in an error message


def quoted(names: Iterable[str], most: int | None = None) -> str:
    """Names for an error message: `'a', 'b' and 3 more`."""
    listed = [repr(name) for name in names]
    shown = listed if most is None else listed[:most]
    more = f" and {len(listed) - len(shown)} more" if len(listed) > len(shown) else ""
    return ", ".join(shown) + more


def names_of_parameters(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Each parameter with all its names: a tied one has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def split_entry(name: str, entry: Pattern | Mapping[str, Any]) -> tuple[Pattern, dict[str, Any]]:
    """The pattern and the options of one group's entry in a spec."""
    given: Any = name  # which may be anything, whatever its annotation says
    if not isinstance(given, str) or not given:
        raise ValueError(
            f"The name of a group must be a string that is not empty, but got {name!r}."
        )
    if not isinstance(entry, Mapping):
        return entry, {}
    options = dict(entry)
    if "params" not in options or options.get("name", name) != name:
        raise ValueError(
            f'Group {name!r} must be a pattern, or {{"params": pattern, <options>}} without '
            f'another "name", but got {entry!r}.'
        )
    return options.pop("params"), options


def matches(
    group: str,
    pattern: Pattern,
    names: Mapping[nn.Parameter, list[str]],
    owners: Mapping[nn.Parameter, str],
) -> list[nn.Parameter]:
    """The trainable parameters that the pattern matches and no earlier group has; at least one."""
    matched: dict[nn.Parameter, str] = {}
    if callable(pattern):
        matched = {p: own[0] for p, own in names.items() if any(pattern(name, p) for name in own)}
        if not matched:
            raise ValueError(
                f"The predicate of group {group!r} must match a parameter, but matches none of "
                f"the model's {len(names)}. "
                f"It has {quoted((own[0] for own in names.values()), SHOWN)}."
            )
    else:
        for glob in _globs(group, pattern):
            hits = {p: n for p, own in names.items() for n in own if fnmatchcase(n, glob)}
            if not hits:
                raise ValueError(
                    _nothing_matches(group, glob, [n for own in names.values() for n in own])
                )
            matched |= {p: n for p, n in hits.items() if p not in matched}
    members = [p for p in names if p in matched and p.requires_grad and p not in owners]
    if not members:
        frozen = [name for p, name in matched.items() if not p.requires_grad]
        taken = [f"{name} ({owners[p]})" for p, name in matched.items() if p.requires_grad]
        reasons = [f"frozen: {quoted(frozen, SHOWN)}"] if frozen else []
        reasons += [f"in an earlier group: {quoted(taken, SHOWN)}"] if taken else []
        raise ValueError(
            f"Group {group!r} must match a trainable parameter that no earlier group has, but "
            f"what it matches is {'; '.join(reasons)}. The first match wins: put the narrower "
            "pattern first, or leave the group out."
        )
    return members


def _globs(group: str, pattern: str | Sequence[str]) -> list[str]:
    globs: list[Any] = [pattern] if isinstance(pattern, str) else []
    if not globs and isinstance(pattern, Sequence):
        globs = list(pattern)
    if not globs or not all(isinstance(glob, str) for glob in globs):
        raise ValueError(
            f"The pattern of group {group!r} must be a glob, a list of globs or a function "
            f"(name, parameter) -> bool, but got {pattern!r}."
        )
    return globs


def _nothing_matches(group: str, glob: str, names: list[str]) -> str:
    """A message with the names that the glob may have meant."""
    stems = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    literal = glob.rstrip("*?.") or glob
    near = get_close_matches(literal, sorted(stems), n=3, cutoff=0.6)
    near_names = [
        name for name in names if any(name == stem or name.startswith(f"{stem}.") for stem in near)
    ]
    shown = "Near misses: " if near_names else "It has "
    return (
        f"The pattern {glob!r} of group {group!r} must match a parameter, but matches none of the "
        f"model's {len(names)}. {shown}{quoted(near_names or names, SHOWN)}."
    )
