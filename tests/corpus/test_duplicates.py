import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protein_lm.corpus import duplicates
from protein_lm.corpus.duplicates import Ledger, RecordSet, fingerprints
from protein_lm.files.resume import WorkFolder


@pytest.mark.parametrize("held_rows", [1, 7, 100, 10**6])
def test_ledgers_against_a_dictionary(tmp_path, monkeypatch, held_rows):
    monkeypatch.setattr(duplicates, "_HELD_ROWS", held_rows)
    generator = np.random.default_rng(0)
    work = WorkFolder(tmp_path)
    sequences, pairs = Ledger(work, "sequences"), Ledger(work, "pairs")
    seen, repeats, checks, first = {}, [], {}, 0
    for size in (1, 0, 50, 3, 700, 10, 10, 10):
        keys = generator.integers(0, 200, size, dtype=np.uint64) * np.uint64(2**64 // 200)
        others = generator.integers(0, 3, size, dtype=np.uint64)
        sequences.add(keys, others, first)
        pairs.add(keys, others, first)
        for record, pair in enumerate(zip(keys.tolist(), others.tolist(), strict=True), first):
            repeats += [(record, seen[pair])] if pair in seen else []
            seen.setdefault(pair, record)
            checks.setdefault(pair[0], set()).add(pair[1])
        first += size
    found = [pair for columns in sequences.repeats() for pair in zip(*map(np.ndarray.tolist, columns), strict=True)]
    assert sorted(found) == repeats
    assert set(pairs.conflicts().tolist()) == {key for key, others in checks.items() if len(others) > 1}
    for ledger in (sequences, pairs):
        ledger.remove()
    assert not list(tmp_path.iterdir())


def test_fingerprints_tell_sequences_apart_and_never_change():
    prints = fingerprints([b"", b"\x04", b"\x04\x04", b"\x05" * 300])
    assert len({tuple(row) for row in prints.tolist()}) == 4
    assert prints[0].tolist() == [0x99AA06D3014798D8, 0x6001C324468D497F]  # XXH3-128 of nothing, as published


@given(members=st.sets(st.integers(0, 99)))
def test_record_sets_against_sets(members):
    ours = RecordSet(100)
    for part in (sorted(members)[::2], sorted(members)[1::2]):
        ours.add(np.array(part, dtype=np.int64))
    assert ours.has(np.arange(100)).tolist() == [record in members for record in range(100)]
    assert ours.num_members == len(members)
    if members:
        assert ours.first() == min(members)
