from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lrfinder
from lrfinder import CheckpointError, StepOptions, StopTraining, Trace, train
from lrfinder.training.checkpoints import best_path, load_checkpoint
from tests.helpers import (
    Quadratic,
    TinyNet,
    cross_entropy,
    quadratic_loss,
    same,
    tiny_data,
    tiny_loader,
    tiny_optimizer,
)

STEP_LR = {"name": "StepLR", "step_size": 2, "gamma": 0.5}
STEPS_PER_EPOCH = 3


def fresh(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = TinyNet()
    return model, tiny_optimizer(model, **options)


def test_epoch_line_shows_the_lr_that_the_epoch_used(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, cross_entropy, tiny_loader(), num_epochs=4, scheduler=STEP_LR)
    assert capsys.readouterr().out.splitlines() == [
        "Epoch [1/4], Learning Rate: 0.100000",
        "Epoch [2/4], Learning Rate: 0.100000",
        "Epoch [3/4], Learning Rate: 0.050000",
        "Epoch [4/4], Learning Rate: 0.050000",
    ]


def test_epoch_line_names_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = fresh()
    lrfinder.set_learning_rate(optimizer, {"head": 0.01})
    train(model, optimizer, cross_entropy, tiny_loader(), num_epochs=1)
    assert capsys.readouterr().out == "Epoch [1/1], Learning Rate: body 0.100000, head 0.010000\n"


def test_quiet_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = fresh()
    train(model, optimizer, cross_entropy, tiny_loader(), num_epochs=1, verbose=False)
    assert capsys.readouterr().out == ""


def test_trace_has_every_step_and_each_evaluation() -> None:
    model, optimizer = fresh()
    trace = train(
        model,
        optimizer,
        cross_entropy,
        tiny_loader(),
        num_epochs=4,
        scheduler=STEP_LR,
        val_loader=[tiny_data(seed=1)],
        metrics={"accuracy": lrfinder.accuracy},
        verbose=False,
    )
    assert trace.status == "completed"
    assert len(trace) == 4 * STEPS_PER_EPOCH
    assert trace.lrs["head"].tolist() == [0.1] * 6 + [0.05] * 6
    for name in ("val/loss", "val/accuracy"):
        assert trace.metrics[name][0].tolist() == [2, 5, 8, 11]
    assert all(module.training for module in model.modules())


def used_lrs(optimizer: torch.optim.Optimizer) -> list[list[float]]:
    """Spy on the optimizer: the LRs at the moment of each update."""
    used: list[list[float]] = []
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: used.append([float(group["lr"]) for group in opt.param_groups])
    )
    return used


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize(
    "spec",
    [
        {"name": "StepLR", "step_size": 2, "gamma": 0.5},
        {"name": "MultiStepLR", "milestones": [1, 3], "gamma": 0.1},
        {"name": "ExponentialLR", "gamma": 0.9},
        {"name": "CosineAnnealingLR", "T_max": 4},
        {"name": "OneCycleLR", "total_steps": 20},
        {"name": "ReduceLROnPlateau", "patience": 0, "factor": 0.5},
        {
            "name": "SequentialLR",
            "schedulers": [
                {"name": "LinearLR", "start_factor": 0.1, "total_iters": 2},
                {"name": "ExponentialLR", "gamma": 0.5},
            ],
            "milestones": [2],
        },
    ],
    ids=lambda spec: spec["name"] if isinstance(spec, dict) else spec,
)
def test_recorded_lr_is_the_used_lr(spec: dict[str, Any], interval: str) -> None:
    if spec["name"] == "ReduceLROnPlateau" and interval == "step":
        pytest.skip("its metric is measured each epoch")
    model, optimizer = fresh()
    lrfinder.set_learning_rate(optimizer, {"body": 0.01})
    used = used_lrs(optimizer)
    trace = train(
        model,
        optimizer,
        cross_entropy,
        tiny_loader(),
        num_epochs=5,
        scheduler={**spec, "interval": interval},
        val_loader=[tiny_data(seed=1)],
        verbose=False,
    )
    assert len(used) == 15
    assert [list(row) for row in zip(*trace.lrs.values(), strict=True)] == used
    assert len(set(trace.lrs["head"].tolist())) > 1


