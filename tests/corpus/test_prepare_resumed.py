"""A run of `prepare` that was killed is resumed, and the store is the same, byte for byte."""

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xxhash

from protein_lm.corpus import workers
from protein_lm.corpus.duplicates import Ledger
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.store_writer import StoreWriter
from protein_lm.errors import InputError
from protein_lm.files.resume import STATE

BLOCK_BYTES = 200
FIXTURES = Path(__file__).parents[1] / "fixtures"


class Killed(Exception):
    """In place of a signal."""


@pytest.fixture
def sources(tmp_path) -> list[Path]:
    generator = np.random.default_rng(0)
    pool = ["".join(generator.choice(list("ACDEFGHIKLx"), int(size))) for size in generator.integers(1, 40, 60)]
    chosen = [pool[i] for i in generator.integers(0, 60, 300)]
    records = [f">sp|Q{i}|x OS=y OX={i + 1}\n{letters}\n" for i, letters in enumerate(chosen)]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.fasta").write_text("".join(records[:150]))
    (folder / "b.fasta.gz").write_bytes(gzip.compress("".join(records[150:]).encode()))
    table = pd.DataFrame({"sequence_id": ["t1", "t2", "t3"], "sequence": ["MKV", pool[0], "MKVL"]})
    table.to_csv(folder / "c.csv", index=False)
    table.assign(sequence_id=["u1", "u2", "u3"]).to_parquet(folder / "d.parquet")
    for name in ("entries.dat", "entries.xml"):
        shutil.copy(FIXTURES / name, folder)
    return sorted(folder.iterdir())


@pytest.fixture
def tables(tmp_path) -> dict[str, Any]:
    (tmp_path / "splits.csv").write_text("sequence_id,split\nQ3,held_out\nQ8,train\nQ250,test\nt1,\n")
    families = "".join(f"Q{number},PF0000{number % 4}\n" for number in range(0, 300, 4))
    (tmp_path / "families.csv").write_text("sequence_id,family_id\n" + families)
    return {
        "split_table": tmp_path / "splits.csv",
        "hold_out_families": ["PF00000,PF00002"],
        "family_table": tmp_path / "families.csv",
    }


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr("protein_lm.corpus.prepare.SAVED_SECONDS", 0)
    monkeypatch.setattr("protein_lm.corpus.duplicates._HELD_ROWS", 40)


@pytest.fixture
def num_parts(monkeypatch) -> list[int]:
    counts, original = [0], workers.process_part

    def process_part(*arguments: Any) -> Any:
        counts[0] += 1
        return original(*arguments)

    monkeypatch.setattr(workers, "process_part", process_part)
    return counts


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def killed(
    sources: list[Path], output: Path, left: Path, *, moment: int, block_bytes: int = BLOCK_BYTES, **settings: Any
) -> Path:
    """Leave in the folder `left` what a run would leave that is killed at its so-many-th part; the partial folder."""
    calls = 0

    def on_progress(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            snapshot(output, left)

    with pytest.raises(Killed):
        prepare(sources, output, block_bytes=block_bytes, on_progress=on_progress, **settings)
    return next(left.glob(".store.partial-*"))


def snapshot(output: Path, left: Path) -> None:
    """Files as they are on disk, without what the process holds in memory."""
    (partial,) = output.parent.glob(".store.partial-*")
    shutil.copytree(partial, left / partial.name)
    raise Killed


@pytest.mark.parametrize("moment", [4, 11, 20, 27])
def test_a_killed_run_is_resumed(tmp_path, sources, tables, num_parts, moment):
    whole, said = tmp_path / "whole", []
    prepare(sources, whole, block_bytes=BLOCK_BYTES, **tables)
    total, num_parts[0] = num_parts[0], 0
    partial = killed(sources, tmp_path / "store", tmp_path / "left", moment=moment, **tables)
    assert (partial / STATE).exists()
    num_parts[0] = 0
    prepare(sources, tmp_path / "left" / "store", block_bytes=BLOCK_BYTES, say=said.append, **tables)
    assert contents(tmp_path / "left" / "store") == contents(whole)
    assert total - moment <= num_parts[0] <= total - moment + 3, "at most three parts stood since the last save"
    assert len(said) == 1 and "resuming what a killed run had begun, after " in said[0]
    assert [path.name for path in (tmp_path / "left").iterdir()] == ["store"]


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2)])
def test_with_another_number_of_workers(tmp_path, sources, tables, before, after):
    prepare(sources, tmp_path / "whole", block_bytes=BLOCK_BYTES)
    killed(sources, tmp_path / "store", tmp_path / "left", moment=15, workers=before)
    said: list[str] = []
    prepare(sources, tmp_path / "left" / "store", block_bytes=BLOCK_BYTES, workers=after, say=said.append)
    assert contents(tmp_path / "left" / "store") == contents(tmp_path / "whole")
    assert "resuming" in said[0]


