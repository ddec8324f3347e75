"""What a person sees: MLflow's own pages of a real study, in a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient

import lrfinder
from benchmarks.servers import MlflowServer
from tests.helpers import TINY_GROUPS, TinyNet, cross_entropy, tiny_data, tiny_loader

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: chromium)"),
]
TRIALS = 4


class Study(NamedTuple):
    """A recorded search."""

    client: MlflowClient
    run_id: str
    links: dict[str, str]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A real search, recorded by a real server."""
    folder = tmp_path_factory.mktemp("browser")
    task = lrfinder.Task(
        name="tiny",
        make_model=TinyNet,
        groups=TINY_GROUPS,
        make_optimizer=lambda groups: lrfinder_sgd(groups),
        loss_fn=cross_entropy,
        train_loader=lambda seed: tiny_loader(),
        val_loader=[tiny_data()],
        num_epochs=4,
    )
    started = task.start(0)
    result = lrfinder.range_test(
        started.model, started.optimizer, task.loss_fn, started.train_loader, effort="brackets",
        num_steps=30, replicas=1,
    )  # fmt: skip
    with MlflowServer(folder) as server:
        recorder = lrfinder.MlflowRecorder(
            "digits", run_name="search", tracking_uri=server.uri, spool=folder / "spool"
        )
        with recorder:
            lrfinder.search(
                task, TRIALS, warm_start=result, recorder=recorder, pruner="NopPruner",
                sampler="RandomSampler",
            )  # fmt: skip
        assert recorder.run_id is not None
        yield Study(MlflowClient(server.uri), recorder.run_id, recorder.links)


def lrfinder_sgd(groups: Any) -> Any:
    import torch

    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page, whose errors fail the test."""
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 1500, "height": 1600})
    page.set_default_timeout(90_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


def trials(study: Study) -> list[Any]:
    where = study.client.get_run(study.run_id).info.experiment_id
    return list(study.client.search_runs([where], f"tags.`lrfinder.parent` = '{study.run_id}'"))


def test_the_experiment_opens_on_the_comparison(study: Study, page: Any) -> None:
    assert len(trials(study)) == TRIALS
    page.goto(study.links["charts of all runs"])
    page.get_by_text(f"{TRIALS + 1} matching runs").wait_for()
    # Nobody has clicked: each group's chart is there, with a curve for each trial.
    for group in TINY_GROUPS:
        page.get_by_text(f"lr/{group}", exact=True).first.wait_for()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    page.wait_for_timeout(3000)
    page.screenshot(path="/tmp/charts.png")
    for group in TINY_GROUPS:
        card = page.locator(
            '[data-testid="experiment-view-compare-runs-card"]', has_text=f"lr/{group}"
        )
        print(group, card.count())
    print(page.content()[:200])
