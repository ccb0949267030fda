"""Every format but FASTA, which has a file of its own; and every compression."""

import bz2
import gzip
import lzma
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from Bio import SeqIO, SwissProt

from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.errors import InputError
from protein_lm.files.sources import Source, sequence_files
from protein_lm.io.readers import read_blocks, read_records
from protein_lm.io.records import FRAGMENT, REVIEWED, UNREVIEWED

FIXTURES = Path(__file__).parents[1] / "fixtures"
DAT, XML, CLUSTERS = FIXTURES / "entries.dat", FIXTURES / "entries.xml", FIXTURES / "clusters.xml"


def records(path: Path) -> list[tuple[str, str]]:
    return [(record.sequence_id, record.sequence) for record in read_records(path)]


def in_blocks(path: Path, block_bytes: int, on_error: OnError = OnError.STOP) -> tuple[list, int]:
    rows, num_faulty = [], 0
    with Source(path, block_bytes=block_bytes) as source:
        for block in read_blocks(source, on_error=on_error):
            said = block.annotations
            columns = (
                block.sequence_ids.cut(),
                block.sequences(),
                block.lines.tolist(),
                *(c.tolist() for c in (said.taxon_ids, said.cluster_sizes, said.protein_existence, said.flags)),
            )
            rows += list(zip(*columns, strict=True))
            num_faulty += block.num_faulty
    return rows, num_faulty


def test_flat_file_as_biopython_reads_it():
    with DAT.open() as file:
        expected = [(record.accessions[0], record.sequence) for record in SwissProt.parse(file)]
    assert records(DAT) == expected


def test_flat_file_annotations():
    rows, _ = in_blocks(DAT, 2**20)
    assert [row[2:] for row in rows] == [
        (1, 9606, 0, 0, 0),
        (23, 418404, 0, 4, UNREVIEWED | FRAGMENT),
        (67, 1907, 0, 3, REVIEWED),
    ]


def test_xml_as_biopython_reads_it():
    with XML.open("rb") as file:
        assert records(XML) == [(record.id, str(record.seq)) for record in SeqIO.parse(file, "uniprot-xml")]
    rows, _ = in_blocks(XML, 2**20)
    assert [row[3:] for row in rows] == [(418404, 0, 4, UNREVIEWED | FRAGMENT), (280265, 0, 1, REVIEWED | FRAGMENT)]
    lines = XML.read_text().splitlines()
    assert [row[2] for row in rows] == [i for i, line in enumerate(lines, 1) if line.startswith("<entry")]


def test_uniref_xml():
    (record,) = read_records(CLUSTERS)
    assert (record.sequence_id, len(record), record.sequence[:10]) == ("UniRef90_P99999", 105, "MGDVEKGKKI")
    rows, _ = in_blocks(CLUSTERS, 2**20)
    assert rows[0][3:] == (9526, 27, 0, 0)


@pytest.mark.parametrize("path", [DAT, XML, CLUSTERS], ids=lambda path: path.name)
@pytest.mark.parametrize("block_bytes", [1, 7, 100])
def test_blocks_of_any_size_and_windows_lines_change_nothing(path, block_bytes, write):
    expected, _ = in_blocks(path, 2**20)
    assert in_blocks(path, block_bytes)[0] == expected
    windows = write(b"\xef\xbb\xbf\r\n" + path.read_bytes().replace(b"\n", b"\r\n"))
    moved = [(*row[:2], row[2] + 1, *row[3:]) for row in expected]
    assert in_blocks(windows, block_bytes)[0] == moved


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ((b"AC   H2CNN8;\n", b""), "line 23, sequence .*: the entry has no AC line with an accession"),
        ((b"SQ   SEQUENCE   196", b"XX   SEQUENCE   196"), "line 23, sequence H2CNN8: the entry has no SQ line"),
        ((b"ID   H2CNN8", b"IE   H2CNN8"), "line 23, sequence H2CNN8: an entry begins with 'IE   H2CNN8"),
    ],
)
@pytest.mark.parametrize("block_bytes", [50, 2**20])
def test_faulty_entries_are_named_or_skipped(write, change, fault, block_bytes):
    text = DAT.read_bytes()
    assert change[0] in text
    path = write(text.replace(*change, 1))
    with pytest.raises(InputError, match=rf"in\.fasta, {fault}"):
        in_blocks(path, block_bytes)
    rows, num_faulty = in_blocks(path, block_bytes, OnError.SKIP)
    assert ([row[0] for row in rows], num_faulty) == ([b"IPI00383150", b"P39896"], 1)


