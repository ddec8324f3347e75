"""Lightning's own Trainer, its own loggers, and modules as people write them."""

from __future__ import annotations

import copy
import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lrfinder
from lrfinder.integrations import lightning as lrl

pytestmark = [
    # Of this machine, and of Lightning with this release of torch.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
]
BRIEF: dict[str, Any] = {"effort": "quick", "num_steps": 80}
RAMPS = BRIEF | {"effort": "brackets"}


def loader() -> DataLoader[Any]:
    inputs = torch.randn(128, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    return DataLoader(data, 16, shuffle=True)


class Regression(pl.LightningModule):
    """Two groups, a schedule, dropout, a buffer that changes, and logs at each step."""

    def __init__(self, schedule: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1))
        self.head = nn.Linear(8, 1)
        self.schedule = schedule
        self.used: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.head(self.body(inputs)), targets)
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        groups = lrfinder.param_groups(self, {"body": "body.*", "head": "head.*"}, lr=1e-3)
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        if self.schedule is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = {"scheduler": self.schedule(optimizer, steps), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.used.append([group["lr"] for group in optimizer.param_groups])


class Gan(pl.LightningModule):
    """Two optimizers, which Lightning leaves to the module."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Linear(2, 4)
        self.critic = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def generator_loss(self, batch: Any) -> Tensor:
        return nn.functional.softplus(-self.critic(self.generator(batch[0][:, :2]))).mean()

    def critic_loss(self, batch: Any) -> Tensor:
        fake = self.generator(batch[0][:, :2]).detach()
        real = nn.functional.softplus(-self.critic(batch[0])).mean()
        return real + nn.functional.softplus(self.critic(fake)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        losses = (self.generator_loss, self.critic_loss)
        for optimizer, loss_of in zip(self.optimizers(), losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss_of(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-3),
            torch.optim.Adam(self.critic.parameters(), lr=1e-3),
        ]


GAN_LOSSES = [lambda m, batch: m.generator_loss(batch), lambda m, batch: m.critic_loss(batch)]


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    usual: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": CSVLogger(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**usual | options)


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def warm_up(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 4))


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.25
    )


def sequence(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    module = torch.optim.lr_scheduler
    parts = [
        module.LinearLR(optimizer, 0.1, total_iters=4),
        module.CosineAnnealingLR(optimizer, steps),
    ]
    return module.SequentialLR(optimizer, parts, milestones=[4])


@pytest.mark.parametrize("schedule", [None, warm_up, one_cycle], ids=["none", "warm-up", "cycle"])
def test_fit_goes_on_as_if_no_test_had_been_run(tmp_path: Path, schedule: Any) -> None:
    """Weights, LRs and random states of a fit, with and without a test before it: bit for bit."""
    ends = []
    for tested in (False, True):
        pl.seed_everything(0, verbose=False)
        module, one, data = Regression(schedule), trainer(tmp_path / str(tested)), loader()
        if tested:
            before, random = bits(module), torch.get_rng_state()
            kept = dict(vars(one)), list(one.callbacks), copy.copy(one.state)
            result = lrl.range_test(one, module, train_dataloaders=data, **RAMPS)
            assert same(before, bits(module))
            assert torch.equal(random, torch.get_rng_state())
            assert (dict(vars(one)), one.callbacks, one.state) == kept
            assert set(result.suggestion.brackets) == {"body", "head"}
            assert result.settings["planned_steps"] == 16
            assert "log" not in vars(module)
            assert module._trainer is None
            assert one.global_step == 0
            assert not module.used
        one.fit(module, data)
        ends.append((bits(module), module.used, torch.get_rng_state()))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert torch.equal(ends[0][2], ends[1][2])


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        (None, [1.0, 1.0, 1.0]),
        (warm_up, [0.0, 0.25, 0.5]),
        (one_cycle, None),
        (sequence, [0.1, 0.325, 0.55]),
    ],
    ids=["none", "warm-up", "cycle", "sequence"],
)
def test_the_callback_sets_the_lrs_that_schedules_start_from(
    tmp_path: Path, schedule: Any, shape: list[float] | None
) -> None:
    pl.seed_everything(0, verbose=False)
    module, callback = Regression(schedule), lrl.LRRangeTest(**BRIEF)
    trainer(tmp_path, callbacks=[callback]).fit(module, loader())
    (result,) = callback.results
    lrs = [result.suggestion.lrs[name] for name in ("body", "head")]
    assert len(module.used) == 16
    for number, lr in enumerate(lrs):
        used = [row[number] for row in module.used]
        if shape is None:
            assert max(used) == pytest.approx(lr)  # the peak, at the fourth step
            assert used[0] == pytest.approx(lr / 25)
        else:
            assert used[:3] == pytest.approx([lr * share for share in shape])
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["range_test/lr/body"]) == lrs[0]  # loggers stayed on
    assert len([row for row in rows if row["loss"]]) == 16


def test_groups_that_were_refused_keep_their_lr(tmp_path: Path) -> None:
    class Half(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            inputs, targets = batch
            with torch.no_grad():
                features = self.body(inputs)
            return nn.functional.mse_loss(self.head(features), targets)

    module, callback = Half(), lrl.LRRangeTest(**BRIEF)
    trainer(tmp_path, callbacks=[callback]).fit(module, loader())
    assert callback.results[0].suggestion.brackets["body"].status == "flat"
    assert module.used[0] == [1e-3, callback.results[0].suggestion.lrs["head"]]


def test_each_optimizer_of_several_is_tested_by_itself(tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    module, one = Gan(), trainer(tmp_path)
    before = bits(module)
    for number, loss_fn in enumerate(GAN_LOSSES):
        alone = lrl.range_test(
            one, module, train_dataloaders=loader(), optimizer=number, loss_fn=loss_fn, **RAMPS
        )
        assert same(before, bits(module))
        assert list(alone.suggestion.brackets) == ["group_0"]
    callback = lrl.LRRangeTest(loss_fns=GAN_LOSSES, **BRIEF)
    one = trainer(tmp_path, callbacks=[callback, lrl.GroupLRMonitor()], max_steps=4)
    one.fit(module, loader())
    assert len(callback.results) == 2
    with next((tmp_path / "lightning_logs" / "version_1").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    for number, result in enumerate(callback.results):
        lr = result.suggestion.lrs.get("group_0", 1e-3)
        values = {row[f"lr/optimizer_{number}/group_0"] for row in rows} - {""}
        assert {float(value) for value in values} == {lr}


def test_a_fit_without_an_end_and_lrs_in_tensors(tmp_path: Path) -> None:
    class Tensors(Regression):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=torch.tensor(1e-3))
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 100)]

    pl.seed_everything(0, verbose=False)
    module, callback = Tensors(), lrl.LRRangeTest(**RAMPS | {"num_steps": 200})
    one = trainer(tmp_path, callbacks=[callback], max_epochs=-1, max_steps=3)
    one.fit(module, loader())
    (result,) = callback.results
    assert result.settings["planned_steps"] == 3
    assert [float(row[0]) for row in module.used] == pytest.approx(
        [result.suggestion.lrs["group_0"]] * 3
    )
    assert isinstance(module.used[0][0], Tensor)  # the very one


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision_accumulation_and_clipping_are_the_trainers(
    tmp_path: Path, precision: Any
) -> None:
    pl.seed_everything(0, verbose=False)
    module = Regression()
    seen: set[torch.dtype] = set()
    module.head.register_forward_hook(lambda m, args, output: seen.add(output.dtype))
    one = trainer(tmp_path, precision=precision, accumulate_grad_batches=2, gradient_clip_val=0.5)
    before = bits(module)
    result = lrl.range_test(one, module, train_dataloaders=loader(), **RAMPS)
    assert seen == {torch.float64 if precision == "64-true" else torch.bfloat16}
    assert same(before, bits(module))
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert result.settings["planned_steps"] == 8


def test_a_datamodule_and_dict_batches(tmp_path: Path) -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(
                [{"x": torch.ones(4) * i, "y": torch.ones(1) * i} for i in range(32)], 8
            )

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"x": batch["x"] / 32, "y": batch["y"] / 32}

    class Dicts(Regression):
        def training_step(self, batch: Any) -> Tensor:  # type: ignore[override] # as Lightning allows
            assert batch["x"].max() <= 1
            return nn.functional.mse_loss(self.head(self.body(batch["x"])), batch["y"])

    pl.seed_everything(0, verbose=False)
    result = lrl.range_test(trainer(tmp_path), Dicts(), Data(), **BRIEF)
    assert set(result.suggestion.brackets) == {"body", "head"}


def test_the_monitor_records_the_lr_that_each_step_used(tmp_path: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    pl.seed_everything(0, verbose=False)
    module = Regression(warm_up)
    with lrfinder.MlflowRecorder(experiment="lightning") as recorder:
        callbacks = [lrl.GroupLRMonitor(), lrl.GroupLRMonitor(recorder)]
        trainer(tmp_path, callbacks=callbacks).fit(module, loader())
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr/body"]]
    assert [float(row["lr/body"]) for row in rows] == [used[0] for used in module.used]
    client = MlflowClient()
    for number, name in enumerate(("body", "head")):
        history = client.get_metric_history(recorder.run_id, f"lr/{name}")
        assert [(m.step, m.value) for m in history] == [
            (step, used[number]) for step, used in enumerate(module.used)
        ]
    losses = client.get_metric_history(recorder.run_id, "train/loss")
    assert [m.step for m in losses] == list(range(16))


class ByHand(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class NoLoss(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


@pytest.mark.parametrize(
    ("module", "options", "settings", "message"),
    [
        (ByHand, {}, {}, "optimizes by hand .* Give `loss_fn"),
        (Gan, {}, {}, "which of the 2 optimizers"),
        (Gan, {}, {"optimizer": 2}, "`0 <= optimizer < 2` must hold"),
        (NoLoss, {}, {}, "must return a loss, or a dict with one, but got NoneType"),
        (
            Regression,
            {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
            {},
            "must be 'norm' in a range test",
        ),
        (Regression, {"devices": 2, "strategy": "ddp_spawn"}, {}, "must run on one device"),
    ],
)
def test_wrong_uses(
    tmp_path: Path,
    module: type[pl.LightningModule],
    options: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    one = trainer(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        lrl.range_test(one, module(), train_dataloaders=loader(), **settings)
    assert not [callback for callback in one.callbacks if type(callback).__name__ == "_Alone"]


def test_a_trainer_of_the_package_of_the_other_name(tmp_path: Path) -> None:
    import pytorch_lightning

    other = pytorch_lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=r"got pytorch_lightning.*import `lightning.pytorch`"):
        lrl.range_test(other, Regression(), train_dataloaders=loader())


def test_losses_for_each_optimizer(tmp_path: Path) -> None:
    callback = lrl.LRRangeTest(loss_fns=GAN_LOSSES[:1])
    with pytest.raises(ValueError, match="for each of the 2 optimizers, but got 1"):
        trainer(tmp_path, callbacks=[callback]).fit(Gan(), loader())


def test_no_optimizer(tmp_path: Path) -> None:
    class Frozen(Regression):
        def configure_optimizers(self) -> None:
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning says it in its own way too
        with pytest.raises(ValueError, match="`configure_optimizers` must return an optimizer"):
            lrl.range_test(trainer(tmp_path), Frozen(), train_dataloaders=loader())


def test_a_step_that_asks_its_trainer_is_run_one_by_one(tmp_path: Path) -> None:
    """Copies of a module have no trainer: what cannot be run together is run by the plain engine."""

    class Asks(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            weight = 1.0 if self.trainer.current_epoch == 0 else 0.5
            output: Tensor = super().training_step(batch, batch_idx)["loss"]
            return weight * output

    pl.seed_everything(0, verbose=False)
    result = lrl.range_test(trainer(tmp_path), Asks(), train_dataloaders=loader(), **RAMPS)
    assert result.cost.engine == "stepping"
    assert set(result.suggestion.brackets) == {"body", "head"}


def test_several_loaders(tmp_path: Path) -> None:
    class Two(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert set(batch) == {"a", "b"}
            return super().training_step(batch["b"], batch_idx)

    pl.seed_everything(0, verbose=False)
    loaders = {"a": loader(), "b": loader()}
    result = lrl.range_test(trainer(tmp_path), Two(), train_dataloaders=loaders, **RAMPS)
    assert set(result.suggestion.brackets) == {"body", "head"}


def test_a_fit_that_goes_on_from_a_checkpoint_keeps_its_lrs(tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    first = trainer(tmp_path, max_epochs=1)
    first.fit(Regression(), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    module, callback = Regression(), lrl.LRRangeTest(**RAMPS)
    trainer(tmp_path, callbacks=[callback]).fit(module, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert callback.results == ()
    assert module.used == [[1e-3, 1e-3]] * 8
