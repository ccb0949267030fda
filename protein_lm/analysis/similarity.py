"""Measures of the similarity of amino acids: from the attention that they give and receive, and from a model's kernel.

Sources: Choromanski et al. 2021 (arXiv 2009.14794), appendix on amino-acid similarity; Vig et al. 2021 (arXiv 2006.15222).
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from protein_lm.analysis.attention.maps import recorded_calls
from protein_lm.analysis.pair_attention import AMINO_ACID_IDS, AMINO_ACIDS
from protein_lm.attention.kinds.linear import LinearOperation
from protein_lm.attention.rows import WHOLE
from protein_lm.model.block import Block
from protein_lm.model.language_model import ProteinLM

Measure = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def share_of_target(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each head's attention that each amino acid receives, Vig's p(a).

    Heads without attention are left out.

    Args:
        sums: (layers, heads, 20, 20), sums of weights or numbers of arcs.

    Returns:
        (heads, 20), rows sum to 1.
    """
    received = sums.sum(-2).reshape(-1, len(AMINO_ACIDS))
    totals = received.sum(1, keepdims=True)
    return received[totals[:, 0] != 0] / totals[totals[:, 0] != 0]


def correlation_over_heads(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (20, 20) Pearson correlation over heads of `share_of_target`: which amino acids the same heads attend to.

    Values are NaN if an amino acid is absent, no head tells it apart, or there are fewer than two heads.
    """
    share = share_of_target(sums)
    if len(share) < 2:
        return np.full((len(AMINO_ACIDS),) * 2, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.corrcoef(share.T), dtype=np.float64)


def enrichment(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (20, 20) mean over heads of log2(attention from a to b / attention to b from any), symmetrized.

    Positive values mean that residues of one type attend to the other more than residues in general do. Values are NaN for
    amino acids that are absent and pairs without attention.

    Args:
        sums: (layers, heads, 20, 20), sums of weights.
    """
    heads = sums.reshape(-1, *sums.shape[2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        conditional = heads / heads.sum(2, keepdims=True)
        marginal = heads.sum(1, keepdims=True) / heads.sum((1, 2), keepdims=True)
        values = np.log2(conditional / marginal).mean(0)
    symmetric = (values + values.T) / 2
    return np.where(np.isfinite(symmetric), symmetric, np.nan)


@torch.inference_mode()
def kernel_similarity(model: ProteinLM) -> NDArray[np.float64] | None:
    """Return the (20, 20) cosine of the first layer's key features φ of the bare amino acids, mean over heads.

    Features are those of the embeddings, without neighbours or positions. Returns None if the first layer is not linear.
    """
    block = cast(Block, model.blocks[0])
    operation = block.attention.operation
    if not isinstance(operation, LinearOperation):
        return None
    with recorded_calls(model) as calls:
        embedded = model.embedding(torch.tensor(AMINO_ACID_IDS, device=model.device)[:, None])
        block.attention(block.attention_norm(embedded), None, WHOLE)
    features = operation.key_features(calls[0].key)[:, :, 0].transpose(0, 1).cpu().double()
    features /= features.norm(dim=-1, keepdim=True)
    return (features @ features.mT).mean(0).numpy()


def frame(values: NDArray[Any]) -> pd.DataFrame:
    """Return (20, 20) values as a table with amino acids as labels."""
    labels = pd.Index(list(AMINO_ACIDS))
    return pd.DataFrame(values, index=labels, columns=labels)
