"""Text tables: every reader gives the same cells, whatever stands between them and however they are encoded."""

import csv
import gzip
import io
import lzma
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from protein_lm import alphabet
from protein_lm.batches.labels import read_sequence_table
from protein_lm.choices import LongPolicy
from protein_lm.corpus import families
from protein_lm.corpus.families import FamilyTable
from protein_lm.corpus.split import ClusterTable, Split, SplitTable
from protein_lm.errors import InputError
from protein_lm.files import text_table
from protein_lm.files.tables import column_names, read_table
from protein_lm.files.text_table import TextTable
from protein_lm.io.hashing import hash_identifiers
from protein_lm.io.readers import read_records
from protein_lm.io.records import SequenceRecord
from protein_lm.io.variants.variant_table import read_variants

WILD_TYPE = SequenceRecord("P1", alphabet.encode("MKXAYIAKQR"), 1)
FAMILY = "PF00069"


def rows_of(data: bytes, *, block_bytes: int = 2**20, wanted: tuple[str, ...] = ()) -> list[tuple[int, list[str]]]:
    """The names and their line, and the rows with theirs."""
    blocks = (data[i : i + block_bytes] for i in range(0, len(data), block_bytes))
    table = TextTable.of_blocks(blocks, Path("t.csv"), wanted=wanted)
    table.check_names()
    return [(table.first_line, table.names), *table.whole_rows()]


def fault_of(data: bytes, **how) -> str:
    with pytest.raises(InputError) as caught:
        rows_of(data, **how)
    return str(caught.value)


# ---- properties

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=8)
tables = st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), max_size=6))
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
COMPRESSIONS: tuple[Callable[[bytes], bytes], ...] = (bytes, gzip.compress, lzma.compress)


@settings(max_examples=200, deadline=None)
@given(
    rows=tables,
    delimiter=st.sampled_from("\t,;"),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\r\n \n"]), min_size=1, max_size=3),
    appended=st.integers(0, 2),
    encoding=st.sampled_from(ENCODINGS),
    block_bytes=st.sampled_from([1, 7, 2**20]),
)
def test_what_was_written_is_read(rows, delimiter, ends, appended, encoding, block_bytes) -> None:
    names = [f"name {place}" for place in range(len(rows[0]) if rows else 2)]
    text, expected = "", []
    for number, row in enumerate([names, *rows]):
        line = io.StringIO()
        csv.writer(line, delimiter=delimiter, lineterminator="").writerow(row)
        expected.append((1 + text.replace("\r\n", "\n").replace("\r", "\n").count("\n"), row))
        text += line.getvalue() + delimiter * appended + ends[number % len(ends)]
    assert rows_of(text.encode(encoding), block_bytes=block_bytes) == expected


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from(' \t\n\r"",;ab\ufeff\x85\u2028\x1a'), max_size=30),
    block_bytes=st.sampled_from([1, 2**20]),
)
def test_any_text_is_read_as_pythons_csv_reads_it_or_refused_in_one_line(text, block_bytes) -> None:
    data = b"a,b\n" + text.encode()
    try:
        found = rows_of(data, block_bytes=block_bytes)
    except InputError as error:
        assert "t.csv, line " in str(error) and "\n" not in str(error)
        return
    expected = list(csv.reader(io.StringIO(data.decode().replace("\r\n", "\n").replace("\r", "\n"), newline="\n")))
    kept = [row[:2] for row in expected if row and (len(row) > 1 or row[0].strip(" \t"))]
    assert [row for _, row in found] == kept and all(len(row) == 2 for row in kept)


# ---- every reader

