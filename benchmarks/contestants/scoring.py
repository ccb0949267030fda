"""Log-likelihood of each protein of a set, float32, causal models; residues per second.

The set is spread evenly over the bundled sample of Swiss-Prot, so that it has its mixture of lengths.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.contestants import models
from benchmarks.contestants.base import UNLIMITED, Contestant, Prepared
from benchmarks.spec import Spec
from protein_lm import alphabet
from protein_lm.inference.score import score
from protein_lm.io.readers import read_records
from protein_lm.io.records import SequenceRecord

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "swissprot_sample.fasta.gz"
MAX_LENGTH = 1024
"""Window in tokens; every protein of the sample fits."""


def proteins(count: int) -> list[SequenceRecord]:
    """`count` proteins of the bundled sample, evenly spaced in file order."""
    records = list(read_records(SAMPLE))
    return records[:: max(len(records) // count, 1)][:count]


def ours(attention: str) -> Callable[[Spec], Prepared]:
    """`protein_lm.inference.score.score`."""

    def prepare(spec: Spec) -> Prepared:
        records = proteins(spec.length)
        model = models.ours(models.Size(MAX_LENGTH), objective="causal", attention=attention).eval()

        def once() -> None:
            table = score(model, records)
            prepared.facts["mean_log_likelihood_nats"] = float(table["log_likelihood"].sum()) / prepared.units

        prepared = Prepared(once, units=sum(len(record) for record in records))
        return prepared

    return prepare


def gpt2(*, by_length: bool) -> Callable[[Spec], Prepared]:
    """Hugging Face GPT-2 on padded batches, in file order or sorted by length."""

    def prepare(spec: Spec) -> Prepared:
        records = proteins(spec.length)
        model = models.gpt2(models.Size(MAX_LENGTH)).eval()

        @torch.inference_mode()
        def once() -> None:
            ordered = sorted(records, key=len) if by_length else records
            total = 0.0
            for start in range(0, len(ordered), spec.batch):
                tokens, targets = padded(ordered[start : start + spec.batch])
                mask = (tokens != alphabet.PAD).long()
                logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
                total -= sequence_losses(logits[:, :-1], targets[:, 1:]).sum().item()
            prepared.facts["mean_log_likelihood_nats"] = total / prepared.units

        prepared = Prepared(once, units=sum(len(record) for record in records))
        return prepared

    return prepare


def padded(records: list[SequenceRecord]) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) with <cls> and <eos>, padded; targets (B, L) with all but the residues ignored."""
    shape = len(records), max(map(len, records)) + alphabet.NUM_SPECIAL_TOKENS
    tokens = torch.full(shape, alphabet.PAD)
    targets = torch.full(shape, -100)
    for row, record in enumerate(records):
        end = len(record) + 1
        residues = torch.tensor(record.tokens, dtype=torch.long)
        tokens[row, 0], tokens[row, 1:end], tokens[row, end] = alphabet.CLS, residues, alphabet.EOS
        targets[row, 1:end] = residues
    return tokens, targets


def sequence_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log p over the residues of each sequence (B,), in nats; logits (B, L, V), targets (B, L)."""
    return cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)


CONTESTANTS = {
    "ours-relu": Contestant(ours("performer-relu"), {"causal": UNLIMITED}),
    "ours-softmax": Contestant(ours("performer-softmax"), {"causal": UNLIMITED}),
    "ours-exact": Contestant(ours("exact"), {"causal": UNLIMITED}),
    "hf-gpt2-file-order": Contestant(gpt2(by_length=False), {"causal": UNLIMITED}, package="transformers"),
    "hf-gpt2-by-length": Contestant(gpt2(by_length=True), {"causal": UNLIMITED}, package="transformers"),
}
