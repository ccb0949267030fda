"""The protein language model: token (and k-mer) embedding, blocks, final norm, head tied to the embedding."""

from collections import deque
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from protein_lm import alphabet
from protein_lm.attention.feature_maps.performer import RandomFeatureMap
from protein_lm.attention.feature_maps.trainable import TrainableFeatures
from protein_lm.attention.kinds import ATTENTION_KINDS, AttentionOptions, kinds_that_can_be_split
from protein_lm.attention.operations.interface import AttentionOperation
from protein_lm.attention.operations.low_rank import LengthProjections
from protein_lm.attention.operations.lsh import Hash
from protein_lm.attention.operations.stream import without_autocast
from protein_lm.attention.packing import Packing
from protein_lm.attention.parallel import Group, own_span
from protein_lm.attention.rows import WHOLE, Rows
from protein_lm.choices import Objective, OutputHead, PositionKind
from protein_lm.config import ModelConfig
from protein_lm.errors import ConfigError
from protein_lm.model.block import AttentionLayer, Block, FeedForward, LayerState
from protein_lm.model.contact_head import ContactHead
from protein_lm.model.convolution import ShortConvolution
from protein_lm.model.kmers import KmerEmbedding
from protein_lm.model.native_decoding import CompiledDecoding, arranged, can_be_compiled
from protein_lm.model.output_transform import OutputTransform
from protein_lm.model.padding import RealTokensFirst
from protein_lm.model.positions import RotaryPositions, build_position_embedding
from protein_lm.model.pretrained import Pretrained
from protein_lm.model.recompute import nothing_recomputed
from protein_lm.model.token_dropout import embedding_scale


@dataclass
class DecodingState:
    """What a causal model remembers of the tokens that it has read."""

    layers: list[LayerState]
    before: Tensor
    """(B, context) last tokens, for the k-mers."""
    num_tokens: Tensor
    """(B,) tokens that each row has read, on the CPU."""
    compiled: CompiledDecoding | None = None
    """How the compiled kernels know `layers`, from the first step that they took on."""

    def put(self, row: int, other: "DecodingState") -> None:
        """Make a row go on from `other`, a state of one row, whatever it has read; other rows stay as they are.

        Only where the model's `rows_can_be_replaced`.
        """
        for layer, new in zip(self.layers, other.layers, strict=True):
            layer.attention.put(row, new.attention)
            layer.before[row] = new.before[0]
        self.before[row] = other.before[0]
        self.num_tokens[row] = other.num_tokens[0]

    def keep(self, rows: Tensor) -> None:
        """Keep the rows of these numbers (K,), which are on the CPU, alone and in this order."""
        for layer in self.layers:
            layer.attention.keep(rows)
            layer.before = layer.before[rows.to(layer.before.device)]
        self.before = self.before[rows.to(self.before.device)]
        self.num_tokens = self.num_tokens[rows]

    def repeated(self, times: int) -> "DecodingState":
        """The state of `times` rows that go on, each in its own way, from the one row that this state has read (B = 1)."""
        state = deepcopy(replace(self, compiled=None))
        state.keep(torch.zeros(times, dtype=torch.int64))
        return state