def test_a_torch_scheduler_is_stepped_each_epoch() -> None:
    model, optimizer = fresh()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    trace = train(
        model,
        optimizer,
        cross_entropy,
        tiny_loader(),
        num_epochs=2,
        scheduler=scheduler,
        verbose=False,
    )
    assert trace.lrs["body"].tolist() == pytest.approx([0.1] * 3 + [0.01] * 3)


def test_lrs_may_be_changed_by_hand_while_training() -> None:
    model, optimizer = fresh()

    def by_hand(epoch: int, values: Any, trace: Trace) -> None:
        if epoch + 1 == 2:  # from epoch 2 on (0-based)
            lrfinder.set_learning_rate(optimizer, 0.01)
        if epoch + 1 == 3:
            lrfinder.scale_learning_rate(optimizer, 0.1)

    trace = train(
        model,
        optimizer,
        cross_entropy,
        tiny_loader(),
        num_epochs=4,
        on_epoch=by_hand,
        verbose=False,
    )
    assert trace.lrs["body"].tolist() == pytest.approx([0.1] * 6 + [0.01] * 3 + [0.001] * 3)


def test_frozen_batchnorm_stays_frozen_and_a_model_in_eval_mode_trains() -> None:
    model, optimizer = fresh()
    model.body[1].eval()
    mean = model.body[1].running_mean.clone()
    train(
        model,
        optimizer,
        cross_entropy,
        tiny_loader(),
        num_epochs=1,
        val_loader=[tiny_data()],
        verbose=False,
    )
    assert torch.equal(model.body[1].running_mean, mean)
    assert [module.training for module in model.body] == [True, False, True, True]
    model.eval()
    train(model, optimizer, cross_entropy, tiny_loader(), num_epochs=1, verbose=False)
    assert not torch.equal(model.body[1].running_mean, mean)


def test_diverged_training_is_a_result_with_its_record_intact() -> None:
    model = Quadratic(a=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e9)
    trace = train(model, optimizer, quadratic_loss, [None] * 50, num_epochs=2, verbose=False)
    assert trace.status == "diverged"
    assert 2 < len(trace) < 50
    assert trace.diverged_at == len(trace) - 1


def test_early_stopping() -> None:
    values = iter([3.0, 2.0, 2.5, 2.4, 2.3, 1.0])

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            return cross_entropy(model, batch)
        return torch.tensor(next(values))

    model, optimizer = fresh()
    trace = train(
        model,
        optimizer,
        loss_fn,
        tiny_loader(),
        num_epochs=6,
        val_loader=[tiny_data()],
        patience=2,
        verbose=False,
    )
    assert (trace.status, trace.message) == ("stopped", "val/loss was not better for 2 epochs.")
    assert trace.metrics["val/loss"][1].tolist() == [3.0, 2.0, 2.5, pytest.approx(2.4)]


@pytest.mark.parametrize("status", ["stopped", "pruned"])
def test_on_epoch_may_stop(status: Any) -> None:
    def stop(epoch: int, values: Any, trace: Trace) -> None:
        if epoch == 1:
            raise StopTraining("enough", status=status)

    model, optimizer = fresh()
    trace = train(
        model, optimizer, cross_entropy, tiny_loader(), num_epochs=9, on_epoch=stop, verbose=False
    )
    assert (trace.status, trace.message, len(trace)) == (status, "enough", 6)


