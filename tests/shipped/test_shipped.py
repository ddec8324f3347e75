import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lrfinder import shipped
from lrfinder.groups import learning_rates, set_learning_rate
from lrfinder.shipped.networks import Net
from lrfinder.stepping import evaluate
from lrfinder.tasks import SHIPPED, Task, load_task


def train(task, lrs, *, num_epochs, seed=0):
    """The plainest loop there is; gives the validation loss and metrics."""
    started = task.start(seed, device="cpu")
    set_learning_rate(started.optimizer, lrs)
    for _ in range(num_epochs):
        started.model.train()
        for batch in started.train_loader:
            started.optimizer.zero_grad()
            task.loss_fn(started.model, batch).backward()
            started.optimizer.step()
    return evaluate(started.model, task.loss_fn, started.val_loader, metrics=task.metrics)


@pytest.fixture(scope="session")
def digits():
    return load_task("digits")


@pytest.fixture(scope="session")
def finetune():
    return load_task("digits-finetune")


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """Ten classes of noise, two training images and one test image in each."""
    monkeypatch.setenv("LRFINDER_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for part, count in (("train", 2), ("test", 1)):
        for name in "abcdefghij":
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


def test_every_name_leads_to_a_function():
    for name, target in SHIPPED.items():
        module, _, function = target.partition(":")
        assert module == "lrfinder.shipped"
        assert callable(getattr(shipped, function)), name


# -- digits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_name", ["digits", "finetune"])
def test_the_learning_rate_is_torchs_default(task_name, request):
    task = request.getfixturevalue(task_name)
    optimizer = task.start(0, device="cpu").optimizer
    default = type(optimizer)([nn.Parameter(torch.zeros(1))]).defaults["lr"]
    assert learning_rates(optimizer) == dict.fromkeys(task.groups, default)


@pytest.mark.parametrize("task_name", ["digits", "finetune"])
def test_an_epoch_is_short_and_its_batches_are_of_one_size(task_name, request):
    task = request.getfixturevalue(task_name)
    batches = list(task.start(0, device="cpu").train_loader)
    assert 20 <= len(batches) <= 40
    assert len({batch[0].shape for batch in batches}) == 1


@pytest.mark.parametrize("task_name", ["digits", "finetune"])
def test_a_seed_fixes_the_training(task_name, request):
    task = request.getfixturevalue(task_name)
    one, same, other = (train(task, 0.01, num_epochs=1, seed=seed) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_the_mlp_learns_the_digits(digits):
    assert train(digits, 0.1, num_epochs=digits.num_epochs)["val/accuracy"] > 0.95


def test_the_cnn_learns_the_new_digits(finetune):
    assert train(finetune, 0.01, num_epochs=finetune.num_epochs)["val/accuracy"] > 0.93


def test_the_mlp_is_64_128_128_10(digits):
    model = digits.make_model()
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    assert shapes == [(128, 64), (128, 128), (10, 128)]


def test_trainings_at_once_do_not_share_a_generator(digits):
    one, two = (digits.start(0, device="cpu").train_loader for _ in range(2))
    expected = [batch[1].tolist() for batch in one]
    assert [batch[1].tolist() for batch in two] == expected
    assert one.tensors[0] is two.tensors[0]


def test_the_backbone_knows_the_digits_0_to_4(finetune):
    from lrfinder.datasets import digits as data

    # Its features tell them apart better than random ones do, for the nearest class mean.
    (inputs, targets), (val_inputs, val_targets) = data(range(5))

    def nearest_mean_accuracy(backbone):
        backbone.eval()
        with torch.no_grad():
            features, val_features = backbone(inputs), backbone(val_inputs)
        means = torch.stack([features[targets == label].mean(0) for label in range(5)])
        return (torch.cdist(val_features, means).argmin(1) == val_targets).float().mean()

    assert nearest_mean_accuracy(finetune.make_model().backbone) > 0.97


def test_every_model_begins_with_the_same_backbone_and_a_head_of_its_own(finetune):
    one, two = finetune.start(0, device="cpu").model, finetune.start(1, device="cpu").model
    for (name, a), b in zip(
        one.backbone.state_dict().items(), two.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a is not b
    assert not torch.equal(one.head.weight, two.head.weight)


def test_the_first_model_is_made_like_the_later_ones_and_the_random_states_stay():
    shipped._pretrained_backbone.cache_clear()
    task = shipped.digits_finetune()
    heads = []
    for _ in range(2):
        torch.manual_seed(5)
        before = (random.getstate(), np.random.get_state()[1].tolist())
        heads.append(task.make_model().head.weight)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert torch.equal(*heads)


def test_pretraining_is_the_same_each_time():
    first = shipped._pretrained_backbone()
    shipped._pretrained_backbone.cache_clear()
    second = shipped._pretrained_backbone()
    assert first is not second
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_a_model_can_be_made_where_gradients_are_off():
    shipped._pretrained_backbone.cache_clear()
    with torch.no_grad():
        assert shipped.digits_finetune().make_model()(torch.zeros(2, 1, 8, 8)).shape == (2, 5)


# -- CIFAR-10 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar10-resnet"])
def test_without_data_the_error_says_what_the_folder_looks_like(name):
    with pytest.raises(ValueError, match=r"train/<class>/<image> and test/.*--data FOLDER"):
        load_task(name)


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' does not exist"):
        load_task("cifar10", data=str(tmp_path / "nowhere"))


def test_images_that_are_not_of_cifar10s_size_are_refused(cifar_folder):
    for path in cifar_folder.rglob("*.png"):
        Image.open(path).resize((16, 20)).save(path)
    with pytest.raises(ValueError, match=r"32 x 32 of 10 classes, but .* 20 x 16 of 10"):
        load_task("cifar10", data=str(cifar_folder))


def test_cifar10_is_net_in_two_groups(cifar_folder):
    task = load_task("cifar10", data=str(cifar_folder))
    assert isinstance(task, Task)
    started = task.start(0, device="cpu")
    assert isinstance(started.model, Net)
    assert learning_rates(started.optimizer) == {"features": 1e-3, "classifier": 1e-3}
    assert started.optimizer.param_groups[0]["momentum"] == 0.9
    (inputs, targets) = next(iter(started.train_loader))
    assert inputs.shape == (20, 3, 32, 32)
    assert abs(inputs.mean()) < 1e-4
    assert abs(inputs.std() - 1) < 1e-2
    assert sorted(targets.tolist()) == sorted([*range(10)] * 2)
    assert train(task, 0.01, num_epochs=1)["val/loss"] > 0


def test_augmentation_is_of_the_training_images_alone(cifar_folder):
    plain, augmented = (
        load_task("cifar10", data=cifar_folder, augment=augment).start(0, device="cpu")
        for augment in (False, True)
    )
    (one, labels), (two, labels_2) = (
        next(iter(started.train_loader)) for started in (plain, augmented)
    )
    assert torch.equal(labels, labels_2)
    assert not torch.equal(one, two)
    (one, _), (two, _) = (next(iter(started.val_loader)) for started in (plain, augmented))
    assert torch.equal(one, two)


def test_the_resnet_from_scratch_has_a_stem_for_small_images(cifar_folder):
    task = load_task("cifar10-resnet", data=cifar_folder, pretrained=False)
    started = task.start(0, device="cpu")
    assert started.model.conv1.weight.shape == (64, 3, 3, 3)
    assert started.model.conv1.stride == (1, 1)
    sizes = []
    started.model.layer4.register_forward_hook(lambda m, i, out: sizes.append(out.shape[2:]))
    assert started.model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sizes == [(4, 4)]
    assert list(learning_rates(started.optimizer)) == ["stem", "body", "head"]
    assert "from scratch" in task.description


@pytest.fixture
def hub(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub"
    torch.hub.set_dir(before)


@pytest.fixture
def no_network(monkeypatch):
    from torchvision.models import ResNet18_Weights

    # Port 9 of this machine, where nobody listens, in the place of the real server.
    weights = ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(weights, "url", "http://127.0.0.1:9/resnet18-f37072fd.pth")


@pytest.mark.usefixtures("hub", "no_network")
def test_without_imagenets_weights_the_task_says_so(cifar_folder):
    with pytest.warns(UserWarning, match=r"could not be had .*from scratch.*resnet18-f37072fd"):
        task = load_task("cifar10-resnet", data=cifar_folder)
    assert "from scratch" in task.description
    with pytest.raises(ValueError, match="could not be had"):
        load_task("cifar10-resnet", data=cifar_folder, pretrained=True)


@pytest.mark.usefixtures("no_network")
def test_imagenets_weights_are_taken_from_torchs_folder(cifar_folder, hub):
    from torchvision.models import resnet18

    theirs = resnet18().state_dict()
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(theirs, hub / "checkpoints" / "resnet18-f37072fd.pth")
    task = load_task("cifar10-resnet", data=cifar_folder)
    started = task.start(0, device="cpu")
    assert torch.equal(started.model.conv1.weight, theirs["conv1.weight"])
    assert torch.equal(started.model.layer4[1].conv2.weight, theirs["layer4.1.conv2.weight"])
    assert started.model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert "ImageNet" in task.description


def test_cifar10_is_downloaded_into_an_empty_folder(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    # Port 9 of this machine, where nobody listens, in the place of the real server.
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz there yourself"):
        load_task("cifar10", data=str(tmp_path))
    with pytest.raises(ValueError, match="nowhere"):
        load_task("cifar10", data=str(tmp_path / "nowhere"))
