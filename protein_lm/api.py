"""The Python interface: open a model, and use it on proteins. The functions are also `protein_lm.load` and so on.

Proteins are given as one string, several strings, a mapping of names to strings, or a sequence file. A file is a
`pathlib.Path`, or a string with a dot or a slash. Proteins without a name are called 1, 2, 3 and so on. Identifiers within a
file must differ. Layers and heads are numbered from 1; layer 0 is the embedding.

>>> import protein_lm
>>> model = protein_lm.load("checkpoints/tiny-causal", device="cpu")
>>> model.config.attention_name, model.is_causal
('performer-relu', True)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from protein_lm.alphabet import decode
from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.analysis.pair_attention import pair_attention
from protein_lm.analysis.similarity import correlation_over_heads, frame
from protein_lm.analysis.variants import REASON, scan, scored, within_window
from protein_lm.checkpoint.directory import load_model, load_predictor
from protein_lm.choices import Precision, VariantStrategy
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.embed import embed as embeddings
from protein_lm.inference.generate import Generator, read_prefixes
from protein_lm.inference.predict import prediction_table
from protein_lm.inference.sampling import Sampling
from protein_lm.inference.score import check_length
from protein_lm.inference.score import score as score_records
from protein_lm.inference.variants import Scoring, choose_strategy
from protein_lm.io.proteins import Proteins, records
from protein_lm.io.records import SequenceRecord
from protein_lm.io.variants.variant_table import MUTANT, check_first_residue, parse_variants
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.predictor import Predictor

if TYPE_CHECKING:
    from protein_lm.viewer.widget import AttentionViewer

__all__ = [
    "ProteinLM",
    "Proteins",
    "attention_maps",
    "attention_viewer",
    "embed",
    "generate",
    "load",
    "load_predictor",
    "predict",
    "records",
    "score",
    "similarity",
    "variants",
]


def load(name: str | Path, *, device: str = "auto") -> ProteinLM:
    """Open a model: a model directory, a run directory (its best model), or org/model[@revision] on the Hugging Face Hub.

    Args:
        name: the model.
        device: cpu, cuda, mps, or auto: the first accelerator, or the CPU if there is none.

    Raises:
        ModelError: the model does not exist or is damaged.
    """
    return load_model(name, device=device)


def score(model: ProteinLM, proteins: Proteins, *, tokens_per_batch: int = 8192) -> pd.DataFrame:
    """Score proteins: a row for each, in order.

    Columns: sequence_id, length, and of a causal model log_likelihood (nats), mean_log_likelihood and perplexity. Those of a
    masked model are pseudo_log_likelihood and so on; `protein_lm.inference.score` defines them.

    Args:
        model: the model.
        proteins: the proteins.
        tokens_per_batch: tokens computed at once, memory against speed; results do not depend on it.

    Raises:
        InputError: a sequence is no protein, or longer than the model's window.

    >>> model = load("checkpoints/tiny-causal", device="cpu")
    >>> table = score(model, {"insulin B": "FVNQHLCGSHLVEALYLVCGERGFFYTPKT", "oxytocin": "CYIQNCPLG"})
    >>> table.columns.tolist()
    ['sequence_id', 'length', 'log_likelihood', 'mean_log_likelihood', 'perplexity']
    >>> table["sequence_id"].tolist(), table["length"].tolist()
    (['insulin B', 'oxytocin'], [30, 9])
    """
    return score_records(model, records(proteins), tokens_per_batch=tokens_per_batch)


def embed(
    model: ProteinLM,
    proteins: Proteins,
    *,
    layer: int | None = None,
    per_residue: bool = False,
    tokens_per_batch: int = 2048,
) -> dict[str, Tensor]:
    """Embed proteins.

    Args:
        model: the model.
        proteins: the proteins.
        layer: 0 is the embedding, n the output of layer n; that of the last layer, None, has the final norm.
        per_residue: return the embedding of each residue instead of the mean.
        tokens_per_batch: tokens computed at once, memory against speed; results do not depend on it.

    Returns:
        For each name the mean over residues (D,), or the embedding of each residue (L, D).

    Raises:
        InputError: a sequence is no protein, or longer than the model's window.
        ConfigError: a layer that the model does not have.

    >>> model = load("checkpoints/tiny-masked", device="cpu")
    >>> embed(model, {"oxytocin": "CYIQNCPLG"})["oxytocin"].shape
    torch.Size([128])
    >>> embed(model, "CYIQNCPLG", layer=1, per_residue=True)["1"].shape
    torch.Size([9, 128])
    """
    chosen = _within_window(model, proteins)
    layers = None if layer is None else [layer]
    rows = embeddings(model, [record.tokens for record in chosen], layers=layers, tokens_per_batch=tokens_per_batch)
    return {
        record.sequence_id: row[0] if per_residue else row[0].mean(0) for record, row in zip(chosen, rows, strict=True)
    }


def variants(
    model: ProteinLM,
    wild_type: Proteins,
    mutants: Sequence[str] | None = None,
    *,
    strategy: str | None = None,
    first_residue: int = 1,
    tokens_per_batch: int = 2048,
    precision: str = "auto",
) -> pd.DataFrame:
    """Score variants of a protein: how much a model prefers them to the wild type, in nats. Columns: mutant, score.

    Variants of a protein over the model's window are scored in windows around their changes.

    Args:
        model: the model.
        wild_type: one protein.
        mutants: names such as A42G, p.Ala42Gly, or A42G:C50D for several changes; None: all 19 substitutions of all residues.
        strategy: masked-marginals (default), additive-marginals, wt-marginals or pseudo-ppl of a masked model;
            log-likelihood of a causal one.
        first_residue: number of the first residue.
        tokens_per_batch: tokens computed at once, memory against speed; results do not depend on it.
        precision: precision of matrix products: float32, bfloat16, or auto, the faster one on the model's device.

    Raises:
        InputError: not one protein, or a mutant that it cannot have or that fits no window.
        ConfigError: a strategy that the model cannot use, an unknown precision, or a number of over nine digits.

    >>> model = load("checkpoints/tiny-masked", device="cpu")
    >>> variants(model, "CYIQNCPLG", ["Y2F", "Y2F:L8I"]).columns.tolist()
    ['mutant', 'score']
    >>> len(variants(model, "CYIQNCPLG"))
    171
    """
    check_first_residue(first_residue)
    given = list(records(wild_type))
    if len(given) != 1:
        raise InputError(f"variants have one wild type; {len(given)} proteins were given")
    wanted = None if strategy is None else _choice("strategy", VariantStrategy, strategy)
    scoring = Scoring(choose_strategy(model, wanted), tokens_per_batch, _choice("precision", Precision, precision))
    if mutants is None:
        return scan(model, given[0], scoring, first_residue=first_residue)[0]
    frame = pd.DataFrame({MUTANT: list(mutants)})
    table = parse_variants(frame, given[0], first_residue=first_residue)
    table = within_window(table, scoring, longest=model.max_residues)
    for mutant, reason in zip(mutants, table.reasons, strict=True):
        if reason:
            raise InputError(f"{mutant}: {reason}")
    return scored(model, table, scoring).drop(columns=REASON)


def generate(
    model: ProteinLM,
    number: int = 1,
    *,
    prefix: Proteins = "",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    min_length: int = 1,
    max_length: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Generate proteins: sequence_id, sequence, length, log_likelihood (nats), perplexity, is_finished.

    Args:
        model: a causal model.
        number: number of proteins, for each prefix.
        prefix: start of the proteins; several prefixes give their names to their proteins.
        temperature: below 1 sharper, above 1 more diverse; 0 takes the most probable residue.
        top_k: draw from so many most probable residues; 0: from all.
        top_p: draw from the most probable residues that together reach this probability.
        repetition_penalty: factor of the log-probabilities of residues that were drawn just before.
        min_length: least length, in residues.
        max_length: length in residues at which a protein stops, unfinished; None: the model's window.
        batch_size: proteins computed at once; results do not depend on it.
        seed: seed of the random numbers; the same seed gives the same proteins.

    Raises:
        ConfigError: a masked model, or a value out of range.
        InputError: a prefix that is no protein.

    >>> model = load("checkpoints/tiny-causal", device="cpu")
    >>> table = generate(model, 2, prefix="MKT", max_length=20, seed=1)
    >>> [text[:3] for text in table["sequence"]], bool((table["length"] <= 20).all())
    (['MKT', 'MKT'], True)
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
    generator = Generator(
        model, sampling=sampling, min_length=min_length, max_length=max_length, batch_size=batch_size, seed=seed
    )
    rows = [
        {
            "sequence_id": drawn.sequence_id,
            "sequence": decode(drawn.residues),
            "length": drawn.residues.size,
            "log_likelihood": drawn.log_likelihood,
            "perplexity": float(np.exp(-drawn.log_likelihood / drawn.residues.size)),
            "is_finished": drawn.is_finished,
        }
        for drawn in generator.generate(number, read_prefixes(prefix))
    ]
    return pd.DataFrame(rows)


def predict(predictor: Predictor, proteins: Proteins, *, tokens_per_batch: int = 8192) -> pd.DataFrame:
    """Predict labels: a row for each protein, or for each residue.

    Args:
        predictor: a model made by `protein-lm finetune`, opened with `load_predictor`.
        proteins: the proteins.
        tokens_per_batch: tokens computed at once, memory against speed; results do not depend on it.

    Raises:
        InputError: a sequence is no protein, or longer than the model's window.

    >>> from protein_lm.config import HeadConfig
    >>> from protein_lm.model.predictor import PredictionHead
    >>> model = load("checkpoints/tiny-masked", device="cpu")
    >>> head = PredictionHead(HeadConfig(task="regression"), model.config.width)
    >>> predict(Predictor(model, head).eval(), ["MKTAYIAK", "GSSGSSG"])["prediction"].tolist()  # a head before its training
    [0.0, 0.0]
    """
    chosen = _within_window(predictor.backbone, proteins)
    names, residues = [record.sequence_id for record in chosen], [record.tokens for record in chosen]
    return prediction_table(predictor, names, residues, tokens_per_batch=tokens_per_batch)


def attention_maps(
    model: ProteinLM, proteins: Proteins, *, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Return for each name the attention matrices (layers, heads, L + 2, L + 2): rows attend, <cls> is first, <eos> last.

    Args:
        model: the model.
        proteins: the proteins.
        layers: layers to return, from 1; None for all.
        heads: heads to return, from 1; None for all.

    Raises:
        InputError: a sequence is no protein, or longer than the model's window.
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


def attention_viewer(
    model: ProteinLM,
    proteins: Proteins,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    structure: str | None = None,
) -> "AttentionViewer":
    """Return an interactive notebook widget of the attention of one protein, as the page of `protein-lm attention --html`.

    Args:
        model: the model.
        proteins: one protein.
        layers: layers to show, from 1; None for all.
        heads: heads to show, from 1; None for all.
        structure: `FILE` or `FILE:CHAIN`, PDB or mmCIF, to colour by attention.

    Raises:
        InputError: not one protein, or one that is longer than the model's window; a structure that cannot be read, or
            belongs to another protein.
        ConfigError: a layer or head that the model does not have; anywidget is not installed.
    """
    try:
        from protein_lm.viewer import widget
    except ModuleNotFoundError as error:
        raise ConfigError(f"the viewer needs {error.name}, which is not installed (pip install anywidget)") from error
    given = list(records(proteins))
    if len(given) != 1:
        raise InputError(f"the viewer shows one protein; {len(given)} were given")
    return widget.attention_viewer(model, given[0], layers=layers, heads=heads, structure=structure)


def similarity(model: ProteinLM, proteins: Proteins, *, tokens_per_batch: int = 8192) -> pd.DataFrame:
    """Return the similarity of amino acids (20 × 20): the correlation over heads of the attention that each receives.

    It needs many proteins. `protein_lm.analysis.similarity` has more measures, `protein_lm.analysis.substitution` the
    comparison with BLOSUM62.

    Args:
        model: the model.
        proteins: the proteins.
        tokens_per_batch: tokens computed at once, memory against speed; results do not depend on it.

    Raises:
        InputError: a sequence is no protein, or longer than the model's window.

    >>> model = load("checkpoints/tiny-masked", device="cpu")
    >>> table = similarity(model, "data/P00974.fasta")
    >>> table.shape, bool(abs(table.loc["D", "E"] - table.loc["E", "D"]) < 1e-9)
    ((20, 20), True)
    """
    chosen = _within_window(model, proteins)
    sums = pair_attention(model, [record.tokens for record in chosen], tokens_per_batch=tokens_per_batch)
    return frame(correlation_over_heads(sums))


_Choice = TypeVar("_Choice", VariantStrategy, Precision)


def _choice(what: str, names: type[_Choice], given: str) -> _Choice:
    try:
        return names(given)
    except ValueError:
        raise ConfigError(f"unknown {what} {given!r}; choose {', '.join(each.value for each in names)}") from None


def _within_window(model: ProteinLM, proteins: Proteins) -> list[SequenceRecord]:
    chosen = list(records(proteins))
    for record in chosen:
        check_length(record, model)
    return chosen
