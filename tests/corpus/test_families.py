"""Families that are held out: which, who tells, and what becomes of their members."""

import gzip
import hashlib
import lzma
import re
from pathlib import Path

import numpy as np
import pytest

from protein_lm.choices import OnError
from protein_lm.corpus import families
from protein_lm.corpus.families import PRESETS, FamilyTable, read_families
from protein_lm.corpus.filters import Filters
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import TokenStore
from protein_lm.errors import ConfigError, InputError
from protein_lm.io.hashing import hash_identifiers

FIXTURES = Path(__file__).parents[1] / "fixtures"
DAT, XML, CLUSTERS, FASTA = (
    FIXTURES / name for name in ("entries.dat", "entries.xml", "clusters.xml", "headers.fasta")
)
ALL_TRAIN = {"valid_fraction": 0.0, "test_fraction": 0.0}


def held_out(folder: Path) -> set[str]:
    store = TokenStore.open(folder)
    return {store.sequence_id(index) for index in store.indices(Split.HELD_OUT)}


def members(path: Path, families: tuple[str, ...], identifiers: list[str]) -> set[tuple[str, str]]:
    encoded = [identifier.encode() for identifier in identifiers]
    lengths = np.array([len(name) for name in encoded])
    found = FamilyTable(path, families).memberships(
        np.frombuffer(b"".join(encoded), dtype=np.uint8), lengths, hash_identifiers(encoded)
    )
    pairs = zip(found.records.tolist(), found.families.tolist(), strict=True)
    return {(identifiers[record], families[family]) for record, family in pairs}


def test_names_of_families(tmp_path):
    (tmp_path / "families.txt").write_bytes(b"\xef\xbb\xbfPF00014\r\n\r\nPF00041\r\n")
    (tmp_path / "families.gz").write_bytes(gzip.compress(b"PF00069"))
    words = ["PF07714, PF00069", str(tmp_path / "families.txt"), str(tmp_path / "families.gz")]
    assert read_families(words) == ("PF00014", "PF00041", "PF00069", "PF07714")
    assert len(PRESETS["performer"]) == len(set(PRESETS["performer"])) == 20
    assert read_families(["performer"]) == tuple(sorted(PRESETS["performer"]))


@pytest.mark.parametrize("word", ["PF0069", "pf00069", "PF00069.30", "PF00069,", "", "IPR000719", "performers"])
def test_what_names_no_family(word):
    wrong = re.escape(word.split(",")[-1])
    with pytest.raises(
        ConfigError, match=rf"'{wrong}' is no Pfam accession \(PF and five digits, as PF00069\), no file"
    ):
        read_families([word])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("PF00069\nPF1\n", "line 2: 'PF1' is no Pfam accession; write PF and five digits, as PF00069"),
        ("\n\n", "names no family; write accessions of Pfam into it, one in a line"),
    ],
)
def test_faulty_files_of_families(tmp_path, content, fault):
    (tmp_path / "families.txt").write_text(content)
    with pytest.raises(InputError, match=rf"families\.txt,? {fault}"):
        read_families([str(tmp_path / "families.txt")])


@pytest.mark.parametrize("block_bytes", [1, 100, 2**20])
def test_flat_files_tell(tmp_path, block_bytes):
    families = ["PF00069", "PF00891", "PF12942", "PF16864"]
    manifest = prepare([DAT], tmp_path / "store", hold_out_families=families, block_bytes=block_bytes)
    assert held_out(tmp_path / "store") == {"H2CNN8", "P39896"}
    assert manifest["split"]["families"] == {
        "num_held_out": {"PF00069": 0, "PF00891": 1, "PF12942": 1, "PF16864": 1},
        "told_by_sources": ["entries.dat"],
        "table": None,
    }
    assert manifest["splits"]["held_out"]["num_sequences"] == 2
    prepare([DAT], tmp_path / "one", hold_out_families=["PF16864"], block_bytes=block_bytes, **ALL_TRAIN)
    assert held_out(tmp_path / "one") == {"P39896"}


@pytest.mark.parametrize("block_bytes", [1, 100, 2**20])
def test_xml_tells(tmp_path, block_bytes):
    manifest = prepare([XML], tmp_path / "store", hold_out_families=["PF12942"], block_bytes=block_bytes)
    assert held_out(tmp_path / "store") == {"H2CNN8"}
    families = manifest["split"]["families"]
    assert (families["num_held_out"], families["told_by_sources"]) == ({"PF12942": 1}, ["entries.xml"])


