"""Tests of compiling: the same numbers, by whatever backend, and the plain way where it fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lrfinder.engines import LockstepEngine
from lrfinder.engines.compiling import Compiled
from lrfinder.tasks import StepOptions
from tests.engines.models import batches, make, make_engine, plans


def losses(kind: str, name: str, **options: Any) -> tuple[Any, Any]:
    torch.compiler.reset()
    engine = make_engine(kind, make(name), batches(name), **options)
    some = plans(3, num_steps=14, orders=2)
    engine.advance(some, 14)
    return np.array([plan.trace.losses for plan in some]), engine


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = Compiled.__call__

    def counted(self: Compiled, parameters: Any, *args: Any) -> Any:
        calls.append(len(parameters[0]))
        return real(self, parameters, *args)

    monkeypatch.setattr(Compiled, "__call__", counted)
    return calls


@pytest.mark.parametrize("name", ["mlp", "cnn with BatchNorm", "tied embeddings"])
def test_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    compiled, _ = losses("lockstep", name, compile="aot_eager")
    assert calls == [3] * 15  # the check, and 14 steps
    np.testing.assert_allclose(compiled, losses("stepping", name)[0], rtol=1e-12)


@pytest.mark.slow
def test_inductor() -> None:
    compiled, engine = losses("lockstep", "mlp", compile="inductor")
    np.testing.assert_allclose(compiled, losses("stepping", "mlp")[0], rtol=1e-12)
    assert engine.chooser.note == ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mlp with dropout", "it draws random numbers"), ("replaced buffer", "it replaces a buffer")],
)
def test_what_is_not_compiled_goes_in_lockstep_as_ever(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch)
    uncompiled, engine = losses("lockstep", name, compile="aot_eager")
    assert calls == []
    assert reason in engine.chooser.note
    np.testing.assert_allclose(uncompiled, losses("stepping", name)[0], rtol=1e-12)


def test_a_backend_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Compiled, *args: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(Compiled, "__call__", fails)
    uncompiled, engine = losses("lockstep", "cnn with BatchNorm", compile="aot_eager")
    assert isinstance(engine, LockstepEngine)
    assert engine.chooser.name == "lockstep"
    assert "no compiler here" in engine.chooser.note
    np.testing.assert_allclose(uncompiled, losses("stepping", "cnn with BatchNorm")[0], rtol=1e-12)


def test_a_backend_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"must be a backend .*inductor.*'fast'"):
        StepOptions(compile="fast")


@pytest.mark.gpu
def test_cuda_graphs() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    data = [(x.cuda(), y.cuda()) for x, y in batches("mlp")]
    results = []
    for kind in ("stepping", "lockstep"):
        engine = make_engine(kind, make("mlp").cuda(), data, compile="cudagraphs")
        some = plans(3, num_steps=14, orders=1)
        engine.advance(some, 14)
        results.append([plan.trace.losses for plan in some])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9)
