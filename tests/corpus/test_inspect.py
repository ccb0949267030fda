from collections import Counter
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from protein_lm.corpus.inspect import measure, report
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import TokenStore


@pytest.fixture
def store(tmp_path) -> TokenStore:
    lengths = [1, 2, 3, 4, 7, 8, 300]
    (tmp_path / "in.fasta").write_text("".join(f">s{length}\n{'M' * (length - 1)}X\n" for length in lengths))
    prepare([tmp_path / "in.fasta"], tmp_path / "store")
    return TokenStore.open(tmp_path / "store")


def test_measures(store):
    contents = measure(store)
    assert contents.residue_counts == {"M": 318, "X": 7}
    assert contents.longest == [("s300", 300), ("s8", 8), ("s7", 7), ("s4", 4), ("s3", 3)]
    bins = {low: number for low, _, number in contents.histogram()}
    assert bins == {1: 1, 2: 2, 4: 2, 8: 1, 16: 0, 32: 0, 64: 0, 128: 0, 256: 1}
    assert sum(bins.values()) == store.num_sequences
    assert all(high == 2 * low - 1 for low, high, _ in contents.histogram())


def test_measures_in_parts_agree_with_plain_counts(store, monkeypatch):
    monkeypatch.setattr("protein_lm.corpus.inspect._SCANNED_SEQUENCES", 2)
    whole = measure(store)
    assert whole.residue_counts == {"M": 318, "X": 7}
    assert [length for _, length in whole.longest] == [300, 8, 7, 4, 3]
    for split in Split:
        expected = Counter(store.lengths_of(store.indices(split)).tolist())
        assert dict(zip(whole.lengths.tolist(), whole.numbers[split.label].tolist(), strict=True)) == {
            length: expected[length] for length in (1, 2, 3, 4, 7, 8, 300)
        }
    assert np.asarray(store.tokens).size == sum(whole.residue_counts.values())


def test_report(store):
    console = Console(record=True, width=100, markup=False, file=StringIO())
    console.print(*report(store, measure(store)), sep="\n")
    text = console.export_text()
    for expected in ("7 sequences, 325 residues", "read: sequences 7", "M 97.85%", "longest: s300 300", "256–511"):
        assert expected in text
