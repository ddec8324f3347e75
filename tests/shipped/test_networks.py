import pytest
import torch
from torch import nn

from lrfinder.shipped.networks import Net, SimpleModel


def layers(module):
    return [str(layer) for layer in module]


def test_net_is_exactly_the_tutorials():
    net = Net()
    pool = str(nn.MaxPool2d(2))
    assert layers(net.features) == [
        str(nn.Conv2d(3, 6, 5)), "ReLU()", pool, str(nn.Conv2d(6, 16, 5)), "ReLU()", pool,
    ]  # fmt: skip
    assert layers(net.classifier) == [
        str(nn.Linear(400, 120)), "ReLU()", str(nn.Linear(120, 84)), "ReLU()",
        str(nn.Linear(84, 10)),
    ]  # fmt: skip
    assert list(dict(net.named_children())) == ["features", "classifier"]
    assert sum(parameter.numel() for parameter in net.parameters()) == 62_006


def test_net_flattens_between_its_parts():
    net, images = Net(), torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images), net.classifier(net.features(images).reshape(2, 400)))


def test_simple_model():
    model = SimpleModel(10, 20, 3)
    assert layers(model) == [
        str(nn.Linear(10, 20)), "ReLU()", str(nn.Linear(20, 20)), "ReLU()", str(nn.Linear(20, 3)),
    ]  # fmt: skip
    assert model(torch.zeros(4, 10)).shape == (4, 3)


@pytest.mark.parametrize("name", ["input_dim", "hidden_dim", "output_dim"])
def test_a_size_below_one_is_refused(name):
    sizes = {"input_dim": 2, "hidden_dim": 3, "output_dim": 4, name: 0}
    with pytest.raises(ValueError, match=f"{name} >= 1.*{name}=0"):
        SimpleModel(**sizes)
