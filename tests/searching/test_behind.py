"""Tests of a storage that another process writes: it ends as a plain one does, whoever is killed, stopped or full."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

import lrfinder
from benchmarks.servers import Postgres
from lrfinder.searching.budgets import Budget
from lrfinder.searching.storages import Behind, StorageError, behind, open_storage
from lrfinder.searching.studies import quiet_optuna
from lrfinder.searching.workers import HEARTBEAT, Worker
from tests.searching.test_searching import tiny_task

ROOT = str(Path(__file__).parents[2])


@contextlib.contextmanager
def written_behind(url: str, name: str = "s") -> Iterator[tuple[Behind, int]]:
    """A storage whose study is written by another process, which has begun to."""
    with study_behind(url, name) as (storage, study), storage.writing(study._study_id, name):
        begin(storage, study._study_id)
        yield storage, study._study_id


@contextlib.contextmanager
def at_work(url: str) -> Iterator[tuple[Worker, optuna.Study]]:
    """A worker of a study that is written by another process, which has begun to."""
    with (
        study_behind(url, "s") as (storage, study),
        Worker(study, nullcontext(), grace_period=0.6) as worker,
    ):
        begin(storage, study._study_id)
        yield worker, study


@contextlib.contextmanager
def study_behind(url: str, name: str) -> Iterator[tuple[Behind, optuna.Study]]:
    """A study that another process is to write as soon as it is searched."""
    with quiet_optuna(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(behind, "WORTH", 0.0)
        patch.setattr(behind, "AFTER", 0.0)
        storage = open_storage(url)
        assert isinstance(storage, Behind)
        yield storage, optuna.create_study(storage=storage, study_name=name)


def begin(storage: Behind, study_id: int) -> None:
    deadline = time.monotonic() + 60
    while storage._copies is None:
        storage.get_study_user_attrs(study_id)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def process_of(storage: Behind) -> int:
    assert storage._writer is not None
    return storage._writer._process.pid


def written(url: str, name: str = "s") -> list[FrozenTrial]:
    """What somebody else reads."""
    with quiet_optuna():
        return optuna.load_study(storage=url, study_name=name).trials


def facts(trial: FrozenTrial) -> tuple[Any, ...]:
    """All of a trial but its id and the times."""
    return (
        *(trial.state, trial.values, trial.params, trial.distributions),
        *(
            trial.user_attrs,
            trial.system_attrs,
            {k: str(v + 0.0) for k, v in trial.intermediate_values.items()},
        ),
        *(trial.datetime_start is None, trial.datetime_complete is None),
    )


# -- the same as without --------------------------------------------------------------------------

jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("ab"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=4,
)
distributions = {
    "x": FloatDistribution(1e-3, 1.0, log=True),
    "y": CategoricalDistribution(["a", "b"]),
}
calls = st.one_of(
    st.tuples(
        st.just("set_trial_param"),
        st.tuples(st.just("x"), st.floats(1e-3, 1.0), st.just(distributions["x"])),
    ),
    st.tuples(
        st.just("set_trial_param"),
        st.tuples(st.just("y"), st.sampled_from([0.0, 1.0]), st.just(distributions["y"])),
    ),
    st.tuples(st.just("set_trial_param"), st.just(("x", 1.0, distributions["y"]))),
    st.tuples(
        st.just("set_trial_intermediate_value"),
        st.tuples(st.integers(0, 3), st.floats(width=32)),
    ),
    st.tuples(
        st.sampled_from(["set_trial_user_attr", "set_trial_system_attr"]),
        st.tuples(st.text("ab", min_size=1), jsons | st.just({1, 2})),
    ),
    st.tuples(
        st.just("set_trial_state_values"),
        st.sampled_from(
            [(TrialState.COMPLETE, [0.5]), (TrialState.PRUNED, None), (TrialState.FAIL, None)]
        ),
    ),
)


def outcome(storage: BaseStorage, name: str, *args: Any) -> Any:
    """What a call comes to: a kind of error, or nothing."""
    try:
        getattr(storage, name)(*args)
    except (UpdateFinishedTrialError, ValueError, TypeError) as error:
        return type(error)
    return None


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Behind, RDBStorage, str]]:
    """One that is written behind, and a plain one."""
    folder = tmp_path_factory.mktemp("pair")
    url = f"sqlite:///{folder / 'behind.db'}"
    with written_behind(url) as (storage, _):
        plain = RDBStorage(f"sqlite:///{folder / 'plain.db'}")
        plain.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")
        yield storage, plain, url


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=st.lists(st.tuples(st.integers(0, 1), calls), min_size=1, max_size=12))
def test_it_ends_as_a_plain_storage_does_that_is_told_the_same(pair, script) -> None:
    storage, plain, url = pair
    before = plain.get_n_trials(1)
    theirs = [plain.create_new_trial(1) for _ in range(2)]
    ours = [storage.create_new_trial(1) for _ in range(2)]
    for which, (call, args) in script:
        if call == "set_trial_param" and args[0] in plain.get_trial(theirs[which]).params:
            continue  # Optuna does not suggest one twice
        assert outcome(storage, call, ours[which], *args) == outcome(
            plain, call, theirs[which], *args
        )
    expected = [facts(plain.get_trial(trial_id)) for trial_id in theirs]
    assert [facts(storage.get_trial(trial_id)) for trial_id in ours] == expected
    storage.look_again()
    assert [facts(t) for t in storage.get_all_trials(1)[before:]] == expected
    assert [facts(trial) for trial in written(url)[before:]] == expected


def test_a_search_proposes_and_finds_what_it_does_in_memory(
    measured_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "WORTH", 0.0)
    monkeypatch.setattr(behind, "AFTER", 0.0)
    url = f"sqlite:///{tmp_path / 's.db'}"
    claimed: list[int] = []
    claim = Behind.claimed

    def spied(storage: Behind) -> int | None:
        found = claim(storage)
        if found is not None:
            claimed.append(found)
        return found

    monkeypatch.setattr(Behind, "claimed", spied)

    def wait(study: optuna.Study, trial: FrozenTrial) -> None:
        if isinstance(study._storage, Behind) and trial.number == 2:
            begin(study._storage, study._study_id)

    found = [
        lrfinder.search(
            tiny_task(), 16, storage=storage, study_name="s", device="cpu", engine="stepping",
            warm_start=lrfinder.RangeTest.load(measured_file), on_trial=wait, confirm=0,
        )
        for storage in (None, url)
    ]  # fmt: skip
    assert len(claimed) >= 8

    def trained(study: optuna.Study) -> list[Any]:
        return [(t.state, t.params, t.values, t.intermediate_values) for t in study.trials]

    assert trained(found[0]) == trained(found[1])
    assert trained(optuna.load_study(storage=url, study_name="s")) == trained(found[1])


# -- what may happen to it ------------------------------------------------------------------------


def test_who_writes_loads_no_torch_and_ends_with_the_search(tmp_path: Path) -> None:
    with written_behind(f"sqlite:///{tmp_path / 's.db'}") as (storage, _):
        process = process_of(storage)
        assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()
        assert os.getpgid(process) != os.getpgid(0)
    assert not Path(f"/proc/{process}").exists()


KILLED = """
import os, signal, sys
from tests.searching.test_behind import FloatDistribution, TrialState, written_behind
with written_behind(sys.argv[1]) as (storage, study_id):
    trial = storage.create_new_trial(study_id)
    storage.set_trial_param(trial, "x", 0.5, FloatDistribution(0.0, 1.0))
    for step in range(200):
        storage.set_trial_intermediate_value(trial, step, float(step))
    storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_search_told_that_is_killed_is_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, url],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 30
    while (trial := written(url)[0]).state is TrialState.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (trial.state, trial.values, trial.params) == (TrialState.COMPLETE, [1.0], {"x": 0.5})
    assert trial.intermediate_values == {step: float(step) for step in range(200)}


