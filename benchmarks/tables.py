"""Writes the benchmark tables of README.md and docs/ from the result files, so that no number is typed twice.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; this fills it in:

    python -m benchmarks.tables            # write
    python -m benchmarks.tables --check    # exit status 1 where a table is not what its result
    file says
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.tables import TABLES as FAULTS_TABLES
from benchmarks.markdown import read, rows_to_markdown, source
from benchmarks.range_test.tables import TABLES as RANGE_TEST_TABLES
from benchmarks.searching.tables import TABLES as SEARCHING_TABLES

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def house() -> str:
    """The costs of the ordinary path, each against its bar."""
    overhead, imports, lrs = read("overhead"), read("imports"), read("recorded_lrs")
    rows = []
    for row in overhead["rows"][1:]:
        spread = f"[{row['quartile_1']:.3f}, {row['quartile_3']:.3f}]"
        rows.append(
            [
                f"`{row['arm']}` / bare PyTorch loop, time per step",
                f"{row['ratio']:.3f} {spread}",
                f"<= {row['bar']}",
            ]
        )
    ours = imports["rows"][-1]
    spread = f"[{ours['quartile_1']:.3f}, {ours['quartile_3']:.3f}]"
    rows.append(
        [
            "`import lrfinder` / `import torch`",
            f"{ours['ratio']:.3f} {spread}",
            f"<= {imports['bar']}",
        ]
    )
    rows.append(
        [
            f"recorded LR = used LR, over {len({r['scheduler'] for r in lrs['rows']})} schedulers",
            f"{lrs['agree']} of {lrs['total']}",
            "all",
        ]
    )
    table = rows_to_markdown(["what", "measured: median [quartiles]", "bar"], rows)
    return table + "".join(source(data) for data in (overhead, imports, lrs))


def real_images() -> str:
    """What all of CIFAR-10 takes."""
    data = read("real_images")
    rows = []
    for row in data["rows"]:
        steps = str(row.get("steps", ""))
        found = ", ".join(f"{name} {lr:.2g}" for name, lr in row.get("suggestion", {}).items())
        if "val/accuracy" in row:
            found = f"accuracy {100 * row['val/accuracy']:.1f} % on the test images"
        rows.append([row["what"], f"{row['seconds']:.1f}", steps, found])
    return rows_to_markdown(["what", "seconds", "steps", "result"], rows) + source(data)


def threads() -> str:
    """One thread against all, alone and beside neighbours."""
    data = read("threads")
    rows = [
        [
            str(row["busy_neighbours"]),
            str(row["threads"]),
            f"{row['ms_per_step']:.2f} [{row['quartile_1']:.2f}, {row['quartile_3']:.2f}]",
        ]
        for row in data["rows"]
    ]
    header = ["busy neighbours", "CPU threads", "ms per step: median [quartiles]"]
    return rows_to_markdown(header, rows) + source(data)


def fine_tune() -> str:
    """Suggestions for a Trainer against the best of a grid, and those of Lightning's finder."""
    data = read("fine_tune")
    rows = []
    for row in data["rows"]:
        found = [one for one in row["found"] if one["suggested"] is not None]
        errors = [one["error"] for one in found]
        others = sorted(one["lightning"] for one in row["found"] if one["lightning"] is not None)
        spread = f" [{min(errors):+.2f}, {max(errors):+.2f}]" if errors else ""
        rows.append(
            [
                row["case"],
                f"{row['best']:.1e}",
                f"{statistics.median(one['suggested'] for one in found):.1e}" if found else "",
                f"{statistics.median(errors):+.2f}{spread}" if found else "",
                f"{statistics.mean(one['loss'] for one in found) / row['best_loss']:.3f}"
                if found
                else "",
                f"{len(row['found']) - len(found)} of {len(row['found'])}",
                f"{others[0]:.1e} .. {others[-1]:.1e}" if others else "none",
            ]
        )
    header = [
        "training",
        "best LR of the grid",
        "suggested, median",
        f"error, decades: median [least, largest]; bar: {data['bar']}",
        "loss / best",
        "refused",
        "Lightning's finder",
    ]
    return rows_to_markdown(header, rows) + source(data)


