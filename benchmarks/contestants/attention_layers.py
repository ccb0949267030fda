"""Sparse attention, of Hugging Face transformers and ours, timed as whole self-attention layers.

Those of transformers cannot be had without the projections to queries, keys and values that belong to them, so these figures
hold a little more than those of the operations: hidden states (B, L, D) in, (B, L, D) out, no output projection.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contestants.attention import Attend, forward_and_backward
from benchmarks.contestants.base import DTYPES, HEAD_WIDTH, HEADS, UNLIMITED, WIDTH, Contestant, Prepared
from benchmarks.spec import Spec
from protein_lm.attention.kinds.interface import LayerShape
from protein_lm.attention.kinds.table import build_attention

WINDOW = 512
"""Keys that a Longformer query sees, half of them on each side."""
BuildLayer = Callable[[Spec], tuple[nn.Module, Attend]]


def layer_inputs(spec: Spec) -> tuple[Tensor, ...]:
    """Normal hidden states (B, L, D)."""
    hidden = torch.randn(spec.batch, spec.length, WIDTH, generator=torch.Generator().manual_seed(0))
    return (hidden.to(DTYPES[spec.dtype]).requires_grad_(),)


def reformer(spec: Spec) -> tuple[nn.Module, Attend]:
    """`LSHSelfAttention` of Reformer with its default single round of hashing and chunks of 64."""
    from transformers import ReformerConfig  # pyright: ignore[reportMissingImports]
    from transformers.models.reformer.modeling_reformer import (  # pyright: ignore[reportMissingImports]
        LSHSelfAttention,
    )

    config = ReformerConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        attention_head_size=HEAD_WIDTH,
        attn_layers=["lsh"],
        is_decoder=spec.direction == "causal",
        lsh_attention_probs_dropout_prob=0.0,
        max_position_embeddings=spec.length,
        num_buckets=None,
        hash_seed=0,
    )
    layer = LSHSelfAttention(config).to(DTYPES[spec.dtype])
    return layer, lambda hidden: layer(hidden).hidden_states


def longformer(spec: Spec) -> tuple[nn.Module, Attend]:
    """`LongformerSelfAttention`, window 512, no global tokens; bidirectional only."""
    from transformers import LongformerConfig  # pyright: ignore[reportMissingImports]
    from transformers.models.longformer.modeling_longformer import (  # pyright: ignore[reportMissingImports]
        LongformerSelfAttention,
    )

    config = LongformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_window=[WINDOW], attention_probs_dropout_prob=0.0
    )
    layer = LongformerSelfAttention(config, layer_id=0).to(DTYPES[spec.dtype])
    local = torch.zeros(spec.batch, spec.length, dtype=DTYPES[spec.dtype])
    nowhere = torch.zeros(spec.batch, spec.length, dtype=torch.bool)

    def attend(hidden: Tensor) -> Tensor:
        return layer(
            hidden,
            attention_mask=local,
            is_index_masked=nowhere,
            is_index_global_attn=nowhere,
            is_global_attn=False,
        )[0]

    return layer, attend


def ours(kind: str, **options: Any) -> BuildLayer:
    """Our operation of that kind behind its projections to queries, keys and values."""

    def build(spec: Spec) -> tuple[nn.Module, Attend]:
        shape = LayerShape(num_heads=HEADS, head_width=HEAD_WIDTH, causal=spec.direction == "causal")
        operation = build_attention({"kind": kind, **options}, shape)
        parts = 2 if operation.shares_query_and_key else 3
        projection = nn.Linear(WIDTH, parts * WIDTH).to(DTYPES[spec.dtype])

        def attend(hidden: Tensor) -> Tensor:
            projected = projection(hidden).view(*hidden.shape[:2], parts, HEADS, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
            rows = projected.unbind(0)
            return operation(rows[0], rows[-2], rows[-1]).transpose(1, 2).reshape(hidden.shape)

        return projection, attend

    return build


def whole_layer(build: BuildLayer) -> Callable[[Spec], Prepared]:
    """A contestant's `prepare` out of what builds its layer."""

    def prepare(spec: Spec) -> Prepared:
        layer, attend = build(spec)
        used = tuple(weight for name, weight in layer.named_parameters() if "_global" not in name)
        return forward_and_backward(attend, layer_inputs(spec), used)

    return prepare


BUILDERS: dict[str, BuildLayer] = {
    "ours-lsh-layer": ours("lsh", window=128, num_hash_rounds=1),
    "ours-local-layer": ours("local", window=WINDOW),
    "ours-strided-layer": ours("strided"),
    "ours-bigbird-layer": ours("bigbird"),
    "reformer-lsh-layer": reformer,
    "longformer-layer": longformer,
}
BOTH = {"causal": UNLIMITED, "bidirectional": UNLIMITED}

CONTESTANTS = {
    **{name: Contestant(whole_layer(build), BOTH) for name, build in BUILDERS.items() if name.startswith("ours")},
    "reformer-lsh-layer": Contestant(whole_layer(reformer), BOTH, package="transformers", shortest=64),
    "longformer-layer": Contestant(
        whole_layer(longformer), {"bidirectional": UNLIMITED}, package="transformers", shortest=WINDOW
    ),
}
