"""Which amino acids a model treats alike, out of the attention it gives them, beside BLOSUM62.

The attention that residues of type a pay to residues of type b, summed over a protein, is Σ_{i∈a} Σ_{j∈b} A_ij. Running the
attention operation once more with one-hot amino acids as values gives Σ_{j∈b} A_ij for every i in O(L): for a
linear kernel that is φ(q_i)·Σ_{j∈b} φ(k_j) over the normalizer, a product with 20 × M sums, and the L × L matrix is never
formed. It holds for causal and for exact attention just as well.

Sources: Choromanski et al. 2021 (arXiv 2009.14794), appendix on amino-acid similarity; Vig et al. 2021 (arXiv 2006.15222).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from Bio.Align import substitution_matrices
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from protein_lm import alphabet
from protein_lm.analysis.attention_maps import LayerCall, recorded_calls
from protein_lm.data.batches import fill, pack, tokens_of
from protein_lm.data.joined import open_corpus
from protein_lm.data.readers import read_records
from protein_lm.errors import InputError
from protein_lm.model.language_model import ProteinLM

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
NUM_PERMUTATIONS = 9999


@dataclass(frozen=True)
class PairAttention:
    """Attention summed per pair of amino acids over a set of proteins."""

    sums: NDArray[np.float64]
    """(layers, heads, 20, 20): total attention that residues of the row's type pay to those of the column's."""
    num_sequences: int
    num_residues: int

    def share_of_target(self) -> NDArray[np.float64]:
        """(layers × heads, 20): share of each head's attention that lands on each amino acid, Vig's p(a), soft form."""
        received = self.sums.sum(2).reshape(-1, len(AMINO_ACIDS))
        return received / received.sum(1, keepdims=True)

    def enrichment(self) -> pd.DataFrame:
        """(20 × 20) mean over heads of log2(attention from a to b / attention to b from any), symmetrized.

        Positive where residues of one type look at the other more than residues at large do. NaN for types
        that are absent and pairs that never meet.
        """
        heads = self.sums.reshape(-1, *self.sums.shape[2:])
        with np.errstate(divide="ignore", invalid="ignore"):
            conditional = heads / heads.sum(2, keepdims=True)
            marginal = heads.sum(1, keepdims=True) / heads.sum((1, 2), keepdims=True)
            values = np.log2(conditional / marginal).mean(0)
        symmetric = (values + values.T) / 2
        return _frame(np.where(np.isfinite(symmetric), symmetric, np.nan))

    def similarity(self) -> pd.DataFrame:
        """(20 × 20) Pearson correlation over heads of `share_of_target`: amino acids that the same heads look at.

        NaN where a type is absent or no head tells it apart.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return _frame(np.corrcoef(self.share_of_target().T))


@torch.inference_mode()
def pair_attention(
    model: ProteinLM, sequences: Iterable[NDArray[np.uint8]], *, tokens_per_batch: int = 8192
) -> PairAttention:
    """Sum the attention of every layer and head per pair of amino acids, in time linear in the residues.

    Args:
        model: any model.
        sequences: residue tokens of each protein, none longer than the model's window.
        tokens_per_batch: memory against speed.

    Raises:
        InputError: there is no sequence.
    """
    proteins = [np.asarray(residues) for residues in sequences]
    if not proteins:
        raise InputError("no sequence fits the model's window: nothing to compute a similarity from")
    sums = np.zeros((model.config.num_layers, model.config.num_heads, len(AMINO_ACIDS), len(AMINO_ACIDS)))
    for group in fill(tokens_of(proteins), tokens_per_batch):
        tokens, packing = pack([proteins[i] for i in group])
        tokens = tokens.to(model.device)
        kinds = amino_acid_indicators(tokens)
        with recorded_calls(model) as calls:
            model.hidden_states(tokens, packing=packing)
        for layer, call in enumerate(calls):
            sums[layer] += _sum_pairs(call, kinds)
    return PairAttention(sums, len(proteins), int(sum(residues.size for residues in proteins)))


def amino_acid_indicators(tokens: Tensor) -> Tensor:
    """(B, L, 20) float32, 1 where the token is the amino acid of the column; rows of other tokens are 0."""
    ids = torch.tensor([alphabet.TOKENS.index(letter) for letter in AMINO_ACIDS], device=tokens.device)
    return (tokens.unsqueeze(-1) == ids).float()