def test_where_who_writes_is_killed_the_search_goes_on_by_itself(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    with written_behind(url) as (storage, study_id):
        first, second = (storage.create_new_trial(study_id) for _ in range(2))
        os.kill(process_of(storage), signal.SIGSTOP)  # so that it has not done what it is told
        for step in range(5):
            storage.set_trial_intermediate_value(first, step, math.inf)
        storage.set_trial_state_values(first, TrialState.COMPLETE, [1.0])
        os.kill(process_of(storage), signal.SIGKILL)
        os.waitid(os.P_PID, process_of(storage), os.WEXITED | os.WNOWAIT)
        storage.set_trial_user_attr(second, "a", 1)
        storage.set_trial_state_values(second, TrialState.FAIL)
        assert storage._copies is None
        one, two = written(url)
    assert (one.state, list(one.intermediate_values.values())) == (
        TrialState.COMPLETE,
        [math.inf] * 5,
    )
    assert (two.state, two.user_attrs) == (TrialState.FAIL, {"a": 1})


def test_a_refusal_reaches_the_search_and_what_was_done_is_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"

    def refused() -> None:
        with written_behind(url) as (storage, study_id):
            trial = storage.create_new_trial(study_id)
            storage.set_trial_user_attr(trial, "a", 1)
            storage.look_again()
            storage.get_all_trials(study_id)
            with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as database:
                database.execute("DROP TABLE trial_intermediate_values")
            storage.set_trial_intermediate_value(trial, 0, 1.0)
            storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])

    with pytest.raises(StorageError, match=r"answered: no such table.*goes on from there"):
        refused()
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as database:
        assert database.execute("SELECT key FROM trial_user_attributes").fetchall() == [("a",)]
        assert database.execute("SELECT state FROM trials").fetchall() == [("RUNNING",)]