def test_only_an_entrys_own_references_count(tmp_path):
    """Evidence may refer to Pfam too, and so may remarks."""
    xml = XML.read_text().replace('type="EMBL" id="AEX14552.1"/>', 'type="Pfam" id="PF00069"/>')
    dat = DAT.read_text().replace("CC   -!- PATHWAY:", "CC   DR   Pfam; PF00069; Pkinase; 1.\nCC   -!- PATHWAY:")
    (tmp_path / "in.xml").write_text(xml)
    (tmp_path / "in.dat").write_text(dat)
    assert "PF00069" in xml and "PF00069" in dat
    for name in ("in.xml", "in.dat"):
        with pytest.raises(InputError, match=r"no sequence belongs to a family to hold out \(PF00069\); check the acc"):
            prepare([tmp_path / name], tmp_path / "store", hold_out_families=["PF00069"])


def test_records_at_fault_and_filtered_ones_are_not_counted(tmp_path):
    text = DAT.read_text().replace("AC   H2CNN8;\n", "")
    (tmp_path / "in.dat").write_text(text)
    families = ["PF12942", "PF00891"]
    manifest = prepare([tmp_path / "in.dat"], tmp_path / "a", hold_out_families=families, on_error=OnError.SKIP)
    assert manifest["split"]["families"]["num_held_out"] == {"PF00891": 1, "PF12942": 0}
    assert held_out(tmp_path / "a") == {"P39896"}
    manifest = prepare([DAT], tmp_path / "b", hold_out_families=families, filters=Filters(drop_fragments=True))
    assert manifest["split"]["families"]["num_held_out"] == {"PF00891": 1, "PF12942": 0}
    assert held_out(tmp_path / "b") == {"P39896"}
    with pytest.raises(InputError, match="no sequence is left of 3"):
        prepare([DAT], tmp_path / "c", hold_out_families=families, filters=Filters(min_length=10_000))


@pytest.mark.parametrize("path", [FASTA, CLUSTERS], ids=lambda path: path.name)
def test_sources_that_do_not_tell(tmp_path, path):
    with pytest.raises(
        InputError, match=f"{path.name} does not tell the families of its sequences.*give a family table"
    ):
        prepare([DAT, path], tmp_path / "store", hold_out_families=["PF00891"])
    assert not list(tmp_path.iterdir())


