import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from protein_lm.alphabet import ResiduePolicy, decode
from protein_lm.choices import OnError
from protein_lm.corpus.filters import Filters
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import ARRAYS, TokenStore
from protein_lm.errors import ConfigError, InputError, OutputError, StoreError
from protein_lm.io.readers import read_records

FIXTURE = Path(__file__).parents[1] / "fixtures" / "headers.fasta"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fasta"
    path.write_text(">a\nMKV\n>b\nMKX\n>c\nmk\nv\n>d\nMKVLLA\n>e\nM\n>d again\nMKVLLA\n")
    return path


def sequences(store: TokenStore) -> dict[str, str]:
    return {store.sequence_id(index): decode(store.residues(index)) for index in range(store.num_sequences)}


def test_round_trip_of_real_records(tmp_path):
    manifest = prepare([FIXTURE], tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    expected = {record.sequence_id: record.sequence for record in read_records(FIXTURE)}
    assert sequences(store) == expected
    assert np.diff(store.offsets).tolist() == [len(sequence) for sequence in expected.values()]
    assert (store.num_sequences, store.tokens.size) == (manifest["num_sequences"], manifest["num_residues"])
    assert (store.tokens.dtype, store.offsets.dtype, store.splits.dtype) == (np.uint8, np.int64, np.uint8)
    assert sorted(index for split in Split for index in store.indices(split)) == list(range(store.num_sequences))
    assert store.manifest == manifest == json.loads((tmp_path / "store" / "manifest.json").read_text())


def test_what_is_dropped_is_counted_by_reason(tmp_path, fasta):
    manifest = prepare(
        [fasta], tmp_path / "store", policy=ResiduePolicy.DROP, filters=Filters(min_length=2, max_length=5)
    )
    dropped = {reason: count for reason, count in manifest["num_dropped"].items() if count}
    assert dropped == {"too_short": 1, "too_long": 2, "ambiguous_residue": 1, "duplicate_sequence": 1}
    assert (manifest["num_read"], manifest["num_sequences"], manifest["num_residues"]) == (6, 1, 3)
    assert sequences(TokenStore.open(tmp_path / "store")) == {"a": "MKV"}


def test_duplicates_across_files_and_their_policy(tmp_path, fasta):
    other = tmp_path / "other.fasta.gz"
    other.write_bytes(gzip.compress(b">f\nMKU\n>g\nMKVLLA\n"))
    manifest = prepare([fasta, other], tmp_path / "keep")
    assert sequences(TokenStore.open(tmp_path / "keep")) == {
        "a": "MKV",
        "b": "MKX",
        "d": "MKVLLA",
        "e": "M",
        "f": "MKU",
    }
    assert [source["sequences"] for source in manifest["sources"]] == [6, 2]
    manifest = prepare([fasta, other], tmp_path / "to-x", policy=ResiduePolicy.TO_X)
    assert (manifest["num_dropped"]["duplicate_sequence"], manifest["residue_changes"]["bouz_to_x"]) == (4, 1)


def test_the_manifest_tells_where_it_came_from(tmp_path, fasta):
    table = tmp_path / "table.csv"
    table.write_text("sequence_id,split\na,held_out\nc,test\n")
    manifest = prepare([fasta], tmp_path / "store", seed=5, valid_fraction=0, test_fraction=0, split_table=table)
    digest = hashlib.sha256(fasta.read_bytes()).hexdigest()
    assert manifest["sources"] == [
        {"name": "in.fasta", "bytes": fasta.stat().st_size, "sha256": digest, "sequences": 6}
    ]
    assert manifest["split"] == {
        "rule": "hash of sequence_id",
        "seed": 5,
        "valid_fraction": 0,
        "test_fraction": 0,
        "table": {"name": "table.csv", "sha256": hashlib.sha256(table.read_bytes()).hexdigest()},
        "clusters": None,
        "families": None,
    }
    assert manifest["splits"]["held_out"] == {"num_sequences": 1, "num_residues": 3}
    assert manifest["splits"]["train"] == {"num_sequences": 3, "num_residues": 10}
    assert str(tmp_path) not in json.dumps(manifest)


def test_the_result_does_not_depend_on_blocks(tmp_path):
    text = FIXTURE.read_text() * 2 + ">new\nMK\n"
    path = tmp_path / "in.fasta"
    path.write_text(text)
    folders = []
    for block_bytes in (1, 100, 2**20):
        folders.append(tmp_path / f"store{block_bytes}")
        prepare([path], folders[-1], block_bytes=block_bytes)
    contents = [{file.name: file.read_bytes() for file in sorted(folder.iterdir())} for folder in folders]
    assert contents[1:] == contents[:1] * 2


@pytest.mark.parametrize("copied_records", [1, 7, 2**16])
@pytest.mark.parametrize("copied_bytes", [5, 2**24])
def test_duplicates_anywhere_leave_what_a_dictionary_keeps(tmp_path, monkeypatch, copied_records, copied_bytes):
    monkeypatch.setattr("protein_lm.corpus.store_writer._COPIED_RECORDS", copied_records)
    monkeypatch.setattr("protein_lm.corpus.store_writer._COPIED_BYTES", copied_bytes)
    monkeypatch.setattr("protein_lm.corpus.duplicates._HELD_ROWS", 50)
    generator = np.random.default_rng(0)
    pool = ["".join(generator.choice(list("ACDEFGHIKL"), int(size))) for size in generator.integers(1, 30, 150)]
    chosen = [pool[i] for i in generator.integers(0, 150, 400)]
    path = tmp_path / "in.fasta"
    path.write_text("".join(f">sp|Q{i}|x OS=y OX={i + 1}\n{letters}\n" for i, letters in enumerate(chosen)))
    manifest = prepare([path], tmp_path / "store", block_bytes=300)
    expected: dict[str, str] = {}
    for number, letters in enumerate(chosen):
        if letters not in expected.values():
            expected[f"Q{number}"] = letters
    store = TokenStore.open(tmp_path / "store")
    assert sequences(store) == expected
    assert [f"Q{taxon - 1}" for taxon in store.annotations.taxon_ids] == list(expected)
    assert manifest["num_dropped"]["duplicate_sequence"] == 400 - len(expected)
    for split in Split:
        numbers = manifest["splits"][split.label]
        indices = store.indices(split)
        assert numbers == {"num_sequences": indices.size, "num_residues": int(store.lengths_of(indices).sum())}
    assert names(tmp_path / "store") == sorted([*ARRAYS, "manifest.json"])


HEADERS = """>sp|P1|A_X Name OS=a OX=9606 PE=1 SV=1
MKA
>sp|P2|B_X Name (Fragment) OS=a OX=9606 PE=2 SV=1
MKC
>tr|P3|C_X Name OS=b OX=10090 PE=3 SV=1
MKD
>UniRef50_P4 Name n=7 Tax=c TaxID=10090 RepID=D_X
MKE
>plain
MKF
"""


@pytest.mark.parametrize(
    ("filters", "kept", "reasons"),
    [
        (Filters(drop_fragments=True), ["P1", "P3", "UniRef50_P4", "plain"], {"fragment": 1}),
        (Filters(taxon_ids=frozenset([10090])), ["P3", "UniRef50_P4"], {"other_taxon": 3}),
        (Filters(protein_existence=frozenset([1, 3])), ["P1", "P3"], {"other_evidence": 3}),
        (Filters(min_cluster_size=7), ["UniRef50_P4"], {"small_cluster": 4}),
        (Filters(drop_fragments=True, taxon_ids=frozenset([9606])), ["P1"], {"fragment": 1, "other_taxon": 3}),
    ],
)
def test_filters_by_what_headers_say(tmp_path, filters, kept, reasons):
    (tmp_path / "in.fasta").write_text(HEADERS)
    manifest = prepare([tmp_path / "in.fasta"], tmp_path / "store", filters=filters)
    assert list(sequences(TokenStore.open(tmp_path / "store"))) == kept
    assert {reason: count for reason, count in manifest["num_dropped"].items() if count} == reasons
    assert manifest["num_read"] == len(kept) + sum(reasons.values())
    assert manifest["filters"] == filters.facts()


def test_filters_that_nothing_answers(tmp_path, fasta):
    for filters, what in (
        (Filters(min_cluster_size=2), "cluster size"),
        (Filters(taxon_ids=frozenset([9606])), "taxon"),
        (Filters(protein_existence=frozenset([1])), "level of protein existence"),
    ):
        with pytest.raises(InputError, match=f"no record of the sources states its {what}, so it cannot be asked for"):
            prepare([fasta], tmp_path / "store", filters=filters)
    assert names(tmp_path) == ["in.fasta"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"protein_existence": frozenset([0])}, "there is no level of protein existence 0; choose from 1 to 5"),
        ({"taxon_ids": frozenset([-1])}, "-1 is no NCBI taxonomy identifier"),
        ({"min_cluster_size": -1}, "minimum cluster size -1 is below 0"),
        ({"min_length": 0}, "minimum length 0 is below 1"),
    ],
)
def test_impossible_filters(settings, fault):
    with pytest.raises(ConfigError, match=fault):
        Filters(**settings)


