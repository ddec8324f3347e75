"""Networks: the two models of PyTorch's tutorials on learning rates."""

from __future__ import annotations

from torch import Tensor, nn


class Net(nn.Module):
    """A small CNN with two sub-networks, `features` and `classifier`; 62,006 parameters.

    Takes images of shape (N, 3, 32, 32) and gives scores of shape (N, 10).

    Source: LeCun et al., 1998, Proceedings of the IEEE 86(11), figure 2 (LeNet-5), for colour.

    Example:
        >>> import torch
        >>> Net()(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of the ten classes."""
        scores: Tensor = self.classifier(self.features(inputs).flatten(1))
        return scores


class SimpleModel(nn.Sequential):
    """Linear, ReLU, Linear, ReLU, Linear.

    Args:
        input_dim: Size of an input, >= 1.
        hidden_dim: Size of both hidden layers, >= 1.
        output_dim: Size of an output, >= 1.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch
        >>> SimpleModel(10, 20, 2)(torch.zeros(4, 10)).shape
        torch.Size([4, 2])
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        sizes = {"input_dim": input_dim, "hidden_dim": hidden_dim, "output_dim": output_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name} >= 1` must hold, but got {name}={size}.")
        super().__init__(
            nn.Linear(input_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, output_dim),
        )
