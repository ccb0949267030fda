"""Corpora prepared with the compiled reader against those that numpy prepares, to the last byte."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protein_lm.choices import OnError
from protein_lm.corpus import duplicates
from protein_lm.corpus.duplicates import SeenFingerprints
from protein_lm.corpus.prepare import prepare
from protein_lm.errors import InputError
from protein_lm.files.sources import Source
from protein_lm.native import build
from tests.corpus.test_prepare_resumed import contents, killed
from tests.native.test_build import needs_compiler

TESTS = Path(__file__).parents[1]
SAMPLE = TESTS.parent / "data" / "swissprot_sample.fasta.gz"
ENTRIES = TESTS / "fixtures" / "entries.dat"
pytestmark = needs_compiler


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_stores_are_the_same(reader, workers, tmp_path, monkeypatch) -> None:
    odd = tmp_path / "odd.fasta"
    odd.write_bytes(b">a\r\nMKL\r\n>b\r\nmkv*\r\n>c\r\nM1\r\n>d\r\nMKL\r\n")
    manifests = {}
    for path in ("", build.OFF):
        monkeypatch.setenv(build.VARIABLE, path)
        options = {"on_error": OnError.SKIP, "block_bytes": 2**14, "workers": workers}
        manifests[path] = prepare([SAMPLE, odd, ENTRIES], tmp_path / f"store{path}", **options)
    assert manifests[""] == manifests[build.OFF]  # with checksums of all files
    assert manifests[""]["num_dropped"]["malformed"] == 1


def test_a_fault_in_a_thread_is_said_and_nothing_left(reader, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(build.VARIABLE, "")
    text = b"".join(b">s%d\nMK%b\n" % (record, b"L" * (record % 50)) for record in range(5000))
    (tmp_path / "in.fasta").write_bytes(text + b">bad\nMK\nM1\n>good\nM\n")
    with pytest.raises(
        InputError, match=r"in.fasta, line 10003, sequence bad: '1' at position 4 is not a residue letter"
    ):
        prepare([tmp_path / "in.fasta"], tmp_path / "store", block_bytes=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


@given(
    shown=st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), max_size=60), max_size=6),
    stride=st.sampled_from([1, 256, 2**57]),  # that share places of the table, all of them or few
    num_slots=st.sampled_from([16, 256]),
)
def test_what_was_seen_against_a_set(reader, shown, stride, num_slots) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.VARIABLE, "")
        patch.setattr(duplicates, "_LEAST_SLOTS", num_slots)
        seen, members = SeenFingerprints(num_bytes=1), set[tuple[int, int]]()
        for pairs in shown:
            rows = [(high * stride, high * 4 + low) for high, low in pairs]  # no two sequences share their second half
            prints = np.array(rows, dtype=np.uint64).reshape(-1, 2)
            for pair, is_new in zip(pairs, seen.add(prints).tolist(), strict=True):
                assert is_new or pair in members
                assert not is_new or pair not in members or not seen.knows_all
                members.add(pair)
        assert seen.knows_all or len(members) > 16


def test_a_fingerprint_that_looks_like_a_free_slot(reader, monkeypatch) -> None:
    monkeypatch.setenv(build.VARIABLE, "")
    seen, prints = SeenFingerprints(num_bytes=1), np.array([(7, 0), (7, 1)], dtype=np.uint64)
    assert [seen.add(prints).tolist() for _ in range(2)] == [[True, True], [True, False]]
    assert not seen.knows_all


@pytest.mark.parametrize("most_slots", [2**17, 2**14, 2**6], ids=["ample", "scarce", "too few"])
def test_duplicates_that_were_seen_or_not(reader, most_slots, tmp_path, monkeypatch) -> None:
    again = tmp_path / "again.fasta"
    with Source(SAMPLE) as source:
        text = b"".join(source.blocks()).replace(b">", b">again_")
    again.write_bytes(text[: text.rindex(b"\n>", 0, 2**20) + 1])
    monkeypatch.setattr(duplicates, "_MOST_SLOTS", most_slots)
    manifests = {}
    for path in ("", build.OFF):
        monkeypatch.setenv(build.VARIABLE, path)
        manifests[path] = prepare([again, SAMPLE, again], tmp_path / f"store{path}", block_bytes=2**16)
    assert manifests[""] == manifests[build.OFF]
    assert manifests[""]["num_dropped"]["duplicate_sequence"] > 2 * text[: 2**20].count(b"\n>") * 0.9


@pytest.mark.parametrize("most_slots", [2**17, 2**6], ids=["ample", "too few"])
@pytest.mark.parametrize(("before", "after"), [("", ""), ("", build.OFF), (build.OFF, "")])
def test_a_killed_run_is_resumed(reader, most_slots, before, after, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(duplicates, "_MOST_SLOTS", most_slots)
    monkeypatch.setattr("protein_lm.corpus.prepare.SAVED_SECONDS", 0)
    again = tmp_path / "again.fasta"
    with Source(SAMPLE) as source:
        again.write_bytes(b"".join(source.blocks()).replace(b">", b">again_"))
    sources, said = [SAMPLE, again], []
    monkeypatch.setenv(build.VARIABLE, build.OFF)
    prepare(sources, tmp_path / "whole", block_bytes=2**16)
    monkeypatch.setenv(build.VARIABLE, before)
    partial = killed(sources, tmp_path / "store", tmp_path / "left", moment=60, block_bytes=2**16)
    assert any(partial.glob("sequences.*.tmp")) == (before == build.OFF or most_slots == 2**6)
    monkeypatch.setenv(build.VARIABLE, after)
    prepare(sources, tmp_path / "left" / "store", block_bytes=2**16, say=said.append)
    assert "resuming what a killed run had begun, after " in said[0]
    assert contents(tmp_path / "left" / "store") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_all_of_reading_and_preparing_again(reader) -> None:
    """The tests of what reads files, which take numpy's way by default, with the reader in use."""
    names = "families", "fasta", "headers", "prepare_resumed", "prepare", "readers", "readers_fuzz"
    files = [str(path) for name in names for path in TESTS.rglob(f"test_{name}.py")]
    assert len(files) == len(names)
    script = (
        "import sys, pytest; from protein_lm.native.reader import reader; assert reader().is_compiled; "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, build.VARIABLE: ""},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
