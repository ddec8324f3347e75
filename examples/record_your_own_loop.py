"""Two lines that record every group's learning rate and the loss of a loop of your own in MLflow."""

import torch
from torch import nn

import lrfinder


def main() -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW([
        {"params": model[0].parameters(), "lr": 1e-3, "name": "body"},
        {"params": model[2].parameters(), "lr": 1e-2, "name": "head"},
    ])  # fmt: skip
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.99)
    inputs = torch.randn(64, 10)
    targets = (inputs[:, 0] > 0).long()

    with lrfinder.MlflowRecorder(experiment="my-loop", run_name="hand-written") as recorder:  # one
        for step in range(100):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log_step(step, loss, optimizer)  # two
            scheduler.step()
    print(f"run {recorder.run_id}: open it with `mlflow ui`")
    return recorder.run_id


if __name__ == "__main__":
    main()
