import hashlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrfinder.datasets.images import image_folder

WHOLE_CIFAR10 = os.environ.get("LRFINDER_CIFAR10")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LRFINDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_image(path, colour=(10, 20, 30), *, size=(8, 6), mode="RGB"):
    """One picture with a gradient, so that two of a colour are not the same everywhere."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8) + np.array(colour, dtype=np.uint8)
    pixels[:, :, 0] += np.arange(width, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def make_folder(root, *, held_out="test", suffix="png", counts=(3, 2)):
    for part, count in zip(("train", held_out), counts, strict=True):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                path = root / part / name / f"{number:04d}.{suffix}"
                write_image(path, (100 * label, 10 * number % 256, count % 256))
    return root


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "data")


def assert_same(one, two):
    for (images, labels), (images_2, labels_2) in zip(
        (one.train, one.val), (two.train, two.val), strict=True
    ):
        assert torch.equal(images, images_2)
        assert torch.equal(labels, labels_2)
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.std, two.std)
    assert one.classes == two.classes


# -- what is read -------------------------------------------------------------------------------


def test_images_and_labels_are_those_of_torchvisions_image_folder(folder):
    from torchvision.datasets import ImageFolder

    write_image(folder / "train" / "dog" / "nested" / "deep.PNG")
    (folder / "train" / "dog" / "notes.txt").write_text("not an image")
    data = image_folder(folder)
    assert data.classes == ("cat", "dog")
    for part, (images, labels) in (("train", data.train), ("test", data.val)):
        theirs = ImageFolder(folder / part)
        assert labels.tolist() == theirs.targets
        assert images.dtype == torch.uint8
        assert images.shape == (len(theirs), 3, 6, 8)
        for image, (picture, _) in zip(images, theirs, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture))


def test_the_statistics_are_those_of_the_training_images(folder):
    data = image_folder(folder)
    pixels = data.train[0].double() / 255
    torch.testing.assert_close(data.mean, pixels.mean(dim=(0, 2, 3)).float())
    torch.testing.assert_close(data.std, pixels.std(dim=(0, 2, 3), correction=0).float())


def test_a_val_folder_is_taken_before_a_test_folder(folder):
    make_folder(folder, held_out="val", counts=(3, 1))
    assert len(image_folder(folder).val[0]) == 2
    assert len(image_folder(make_folder(folder.parent / "b", held_out="val")).val[0]) == 4


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(folder, mode):
    path = folder / "train" / "cat" / "0000.png"
    write_image(path, mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        Image.fromarray(np.zeros((6, 8), dtype=np.uint16)).save(path)
    assert image_folder(folder).train[0].shape[1] == 3


def test_a_palette_with_transparency_is_read_without_a_warning(folder):
    path = folder / "train" / "cat" / "0000.png"
    expected = Image.fromarray(write_image(path)).quantize(4)
    expected.save(path, transparency=b"\x00\x80\xff\xff")
    image = image_folder(folder).train[0][0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected.convert("RGB")))


def test_images_are_resized_to_height_and_width(folder):
    write_image(folder / "train" / "cat" / "0000.png", size=(20, 30))
    assert image_folder(folder, size=4).train[0].shape[1:] == (3, 4, 4)
    assert image_folder(folder, size=(5, 7)).train[0].shape[1:] == (3, 5, 7)
    assert image_folder(folder, size=4).train[0].shape[1:] == (3, 4, 4)


# -- what is refused ----------------------------------------------------------------------------


def half_a_jpeg():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "JPEG")
    return whole.getvalue()[: len(whole.getvalue()) // 2]


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image", "cannot identify image file"),
        (half_a_jpeg(), "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), ""),
    ],
    ids=["empty", "text", "truncated", "broken png"],
)
def test_a_bad_image_is_named(folder, cache, part, number, content, reason):
    (folder / part / "dog" / f"000{number}.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{part}/dog/000{number}\.png: .*{reason}") as caught:
        image_folder(folder)
    assert str(caught.value).count(".png") == 1
    assert not list(cache.glob("*.npz"))


def test_the_first_image_may_be_the_bad_one(folder):
    (folder / "train" / "cat" / "0000.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"train/cat/0000\.png: cannot identify"):
        image_folder(folder)


def test_of_many_bad_images_some_are_named_and_all_are_counted(folder):
    for number in range(20):
        (folder / "train" / "dog" / f"bad{number:02d}.jpg").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"bad00\.jpg.*bad04\.jpg.*and 15 more"):
        image_folder(folder)


def test_images_of_different_sizes_are_refused_unless_a_size_is_given(folder):
    write_image(folder / "test" / "dog" / "0001.png", size=(9, 6))
    message = r"test/dog/0001\.png: .*\(6, 9\).*train/cat/0000\.png are \(6, 8\); give `size`"
    with pytest.raises(ValueError, match=message):
        image_folder(folder)


def remove(*parts):
    def change(root):
        import shutil

        shutil.rmtree(root.joinpath(*parts))

    return change


def add(*parts):
    return lambda root: root.joinpath(*parts).mkdir()


def replace_by_file(root):
    remove()(root)
    root.write_text("a file")


def no_classes(root):
    remove("test")(root)
    (root / "test").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(), "does not exist"),
        (replace_by_file, "is a file"),
        (remove("train"), r"train/<class>/<image>.*no folder 'train'"),
        (remove("test"), r"no folder 'test'"),
        (no_classes, r"test' has no class folder"),
        (add("train", "bird"), r"bird' has none"),
        (remove("test", "dog"), "same classes.*only one of them has: dog"),
    ],
)
def test_a_folder_with_another_layout_is_refused(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message):
        image_folder(folder)


@pytest.mark.parametrize("size", [0, -1, (0, 4)])
def test_a_size_below_one_is_refused(folder, size):
    with pytest.raises(ValueError, match="size >= 1"):
        image_folder(folder, size=size)


# -- the cache ----------------------------------------------------------------------------------


def test_the_second_opening_decodes_nothing(folder, monkeypatch):
    first = image_folder(folder)
    monkeypatch.setattr(Image, "open", None)
    assert_same(first, image_folder(folder))
    monkeypatch.chdir(folder.parent)
    assert_same(first, image_folder("data"))  # another name of the same folder


@pytest.mark.parametrize("change", ["content", "added", "removed", "renamed"])
def test_a_changed_folder_is_decoded_again(folder, cache, change):
    first = image_folder(folder)
    path = folder / "train" / "dog" / "0001.png"
    if change == "content":
        before = path.stat()
        write_image(path, (1, 2, 3))
        # However coarse the clock of the file system is.
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    elif change == "added":
        write_image(folder / "train" / "dog" / "0009.png")
    elif change == "removed":
        path.unlink()
    else:
        path.rename(path.with_name("9999.png"))
    second = image_folder(folder)
    assert first.train[0].shape != second.train[0].shape or not torch.equal(
        first.train[0], second.train[0]
    )
    assert len(list(cache.glob("*.npz"))) == 1


def test_a_damaged_cache_is_made_again(folder, cache):
    first = image_folder(folder)
    (file,) = cache.glob("*.npz")
    file.write_bytes(file.read_bytes()[:-100])
    assert_same(first, image_folder(folder))


def test_without_a_cache_the_images_are_there_all_the_same(folder, cache):
    cache.write_text("in the way")
    with pytest.warns(UserWarning, match="LRFINDER_CACHE"):
        assert len(image_folder(folder).train[0]) == 6


OPEN = """
import hashlib, sys
from lrfinder.datasets.images import image_folder
data = image_folder(sys.argv[1])
print(hashlib.sha256(data.train[0].numpy().tobytes() + data.val[0].numpy().tobytes()).hexdigest())
"""


def test_processes_that_open_at_once_get_the_same(tmp_path, cache):
    folder = make_folder(tmp_path / "many", suffix="jpg", counts=(300, 100))
    root = Path(__file__).resolve().parents[2]
    opened = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OPEN, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120) for process in opened]
    assert [process.returncode for process in opened] == [0, 0], printed
    assert printed[0] == printed[1]
    assert len(list(cache.glob("*.npz"))) == 1
    assert not list(cache.glob("*.tmp"))


# -- torchvision's own CIFAR-10 -----------------------------------------------------------------


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """Files in the form of CIFAR-10's, with two images each, and their own check sums."""
    from torchvision.datasets import CIFAR10

    root = tmp_path / "cifar"
    base = root / CIFAR10.base_folder
    base.mkdir(parents=True)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    rng = np.random.default_rng(0)
    batches = [
        write(name, {"data": rng.integers(0, 255, (2, 3072), dtype=np.uint8), "labels": [3, 7]})
        for name in ("data_batch_1", "data_batch_2", "test_batch")
    ]
    names = ["airplane", "automobile"]
    meta = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", batches[:2])
    monkeypatch.setattr(CIFAR10, "test_list", batches[2:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta[1]})
    return root


