"""Array files that grow: whatever is appended, and however the system writes, they are those of numpy."""

import errno
import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protein_lm.corpus import array_file
from protein_lm.corpus.array_file import ArrayFile, checksum_of_values
from protein_lm.files.resume import Growth


class Refusing(io.FileIO):
    """A file past the cache, of a file system that cannot, or that takes only a part, or that is full."""

    def __init__(self, path, fault: int | None) -> None:
        super().__init__(path, "r+")
        self._fault = fault

    def write(self, values) -> int:
        if self._fault is not None:
            raise OSError(self._fault, "refused")
        return super().write(memoryview(values)[:1000])


WAYS = {
    "as it comes": array_file._open_direct,
    "not at all": lambda path: None,
    "opened, but refused": lambda path: Refusing(path, errno.EINVAL),
    "in part": lambda path: Refusing(path, None),
}


@pytest.fixture
def disk():
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(array_file, "_BLOCK_BYTES", 2 * array_file._PAGE_BYTES)
    monkeypatch.setattr(array_file, "_open_direct", WAYS[request.param])


steps = st.lists(st.one_of(st.integers(0, 40_000), st.sampled_from(["mark", "resume", "read"])), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(steps=steps, dtype=st.sampled_from([np.uint8, np.int32, np.int64]))
def test_files_are_those_of_numpy(way, disk, tmp_path, steps, dtype) -> None:
    path = tmp_path / "grown.npy"
    path.unlink(missing_ok=True)
    file, expected = ArrayFile(path, dtype, disk), np.empty(0, dtype=dtype)
    for step in steps:
        if step == "mark":
            file.settle()
        elif step == "read":
            middle = expected.size // 2
            assert file.read(middle, expected.size).tolist() == expected[middle:].tolist()
        elif step == "resume":
            file.settle()
            mark = file.growth.mark()
            file.append(np.ones(9000, dtype=dtype))  # which the next one does not know
            file.settle()
            file.close()
            growth = Growth.restore(path, mark)
            assert growth is not None
            file = ArrayFile(path, dtype, disk, growth)
        else:
            values = np.arange(expected.size, expected.size + step).astype(dtype)
            file.append(values)
            expected = np.append(expected, values)
        assert file.size == expected.size
    facts = file.complete()
    np.save(tmp_path / "expected.npy", expected)
    assert path.read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert facts == {"bytes": path.stat().st_size, "xxh3_128": checksum_of_values(path)}


@pytest.mark.parametrize("number", [10, 3000])  # those of 3000 do not fit
def test_pieces_that_are_kept(way, disk, tmp_path, number) -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 20, number)
    values, keep = generator.integers(0, 256, lengths.sum()).astype(np.uint8), generator.random(number) < 0.9
    expected = values[np.repeat(keep, lengths)]
    file = ArrayFile(tmp_path / "kept.npy", np.uint8, disk)
    for times in range(1, 4):
        assert file.append_kept(values, lengths, keep) == expected.size
        assert file.size == times * expected.size
    file.complete()
    assert np.load(tmp_path / "kept.npy").tolist() == np.tile(expected, 3).tolist()


def test_values_that_are_replaced(way, disk, tmp_path) -> None:
    file, values = ArrayFile(tmp_path / "replaced.npy", np.int64, disk), np.arange(5000)
    file.append(values)
    file.overwrite(10, np.array([7]))
    file.replace_from(20, (file.read(start, start + 100) for start in range(100, 5000, 500)))
    facts = file.complete()
    values[10] = 7
    expected = np.append(values[:20], np.concatenate([values[start : start + 100] for start in range(100, 5000, 500)]))
    assert np.load(tmp_path / "replaced.npy").tolist() == expected.tolist()
    assert facts["xxh3_128"] == checksum_of_values(tmp_path / "replaced.npy")


def test_values_that_are_dropped_from_the_end(disk, tmp_path) -> None:
    file = ArrayFile(tmp_path / "shorter.npy", np.uint8, disk)
    file.append(np.arange(100, dtype=np.uint8))
    file.replace_from(60, iter(()))
    facts = file.complete()
    assert np.load(tmp_path / "shorter.npy").tolist() == list(range(60))
    assert facts == {"bytes": 188, "xxh3_128": checksum_of_values(tmp_path / "shorter.npy")}


def test_a_disk_that_is_full_is_not_forgotten(disk, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(array_file, "_open_direct", lambda path: Refusing(path, errno.ENOSPC))
    file = ArrayFile(tmp_path / "full.npy", np.uint8, disk)
    with closing(file), pytest.raises(OSError, match="refused"):  # at once, or later
        file.append(np.zeros(array_file._BLOCK_BYTES, dtype=np.uint8))
        file.complete()


@pytest.mark.parametrize("offset", [3, 6, 12, 50, 127])
def test_a_header_that_is_another(disk, tmp_path, offset) -> None:
    path = tmp_path / "whole.npy"
    file = ArrayFile(path, np.uint8, disk)
    file.append(np.arange(100, dtype=np.uint8))
    file.complete()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    assert checksum_of_values(path) is None