@pytest.mark.parametrize(
    ("change", "fault", "kept"),
    [
        ((b"\n//\nID   H2", b"\nID   H2"), "line 1, sequence IPI00383150: another entry begins in line 22, without", 1),
        (
            (b"//\nID   TCMO", b"// \nID   TCMO"),
            "line 23, sequence H2CNN8: another entry begins in line 67, without",
            1,
        ),
        ((b"IGPTPC\n//\n", b"IGPTPC//\n"), "line 1, sequence IPI00383150: another entry begins in line 22", 1),
        ((b"IGPTPC\n", b"IGPTPC//\n"), "line 21, sequence IPI00383150: a line with more than // does not end its", 2),
        ((b"IGPTPC\n", b"// IGPTPC\n"), "line 21, sequence IPI00383150: a line with more than // does not end its", 2),
    ],
)
@pytest.mark.parametrize("block_bytes", [50, 2**20])
def test_an_entry_whose_end_is_no_line_of_its_own_takes_nothing_of_the_next(write, change, fault, kept, block_bytes):
    text = DAT.read_bytes()
    assert text.count(change[0]) == 1
    path = write(text.replace(*change))
    with pytest.raises(InputError, match=rf"in\.fasta, {fault}"):
        in_blocks(path, block_bytes)
    rows, num_faulty = in_blocks(path, block_bytes, OnError.SKIP)
    assert len(rows) == kept and num_faulty == 1


def test_an_entry_that_was_cut_off_does_not_take_the_residues_of_the_next(write):
    text = DAT.read_bytes()
    cut = text.index(b"SQ   "), text.index(b"ID   H2CNN8")
    with pytest.raises(
        InputError, match="line 1, sequence IPI00383150: another entry begins in line 13, without a line //"
    ):
        records(write(text[: cut[0]] + text[cut[1] :]))
    with pytest.raises(InputError, match="line 67, sequence P39896: a line with more than // does not end its entry"):
        records(write(text.rstrip() + b" \n"))


@pytest.mark.parametrize("cut", [20, 700, 1300, 4000])
def test_a_truncated_flat_file_is_never_read_as_whole(write, cut):
    path = write(DAT.read_bytes()[:-cut])
    with pytest.raises(InputError, match="the file ends inside this entry"):
        records(path)


def test_an_illegal_letter_in_a_flat_file_is_found_in_its_line(write):
    text = DAT.read_bytes()
    path = write(text.replace(b"RRSAALSLLG", b"RRSA?LSLLG"))
    with pytest.raises(InputError, match=r"in\.fasta, line 149, sequence P39896: '\?' at position 285 is not a"):
        records(path)


def test_malformed_xml_in_the_middle(write):
    text = XML.read_bytes().replace(b"<name>H2CNN8_9ARCH</name>", b"<name>H2CNN8_9ARCH</nam>", 1)
    path = write(text)
    line = text[: text.index(b"</nam>")].count(b"\n") + 1
    with pytest.raises(InputError, match=rf"in\.fasta, line {line}: malformed XML \(mismatched tag\)"):
        records(path)
    rows, num_faulty = in_blocks(path, 2**20, OnError.SKIP)
    assert ([row[0] for row in rows], num_faulty) == ([b"P84001"], 1)


