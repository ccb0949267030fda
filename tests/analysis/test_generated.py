"""Generated proteins beside real ones: real ones are told to be real, others are not."""

import numpy as np
import pytest

from protein_lm import alphabet
from protein_lm.analysis.generated import (
    Reference,
    compare,
    composition,
    is_low_complexity,
    kmer_frequencies,
    low_complexity_residues,
    reference,
)
from protein_lm.errors import InputError
from tests.conftest import grammar


def encoded(sequences) -> list[np.ndarray]:
    return [alphabet.encode(text) for text in sequences]


REAL = encoded(grammar(450).values())
HALVES = Reference(REAL[:150], REAL[150:300])


def test_real_sequences_lie_within_the_null_and_shuffled_ones_do_not() -> None:
    fresh = REAL[300:]
    table = compare(fresh, HALVES, seed=0).set_index("measure")
    measures = [name for name in table.index if "distance" in name]
    assert measures == ["length_distance", "kmer_distance_1", "kmer_distance_2", "kmer_distance_3"]
    assert (table.loc[measures, "generated"] < 1.5 * table.loc[measures, "null_high"]).all()
    assert (table["null_low"] <= table["null_mean"]).all() and (table["null_mean"] <= table["null_high"]).all()
    random = np.random.default_rng(0)
    shuffled = compare([random.permutation(residues) for residues in fresh], HALVES, seed=0).set_index("measure")
    assert shuffled.loc["kmer_distance_1", "generated"] == pytest.approx(table.loc["kmer_distance_1", "generated"])
    assert shuffled.loc["kmer_distance_2", "generated"] > 2 * table.loc["kmer_distance_2", "null_high"]


def test_kmers_by_hand() -> None:
    first, second = alphabet.encode("LAXAL"), alphabet.encode("LA")
    assert kmer_frequencies([first, second], 1)[:3].tolist() == [0.5, 0.5, 0], "X does not count"
    pairs = kmer_frequencies([first, second], 2)
    assert {divmod(int(code), 20): pairs[code] for code in np.flatnonzero(pairs)} == pytest.approx(
        {(1, 0): 2 / 3, (0, 1): 1 / 3}
    ), "no pair over X, nor from one sequence to the next; the last residue counts most"
    assert kmer_frequencies([second], 3).sum() == 0
    table = composition([first], [second])
    assert table.loc[0].tolist() == ["L", 0.5, 0.5] and len(table) == 20


def test_low_complexity_by_hand() -> None:
    assert is_low_complexity(alphabet.encode("ACDEFGHIKLMNPQRSTVWY")).sum() == 0
    marked = is_low_complexity(alphabet.encode("ACDEFGHIKLMN" + "Q" * 12 + "ACDEFGHIKLMN"))
    assert marked[12:24].all() and not marked[:6].any() and not marked[-6:].any()
    sequences = encoded(["Q" * 11, "Q" * 12, "ACDEFGHIKLMN"])
    assert low_complexity_residues(sequences).tolist() == [0, 12, 0], "the first is shorter than a window"


def test_the_reference_is_of_training_sequences(corpus) -> None:
    halves = reference(corpus, max_sequences=51, seed=0)
    assert (len(halves.first), len(halves.second)) == (25, 26)
    assert not any(alphabet.decode(residues).startswith("WYYWWYYW") for residues in halves.all)

    class Empty:
        path = corpus.path

        def indices(self, split) -> np.ndarray:
            return np.empty(0, dtype=np.int64)

    with pytest.raises(InputError, match="has 0 training sequences; two halves need two or more"):
        reference(Empty(), max_sequences=10, seed=0)
