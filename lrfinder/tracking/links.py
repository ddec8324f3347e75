"""Links: addresses of the pages of MLflow that show what one wants to see first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

LOCAL_UI = "http://127.0.0.1:5000"  # where `mlflow ui` listens
MOST_RUNS = 20  # of one page: an address has some 2000 characters that every browser takes


def ui_address(tracking_uri: str) -> str:
    """Where the pages of a store are: its server, or that of `mlflow ui`.

    Example:
        >>> ui_address("sqlite:////data/mlflow.db"), ui_address("https://mlflow.example/")
        ('http://127.0.0.1:5000', 'https://mlflow.example')
    """
    is_server = tracking_uri.startswith(("http://", "https://"))
    return tracking_uri.rstrip("/") if is_server else LOCAL_UI


def chart_page(address: str, experiment_id: str, filter_: str = "") -> str:
    """The charts of an experiment's runs side by side, of those that meet a search expression."""
    found = f"&searchFilter={quote(filter_, safe='')}" if filter_ else ""
    return f"{address}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART{found}"


def compare_page(address: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Params and last values of some runs side by side."""
    runs = _quoted(list(run_ids)[:MOST_RUNS])
    return f"{address}/#/compare-runs?runs={runs}&experiments={_quoted([experiment_id])}"


def metric_page(address: str, experiment_id: str, run_ids: Sequence[str], metric: str) -> str:
    """One metric of some runs over their steps; learning rates on a logarithmic axis."""
    options = {
        "runs": list(run_ids)[:MOST_RUNS],
        "metric": metric,
        "experiments": [experiment_id],
        "plot_metric_keys": [metric],
        "plot_layout": {},
        "deselected_curves": [],
        "last_linear_y_axis_range": [],
    }
    query = "&".join(f"{name}={_quoted(value)}" for name, value in options.items())
    scale = "log" if metric.startswith("lr/") else "linear"
    plain = f"x_axis=step&y_axis_scale={scale}&line_smoothness=0&show_point=false"
    return f"{address}/#/metric?{query}&{plain}"


def pages(
    address: str, experiment_id: str, run_ids: Sequence[str], metrics: Sequence[str], filter_: str
) -> dict[str, str]:
    """All of the above by title: the charts, and the best runs side by side, in sum and by metric."""
    found = {"charts of all runs": chart_page(address, experiment_id, filter_)}
    if run_ids:
        count = min(len(run_ids), MOST_RUNS)
        found[f"the best {count} side by side"] = compare_page(address, experiment_id, run_ids)
        for name in metrics:
            page = metric_page(address, experiment_id, run_ids, name)
            found[f"{name} of the best {count}"] = page
    return found


def as_note(links: Mapping[str, str]) -> str:
    """Links as MLflow's pages show them in a run's description."""
    return "\n".join(f"- [{title}]({address})" for title, address in links.items())


def _quoted(value: object) -> str:
    return quote(json.dumps(value, separators=(",", ":")), safe="")
