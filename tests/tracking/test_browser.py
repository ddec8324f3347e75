"""What a person sees: MLflow's own pages of a real study, in a real Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient

import lrfinder
from benchmarks.servers import MlflowServer

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
    experiment_id: str
    links: dict[str, str]
    groups: list[str]
    folder: Path

    def trials(self) -> dict[str, str]:
        """Name -> run id."""
        found = self.client.search_runs(
            [self.experiment_id], f"tags.`lrfinder.parent` = '{self.run_id}'"
        )
        return {run.info.run_name: run.info.run_id for run in found}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A real search on the digits, recorded by a real server."""
    folder = tmp_path_factory.mktemp("browser")
    task = lrfinder.load_task("digits")
    started = task.start(0, device="cpu")
    result = lrfinder.range_test(
        started.model, started.optimizer, task.loss_fn, started.train_loader,
        effort="brackets", replicas=1,
    )  # fmt: skip
    with MlflowServer(folder) as server:
        recorder = lrfinder.MlflowRecorder(
            "digits", run_name="search", tracking_uri=server.uri, spool=folder / "spool"
        )
        with recorder:
            found = lrfinder.search(
                task, TRIALS, warm_start=result, recorder=recorder, pruner="NopPruner",
                sampler="RandomSampler", num_epochs=6, device="cpu",
            )  # fmt: skip
        report = lrfinder.make_report("Search", study=found, result=result)
        (folder / "report.html").write_text(lrfinder.report_html(report))
        comparison = lrfinder.compare(recorder.run_id, tracking_uri=server.uri)
        page = lrfinder.report_html(lrfinder.comparison_report(comparison))
        (folder / "compare.html").write_text(page)
        assert recorder.run_id is not None
        assert recorder.experiment_id is not None
        yield Study(
            MlflowClient(server.uri), recorder.run_id, recorder.experiment_id, recorder.links,
            list(task.groups), folder,
        )  # fmt: skip


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


def keep_picture(page: Any, name: str) -> None:
    """A picture for the docs, where somebody asks for them: LRFINDER_PICTURES names the folder."""
    if folder := os.environ.get("LRFINDER_PICTURES"):
        assistant = page.locator('button[aria-label="Close"]')
        if assistant.count():
            assistant.first.click()
        page.wait_for_timeout(3000)
        page.screenshot(path=Path(folder, f"{name}.png"))


# The runs that have a curve, of more than one point, in a chart of the metric.
CURVES = """metric => [...document.querySelectorAll(".js-plotly-plot")]
    .flatMap(plot => plot.data || [])
    .filter(curve => curve.metricKey === metric && curve.y && curve.y.length > 1)
    .map(curve => curve.name)"""


def curves_of(page: Any, metric: str, count: int) -> set[str]:
    """Waits for a chart of the metric with the curves of so many runs; their names."""
    enough = f"([metric, count]) => new Set(({CURVES})(metric)).size >= count"
    page.wait_for_function(enough, arg=[metric, count])
    return set(page.evaluate(CURVES, metric))


def test_the_chart_page_shows_every_group_s_lr_of_the_trials_without_a_click(
    study: Study, page: Any
) -> None:
    trials = study.trials()
    assert len(trials) == TRIALS
    page.goto(study.links["charts of all runs"])
    page.get_by_text(f"{TRIALS + 1} matching runs").wait_for()
    for metric in [*(f"lr/{group}" for group in study.groups), "train/loss"]:
        assert curves_of(page, metric, TRIALS) == set(trials)
    keep_picture(page, "charts")


def test_the_compare_page_names_the_trials_and_what_they_used(study: Study, page: Any) -> None:
    page.goto(study.links[f"the best {TRIALS} side by side"])
    page.get_by_text(f"Comparing {TRIALS} Runs").first.wait_for()
    text = page.locator("body").inner_text()
    for name in study.trials():
        assert name in text
    for group in study.groups:
        assert f"cfg/lrs/{group}" in text
    keep_picture(page, "compare")


def test_the_metric_pages_draw_each_group_s_lr(study: Study, page: Any) -> None:
    for group in study.groups:
        page.goto("about:blank")  # the pages differ in what comes after `#` alone
        page.goto(study.links[f"lr/{group} of the best {TRIALS}"])
        assert curves_of(page, f"lr/{group}", TRIALS) == set(study.trials())
    keep_picture(page, "metric")


def test_the_study_s_own_run_has_the_links_and_the_best_so_far(study: Study, page: Any) -> None:
    run = study.client.get_run(study.run_id)
    assert "search/best val/loss" in run.data.metrics
    address = study.links["charts of all runs"].split("#")[0]
    page.goto(f"{address}#/experiments/{study.experiment_id}/runs/{study.run_id}")
    for title in study.links:
        link = page.get_by_role("link", name=title, exact=True)
        link.wait_for()
    keep_picture(page, "study")


@pytest.mark.parametrize("name", ["report", "compare"])
def test_our_own_pages_open_without_a_network_and_without_errors(
    study: Study, page: Any, name: str
) -> None:
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.context.set_offline(True)
    address = (study.folder / f"{name}.html").as_uri()
    page.goto(address)
    assert page.locator("svg").count() >= 1
    assert page.locator("table").count() >= 1
    assert requests == [address]
    assert messages == []
    keep_picture(page, f"{name}-page")
