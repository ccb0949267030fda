"""The protein language model: a backbone, and a head tied to the embedding."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm import alphabet
from protein_lm.attention.operations.linear_stream import without_autocast
from protein_lm.attention.packing import Packing
from protein_lm.attention.rows import WHOLE
from protein_lm.attention.sequence_parallel import Group
from protein_lm.choices import OutputHead
from protein_lm.config import ModelConfig
from protein_lm.errors import ConfigError
from protein_lm.model.backbone import Backbone
from protein_lm.model.block import Block, LayerState
from protein_lm.model.esm2_layers import ContactHead, OutputTransform
from protein_lm.model.native_decoding import CompiledDecoding, arranged, can_be_compiled
from protein_lm.model.pretrained import Pretrained


@dataclass
class DecodingState:
    """The state of a causal model after the tokens that it has read."""

    layers: list[LayerState]
    before: Tensor
    """(B, context) last tokens, for the k-mers."""
    num_tokens: Tensor
    """(B,) tokens that each row has read, on the CPU."""
    compiled: CompiledDecoding | None = None
    """`layers` as the compiled kernels see them, from the first step that these compute."""

    def put(self, row: int, other: "DecodingState") -> None:
        """Make a row resume from `other`, a state of one row; only where the model's `rows_can_be_replaced`."""
        for layer, new in zip(self.layers, other.layers, strict=True):
            layer.attention.put(row, new.attention)
            layer.before[row] = new.before[0]
        self.before[row] = other.before[0]
        self.num_tokens[row] = other.num_tokens[0]

    def keep(self, rows: Tensor) -> None:
        """Keep the rows of these numbers (K,), on the CPU, and no others, in this order."""
        for layer in self.layers:
            layer.attention.keep(rows)
            layer.before = layer.before[rows.to(layer.before.device)]
        self.before = self.before[rows.to(self.before.device)]
        self.num_tokens = self.num_tokens[rows]

    def repeated(self, times: int) -> "DecodingState":
        """Return a state of `times` rows that resume, each in its own way, from the one row of this state (B = 1)."""
        state = deepcopy(replace(self, compiled=None))
        state.keep(torch.zeros(times, dtype=torch.int64))
        return state


class ProteinLM(Pretrained, Backbone):
    """Logits over the alphabet for every token of a batch.

    A causal model's logits at index i predict token i + 1; a masked model's logits at i predict token i.
    """

    _no_split_modules = ("Block",)
    """Accelerate's name for modules that FSDP gathers and frees as one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        has_head = config.output_head is not OutputHead.NONE
        self.output_transform = OutputTransform(config.width) if config.output_head is OutputHead.DENSE else None
        self.output_bias = nn.Parameter(torch.zeros(alphabet.VOCABULARY_SIZE)) if has_head else None
        self.contact_head = ContactHead(config.num_layers * config.num_heads) if config.contact_head else None

    @property
    def num_parameters(self) -> int:
        """Trained weights; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_kernel_parameters(self) -> int:
        """Trained weights of the attention kernels themselves."""
        return sum(p.numel() for operation in self.operations() for p in operation.parameters())

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

        With a group they are those of this process's stretch of the rows. If all processes go back from the losses of their
        stretches at the same time, gradients summed over processes are those of the sum of losses.

        Raises:
            ValueError: as `hidden_states`.
            ConfigError: the model has no head.
        """
        return self.logits(
            self.hidden_states(tokens, valid_mask=valid_mask, packing=packing, selected=selected, group=group)
        )

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the trained weights between final hidden states and logits, without the embedding."""
        transform = [] if self.output_transform is None else list(self.output_transform.parameters())
        return transform if self.output_bias is None else [*transform, self.output_bias]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., D).

        Outside of training, autocast does not round them to the three digits of bfloat16.

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

    def new_state(self, batch_size: int = 1) -> DecodingState:
        """Return the state of `extend` and `step` before the first token. With linear attention its size never changes.

        Raises:
            ValueError: the model is not causal.
        """
        if not self.is_causal:
            raise ValueError("a masked model reads both ways and cannot resume from a state; use a causal model")
        layers = [cast(Block, block).attention.new_state(batch_size) for block in self.blocks]
        context = self.kmer_embedding.context if self.kmer_embedding is not None else 0
        before = torch.full((batch_size, context), alphabet.PAD, device=self.device)
        return DecodingState(layers, before, torch.zeros(batch_size, dtype=torch.int64))

    @property
    def rows_can_be_replaced(self) -> bool:
        """Whether rows of a state may have read different numbers of tokens (see `DecodingState.put`)."""
        return all(operation.rows_can_be_replaced for operation in self.operations())

    def extend(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Read tokens (B, S) that follow those of `state`, in parallel; the state is updated in place.

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
        """Return the kernels for a step of `state`, if there are any."""
        if torch.is_grad_enabled():
            return None
        blocks = cast(list[Block], list(self.blocks))
        if state.compiled is None or not state.compiled.fits(blocks, state.layers):
            state.compiled = CompiledDecoding(blocks, state.layers) if can_be_compiled(blocks) else None
        return state.compiled

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Read one more token (B,) of each sequence. Returns logits (B, V) of the next; the state is updated in place."""
        return self.extend(tokens[:, None], state)[:, 0]

    def arrange_for_decoding(self) -> None:
        """Lay out weight matrices by columns: products with one row read them twice as fast on a CPU. No value changes.

        For models in use, not in training: optimizers expect weights laid out by rows.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = arranged(module.weight.data)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights and random features from `generator`.

        Matrices are normal with standard deviation 1/√fan-in. Those that write to the residual stream are smaller by
        √(2 × layers): its size then does not depend on depth (Radford et al. 2019).
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
        for operation in self.operations():
            operation.initialize(generator)
        self.redraw_features(generator)

    def redraw_features(self, generator: torch.Generator) -> None:
        """Draw all random features and hashes anew; models without any do not change."""
        for operation in self.operations():
            operation.redraw(generator)

    @property
    def is_random(self) -> bool:
        """Whether the model has random features or hashes."""
        return any(operation.is_random for operation in self.operations())

    def orthogonality(self) -> Tensor:
        """Σ ‖WWᵀ - I‖² over layers and heads of the weights that training may keep orthogonal."""
        weights = [weight for operation in self.operations() for weight in operation.orthogonal_weights()]
        return torch.stack([(w @ w.mT - torch.eye(w.shape[-1], device=w.device)).square().sum() for w in weights]).sum()
