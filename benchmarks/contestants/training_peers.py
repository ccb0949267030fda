"""Language models of other packages in the training step. All form logits of every position, as they are built to."""

import torch
from torch import nn

from benchmarks.contestants import models
from benchmarks.contestants.base import HEADS, LAYERS, UNLIMITED, WIDTH, Contestant
from benchmarks.contestants.training import Logits, training_step
from benchmarks.spec import Spec


def performer_pytorch(spec: Spec) -> tuple[nn.Module, Logits]:
    """See `models.performer_pytorch`."""
    model = models.performer_pytorch(models.Size(spec.length), causal=spec.direction == "causal")
    return model, lambda tokens, selected: model(tokens)[selected]


def hugging_face_esm(spec: Spec) -> tuple[nn.Module, Logits]:
    """See `models.hugging_face_esm`."""
    model = models.hugging_face_esm(models.Size(spec.length))
    return model, lambda tokens, selected: model(input_ids=tokens).logits[selected]


def hugging_face_gpt2(spec: Spec) -> tuple[nn.Module, Logits]:
    """See `models.gpt2`."""
    model = models.gpt2(models.Size(spec.length))
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
