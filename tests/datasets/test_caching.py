import os
import resource
import stat

import numpy as np
import pytest

from lrfinder.datasets.caching import cache_dir, cached_arrays


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LRFINDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    def __init__(self, value=1):
        self.calls = 0
        self.value = value

    def __call__(self):
        self.calls += 1
        return {"x": np.full(10_000, self.value, dtype=np.uint8), "y": np.arange(3)}


def test_arrays_are_made_once():
    make = Maker()
    first, second = (cached_arrays("a", "key", make) for _ in range(2))
    assert make.calls == 1
    for part in ("x", "y"):
        assert first[part].dtype == second[part].dtype
        assert np.array_equal(first[part], second[part])
    assert set(second) == {"x", "y"}


def test_another_key_takes_the_place_of_the_file(folder):
    cached_arrays("a", "old", Maker(1))
    assert cached_arrays("a", "new", Maker(2))["x"][0] == 2
    assert [path.name for path in folder.glob("*.npz")] == ["a.npz"]


def flip_a_byte(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, lambda content: content[:-500], lambda content: b"", lambda content: b"garbage"],
    ids=["one bit", "truncated", "empty", "garbage"],
)
def test_a_damaged_file_is_made_again(folder, damage, caplog):
    make = Maker()
    cached_arrays("a", "key", make)
    file = folder / "a.npz"
    file.write_bytes(damage(file.read_bytes()))
    assert cached_arrays("a", "key", make)["x"].tolist() == [1] * 10_000
    assert make.calls == 2
    assert "a.npz is damaged" in caplog.text
    cached_arrays("a", "key", make)
    assert make.calls == 2


def test_what_a_killed_process_left_is_removed(folder):
    folder.mkdir()
    (folder / "a-half.tmp").write_bytes(b"half")
    (folder / "b-other.tmp").write_bytes(b"of another name")
    cached_arrays("a", "key", Maker())
    assert {path.name for path in folder.glob("*.tmp")} == {"b-other.tmp"}


def test_an_error_while_making_goes_through_and_leaves_nothing(folder):
    def fail():
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        cached_arrays("a", "key", fail)
    assert list(folder.glob("*.npz")) == list(folder.glob("*.tmp")) == []
    assert cached_arrays("a", "key", Maker())["y"].tolist() == [0, 1, 2]  # and no lock is held


def test_a_cache_that_is_a_file_is_a_warning(folder):
    folder.write_text("in the way")
    with pytest.warns(UserWarning, match="LRFINDER_CACHE"):
        arrays = cached_arrays("a", "key", Maker())
    assert arrays["x"][0] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_a_warning(folder):
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.warns(UserWarning, match="could not be kept"):
        assert cached_arrays("a", "key", Maker())["x"][0] == 1


def test_a_disk_that_is_full_is_a_warning_and_the_old_file_stays(folder):
    cached_arrays("a", "old", Maker(1))
    before = (folder / "a.npz").read_bytes()
    # No file of this process may grow past 5,000 bytes: writing fails half way, as on a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.warns(UserWarning, match="could not be kept"):
            arrays = cached_arrays("a", "new", Maker(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert arrays["x"][0] == 2
    assert (folder / "a.npz").read_bytes() == before
    assert not list(folder.glob("*.tmp"))


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("LRFINDER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "lrfinder"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "lrfinder"
