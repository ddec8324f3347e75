"""Tests of reading a curve: known minima, honest refusals, and no dependence on units or signs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lrfinder.suggestions.curves import (
    Reading,
    combined,
    log_mean,
    read_ramp,
    spread_of,
    stop_rule,
)
from lrfinder.traces import Trace

X = np.linspace(-5, 1, 100)


def curve(
    x: NDArray[np.float64] = X,
    *,
    learns: float = -2.5,
    diverges: float = 0.0,
    noise: float = 0.02,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Falls around 10^learns from 2.3 by 2, and rises from 10^diverges on."""
    losses = 2.3 - 2 / (1 + 10 ** (-2 * (x - learns))) + 10 ** (2 * (x - diverges))
    return losses + noise * np.random.default_rng(seed).normal(size=len(x))


def ramp_trace(losses: Any) -> Trace:
    trace = Trace(["a"])
    for loss in losses:
        trace.append([1.0], float(loss))
    return trace


# -- reading --------------------------------------------------------------------------------------


def test_a_good_curve() -> None:
    reading = read_ramp(10**X, np.roll(curve(), 1))
    assert reading.status == "ok"
    exact = float(X[curve(noise=0).argmin()])
    assert np.log10(reading.minimum) == pytest.approx(exact, abs=0.2)
    assert np.log10(reading.steepest) == pytest.approx(-2.5, abs=0.2)
    assert reading.low < reading.steepest < reading.minimum < reading.high
    assert np.log10(reading.low) == pytest.approx(-3.0, abs=0.35)  # a tenth of the drop
    assert 0.01 < reading.noise < reading.drop / 4  # smoothing rounds the curve, which adds some


@pytest.mark.parametrize(("kept", "low", "high"), [(0.0, 0.08, 0.13), (0.8, 0.14, 0.35)])
def test_noise_that_goes_on_counts_for_more(kept: float, low: float, high: float) -> None:
    random = np.random.default_rng(0)
    readings = []
    for _ in range(20):
        noise = random.normal(size=200)
        for i in range(1, 200):  # sd 1, and each step keeps a share of the last one's
            noise[i] = kept * noise[i - 1] + (1 - kept**2) ** 0.5 * noise[i]
        readings.append(read_ramp(10**X, 1.0 + 0.1 * noise[100:]))
    assert low < float(np.median([reading.noise for reading in readings])) < high
    assert sum(reading.status == "ok" for reading in readings) <= 2


def test_what_noise_hides_in_one_curve_shows_in_several() -> None:
    # A drop of 1.2 times the noise: a single curve may do that by chance, four rarely do.
    def one(drop: float, status: str) -> Reading:
        message = "" if status == "ok" else status
        return Reading(0.01, 0.1, 0.05, 1.0, drop, 1.0, status, message)  # type: ignore[arg-type]

    assert combined([one(1.2, "flat")]).status == "flat"
    several = combined([one(1.2, "flat") for _ in range(4)])
    assert (several.status, several.message, several.minimum) == ("ok", "", pytest.approx(0.1))
    lucky = combined([one(1.6, "ok"), one(0.3, "flat"), one(0.4, "flat"), one(0.2, "flat")])
    assert (lucky.status, lucky.message) == ("flat", "flat")


def test_the_loss_belongs_to_the_step_before_it() -> None:
    # A single deep loss at row 60 was caused by the LR of row 59; both are the same but for one step.
    losses = curve(noise=0)
    shifted = read_ramp(10**X, np.concatenate([losses[:1], losses[:-1]]))
    exact = int(curve(noise=0)[:-1].argmin())
    assert abs(int(np.searchsorted(X, np.log10(shifted.minimum))) - exact) <= 2