def _sum_pairs(call: LayerCall, kinds: Tensor) -> NDArray[np.float64]:
    """(H, 20, 20) attention of one layer per pair of amino acids, summed over the batch."""
    value = kinds[:, None].expand(-1, call.query.shape[1], -1, -1)
    received = call.operation.forward(call.query, call.key, value, call.rows)
    return torch.einsum("bla,bhlc->hac", kinds, received).double().cpu().numpy()


@dataclass(frozen=True)
class Agreement:
    """How a 20 × 20 similarity agrees with a substitution matrix over the pairs of different amino acids."""

    pearson: float
    spearman: float
    pearson_p: float
    """One-sided permutation p: share of relabellings of the amino acids that agree as well or better."""
    spearman_p: float
    num_pairs: int


def agreement(similarity: pd.DataFrame, matrix: pd.DataFrame, *, seed: int = 0) -> Agreement:
    """Correlate the strict lower triangles, with a permutation test over the labels (Mantel's).

    Amino acids without values are left out; pairs of one amino acid are correlated with all the others, hence the
    permutation of whole rows and columns rather than of pairs.
    """
    present = [letter for letter in similarity.index if similarity.loc[letter].notna().any()]
    left = similarity.loc[present, present].to_numpy()
    right = matrix.loc[present, present].to_numpy()
    lower = np.tril_indices(len(present), -1)
    generator = np.random.default_rng(seed)
    measured = _correlations(left[lower], right[lower])
    at_least = np.zeros(2)
    for _ in range(NUM_PERMUTATIONS):
        order = generator.permutation(len(present))
        at_least += ~(_correlations(left[np.ix_(order, order)][lower], right[lower]) < measured)
    p = np.where(np.isnan(measured), np.nan, (at_least + 1) / (NUM_PERMUTATIONS + 1))
    num_pairs = int(np.isfinite(left[lower]).sum())
    return Agreement(float(measured[0]), float(measured[1]), float(p[0]), float(p[1]), num_pairs)


def blosum62() -> pd.DataFrame:
    """BLOSUM62 (20 × 20) in half-bits, from Biopython."""
    matrix = substitution_matrices.load("BLOSUM62")
    return _frame(np.asarray(matrix.select(AMINO_ACIDS)))  # type: ignore[attr-defined]


def normalized(matrix: pd.DataFrame) -> pd.DataFrame:
    """(M - min) / max(M - min): the paper's normalization, to 0…1."""
    shifted = matrix - matrix.min().min()
    return shifted / shifted.max().max()


def _correlations(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson and Spearman over the pairs that have values; NaN where there are fewer than three, or all are alike."""
    finite = np.isfinite(left)
    left, right = left[finite], right[finite]
    if left.size < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return np.full(2, np.nan)
    ranks = stats.rankdata(left), stats.rankdata(right)
    return np.array([np.corrcoef(left, right)[0, 1], np.corrcoef(*ranks)[0, 1]])


def _frame(values: NDArray[Any]) -> pd.DataFrame:
    labels = pd.Index(list(AMINO_ACIDS))
    return pd.DataFrame(values, index=labels, columns=labels)


def draw_sequences(
    source: Path, count: int, *, max_length: int, seed: int = 0
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """A seeded sample of `count` sequences (all, if there are fewer) from a FASTA file or a prepared corpus.

    Returns:
        The residue tokens of the sequences drawn, and the identifiers of those longer than `max_length` residues, which
        take no part in the draw.

    Raises:
        InputError: the source cannot be read.
        StoreError: the source is a folder, but not a prepared corpus.
    """
    generator = np.random.default_rng(seed)
    dropped: list[str] = []
    if source.is_dir():
        store = open_corpus(source)
        too_long = store.longer_than(max_length)
        dropped = [store.sequence_id(index) for index in too_long.tolist()]
        candidates = np.delete(np.arange(store.num_sequences), too_long)
        chosen = np.sort(generator.permutation(candidates)[:count])
        return [np.asarray(store.residues(int(i))) for i in chosen], dropped
    drawn: list[NDArray[np.uint8]] = []
    num_seen = 0
    for record in read_records(source):
        if len(record) > max_length:
            dropped.append(record.sequence_id)
            continue
        num_seen += 1
        if len(drawn) < count:
            drawn.append(record.tokens)
        elif (place := int(generator.integers(num_seen))) < count:  # reservoir sampling: one pass, constant memory
            drawn[place] = record.tokens
    return drawn, dropped
