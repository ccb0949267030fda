"""Mean embedding of each protein of a set from the last layer, float32, models of the shape of ESM-2 8M; residues per second.

Weights are random. Nothing is written to disk, by nobody.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contestants.base import UNLIMITED, Contestant, Prepared
from benchmarks.contestants.scoring import MAX_LENGTH, proteins
from benchmarks.spec import Spec
from protein_lm.config import ModelConfig
from protein_lm.inference.embed import embed
from protein_lm.model.language_model import ProteinLM

LAYERS, WIDTH, HEADS = 6, 320, 20
"""Of ESM-2 8M; its feed-forward layer is 4 × as wide."""


def ours(attention: str, **settings: Any) -> Callable[[Spec], Prepared]:
    """`protein_lm.inference.embed.embed`, masked model."""

    def prepare(spec: Spec) -> Prepared:
        sequences = [record.tokens for record in proteins(spec.length)]
        config = ModelConfig.model_validate(
            {
                "objective": "masked",
                "attention": attention,
                "num_layers": LAYERS,
                "width": WIDTH,
                "num_heads": HEADS,
                "feedforward_width": 4 * WIDTH,
                "max_length": MAX_LENGTH,
                **settings,
            }
        )
        model = ProteinLM(config).eval()
        model.initialize(torch.Generator().manual_seed(0))

        def once() -> None:
            for values in embed(model, sequences):
                values.mean(1)

        return Prepared(once, units=sum(map(len, sequences)))

    return prepare


def fair_esm(spec: Spec) -> Prepared:
    """The loop of fair-esm's scripts/extract.py: sorted by length, padded batches of `spec.batch` tokens."""
    from esm.data import Alphabet, FastaBatchedDataset
    from esm.model.esm2 import ESM2

    records = proteins(spec.length)
    torch.manual_seed(0)
    alphabet = Alphabet.from_architecture("ESM-1b")
    model = ESM2(LAYERS, WIDTH, HEADS, alphabet).eval()
    dataset = FastaBatchedDataset([record.sequence_id for record in records], [record.sequence for record in records])
    batches = dataset.get_batch_indices(spec.batch, extra_toks_per_seq=1)
    loader = torch.utils.data.DataLoader(
        dataset,  # pyright: ignore[reportArgumentType]
        collate_fn=alphabet.get_batch_converter(),
        batch_sampler=batches,
    )

    @torch.no_grad()
    def once() -> None:
        for _, sequences, tokens in loader:
            values = model(tokens, repr_layers=[LAYERS], return_contacts=False)["representations"][LAYERS]
            for row, sequence in zip(values, sequences, strict=True):
                row[1 : len(sequence) + 1].mean(0).clone()

    return Prepared(once, units=sum(map(len, records)))


CONTESTANTS = {
    "ours-relu": Contestant(ours("performer-relu", num_random_features=16), {"masked": UNLIMITED}),
    "ours-relu-64": Contestant(ours("performer-relu", num_random_features=64), {"masked": UNLIMITED}),
    "ours-exact": Contestant(ours("exact"), {"masked": UNLIMITED}),
    "fair-esm": Contestant(fair_esm, {"masked": UNLIMITED}, package="fair-esm"),
}
