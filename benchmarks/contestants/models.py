"""Language models of one size: 6 layers, width 512, 8 heads, feed-forward 1024, 33 tokens, no dropout."""

from typing import Any

import torch

from benchmarks.contestants.base import FEEDFORWARD_WIDTH, HEADS, LAYERS, NUM_FEATURES, WIDTH
from protein_lm import alphabet
from protein_lm.config import ModelConfig
from protein_lm.model.language_model import ProteinLM


def ours(*, objective: str, attention: str, max_length: int) -> ProteinLM:
    """`ProteinLM` with random weights."""
    config = ModelConfig.model_validate(
        {
            "objective": objective,
            "attention": attention,
            "num_layers": LAYERS,
            "width": WIDTH,
            "num_heads": HEADS,
            "feedforward_width": FEEDFORWARD_WIDTH,
            "num_random_features": NUM_FEATURES,
            "max_length": max_length,
        }
    )
    model = ProteinLM(config)
    model.initialize(torch.Generator().manual_seed(0))
    return model


def gpt2(*, max_length: int) -> Any:
    """Hugging Face `GPT2LMHeadModel` with sdpa and random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    config = GPT2Config(
        vocab_size=alphabet.VOCABULARY_SIZE,
        n_positions=max_length,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=FEEDFORWARD_WIDTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=alphabet.CLS,
        eos_token_id=None,
        pad_token_id=alphabet.PAD,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)
