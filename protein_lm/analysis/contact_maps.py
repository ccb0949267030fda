"""Which residues touch, by the contact head of a model that has one (ESM-2)."""

import numpy as np
import torch
from numpy.typing import NDArray

from protein_lm.analysis.attention_maps import attention_matrices
from protein_lm.data.records import SequenceRecord
from protein_lm.errors import ConfigError
from protein_lm.model.language_model import ProteinLM


@torch.inference_mode()
def contact_probabilities(model: ProteinLM, record: SequenceRecord) -> NDArray[np.float32]:
    """Probabilities (L, L) that two residues of a protein of L residues touch (Cβ within 8 Å); memory grows with L².

    Raises:
        ConfigError: the model has no contact head.
        InputError: the protein is longer than the model's window.
    """
    if model.contact_head is None:
        raise ConfigError("this model has no contact head; ESM-2 converted with its contact regression has one")
    matrices = torch.from_numpy(attention_matrices(model, record)[..., 1:-1, 1:-1]).to(model.device)
    return model.contact_head(matrices).cpu().numpy()