def test_killed_again_and_again(tmp_path, sources, num_parts):
    prepare(sources, tmp_path / "whole", block_bytes=BLOCK_BYTES)
    output = tmp_path / "store"
    for number in range(1, 30):
        try:
            killed(sources, output, tmp_path / str(number), moment=7)
        except pytest.fail.Exception:  # it was not killed any more
            break
        output = tmp_path / str(number) / "store"
    assert number > 2 and contents(output) == contents(tmp_path / "whole")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite(path: Path) -> None:
    """Change a source and leave its size and times."""
    stat = path.stat()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\nA", b"\nC", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def save_as_before(path: Path) -> None:
    """Give a saved state the form of another version."""
    text = json.dumps({"facts": {}, "state": {}}).encode()
    path.write_bytes(xxhash.xxh3_128_hexdigest(text).encode() + b"\n" + text)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 500)


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (cut, STATE, "its saved state is damaged"),
        (flip, STATE, "its saved state is damaged"),
        (lambda path: path.write_bytes(b""), STATE, "its saved state is damaged"),
        (cut, "offsets.npy", "its file offsets.npy is damaged"),
        (flip, "tokens.npy", "its file tokens.npy is damaged"),
        (Path.unlink, "ids.npy", "its file ids.npy is missing"),
        (flip, "identifiers.*.tmp", ".tmp is damaged"),
        (rewrite, "a.fasta", "a.fasta has changed"),
        (Path.touch, "entries.xml", "not the same: sources"),
        (save_as_before, STATE, "another version of protein-lm saved its state"),
    ],
)
def test_what_cannot_be_trusted_is_started_over(tmp_path, sources, num_parts, damage, name, reason):
    partial = killed(sources, tmp_path / "store", tmp_path / "left", moment=10)
    damage(next(partial.glob(name), tmp_path / "in" / name))
    said: list[str] = []
    num_parts[0] = 0
    prepare(sources, tmp_path / "left" / "store", block_bytes=BLOCK_BYTES, say=said.append)
    again, num_parts[0] = num_parts[0], 0
    prepare(sources, tmp_path / "whole", block_bytes=BLOCK_BYTES)
    assert again == num_parts[0]
    assert contents(tmp_path / "left" / "store") == contents(tmp_path / "whole")
    assert len(said) == 1 and "starting over what a killed run had begun, because " in said[0]
    assert said[0].endswith(reason)


def test_other_settings_start_over(tmp_path, sources, tables):
    said: list[str] = []
    killed(sources, tmp_path / "store", tmp_path / "left", moment=10)
    prepare(sources, tmp_path / "left" / "store", block_bytes=BLOCK_BYTES, seed=1, say=said.append, **tables)
    prepare(sources, tmp_path / "whole", block_bytes=BLOCK_BYTES, seed=1, **tables)
    assert said[0].endswith("because not the same: rule of the split, table of splits, families")
    assert contents(tmp_path / "left" / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("owner", "method", "is_resumed"), [(Ledger, "conflicts", True), (StoreWriter, "drop", False)])
def test_killed_when_all_is_read(tmp_path, sources, monkeypatch, owner, method, is_resumed):
    prepare(sources, tmp_path / "whole", block_bytes=BLOCK_BYTES)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, method, lambda *_: snapshot(tmp_path / "store", tmp_path / "left"))
        prepare(sources, tmp_path / "store", block_bytes=BLOCK_BYTES)
    said: list[str] = []
    prepare(sources, tmp_path / "left" / "store", block_bytes=BLOCK_BYTES, say=said.append)
    assert bool(said) == is_resumed
    assert contents(tmp_path / "left" / "store") == contents(tmp_path / "whole")


def test_a_lack_of_clusters_is_remembered(tmp_path, sources):
    table = tmp_path / "clusters.csv"
    names = [f"Q{number}" for number in range(3, 300)]
    table.write_text("sequence_id,cluster_id\n" + "".join(f"{name},C\n" for name in names))
    fasta = sources[:2]
    killed(fasta, tmp_path / "store", tmp_path / "left", moment=10, clusters=table)
    said: list[str] = []
    with pytest.raises(InputError, match=r"clusters.csv has no cluster for 3 sequences: Q0, Q1, Q2; add them, or "):
        prepare(fasta, tmp_path / "left" / "store", block_bytes=BLOCK_BYTES, clusters=table, say=said.append)
    assert "resuming" in said[0] and not list((tmp_path / "left").iterdir())
