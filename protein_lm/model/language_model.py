"""The protein language model: token (and k-mer) embedding, blocks, final norm, head tied to the embedding."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm import alphabet
from protein_lm.attention.feature_maps import RandomFeatureMap
from protein_lm.attention.kinds import ATTENTION_KINDS, AttentionOperation
from protein_lm.config import ModelConfig, Objective
from protein_lm.model.block import AttentionLayer, Block, FeedForward
from protein_lm.model.convolution import ShortConvolution
from protein_lm.model.kmers import KmerEmbedding
from protein_lm.model.positions import RotaryPositions


class ProteinLM(nn.Module):
    """Logits over the alphabet for every token of a batch.

    A causal model's logits at position i predict token i + 1; a masked model's logits at i predict token i.
    `forward` never draws features and never changes state (dropout aside).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(alphabet.VOCABULARY_SIZE, config.width)
        self.kmer_embedding = (
            KmerEmbedding(config.kmer_sizes, config.kmer_buckets, config.width) if config.kmer_sizes else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.positions = RotaryPositions(config.width // config.num_heads)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.output_bias = nn.Parameter(torch.zeros(alphabet.VOCABULARY_SIZE))

    def _block(self) -> Block:
        config = self.config
        build_operation = ATTENTION_KINDS[config.attention.value]
        operation = build_operation(config.width // config.num_heads, config.num_random_features, causal=self.is_causal)
        convolution = (
            ShortConvolution(config.width, config.convolution_taps, causal=self.is_causal)
            if config.convolution_taps
            else None
        )
        return Block(
            AttentionLayer(config.width, config.num_heads, operation, convolution),
            FeedForward(config.width, config.feedforward_width),
            width=config.width,
            dropout=config.dropout,
        )

    @property
    def is_causal(self) -> bool:
        """Whether the model reads from left to right."""
        return self.config.objective is Objective.CAUSAL

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output_bias.device

    @property
    def max_residues(self) -> int:
        """Residues of the longest protein that fits the window."""
        return self.config.max_length - alphabet.NUM_SPECIAL_TOKENS

    @property
    def num_parameters(self) -> int:
        """Trained weights; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def operations(self) -> list[AttentionOperation]:
        """The attention operation of each layer, for analysis."""
        return [cast(Block, block).attention.operation for block in self.blocks]

    def hidden_states(self, tokens: Tensor, *, valid_mask: Tensor | None = None) -> Tensor:
        """Final hidden states (B, L, D) of token ids (B, L); valid_mask (B, L) True for real tokens.

        Raises:
            ValueError: longer than the model's window.
        """
        length = tokens.shape[1]
        if length > self.config.max_length:
            raise ValueError(f"{length} tokens are over the model's window of {self.config.max_length}")
        hidden = self.embedding(tokens)
        if self.kmer_embedding is not None:
            hidden = hidden + self.kmer_embedding(tokens)
        hidden = self.dropout(hidden)
        rotary = self.positions.tables(length)
        for block in self.blocks:
            hidden = block(hidden, rotary, valid_mask)
        return self.final_norm(hidden)

    def forward(self, tokens: Tensor, *, valid_mask: Tensor | None = None, selected: Tensor | None = None) -> Tensor:
        """Logits (B, L, V), or (number of True, V) for the positions in the boolean `selected` (B, L), row by row.

        Raises:
            ValueError: longer than the model's window.
        """
        hidden = self.hidden_states(tokens, valid_mask=valid_mask)
        if selected is not None:
            hidden = hidden[selected]
        return functional.linear(hidden, self.embedding.weight, self.output_bias)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights and random features from `generator`.

        Matrices are normal with standard deviation 1/√fan-in; those that write to the residual stream are smaller by
        √(2 × layers), so that its size does not depend on depth (Radford et al. 2019).
        """
        for name, parameter in self.named_parameters():
            if name.startswith(("embedding.", "kmer_embedding.")):
                nn.init.normal_(parameter, std=self.config.width**-0.5, generator=generator)
            elif name.endswith("convolution.weight"):
                nn.init.normal_(parameter, std=parameter.shape[0] ** -0.5, generator=generator)
            elif parameter.ndim == 2:
                scale = (2 * self.config.num_layers) ** -0.5 if "output_projection" in name else 1.0
                nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.redraw_features(generator)

    def redraw_features(self, generator: torch.Generator) -> None:
        """Draw all random features anew; models without any stay as they are."""
        for feature_map in self._random_feature_maps():
            feature_map.redraw(generator)

    def _random_feature_maps(self) -> Iterator[RandomFeatureMap]:
        return (module for module in self.modules() if isinstance(module, RandomFeatureMap))
