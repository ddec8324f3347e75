import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfinder.datasets import CropAndFlip, Standardize, TensorLoader, digits


def samples(loader):
    return [batch[0].tolist() for batch in loader]


def numbered(count=10, **options):
    return TensorLoader(torch.arange(count), batch_size=3, **options)


# -- TensorLoader -----------------------------------------------------------------------------


def test_without_shuffle_the_batches_are_in_order_and_the_last_holds_the_rest():
    loader = numbered()
    assert samples(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(loader) == 4
    assert len(loader.dataset) == 10


def test_drop_last_leaves_out_the_batch_that_is_not_full():
    loader = numbered(drop_last=True)
    assert samples(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len(loader) == 3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.booleans())
def test_an_epoch_has_every_sample_once_and_as_many_batches_as_len_says(count, size, shuffle):
    loader = TensorLoader(torch.arange(count), batch_size=size, shuffle=shuffle)
    batches = samples(loader)
    assert len(batches) == len(loader)
    assert sorted(number for batch in batches for number in batch) == list(range(count))
    assert all(len(batch) == size for batch in batches[:-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.booleans(), st.integers(0, 300))
def test_batches_are_the_same_however_many_are_gathered_at_once(
    count, size, shuffle, drop_last, gathered
):
    if drop_last and size > count:
        return

    def epochs(size_of_some):
        def noisy(inputs, generator):
            return inputs + torch.rand(len(inputs), generator=generator)

        loader = TensorLoader(
            torch.arange(count), torch.arange(count), batch_size=size, shuffle=shuffle,
            drop_last=drop_last, seed=3, transform=noisy,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lrfinder.datasets.GATHERED", size_of_some)
            return [[part.tolist() for part in batch] for _ in range(2) for batch in loader]

    assert epochs(gathered) == epochs(0)


def test_the_parts_of_a_batch_belong_together():
    inputs, targets = torch.randn(20, 2), torch.arange(20)
    for part, numbers in TensorLoader(inputs, targets, batch_size=6, shuffle=True):
        assert torch.equal(part, inputs[numbers])


def test_epochs_differ_and_a_seed_repeats_them():
    first, again, other = (numbered(50, shuffle=True, seed=seed) for seed in (1, 1, 2))
    one, two = samples(first), samples(first)
    assert one != two
    assert [samples(again), samples(again)] == [one, two]
    assert samples(other) != one


def test_the_state_of_the_generator_repeats_an_epoch_that_was_left_half_way():
    def noise(inputs, generator):
        return inputs + torch.rand(inputs.shape, generator=generator)

    loader = TensorLoader(torch.zeros(50), batch_size=3, shuffle=True, transform=noise)
    samples(loader)
    state = loader.generator.get_state()
    whole = [samples(loader), samples(loader)]
    loader.generator.set_state(state)
    next(iter(loader))
    assert samples(loader) == whole[1]


def test_epochs_that_run_at_once_do_not_disturb_each_other():
    loader = numbered(50, shuffle=True)
    one, two = samples(loader), samples(loader)
    loader = numbered(50, shuffle=True)
    both = list(zip(loader, loader, strict=True))
    assert [pair[0][0].tolist() for pair in both] == one
    assert [pair[1][0].tolist() for pair in both] == two


def test_the_global_random_state_is_neither_used_nor_changed():
    loader = numbered(shuffle=True)
    before = torch.get_rng_state()
    samples(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_shuffle_and_transform_nothing_is_drawn():
    loader = numbered()
    before = loader.generator.get_state()
    samples(loader)
    assert torch.equal(loader.generator.get_state(), before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_that_is_changed_in_place_leaves_the_data_as_they_were(shuffle):
    data = torch.ones(6)
    for (batch,) in TensorLoader(data, batch_size=4, shuffle=shuffle):
        batch.zero_()
    assert torch.equal(data, torch.ones(6))


def test_the_transform_sees_the_first_part_of_each_batch_alone():
    def double(inputs, generator):
        return inputs * 2

    loader = TensorLoader(torch.arange(4), torch.arange(4), batch_size=4, transform=double)
    ((inputs, targets),) = list(loader)
    assert inputs.tolist() == [0, 2, 4, 6]
    assert targets.tolist() == [0, 1, 2, 3]


def test_seeded_loaders_share_the_data_and_not_the_generator():
    loader = numbered(50, shuffle=True)
    state = loader.generator.get_state()
    made = loader.seeded(7)
    assert made.tensors[0] is loader.tensors[0]
    assert samples(made) == samples(numbered(50, shuffle=True, seed=7))
    assert torch.equal(loader.generator.get_state(), state)


def test_to_keeps_the_options_and_goes_on_from_the_state_with_a_generator_of_its_own():
    def same(inputs, generator):
        return inputs

    loader = numbered(50, shuffle=True, drop_last=True, transform=same)
    samples(loader)
    moved = loader.to("cpu")
    assert (moved.shuffle, moved.drop_last, moved.batch_size) == (True, True, 3)
    assert moved.transform is same
    state = loader.generator.get_state()
    expected = samples(moved)
    assert torch.equal(loader.generator.get_state(), state)
    assert samples(loader) == expected


def test_the_data_are_copied_to_a_device_once():
    loader = numbered()
    first, second = loader.to("meta"), loader.seeded(1).to("meta")
    assert first.device.type == "meta"
    assert first.tensors[0] is second.tensors[0]
    assert first.to("cpu").tensors[0] is loader.tensors[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_and_augmentation_are_the_same_on_a_gpu():
    images = torch.randint(256, (32, 3, 8, 8), dtype=torch.uint8)
    transform = CropAndFlip(torch.full((3,), 0.4), torch.full((3,), 0.2), padding=2)
    here = TensorLoader(images, batch_size=8, shuffle=True, transform=transform)
    for (a,), (b,) in zip(here.to("cuda"), here, strict=True):
        assert a.device.type == "cuda"
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ((), {"batch_size": 1}, "at least one tensor"),
        ((torch.zeros(3), torch.zeros(4)), {"batch_size": 1}, r"one length.*\[3, 4\]"),
        ((torch.zeros(0, 2),), {"batch_size": 1}, "at least one sample"),
        ((torch.zeros(()),), {"batch_size": 1}, "first dimension"),
        ((torch.zeros(3),), {"batch_size": 0}, "batch_size >= 1.*batch_size=0"),
        ((torch.zeros(3),), {"batch_size": 4, "drop_last": True}, "batch_size=4 and 3 samples"),
        ((torch.zeros(3), torch.zeros(3, device="meta")), {"batch_size": 1}, "cpu, meta"),
    ],
)
def test_bad_data_are_refused(tensors, options, message):
    with pytest.raises(ValueError, match=message):
        TensorLoader(*tensors, **options)


# -- transforms of images -----------------------------------------------------------------------


@pytest.fixture
def images():
    return torch.randint(256, (16, 3, 7, 5), dtype=torch.uint8)


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])


def standardized(images):
    return (images / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


def test_standardize_is_its_law(images):
    result = Standardize(MEAN, STD)(images, torch.Generator())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, standardized(images), atol=1e-5, rtol=1e-5)


def test_every_crop_is_a_cut_out_of_the_padded_image_flipped_or_not(images):
    result = CropAndFlip(MEAN, STD, padding=1)(images, torch.Generator().manual_seed(0))
    assert result.shape == images.shape
    seen = set()
    for image, made in zip(images, result, strict=True):
        padded = standardized(torch.nn.functional.pad(image, (1,) * 4))
        cuts = {
            (i, j, flip): padded[:, i : i + 7, j : j + 5].flip(2 if flip else ())
            for i in range(3)
            for j in range(3)
            for flip in (False, True)
        }
        found = [place for place, cut in cuts.items() if torch.allclose(made, cut, atol=1e-5)]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 5


def test_all_places_are_equally_likely():
    # An image whose pixels are all different tells where it was cut.
    count = 18_000
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    transform = CropAndFlip(torch.zeros(1), torch.full((1,), 1 / 255), padding=1)
    made = transform(image.expand(count, 1, 3, 3), torch.Generator().manual_seed(0))
    _, counts = made.round().flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 18
    # Each count has mean 1000 and standard deviation 31.
    assert 1000 - 150 < counts.min() <= counts.max() < 1000 + 150


def test_without_padding_and_flip_the_images_stay(images):
    made = CropAndFlip(MEAN, STD, padding=0, flip=False)(images, torch.Generator())
    assert torch.equal(made, Standardize(MEAN, STD)(images, torch.Generator()))


def test_augmentation_repeats_with_its_generator(images):
    transform = CropAndFlip(MEAN, STD)
    one, two, other = (transform(images, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_bad_statistics_are_refused():
    with pytest.raises(ValueError, match=r"std > 0.*0\.0"):
        Standardize(MEAN, torch.tensor([0.2, 0.0, 0.1]))
    with pytest.raises(ValueError, match="one shape"):
        Standardize(MEAN, torch.ones(1))
    with pytest.raises(ValueError, match="padding=-1"):
        CropAndFlip(MEAN, STD, padding=-1)


# -- digits -------------------------------------------------------------------------------------


def test_digits_are_all_there_once_and_standardised_by_the_training_part():
    train, val = digits()
    assert train[0].shape == (1258, 1, 8, 8)
    assert val[0].shape == (539, 1, 8, 8)
    assert abs(train[0].mean()) < 1e-5
    assert abs(train[0].std() - 1) < 1e-5
    assert abs(val[0].mean()) > 1e-5  # its own mean would be exactly 0
    assert torch.cat([train[1], val[1]]).bincount().tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip


def test_digits_are_split_in_a_fixed_way():
    for one, two in zip(digits(), digits(), strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_a_selection_of_digits_is_labelled_from_zero():
    (inputs, targets), (val_inputs, val_targets) = digits(range(5, 10))
    assert targets.unique().tolist() == val_targets.unique().tolist() == [0, 1, 2, 3, 4]
    assert len(inputs) + len(val_inputs) == 182 + 181 + 179 + 174 + 180
    (swapped, labels), _ = digits([9, 8, 7, 6, 5])
    assert torch.equal(swapped, inputs)
    assert torch.equal(labels, 4 - targets)


@pytest.mark.parametrize("classes", [[], [1, 1], [3, 10], [-1]])
def test_classes_that_are_no_digits_are_refused(classes):
    with pytest.raises(ValueError, match="different digits"):
        digits(classes)


@pytest.mark.parametrize("val_share", [0, 1, -0.1, float("nan"), 1e-6])
def test_a_share_that_leaves_a_part_empty_is_refused(val_share):
    with pytest.raises(ValueError, match="val_share="):
        digits(val_share=val_share)
