"""Language models that learn from the same corpus, each as its users would train it: for `benchmarks.time_to_perplexity`.

Ours take packed rows. Peers take the same sequences, cropped and masked alike, as padded rows of similar lengths: of several
batches' sequences, sorted, so that little is padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.contestants import models
from protein_lm import alphabet
from protein_lm.attention.kinds.table import options_in
from protein_lm.batches.masking import hide
from protein_lm.batches.packed_batches import IGNORED, Batch, TrainingBatches, fill, pack, tokens_of
from protein_lm.batches.plan import PlanPosition
from protein_lm.choices import Objective, Precision
from protein_lm.config import Recipe
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.inference.likelihood import Residues, evaluation_log_probabilities, evaluation_positions
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.precision import choose
from protein_lm.training.optimizer import build_optimizers

Logits = Callable[[Tensor], Tensor]
"""tokens (B, L), padded -> logits (B, L, V)."""
WARMUP = 0.03
"""Fraction of the training over which the learning rate rises."""
POOL = 8
"""Batches whose sequences are sorted by length together."""
PEERS = {"masked": ("hf-esm", "performer-pytorch"), "causal": ("hf-gpt2", "performer-pytorch")}


@dataclass
class Learner:
    """A model and how it is trained; groups of its optimizers hold the peak learning rate as `lr`."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    steps: Callable[[PlanPosition], Iterator[tuple[Callable[[], Tensor], int, PlanPosition]]]
    """From a place on: what gives a step's mean loss, its tokens without padding, and where the next one begins."""
    validate: Callable[[], float]
    """Perplexity of the validation residues."""
    gradient_clip: float

    def __post_init__(self) -> None:
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def step(self, loss: Callable[[], Tensor], fraction: float) -> None:
        """One optimizer step, in the precision that auto chooses, when a fraction of the whole training is over."""
        factor = learning_rate_factor(fraction)
        for optimizer, rates in zip(self.optimizers, self._peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        with choose(Precision.AUTO, "cpu").context("cpu"):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def perplexity(self) -> float:
        """Of the validation residues, in the same precision."""
        self.model.eval()
        with choose(Precision.AUTO, "cpu").context("cpu"):
            return self.validate()


def learning_rate_factor(fraction: float) -> float:
    """Of the peak learning rate, after a fraction of the training: a linear rise to it, and a linear fall to 0.

    >>> [round(learning_rate_factor(fraction), 3) for fraction in (0.0, 0.015, 0.03, 0.515, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return max(0.0, min(fraction / WARMUP, (1 - fraction) / (1 - WARMUP)))


def validation_sequences(corpus: Corpus, count: int, longest: int) -> list[Residues]:
    """Evenly spread over the split `valid`, of no more than so many residues."""
    indices = corpus.indices(Split.VALID)
    indices = indices[corpus.lengths_of(indices) <= longest]
    number = min(count, indices.size)
    return [
        np.asarray(corpus.residues(index)) for index in indices[np.arange(number) * indices.size // number].tolist()
    ]


def ours(recipe: Recipe, corpus: Corpus, validation: Sequence[Residues]) -> Learner:
    """`ProteinLM` with the optimizers of its recipe."""
    model = ProteinLM(recipe.model)
    model.initialize(torch.Generator().manual_seed(recipe.training.seed))
    batches = _batches(recipe, corpus)

    def steps(place: PlanPosition) -> Iterator[tuple[Callable[[], Tensor], int, PlanPosition]]:
        for planned in batches.plan.batches(place):
            batch = batches.batch(planned)

            def loss(batch: Batch = batch) -> Tensor:
                selected = batch.targets != IGNORED
                logits = model(batch.tokens, packing=batch.packing, selected=selected)
                return cross_entropy(logits.float(), batch.targets[selected])

            yield loss, batch.tokens.numel(), planned.next_position

    def validate() -> float:
        tokens = recipe.data.tokens_per_batch
        results = evaluation_log_probabilities(model, validation, tokens_per_batch=tokens)
        return float(np.exp(-np.concatenate([result.log_probabilities for result in results]).mean()))

    training = recipe.training.model_copy(update={"precision": choose(recipe.training.precision, "cpu").precision})
    return Learner(model, build_optimizers(model, training), steps, validate, training.gradient_clip)


def peer(name: str, recipe: Recipe, corpus: Corpus, validation: Sequence[Residues], learning_rate: float) -> Learner:
    """A model of another package with the layers, width and heads of the recipe, trained by AdamW."""
    model, logits = _BUILDERS[name](recipe)
    is_causal = recipe.model.objective is Objective.CAUSAL
    batches, budget = _batches(recipe, corpus), recipe.data.tokens_per_batch

    def steps(place: PlanPosition) -> Iterator[tuple[Callable[[], Tensor], int, PlanPosition]]:
        plan = batches.plan.batches(place)
        while pool := list(islice(plan, POOL)):
            rows = [row for planned in pool for row in _rows(batches.batch(planned))]
            for tokens, targets in padded(rows, budget):

                def loss(tokens: Tensor = tokens, targets: Tensor = targets) -> Tensor:
                    return cross_entropy(logits(tokens).flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

                yield loss, int((tokens != alphabet.PAD).sum()), pool[-1].next_position

    def validate() -> float:
        return padded_perplexity(logits, validation, is_causal=is_causal, budget=budget)

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    return Learner(model, [optimizer], steps, validate, gradient_clip=1.0)


def padded(rows: list[tuple[Tensor, Tensor]], budget: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and targets (B, longest) of rows of similar lengths, B × longest within the budget, in a seeded order."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    groups, group = [], []
    for row in rows:
        if group and (len(group) + 1) * len(row[0]) > budget:
            groups.append(group)
            group = []
        group.append(row)
    groups.append(group)
    Random(len(rows)).shuffle(groups)
    for group in groups:
        tokens, targets = zip(*group, strict=True)
        yield (
            nn.utils.rnn.pad_sequence(list(tokens), batch_first=True, padding_value=alphabet.PAD),
            nn.utils.rnn.pad_sequence(list(targets), batch_first=True, padding_value=IGNORED),
        )


@torch.inference_mode()
def padded_perplexity(logits: Logits, sequences: Sequence[Residues], *, is_causal: bool, budget: int) -> float:
    """As `evaluation_log_probabilities` counts, by a model that takes padded rows."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    ordered = [sequences[number] for number in order]
    sums, count = 0.0, 0
    for members in fill(tokens_of(ordered), budget):
        rows = []
        for sequence in (ordered[number] for number in members):
            positions = np.arange(sequence.size) if is_causal else evaluation_positions(sequence)
            tokens = pack([sequence if is_causal else hide(sequence, positions)])[0][0]
            targets = torch.full_like(tokens, IGNORED)
            targets[positions + (0 if is_causal else 1)] = torch.from_numpy(sequence[positions].astype(np.int64))
            rows.append((tokens, targets))
        for tokens, targets in padded(rows, budget):
            losses = cross_entropy(
                logits(tokens).flatten(0, 1).double(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            sums += float(losses)
            count += int((targets != IGNORED).sum())
    return float(np.exp(sums / count))


def _batches(recipe: Recipe, corpus: Corpus) -> TrainingBatches:
    config = recipe.model
    return TrainingBatches(
        corpus, recipe.data, objective=config.objective, max_length=config.max_length, seed=recipe.training.seed
    )


def _rows(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    lengths = batch.packing.lengths.tolist()
    yield from zip(batch.tokens[0].split(lengths), batch.targets[0].split(lengths), strict=True)


def _size(recipe: Recipe) -> models.Size:
    model = recipe.model
    return models.Size(
        model.max_length,
        model.num_layers,
        model.width,
        model.num_heads,
        model.feedforward_width,
        options_in(model.attention).get("num_features", models.NUM_FEATURES),
    )


def _hugging_face_esm(recipe: Recipe) -> tuple[nn.Module, Logits]:
    model = models.hugging_face_esm(_size(recipe), seed=recipe.training.seed)
    return model, lambda tokens: model(input_ids=tokens, attention_mask=tokens != alphabet.PAD).logits


def _hugging_face_gpt2(recipe: Recipe) -> tuple[nn.Module, Logits]:
    model = models.gpt2(_size(recipe), seed=recipe.training.seed)
    # Padding stands behind the tokens, which do not look there: no mask is needed.
    return model, lambda tokens: model(input_ids=tokens, use_cache=False).logits


def _performer_pytorch(recipe: Recipe) -> tuple[nn.Module, Logits]:
    model = models.performer_pytorch(
        _size(recipe), causal=recipe.model.objective is Objective.CAUSAL, seed=recipe.training.seed
    )
    return model, lambda tokens: model(tokens, mask=tokens != alphabet.PAD)


_BUILDERS = {"hf-esm": _hugging_face_esm, "hf-gpt2": _hugging_face_gpt2, "performer-pytorch": _performer_pytorch}
