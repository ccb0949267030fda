"""Models in Python: open one, ask it about proteins. Found as `protein_lm.load`, `protein_lm.score` and so on too.

Proteins are given as one string, several strings, a mapping of names to strings, or a sequence file: a `pathlib.Path`,
or a string with a dot or a slash in it. Those without a name are called 1, 2, 3 and so on.

>>> import protein_lm
>>> model = protein_lm.load("checkpoints/tiny-causal", device="cpu")
>>> model.config.attention.value, model.is_causal
('performer-relu', True)
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from protein_lm.alphabet import ResiduePolicy
from protein_lm.analysis.attention_maps import attention_matrices
from protein_lm.analysis.similarity import pair_attention
from protein_lm.checkpoint import load_model, load_predictor
from protein_lm.data.readers import read_records
from protein_lm.data.records import SequenceRecord
from protein_lm.data.residues import clean, encode_letters, first_illegal
from protein_lm.errors import InputError
from protein_lm.inference.predict import prediction_table
from protein_lm.inference.score import check_length
from protein_lm.inference.score import score as score_records
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.predictor import Predictor

__all__ = ["Proteins", "attention_maps", "load", "load_predictor", "predict", "records", "score", "similarity"]

Proteins = str | Path | Sequence[str] | Mapping[str, str]


def load(name: str | Path, *, device: str = "auto") -> ProteinLM:
    """Open a model: a model directory, a run directory (its best model), or org/model[@revision] on the Hugging Face Hub.

    Args:
        name: which model.
        device: cpu, cuda, mps; auto is the first accelerator there is, or the CPU.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    return load_model(name, device=device)


def score(model: ProteinLM, proteins: Proteins, *, tokens_per_batch: int = 8192) -> pd.DataFrame:
    """How probable a model finds each protein: one row each, in order.

    Columns: sequence_id, length, and log_likelihood (nats), mean_log_likelihood, perplexity of a causal model; a masked
    model has pseudo_log_likelihood and so on, see `protein_lm.inference.score`.

    Raises:
        InputError: a protein is no protein, or longer than the model's window.

    >>> model = load("checkpoints/tiny-causal", device="cpu")
    >>> table = score(model, {"insulin B": "FVNQHLCGSHLVEALYLVCGERGFFYTPKT", "oxytocin": "CYIQNCPLG"})
    >>> table.columns.tolist()
    ['sequence_id', 'length', 'log_likelihood', 'mean_log_likelihood', 'perplexity']
    >>> table["sequence_id"].tolist(), table["length"].tolist()
    (['insulin B', 'oxytocin'], [30, 9])
    """
    return score_records(model, records(proteins), tokens_per_batch=tokens_per_batch)


def predict(predictor: Predictor, proteins: Proteins, *, tokens_per_batch: int = 8192) -> pd.DataFrame:
    """What a model made by `protein-lm finetune`, opened with `load_predictor`, predicts: a row per protein or per residue.

    Raises:
        InputError: a protein is no protein, or longer than the model's window.

    >>> from protein_lm.config import HeadConfig
    >>> from protein_lm.model.predictor import PredictionHead
    >>> model = load("checkpoints/tiny-masked", device="cpu")
    >>> head = PredictionHead(HeadConfig(task="regression"), model.config.width)
    >>> predict(Predictor(model, head).eval(), ["MKTAYIAK", "GSSGSSG"])["prediction"].tolist()  # a head before its training
    [0.0, 0.0]
    """
    chosen = list(records(proteins))
    for record in chosen:
        check_length(record, predictor.backbone)
    names, residues = [record.sequence_id for record in chosen], [record.tokens for record in chosen]
    return prediction_table(predictor, names, residues, tokens_per_batch=tokens_per_batch)


def attention_maps(
    model: ProteinLM, proteins: Proteins, *, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """By the name of each protein its attention matrices (layers, heads, L + 2, L + 2), <cls> first and <eos> last.

    Rows are what attends. Layers and heads count from 0; None stands for all of them.

    Raises:
        InputError: a protein is no protein, or longer than the model's window.
        ConfigError: a layer or head that the model does not have.

    >>> model = load("checkpoints/tiny-causal", device="cpu")
    >>> matrices = attention_maps(model, "FVNQHLCGSHLVEALYLVCGERGFFYTPKT")["1"]
    >>> matrices.shape
    torch.Size([2, 4, 32, 32])
    >>> bool(torch.allclose(matrices.sum(-1), torch.ones(2, 4, 32)))
    True
    """
    return {
        record.sequence_id: torch.from_numpy(attention_matrices(model, record, layers=layers, heads=heads))
        for record in records(proteins)
    }


def similarity(model: ProteinLM, proteins: Proteins, *, tokens_per_batch: int = 8192) -> pd.DataFrame:
    """Amino acids (20 × 20) that the same heads look at: correlation over heads of the attention that each receives.

    Give many proteins; `protein_lm.analysis.similarity` has more measures and the comparison with BLOSUM62.

    Raises:
        InputError: a protein is no protein, or longer than the model's window.

    >>> model = load("checkpoints/tiny-masked", device="cpu")
    >>> table = similarity(model, "data/P00974.fasta")
    >>> table.shape, bool(abs(table.loc["D", "E"] - table.loc["E", "D"]) < 1e-9)
    ((20, 20), True)
    """
    chosen = list(records(proteins))
    for record in chosen:
        check_length(record, model)
    return pair_attention(model, [record.tokens for record in chosen], tokens_per_batch=tokens_per_batch).similarity()


class _Named(SequenceRecord):
    """A protein whose header is its name, whatever that looks like."""

    __slots__ = ()

    @property
    def sequence_id(self) -> str:
        return self.header


def records(proteins: Proteins) -> Iterator[SequenceRecord]:
    """One record for each protein, letters treated as in sequence files.

    Raises:
        InputError: a string that is no protein sequence, or a file that cannot be read.

    >>> [(record.sequence_id, record.sequence) for record in records(["MKT", "mk-j*"])]
    [('1', 'MKT'), ('2', 'MKX')]
    """
    if isinstance(proteins, Path) or (isinstance(proteins, str) and _looks_like_a_path(proteins)):
        return read_records(Path(proteins))
    if isinstance(proteins, str):
        proteins = [proteins]
    if not isinstance(proteins, Mapping):
        proteins = {str(number): text for number, text in enumerate(proteins, 1)}
    return (_record(name, text, number) for number, (name, text) in enumerate(proteins.items(), 1))


def _looks_like_a_path(text: str) -> bool:
    return any(character in text for character in "./\\")


def _record(name: str, text: str, number: int) -> SequenceRecord:
    if _looks_like_a_path(text):
        raise InputError(f"sequence {name}: {text!r} is no protein but a path; give it alone, not among sequences")
    letters = text.encode("ascii", "replace")
    codes = encode_letters(letters)
    residues = clean(codes, np.array([len(codes)]), ResiduePolicy.KEEP)
    if residues.is_illegal[0]:
        position = first_illegal(letters)
        raise InputError(f"sequence {name}: {text[position]!r} at position {position + 1} is not a residue letter")
    if not residues.tokens:
        raise InputError(f"sequence {name} has no residues")
    return _Named(name, np.frombuffer(residues.tokens, dtype=np.uint8), number)