PAIRS = [
    ("P1", "PF00069"),
    ("P1", "PF07714"),
    ("P2", "PF99999"),
    ("P3", "PF00069"),
    ("P3", "PF00069"),
    ("P4", "G3DSA:1"),
]
REGIONS = "{}_acc\tseq_version\tcrc64\tmd5\tpfamA_acc\tseq_start\tseq_end"
FORMS = {
    "tsv": ("sequence_id\tfamily_id", "{0}\t{1}"),
    "csv, other columns": ("note, family_id,sequence_id", '"a, b",{1}, {0}'),
    "Pfam-A.regions": (REGIONS.format("pfamseq"), "{0}\t1\t4E2AB3DFB7B39C5D\t9c0f\t{1}\t36\t383"),
    "Pfam-A.regions.uniprot": (REGIONS.format("uniprot"), "{0}\t1\t4E2AB3DFB7B39C5D\t9c0f\t{1}\t36\t383"),
    "two columns": ("", "{0}\t{1}"),
    "two columns, family first": ("", "{1},{0}"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("block_bytes", [150, 2**22])
def test_tables_of_every_form(tmp_path, monkeypatch, form, compress, block_bytes):
    monkeypatch.setattr(families, "_BLOCK_BYTES", block_bytes)
    heading, row = FORMS[form]
    text = "\r\n".join([*([heading] if heading else []), *(row.format(*pair) for pair in PAIRS * 20)])
    (tmp_path / "table").write_bytes(compress(text.encode()))
    expected = {("P1", "PF00069"), ("P1", "PF07714"), ("P3", "PF00069")}
    assert members(tmp_path / "table", ("PF00069", "PF07714"), ["P0", "P1", "P2", "P3", "P4"]) == expected


def test_clusters_and_isoforms_go_with_their_protein(tmp_path):
    (tmp_path / "table.tsv").write_text(
        "P12345\tPF00069\nA0A023GPI8\tPF00069\nUPI000013EAA0\tPF00069\nprotein\tPF00069\nQ8WZ42-3\tPF00069\n"
    )
    named = [
        *("P12345", "UniRef50_P12345", "UniRef90_P12345", "UniRef100_P12345-2", "P12345-11", "UniRef50_A0A023GPI8"),
        *("UniRef50_UPI000013EAA0", "protein", "Q8WZ42-3"),
    ]
    others = [
        "UniRef_P12345",
        "UniRef50_P12346",
        "P12345-",
        "xP12345",
        "P12345x",
        "protein-1",
        "UniRef50_protein",
        "Q8WZ42",
    ]
    found = members(tmp_path / "table.tsv", ("PF00069",), [*named, *others])
    assert found == {(name, "PF00069") for name in named}
    manifest = prepare([CLUSTERS, FASTA], tmp_path / "all", valid_fraction=0, test_fraction=0)
    assert manifest["splits"]["held_out"]["num_sequences"] == 0
    (tmp_path / "table.tsv").write_text("P99999\tPF00034\nQ8WZ42\tPF00041\nP00974\tPF00041\n")
    settings = {"hold_out_families": ["PF00034", "PF00041"], "family_table": tmp_path / "table.tsv"}
    manifest = prepare([CLUSTERS, FASTA], tmp_path / "store", **settings, **ALL_TRAIN)
    assert held_out(tmp_path / "store") == {"UniRef90_P99999", "UniRef50_Q8WZ42", "P00974"}
    assert manifest["split"]["families"] == {
        "num_held_out": {"PF00034": 1, "PF00041": 2},
        "told_by_sources": [],
        "table": {
            "name": "table.tsv",
            "sha256": hashlib.sha256((tmp_path / "table.tsv").read_bytes()).hexdigest(),
        },
    }


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a\n", ": its first line must name sequence_id and family_id, or there must be two columns without names"),
        ("sequence_id\tfamily\nP1\tPF00069\n", ": its first line must name sequence_id and family_id"),
        ("PF00069\tPF07714\n", ": its first line must name sequence_id and family_id"),
        ("P1\tPF00069\t5\n", ": its first line must name sequence_id and family_id"),
        ("P1\tPF07714\n", " has no row of a family to hold out; check the accessions, or give another table"),
        ("sequence_id\tfamily_id\n", " has no row of a family to hold out"),
        ("P1\tPF00069\nP2\n", ", line 2: 1 of 2 columns; complete the row"),
        (
            "sequence_id,family_id\nP1,PF00069;PF07714\n",
            ", line 2: 'PF00069;PF07714' is no accession of Pfam; write PF",
        ),
        (
            "P1,PF00069\n\nP2,PF00069.30\n",
            ", line 3: 'PF00069.30' is no accession of Pfam; write PF and five digits, and a",
        ),
        ("sequence_id,family_id\n ,PF00069\n", ", line 2: the row has no identifier; write one"),
        (b"P1,PF00069\n\xff,PF00069\n", ", line 2: not UTF-8; save the file as UTF-8"),
        (gzip.compress(b"P1,PF00069\n" * 9)[:-9], " is a truncated gzip file"),
        (b"\x89PNG\r\n\x1a\n", " looks like a PNG image; give a table of text"),
    ],
)
def test_faulty_tables(tmp_path, content, fault):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(f"table.csv{fault}")):
        prepare([FASTA], tmp_path / "store", hold_out_families=["PF00069"], family_table=path)
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_tables_that_help_nothing(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(
        ConfigError, match=r"table\.csv tells families, but none is to be held out; name some, or leave"
    ):
        prepare([FASTA], tmp_path / "store", family_table=path)
    path.write_text("sp|P00974|BPT1_BOVIN,PF00014\n")
    with pytest.raises(
        InputError, match=r"no sequence .*check the accessions, and that .*table\.csv names sequences as "
    ):
        prepare([FASTA], tmp_path / "store", hold_out_families=["PF00014"], family_table=path)


def test_table_of_splits_first_then_families_then_clusters(tmp_path):
    (tmp_path / "in.fasta").write_text(">a\nMK\n>b\nMKV\n>c\nMKL\n>d\nMKI\n")
    (tmp_path / "families.csv").write_text("a,PF00001\nb,PF00001\nc,PF00002\n")
    (tmp_path / "splits.csv").write_text("sequence_id,split\na,test\nb,\nd,held_out\n")
    (tmp_path / "clusters.tsv").write_text("x\ta\nx\tb\nx\tc\nx\td\n")
    manifest = prepare(
        [tmp_path / "in.fasta"],
        tmp_path / "store",
        hold_out_families=["PF00001"],
        family_table=tmp_path / "families.csv",
        split_table=tmp_path / "splits.csv",
        clusters=tmp_path / "clusters.tsv",
        **ALL_TRAIN,
    )
    splits = TokenStore.open(tmp_path / "store").splits.tolist()
    assert splits == [Split.TEST, Split.HELD_OUT, Split.TRAIN, Split.HELD_OUT]
    assert manifest["split"]["families"]["num_held_out"] == {"PF00001": 1}


@pytest.mark.parametrize("copied_records", [7, 2**16])
def test_members_against_dictionaries(tmp_path, monkeypatch, copied_records):
    """Among them sequences that only a duplicate, which is dropped, shows to be of a family."""
    monkeypatch.setattr("protein_lm.corpus.store_writer._COPIED_RECORDS", copied_records)
    monkeypatch.setattr("protein_lm.corpus.duplicates._HELD_ROWS", 50)
    generator = np.random.default_rng(0)
    pool = ["".join(generator.choice(list("ACDEFGHIKL"), int(size))) for size in generator.integers(3, 30, 150)]
    chosen = [pool[number] for number in generator.integers(0, 150, 400)]
    (tmp_path / "in.fasta").write_text("".join(f">Q{number}\n{letters}\n" for number, letters in enumerate(chosen)))
    rows = [(int(record), f"PF0000{family}") for record, family in generator.integers(0, (400, 6), (120, 2))]
    (tmp_path / "families.tsv").write_text("".join(f"Q{record}\t{family}\n" for record, family in rows))
    table = {f"Q{number}": str(generator.choice(["train", "held_out", ""])) for number in range(0, 400, 9)}
    (tmp_path / "splits.csv").write_text(
        "sequence_id,split\n" + "".join(f"{name},{split}\n" for name, split in table.items())
    )
    manifest = prepare(
        [tmp_path / "in.fasta"],
        tmp_path / "store",
        hold_out_families=["PF00001", "PF00003", "PF00009"],
        family_table=tmp_path / "families.tsv",
        split_table=tmp_path / "splits.csv",
        block_bytes=300,
        **ALL_TRAIN,
    )
    families_of: dict[str, set[str]] = {letters: set() for letters in chosen}
    for record, family in rows:
        families_of[chosen[record]].add(family)
    expected, counts = set(), dict.fromkeys(["PF00001", "PF00003", "PF00009"], 0)
    for letters in families_of:
        name = f"Q{chosen.index(letters)}"
        found = families_of[letters] & counts.keys()
        if table.get(name) == "held_out" or (found and not table.get(name)):
            expected.add(name)
            counts.update({family: counts[family] + 1 for family in found})
    assert held_out(tmp_path / "store") == expected and len(expected) > 20
    assert manifest["split"]["families"]["num_held_out"] == counts
    assert counts["PF00001"] and counts["PF00003"] and not counts["PF00009"]


def test_the_result_depends_neither_on_workers_nor_on_blocks(tmp_path):
    (tmp_path / "table.csv").write_text("sequence_id,sequence\nt1,MKV\nt2,M-K\n")
    (tmp_path / "families.tsv").write_text("P00974\tPF00014\nt2\tPF00014\nP84001\tPF12942\nQ8WZ42\tPF00041\n")
    sources = [FASTA, DAT, XML, CLUSTERS, tmp_path / "table.csv"]
    families = ["PF00014", "PF00041", "PF00891", "PF12942", "performer"]
    contents = []
    for block_bytes, workers in ((1, 0), (500, 2), (2**20, 0)):
        folder = tmp_path / f"store{len(contents)}"
        manifest = prepare(
            sources,
            folder,
            hold_out_families=families,
            family_table=tmp_path / "families.tsv",
            block_bytes=block_bytes,
            workers=workers,
        )
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[1:] == contents[:1] * 2
    counts = {family: number for family, number in manifest["split"]["families"]["num_held_out"].items() if number}
    assert counts == {"PF00014": 2, "PF00041": 1, "PF00891": 1, "PF12942": 2}
    assert manifest["split"]["families"]["told_by_sources"] == ["entries.dat", "entries.xml"]
