"""Comparison of generated proteins with real ones: lengths, residues, k-mers, low complexity; with a null.

Real sequences are split into two random halves. Each measure compares the generated ones with the first half. The null are as
many real sequences, drawn many times from the second half with replacement. If the value of a generated set lies within the
range of these draws, the measure cannot tell it from real sequences.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from protein_lm import alphabet
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import InputError

Residues = NDArray[np.uint8]
KMER_SIZES = (1, 2, 3)
LOW_COMPLEXITY_WINDOW, LOW_COMPLEXITY_BITS = 12, 2.2
"""Length of a window and its most entropy: all residues of such a window are of low complexity.

It is the first threshold of SEG (Wootton & Federhen 1993).
"""
NUM_DRAWS = 50


class Reference(NamedTuple):
    """Real sequences in two halves."""

    first: list[Residues]
    second: list[Residues]

    @property
    def all(self) -> list[Residues]:
        return self.first + self.second


def reference(store: Corpus, *, max_sequences: int, seed: int) -> Reference:
    """Draw up to `max_sequences` sequences of the split `train`, in two halves.

    Raises:
        InputError: there are fewer than two sequences.
    """
    indices = store.indices(Split.TRAIN)
    if indices.size < 2:
        raise InputError(f"{store.path} has {indices.size} training sequences; two halves need two or more")
    drawn = np.random.default_rng(seed).permutation(indices)[:max_sequences].tolist()
    sequences = [store.residues(index) for index in drawn]
    return Reference(sequences[: len(sequences) // 2], sequences[len(sequences) // 2 :])


def compare(generated: Sequence[Residues], real: Reference, *, seed: int) -> pd.DataFrame:
    """Return a row for each measure: its value for the generated sequences, and mean and 95 % range of the null.

    Distances are to the first half of the real sequences: `length_distance` (Kolmogorov-Smirnov), `kmer_distance_1`, `_2` and
    `_3` (Jensen-Shannon distance, base 2, of the frequencies of k-mers of standard residues). `low_complexity` (share of
    residues) and `median_length` are plain values.
    """
    random = np.random.default_rng(seed)
    against = _Distances(real.first)
    num_low, null = low_complexity_residues(real.second), []
    for _ in range(NUM_DRAWS):
        chosen = random.integers(len(real.second), size=len(generated))
        null.append(against.measures([real.second[index] for index in chosen], num_low[chosen]))
    draws = pd.DataFrame(null)
    return (
        pd.DataFrame(
            {
                "generated": pd.Series(against.measures(generated, low_complexity_residues(generated))),
                "null_mean": draws.mean(),
                "null_low": draws.quantile(0.025),
                "null_high": draws.quantile(0.975),
            }
        )
        .rename_axis("measure")
        .reset_index()
    )


def composition(generated: Sequence[Residues], real: Sequence[Residues]) -> pd.DataFrame:
    """Return the shares of the standard residues: `residue`, `generated`, `real`."""
    shares = {name: kmer_frequencies(sequences, 1) for name, sequences in (("generated", generated), ("real", real))}
    return pd.DataFrame({"residue": list(alphabet.STANDARD_RESIDUES), **shares})


def kmer_frequencies(sequences: Sequence[Residues], size: int) -> NDArray[np.float64]:
    """Return the share (20^size,) of each k-mer among those of standard residues only; zeros if there is none."""
    number = alphabet.NUM_STANDARD
    row = np.concatenate([np.append(residues, alphabet.PAD) for residues in sequences]).astype(np.int64)
    codes = row - alphabet.FIRST_RESIDUE
    windows = np.lib.stride_tricks.sliding_window_view(codes, size)
    standard = windows[((windows >= 0) & (windows < number)).all(1)]
    counts = np.bincount(standard @ number ** np.arange(size), minlength=number**size)
    return counts / max(1, counts.sum())


def low_complexity_residues(sequences: Sequence[Residues]) -> NDArray[np.int64]:
    """Return (N,) number of residues of each sequence that are in windows of low complexity."""
    return np.array([is_low_complexity(residues).sum() for residues in sequences])


def is_low_complexity(residues: Residues) -> NDArray[np.bool_]:
    """Return (length,) True for residues in a window of low complexity; a sequence shorter than a window has none."""
    width = LOW_COMPLEXITY_WINDOW
    marked = np.zeros(residues.size, dtype=bool)
    if residues.size < width:
        return marked
    one_hot = residues[:, None] == np.arange(alphabet.VOCABULARY_SIZE)
    sums = np.pad(one_hot.cumsum(0), ((1, 0), (0, 0)))
    counts = sums[width:] - sums[:-width]
    entropy = -_INFORMATION[counts].sum(1)
    edges = np.zeros(residues.size + 1, dtype=np.int64)
    starts = np.flatnonzero(entropy <= LOW_COMPLEXITY_BITS)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + width, -1)
    return edges.cumsum()[:-1] > 0


_SHARES = np.arange(1, LOW_COMPLEXITY_WINDOW + 1) / LOW_COMPLEXITY_WINDOW
_INFORMATION = np.concatenate(([0.0], _SHARES * np.log2(_SHARES)))
"""p log2 p of a residue by its number in a window."""


class _Distances:
    """Measures of sets of sequences against a half of the real ones."""

    def __init__(self, half: Sequence[Residues]) -> None:
        self._lengths = [residues.size for residues in half]
        self._frequencies = {size: kmer_frequencies(half, size) for size in KMER_SIZES}

    def measures(self, sequences: Sequence[Residues], num_low: NDArray[np.int64]) -> dict[str, float]:
        lengths = [residues.size for residues in sequences]
        distances = {
            f"kmer_distance_{size}": float(jensenshannon(kmer_frequencies(sequences, size), frequencies, base=2))
            for size, frequencies in self._frequencies.items()
        }
        return {
            "length_distance": float(ks_2samp(lengths, self._lengths).statistic),  # pyright: ignore[reportAttributeAccessIssue]
            **distances,
            "low_complexity": float(num_low.sum() / sum(lengths)),
            "median_length": float(np.median(lengths)),
        }