def test_a_trial_that_was_taken_by_another_worker_is_given_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    with written_behind(url) as (storage, study_id):
        trial = storage.create_new_trial(study_id)
        storage.set_trial_intermediate_value(trial, 0, 1.0)
        RDBStorage(url).set_trial_state_values(trial, TrialState.FAIL)
        deadline = time.monotonic() + 30
        while outcome(storage, "set_trial_intermediate_value", trial, 1, 1.0) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert storage.get_trial(trial).state is TrialState.FAIL
    assert written(url)[0].state is TrialState.FAIL


def test_a_trial_is_claimed_where_there_is_room_and_waits_where_nobody_asks_for_it(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    with written_behind(url) as (storage, study_id):
        storage.create_new_trial(study_id)
        storage.claim(2)
        second = storage.claimed()
        assert second is not None
        assert storage.get_trial(second).number == 1
        storage.claim(2)
        assert storage.claimed() is None
        storage.claim(3)
    assert [trial.state for trial in written(url)] == [
        TrialState.RUNNING,
        TrialState.RUNNING,
        TrialState.WAITING,
    ]
    with quiet_optuna():
        assert optuna.load_study(storage=url, study_name="s").ask().number == 2


def test_a_trial_that_was_seen_to_have_ended_has_ended(tmp_path: Path) -> None:
    """Also where what was seen before that is taken after it."""
    url = f"sqlite:///{tmp_path / 's.db'}"
    with written_behind(url) as (storage, study_id):
        others = RDBStorage(url)
        number = others.create_new_trial(study_id)
        storage.claim(3)
        assert storage._writer is not None
        deadline = time.monotonic() + 30
        while storage._claim not in storage._writer.answers:
            storage._writer.listen(10)
            assert time.monotonic() < deadline
        others.set_trial_state_values(number, TrialState.FAIL)
        for claimed in (False, True):
            if claimed:
                assert storage.claimed() is not None
            storage.look_again()
            trials = storage.get_all_trials(study_id)
            states = {trial._trial_id: trial.state for trial in trials}
            assert states[number] is TrialState.FAIL


def test_others_see_each_sign_of_life(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    with at_work(url) as (worker, _):
        assert next(worker.trials(Budget(n_trials=1))) is not None
        deadline, seen = time.monotonic() + 2.0, set()
        while time.monotonic() < deadline:
            seen.add(written(url)[0].user_attrs.get(HEARTBEAT))
            time.sleep(0.05)
    assert len(seen) >= 6  # ten a second, each of which is sent


def test_a_trial_that_was_claimed_shows_signs_of_life_before_it_is_begun(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    with at_work(url) as (worker, study):
        trials = worker.trials(Budget(n_trials=2))
        first = next(trials)
        assert first is not None
        worker.claim(Budget(n_trials=2))
        time.sleep(1.5)
        running = [t.user_attrs.get(HEARTBEAT, 0) for t in written(url)]
        study.tell(first, 0.5)
        worker.end(first)
        second = next(trials)
        assert second is not None
        assert second.number == 1
        study.tell(second, 0.5)
        worker.end(second)
    assert len(running) == 2
    assert min(running) >= 5  # of some fifteen
    assert [trial.state for trial in written(url)] == [TrialState.COMPLETE] * 2


@pytest.mark.postgres
def test_a_training_does_not_wait_for_a_database_that_is_away(tmp_path: Path) -> None:
    with Postgres(tmp_path / "pg") as server, written_behind(server.uri) as (storage, study_id):
        trial = storage.create_new_trial(study_id)
        server.stop()
        began = time.monotonic()
        for step in range(50):
            storage.set_trial_intermediate_value(trial, step, 1.0)
        storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
        assert time.monotonic() - began < 1.0
        time.sleep(0.5)
        server.start()
        storage.look_again()
        assert storage.get_all_trials(study_id)[0].state is TrialState.COMPLETE
        assert storage.outages > 0
        (found,) = written(server.uri)
        assert (found.state, len(found.intermediate_values)) == (TrialState.COMPLETE, 50)
