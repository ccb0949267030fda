import gzip
import io
import re
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from hypothesis import given
from hypothesis import strategies as st

from protein_lm.alphabet import STANDARD_RESIDUES, ResiduePolicy, encode
from protein_lm.errors import InputError
from protein_lm.files.sources import Source
from protein_lm.io.headers import sequence_id
from protein_lm.io.readers import read_blocks, read_records

FIXTURE = Path(__file__).parents[1] / "fixtures" / "headers.fasta"


def in_blocks(path: Path, block_bytes: int, policy=ResiduePolicy.KEEP) -> list[tuple[str, bytes, int]]:
    with Source(path, block_bytes=block_bytes) as source:
        return [
            (identifier.decode(), tokens, line)
            for block in read_blocks(source, policy=policy)
            for identifier, tokens, line in zip(
                block.sequence_ids.cut(), block.sequences(), block.lines.tolist(), strict=True
            )
        ]


def by_biopython(text: str) -> list[tuple[str, bytes]]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    return [(sequence_id(r.description), encode(str(r.seq)).tobytes()) for r in SeqIO.parse(io.StringIO(text), "fasta")]


words = st.tuples(
    st.sampled_from(["", "sp|", "tr|", "sp", "gi|"]), st.text(st.sampled_from("abcXYZ0189_|=.>é\u00a0 "), max_size=12)
).map(lambda parts: "".join(parts).strip())
headers = words.filter(bool)
bodies = st.text(st.sampled_from(STANDARD_RESIDUES + STANDARD_RESIDUES.lower() + "BJOUXZ"), min_size=1, max_size=70)


@st.composite
def fasta_texts(draw) -> str:
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = [""] * draw(st.integers(0, 2))
    for _ in range(draw(st.integers(1, 6))):
        body, width = draw(bodies), draw(st.integers(1, 80))
        lines += [">" + draw(headers), *(body[i : i + width] for i in range(0, len(body), width))]
        lines += [""] * draw(st.integers(0, 1))
    mark = draw(st.sampled_from(["", "\ufeff"]))
    return mark + end.join(lines) + draw(st.sampled_from(["", end]))


@given(text=fasta_texts(), block_bytes=st.integers(1, 40))
def test_same_records_as_biopython_in_blocks_of_any_size(text, block_bytes, tmp_path_factory):
    path = tmp_path_factory.mktemp("oracle") / "in.fasta"
    path.write_bytes(text.encode())
    records = in_blocks(path, block_bytes)
    assert [(identifier, tokens) for identifier, tokens, _ in records] == by_biopython(text)
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert [line for *_, line in records] == [i for i, line in enumerate(lines, 1) if line.startswith(">")]


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 1000, 2**20])
def test_real_records(block_bytes):
    records = in_blocks(FIXTURE, block_bytes)
    assert [(identifier, tokens) for identifier, tokens, _ in records] == by_biopython(FIXTURE.read_text())


def test_read_records_gives_identifier_tokens_and_line(write):
    first, second = read_records(write(">sp|P1|A_B name\nMK\nV\n\n>two\nLl\n"))
    assert (first.sequence_id, first.sequence, len(first), first.line) == ("P1", "MKV", 3, 1)
    assert (second.sequence_id, second.sequence, second.line) == ("two", "LL", 5)
    assert first.tokens.dtype == np.uint8


def test_one_very_long_line_and_gzip(write):
    body = STANDARD_RESIDUES * 2000
    text = f">long\n{body}\n>short\nMK".encode()
    whole = gzip.compress(text[:9999]) + gzip.compress(text[9999:])  # in two members, as bgzip writes
    for path in (write(text), write(whole, "anything")):
        for block_bytes in (100, 2**20):
            assert [len(tokens) for *_, tokens, _ in in_blocks(path, block_bytes)] == [len(body), 2]