def test_torchvisions_cifar10_is_read(small_cifar10):
    data = image_folder(small_cifar10)
    raw = pickle.loads((small_cifar10 / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    assert data.train[0].shape == (4, 3, 32, 32)
    assert data.train[0][2:].flatten(1).numpy().tolist() == raw["data"].tolist()
    assert data.train[1].tolist() == [3, 7, 3, 7]
    assert data.val[0].shape == (2, 3, 32, 32)
    assert data.classes == ("airplane", "automobile")
    assert_same(data, image_folder(small_cifar10 / "cifar-10-batches-py"))


def test_a_damaged_cifar10_is_refused(small_cifar10):
    (small_cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"complete in .*Remove 'cifar-10-batches-py'"):
        image_folder(small_cifar10)


def test_a_download_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    # Port 9 of this machine, where nobody listens, in the place of the real server.
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz there yourself"):
        image_folder(tmp_path / "new", download=True)


def test_nothing_is_downloaded_unless_it_is_asked_for(tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match="no folder 'train'"):
        image_folder(tmp_path / "new")


# -- all of it ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(WHOLE_CIFAR10 is None, reason="LRFINDER_CIFAR10 names no folder with CIFAR-10")
def test_cifar10_as_an_image_folder():
    assert WHOLE_CIFAR10 is not None
    data = image_folder(WHOLE_CIFAR10)
    assert data.train[0].shape == (50_000, 3, 32, 32)
    assert data.val[0].shape == (10_000, 3, 32, 32)
    assert data.train[1].bincount().tolist() == [5000] * 10
    assert data.val[1].bincount().tolist() == [1000] * 10
    # The means that are quoted for CIFAR-10 are 0.491, 0.482 and 0.447.
    torch.testing.assert_close(data.mean, torch.tensor([0.491, 0.482, 0.447]), atol=0.002, rtol=0)
