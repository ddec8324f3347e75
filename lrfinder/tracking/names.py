"""Names and values as MLflow takes them, made from any text and any value."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

MAX_KEY = 250  # characters of a name of a metric, param or tag that MLflow takes
MAX_PARAM = 6000  # of a param's value
MAX_TAG = 5000  # of a tag's value; the smallest bound of MLflow's databases

_REFUSED = re.compile(r"[^\w.\- :/]")


def clean_name(name: str) -> str:
    """A name that MLflow takes, for any text.

    Law: characters outside letters, digits, `_ - . : /` and space become `_`; empty parts between
    slashes, and parts that are `.` or `..`, go; more than 250 characters are cut, and the cut is
    marked with a hash of the whole.

    Example:
        >>> clean_name("lr/encoder.layer[0]"), clean_name("lr//../head/")
        ('lr/encoder.layer_0_', 'lr/head')
    """
    parts = [part for part in _REFUSED.sub("_", name).split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts) or "_"
    if len(cleaned) > MAX_KEY:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        cleaned = f"{cleaned[: MAX_KEY - 9]}-{digest}"
    return cleaned


class Names:
    """The clean name of each name that was asked for; two names never get the same one.

    Example:
        >>> names = Names()
        >>> names.clean("lr/a[0]"), names.clean("lr/a[1]")
        ('lr/a_0_', 'lr/a_1_')
    """

    def __init__(self) -> None:
        self._cleaned: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def clean(self, name: str) -> str:
        """`clean_name`, once for each name.

        Raises:
            ValueError: If another name has become the same.
        """
        cleaned = self._cleaned.get(name)
        if cleaned is None:
            cleaned = clean_name(name)
            owner = self._owners.setdefault(cleaned, name)
            if owner != name:
                raise ValueError(
                    "Names must differ once the characters that MLflow refuses are replaced, but "
                    f"{owner!r} and {name!r} both become {cleaned!r}. Rename one of them."
                )
            self._cleaned[name] = cleaned
        return cleaned


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, where something was cut with a note that says so."""
    if len(text) <= limit:
        return text
    note = f"... (cut, of {len(text)} characters)"
    return text[: limit - len(note)] + note


def flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested mappings as one: the keys are joined with `/` under the prefix.

    Example:
        >>> flatten({"lr": 0.1, "schedule": {"name": "StepLR", "gamma": 0.5}}, "cfg")
        {'cfg/lr': 0.1, 'cfg/schedule/name': 'StepLR', 'cfg/schedule/gamma': 0.5}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}/{key}"
        inner = flatten(value, name) if isinstance(value, Mapping) and value else {name: value}
        if twice := flat.keys() & inner.keys():
            raise ValueError(
                f"Each flattened name must be there once, but {min(twice)!r} is there twice."
            )
        flat |= inner
    return flat


def as_text(value: Any) -> str:
    """A param or tag as text: JSON for lists, so that it can be read back; `str` for the rest."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (list, tuple, dict)):
        try:
            return json.dumps(jsonable(value), ensure_ascii=False)
        except TypeError:
            pass
    return str(value)


def as_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as text, cut at what the smallest of MLflow's databases takes."""
    return {str(name): cut(as_text(value), MAX_TAG) for name, value in tags.items()}


def jsonable(value: Any) -> Any:
    """A copy without the non-finite numbers that JSON cannot hold: those become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value
