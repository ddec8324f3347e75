from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric
from rich.console import Console

from lrfinder.comparing import Comparison, compare
from lrfinder.comparing.histories import RecordedRun
from lrfinder.delivering.stores import RecordError
from lrfinder.tracking import MlflowRecorder


@pytest.fixture(scope="module")
def study(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store with a study of three trials (one diverged), another run, and a run without val/loss."""
    import shutil

    path = tmp_path_factory.mktemp("study") / "mlflow.db"
    shutil.copy(mlflow_template, path)
    uri = f"sqlite:///{path}"
    with MlflowRecorder("digits", run_name="study", tracking_uri=uri) as parent:
        for i in range(3):
            with parent.child(f"trial-{i}") as trial:
                trial.log_params({"lrs": {"body": 0.1 * (i + 1)}, "seed": 0, "name": f"n{i}"})
                trial.set_tags({"lrfinder.status": "diverged" if i == 2 else "completed"})
                for step in range(20):
                    trial.log_metrics(
                        step,
                        {
                            "train/loss": 2.0 - 0.1 * step,
                            "lr/body": 0.1 * 0.9**step,
                            "lr/head": 0.0,
                        },
                    )
                for step, value in (
                    (9, 1.0 - 0.1 * i),
                    (19, math.inf if i == 2 else 1.5 - 0.5 * i),
                ):
                    trial.log_metrics(step, {"val/loss": value, "val/accuracy": value / 2})
        with MlflowRecorder("digits", run_name="it's mine", tracking_uri=uri) as other:
            other.log_metrics(4, {"val/loss": 0.75})
        with MlflowRecorder("bare", run_name="bare", tracking_uri=uri) as bare:
            bare.log_metrics(0, {"something": 1})
    return uri, parent.run_id


def names(comparison: Comparison) -> list[str]:
    return [run.name for run in comparison.runs]


def test_a_parent_stands_for_its_children(study: tuple[str, str]) -> None:
    uri, parent = study
    comparison = compare(parent, tracking_uri=uri)
    assert names(comparison) == ["trial-0", "trial-1", "trial-2"]
    steps, values = comparison.runs[0].lrs["body"]
    np.testing.assert_array_equal(steps, np.arange(20))
    np.testing.assert_allclose(values, 0.1 * 0.9 ** np.arange(20))
    assert set(comparison.runs[0].curves) == {"train/loss", "val/loss", "lr/body", "lr/head"}


def test_frame_holds_what_differs_and_what_came_out(study: tuple[str, str]) -> None:
    uri, parent = study
    comparison = compare(parent, tracking_uri=uri)
    frame = comparison.to_frame()
    assert list(frame.columns) == [
        "run", "name", "cfg/lrs/body", "cfg/name", "final", "best", "best_step", "steps", "status",
    ]  # fmt: skip
    assert frame["cfg/lrs/body"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert frame["cfg/name"].tolist() == ["n0", "n1", "n2"]
    assert frame["final"].tolist()[:2] == [1.5, 1.0]
    assert math.isnan(frame["final"][2])
    assert frame["best"].tolist() == pytest.approx([1.0, 0.9, 0.8])
    assert frame["best_step"].tolist() == [9, 9, 9]
    assert frame["steps"].tolist() == [20, 20, 20]
    assert frame["status"].tolist() == ["completed", "completed", "diverged"]
    assert comparison.winner is comparison.runs[2]


def test_direction_decides_what_is_best(study: tuple[str, str]) -> None:
    uri, parent = study
    comparison = compare(parent, metric="val/accuracy", direction="maximize", tracking_uri=uri)
    assert comparison.to_frame()["best"].tolist() == pytest.approx([0.75, 0.5, 0.4])
    assert comparison.winner is comparison.runs[0]


def test_runs_by_name_by_id_and_the_newest(study: tuple[str, str]) -> None:
    uri, _ = study
    by_name = compare(["trial-1", "it's mine"], experiment="digits", tracking_uri=uri)
    assert names(by_name) == ["trial-1", "it's mine"]
    assert by_name.differing == ["cfg/lrs/body", "cfg/name", "cfg/seed"]
    by_id = compare([run.run_id for run in by_name.runs] * 2, tracking_uri=uri)
    assert names(by_id) == ["trial-1", "it's mine"]
    newest = compare(experiment="digits", tracking_uri=uri)
    assert names(newest) == [
        "it's mine",
        "trial-2",
        "trial-1",
        "trial-0",
    ]  # the study has no val/loss


def test_filter(study: tuple[str, str]) -> None:
    uri, parent = study
    found = compare(parent, filter="metrics.`val/loss` < 1.2", tracking_uri=uri)
    assert names(found) == ["trial-1"]
    with pytest.raises(ValueError, match="`filter` must be an expression of MLflow's search"):
        compare(parent, filter="nonsense", tracking_uri=uri)


def test_what_is_not_there_is_said_with_what_is(study: tuple[str, str]) -> None:
    uri, parent = study
    with pytest.raises(ValueError, match=r"must exist, but got 'typo'\. Experiments .*'digits'"):
        compare(experiment="typo", tracking_uri=uri)
    with pytest.raises(
        ValueError, match=r"'digits', but got 'trial-9'\. Its newest are: .*trial-2"
    ):
        compare("trial-9", experiment="digits", tracking_uri=uri)
    with pytest.raises(ValueError, match="but got 'ffffffff"):
        compare("f" * 32, experiment="digits", tracking_uri=uri)
    with pytest.raises(ValueError, match=r"metric 'val/f1', but none has\. There are: .*val/loss"):
        compare(parent, metric="val/f1", tracking_uri=uri)
    with pytest.raises(
        ValueError, match=r"'Default' has none\. Experiments in this store: .*'bare'"
    ):
        compare(tracking_uri=uri)
    with pytest.raises(ValueError, match=r"has none with params\.x = '1'"):
        compare(experiment="digits", filter="params.x = '1'", tracking_uri=uri)
    with pytest.raises(ValueError, match="There are: something"):
        compare(experiment="bare", tracking_uri=uri)
    with pytest.raises(ValueError, match="At least one run must be given"):
        compare([], tracking_uri=uri)
    with pytest.raises(ValueError, match="`direction` must be 'minimize' or 'maximize'"):
        compare(parent, direction="down", tracking_uri=uri)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="There is no MLflow store"):
        compare(tracking_uri="sqlite:////nowhere/mlflow.db")


def test_long_histories_come_whole_and_in_order(mlflow_uri: str) -> None:
    client = MlflowClient(mlflow_uri)
    run_id = client.create_run("0").info.run_id
    steps = np.random.default_rng(0).permutation(26_000)  # more than one page of the store
    rows = [Metric("val/loss", float(step), 1, int(step)) for step in steps]
    for start in range(0, len(rows), 1000):
        client.log_batch(run_id, metrics=rows[start : start + 1000])
    client.log_batch(run_id, metrics=[Metric("val/loss", -1.0, 2, 7)])  # step 7 again, later
    (run,) = compare(run_id, tracking_uri=mlflow_uri).runs
    read, values = run.curves["val/loss"]
    np.testing.assert_array_equal(read, np.arange(26_000))
    expected = np.arange(26_000.0)
    expected[7] = -1.0
    np.testing.assert_array_equal(values, expected)
    assert run.hparams == {}
    assert run.status == "running"


def test_table(study: tuple[str, str]) -> None:
    uri, parent = study
    console = Console(file=io.StringIO(), width=120)
    console.print(compare([parent, "it's mine"], experiment="digits", tracking_uri=uri).table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "trial-0" in text
    assert "it's mine *" in text  # 0.75 is the best
    assert "lrs/body" in text
    assert "diverged" in text
    assert "cfg/" not in text


def test_plot(study: tuple[str, str], tmp_path: Path) -> None:
    uri, parent = study
    upper, lower = compare(parent, tracking_uri=uri).plot()
    assert len(upper.lines) == 6  # three runs, two groups
    assert len(lower.lines) == 6  # train/loss and val/loss of three runs
    colours = {line.get_color() for line in upper.lines}
    assert len(colours) == 3
    assert colours == {line.get_color() for line in lower.lines}
    assert {line.get_linestyle() for line in upper.lines} == {"-", "--"}
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["body", "head"]
    assert [text.get_text() for text in lower.get_legend().get_texts()] == [
        "trial-0", "trial-1", "trial-2",
    ]  # fmt: skip
    assert upper.get_shared_x_axes().joined(upper, lower)
    upper.figure.savefig(tmp_path / "comparison.png")


def test_plot_on_given_axes_and_of_many_runs() -> None:
    curve = (np.arange(2), np.array([1.0, math.nan]))
    runs = tuple(
        RecordedRun(run_id=f"{i:032x}", name="same", status="", hparams={}, curves={"m": curve})
        for i in range(9)
    )
    comparison = Comparison(runs=runs, metric="m")
    axes = Figure().subplots(2, 1)
    upper, lower = comparison.plot(axes)
    assert (upper, lower) == tuple(axes)
    assert upper.get_legend() is None  # no run has an LR
    labels = [text.get_text() for text in lower.get_legend().get_texts()]
    assert labels[0] == "same (000000)"
    lower.figure.canvas.draw()


def test_runs_without_finite_values_have_no_winner() -> None:
    curves = {"m": (np.arange(2), np.array([math.nan, math.inf]))}
    run = RecordedRun(run_id="a", name="a", status="diverged", hparams={}, curves=curves)
    none = RecordedRun(run_id="b", name="b", status="failed", hparams={}, curves={})
    comparison = Comparison(runs=(run, none), metric="m")
    assert comparison.winner is None
    frame = comparison.to_frame()
    assert frame["best"].isna().all()
    assert frame["best_step"].isna().all()
    assert frame["steps"].tolist() == [2, 0]
    comparison.table()


# -- seeds and studies ----------------------------------------------------------------------------


def recorded(name: str, seed: int, lr: str, losses: list[float]) -> RecordedRun:
    steps = np.arange(len(losses))
    curves = {"val/loss": (steps, np.array(losses)), "lr/head": (steps, np.full(len(losses), 0.1))}
    hparams = {"cfg/lr": lr, "cfg/seed": str(seed)}
    return RecordedRun(
        run_id=f"{name}{seed}", name=f"{name} seed {seed}", status="completed", hparams=hparams,
        curves=curves,
    )  # fmt: skip


SEEDS = (
    recorded("found", 1, "0.1", [3.0, 1.0]),
    recorded("found", 2, "0.1", [5.0, 2.0]),
    recorded("found", 3, "0.1", [4.0, math.inf]),
    recorded("default", 1, "0.2", [6.0, 4.0, 3.0]),
)


def test_seeds_are_taken_together() -> None:
    comparison = Comparison(runs=SEEDS, metric="val/loss")
    found, default = comparison.variants
    assert (found.name, len(found.runs)) == ("found", 3)
    assert (default.name, len(default.runs)) == ("default seed 1", 1)
    band = found.band("val/loss")
    assert band is not None
    np.testing.assert_array_equal(band[0], [0, 1])
    np.testing.assert_array_equal(band[1][:, 0], [4.0, 3.0, 5.0])  # mean, lowest, highest
    assert found.band("no/such") is None
    frame = comparison.summary()
    assert list(frame.columns) == [
        "variant", "cfg/lr", "runs", "diverged", "final", "final_sd", "best", "best_sd",
    ]  # fmt: skip
    assert frame["runs"].tolist() == [3, 1]
    assert frame["diverged"].tolist() == [1, 0]
    assert frame["final"].tolist() == [1.5, 3.0]
    assert frame["final_sd"][0] == pytest.approx(math.sqrt(0.5))
    assert math.isnan(frame["final_sd"][1])
    assert frame["best"][0] == pytest.approx((1 + 2 + 4) / 3)


def test_seeds_are_drawn_as_a_mean_and_a_band(tmp_path: Path) -> None:
    upper, lower = Comparison(runs=SEEDS, metric="val/loss").plot()
    assert len(lower.lines) == 2
    assert len(lower.collections) == 1  # the band of the one that has several seeds
    labels = [text.get_text() for text in lower.get_legend().get_texts()]
    assert labels == ["found, 3 runs", "default seed 1"]
    np.testing.assert_array_equal(lower.lines[0].get_ydata()[0], 4.0)
    upper.figure.savefig(tmp_path / "bands.png")


def test_runs_without_hparams_stay_alone() -> None:
    curve = (np.arange(2), np.ones(2))
    runs = tuple(
        RecordedRun(run_id=str(i), name="r", status="", hparams={}, curves={"m": curve})
        for i in range(3)
    )
    assert [len(variant.runs) for variant in Comparison(runs=runs, metric="m").variants] == [1] * 3


def test_a_study_s_best_trials_by_its_name(mlflow_uri: str) -> None:
    with MlflowRecorder(run_name="search", tags={"optuna.study_name": "it's"}) as parent:
        for i, value in enumerate([3.0, 1.0, 2.0, math.nan]):
            tags = {"optuna.study_name": "it's", "optuna.trial_number": i}
            with parent.child(f"trial {i}", **tags) as trial:
                trial.log_metrics(0, {"val/loss": value})
    found = compare(study="it's", tracking_uri=mlflow_uri)
    assert names(found) == ["trial 1", "trial 2", "trial 0", "trial 3"]
    with pytest.raises(ValueError, match="name of a study with trials in experiment 'Default'"):
        compare(study="other", tracking_uri=mlflow_uri)
    with pytest.raises(ValueError, match="must be given alone"):
        compare("x", study="it's", tracking_uri=mlflow_uri)


def test_the_page_holds_what_the_tables_hold(study: tuple[str, str]) -> None:
    import lrfinder

    uri, parent = study
    comparison = compare([parent, "it's mine"], experiment="digits", tracking_uri=uri)
    report = lrfinder.comparison_report(comparison)
    page = lrfinder.report_html(report)
    for run in comparison.runs:
        assert run.name.replace("'", "&#39;") in page
    assert "lrs/body" in page
    assert "<svg" in page
    assert "Best val/loss: it&#39;s mine, 0.75." in page
    tables = lrfinder.report_tables(report)
    assert tables[-1].row_count == 4
    seeds = lrfinder.report_html(
        lrfinder.comparison_report(Comparison(runs=SEEDS, metric="val/loss"))
    )
    assert "1.5 ± 0.71" in seeds