class Recorder:
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, list[float]]] = []
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.params: dict[str, Any] = {}
        self.tags: dict[str, Any] = {}
        self.traces: list[Trace] = []
        self.datasets: list[tuple[str, str, str]] = []

    def log_params(self, params: Any) -> None:
        self.params |= params

    def log_step(
        self, step: int, loss: Any, optimizer: torch.optim.Optimizer, **metrics: Any
    ) -> None:
        self.steps.append((step, float(loss), list(lrfinder.learning_rates(optimizer).values())))

    def log_metrics(self, step: int, metrics: Any) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_trace(self, trace: Trace, name: str = "trace") -> None:
        self.traces.append(trace)

    def set_tags(self, tags: Any) -> None:
        self.tags |= tags

    def log_dataset(self, name: str, *, digest: str, **more: Any) -> None:
        self.datasets.append((name, digest, more.get("context", "training")))


def test_recorder_gets_what_the_trace_has() -> None:
    model, optimizer = fresh()
    recorder = Recorder()
    trace = train(
        model,
        optimizer,
        cross_entropy,
        tiny_loader(),
        num_epochs=4,
        scheduler={**STEP_LR, "interval": "step"},
        val_loader=[tiny_data()],
        recorder=recorder,
        verbose=False,
        seed=3,
    )
    rows = zip(*trace.lrs.values(), strict=True)
    assert recorder.steps == [(s, trace.losses[s], list(row)) for s, row in enumerate(rows)]
    assert [step for step, _ in recorder.metrics] == [2, 5, 8, 11]
    assert recorder.metrics[0][1]["epoch"] == 1.0
    assert recorder.params["schedule"] == {**STEP_LR, "interval": "step"}
    assert recorder.params["lrs"] == {"body": 0.1, "head": 0.1}
    assert recorder.tags["lrfinder.status"] == "completed"
    assert recorder.traces == [trace]
    (name, digest, context), (_, _, other) = recorder.datasets
    assert (name, context, other) == ("TensorDataset", "training", "validation")
    assert len(digest) == 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_record_is_complete_after_an_exception(error: type[BaseException]) -> None:
    def fails(epoch: int, values: Any, trace: Trace) -> None:
        raise error("no")

    model, optimizer = fresh()
    recorder = Recorder()
    with pytest.raises(error):
        train(
            model,
            optimizer,
            cross_entropy,
            tiny_loader(),
            num_epochs=2,
            on_epoch=fails,
            recorder=recorder,
            verbose=False,
        )
    assert len(recorder.traces[0]) == 3
    assert recorder.tags["lrfinder.status"] == (
        "interrupted" if error is KeyboardInterrupt else "failed"
    )


# -- checkpoints
# --------------------------------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818 - what happens to a process
    pass


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "buffers": dict(model.named_buffers()),
        "optimizer": optimizer.state_dict(),
    }