def test_reading_may_be_left_early(write):
    records = read_records(write(gzip.compress(b">a\nMK\n" * 300_000)))
    assert next(records).sequence == "MK"
    records.close()


@pytest.mark.parametrize("letter", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
@pytest.mark.parametrize("policy", ResiduePolicy)
def test_policy_for_each_letter(write, letter, policy):
    path = write(f">a\nM{letter}K\n>b\nMK\n>c\nm{letter.lower()}k\n")
    ambiguous = letter in "BJOUXZ"
    if ambiguous and policy is ResiduePolicy.ERROR:
        with pytest.raises(
            InputError, match=rf"in.fasta, line 2, sequence a: ambiguous residue '{letter}' at position 2, ref"
        ):
            in_blocks(path, 2**20, policy)
        return
    shown = "X" if letter == "J" or (ambiguous and policy is ResiduePolicy.TO_X) else letter
    expected = [encode(sequence).tobytes() for sequence in (f"M{shown}K", "MK", f"M{shown}K")]
    assert [tokens for _, tokens, _ in in_blocks(path, 2**20, policy)] == expected
    with Source(path) as source:
        (block,) = read_blocks(source, policy=policy)
    assert block.has_ambiguous.tolist() == [ambiguous, False, ambiguous]


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_what_is_changed_is_counted(write, block_bytes):
    path = write(">a\nmk-. L*\n>b\nM\tJJbK-*-\n>c\nUXZOB\n")
    changes: dict[str, int] = {}
    with Source(path, block_bytes=block_bytes) as source:
        tokens = b""
        for block in read_blocks(source, policy=ResiduePolicy.TO_X):
            tokens += block.tokens
            for name, number in block.changes.items():
                changes[name] = changes.get(name, 0) + number
    assert tokens == encode("MKL" + "MXXXK" + "XXXXX").tobytes()
    assert changes == {"lower_case": 3, "gaps": 4, "final_stops": 2, "j_to_x": 2, "bouz_to_x": 5}


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (
            "MK1V",
            "line 4, sequence b: '1' at position 3 is not a residue letter; correct the sequence or remove the record",
        ),
        (
            "MKV\nM*V",
            "line 5, sequence b: a stop '*' at position 5, before its end; cut the sequence there or remove the",
        ),
        ("M**", "line 4, sequence b: a stop '*' at position 2, before its end"),
        ("M\n\nK\0", "line 6, sequence b: byte 0x00 at position 3 is not a residue letter"),
        ("MK?", "line 4, sequence b: '?' at position 3 is not a residue letter"),
        ("MKé", "line 4, sequence b: 'é' at position 3 is not a residue letter"),
        ("MK>V", "line 4, sequence b: a header begins inside this line; put a line break before its '>'"),
        ("M\nMK*>d e9\nMK", "line 5, sequence b: a header begins inside this line; put a line break before its '>'"),
        ("M1\nMK>d\nMK", "line 4, sequence b: '1' at position 2 is not a residue letter"),
        ("", "line 3, sequence b: no residues; remove the record or add its sequence"),
        ("--\n .*", "line 3, sequence b: no residues"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 10, 2**20])
def test_the_first_faulty_record_is_named_with_its_line(write, body, fault, block_bytes):
    path = write(f">a\nM\n>b extra\n{body}\n>c\nM9\n>d\n")
    with pytest.raises(InputError, match=re.escape(f"in.fasta, {fault}")):
        in_blocks(path, block_bytes)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b">a\nMK\n>\nMK\n", "line 3: the header has no identifier; write one after its '>'"),
        (b">a\nMK\n> \t\nMK\n", "line 3: the header has no identifier"),
        (
            b">a\nMK\n>b caf\xe9\nMK\n",
            "line 3, sequence b: byte 0xE9 in its header is not UTF-8; save the file as UTF-8",
        ),
        (b"\n\nhello\n>a\nMK\n", "line 3: 'hello' begins no known format; give FASTA, "),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_faulty_headers(write, content, fault, block_bytes):
    with pytest.raises(InputError, match=re.escape(f"in.fasta, {fault}")):
        in_blocks(write(content), block_bytes)