PRINTABLE = [f"a{letter}b" for letter in string.printable if letter not in "\r\n" + "|\t\v\f "] + [
    "Ä",
    "名",
    "\U0001f600",
]
READERS: dict[str, Callable[[Path], object]] = {
    "read_table": read_table,
    "splits": SplitTable,
    "clusters": ClusterTable,
    "families": lambda path: FamilyTable(path, (FAMILY,)),
    "records": lambda path: list(read_records(path)),
    "labels": lambda path: read_sequence_table(path, max_residues=9, long_sequences=LongPolicy.ERROR),
    "variants": lambda path: read_variants(path, WILD_TYPE, first_residue=1),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "data", [b"", b"\n", b" \n\t\r\n\r", b"\xef\xbb\xbf \n", "\n \n".encode("utf-16"), gzip.compress(b"\n")]
)
def test_blank_lines_alone_are_an_empty_file(tmp_path, read, data) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError, match=r"t\.csv is empty: it holds no (table|sequence); give"):
        read(tmp_path / "t.csv")


def everything(delimiter: str, end: str, *, appended: str = "") -> str:
    """One table that every reader but that of variants can read."""
    names = ["sequence_id", "sequence", "split", "cluster_id", "family_id"]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=appended + end)
    writer.writerow(names)
    writer.writerows([name, "MKV", "test", f"c{name}", FAMILY] for name in PRINTABLE)
    return text.getvalue()


@pytest.mark.parametrize("delimiter", "\t,;")
@pytest.mark.parametrize("appended", [False, True])
def test_all_readers_read_the_same(tmp_path, monkeypatch, delimiter, appended) -> None:
    monkeypatch.setattr(families, "_BLOCK_BYTES", 300)  # some blocks without quotes, some with
    names = ("t.csv", "T.CSV", "t.TSV.gz", "t")
    kinds = zip(names, ENCODINGS, ("\n", "\r\n", "\r", "\n"), (*COMPRESSIONS, bytes), strict=True)
    for name, encoding, end, compress in kinds:
        text = everything(delimiter, end, appended=delimiter * appended)
        path = tmp_path / name
        path.write_bytes(compress(text.encode(encoding)))
        encoded = [each.encode() for each in PRINTABLE]
        hashes = hash_identifiers(encoded)

        assert read_table(path)[0]["sequence_id"].tolist() == PRINTABLE
        assert column_names(path)[:2] == ["sequence_id", "sequence"]
        assert [record.sequence_id for record in read_records(path)] == PRINTABLE
        table = read_sequence_table(path, max_residues=9, long_sequences=LongPolicy.ERROR)
        assert table.identifiers == PRINTABLE
        splits = np.zeros(len(PRINTABLE), dtype=np.uint8)
        assert SplitTable(path).assign(hashes, splits).all() and (splits == Split.TEST).all()
        keys, known = ClusterTable(path).keys(hashes)
        assert known.all() and keys.tolist() == hash_identifiers([b"c" + each for each in encoded]).tolist()
        lengths = np.array([len(each) for each in encoded])
        letters = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        found = FamilyTable(path, (FAMILY,)).memberships(letters, lengths, hashes)
        assert {*found.records.tolist()} == {*range(len(PRINTABLE))}


@pytest.mark.parametrize("name", READERS)
def test_surplus_cells_are_refused_by_line_in_every_reader(tmp_path, name) -> None:
    text = "mutant,sequence_id,sequence,split,cluster_id,family_id\nM1A,P1,MKV,test,c,PF00069,\nM1C,P2,MKV,test,c,PF00069,x\n"
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=r"t\.csv, line 3(, sequence P2)?: 7 cells for 6 columns, 'x' behind the last"):
        READERS[name](tmp_path / "t.csv")


