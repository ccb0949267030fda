"""Mean embedding of each protein of a set from the last layer, float32, models of the shape of ESM-2 8M; residues per second.

Weights are random. Nothing is written to disk, by nobody.
"""

from collections.abc import Callable

import torch

from benchmarks.contestants import models
from benchmarks.contestants.base import UNLIMITED, Contestant, Prepared
from benchmarks.contestants.scoring import MAX_LENGTH, proteins
from benchmarks.spec import Spec
from protein_lm.inference.embed import embed

LAYERS, WIDTH, HEADS = 6, 320, 20
"""Of ESM-2 8M; its feed-forward layer is 4 × as wide."""


def ours(attention: str, *, num_features: int = models.NUM_FEATURES) -> Callable[[Spec], Prepared]:
    """`protein_lm.inference.embed.embed`, masked model."""

    def prepare(spec: Spec) -> Prepared:
        sequences = [record.tokens for record in proteins(spec.length)]
        size = models.Size(MAX_LENGTH, LAYERS, WIDTH, HEADS, 4 * WIDTH, num_features)
        model = models.ours(size, objective="masked", attention=attention).eval()

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
    "ours-relu": Contestant(ours("performer-relu", num_features=16), {"masked": UNLIMITED}),
    "ours-relu-64": Contestant(ours("performer-relu", num_features=64), {"masked": UNLIMITED}),
    "ours-exact": Contestant(ours("exact"), {"masked": UNLIMITED}),
    "fair-esm": Contestant(fair_esm, {"masked": UNLIMITED}, package="fair-esm"),
}
