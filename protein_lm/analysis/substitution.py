"""Agreement of a similarity of amino acids with substitution matrices: permutation tests and bootstrap intervals."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from Bio.Align import substitution_matrices
from numpy.typing import NDArray
from scipy import stats

from protein_lm.analysis.pair_attention import AMINO_ACIDS
from protein_lm.analysis.similarity import Measure, frame
from protein_lm.errors import ConfigError

NUM_PERMUTATIONS = 9999
NUM_RESAMPLES = 1000
MATRIX = "BLOSUM62"


@dataclass(frozen=True)
class Agreement:
    """Agreement of a 20 × 20 similarity with a substitution matrix, over the pairs of different amino acids."""

    pearson: float
    spearman: float
    pearson_p: float
    """One-sided permutation p: share of relabellings of the amino acids that agree as well or better."""
    spearman_p: float
    num_pairs: int


def agreement(similarity: pd.DataFrame, matrix: pd.DataFrame, *, seed: int = 0) -> Agreement:
    """Correlate the strict lower triangles, with a permutation test over the labels (Mantel's).

    Amino acids without values are left out. Pairs that share an amino acid are correlated, so the test permutes whole rows
    and columns rather than pairs.
    """
    present = [letter for letter in similarity.index if similarity.loc[letter].notna().any()]
    left = similarity.loc[present, present].to_numpy()
    right = matrix.loc[present, present].to_numpy()
    rows, columns = np.tril_indices(len(present), -1)
    measured = _correlations(left[rows, columns][None], right[rows, columns])[0]
    generator = np.random.default_rng(seed)
    orders = np.array([generator.permutation(len(present)) for _ in range(NUM_PERMUTATIONS)])
    permuted = _correlations(left[orders[:, rows], orders[:, columns]], right[rows, columns])
    at_least = (~(permuted < measured - 1e-12)).sum(0)
    p = np.where(np.isnan(measured), np.nan, (at_least + 1) / (NUM_PERMUTATIONS + 1))
    num_pairs = int(np.isfinite(left[rows, columns]).sum())
    return Agreement(float(measured[0]), float(measured[1]), float(p[0]), float(p[1]), num_pairs)


@dataclass(frozen=True)
class Resamples:
    """Bootstrap of a measure of the similarity: its values on resampled groups of proteins."""

    values: NDArray[np.float64]
    """(R, 190) strict lower triangles; R is 0 if there are fewer than two groups."""

    @classmethod
    def of(cls, sums: NDArray[np.float64], measures: dict[str, Measure]) -> "dict[str, Resamples]":
        """Resample as many groups as hold proteins, with replacement.

        Args:
            sums: (G, layers, heads, 20, 20) of `PairSums`.
            measures: functions of the total, by name.
        """
        filled = sums[sums.any((1, 2, 3, 4))]
        generator = np.random.default_rng(0)
        lower = np.tril_indices(len(AMINO_ACIDS), -1)
        values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in measures}
        for _ in range(NUM_RESAMPLES if len(filled) > 1 else 0):
            times = generator.multinomial(len(filled), np.full(len(filled), 1 / len(filled)))
            total = np.asarray(np.tensordot(times, filled, axes=1), dtype=np.float64)
            for name, measure in measures.items():
                values[name].append(measure(total)[lower])
        return {name: cls(np.array(each).reshape(-1, lower[0].size)) for name, each in values.items()}

    def interval(self, matrix: pd.DataFrame) -> NDArray[np.float64]:
        """Return the 95 % intervals (2, 2) of Pearson and Spearman (rows), low and high ends; NaN without values."""
        right = matrix.to_numpy()[np.tril_indices(len(AMINO_ACIDS), -1)]
        found = _correlations(self.values, right) if len(self.values) else np.empty((0, 2))
        found = found[np.isfinite(found).all(1)]
        return np.quantile(found, (0.025, 0.975), axis=0).T if len(found) else np.full((2, 2), np.nan)


def matrix_names() -> list[str]:
    """Return the names of Biopython's matrices that have all 20 amino acids."""
    names = substitution_matrices.load()
    assert isinstance(names, list)
    return [name for name in names if set(AMINO_ACIDS) <= set(_load(name).alphabet)]


def substitution_matrix(name: str = MATRIX) -> pd.DataFrame:
    """Return a substitution matrix (20 × 20) of Biopython, in its own units; those of BLOSUM62 are half-bits.

    Raises:
        ConfigError: there is no such matrix.
    """
    if name not in (known := matrix_names()):
        raise ConfigError(f"unknown matrix {name!r}; choose from {', '.join(known)}")
    return frame(np.asarray(_load(name).select(AMINO_ACIDS)))


def normalized(matrix: pd.DataFrame) -> pd.DataFrame:
    """Return (M - min) / max(M - min), the paper's normalization to 0…1."""
    shifted = matrix - matrix.min().min()
    return shifted / shifted.max().max()


def _load(name: str) -> substitution_matrices.Array:
    matrix = substitution_matrices.load(name)
    assert isinstance(matrix, substitution_matrices.Array)
    return matrix


def _correlations(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pearson and Spearman (N, 2) of N rows of pairs (N, P) with one (P,), over the pairs that have values.

    Values are NaN for fewer than three pairs, or constant values.
    """
    known = np.isfinite(left)
    left, rights = np.where(known, left, np.nan), np.where(known, right, np.nan)
    left_ranks, right_ranks = (stats.rankdata(each, axis=1, nan_policy="omit") for each in (left, rights))
    return np.stack([_pearson(left, rights, known), _pearson(left_ranks, right_ranks, known)], axis=1)


def _pearson(left: NDArray[np.float64], right: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    counts = known.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (
            np.where(known, each - np.where(known, each, 0).sum(1, keepdims=True) / counts, 0) for each in (left, right)
        )
        spread = np.sqrt((x**2).sum(1) * (y**2).sum(1))
        values = (x * y).sum(1) / np.where(spread > 0, spread, np.nan)
    return np.where(counts[:, 0] >= 3, values, np.nan)
