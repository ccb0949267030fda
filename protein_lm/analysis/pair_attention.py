"""Attention summed per pair of amino acids, Σ_{i∈a} Σ_{j∈b} A_ij, in time linear in the residues.

If the values are one-hot amino acids, attention's output is Σ_{j∈b} A_ij for every i. Such values are added to those of the
model as 20 more channels. So a linear kind forms its features once, and never an L × L matrix. The same holds for causal and
for exact attention. Only arcs, weights over a threshold, need matrices; these are formed some rows at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.analysis.attention.maps import LayerCall
from protein_lm.attention.packing import Packing
from protein_lm.attention.rows import WHOLE
from protein_lm.batches.packed_batches import fill, pack, tokens_of
from protein_lm.errors import InputError
from protein_lm.model.language_model import ProteinLM

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
NUM_KINDS = len(AMINO_ACIDS)
AMINO_ACID_IDS = [alphabet.TOKENS.index(letter) for letter in AMINO_ACIDS]
LEAST_ARC = 0.3
"""Least weight that counts as an arc (Vig et al. 2021, arXiv 2006.15222)."""


def amino_acid_indicators(tokens: Tensor) -> Tensor:
    """Return (B, L, 20) float32: 1 where the token is the amino acid of the column; rows of other tokens are 0."""
    return (tokens.unsqueeze(-1) == torch.tensor(AMINO_ACID_IDS, device=tokens.device)).float()


class PairSums:
    """Sums of a model's attention per pair of amino acids, separate for each of G groups of proteins.

    Memory is G × layers × heads × 420 numbers of 8 bytes, twice that with arcs. It does not depend on the number of proteins.

    Args:
        model: any model.
        num_groups: number of groups, G.
        arcs: whether arcs are counted as well.
        tokens_per_batch: tokens computed at once, memory against speed.
    """

    def __init__(
        self, model: ProteinLM, *, num_groups: int = 1, arcs: bool = False, tokens_per_batch: int = 8192
    ) -> None:
        self._model, self._tokens_per_batch = model, tokens_per_batch
        forms = 2 if arcs else 1
        shape = forms, model.config.num_layers, model.config.num_heads, num_groups * (NUM_KINDS + 1), NUM_KINDS
        self._sums = torch.zeros(shape, dtype=torch.float64)
        """The last of the 21 rows of each group has the attention of tokens that are no amino acids."""

    def sums(self) -> NDArray[np.float64]:
        """Return (G, layers, heads, 20, 20): attention of residues of the row's type to those of the column's."""
        return self._of_groups(0)

    def arcs(self) -> NDArray[np.float64] | None:
        """Return the numbers of arcs, in the same shape; None if they are not counted."""
        return self._of_groups(1) if len(self._sums) == 2 else None

    def dump(self) -> memoryview:
        """Return the sums as bytes."""
        return self._sums.numpy().data.cast("B")

    def load(self, content: bytes) -> None:
        """Set the sums to what `dump` returned for the same model, groups and forms."""
        self._sums = torch.frombuffer(bytearray(content), dtype=torch.float64).view(self._sums.shape)

    @property
    def num_bytes(self) -> int:
        """Number of bytes that `dump` returns."""
        return self._sums.nbytes

    @torch.inference_mode()
    def add(self, sequences: Sequence[NDArray[np.uint8]], groups: NDArray[np.int64]) -> None:
        """Read proteins, none longer than the model's window.

        Args:
            sequences: N arrays of residue tokens.
            groups: (N,) the group of each.
        """
        kinds = np.full(alphabet.VOCABULARY_SIZE, NUM_KINDS)
        kinds[AMINO_ACID_IDS] = np.arange(NUM_KINDS)
        for batch in fill(tokens_of(sequences), self._tokens_per_batch):
            tokens, packing = pack([sequences[i] for i in batch])
            # Row of the sums for each token: that of its amino acid within its group, the last one for other tokens.
            row = kinds[tokens[0].numpy()] + np.repeat(groups[batch], packing.lengths) * (NUM_KINDS + 1)
            tokens = tokens.to(self._model.device)
            with self._watched(amino_acid_indicators(tokens), torch.from_numpy(row), packing):
                self._model.hidden_states(tokens, packing=packing)

    @contextmanager
    def _watched(self, kinds: Tensor, row: Tensor, packing: Packing) -> Iterator[None]:
        """Add the amino acids as values to every operation that runs inside, and sum its output for them.

        Args:
            kinds: (1, L, 20) indicators.
            row: (L,) row of the sums for each token.
            packing: packing of the tokens.
        """

        def hooks(layer: int) -> tuple[Any, Any]:
            def add_kinds(operation: Any, inputs: Any) -> Any:
                query, key, value, rows = inputs
                indicators = kinds[:, None].to(value.dtype).expand(-1, value.shape[1], -1, -1)
                return query, key, torch.cat((value, indicators), dim=-1), rows

            def split_kinds(operation: Any, inputs: Any, output: Tensor) -> Tensor:
                own, received = output.split((output.shape[-1] - NUM_KINDS, NUM_KINDS), dim=-1)
                self._sums[0, layer].index_add_(1, row, received[0].cpu().double())
                if len(self._sums) == 2:
                    query, key, value, _ = inputs
                    self._count_arcs(layer, LayerCall(operation, query, key, value, WHOLE, output), kinds, row, packing)
                return own

            return add_kinds, split_kinds

        handles = []
        for layer, operation in enumerate(self._model.operations()):
            before, after = hooks(layer)
            handles += [operation.register_forward_pre_hook(before), operation.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count_arcs(self, layer: int, call: LayerCall, kinds: Tensor, row: Tensor, packing: Packing) -> None:
        heads = range(1, self._model.config.num_heads + 1)
        for start, end in pairwise(packing.boundaries.tolist()):
            alone = call._replace(query=call.query[:, :, start:end], key=call.key[:, :, start:end])
            for first, weights in alone.blocks(heads, slice(0, end - start)):
                _, num_rows, seen = weights.shape
                counts = (weights >= LEAST_ARC).float() @ kinds[0, start : start + seen]
                self._sums[1, layer].index_add_(1, row[start + first :][:num_rows], counts.cpu().double())

    def _of_groups(self, form: int) -> NDArray[np.float64]:
        layers, heads, rows, kinds = self._sums.shape[1:]
        values = self._sums[form].view(layers, heads, rows // (kinds + 1), kinds + 1, kinds)
        return values[:, :, :, :kinds].permute(2, 0, 1, 3, 4).contiguous().numpy()


def pair_attention(
    model: ProteinLM, sequences: Iterable[NDArray[np.uint8]], *, tokens_per_batch: int = 8192
) -> NDArray[np.float64]:
    """Return the attention of each layer and head per pair of amino acids, (layers, heads, 20, 20): rows attend.

    Args:
        model: any model.
        sequences: residue tokens of each protein, none longer than the model's window.
        tokens_per_batch: tokens computed at once, memory against speed.

    Raises:
        InputError: there is no sequence.
    """
    proteins = [np.asarray(residues) for residues in sequences]
    if not proteins:
        raise InputError("no sequence: nothing to compute a similarity from")
    pairs = PairSums(model, tokens_per_batch=tokens_per_batch)
    pairs.add(proteins, np.zeros(len(proteins), dtype=np.int64))
    return pairs.sums()[0]
