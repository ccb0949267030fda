"""A model whose answers are known."""

import torch
from torch import Tensor

from protein_lm import alphabet
from protein_lm.attention.packing import Packing
from protein_lm.config import ModelConfig
from protein_lm.io.records import SequenceRecord
from tests.conftest import small_recipe


class CopyModel:
    """Gives the token that stands at a position probability 1/2, every other one 1/64; remembers what it was shown."""

    max_residues = 62

    def __init__(self, *, causal: bool) -> None:
        self.config: ModelConfig = small_recipe(objective="causal" if causal else "masked").model
        self.is_causal = causal
        self.device = torch.device("cpu")
        self.seen: list[Tensor] = []
        """The sequences that it was shown."""

    def __call__(self, tokens: Tensor, *, selected: Tensor, packing: Packing | None = None) -> Tensor:
        self.seen.extend(tokens if packing is None else tokens[0].split(packing.lengths.tolist()))
        probabilities = torch.full((*tokens.shape, alphabet.VOCABULARY_SIZE), 1 / 64)
        probabilities.scatter_(-1, tokens.unsqueeze(-1), 0.5)
        return probabilities.log()[selected]


def records(*sequences: str) -> list[SequenceRecord]:
    """Proteins P0, P1, ..."""
    return [SequenceRecord(f"P{n}", alphabet.encode(s), 2 * n + 1) for n, s in enumerate(sequences)]