@pytest.mark.parametrize("cut", [5, 60, 150, 3000])
def test_truncated_xml_is_never_read_as_whole(write, cut):
    path = write(XML.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"the file ends (inside this entry|without closing its XML)"):
        records(path)


def test_entities_of_a_file_are_refused(write):
    bomb = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "AAAA"><!ENTITY b "&a;&a;">]>\n<uniprot>'
    path = write(bomb + b"<entry><accession>P1</accession><sequence>&b;</sequence></entry></uniprot>")
    with pytest.raises(InputError, match=r"line 2: malformed XML \(undefined entity\)"):
        records(path)


def test_numbers_that_are_none(write):
    path = write(CLUSTERS.read_bytes().replace(b'"member count" value="27"', b'"member count" value="many"'))
    with pytest.raises(InputError, match="sequence UniRef90_P99999: 'many' stands where a number should"):
        records(path)


def test_xml_of_another_encoding_or_kind(write):
    with pytest.raises(InputError, match=r"XML in 'ISO-8859-1'; save the file as UTF-8"):
        records(write(XML.read_bytes().replace(b"UTF-8", b"ISO-8859-1", 1)))
    with pytest.raises(InputError, match="looks like XML of another kind than UniProt's"):
        records(write('<?xml version="1.0"?><gml/>'))


ROWS = [("P1", "MKV"), ("two", "mk-l*"), ("P3", "MKX")]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_as_text(write, delimiter, end):
    lines = ["extra,sequence,sequence_id", "1,MKV,P1", "", '2,"mk-l*",two', "3,MKX,P3"]
    path = write(end.join(lines).replace(",", delimiter))
    for block_bytes in (1, 2**20):
        rows, _ = in_blocks(path, block_bytes)
        assert [(row[0].decode(), row[2]) for row in rows] == [("P1", 2), ("two", 4), ("P3", 5)]
    assert records(path) == [("P1", "MKV"), ("two", "MKL"), ("P3", "MKX")]


def test_parquet(tmp_path):
    path = tmp_path / "in.parquet"
    pd.DataFrame(ROWS, columns=["sequence_id", "sequence"]).assign(more=1.5).to_parquet(path)
    assert records(path) == [("P1", "MKV"), ("two", "MKL"), ("P3", "MKX")]
    with Source(path) as source:
        for _ in read_blocks(source):
            pass
        assert source.bytes_read == path.stat().st_size


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("sequence_id,sequence\nP1\n", "line 2, sequence P1: 1 of 2 columns; complete the row"),
        ("sequence_id,sequence\n,MK\n", "line 2: the row has no sequence_id; write one"),
        ("sequence_id,sequence\na b,MK\n", "line 2, sequence a: identifier 'a b' is not one word"),
        ("sequence_id,sequence\na,\n", "line 2, sequence a: no residues"),
        ("sequence_id,sequence\na,MK\nb,M1\n", "line 3, sequence b: '1' at position 2 is not a residue letter"),
        ('sequence_id,sequence\na,"MK\n', "line 2: a quote is opened in this row and never closed; correct the table"),
        ("sequence_id,sequence,sequence\na,M,M\n", "line 1: two columns are called sequence"),
        (
            "sequence_id,sequence\na,M,K\n",
            "line 2, sequence a: 3 cells for 2 columns, 'K' behind the last; name the column",
        ),
        (b"sequence_id,sequence\na,MK\n\xff,MK\n", "line 3: not UTF-8; save the file as UTF-8"),
        ("sequence_id,letters\na,MK\n", "has no column sequence; it needs sequence_id and sequence"),
    ],
)
def test_faulty_tables(write, content, fault):
    with pytest.raises(InputError, match=re.escape(fault)):
        records(write(content))


