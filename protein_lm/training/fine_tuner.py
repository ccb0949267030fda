"""Training of a head on labels, and of the model under it, in the loop of `trainer`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.attention.parallel import Group
from protein_lm.batches.labels import LabelledBatch, LabelledBatches, Labels, has_label, read_labels
from protein_lm.checkpoint.base_model import Base
from protein_lm.checkpoint.directory import BEST, load_predictor
from protein_lm.checkpoint.weights import read_head
from protein_lm.config import FineTuningRecipe
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError
from protein_lm.inference.predict import agreement, predictions
from protein_lm.model.diagnosis import ALL_FINITE, first_non_finite
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.predictor import PredictionHead, Predictor
from protein_lm.training.progress import Speed
from protein_lm.training.run_log import RunLog
from protein_lm.training.trainer import Trainer

EVALUATED = (Split.VALID, Split.TEST, Split.HELD_OUT)


class FineTuner(Trainer):
    """Trains a head, and by the recipe adapters or all weights of the model under it, on a table of labels."""

    def __init__(
        self,
        recipe: FineTuningRecipe,
        table: Path,
        run: Path,
        *,
        resume: bool = False,
        initial: str | None = None,
        allowed_changes: Collection[str] = (),
    ) -> None:
        """Read the labels and set up as `Trainer` does.

        Raises:
            InputError: as `read_labels`.
            ProteinLMError: as `Trainer`.
        """
        self.column, self.long_sequences = recipe.head.column, recipe.data.long_sequences
        self.labels = read_labels(table, recipe.head, recipe.data, max_residues=recipe.model.max_length - 2)
        self.task = recipe.head.task
        self._loss_name = "squared_error" if self.task.is_regression else "loss_nats"
        """Of numbers, in variances of the training labels."""
        super().__init__(recipe, self.labels, run, resume=resume, initial=initial, allowed_changes=allowed_changes)

    def evaluation(self) -> pd.DataFrame:
        """How the best model does on each split but training, beside a baseline that sees no sequence.

        For numbers the baseline predicts the mean of the training labels; for classes the most frequent one.
        """
        predictor = load_predictor(self.run / BEST, device=self.accelerator.device.type)
        labels = self.labels.known(self.store.indices(Split.TRAIN))
        rows = []
        for split in EVALUATED:
            if not (indices := self.store.indices(split)).size:
                continue
            values, truth = self._predicted(predictor, indices)
            row = {"split": split.label, "sequences": indices.size, "labels": truth.size}
            row |= agreement(values, truth, is_regression=self.task.is_regression)
            if self.task.is_regression:
                row["baseline_rmse"] = float(np.sqrt(np.mean((truth - labels.mean()) ** 2)))
            else:
                row["baseline_accuracy"] = float((truth == np.bincount(labels).argmax()).mean())
            rows.append(row)
        return pd.DataFrame(rows)

    def _predicted(self, predictor: Predictor, indices: NDArray[np.int64]) -> tuple[NDArray[np.float64], Labels]:
        """What is predicted where there are labels, and these."""
        sequences = [self.store.residues(i) for i in indices.tolist()]
        found = predictions(predictor, sequences, tokens_per_batch=self.recipe.data.tokens_per_batch)
        values, labels = np.concatenate(list(found)), self.labels.of(indices)
        known = has_label(labels)
        return values[known], labels[known]

    def _batches(self) -> LabelledBatches:
        recipe = self.recipe
        return LabelledBatches(
            self.labels,
            recipe.data.tokens_per_batch,
            max_length=recipe.model.max_length,
            seed=recipe.training.seed,
        )

    def _build_model(self, checkpoint: Path | None, initial: str | None) -> tuple[ProteinLM, Base | None]:
        if checkpoint is None and initial is None:
            raise ConfigError("fine-tuning starts from a model; name it with --init")
        model, base = super()._build_model(checkpoint, initial)
        for parameter in model.head_parameters():  # the language model's own head is not used here
            parameter.requires_grad_(False)
        return model, base

    def _build_head(self, checkpoint: Path | None) -> PredictionHead:
        recipe = self.recipe
        assert isinstance(recipe, FineTuningRecipe)
        if checkpoint is not None:
            return read_head(checkpoint, recipe.model.width)
        head = PredictionHead(recipe.head, recipe.model.width, self.labels.classes)
        if self.task.is_regression:
            mean, deviation = self.labels.training_statistics()
            head.label_mean.fill_(mean)
            head.label_deviation.fill_(deviation)
        return head

    def _group_of_rows(self, model: ProteinLM) -> Group | None:
        if (together := self.recipe.training.sequence_parallel) > 1:
            raise ConfigError(f"training.sequence_parallel {together} is for language models; set it to 1 to fine-tune")
        return None

    def _validation_sequences(self) -> list[Any]:
        indices = self.store.indices(Split.VALID)
        if not indices.size:
            raise ConfigError(
                f"{self.store.path}: no sequence is in the split valid; raise data.valid_fraction, or mark some so in the "
                "column split"
            )
        number = min(self.recipe.training.num_validation_sequences, indices.size)
        return indices[np.arange(number) * indices.size // number].tolist()

    def _count(self, batch: LabelledBatch) -> tuple[int, int]:
        return batch.targets.numel(), batch.tokens.numel()

    def _loss(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        assert self.head is not None
        with self._autocast():
            outputs = self.model(batch.tokens, packing=batch.packing)[batch.labelled]
        loss = self.head.loss(outputs, batch.targets)
        if self.task.is_regression:
            return loss, torch.zeros_like(loss)
        return loss, (outputs.detach().argmax(-1) == batch.targets).sum()

    def _validate(self, log: RunLog) -> float:
        """Mean loss over the validation labels. Every process computes all of it: label tables are small."""
        assert self.head is not None
        self.model.eval()
        predictor = Predictor(self.plain_model, self.head)
        with self._autocast(), self._whole_weights():
            values, labels = self._predicted(predictor, np.array(self.validation))
        if self.task.is_regression:
            loss = float(np.mean((values - labels) ** 2)) / float(self.head.label_deviation) ** 2
        else:
            loss = float(-np.log(np.maximum(values[np.arange(labels.size), labels], 1e-300)).mean())
        # Processes decide alike what is the best model, though rounding may differ between their devices.
        loss = (
            float(self._sum_over_processes(torch.tensor([loss], dtype=torch.float64))) / self.accelerator.num_processes
        )
        measures = agreement(values, labels, is_regression=self.task.is_regression)
        log.row(
            step=self.progress.step,
            split="valid",
            epoch=self.progress.epoch,
            num_tokens=self.progress.num_tokens,
            seconds=self.progress.seconds,
            **{self._loss_name: loss},
            **{name: None if np.isnan(value) else value for name, value in measures.items()},
        )
        return loss

    def _place_of_fault(self, batch: LabelledBatch) -> str:
        place = first_non_finite(self.plain_model, batch.tokens, packing=batch.packing)
        return "the head's prediction or a gradient" if place == ALL_FINITE else place

    def _facts(self, speed: Speed) -> dict[str, float]:
        facts = super()._facts(speed)
        facts.pop("perplexity", None)
        if self.task.is_regression and "loss_nats" in facts:
            del facts["accuracy"]
            return {self._loss_name: facts.pop("loss_nats"), **facts}
        return facts

    def _describe(self, log: RunLog) -> None:
        super()._describe(log)
        classes = f"; classes {', '.join(self.labels.classes)}" if self.labels.classes else ""
        log.line(f"{self.task.value} of the column {self.column}{classes}")
        if number := self.labels.num_unlabelled:
            log.line(f"{number:,} sequences without a label in the column {self.column}: left out")
        if number := int((~has_label(self.labels.labels)).sum()):
            log.line(f"{number:,} of {self.labels.labels.size:,} residues have no label and do not count")
        if number := self.labels.num_long:
            log.line(f"{number:,} sequences over the window: {self.long_sequences.value}")
