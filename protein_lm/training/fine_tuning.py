"""The task of fine-tuning: predict the labels of sequences or residues with a head on a model."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.batches.labels import LabelledBatch, LabelledBatches, Labels, has_label, read_labels
from protein_lm.checkpoint.weights import read_head
from protein_lm.config import FineTuningRecipe
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError
from protein_lm.inference.predict import agreement, predictions
from protein_lm.model.diagnosis import ALL_FINITE, first_non_finite
from protein_lm.model.predictor import PredictionHead, Predictor
from protein_lm.training.task import Task, TrainedModel, evenly_spread

EVALUATED = (Split.VALID, Split.TEST, Split.HELD_OUT)


class FineTuning(Task):
    """Trains a head on a table of labels, and by the recipe adapters or all weights of the model under it."""

    needs_model = "fine-tuning starts from a model"

    def __init__(self, recipe: FineTuningRecipe, table: Path) -> None:
        """Read the labels and plan batches.

        Raises:
            InputError: as `read_labels`.
            ConfigError: the recipe splits batches over processes; a batch does not hold the longest sequence; or no sequence
                is in the split valid.
        """
        if (together := recipe.training.sequence_parallel) > 1:
            raise ConfigError(f"training.sequence_parallel {together} is for language models; set it to 1 to fine-tune")
        self.recipe, self.head_config = recipe, recipe.head
        self.is_regression = recipe.head.task.is_regression
        self.max_residues = recipe.model.max_length - alphabet.NUM_SPECIAL_TOKENS
        self.data = self.labels = read_labels(table, recipe.head, recipe.data, max_residues=self.max_residues)
        self.loss_name = "squared_error" if self.is_regression else "loss_nats"
        """The squared error is in variances of the training labels."""
        self.batches = LabelledBatches(self.labels, recipe.data.tokens_per_batch, seed=recipe.training.seed)
        self.num_training_sequences = self.labels.indices(Split.TRAIN).size
        indices = self.labels.indices(Split.VALID)
        if not indices.size:
            raise ConfigError(
                f"{table}: no sequence is in the split valid; raise data.valid_fraction, or mark some so in the column split"
            )
        self._validation = evenly_spread(indices, recipe.training.num_validation_sequences)
        self.num_validation_sequences = self._validation.size

    def build_head(self, checkpoint: Path | None) -> PredictionHead:
        width = self.recipe.model.width
        if checkpoint is not None:
            return read_head(checkpoint, width)
        head = PredictionHead(self.head_config, width, self.labels.classes)
        if self.is_regression:
            labels = self.labels.training_labels()
            head.label_mean.fill_(float(labels.mean()))
            head.label_deviation.fill_(float(labels.std()))
        return head

    def count(self, model: TrainedModel, batch: LabelledBatch) -> tuple[int, int]:
        return batch.targets.numel(), batch.tokens.numel()

    def loss(self, model: TrainedModel, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        assert model.head is not None
        with model.autocast():
            outputs = model.prepared(batch.tokens, packing=batch.packing)[batch.labelled]
        loss = model.head.loss(outputs, batch.targets)
        if self.is_regression:
            return loss, torch.zeros_like(loss)
        return loss, (outputs.detach().argmax(-1) == batch.targets).sum()

    def validate(self, model: TrainedModel) -> dict[str, float | None]:
        """Mean loss and agreement over the validation labels. Every process computes all: label tables are small."""
        assert model.head is not None
        with model.autocast(), model.whole_weights():
            values, labels = self._predict(Predictor(model.plain, model.head), self._validation)
        if self.is_regression:
            loss = float(np.mean((values - labels) ** 2)) / float(model.head.label_deviation) ** 2
        else:
            loss = float(-np.log(np.maximum(values[np.arange(labels.size), labels], 1e-300)).mean())
        # All processes must agree which model is the best, though their devices may round differently.
        total = float(model.total(torch.tensor([loss], dtype=torch.float64)))
        measures = agreement(values, labels, is_regression=self.is_regression)
        return {
            self.loss_name: total / model.accelerator.num_processes,
            **{name: None if np.isnan(value) else value for name, value in measures.items()},
        }

    def measures(self, loss: float, accuracy: float) -> dict[str, float]:
        return {self.loss_name: loss} if self.is_regression else {self.loss_name: loss, "accuracy": accuracy}

    def locate_fault(self, model: TrainedModel, batch: LabelledBatch) -> str:
        fault = first_non_finite(model.plain, batch.tokens, packing=batch.packing)
        return "the head's prediction or a gradient" if fault == ALL_FINITE else fault

    def description(self) -> list[str]:
        table, column = self.labels, self.head_config.column
        classes = f"; classes {', '.join(table.classes)}" if table.classes else ""
        lines = [f"{self.head_config.task.value} of the column {column}{classes}"]
        if table.num_unlabelled:
            lines.append(f"{table.num_unlabelled:,} sequences without a label in the column {column}: left out")
        if number := int((~has_label(table.labels)).sum()):
            lines.append(f"{number:,} of {table.labels.size:,} residues have no label and do not count")
        if table.num_long:
            policy = self.recipe.data.long_sequences.value
            lines.append(f"{table.num_long:,} sequences over the window: {policy}")
        return lines

    def evaluate(self, predictor: Predictor) -> pd.DataFrame:
        """Agreement of a model with the labels of each split but training, and that of a baseline without the sequence.

        The baseline predicts the mean of the training labels, or the most frequent class.
        """
        training, rows = self.labels.training_labels(), []
        for split in EVALUATED:
            if not (indices := self.labels.indices(split)).size:
                continue
            values, truth = self._predict(predictor, indices)
            row = {"split": split.label, "sequences": indices.size, "labels": truth.size}
            row |= agreement(values, truth, is_regression=self.is_regression)
            if self.is_regression:
                row["baseline_rmse"] = float(np.sqrt(np.mean((truth - training.mean()) ** 2)))
            else:
                row["baseline_accuracy"] = float((truth == np.bincount(training).argmax()).mean())
            rows.append(row)
        return pd.DataFrame(rows)

    def _predict(self, predictor: Predictor, indices: NDArray[np.int64]) -> tuple[NDArray[np.float64], Labels]:
        """Predictions for some sequences where there are labels, and these labels."""
        sequences = [self.labels.residues[i] for i in indices.tolist()]
        results = predictions(predictor, sequences, tokens_per_batch=self.recipe.data.tokens_per_batch)
        values, labels = np.concatenate(list(results)), self.labels.labels_of(indices)
        known = has_label(labels)
        return values[known], labels[known]
