"""Scores of the substitutions in a protein, masked models of the shape of ESM-2's 35 M weights, random weights.

`variants`: masked marginals of all substitutions at the first B residues of a protein of L tokens; positions per second.
`saturation`: all substitutions of a protein of L tokens from one pass over it, a linear model of the usual size.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.contestants import models
from benchmarks.contestants.base import UNLIMITED, Contestant, Prepared
from benchmarks.spec import Spec
from protein_lm import alphabet
from protein_lm.choices import Precision, VariantStrategy
from protein_lm.inference.variants import Scoring, variant_scores
from protein_lm.io.variants.variant_table import Residues, all_substitutions
from protein_lm.model.language_model import ProteinLM

LAYERS, WIDTH, HEADS = 12, 480, 20
"""ESM-2 with 35 M weights; its feed-forward layer is 4 times as wide."""


def protein(num_tokens: int) -> Residues:
    """Random residues of a sequence of so many tokens."""
    tokens = np.random.default_rng(0).integers(0, alphabet.NUM_STANDARD, num_tokens - alphabet.NUM_SPECIAL_TOKENS)
    return (alphabet.FIRST_RESIDUE + tokens).astype(np.uint8)


def ours(attention: str) -> Callable[[Spec], Prepared]:
    """Masked marginals by `protein_lm.inference.variants.variant_scores`."""

    def prepare(spec: Spec) -> Prepared:
        size = models.Size(spec.length, LAYERS, WIDTH, HEADS, 4 * WIDTH)
        model = models.ours(size, objective="masked", attention=attention)
        return _prepared(model.eval(), spec, VariantStrategy.MASKED_MARGINALS, num_sites=spec.batch)

    return prepare


def saturation(attention: str) -> Callable[[Spec], Prepared]:
    """Wild-type marginals of everything."""

    def prepare(spec: Spec) -> Prepared:
        model = models.ours(models.Size(spec.length), objective="masked", attention=attention).eval()
        return _prepared(model, spec, VariantStrategy.WT_MARGINALS, num_sites=spec.length)

    return prepare


def _prepared(model: ProteinLM, spec: Spec, strategy: VariantStrategy, *, num_sites: int) -> Prepared:
    wild_type, scoring = protein(spec.length), Scoring(strategy, precision=Precision(spec.dtype))
    chosen = [variant for variant in all_substitutions(wild_type) if variant.sites[0] < num_sites]
    units = len({variant.sites for variant in chosen})
    return Prepared(lambda: variant_scores(model, wild_type, chosen, scoring), units=units)


def fair_esm(spec: Spec) -> Prepared:
    """The loop of fair-esm's examples/variant-prediction: a pass for each position, batch 1; bfloat16 is autocast."""
    import esm

    torch.manual_seed(0)
    model = esm.ESM2(num_layers=LAYERS, embed_dim=WIDTH, attention_heads=HEADS, alphabet="ESM-1b").eval()
    tokens = torch.tensor([[alphabet.CLS, *protein(spec.length).tolist(), alphabet.EOS]])
    is_bfloat16 = spec.dtype == "bfloat16"

    @torch.no_grad()
    def once() -> None:
        for place in range(1, spec.batch + 1):
            hidden = tokens.clone()
            hidden[0, place] = alphabet.MASK
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
                logits = model(hidden)["logits"]
            torch.log_softmax(logits, dim=-1)[0, place]

    return Prepared(once, units=spec.batch)


CONTESTANTS = {
    "ours-exact": Contestant(ours("exact"), {"masked": UNLIMITED}),
    "ours-relu": Contestant(ours("performer-relu"), {"masked": UNLIMITED}),
    "fair-esm-loop": Contestant(fair_esm, {"masked": UNLIMITED}, package="fair-esm", slow=frozenset({"masked"})),
}
SATURATION = {
    "ours-relu": Contestant(saturation("performer-relu"), {"masked": UNLIMITED}),
    "ours-exact": Contestant(saturation("exact"), {"masked": UNLIMITED}),
}
