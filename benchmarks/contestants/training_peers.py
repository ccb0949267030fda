"""Language models of other packages in the training step. All form logits of every position, as they are built to."""

import torch
from torch import nn

from benchmarks.contestants import models
from benchmarks.contestants.base import FEEDFORWARD_WIDTH, HEADS, LAYERS, NUM_FEATURES, UNLIMITED, WIDTH, Contestant
from benchmarks.contestants.training import Logits, training_step
from benchmarks.spec import Spec
from protein_lm import alphabet


def performer_pytorch(spec: Spec) -> tuple[nn.Module, Logits]:
    """`PerformerLM` of performer-pytorch with ReLU features that are never redrawn.

    As in the attention case, the causal form is its plain torch one, which keeps (L, M, E) numbers per head and layer.
    """
    from performer_pytorch import performer_pytorch as package  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    causal = spec.direction == "causal"
    model = package.PerformerLM(
        num_tokens=alphabet.VOCABULARY_SIZE,
        max_seq_len=spec.length,
        dim=WIDTH,
        depth=LAYERS,
        heads=HEADS,
        ff_mult=FEEDFORWARD_WIDTH // WIDTH,
        nb_features=NUM_FEATURES,
        generalized_attention=True,
        causal=causal,
    )
    model.fix_projection_matrices_()
    for module in model.modules():
        if causal and isinstance(module, package.FastAttention):
            module.causal_linear_fn = package.causal_linear_attention_noncuda
    return model, lambda tokens, selected: model(tokens)[selected]


def hugging_face_esm(spec: Spec) -> tuple[nn.Module, Logits]:
    """`EsmForMaskedLM` of transformers with rotary positions and sdpa."""
    from transformers import EsmConfig, EsmForMaskedLM  # pyright: ignore[reportMissingImports]

    config = EsmConfig(
        vocab_size=alphabet.VOCABULARY_SIZE,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FEEDFORWARD_WIDTH,
        position_embedding_type="rotary",
        max_position_embeddings=spec.length + 2,
        pad_token_id=alphabet.PAD,
        mask_token_id=alphabet.MASK,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    torch.manual_seed(0)
    model = EsmForMaskedLM(config)
    return model, lambda tokens, selected: model(input_ids=tokens).logits[selected]


def hugging_face_gpt2(spec: Spec) -> tuple[nn.Module, Logits]:
    """`GPT2LMHeadModel` of transformers with sdpa."""
    model = models.gpt2(max_length=spec.length)
    return model, lambda tokens, selected: model(input_ids=tokens, use_cache=False).logits[selected]


def fair_esm(spec: Spec) -> tuple[nn.Module, Logits]:
    """`ESM2` of fair-esm. Its feed-forward layer is always 4 × the width (2048 here, against 1024 of all others)."""
    from esm.model.esm2 import ESM2

    torch.manual_seed(0)
    model = ESM2(num_layers=LAYERS, embed_dim=WIDTH, attention_heads=HEADS)
    # Its head for contacts takes no part in the loss, and an optimizer need not carry it.
    model.contact_head.requires_grad_(False)
    return model, lambda tokens, selected: model(tokens)["logits"][selected]


CONTESTANTS = {
    "performer-pytorch": Contestant(
        training_step(performer_pytorch),
        {"causal": 8192, "masked": UNLIMITED},
        package="performer-pytorch",
        slow=frozenset({"causal"}),
    ),
    "hf-esm": Contestant(training_step(hugging_face_esm), {"masked": 8192}, package="transformers"),
    "hf-gpt2": Contestant(training_step(hugging_face_gpt2), {"causal": 8192}, package="transformers"),
    "fair-esm": Contestant(training_step(fair_esm), {"masked": 8192}, package="fair-esm"),
}