@settings(max_examples=60, deadline=None)
@given(
    damages=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.binary(max_size=4)), min_size=1, max_size=3),
    encoding=st.sampled_from(ENCODINGS),
)
def test_damaged_tables_are_read_or_refused_in_one_line_by_every_reader(damages, encoding, tmp_path_factory) -> None:
    data = ("mutant;sequence_id;sequence;split;cluster_id;family_id\n" + "M1A;P1;MKV;test;c;PF00069\n" * 2).encode(
        encoding
    )
    for where, size, piece in damages:
        place = int(where * len(data))
        data = data[:place] + piece + data[place + size :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    for read in READERS.values():
        try:
            read(path)
        except InputError as error:
            assert str(error) and "\n" not in str(error)


# ---- by hand


def test_a_comma_at_the_end_of_rows_makes_no_index(tmp_path) -> None:
    """As spreadsheets write it: pandas takes the first column for an index and the second for the first."""
    (tmp_path / "t.csv").write_text("sequence,ss3,ss8\nFWDK,CHEH,ETEE,\nMKVA,CCHH,SSTT,\n")
    table = read_sequence_table(tmp_path / "t.csv", max_residues=9, long_sequences=LongPolicy.ERROR)
    assert table.frame.to_dict("list") == {
        "sequence": ["FWDK", "MKVA"],
        "ss3": ["CHEH", "CCHH"],
        "ss8": ["ETEE", "SSTT"],
    }
    (tmp_path / "v.csv").write_text("mutant,DMS_score\nM1A,0.5,\n")
    frame = read_variants(tmp_path / "v.csv", WILD_TYPE, first_residue=1).frame
    assert frame.to_dict("list") == {"mutant": ["M1A"], "DMS_score": ["0.5"]}


def test_lines_are_those_where_rows_begin() -> None:
    data = b'\r\n \r\n"a\r\nname",b\r\n1,"2\n3"\r\n\r\n4,5'
    assert rows_of(data) == [(3, ["a\nname", "b"]), (5, ["1", "2\n3"]), (8, ["4", "5"])]


@pytest.mark.parametrize("block_bytes", [1, 2**20])
@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"a,b\n1,2\n3\n", "t.csv, line 3: 1 of 2 columns; complete the row"),
        (
            b"a,b\n\n1,2,,x,\n",
            "line 3: 5 cells for 2 columns, 'x' behind the last; name the column in the first line, or put",
        ),
        (b"a,b,\n1,2,x\n", "line 2: 3 cells for 2 columns, 'x' behind the last"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "line 3: a quote is opened in this row and never closed; correct the table"),
        (b'a,"b\n1,2\n', "line 1: a quote is opened in this row and never closed; correct the table"),
        (
            b'a,b\n1,2\n3,"4"5\n',
            "line 3: letters follow a closing quote; a quote inside a quoted cell is written twice",
        ),
        (b'"a\n1","a\n1"\n', "line 1: two columns are called 'a\\n1'; rename one of them"),
        (b"\na,b, a\n", "line 2: two columns are called a; rename one of them"),
        (b"a,b\n1,2\n1,\xe4\n", "line 3: not UTF-8; save the file as UTF-8"),
        (
            b"a\0,\0b\0\n\0",
            "line 1: a NUL byte, so this is no text, or UTF-16 without its mark; save the file as UTF-8",
        ),
        (b"\xff\xfea\0,\0b", "t.csv is damaged UTF-16 text (truncated data); save the file as UTF-8"),
        (b",,\n1,2,3\n", "line 1: no column has a name; name them in the first line"),
        (b"PK\x03\x04\x14\0\x06\0", "t.csv looks like a ZIP archive (or an Office document"),
        (b"PAR1\x15\x04\n\0", "t.csv looks like a Parquet table; give a table of text"),
    ],
)
def test_faults(data, fault, block_bytes) -> None:
    found = fault_of(data, block_bytes=block_bytes)
    assert fault in found and "\n" not in found


def test_cells_and_lines_without_end(monkeypatch) -> None:
    monkeypatch.setattr(text_table, "_LONGEST_CELL", 100)
    monkeypatch.setattr(text_table, "_LONGEST_LINE", 1000)
    many = b'\n3,"4' + b"\n5,6" * 100
    assert "line 3: a cell of over 100 characters, or a quote that is never closed" in fault_of(b"a,b\n1,2" + many)
    for block_bytes in (7, 2**20):
        long = b"a,b\n1,2\n3," + b"4" * 2000 + b"\n5,6\n"
        assert "line 3: over 1,000 bytes in one line, so this is no table" in fault_of(long, block_bytes=block_bytes)
    monkeypatch.undo()
    rows_of(b"a,b\n")  # sets csv's own limit again