def test_what_is_skipped_is_counted(tmp_path, fasta):
    fasta.write_text(fasta.read_text() + ">bad\nM1\n>empty\n>f\nMKVV\n")
    with pytest.raises(InputError, match="line 15, sequence bad: '1' at position 2 is not a residue letter"):
        prepare([fasta], tmp_path / "store")
    assert names(tmp_path) == ["in.fasta"]
    manifest = prepare([fasta], tmp_path / "store", on_error=OnError.SKIP)
    assert (manifest["num_read"], manifest["num_dropped"]["malformed"], manifest["on_error"]) == (9, 2, "skip")
    assert manifest["sources"][0]["sequences"] == 9


def test_formats_mix(tmp_path):
    fixtures = FIXTURE.parent
    sources = [FIXTURE, fixtures / "entries.dat", fixtures / "entries.xml", fixtures / "clusters.xml"]
    manifest = prepare(sources, tmp_path / "store")
    assert [source["sequences"] for source in manifest["sources"]] == [24, 3, 2, 1]
    assert manifest["num_dropped"]["duplicate_sequence"] == 1  # H2CNN8 is in the flat file and in the XML


def test_the_result_does_not_depend_on_workers(tmp_path):
    sources = [FIXTURE, FIXTURE.parent / "entries.dat", FIXTURE.parent / "entries.xml"]
    (tmp_path / "table.csv").write_text("sequence_id,sequence\nt1,MKV\nt2,M-K\n")
    sources.append(tmp_path / "table.csv")
    settings = {"block_bytes": 500, "policy": ResiduePolicy.DROP, "filters": Filters(drop_fragments=True)}
    for workers in (0, 1, 2):
        prepare(sources, tmp_path / f"store{workers}", workers=workers, **settings)
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / f"store{workers}").iterdir()} for workers in (0, 1, 2)
    ]
    assert contents[1:] == contents[:1] * 2
    (tmp_path / "bad.fasta").write_text(">a\nMK\n" * 300 + ">b\nM1\n" + ">c\nM2\n" * 300)
    with pytest.raises(
        InputError, match=r"bad\.fasta, line 602, sequence b: '1' at position 2 is not a residue letter"
    ):
        prepare([tmp_path / "bad.fasta"], tmp_path / "store", workers=2, block_bytes=100)
    assert not (tmp_path / "store").exists()


