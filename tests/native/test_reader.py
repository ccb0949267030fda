"""The compiled reader: how it is loaded, and its work on columns against numpy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protein_lm.corpus.duplicates import ROW
from protein_lm.errors import ConfigError
from protein_lm.files.text import Text
from protein_lm.native import build
from protein_lm.native import reader as library
from protein_lm.native.numpy_reader import NumpyReader
from tests.native.test_build import needs_compiler

pytestmark = needs_compiler
NUMPY = NumpyReader()


def test_a_damaged_reader_is_said_in_a_line(reader, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(build.VARIABLE, "")
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    library.forget()
    assert not library.reader().is_compiled
    build.folder().mkdir()
    build.library_of(build.READER).write_bytes(b"no library")
    library.forget()
    with pytest.raises(ConfigError, match=r"reader.so cannot be used .*; build it anew with protein-lm kernels build"):
        library.reader()
    monkeypatch.setenv(build.VARIABLE, build.OFF)
    assert not library.reader().is_compiled
    library.forget()


@given(text=st.binary(max_size=300), times=st.integers(1, 120))
def test_bytes_are_counted(reader, text, times) -> None:
    text *= times
    for byte in (b"\n", b"\xff"):
        assert reader.count(text, byte) == NUMPY.count(text, byte) == text.count(byte)
        assert Text(text, memoryview(text)[1:]).count(byte) == 2 * text.count(byte) - text[:1].count(byte)


@given(keys=st.lists(st.integers(0, 2**64 - 1), max_size=200), bits=st.sampled_from([1, 6]))
def test_rows_are_spread_as_by_numpy(reader, keys, bits) -> None:
    rows = np.zeros(len(keys), dtype=ROW)
    rows["key"], rows["check"], rows["record"] = keys, keys[::-1], np.arange(len(keys))
    ours, by_numpy = np.zeros((2, len(keys) + 1), dtype=ROW)  # room for more
    assert reader.spread(rows, bits, ours).tolist() == NUMPY.spread(rows, bits, by_numpy).tolist()
    assert ours.tobytes() == by_numpy.tobytes()


@given(pieces=st.lists(st.tuples(st.binary(max_size=9), st.booleans()), max_size=20))
def test_pieces_are_kept_as_by_numpy(reader, pieces) -> None:
    values = np.frombuffer(b"".join(piece for piece, _ in pieces), dtype=np.uint8)
    lengths = np.array([len(piece) for piece, _ in pieces], dtype=np.int64)
    keep = np.array([is_kept for _, is_kept in pieces], dtype=bool)
    for each in (reader, NUMPY):
        target = np.empty_like(values)
        size = each.keep(values, lengths, keep, target)
        assert target[:size].tobytes() == b"".join(piece for piece, is_kept in pieces if is_kept)


@given(keep=st.lists(st.booleans(), max_size=40))
def test_columns_are_selected_as_by_numpy(reader, keep) -> None:
    keep = np.array(keep, dtype=bool)
    kinds = np.bool_, np.uint8, np.int32, np.int64, np.uint64
    columns = [np.arange(keep.size).astype(kind) for kind in kinds]
    columns.append(np.arange(4 * keep.size, dtype=np.uint64)[::2].reshape(-1, 2))
    for one, other in zip(reader.select(columns, keep), NUMPY.select(columns, keep), strict=True):
        assert one.dtype == other.dtype and one.tolist() == other.tolist()


@given(seed=st.integers(0, 2**64 - 1), test=st.floats(0, 0.49), valid=st.floats(0, 0.49))
def test_splits_are_made_and_counted_as_by_numpy(reader, seed, test, valid) -> None:
    hashes = np.random.default_rng(seed).integers(0, 2**64, 500, dtype=np.uint64)
    lengths = (hashes % np.uint64(1000)).astype(np.int64)
    ours, by_numpy = (each.split(hashes, seed, test + valid, test) for each in (reader, NUMPY))
    assert ours.dtype == by_numpy.dtype == np.uint8 and ours.tolist() == by_numpy.tolist()
    assert reader.tally(ours, lengths, 4).tolist() == NUMPY.tally(ours, lengths, 4).tolist()
