"""Several stores as one corpus, compared with the same sequences prepared together."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from protein_lm.batches.packed_batches import TrainingBatches
from protein_lm.choices import Objective
from protein_lm.cli import main
from protein_lm.config import DataConfig
from protein_lm.corpus.export import export
from protein_lm.corpus.inspect import measure
from protein_lm.corpus.joined import JoinedStore, join, open_corpus
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import ANNOTATIONS
from protein_lm.corpus.verify import verify
from protein_lm.errors import InputError, OutputError, StoreError
from tests.conftest import grammar


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    """Three stores, of which the second repeats two sequences of the first, one of them under another name."""
    sequences = list(grammar(90).items())
    groups = [sequences[:30], [*sequences[5:6], ("other", sequences[7][1]), *sequences[30:60]], sequences[60:]]
    paths = []
    for number, group in enumerate(groups):
        fasta = tmp_path / f"{number}.fasta"
        fasta.write_text("".join(f">tr|{name}|X_Y Name OS=x OX={number + 1} PE=2 SV=1\n{s}\n" for name, s in group))
        prepare([fasta], tmp_path / f"part{number}", valid_fraction=0.2, test_fraction=0.2)
        paths.append(tmp_path / f"part{number}")
    return paths


def contents(corpus) -> list[tuple]:
    return [
        (corpus.sequence_id(i), corpus.residues(i).tobytes(), int(corpus.splits[i]))
        for i in range(corpus.num_sequences)
    ]


def test_joined_shards_are_the_corpus_prepared_at_once(shards, tmp_path) -> None:
    prepare([tmp_path / f"{n}.fasta" for n in range(3)], tmp_path / "all", valid_fraction=0.2, test_fraction=0.2)
    manifest = join(shards, tmp_path / "joined")
    assert manifest["num_dropped"] == {"duplicate_sequence": 2}
    joined, whole = open_corpus(tmp_path / "joined"), open_corpus(tmp_path / "all")
    assert isinstance(joined, JoinedStore)
    assert contents(joined) == contents(whole)
    assert joined.num_residues == whole.num_residues
    assert joined.manifest["splits"] == whole.manifest["splits"]
    of_joined, of_whole = measure(joined), measure(whole)
    assert of_joined.residue_counts == of_whole.residue_counts and of_joined.longest == of_whole.longest
    assert list(of_joined.histogram()) == list(of_whole.histogram())
    assert [source["sha256"] for source in joined.sources] == [source["sha256"] for source in whole.sources]
    everything = np.arange(whole.num_sequences)[::-1]
    for name in ANNOTATIONS.values():
        assert (
            getattr(joined.annotations_of(everything), name) == getattr(whole.annotations_of(everything), name)
        ).all()
    assert joined.tokens_of(everything).tobytes() == whole.tokens_of(everything).tobytes()
    assert joined.longer_than(20).tolist() == whole.longer_than(20).tolist()
    assert [joined.length(i) for i in (0, 40, 80)] == [whole.length(i) for i in (0, 40, 80)]


@pytest.mark.parametrize("objective", Objective)
def test_training_on_them_is_the_same(shards, tmp_path, objective) -> None:
    prepare([tmp_path / f"{n}.fasta" for n in range(3)], tmp_path / "all", valid_fraction=0.2, test_fraction=0.2)
    join(shards, tmp_path / "joined")
    shown = []
    for name in ("joined", "all"):
        training = TrainingBatches(
            open_corpus(tmp_path / name),
            DataConfig(tokens_per_batch=100),
            objective=objective,
            max_length=24,
            seed=1,
        )
        batches = [training.batch(planned) for planned in islice(training.plan.batches(), 50)]
        shown.append([(batch.tokens.tolist(), batch.targets.tolist()) for batch in batches])
    assert shown[0] == shown[1]


def test_no_token_is_copied_and_parts_of_joined_stores_are_taken(shards, tmp_path) -> None:
    join(shards[:2], tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["manifest.json", "records.npy", "splits.npy"]
    join([tmp_path / "two", shards[2]], tmp_path / "nested" / "three")
    join(shards, tmp_path / "flat")
    assert contents(open_corpus(tmp_path / "nested" / "three")) == contents(open_corpus(tmp_path / "flat"))
    groups = open_corpus(tmp_path / "flat").groups
    assert groups == {"part0": range(30), "part1": range(30, 60), "part2": range(60, 90)}


def test_a_moved_folder_with_its_parts_still_opens(shards, tmp_path) -> None:
    join(shards, tmp_path / "joined")
    before = contents(open_corpus(tmp_path / "joined"))
    (tmp_path / "elsewhere").mkdir()
    for path in [*shards, tmp_path / "joined"]:
        shutil.move(path, tmp_path / "elsewhere" / path.name)
    assert contents(open_corpus(tmp_path / "elsewhere" / "joined")) == before


def test_what_a_first_part_keeps_back_is_not_trained_on_by_way_of_a_later_one(tmp_path) -> None:
    (tmp_path / "a.fasta").write_text(">A\nMKV\n>B\nMMM\n")
    (tmp_path / "b.fasta").write_text(">C\nMKV\n>D\nMMW\n")
    (tmp_path / "splits.tsv").write_text("sequence_id\tsplit\nA\ttest\nB\ttrain\n")
    prepare([tmp_path / "a.fasta"], tmp_path / "a", split_table=tmp_path / "splits.tsv")
    prepare([tmp_path / "b.fasta"], tmp_path / "b", valid_fraction=0, test_fraction=0)
    join([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    joined = open_corpus(tmp_path / "ab")
    assert contents(joined) == [
        ("A", bytes(joined.residues(0)), Split.TEST),
        ("B", bytes(joined.residues(1)), Split.TRAIN),
        ("D", bytes(joined.residues(2)), Split.TRAIN),
    ]


def test_bad_inputs(shards, tmp_path) -> None:
    with pytest.raises(InputError, match="two stores are called part0; name each store once"):
        join([shards[0], shards[1], shards[0]], tmp_path / "joined")
    (tmp_path / "x.fasta").write_text(">" + open_corpus(shards[0]).sequence_id(3) + "\nMKVMKV\n")
    prepare([tmp_path / "x.fasta"], tmp_path / "x", valid_fraction=0, test_fraction=0)
    with pytest.raises(
        InputError, match=r"sequence \S+ has other residues in .*x than in .*part0; prepare one of them"
    ):
        join([shards[0], tmp_path / "x"], tmp_path / "joined")
    with pytest.raises(StoreError, match="nowhere does not exist"):
        join([shards[0], tmp_path / "nowhere"], tmp_path / "joined")
    with pytest.raises(OutputError, match="exists already"):
        join(shards, shards[0])
    splits = shards[1] / "splits.npy"
    splits.write_bytes(splits.read_bytes()[:-1] + b"\x09")
    with pytest.raises(StoreError, match=r"part1 is damaged: splits\.npy has an impossible value; prepare it again"):
        join(shards, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_parts_are_watched(shards, tmp_path) -> None:
    join(shards, tmp_path / "joined")
    verify(open_corpus(tmp_path / "joined"))
    shutil.move(shards[1], tmp_path / "away")
    with pytest.raises(StoreError, match=r"its part .*part1 does not exist; put it back, or join again"):
        open_corpus(tmp_path / "joined")
    shutil.copytree(shards[2], shards[1])
    with pytest.raises(StoreError, match=r"its part .*part1 is another store than was joined; join again"):
        open_corpus(tmp_path / "joined")
    shutil.rmtree(shards[1])
    shutil.move(tmp_path / "away", shards[1])
    tokens = shards[1] / "tokens.npy"
    data = bytearray(tokens.read_bytes())
    data[-1] ^= 1
    tokens.write_bytes(data)
    with pytest.raises(StoreError, match=r"part1 is damaged: tokens.npy has checksum"):
        verify(open_corpus(tmp_path / "joined"))


def test_the_commands(shards, tmp_path, capsys) -> None:
    joined = tmp_path / "joined"
    assert main(["data", "join", *map(str, shards), "-o", str(joined)]) == 0
    assert capsys.readouterr().out == f"{joined}: 90 sequences of 3 stores; 2 duplicates left out\n"
    assert main(["data", "inspect", str(joined)]) == 0
    shown = capsys.readouterr().out
    assert (
        "part1: 30 sequences; 2 more stand before it" in shown
        and "from 2.fasta" in shown
        and "lengths in residues" in shown
    )
    assert main(["data", "inspect", str(joined), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_dropped"] == {"duplicate_sequence": 2}
    assert main(["data", "verify", str(joined)]) == 0
    assert "90 sequences" in capsys.readouterr().out
    assert export(open_corpus(joined), tmp_path / "out.parquet") == 90
