"""What a run learns (a task), and the model that learns it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from protein_lm.attention.sequence_parallel import Group, own_span
from protein_lm.batches.labels import LabelTable
from protein_lm.batches.plan import PlanPosition
from protein_lm.checkpoint.base_model import Base
from protein_lm.config import FineTuningRecipe, Recipe
from protein_lm.corpus.corpus import Corpus
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.precision import Choice
from protein_lm.model.predictor import PredictionHead
from protein_lm.training.processes import sum_over_processes, whole_weights


@dataclass(frozen=True)
class TrainedModel:
    """A model in training, as this process holds it."""

    plain: ProteinLM
    """The language model itself."""
    head: PredictionHead | None
    """What is trained on top of it, if there is anything."""
    base: Base | None
    """The model directory of its frozen weights, if it has some."""
    prepared: Any
    """Model and head as Accelerate prepared them: call this to train them."""
    optimizers: list[Any]
    accelerator: Accelerator
    precision: Choice
    group: Group | None
    """The processes that hold each batch together, if batches are shared."""

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a shard of the weights only."""
        return isinstance(self.prepared, FSDPModule)

    def autocast(self) -> AbstractContextManager[None]:
        """Within, matrix products have the type of the run."""
        # Where weights are sharded, copies of them would be kept that FSDP has let go.
        return self.precision.context(self.accelerator.device.type, keeps_copies=not self.is_sharded)

    def whole_weights(self) -> AbstractContextManager[None]:
        """Within, this process has all weights, and may use the model on its own."""
        if not self.is_sharded:
            return nullcontext()
        plugin = cast(FullyShardedDataParallelPlugin, self.accelerator.state.fsdp_plugin)
        return whole_weights(self.prepared, reshard_after_forward=cast(bool, plugin.reshard_after_forward))

    def own_part(self, row: Tensor) -> Tensor:
        """The part of a batch's row (1, L) that this process computes."""
        return row if self.group is None else row[:, own_span(row.shape[1], self.group)]

    def total(self, values: Tensor) -> Tensor:
        """Sums over all processes of values on the CPU."""
        return sum_over_processes(self.accelerator, values)


class Batches(Protocol):
    """The batches of a task, planned and made one by one."""

    def planned(self, position: PlanPosition) -> Iterator[Any]:
        """Plans of all batches from a position in the data on, without end; each has a `next_position`."""
        ...

    def batch(self, planned: Any) -> Any:
        """The tokens and targets of a planned batch, on the CPU."""
        ...


class Task(ABC):
    """What a run learns: its batches, loss and validation, and its facts for logs, checkpoints and cards."""

    recipe: Recipe | FineTuningRecipe
    data: Corpus | LabelTable
    """What it is learned from. Checkpoints hold its `identity`, model cards its `sources`."""
    loss_name: str
    """Name of the loss in metrics and cards."""
    batches: Batches
    num_training_sequences: int
    max_residues: int
    """Residues of the longest sequence that fits the model's window."""
    num_validation_sequences: int
    """Sequences that each validation uses."""
    needs_model: str | None = None
    """Why training must start from an existing model; None if it need not."""

    @abstractmethod
    def count(self, model: TrainedModel, batch: Any) -> tuple[int, int]:
        """How many targets of a batch this process predicts, and how many tokens it computes."""

    @abstractmethod
    def loss(self, model: TrainedModel, batch: Any) -> tuple[Tensor, Tensor]:
        """Sum of the losses of a batch's targets, and how many of them are predicted right."""

    @abstractmethod
    def validate(self, model: TrainedModel) -> dict[str, float | None]:
        """Measures on the validation sequences, `loss_name` among them: the same in all processes."""

    @abstractmethod
    def measures(self, loss: float, accuracy: float) -> dict[str, float]:
        """Mean loss and accuracy of training steps by the names that metrics have for them."""

    @abstractmethod
    def locate_fault(self, model: TrainedModel, batch: Any) -> str:
        """Where the numbers of a batch stop being finite, or `ALL_FINITE`."""

    @abstractmethod
    def description(self) -> list[str]:
        """Lines for the log about the data."""

    def build_head(self, checkpoint: Path | None) -> PredictionHead | None:
        """The head to train on top of the model: that of a checkpoint, or a new one."""
        return None


def evenly_spread(indices: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of some indices, evenly spread over them."""
    number = min(most, indices.size)
    return indices[np.arange(number) * indices.size // number]