def test_faulty_parquet(tmp_path):
    path = tmp_path / "in.parquet"
    pd.DataFrame({"sequence_id": [1], "sequence": ["MK"]}).to_parquet(path)
    with pytest.raises(InputError, match="column sequence_id is int64, not string; convert it"):
        records(path)
    pd.DataFrame({"sequence_id": ["1"]}).to_parquet(path)
    with pytest.raises(InputError, match="has no column sequence; it needs sequence_id and sequence"):
        records(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="is a damaged Parquet file"):
        records(path)
    path.write_bytes(gzip.compress(b"PAR1...."))
    with pytest.raises(InputError, match="is a Parquet table inside something else; write it to a file, uncompressed"):
        records(path)


def zstd_of(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


COMPRESSIONS = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd_of}


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("parts", [1, 3])
def test_compressed_files_also_in_several_parts(write, name, parts):
    text = (FIXTURES / "headers.fasta").read_bytes()
    size = -(-len(text) // parts)
    packed = b"".join(COMPRESSIONS[name](text[i : i + size]) for i in range(0, len(text), size))
    assert records(write(packed)) == records(FIXTURES / "headers.fasta")


@pytest.mark.parametrize("name", ["xz", "zstd"])
def test_damaged_compressed_files(write, name):
    text = np.random.default_rng(0).choice(np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8), 200_000).tobytes()
    packed = COMPRESSIONS[name](b">a\n" + text)
    damaged = packed[: len(packed) // 2] + bytes(20) + packed[len(packed) // 2 + 20 :]
    for broken in (packed[:-100], *([damaged] if name == "xz" else [])):  # zstd as packed here has no checksum
        with pytest.raises(InputError, match=rf"in\.fasta is a (truncated|damaged) {name} file"):
            records(write(broken))


def test_compressed_twice_or_by_what_is_not_read(write):
    with pytest.raises(InputError, match="looks like compressed data inside compressed data"):
        records(write(gzip.compress(gzip.compress(b">a\nMK\n"))))
    with pytest.raises(InputError, match="looks like bzip2 data"):
        records(write(bz2.compress(b">a\nMK\n")))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input(pack):
    script = (
        "from pathlib import Path; from protein_lm.io.readers import read_records\n"
        "print([(r.sequence_id, r.sequence) for r in read_records(Path('-'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], input=pack(b">a\nMK\n>b\nMV"), capture_output=True, check=True
    )
    assert result.stdout.decode().strip() == "[('a', 'MK'), ('b', 'MV')]"
    failed = subprocess.run([sys.executable, "-c", script], input=pack(b">a\nM1\n"), capture_output=True, check=False)
    assert b"standard input, line 2, sequence a: '1' at position 2 is not a residue letter" in failed.stderr


def test_skipped_fasta_records_are_counted(write):
    path = write(">a\nMK\n>b\nM1\n>\nMK\n>c\n>d\nMV\n>e caf\xe9\nMK\n".encode("latin-1"))
    for block_bytes in (1, 2**20):
        rows, num_faulty = in_blocks(path, block_bytes, OnError.SKIP)
        assert ([(row[0], row[2]) for row in rows], num_faulty) == ([(b"a", 1), (b"d", 8)], 4)
    with Source(path) as source:
        blocks = list(read_blocks(source, policy=ResiduePolicy.ERROR, on_error=OnError.SKIP))
    assert sum(len(block) for block in blocks) == 2


def test_folders_stand_for_their_sequence_files(tmp_path):
    for name in ("b.fasta", "a.FA.gz", "c.dat.zst", "notes.txt", ".hidden.fasta", "d.xml"):
        (tmp_path / name).touch()
    files, ignored = sequence_files([tmp_path, Path("other")])
    assert [file.name for file in files] == ["a.FA.gz", "b.fasta", "c.dat.zst", "d.xml", "other"]
    assert [file.name for file in ignored] == ["notes.txt"]
    with pytest.raises(InputError, match="is named twice; name it once"):
        sequence_files([tmp_path, tmp_path / "b.fasta"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no sequence file: none ends in"):
        sequence_files([tmp_path / "empty"])
