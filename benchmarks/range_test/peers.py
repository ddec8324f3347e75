"""The other LR finders, each as released and at its defaults, in an environment of their own.

That environment sees this one's torch, so it holds only the four packages. It is spoken to in
JSON: tasks and seeds go in, a learning rate or the reason why there is none comes out.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrfinder
from benchmarks.range_test.tasks import Problem, problems

PACKAGES = (
    "torch-lr-finder==0.2.2",
    "pytorch-ignite==0.5.5",
    "lightning==2.6.6",
    "fastai==2.8.12",
)
NUM_STEPS = 100  # the default of all but ignite, whose is one pass over the data
Finder = Callable[[Problem, int], dict[str, float]]


# -- from this environment ------------------------------------------------------------------------


def make_environment(folder: Path) -> Path:
    """The Python of an environment that holds the peers and sees the packages of this one."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    (Path(site) / "parent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def suggestions(
    python: Path, chosen: Sequence[Problem], seeds: Sequence[int], data: str | None
) -> list[dict[str, Any]]:
    """What each peer says on each task and seed: method, task, seed, lr (None: refused), message."""
    asked = {"tasks": [problem.name for problem in chosen], "seeds": list(seeds), "data": data}
    command = [str(python), "-m", "benchmarks.range_test.peers"]
    root = Path(__file__).parents[2]
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(
            command, input=json.dumps(asked), stdout=subprocess.PIPE, stderr=log, text=True, cwd=root
        )  # fmt: skip
        log.seek(0)
        if done.returncode:
            raise RuntimeError(f"The peers ended with status {done.returncode}:\n{log.read()}")
    # What peers print comes before.
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


# -- in the peers' environment --------------------------------------------------------------------


def _parts(
    problem: Problem, seed: int
) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    """Model, optimizer and a loader of torch, as every peer takes them."""
    model = problem.model(seed)
    optimizer = problem.make_optimizer([{"params": list(model.parameters())}])
    loader = DataLoader(
        TensorDataset(*problem.data[0]),
        batch_size=problem.batch_size,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )
    return model, optimizer, loader


def torch_lr_finder(problem: Problem, seed: int) -> dict[str, float]:
    """torch-lr-finder: the steepest point of its curve."""
    from matplotlib.figure import Figure
    from torch_lr_finder import LRFinder

    model, optimizer, loader = _parts(problem, seed)
    finder = LRFinder(model, optimizer, problem.criterion, device="cpu")
    finder.range_test(loader, end_lr=10, num_iter=NUM_STEPS)
    found = finder.plot(ax=Figure().subplots(), suggest_lr=True)
    return {"torch-lr-finder": float(found[1])}


def ignite(problem: Problem, seed: int) -> dict[str, float]:
    """pytorch-ignite's FastaiLRFinder."""
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    model, optimizer, loader = _parts(problem, seed)
    trainer = create_supervised_trainer(model, optimizer, problem.criterion)
    finder = FastaiLRFinder()
    saved = {"model": model, "optimizer": optimizer}
    with finder.attach(trainer, to_save=saved, num_iter=NUM_STEPS, end_lr=10.0) as attached:
        attached.run(loader, max_epochs=math.ceil(NUM_STEPS / len(loader)))
    return {"ignite": float(finder.lr_suggestion())}


def lightning(problem: Problem, seed: int) -> dict[str, float]:
    """Lightning's Tuner."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner

    model, optimizer, loader = _parts(problem, seed)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = model, 1e-7

        def training_step(self, batch: Any, index: int) -> Any:
            return problem.criterion(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return optimizer

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, max_epochs=100,
        )  # fmt: skip
        found = Tuner(trainer).lr_find(Module(), train_dataloaders=loader)
        return {"lightning": float(found.suggestion())}


def fastai(problem: Problem, seed: int) -> dict[str, float]:
    """The four rules of fastai, on one sweep."""
    from fastai.callback.schedule import minimum, slide, steep, valley
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as FastaiLoader
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    model, _, _ = _parts(problem, seed)
    lrfinder.seed_everything(seed)  # its loader has no generator of its own
    train, val = (TensorDataset(*pair) for pair in problem.data)
    loaders = DataLoaders(
        FastaiLoader(train, bs=problem.batch_size, shuffle=True, drop_last=True),
        FastaiLoader(val, bs=1000),
        device=torch.device("cpu"),
    )
    options: dict[str, Any] = {"opt": torch.optim.AdamW}
    if problem.optimizer == "SGD":
        options = {"opt": torch.optim.SGD, "momentum": 0.9}
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            loaders,
            model,
            loss_func=problem.criterion,
            opt_func=functools.partial(OptimWrapper, **options),
            path=folder,
        )
        rules = (valley, slide, minimum, steep)
        with learner.no_bar(), learner.no_logging():
            found = learner.lr_find(suggest_funcs=rules, show_plot=False)
    return {f"fastai {name}": float(getattr(found, name)) for name in found._fields}


FINDERS: dict[Finder, tuple[str, ...]] = {
    torch_lr_finder: ("torch-lr-finder",),
    ignite: ("ignite",),
    lightning: ("lightning",),
    fastai: ("fastai valley", "fastai slide", "fastai minimum", "fastai steep"),
}


def answers(problem: Problem, seed: int) -> Iterator[dict[str, Any]]:
    """What each peer says; where one says nothing, or crashes, there is no LR."""
    for finder, methods in FINDERS.items():
        began = time.perf_counter()
        found: dict[str, float] = {}
        message = ""
        try:
            found = finder(problem, seed)
        except Exception as error:  # that a peer crashes is a result, which is counted and shown
            message = f"{type(error).__name__}: {error}"
        seconds = round(time.perf_counter() - began, 3)
        for method in methods:
            lr = found.get(method, math.nan)
            good = math.isfinite(lr) and lr > 0
            yield {
                "task": problem.name, "method": method, "seed": seed, "lr": lr if good else None,
                "steps": NUM_STEPS, "seconds": seconds, "message": message,
            }  # fmt: skip


def main() -> None:
    """Answer what comes in on the standard input."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    known = problems(asked["data"])
    rows = [
        row
        for name in asked["tasks"]
        for seed in asked["seeds"]
        for row in answers(known[name], seed)
    ]
    print("\n" + json.dumps(rows))


if __name__ == "__main__":
    main()
