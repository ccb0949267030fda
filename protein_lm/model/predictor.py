"""A model with a head: predicts a number or a class for each sequence, or for each of its residues."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm.alphabet import NUM_SPECIAL_TOKENS
from protein_lm.attention.packing import Packing
from protein_lm.choices import Pooling
from protein_lm.config import HeadConfig
from protein_lm.model.language_model import ProteinLM


class PredictionHead(nn.Module):
    """A linear layer on hidden states, and the meaning of its outputs.

    Its weights begin at zero: it first predicts the mean of the training labels, or equal probabilities of all classes.
    """

    label_mean: Tensor
    label_deviation: Tensor

    def __init__(self, config: HeadConfig, width: int, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        """Names of the classes in the order of the outputs; none for numbers."""
        self.linear = nn.Linear(width, len(classes) or 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("label_mean", torch.tensor(0.0))
        self.register_buffer("label_deviation", torch.tensor(1.0))

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        """Outputs (N, C) for the N sequences of a packed row of hidden states (1, L, D), or (R, C) for its R residues.

        Outputs are logits of C classes; or C is 1, for a number in standard deviations from the mean of the training labels.
        """
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 would round predictions to three digits
            return self.linear(self._pooled(hidden.float(), packing))

    def _pooled(self, hidden: Tensor, packing: Packing) -> Tensor:
        if not self.config.task.is_of_residues and self.config.pooling is Pooling.END:
            return hidden[0, packing.boundaries[1:] - 1]
        is_residue = torch.ones(packing.length, dtype=torch.bool)
        is_residue[packing.boundaries[:-1]] = False
        is_residue[packing.boundaries[1:] - 1] = False
        residues = hidden[0, is_residue.to(hidden.device)]
        if self.config.task.is_of_residues:
            return residues
        parts = residues.split((packing.lengths - NUM_SPECIAL_TOKENS).tolist())
        return torch.stack([part.mean(0) for part in parts])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum over outputs (N, C) of the cross-entropy in nats with classes (N,), or of squared errors from numbers (N,)."""
        if self.config.task.is_regression:
            return functional.mse_loss(outputs.squeeze(1).float(), self.standardized(targets), reduction="sum")
        return functional.cross_entropy(outputs.float(), targets, reduction="sum")

    def standardized(self, labels: Tensor) -> Tensor:
        """Numbers (N,) in standard deviations from the mean of the training labels."""
        return ((labels - self.label_mean) / self.label_deviation).float()

    def predictions(self, outputs: Tensor) -> Tensor:
        """Numbers (N,) in the unit of the labels, or probabilities (N, C) of the classes, in float64."""
        if self.config.task.is_regression:
            return outputs.squeeze(1).double() * self.label_deviation.double() + self.label_mean.double()
        return outputs.double().softmax(-1)


class Predictor(nn.Module):
    """A language model and a head on its final hidden states."""

    _no_split_modules = ProteinLM._no_split_modules

    def __init__(self, backbone: ProteinLM, head: PredictionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, tokens: Tensor, *, packing: Packing) -> Tensor:
        """Outputs of the head for a packed row of tokens (1, L) (see `PredictionHead.forward`)."""
        return self.head(self.backbone.hidden_states(tokens, packing=packing), packing)