def lockstep() -> str:
    """Many replicas in one step against one after the other."""
    data = read("lockstep")
    rows = []
    for row in data["rows"]:
        if "ratio" not in row:
            continue
        spread = f"{row['ratio']:.2f} [{row['quartile_1']:.2f}, {row['quartile_3']:.2f}]"
        bar = f"<= {row['bar']:g}" if " / " in row["what"] else f">= {row['bar']:g}"
        gap = f"{row['largest_gap']:.0e}" if "largest_gap" in row else ""
        threads = f"{row['against_threads']} / {row['threads']}"
        rows.append([row["what"], str(row.get("replicas", "")), spread, bar, threads, gap])
    header = [
        "what",
        "replicas",
        "ratio of wall times: median [quartiles]",
        "bar",
        "CPU threads, one by one / together",
        "largest gap of a loss",
    ]
    counts = ", ".join(
        f"{row['operations']} for {row['replicas']}" for row in data["rows"] if "operations" in row
    )
    return (
        rows_to_markdown(header, rows)
        + f"\nOperations that one step of `Net` dispatches: {counts} replicas.\n"
        + source(data)
    )


def records() -> str:
    """What records cost, and what of them is lost: nothing."""
    data = read("records")
    rows = []
    for row in data["rows"]:
        bar = ""
        if "times" in row:
            found = f"{row['recorder']:,.0f}: {row['times']:.0f} x `log_metric` ({row['log_metric']:,.0f}), "
            found += f"{100 * row['of_log_batch']:.0f} % of bare `log_batch`"
            bar = f">= {row['bar']:.0f} x"
        elif "ratio" in row:
            found = f"{row['ratio']:.4f} [{row['quartile_1']:.4f}, {row['quartile_3']:.4f}]"
            bar = f"<= {row['bar']}" if "bar" in row else ""
        elif "microseconds" in row:
            spread = f"[{row['quartile_1']:.1f}, {row['quartile_3']:.1f}]"
            found, bar = f"{row['microseconds']:.1f} us {spread}", f"<= {row['bar']:.0f} us"
        elif "mebibytes" in row:
            found, bar = f"{row['mebibytes']:.0f} MB", f"<= {row['bar']:.0f} MB"
        else:
            found = f"{row['missing']} missing, {row['doubled']} doubled of {row['rows']:,} steps"
            bar = "0, 0"
            if "longest_log_step_ms" in row:
                found += f"; longest `log_step` {row['longest_log_step_ms']:.1f} ms"
                bar += f"; <= {row['bar_ms']:.0f} ms"
        rows.append([row["what"], found, bar])
    return rows_to_markdown(["what", "measured: median [quartiles]", "bar"], rows) + source(data)


def matrix() -> str:
    """Which releases the wheel was run with."""
    data = read("matrix")
    names = ("python", "torch", "mlflow", "optuna", "numpy", "pandas", "matplotlib")
    rows = []
    for row in data["rows"]:
        failed = ", ".join(row["failed"])
        found = [row.get(name, "-") for name in names]
        ran = row.get("tests", "all")
        extras = ", ".join(f"{name} {version}" for name, version in row.get("extras", {}).items())
        bounds = f"oldest, and {extras}" if extras else row["bounds"]
        rows.append([bounds, *found, f"failed: {failed}" if failed else ran])
    header = ["of each dependency the", "Python", *names[1:], "ran"]
    return rows_to_markdown(header, rows) + source(data)


TABLES: dict[str, Callable[[], str]] = {
    "fine_tune": fine_tune,
    "house": house,
    "lockstep": lockstep,
    "matrix": matrix,
    "real_images": real_images,
    "records": records,
    "threads": threads,
    **FAULTS_TABLES,
    **RANGE_TEST_TABLES,
    **SEARCHING_TABLES,
}


def fill(text: str) -> str:
    """The text with every table written anew."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], text)


def main(argv: list[str] | None = None) -> int:
    """Write the tables, or check them."""
    arguments = sys.argv[1:] if argv is None else argv
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        text = path.read_text()
        filled = fill(text)
        if filled != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in arguments:
                path.write_text(filled)
    for path in stale:
        print(("stale: " if "--check" in arguments else "written: ") + str(path))
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main())
