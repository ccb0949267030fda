"""Damaged files of every format: each is read or refused in one line, never a crash, a hang, or a record without residues."""

import gzip
import lzma
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protein_lm.choices import OnError
from protein_lm.errors import InputError
from protein_lm.files.sources import Source
from protein_lm.io.readers import read_blocks

FIXTURES = Path(__file__).parents[1] / "fixtures"
TABLE = b"sequence_id,sequence\n" + b"".join(b"s%d,%b\n" % (i, b"MKVLA" * i) for i in range(1, 30))
WHOLE = {
    "fasta": (FIXTURES / "headers.fasta").read_bytes(),
    "dat": (FIXTURES / "entries.dat").read_bytes(),
    "xml": (FIXTURES / "entries.xml").read_bytes(),
    "clusters": (FIXTURES / "clusters.xml").read_bytes(),
    "table": TABLE,
    "utf-16": TABLE.decode().replace(",", ";").encode("utf-16"),
    "gzip": gzip.compress((FIXTURES / "headers.fasta").read_bytes(), mtime=0),
    "xz": lzma.compress(TABLE),
}
PIECES = st.sampled_from(
    [
        b"",
        b"\n",
        b">",
        b"//\n",
        b"</entry>",
        b"<entry>",
        b"\x00",
        b"\xff",
        b'"',
        b",",
        b"ID   ",
        b"AC   ;\n",
        b"&a;",
        b"*",
        b"1",
    ]
)
damages = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), PIECES | st.binary(max_size=5)), max_size=4)


def check_read(path: Path, *, block_bytes: int, on_error: OnError) -> None:
    """Read a file whose records must be whole, or which must be refused in one line."""
    try:
        with Source(path, block_bytes=block_bytes) as source:
            for block in read_blocks(source, on_error=on_error):
                assert (block.lengths > 0).all() and block.sequence_ids.lengths.all()
                assert len(block.tokens) == block.lengths.sum()
                assert all(4 <= token <= 28 for token in set(block.tokens))
                assert b"".join(block.sequence_ids.cut()).decode() is not None
                assert len(block.sequence_ids.cut()) == len(block) == block.annotations.flags.size
    except InputError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", WHOLE)
@example(damages=[(0.015625, 0, b"\n")], cut=0.0, block_bytes=1, on_error=OnError.STOP)  # in the name of an encoding
@settings(max_examples=150, deadline=None)
@given(
    damages=damages, cut=st.floats(0, 1), block_bytes=st.sampled_from([1, 37, 2**20]), on_error=st.sampled_from(OnError)
)
def test_damaged_files(name, damages, cut, block_bytes, on_error, tmp_path_factory) -> None:
    text = WHOLE[name]
    for where, size, piece in damages:
        place = int(where * len(text))
        text = text[:place] + piece + text[place + size :]
    text = text[: int((1 - cut**4) * len(text))]
    path = tmp_path_factory.mktemp("fuzz") / "in"
    path.write_bytes(text)
    check_read(path, block_bytes=block_bytes, on_error=on_error)
