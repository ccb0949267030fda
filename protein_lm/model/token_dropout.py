"""ESM-2's token dropout: embeddings of <mask> are zero, and the others of the sequence make up for it.

In training 15 % of the residues are chosen and 80 % of these hidden; all embeddings are multiplied by the share that is then
left, over the share that is left in the sequence at hand, so that their sum keeps its size. It acts in use as in training.
Source: Lin et al. 2023 (ESM-2), its code in fair-esm.
"""

import torch
from torch import Tensor

from protein_lm import alphabet
from protein_lm.attention.rows import Rows

HIDDEN_IN_TRAINING = 0.15 * 0.8


def embedding_scale(tokens: Tensor, rows: Rows) -> Tensor:
    """Factors (B, L, 1) of the embeddings of whole rows (B, L): 0 at <mask>, one number for the rest of a sequence."""
    hidden = tokens == alphabet.MASK
    if rows.packing is not None:
        owners = torch.from_numpy(rows.packing.sequences).to(tokens.device)
        num_tokens = torch.bincount(owners)
        num_left = torch.bincount(owners[~hidden[0]], minlength=len(num_tokens))
        factors = _factors(num_tokens, num_left)[owners][None]
    else:
        valid = torch.ones_like(hidden) if rows.valid_mask is None else rows.valid_mask
        factors = _factors(valid.sum(1), (valid & ~hidden).sum(1))[:, None]
    return factors.masked_fill(hidden, 0.0)[..., None]


def _factors(num_tokens: Tensor, num_left: Tensor) -> Tensor:
    """Of sequences of which `num_left` of `num_tokens` tokens are not hidden; where none is left, any number will do."""
    return (1 - HIDDEN_IN_TRAINING) * num_tokens / num_left.clamp_min(1)
