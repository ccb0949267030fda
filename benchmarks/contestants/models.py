"""Language models over 33 tokens, without dropout: ours, and those of other packages, of any size.

The sizes that the measurements share are in `base`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.contestants.base import FEEDFORWARD_WIDTH, HEADS, LAYERS, NUM_FEATURES, WIDTH
from protein_lm import alphabet
from protein_lm.attention.kinds.table import with_defaults
from protein_lm.config import ModelConfig
from protein_lm.model.language_model import ProteinLM


@dataclass(frozen=True)
class Size:
    """What all models have alike."""

    max_length: int
    num_layers: int = LAYERS
    width: int = WIDTH
    num_heads: int = HEADS
    feedforward_width: int = FEEDFORWARD_WIDTH
    num_features: int = NUM_FEATURES


def ours(size: Size, *, objective: str, attention: str) -> ProteinLM:
    """`ProteinLM` with random weights."""
    config = ModelConfig.model_validate(
        {
            "objective": objective,
            "attention": with_defaults(attention, {"num_features": size.num_features}),
            "num_layers": size.num_layers,
            "width": size.width,
            "num_heads": size.num_heads,
            "feedforward_width": size.feedforward_width,
            "max_length": size.max_length,
        }
    )
    model = ProteinLM(config)
    model.initialize(torch.Generator().manual_seed(0))
    return model


def gpt2(size: Size, *, seed: int = 0) -> Any:
    """Hugging Face `GPT2LMHeadModel` with sdpa and random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    config = GPT2Config(
        vocab_size=alphabet.VOCABULARY_SIZE,
        n_positions=size.max_length,
        n_embd=size.width,
        n_layer=size.num_layers,
        n_head=size.num_heads,
        n_inner=size.feedforward_width,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=alphabet.CLS,
        eos_token_id=None,
        pad_token_id=alphabet.PAD,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config)


def hugging_face_esm(size: Size, *, seed: int = 0) -> Any:
    """`EsmForMaskedLM` of transformers with rotary positions, sdpa and random weights."""
    from transformers import EsmConfig, EsmForMaskedLM  # pyright: ignore[reportMissingImports]

    config = EsmConfig(
        vocab_size=alphabet.VOCABULARY_SIZE,
        hidden_size=size.width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=size.feedforward_width,
        position_embedding_type="rotary",
        max_position_embeddings=size.max_length + 2,
        pad_token_id=alphabet.PAD,
        mask_token_id=alphabet.MASK,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    torch.manual_seed(seed)
    return EsmForMaskedLM(config)


def performer_pytorch(size: Size, *, causal: bool, seed: int = 0) -> nn.Module:
    """`PerformerLM` of performer-pytorch with ReLU features that are never redrawn, and random weights.

    Its causal form is its plain torch one, which keeps (L, M, E) numbers per head and layer.
    """
    from performer_pytorch import performer_pytorch as package  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    model = package.PerformerLM(
        num_tokens=alphabet.VOCABULARY_SIZE,
        max_seq_len=size.max_length,
        dim=size.width,
        depth=size.num_layers,
        heads=size.num_heads,
        ff_mult=size.feedforward_width // size.width,
        nb_features=size.num_features,
        generalized_attention=True,
        causal=causal,
    )
    model.fix_projection_matrices_()
    for module in model.modules():
        if causal and isinstance(module, package.FastAttention):
            module.causal_linear_fn = package.causal_linear_attention_noncuda
    return model
