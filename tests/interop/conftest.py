"""Untrained models of fair-esm, with every weight in play, in the forms that they are distributed in."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from esm.model.esm2 import ESM2
from safetensors.torch import save_file

from protein_lm import alphabet

NUM_LAYERS, WIDTH, NUM_HEADS = 3, 32, 4


def untrained(num_layers: int = NUM_LAYERS, width: int = WIDTH, num_heads: int = NUM_HEADS) -> ESM2:
    """A model whose biases and gains are not those that would hide a mistake, with frequencies rounded as in the release."""
    torch.manual_seed(0)
    model = ESM2(num_layers, width, num_heads).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for layer in model.layers:
            layer.self_attn.rot_emb.inv_freq.copy_(layer.self_attn.rot_emb.inv_freq.half())
    return model


def checkpoint(model: ESM2, **changes: Any) -> dict[str, Any]:
    """What fair-esm saves, without the contact head, which it saves apart."""
    settings = {
        "encoder_layers": model.num_layers,
        "encoder_embed_dim": model.embed_dim,
        "encoder_attention_heads": model.attention_heads,
        "token_dropout": model.token_dropout,
    }
    weights = {
        ("encoder." if name.startswith("lm_head") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("contact_head")
    }
    return {"cfg": {"model": argparse.Namespace(**settings | changes)}, "model": weights}


def write_release(model: ESM2, folder: Path, name: str = "esm2_small") -> Path:
    """The two files of a release."""
    path = folder / f"{name}.pt"
    torch.save(checkpoint(model), path)
    contacts = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("contact_head")}
    torch.save({"model": contacts}, folder / f"{name}-contact-regression.pt")
    return path


_TO_HUGGING_FACE = (
    ("embed_tokens", "embeddings.word_embeddings"),
    ("layers.", "encoder.layer."),
    ("emb_layer_norm_after", "encoder.emb_layer_norm_after"),
    ("self_attn_layer_norm", "attention.LayerNorm"),
    ("self_attn.q_proj", "attention.self.query"),
    ("self_attn.k_proj", "attention.self.key"),
    ("self_attn.v_proj", "attention.self.value"),
    ("self_attn.rot_emb", "attention.self.rotary_embeddings"),
    ("self_attn.out_proj", "attention.output.dense"),
    ("final_layer_norm", "LayerNorm"),
    ("fc1", "intermediate.dense"),
    ("fc2", "output.dense"),
)


def write_hugging_face(model: ESM2, folder: Path, *, head: bool = True, **changes: Any) -> Path:
    """A Hugging Face directory, with a classifier in place of the language-model head if that is not wanted."""
    folder.mkdir()
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("lm_head"):
            if head:
                weights[name.replace("lm_head.weight", "lm_head.decoder.weight")] = tensor.clone()
            continue
        for theirs, new in _TO_HUGGING_FACE:
            name = name.replace(theirs, new)
        weights[f"esm.{name}"] = tensor.clone()
    if not head:
        weights["classifier.dense.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "esm",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.embed_dim,
        "num_attention_heads": model.attention_heads,
        "intermediate_size": 4 * model.embed_dim,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
        "vocab_size": 33,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "vocab.txt").write_text("\n".join(alphabet.TOKENS))
    return folder


@pytest.fixture(scope="session")
def esm2() -> ESM2:
    return untrained()