def test_the_first_line_tells_the_delimiter() -> None:
    assert rows_of(b"note, a,b;note, c;mutant\n1;2;3\n", wanted=("mutant",))[1] == (2, ["1", "2", "3"])
    assert rows_of(b'"a,b,c"\td\n1\t2\n')[1] == (2, ["1", "2"])
    assert rows_of(b"a;b\n1,5;2\n")[1] == (2, ["1,5", "2"])
    assert rows_of(b'mutant\nA1C,\nA1C;B2C\n\n  \n""\n')[1:] == [(2, ["A1C"]), (3, ["A1C;B2C"]), (6, [""])]
    blocks = iter([b"mutant\nA1C,\n"])
    assert list(TextTable.of_blocks(blocks, Path("t.TSV.gz")).whole_rows()) == [(2, ["A1C,"])], "by the name alone"


def test_an_index_that_pandas_wrote_out_is_a_column(tmp_path) -> None:
    frame = pd.DataFrame({"mutant": ["M1A", "M1C"], "note": ["x", "y"]}, index=[7, 8])
    for separator in "\t,;":
        frame.to_csv(tmp_path / "t.csv", sep=separator)
        found, _ = read_table(tmp_path / "t.csv")
        assert found.to_dict("list") == {"Unnamed: 0": ["7", "8"], "mutant": ["M1A", "M1C"], "note": ["x", "y"]}
    (tmp_path / "t.csv").write_text(",Unnamed: 0,mutant\n0,7,M1A\n")
    assert read_table(tmp_path / "t.csv")[0].columns.tolist() == ["Unnamed: 0.1", "Unnamed: 0", "mutant"]
    (tmp_path / "t.tsv").write_text("\n\n\tsequence_id\tsequence\n0\tP1\tMKV\n")
    assert [record.sequence_id for record in read_records(tmp_path / "t.tsv")] == ["P1"]
    (tmp_path / "t.csv").write_text("sequence_id,split\n0,a,test\n")  # as R's write.table names rows
    with pytest.raises(InputError, match="line 2: 3 cells for 2 columns, 'test' behind the last"):
        SplitTable(tmp_path / "t.csv")


def test_rows_come_before_the_file_is_read_to_its_end() -> None:
    num_read = 0

    def blocks() -> Iterator[bytes]:
        nonlocal num_read
        for number in range(50):
            num_read += 1
            yield (b"a,b\n" if number == 0 else b"") + b"1,2\n" * 2000

    rows = TextTable.of_blocks(blocks(), Path("t.csv")).whole_rows()
    assert next(rows) == (2, ["1", "2"]) and num_read < 5
    assert sum(1 for _ in rows) == 99_999 and num_read == 50


def test_quick_readers_get_blocks_until_the_first_quote() -> None:
    data = b"a,b\n" + b"1,2\n" * 2000 + b'3,"4,"\n' + b"5,6\n"
    table = TextTable.of_blocks((data[i : i + 99] for i in range(0, len(data), 99)), Path("t.csv"))
    blocks: list[bytes] = []

    def quick(block: bytes) -> list | None:
        blocks.append(block)
        return None if len(blocks) % 2 else [(0, line.split(",")) for line in block.decode().split()]

    found = [row for rows in table.read(quick, list, has_heading=True) for row in rows]
    assert len(blocks) > 9 and all(b'"' not in block for block in blocks)
    assert [cells for _, cells in found] == [["1", "2"]] * 2000 + [["3", "4,"], ["5", "6"]]
    assert all(line in (0, 2 + index) for index, (line, _) in enumerate(found))


