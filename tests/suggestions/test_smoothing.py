"""Tests of smoothing: a constant stays, and nothing lags."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfinder.suggestions.smoothing import smoothed

X = np.linspace(-5, 1, 100)


@given(st.floats(-1e6, 1e6), st.integers(1, 50))
def test_a_constant_stays_constant(value: float, count: int) -> None:
    assert smoothed(np.full(count, value)).tolist() == [value] * count


def test_smoothing_has_no_lag() -> None:
    values = (X - X[40]) ** 2
    assert abs(int(smoothed(values).argmin()) - 40) <= 1
    line = smoothed(X)
    assert line[30:70] == pytest.approx(X[30:70], abs=0.02)


def test_smoothing_nothing_and_one() -> None:
    assert smoothed([]).tolist() == []
    assert smoothed([3.0]).tolist() == [3.0]
    assert smoothed([1.0, 2.0], weight=0.0).tolist() == [1.0, 2.0]
