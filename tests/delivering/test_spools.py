from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfinder.delivering.spools import Header, Journal, Spool, decode, encode, find_spools

texts = st.text(st.characters(codec=None))  # halves of characters too
finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63)
entries = st.dictionaries(
    texts, finite | texts | st.lists(finite | texts, max_size=5), max_size=4
) | st.fixed_dictionaries(
    {"rows": st.lists(st.lists(finite | st.just(float("nan")), max_size=5), max_size=4)}
)


def make_spool(path: Path, **header: Any) -> Spool:
    return Spool.create(path, Header(tracking_uri="sqlite:////x.db", key="k", **header))


def same(left: Any, right: Any) -> bool:
    return repr(left) == repr(right)  # NaN is NaN here


@settings(deadline=None)
@given(entries)
def test_an_entry_is_read_as_it_was_written(entry: dict[str, Any]) -> None:
    line = encode(entry)
    assert line.count(b"\n") == 1
    assert same(decode(line), entry)


@settings(deadline=None)
@given(entries, st.data())
def test_a_line_with_a_wrong_byte_is_noticed(entry: dict[str, Any], data: st.DataObject) -> None:
    line = bytearray(encode(entry))
    place = data.draw(st.integers(0, len(line) - 2))
    line[place] ^= data.draw(st.integers(1, 255))
    assert decode(bytes(line)) is None


ROWS = [{"keys": ["a", "b"], "rows": [[1, step, 0.1, math.nan]]} for step in range(3)]


def test_a_journal_cut_at_any_byte_gives_the_entries_before_the_cut(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "1")
    Journal(spool).append(ROWS)
    whole = spool.journal_path.read_bytes()
    ends = [offset for _, offset in spool.entries()]
    assert ends[-1] == len(whole)
    for cut in range(len(whole) + 1):
        spool.journal_path.write_bytes(whole[:cut])
        read = [entry for entry, _ in spool.entries()]
        assert same(read, ROWS[: sum(end <= cut for end in ends)])


def test_a_damaged_line_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "1")
    Journal(spool).append(ROWS)
    lines = spool.journal_path.read_bytes().splitlines(keepends=True)
    spool.journal_path.write_bytes(lines[0] + b"\x00" * 20 + b"\n" + lines[2])
    first, damaged, last = [entry for entry, _ in spool.entries()]
    assert same([first, last], [ROWS[0], ROWS[2]])
    assert damaged == {
        "damaged": f"bytes {len(lines[0])} to {len(lines[0]) + 21} of journal.jsonl"
    }


def test_what_is_left_in_words(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "1")
    journal = Journal(spool)
    assert spool.left() == ""
    journal.append([*ROWS, {"params": {"p": "1"}}, {"tags": {"t": "1", "u": "2"}}])
    journal.append(
        [{"artifacts": ["x/y.txt"], "file": "files/1/y.txt"}, {"end": "FAILED", "ms": 1}]
    )
    assert spool.left() == (
        "6 metrics (steps 0 to 2); params p; tags t, u; artifacts x/y.txt; its end (FAILED)"
    )
    state = spool.state()
    state.offset = [offset for _, offset in spool.entries()][2]
    spool.save_state(state)
    assert spool.left().startswith("params p")
    spool.remove()
    assert spool.left() == ""
    assert not spool.path.exists()


def test_spools_are_found_the_oldest_first(tmp_path: Path) -> None:
    for name in ("b/10", "b/2", "a/1"):
        make_spool(tmp_path / name)
    (tmp_path / "a" / "no-spool").mkdir()
    found = [str(spool.path.relative_to(tmp_path)) for spool in find_spools(tmp_path)]
    assert found == ["a/1", "b/2", "b/10"]
    assert [spool.path for spool in find_spools(tmp_path / "b" / "2")] == [tmp_path / "b" / "2"]


def test_a_spool_of_another_version_is_refused(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "1")
    (spool.path / "run.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="in format 1, but it is not"):
        spool.header()


# A limit on the size of files acts as a full disk does: the write is cut, then fails.
FULL_DISK = """
import resource, sys
from pathlib import Path
from lrfinder.delivering.spools import Journal, Spool
spool = Spool(Path(sys.argv[1]))
journal = Journal(spool)
journal.append([{"tags": {"before": "1"}}])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
before = spool.journal_path.read_bytes()
try:
    journal.append([{"tags": {str(i): "x" * 100}} for i in range(20)])
except OSError as error:
    print(error.strerror)
assert spool.journal_path.read_bytes() == before
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
journal.append([{"tags": {str(i): "x" * 100}} for i in range(20)])
"""


def test_what_a_full_disk_cut_off_is_taken_back(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    spool = make_spool(tmp_path / "1")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(spool.path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "File too large\n"), done.stderr
    tags = [next(iter(entry["tags"])) for entry, _ in spool.entries()]
    assert tags == ["before", *map(str, range(20))]


def test_a_spool_that_was_removed_takes_no_more(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "1")
    journal = Journal(spool)
    os.unlink(spool.journal_path)
    with pytest.raises(FileNotFoundError, match="was removed"):
        journal.append(ROWS)


def test_folders_that_are_removed_meanwhile_hold_no_spools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_spools(tmp_path / "none") == []
    kept, gone = make_spool(tmp_path / "a" / "1"), make_spool(tmp_path / "b" / "1")
    scandir, looks = os.scandir, [0]

    def removes(path: Any) -> Any:
        looks[0] += 1
        if looks[0] == 2:  # what holds it was listed
            gone.remove()
            gone.path.parent.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removes)
    assert [spool.path for spool in find_spools(tmp_path)] == [kept.path]


def test_a_header_may_hold_half_a_character_as_of_a_file_s_name(tmp_path: Path) -> None:
    spool = make_spool(tmp_path / "1", tags={"command": "python \udcff.py"}, unique=("command",))
    assert spool.header().tags == {"command": "python \udcff.py"}
    assert spool.header().unique == ("command",)