@pytest.mark.parametrize("block_bytes", [1, 7, 2**20])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "comments", ["#59\t1\n", "#A3M#\n", "\ufeff# one\n#\n\n  \n \t# two >x\n", "\n\n#\n\n", "# long" * 2000 + "\n#\n"]
)
def test_comments_before_the_first_header(write, comments, end, block_bytes):
    text = comments + ">101\nMK-lV\n> 102 \nM--\n"
    found = in_blocks(write(text.replace("\n", end)), block_bytes if len(comments) < 99 else 2**12)
    lines = text.split("\n")
    assert [(name, line) for name, _, line in found] == [("101", lines.index(">101") + 1), ("102", len(lines) - 2)]
    assert [tokens for *_, tokens, _ in found] == [encode("MKLV").tobytes(), encode("M").tobytes()]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("#59\n", "'#59' begins no known format"),
        ("# a\nMKV\n", "'# a' begins no known format"),
        ("# STOCKHOLM 1.0\n#=GF x\nseq MKV\n//\n", "looks like a Stockholm alignment"),
        ("#\n#\ndata_X\n", r"looks like a structure (mmCIF)"),
        ("#a\n>b\nMK\n#c\n>d\nMK\n", "line 4, sequence b: '#' at position 3 is not a residue letter"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_comments_of_other_files(write, content, fault, block_bytes):
    with pytest.raises(InputError, match=re.escape(fault)):
        in_blocks(write(content), block_bytes)


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (b"\x89PNG\r\n\x1a\n....", "a PNG image"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"BAM\x01....", "a BAM alignment"),
        (b"<!DOCTYPE HTML><html>", "a web page"),
        (b"@read1\nACGT\n+\nIIII\n", "FASTQ or SAM"),
        (b"; comment\n>a\nMK\n", "FASTA with ';' comment lines, which are not supported"),
        (b"x" * 257 + b"ustar", "a tar archive"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_other_formats_are_recognised(write, content, looks, compress):
    with pytest.raises(InputError, match=rf"in\.fasta looks like {looks}"):
        list(read_records(write(compress(content))))


PACKED = gzip.compress(FIXTURE.read_bytes())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty: it holds no sequence"),
        (b" \n\r\n", "is empty: it holds no sequence"),
        (b"\xef\xbb\xbf\n", "is empty: it holds no sequence"),
        (gzip.compress(b""), "is empty: it holds no sequence"),
        (
            PACKED[:-20],
            "is a truncated gzip file, or has a few other bytes after its data; fetch or compress the file again",
        ),
        (PACKED[:5], "is a truncated gzip file"),
        (PACKED[:300] + bytes(50) + PACKED[350:], "is a damaged gzip file"),
        (PACKED[:-8] + bytes(8), "is a damaged gzip file"),
        (PACKED + b"rub", "is a truncated gzip file, or has a few other bytes after its data"),
        (PACKED + b"rubbish" * 9, "has other bytes after the end of its gzip data"),
    ],
)
def test_broken_files(write, content, fault):
    with pytest.raises(InputError, match=re.escape(f"in.fasta {fault}")):
        list(read_records(write(content)))


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(InputError, match="nothing does not exist; check the name"):
        list(read_records(tmp_path / "nothing"))
    with pytest.raises(InputError, match="is a folder; name the sequence file in it"):
        list(read_records(tmp_path))
    with pytest.raises(InputError, match="is not a regular file; write its contents to a file first"):
        list(read_records(Path("/dev/null")))


def test_a_file_that_may_not_be_read(write, monkeypatch):
    path = write(">a\nMK\n")
    monkeypatch.setattr("io.FileIO", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(InputError, match=r"in\.fasta cannot be read: permission denied; ask its owner or copy it"):
        list(read_records(path))