def test_workers_end_with_a_killed_process(tmp_path):
    (tmp_path / "in.fasta").write_text("".join(f">s{i}\n{'MKVLA' * 60}{'ACDEF' * (i % 50)}\n" for i in range(60_000)))
    command = [sys.executable, "-m", "protein_lm", "data", "prepare", "in.fasta", "-o", "store", "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: list[str] = []
    while len(workers) < 3 and process.poll() is None:  # two workers and multiprocessing's own tracker
        workers = children.read_text().split() if children.exists() else []
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_an_identifier_for_two_sequences(tmp_path, fasta):
    other = tmp_path / "other.fasta"
    other.write_text("\n>e twice\nMK\n")
    with pytest.raises(
        InputError, match=r"other.fasta, line 2: sequence e has other residues than at .*in.fasta, line 10"
    ):
        prepare([fasta, other], tmp_path / "store")
    assert names(tmp_path) == ["in.fasta", "other.fasta"]


def test_nothing_left(tmp_path, fasta):
    with pytest.raises(InputError, match=r"no sequence is left of 6 in .*in.fasta: too short 6; relax the filters"):
        prepare([fasta], tmp_path / "store", filters=Filters(min_length=100))
    assert names(tmp_path) == ["in.fasta"]


def test_bad_settings_and_existing_output(tmp_path, fasta):
    with pytest.raises(ConfigError, match="maximum length 4 is below minimum length 5; exchange or correct them"):
        prepare([fasta], tmp_path / "store", filters=Filters(min_length=5, max_length=4))
    with pytest.raises(OutputError, match="exists already; remove it or name another output"):
        prepare([fasta], fasta)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_store_is_refused(tmp_path, fasta, name):
    folder = tmp_path / "store"
    prepare([fasta], folder)
    os.truncate(folder / name, (folder / name).stat().st_size - 1)
    with pytest.raises(StoreError, match=rf"store is damaged: {name} has .* bytes instead of .*; prepare it again"):
        TokenStore.open(folder)
    (folder / name).unlink()
    with pytest.raises(StoreError, match=rf"store is incomplete: {name} is missing; prepare the corpus again"):
        TokenStore.open(folder)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"format_version": 2}', "has store format 2; this version of protein-lm reads 3; prepare it again"),
        ("{", "manifest.json is damaged"),
        ("[]", "manifest.json is damaged"),
        ("{}", "manifest.json is damaged"),
        ('{"format_version": 3, "files": {}}', "manifest.json is damaged: it does not list cluster_sizes.npy"),
    ],
)
def test_a_strange_manifest_is_refused(tmp_path, text, fault):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=fault):
        TokenStore.open(tmp_path)