REFUSALS: dict[str, tuple[Any, bool, str]] = {
    "flat": (np.full(100, 1.5), False, "flat"),
    "flat and noisy": (curve(learns=9, diverges=9, noise=0.1), False, "flat"),
    "negative and flat": (np.full(100, -3.0), False, "flat"),
    "monotone": (np.linspace(1, 2, 100), False, "monotone"),
    "diverged": (10.0 ** np.linspace(0, 2, 60), True, "diverged"),
    "diverged at once": ([1.0, 5.0, np.nan], True, "diverged"),
    "not finite": ([*np.linspace(1, 30, 40), np.inf, 1.0, 0.0], False, "diverged"),
    "edge": (curve(learns=0.0, diverges=9), False, "edge"),
    "too short": (np.linspace(2, 1, 8), False, "too_short"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_what_to_do(name: str) -> None:
    losses, stopped, status = REFUSALS[name]
    reading = read_ramp(10 ** X[: len(losses)], losses, stopped=stopped)
    assert reading.status == status
    assert any(word in reading.message for word in ("`start_lr`", "`end_lr`", "`num_steps`"))
    assert 0 < reading.low <= reading.high <= 10


def test_what_follows_a_non_finite_loss_is_not_looked_at() -> None:
    losses = curve()
    cut = np.concatenate([losses[:90], [np.nan], np.full(9, -100.0)])
    assert read_ramp(10**X, cut) == read_ramp(10 ** X[:90], losses[:90], stopped=True)


@settings(max_examples=60, deadline=None)
@given(
    scale=st.integers(-12, 12).map(lambda k: 2.0**k),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 10_000),
    learns=st.floats(-4, 0),
)
def test_invariant_under_units_and_offsets_of_the_loss(
    scale: float, shift: float, seed: int, learns: float
) -> None:
    losses = curve(seed=seed, learns=learns, noise=0.05)
    plain = read_ramp(10**X, losses)
    moved = read_ramp(10**X, scale * (losses + shift))
    for name in ("low", "minimum", "steepest", "high", "status", "message"):
        assert getattr(plain, name) == getattr(moved, name), name
    assert moved.drop == pytest.approx(scale * plain.drop, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(factor=st.floats(1e-6, 1e6), seed=st.integers(0, 10_000))
def test_equivariant_under_scales_of_the_learning_rate(factor: float, seed: int) -> None:
    losses = curve(seed=seed)
    plain, moved = read_ramp(10**X, losses), read_ramp(factor * 10**X, losses)
    for name in ("low", "minimum", "steepest", "high"):
        assert getattr(moved, name) == pytest.approx(factor * getattr(plain, name), rel=1e-9)


# -- the stop rule --------------------------------------------------------------------------------


def stopped_at(losses: Any) -> int | None:
    trace = Trace(["a"])
    for step, loss in enumerate(losses):
        trace.append([1.0], float(loss))
        if stop_rule(trace) is not None:
            return step
    return None


@settings(max_examples=40, deadline=None)
@given(st.integers(-8, 8).map(lambda k: 2.0**k), st.floats(-50, 50), st.integers(0, 1000))
def test_the_stop_rule_knows_no_unit_and_no_sign(scale: float, shift: float, seed: int) -> None:
    losses = curve(diverges=-0.5, seed=seed)
    at = stopped_at(losses)
    assert at == stopped_at(scale * (losses + shift))
    assert at is not None
    assert losses[at] > 2.3 + 3


def test_the_stop_rule_is_patient() -> None:
    assert stopped_at(np.full(100, 1.0)) is None
    assert stopped_at(curve(diverges=9)) is None
    spike = curve(diverges=9)
    spike[50] = 1e6  # one bad batch
    assert stopped_at(spike) is None
    assert stopped_at([1.0] * 5 + [1e9]) is None  # too early to know
    assert "above the limit" in str(stop_rule(ramp_trace([1.0, 0.9] * 10 + [1e3, 1e3])))


# -- several --------------------------------------------------------------------------------------


def test_several_readings_are_averaged_in_log_lr() -> None:
    readings = [read_ramp(10**X, curve(diverges=d, noise=0)) for d in (-0.5, 0.5)]
    both = combined(readings)
    assert both.minimum == pytest.approx(log_mean([r.minimum for r in readings]))
    assert spread_of(readings) == pytest.approx(
        np.log10(readings[1].minimum / readings[0].minimum)
    )
    assert np.isnan(spread_of(readings[:1]))


def test_the_majority_of_readings_decides() -> None:
    good = read_ramp(10**X, curve())
    flat = read_ramp(10**X, np.ones(100))
    assert combined([good, flat]) == good
    assert combined([good, flat, flat]).status == "flat"