class ProteinLM(Pretrained, nn.Module):
    """Logits over the alphabet for every token of a batch.

    A causal model's logits at position i predict token i + 1; a masked model's logits at i predict token i.
    `forward` never draws features and never changes state (dropout aside).
    """

    _no_split_modules = ("Block",)
    """Accelerate's name for what FSDP gathers and lets go as one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(alphabet.VOCABULARY_SIZE, config.width)
        self.kmer_embedding = (
            KmerEmbedding(config.kmer_sizes, config.kmer_buckets, config.width) if config.kmer_sizes else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.rotary = (
            RotaryPositions(config.width // config.num_heads, stored=config.stored_frequencies)
            if config.positions is PositionKind.ROTARY
            else None
        )
        self.position_embedding = build_position_embedding(config)
        self.blocks = nn.ModuleList(self._block(layer) for layer in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.output_transform = OutputTransform(config.width) if config.output_head is OutputHead.DENSE else None
        self.output_bias = (
            None if config.output_head is OutputHead.NONE else nn.Parameter(torch.zeros(alphabet.VOCABULARY_SIZE))
        )
        self.contact_head = ContactHead(config.num_layers * config.num_heads) if config.contact_head else None
        self.gradient_checkpointing = False
        """Whether gradients keep only what goes in and out of blocks, and compute what lies between a second time."""
        self._window: int | None = config.max_length

    def _block(self, layer: int) -> Block:
        config = self.config
        options = AttentionOptions(
            num_heads=config.num_heads,
            head_width=config.width // config.num_heads,
            longest=config.max_length,
            num_features=config.num_random_features,
            projection=config.projection.value,
            window=config.window,
            num_global_tokens=config.num_global_tokens,
            stride=config.stride,
            num_strides=config.num_strides,
            num_random_blocks=config.num_random_blocks,
            num_buckets=config.num_buckets,
            num_hash_rounds=config.num_hash_rounds,
            num_landmarks=config.num_landmarks,
            layer=layer,
        )
        operation = ATTENTION_KINDS[config.attention_kinds[layer].value](options, causal=self.is_causal)
        convolution = (
            ShortConvolution(config.width, config.convolution_taps, causal=self.is_causal)
            if config.convolution_taps
            else None
        )
        return Block(
            AttentionLayer(config.width, config.num_heads, operation, convolution, qk_norm=config.qk_norm),
            FeedForward(config.width, config.feedforward_width),
            (nn.LayerNorm(config.width), nn.LayerNorm(config.width)),
            config.dropout,
        )

    @property
    def is_causal(self) -> bool:
        """Whether the model reads from left to right."""
        return self.config.objective is Objective.CAUSAL

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def max_residues(self) -> int:
        """Residues of the longest protein that fits the window."""
        return self.config.max_length - alphabet.NUM_SPECIAL_TOKENS

    @property
    def num_parameters(self) -> int:
        """Trained weights; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_kernel_parameters(self) -> int:
        """Trained weights of the attention kernels themselves."""
        return sum(p.numel() for operation in self.operations() for p in operation.parameters())

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
            valid_mask: (B, L) boolean, True for real tokens, of padded rows. Padding may be on either side, or within; what
                comes out at it means nothing.
            packing: the sequences of a packed row (B = 1).
            selected: (B, L) boolean; what the last block has behind its attention is computed for these tokens alone.
            group: processes that hold the rows together. Each is given the same whole rows, and computes the hidden states
                of its own stretch `parallel.own_span(L, group)` only.

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

        Layer 0 is what goes into the first block, layer n comes out of block n, the last one with the final norm.

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
        """What goes into the first block, and what comes out of each, (B, L, D); see `hidden_states`.

        Padding may lie anywhere; between a sequence's tokens it is left out.
        """
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
        """As `_states`, of rows whose real tokens come first."""
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
        places = None if selected is None else selected.flatten().nonzero().squeeze(1)
        for number, block in enumerate(self.blocks, 1):
            arguments = hidden, rotary, rows, None, places if number == len(self.blocks) else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(_in_checkpoint, block, *arguments, use_reentrant=False)
            else:
                hidden = block(*arguments)
            yield hidden

    def forward(
        self,
        tokens: Tensor,
        *,
        valid_mask: Tensor | None = None,
        packing: Packing | None = None,
        selected: Tensor | None = None,
        group: Group | None = None,
    ) -> Tensor:
        """Logits (B, L, V), or (number of True, V) for the positions in the boolean `selected` (B, L), row by row.

        With a group they are those of this process's stretch of the rows. Where every process goes back from the loss of its
        own stretch, at the same time, the sum over processes of each weight's gradient is the gradient of the sum of losses.

        Raises:
            ValueError: as `hidden_states`.
            ConfigError: the model has no head.
        """
        return self.logits(
            self.hidden_states(tokens, valid_mask=valid_mask, packing=packing, selected=selected, group=group)
        )

    def check_can_be_split(self) -> None:
        """Refuse a model whose rows several processes cannot hold together.

        Raises:
            ValueError: naming the layer, and the kinds of attention that can be split.
        """
        for layer, operation in enumerate(self.operations(), 1):
            if not operation.can_be_split:
                raise ValueError(
                    f"layer {layer} has {self.config.attention_kinds[layer - 1].value} attention, which needs whole rows in "
                    f"one process; kinds that several can share: {', '.join(kinds_that_can_be_split())}"
                )

    def lift_window(self) -> None:
        """Let sequences be longer than any that the model was trained on; how well it does there, nobody has measured.

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
                    f"layer {layer} has {self.config.attention_kinds[layer - 1].value} attention, which is no state of fixed "
                    "size that goes on without end"
                )
        self._window = None

    def new_state(self, batch_size: int = 1) -> DecodingState:
        """What `extend` and `step` carry along, before the first token. With linear attention its size never changes.

        Raises:
            ValueError: the model is not causal.
        """
        if not self.is_causal:
            raise ValueError("a masked model reads both ways and cannot go on from a state; use a causal model")
        layers = [cast(Block, block).attention.new_state(batch_size) for block in self.blocks]
        context = self.kmer_embedding.context if self.kmer_embedding is not None else 0
        before = torch.full((batch_size, context), alphabet.PAD, device=self.device)
        return DecodingState(layers, before, torch.zeros(batch_size, dtype=torch.int64))

    @property
    def rows_can_be_replaced(self) -> bool:
        """Whether rows of a state may have read different numbers of tokens; see `DecodingState.put`."""
        return all(operation.rows_can_be_replaced for operation in self.operations())

    def extend(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Read tokens (B, S) behind those that `state` has seen, in parallel; the state is updated in place.

        Returns:
            Logits (B, S, V), equal to those of one pass over the whole sequence.

        Raises:
            ValueError: the sequence becomes longer than the model's window.
        """
        self._check_length(int(state.num_tokens.max()) + tokens.shape[1])
        positions = state.num_tokens[:, None] + torch.arange(tokens.shape[1])
        hidden = self._embed(tokens, positions, before=state.before)
        rotary = self.rotary.tables(positions[:, None]) if self.rotary is not None else None
        compiled = self._compiled(state) if tokens.shape[1] == 1 else None
        if compiled is not None:
            hidden = compiled.step(hidden, rotary)
        else:
            for block, layer in zip(self.blocks, state.layers, strict=True):
                hidden = block(hidden, rotary, WHOLE, layer)
        state.num_tokens += tokens.shape[1]
        if context := state.before.shape[1]:
            state.before = torch.cat((state.before, tokens), dim=1)[:, -context:]
        return self.logits(self.final_norm(hidden))

    def _compiled(self, state: DecodingState) -> CompiledDecoding | None:
        """The kernels for a step of `state`, if there are any."""
        if torch.is_grad_enabled():
            return None
        blocks = cast(list[Block], list(self.blocks))
        if state.compiled is None or not state.compiled.fits(blocks, state.layers):
            state.compiled = CompiledDecoding(blocks, state.layers) if can_be_compiled(blocks) else None
        return state.compiled

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Logits (B, V) of what follows one more token (B,) of each sequence; the state is updated in place."""
        return self.extend(tokens[:, None], state)[:, 0]

    def arrange_for_decoding(self) -> None:
        """Lay weight matrices out by columns, which products with one row read twice as fast on a CPU; no value changes.

        For models that are used, not trained: optimizers expect weights laid out by rows.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = arranged(module.weight.data)

    def _check_length(self, length: int) -> None:
        if self._window is not None and length > self._window:
            raise ValueError(f"{length:,} tokens are over the model's window of {self._window:,}")

    def _own_tokens(self, tokens: Tensor, span: slice) -> tuple[Tensor, Tensor | None]:
        """Token ids of a stretch of whole rows, and the (B, context) before it that k-mers need, <pad> before the row."""
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

    def head_parameters(self) -> list[nn.Parameter]:
        """Trained weights between the final hidden states and the logits, but for the embedding."""
        transform = [] if self.output_transform is None else list(self.output_transform.parameters())
        return transform if self.output_bias is None else [*transform, self.output_bias]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., D).

        Outside of training they are not rounded to the three digits of bfloat16, whatever autocast says.

        Raises:
            ConfigError: the model has no head.
        """
        if self.output_bias is None:
            raise ConfigError(
                "this model has no language-model head and predicts no residues; it gives hidden states and attention, and "
                "can be fine-tuned on labels (protein-lm finetune)"
            )
        if self.output_transform is not None:
            hidden = self.output_transform(hidden)
        with nullcontext() if self.training else without_autocast(hidden.device):
            if not self.training:
                hidden = hidden.to(self.embedding.weight.dtype)
            return functional.linear(hidden, self.embedding.weight, self.output_bias)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights and random features from `generator`.

        Matrices are normal with standard deviation 1/√fan-in; those that write to the residual stream are smaller by
        √(2 × layers), so that its size does not depend on depth (Radford et al. 2019).
        """
        for name, parameter in self.named_parameters():
            if ".operation." in name:
                continue  # an operation draws its own
            if name.startswith(("embedding.", "kmer_embedding.", "position_embedding.")):
                nn.init.normal_(parameter, std=self.config.width**-0.5, generator=generator)
            elif name.endswith("convolution.weight"):
                nn.init.normal_(parameter, std=parameter.shape[0] ** -0.5, generator=generator)
            elif parameter.ndim == 2:
                scale = (2 * self.config.num_layers) ** -0.5 if "output_projection" in name else 1.0
                nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        for module in self.modules():
            if isinstance(module, TrainableFeatures | LengthProjections):
                module.initialize(generator)
        self.redraw_features(generator)

    def redraw_features(self, generator: torch.Generator) -> None:
        """Draw all random features and hashes anew; models without any stay as they are."""
        for module in self._drawn():
            module.redraw(generator)

    @property
    def is_random(self) -> bool:
        """Whether the model has features or hashes that are drawn."""
        return bool(self._drawn())

    def _drawn(self) -> list[RandomFeatureMap | Hash]:
        drawn = [module for module in self.modules() if isinstance(module, RandomFeatureMap | Hash)]
        return [module for module in drawn if isinstance(module, Hash) or not module.is_unprojected]

    def orthogonality(self) -> Tensor:
        """Σ ‖WWᵀ - I‖² over layers and heads of the weights that training may keep orthogonal."""
        maps = (module for module in self.modules() if isinstance(module, TrainableFeatures))
        weights = [weight for feature_map in maps for weight in feature_map.orthogonal_weights()]
        return torch.stack([(w @ w.mT - torch.eye(w.shape[-1], device=w.device)).square().sum() for w in weights]).sum()


def _in_checkpoint(block: nn.Module, *arguments: Any) -> Tensor:
    with nothing_recomputed():
        return block(*arguments)