def own_generator_loader() -> DataLoader[Any]:
    return tiny_loader(generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("kill_at", [1, 2, 3, 5, 6, 10])
@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.parametrize("loader", [tiny_loader, own_generator_loader])
@pytest.mark.parametrize("scaled", [False, True])
def test_killed_training_ends_with_the_same_weights(
    tmp_path: Path, kill_at: int, every: int | None, loader: Any, scaled: bool
) -> None:
    def run(path: Path | None, kill_at: int | None) -> tuple[dict[str, Any], Trace]:
        model, optimizer = fresh()
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2) if scaled else None

        def on_step(step: int, loss: Tensor) -> None:
            if step == kill_at:
                raise Killed

        trace = train(
            model,
            optimizer,
            cross_entropy,
            loader(),
            num_epochs=4,
            scheduler={"name": "CosineAnnealingLR", "T_max": 9, "interval": "step"},
            val_loader=[tiny_data(seed=1)],
            checkpoint=path,
            checkpoint_every=None if path is None else every,
            options=StepOptions(scaler=scaler),
            seed=11,
            on_step=on_step,
            verbose=False,
        )
        return full_state(model, optimizer), trace

    expected, whole = run(None, None)
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        run(path, kill_at)
    torch.manual_seed(99)  # the random state of a new process is another one
    state, trace = run(path, None)
    assert same(state, expected)
    assert trace.to_dict() == whole.to_dict()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resume_in_the_middle_of_an_epoch_uses_each_batch_once(
    tmp_path: Path, accumulation: int
) -> None:
    seen: list[float] = []

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch[0].sum().item())
        return cross_entropy(model, batch)

    def run(kill_at: int | None) -> None:
        model, optimizer = fresh()

        def on_step(step: int, loss: Tensor) -> None:
            if step == kill_at:
                raise Killed

        loader = DataLoader(TensorDataset(*tiny_data(40)), batch_size=8, shuffle=True)
        train(
            model,
            optimizer,
            loss_fn,
            loader,
            num_epochs=1,
            checkpoint=tmp_path / f"{kill_at is None}.pt"
            if kill_at == -1
            else tmp_path / "run.pt",
            checkpoint_every=1,
            options=StepOptions(accumulation=accumulation),
            seed=1,
            on_step=on_step,
            verbose=False,
        )

    run(-1)
    whole, seen[:] = list(seen), []
    with pytest.raises(Killed):
        run(1)
    seen[:] = []
    run(None)
    assert seen == whole[accumulation:]  # step 0 was saved; step 1 was taken but not saved


def test_finished_training_is_not_trained_again_but_goes_on_to_more_epochs(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def run(num_epochs: int, path: Path | None = path) -> tuple[dict[str, Any], Trace]:
        model, optimizer = fresh()
        trace = train(
            model,
            optimizer,
            cross_entropy,
            tiny_loader(),
            num_epochs=num_epochs,
            checkpoint=path,
            seed=1,
            verbose=False,
        )
        return full_state(model, optimizer), trace

    first, trace = run(2)
    again, trace_again = run(2)
    assert same(first, again)
    assert trace_again.to_dict() == trace.to_dict()
    more, trace_more = run(3)
    assert len(trace_more) == 9
    assert same(more, run(3, path=None)[0])


def test_best_checkpoint_is_the_best_epoch(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0, float("nan")])

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            return cross_entropy(model, batch)
        return torch.tensor(next(values))

    model, optimizer = fresh()
    weights = []
    train(
        model,
        optimizer,
        loss_fn,
        tiny_loader(),
        num_epochs=4,
        val_loader=[tiny_data()],
        checkpoint=tmp_path / "run.pt",
        on_epoch=lambda epoch, values, trace: weights.append(model.head.weight.detach().clone()),
        verbose=False,
    )
    best = load_checkpoint(best_path(tmp_path / "run.pt"))
    assert torch.equal(best["model"]["head.weight"], weights[1])
    assert best["best"] == 1.0
    assert torch.equal(load_checkpoint(tmp_path / "run.pt")["model"]["head.weight"], weights[3])


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    model, optimizer = fresh()
    train(
        model,
        optimizer,
        cross_entropy,
        tiny_loader(),
        num_epochs=1,
        checkpoint=path,
        verbose=False,
    )
    other = nn.Linear(6, 3)
    with pytest.raises(
        CheckpointError, match=r"its groups is \['body', 'head'\], and this one's is \['group_0'\]"
    ):
        train(
            other,
            torch.optim.SGD(other.parameters(), lr=0.1),
            cross_entropy,
            tiny_loader(),
            num_epochs=1,
            checkpoint=path,
        )
    model.head = nn.Linear(8, 5)
    with pytest.raises(
        CheckpointError,
        match=r"'head.weight' has shape \[3, 8\] there and has shape \[5, 8\] here",
    ):
        train(
            model,
            tiny_optimizer(model),
            cross_entropy,
            tiny_loader(),
            num_epochs=1,
            checkpoint=path,
        )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.pt"
    if content is None:
        torch.save({"model": {}}, path)
    else:
        path.write_bytes(content)
    model, optimizer = fresh()
    with pytest.raises(CheckpointError, match="must be a checkpoint of lrfinder"):
        train(model, optimizer, cross_entropy, tiny_loader(), num_epochs=1, checkpoint=path)


