"""The task of language modelling: predict the residues of a corpus."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from protein_lm.batches.packed_batches import IGNORED, Batch, TrainingBatches
from protein_lm.choices import TrainingLongPolicy
from protein_lm.config import Recipe
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError
from protein_lm.inference.likelihood import ResidueLogProbabilities, evaluation_log_probabilities
from protein_lm.inference.unigram import unigram_log_probabilities, unigram_results
from protein_lm.model.diagnosis import ALL_FINITE, first_non_finite, last_non_finite_gradient
from protein_lm.training.progress import perplexity
from protein_lm.training.task import Task, TrainedModel, evenly_spread

UNIGRAM_SEQUENCES = 20_000
"""Training sequences whose residues the unigram baseline counts: enough for three digits of its perplexity."""
_LONG_SEQUENCES_ARE = {
    TrainingLongPolicy.CROP: "cropped at a random position",
    TrainingLongPolicy.WINDOW: "cut into windows",
    TrainingLongPolicy.DROP: "left out",
}


class LanguageModelling(Task):
    """Predicts the next residue (causal models) or hidden residues (masked models) of a corpus."""

    loss_name = "loss_nats"

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        """Plan batches and choose validation sequences.

        Raises:
            InputError: as `TrainingPlan`.
            ConfigError: as `TrainingPlan`; or no validation sequence fits the model's window.
        """
        self.recipe = recipe
        self.data = self._corpus = corpus
        self._long_sequences = recipe.data.long_sequences
        self.batches = TrainingBatches(
            corpus,
            recipe.data,
            objective=recipe.model.objective,
            max_length=recipe.model.max_length,
            seed=recipe.training.seed,
        )
        self.plan = self.batches.plan
        self.num_training_sequences, self.max_residues = self.plan.num_sequences, self.plan.max_residues
        self._validation = self._validation_sequences()
        self.num_validation_sequences = len(self._validation)
        if recipe.training.lora_rank:
            self.needs_model = "training.lora_rank trains adapters of an existing model"

    def _validation_sequences(self) -> list[NDArray[np.uint8]]:
        corpus = self._corpus
        indices = corpus.indices(Split.VALID)
        indices = indices[corpus.lengths_of(indices) <= self.max_residues]
        if not indices.size:
            raise ConfigError(
                f"{corpus.path}: the split valid has no sequence of {self.max_residues} residues or less; prepare the "
                "corpus with a larger --valid-fraction"
            )
        chosen = evenly_spread(indices, self.recipe.training.num_validation_sequences)
        return [corpus.residues(i) for i in chosen.tolist()]

    def count(self, model: TrainedModel, batch: Batch) -> tuple[int, int]:
        targets = model.own_part(batch.targets)
        return int((targets != IGNORED).sum()), targets.numel()

    def loss(self, model: TrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        selected = batch.targets != IGNORED
        targets = model.own_part(batch.targets)[model.own_part(selected)]
        with model.autocast():
            logits = model.prepared(batch.tokens, packing=batch.packing, selected=selected, group=model.group)
        loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
        return loss, (logits.detach().argmax(-1) == targets).sum()

    @cached_property
    def _unigram(self) -> NDArray[np.float64]:
        """Log-frequencies (V,) of the baseline."""
        return unigram_log_probabilities(self._corpus, max_sequences=UNIGRAM_SEQUENCES)

    def validate(self, model: TrainedModel) -> dict[str, float | None]:
        """Means over the validation residues, which the processes share out."""
        mine = self._validation[model.accelerator.process_index :: model.accelerator.num_processes]
        tokens_per_batch = self.recipe.data.tokens_per_batch
        with model.autocast(), model.whole_weights():
            results = evaluation_log_probabilities(model.plain, mine, tokens_per_batch=tokens_per_batch)
        unigram = unigram_results(self._unigram, mine, is_causal=model.plain.is_causal)
        loss, accuracy = _mean_over_residues(model, results)
        unigram_loss, unigram_accuracy = _mean_over_residues(model, unigram)
        return {
            **self.measures(loss, accuracy),
            "unigram_perplexity": perplexity(unigram_loss),
            "unigram_accuracy": unigram_accuracy,
        }

    def measures(self, loss: float, accuracy: float) -> dict[str, float]:
        return {"loss_nats": loss, "perplexity": perplexity(loss), "accuracy": accuracy}

    def locate_fault(self, model: TrainedModel, batch: Batch) -> str:
        fault = first_non_finite(model.plain, batch.tokens, packing=batch.packing)
        if fault == ALL_FINITE:
            fault = last_non_finite_gradient(model.plain, batch.tokens, batch.targets, batch.packing)
        return fault

    def description(self) -> list[str]:
        if self.plan.concatenates:
            return [f"sequences are concatenated and cut into windows of {self.recipe.model.max_length:,} tokens"]
        if not self.plan.num_too_long:
            return []
        fate = _LONG_SEQUENCES_ARE[self._long_sequences]
        return [f"{self.plan.num_too_long:,} sequences of over {self.max_residues:,} residues are {fate}"]


def _mean_over_residues(model: TrainedModel, results: list[ResidueLogProbabilities]) -> tuple[float, float]:
    """Loss in nats and accuracy, over the residues of all processes."""
    sums = torch.zeros(3, dtype=torch.float64)
    for result in results:
        sums += torch.tensor([-result.log_probabilities.sum(), result.correct.sum(), result.correct.size])
    loss, correct, count = model.total(sums).tolist()
    return loss / count, correct / count