def test_what_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="does not exist; make it with: protein-lm data prepare FASTA -o"):
        TokenStore.open(tmp_path / "nothing")
    with pytest.raises(StoreError, match=r"is not a prepared corpus: it has no manifest\.json"):
        TokenStore.open(tmp_path)


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_gives_the_same_bytes(tmp_path):
    generator = np.random.default_rng(0)
    letters = generator.choice(np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8), 300)
    with (tmp_path / "in.fasta").open("wb") as file:
        for number in range(60_000):
            start = int(generator.integers(0, 250))
            body = letters[start : start + int(generator.integers(10, 50))].tobytes()
            file.write(b">s%d\n%b\n" % (number, body))
    arguments = ["data", "prepare", str(tmp_path / "in.fasta"), "-o", str(tmp_path / "store")]
    (tmp_path / "often.py").write_text(
        "import os, signal, sys\n"
        "from protein_lm.cli import main\n"
        "from protein_lm.corpus import prepare\n"
        "from protein_lm.files.resume import WorkFolder\n"
        "save, saves_left = WorkFolder.save, [int(sys.argv[1])]\n"
        "def save_and_die(*arguments):\n"
        "    save(*arguments)\n"
        "    saves_left[0] -= 1\n"
        "    if not saves_left[0]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    prepare.SAVED_SECONDS, WorkFolder.save = 0, save_and_die\n"
        "    sys.exit(main(sys.argv[2:]))\n"
    )

    def command(killed_after_save: int = 0) -> list[str]:
        return [sys.executable, str(tmp_path / "often.py"), str(killed_after_save), *arguments]

    subprocess.run(command(), check=True, capture_output=True)
    whole = {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()}
    shutil.rmtree(tmp_path / "store")
    start = time.perf_counter()  # Only now: what a first start compiles would put most moments behind the end.
    subprocess.run(command(), check=True, capture_output=True)
    seconds = time.perf_counter() - start
    killed_after_saves = (1, 2)
    for kill in (*killed_after_saves, *generator.uniform(0.2, 1.0, 20)):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        is_after_save = kill in killed_after_saves
        process = subprocess.Popen(
            command(int(kill) if is_after_save else 0), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if not is_after_save:
            time.sleep(kill * seconds)
            process.kill()
        assert process.wait() == -signal.SIGKILL or not is_after_save
        if is_after_save or not (tmp_path / "store").exists():
            workers = str(generator.integers(0, 3))
            done = subprocess.run([*command(), "--workers", workers], check=False, capture_output=True)
            assert not done.returncode, done.stderr.decode()
            assert not is_after_save or b"resuming what a killed run had begun" in done.stderr
        assert {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()} == whole
        assert names(tmp_path) == ["in.fasta", "often.py", "store"]