FULL_DISK = """
import resource, signal, sys, torch
import lrfinder
from lrfinder.training.checkpoints import best_path, load_checkpoint
from tests.helpers import TinyNet, cross_entropy, tiny_loader, tiny_optimizer

path = sys.argv[1]
model = TinyNet()
optimizer = tiny_optimizer(model)

def fill(epoch, values, trace):
    if epoch == 1:  # from now on no file can grow past 2 kB: what a full disk does to a write
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

try:
    lrfinder.train(model, optimizer, cross_entropy, tiny_loader(), num_epochs=5, checkpoint=path, on_epoch=fill)
except lrfinder.CheckpointError as error:
    print(error)
    print("epoch of the last good one:", load_checkpoint(path)["epoch"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "must be writable, but writing it failed" in done.stdout
    assert f"The last good checkpoint remains in {path}" in done.stdout
    assert "epoch of the last good one: 2" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt"], (
        "no half-written file may stay"
    )


KILL_ME = """
import sys, time, torch
import lrfinder
from tests.helpers import TinyNet, cross_entropy, tiny_data, tiny_loader, tiny_optimizer

torch.manual_seed(5)
model = TinyNet()
optimizer = tiny_optimizer(model)
lrfinder.train(
    model, optimizer, cross_entropy, tiny_loader(), num_epochs=int(sys.argv[3]), checkpoint=sys.argv[1],
    checkpoint_every=1, seed=1, val_loader=[tiny_data()], verbose=False,
    on_step=lambda *_: time.sleep(float(sys.argv[2])),
)
torch.save(model.state_dict(), sys.argv[1] + ".final")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_kill_9_at_any_moment_then_the_same_call_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    def command(name: str, pause: float) -> list[str]:
        return [sys.executable, "-c", KILL_ME, str(tmp_path / name), str(pause), "30"]

    subprocess.run(command("whole", 0.0), check=True, timeout=120)
    for attempt in range(3):
        process = subprocess.Popen(command("killed", 0.02))
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.17 + 0.13 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it must be killed before its end"
    killed_at = len(Trace.from_dict(load_checkpoint(tmp_path / "killed")["trace"]))
    assert 0 < killed_at < 90
    subprocess.run(command("killed", 0.0), check=True, timeout=120)
    assert same(
        torch.load(tmp_path / "killed.final", weights_only=True),
        torch.load(tmp_path / "whole.final", weights_only=True),
    )


# -- bad input
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, "`num_epochs >= 1` must hold, but got num_epochs=0"),
        ({"patience": 1}, "`patience` needs a `val_loader`"),
        ({"patience": 0, "val_loader": []}, "`patience >= 1` must hold"),
        ({"checkpoint_every": 5}, "`checkpoint_every` needs a `checkpoint` path"),
        ({"direction": "down"}, "`direction` must be 'minimize' or 'maximize'"),
        ({"scheduler": {"name": "ReduceLROnPlateau"}}, "needs a `val_loader`"),
        ({"scheduler": {"name": "StepsLR"}}, "StepsLR"),
        ({"val_loader": []}, "The validation loader must give at least one batch"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    model, optimizer = fresh()
    with pytest.raises(ValueError, match=message):
        train(
            model,
            optimizer,
            cross_entropy,
            tiny_loader(),
            **({"num_epochs": 1, "verbose": False} | options),
        )


def test_empty_loader() -> None:
    model, optimizer = fresh()
    with pytest.raises(
        ValueError, match="The loader must give at least one batch, but it is empty"
    ):
        train(model, optimizer, cross_entropy, [], num_epochs=1, verbose=False)
