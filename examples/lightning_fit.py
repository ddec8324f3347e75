"""Lightning: the learning rates of two groups are found at fit's start, set, and recorded at each step."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lrfinder
from lrfinder.integrations.lightning import GroupLRMonitor, LRRangeTest


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self.head(self.body(inputs)), targets)

    def configure_optimizers(self) -> dict[str, object]:
        groups = lrfinder.param_groups(self, {"body": "body.*", "head": "head.*"}, lr=1e-3)
        optimizer = torch.optim.AdamW(groups)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


if __name__ == "__main__":
    pl.seed_everything(0)
    inputs = torch.randn(512, 20)
    loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 32, shuffle=True)
    test = LRRangeTest(effort="quick")
    trainer = pl.Trainer(max_epochs=3, logger=CSVLogger("."), callbacks=[test, GroupLRMonitor()])
    trainer.fit(Classifier(), loader)
    print(test.results[0])
