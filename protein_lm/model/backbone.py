"""The part of a model below its head: embeddings, blocks and the final norm; token ids -> hidden states."""

from collections import deque
from collections.abc import Collection, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from protein_lm import alphabet
from protein_lm.attention.kinds.interface import AttentionOperation
from protein_lm.attention.kinds.table import kinds_that_can_be_split
from protein_lm.attention.packing import Packing
from protein_lm.attention.rows import Rows
from protein_lm.attention.sequence_parallel import Group, own_span
from protein_lm.choices import Objective, PositionKind
from protein_lm.config import ModelConfig
from protein_lm.model.block import Block, build_block
from protein_lm.model.embedding import KmerEmbedding, RotaryPositions, build_position_embedding
from protein_lm.model.esm2_layers import embedding_scale
from protein_lm.model.padding import RealTokensFirst
from protein_lm.model.recompute import nothing_recomputed


class Backbone(nn.Module):
    """Embeddings, blocks and the final norm. A pass changes no state (dropout aside)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, sizes = config.width, config.kmer_sizes
        self.embedding = nn.Embedding(alphabet.VOCABULARY_SIZE, width)
        self.kmer_embedding = KmerEmbedding(sizes, config.kmer_buckets, width) if sizes else None
        self.dropout = nn.Dropout(config.dropout)
        self.rotary = (
            RotaryPositions(width // config.num_heads, stored=config.stored_frequencies)
            if config.positions is PositionKind.ROTARY
            else None
        )
        self.position_embedding = build_position_embedding(config)
        self.blocks = nn.ModuleList(build_block(config, layer) for layer in range(config.num_layers))
        self.final_norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        """Whether gradients keep only inputs and outputs of blocks, and compute the rest a second time."""
        self._window: int | None = config.max_length

    @property
    def is_causal(self) -> bool:
        """Whether the model reads from left to right."""
        return self.config.objective is Objective.CAUSAL

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embedding.weight.device

    @property
    def max_residues(self) -> int:
        """Residues of the longest protein that fits the window."""
        return self.config.max_length - alphabet.NUM_SPECIAL_TOKENS

    def operations(self) -> list[AttentionOperation]:
        """The attention operation of each layer, for analysis."""
        return [cast(Block, block).attention.operation for block in self.blocks]

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        valid_mask: Tensor | None = None,
        packing: Packing | None = None,
        selected: Tensor | None = None,
        group: Group | None = None,
    ) -> Tensor:
        """Final hidden states (B, L, D) of token ids (B, L), or (number of True, D) of those in `selected`, row by row.

        Args:
            tokens: (B, L) token ids.
            valid_mask: (B, L) boolean, True for real tokens, of padded rows. Padding may be on either side, or within; hidden
                states there have no meaning.
            packing: the sequences of a packed row (B = 1).
            selected: (B, L) boolean; after its attention, the last block is computed for these tokens alone.
            group: processes that share the rows. Each gets the same whole rows, and computes only the hidden states of its
                own stretch `parallel.own_span(L, group)`.

        Raises:
            ValueError: a sequence is longer than the model's window, a mask or packing does not fit, or rows or model cannot
                be split (with a group, padding lies behind the real tokens).
        """
        states = self._states(tokens, valid_mask=valid_mask, packing=packing, selected=selected, group=group)
        return self.final_norm(deque(states, maxlen=1).pop())

    def layer_states(
        self,
        tokens: Tensor,
        *,
        layers: Collection[int],
        valid_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> dict[int, Tensor]:
        """Hidden states (B, L, D) of some layers, with the arguments of `hidden_states`.

        Layer 0 is the embedding, the input of the first block. Layer n is the output of block n, the last one normalized.

        Raises:
            ValueError: as `hidden_states`, or a layer that the model does not have.
        """
        last = self.config.num_layers
        if unknown := [layer for layer in layers if not 0 <= layer <= last]:
            raise ValueError(f"layer {unknown[0]} does not exist: layers run from 0 (embedding) to {last}")
        states, found = self._states(tokens, valid_mask=valid_mask, packing=packing), {}
        for layer, hidden in zip(range(max(layers) + 1), states, strict=False):
            if layer in layers:
                found[layer] = self.final_norm(hidden) if layer == last else hidden
        return found

    def _states(
        self,
        tokens: Tensor,
        *,
        valid_mask: Tensor | None,
        packing: Packing | None,
        selected: Tensor | None = None,
        group: Group | None = None,
    ) -> Iterator[Tensor]:
        """Yield the input of the first block and the output of each, (B, L, D); arguments as those of `hidden_states`."""
        shape = tokens.shape[0], tokens.shape[1]
        moved = None if valid_mask is None or packing is not None else RealTokensFirst.of(valid_mask, shape)
        if moved is None:
            yield from self._states_of_rows(
                tokens, valid_mask=valid_mask, packing=packing, selected=selected, group=group
            )
            return
        if group is not None:
            raise ValueError(
                "rows that several processes hold together have their padding behind the real tokens; pad on the right"
            )
        selected = None if selected is None else moved.to_front(selected)
        for hidden in self._states_of_rows(
            moved.to_front(tokens), valid_mask=moved.valid_mask, packing=None, selected=selected, group=None
        ):
            yield moved.back(hidden, selected)

    def _states_of_rows(
        self,
        tokens: Tensor,
        *,
        valid_mask: Tensor | None,
        packing: Packing | None,
        selected: Tensor | None,
        group: Group | None,
    ) -> Iterator[Tensor]:
        """As `_states`, for rows whose real tokens come first."""
        length = tokens.shape[1] if packing is None else int(packing.lengths.max())
        self._check_length(length)
        rows, before = Rows(valid_mask, packing), None
        scale = embedding_scale(tokens, rows) if self.config.token_dropout else None
        if group is not None:
            self.check_can_be_split()
            rows = rows.split((tokens.shape[0], tokens.shape[1]), group)
            span = own_span(tokens.shape[1], group)
            scale = None if scale is None else scale[:, span]
            selected = None if selected is None else selected[:, span]
            tokens, before = self._own_tokens(tokens, span)
        positions = rows.positions(tokens.shape[1])
        hidden = self._embed(tokens, positions, scale=scale, packing=rows.packing, before=before)
        rotary = self.rotary.tables(positions) if self.rotary is not None else None
        yield hidden
        indices = None if selected is None else selected.flatten().nonzero().squeeze(1)
        for number, block in enumerate(self.blocks, 1):
            arguments = hidden, rotary, rows, None, indices if number == len(self.blocks) else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(_in_checkpoint, block, *arguments, use_reentrant=False)
            else:
                hidden = block(*arguments)
            yield hidden

    def check_can_be_split(self) -> None:
        """Refuse a model whose rows several processes cannot hold together.

        Raises:
            ValueError: naming the layer, and the kinds of attention that can be split.
        """
        for layer, operation in enumerate(self.operations(), 1):
            if not operation.can_be_split:
                raise ValueError(
                    f"layer {layer} has {self.config.attention_kinds[layer - 1]} attention, which needs whole rows in "
                    f"one process; kinds that several can share: {', '.join(kinds_that_can_be_split())}"
                )

    def lift_window(self) -> None:
        """Allow sequences longer than the model's window; how well a model does there, nobody has measured.

        Raises:
            ValueError: the model is not causal, or its positions or its attention end with the window.
        """
        if not self.is_causal:
            raise ValueError("a masked model reads a protein at once and within its window")
        if self.config.positions in (PositionKind.LEARNED, PositionKind.AXIAL):
            raise ValueError(f"{self.config.positions.value} positions end with the window")
        for layer, operation in enumerate(self.operations(), 1):
            if not operation.reads_any_length:
                raise ValueError(
                    f"layer {layer} has {self.config.attention_kinds[layer - 1]} attention, whose state grows with "
                    "the length or ends with the window"
                )
        self._window = None

    def _check_length(self, length: int) -> None:
        if self._window is not None and length > self._window:
            raise ValueError(f"{length:,} tokens are over the model's window of {self._window:,}")

    def _own_tokens(self, tokens: Tensor, span: slice) -> tuple[Tensor, Tensor | None]:
        """Token ids of a stretch of whole rows, and the (B, context) before it for k-mers, <pad> before the row."""
        if self.kmer_embedding is None:
            return tokens[:, span], None
        context = self.kmer_embedding.context
        before = tokens[:, max(0, span.start - context) : span.start]
        before = functional.pad(before, (context - before.shape[1], 0), value=alphabet.PAD)
        return tokens[:, span], before

    def _embed(self, tokens: Tensor, positions: Tensor, *, scale: Tensor | None = None, **context: Any) -> Tensor:
        hidden = self.embedding(tokens)
        if scale is not None:
            hidden = hidden * scale
        if self.position_embedding is not None:
            hidden = hidden + self.position_embedding(positions)
        if self.kmer_embedding is not None:
            hidden = hidden + self.kmer_embedding(tokens, **context)
        return self.dropout(hidden)


def _in_checkpoint(block: nn.Module, *arguments: Any) -> Tensor:
    with nothing_recomputed():
        return block(*arguments)
