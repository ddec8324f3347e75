"""Tests that others' tools open a study of a search: optuna-dashboard, a plain Optuna."""

from __future__ import annotations

import functools
import json
import threading
import urllib.request
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest

from tests.searching.test_searching import quiet_search, tiny_task

cold = functools.partial(quiet_search, warm_start=False, pruner="NopPruner", confirm=2)


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_optuna_dashboard_shows_a_study(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    storage = f"sqlite:///{tmp_path / 's.db'}"
    study = cold(tiny_task(), 3, storage=storage, study_name="shown")
    server = make_server("127.0.0.1", 0, dashboard.wsgi(storage), handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        page = f"http://127.0.0.1:{server.server_port}/api/studies/{study._study_id}"
        with urllib.request.urlopen(page, timeout=60) as answer:
            shown = json.load(answer)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 3
    values = [trial["values"][0] for trial in shown["trials"]]
    assert [float(value) for value in values] == pytest.approx([t.value for t in study.trials])
    reports = [len(trial["intermediate_values"]) for trial in shown["trials"]]
    assert reports == [3, 3, 3]  # one for each epoch


def test_a_plain_optuna_goes_on_with_a_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 's.db'}"
    ours = cold(tiny_task(), 3, storage=storage, study_name="s")
    theirs = optuna.load_study(storage=storage, study_name="s")
    assert theirs.best_value == ours.best_value
    trial = theirs.ask(ours.trials[0].distributions)
    assert set(trial.params) == set(ours.trials[0].params)
    theirs.tell(trial, 1.0)