def test_files_that_are_no_tables_are_called_what_they_are(tmp_path) -> None:
    (tmp_path / "t.csv").write_text(">P1 protein, sequence\nMKV\n")
    assert column_names(tmp_path / "t.csv") == []
    for name in ("labels", "variants", "splits", "clusters", "families"):
        with pytest.raises(
            InputError, match=r"t\.csv looks like FASTA; give a table whose first line names its columns"
        ):
            READERS[name](tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("# a comment, sequence\n\n>P1\nMKV\n")
    assert column_names(tmp_path / "t.csv") == []
    (tmp_path / "t.csv").write_text(">P1,sequence_id,sequence\nMKV\n")
    assert [record.sequence for record in read_records(tmp_path / "t.csv")] == ["MKV"]
    (tmp_path / "t.csv").write_text("<html>\n")
    with pytest.raises(InputError, match=r"without names: representative and member; it looks like a web page"):
        ClusterTable(tmp_path / "t.csv")


def test_fasta_in_utf_16(tmp_path) -> None:
    (tmp_path / "t.fasta").write_bytes(">P1 Ä\r\nMKV\r\n".encode("utf-16"))
    (record,) = read_records(tmp_path / "t.fasta")
    assert record.sequence == "MKV" and record.sequence_id == "P1"


# ---- Parquet


def test_parquet_has_the_cells_that_text_would_have(tmp_path) -> None:
    columns = {
        "whole": pyarrow.array([2, None, 10**17 + 1]),
        "number": pyarrow.array([0.5, None, float("nan")]),
        "text": pyarrow.array(["MK", None, "nan"]),
        "bytes": pyarrow.array([b"MK", None, "Ä".encode()]),
        "truth": pyarrow.array([True, None, False]),
        "list": pyarrow.array([[1.5, None, float("nan")], None, []]),
        "category": pyarrow.array(["a", None, "b"]).dictionary_encode(),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t")
    assert read_table(tmp_path / "t")[0].to_dict("list") == {
        "whole": ["2", "", "100000000000000001"],
        "number": ["0.5", "", ""],
        "text": ["MK", "", "nan"],
        "bytes": ["MK", "", "Ä"],
        "truth": ["True", "", "False"],
        "list": ["1.5 nan nan", "", ""],
        "category": ["a", "", "b"],
    }
    assert column_names(tmp_path / "t")[:2] == ["whole", "number"]


def test_an_index_of_pandas_in_parquet_is_a_column(tmp_path) -> None:
    frame = pd.DataFrame({"sequence": ["MKV", "MKL"]})
    frame.set_index(pd.Index(["P1", "P2"], name="sequence_id")).to_parquet(tmp_path / "named.parquet")
    frame.set_index(pd.Index(["P1", "P2"])).to_parquet(tmp_path / "unnamed.parquet")
    frame.to_parquet(tmp_path / "none.parquet")
    table = read_sequence_table(tmp_path / "named.parquet", max_residues=9, long_sequences=LongPolicy.ERROR)
    assert table.identifiers == ["P1", "P2"]
    assert [record.sequence_id for record in read_records(tmp_path / "named.parquet")] == ["P1", "P2"]
    assert read_table(tmp_path / "unnamed.parquet")[0]["__index_level_0__"].tolist() == ["P1", "P2"]
    assert read_table(tmp_path / "none.parquet")[0].columns.tolist() == ["sequence"]


def test_faulty_parquet(tmp_path) -> None:
    path = tmp_path / "t.parquet"
    twice = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["sequence", "sequence"])
    parquet.write_table(twice, path)
    for read in (read_table, column_names, READERS["records"]):
        with pytest.raises(InputError, match="two columns are called sequence; rename one of them"):
            read(path)
    parquet.write_table(pyarrow.table({"sequence": [b"\xff"]}), path)
    with pytest.raises(InputError, match="is a damaged Parquet file"):
        read_table(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="is a damaged Parquet file"):
        read_table(path)
    path.write_bytes(gzip.compress(b"PAR1...."))
    with pytest.raises(InputError, match="is a Parquet table inside something else"):
        read_table(path)
