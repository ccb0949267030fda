"""Contacts of residues from attention: logistic regression on symmetrized, APC-corrected attention.

Residues are in contact if their Cβ (of glycine Cα) are less than 8 Å apart. The features of a pair are its weights in all
heads of all layers; for linear attention, those of the matrices that it implies. Unlike the paper, each feature is divided by
its standard deviation over the training pairs. Otherwise the penalty would remove heads of weak attention first.

Source: Rao et al. 2021 (Transformer protein language models are unsupervised structure learners, ICLR), section 3.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import expit

from protein_lm import alphabet
from protein_lm.analysis.attention.forms import Matrices, Region
from protein_lm.analysis.attention.maps import LayerCall, chosen_heads, chosen_layers, visit_layers
from protein_lm.checkpoint.weights import model_checksum
from protein_lm.errors import ConfigError, InputError, ModelError
from protein_lm.files.plain_files import read_json
from protein_lm.inference.score import check_length
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.chains import Chain
from protein_lm.model.language_model import ProteinLM

CONTACT_DISTANCE = 8.0
"""Distance in Å below which residues are in contact."""
MIN_SEPARATION = 6
"""Least |i - j| of the pairs that are trained on."""
SEPARATIONS = (6, 24)
"""Values of the least |i - j| for which precision is measured."""
MAX_BYTES = 4 * 2**30
"""Most memory that the features of all training pairs, or the maps of a layer, may take."""
_FORMAT = 1


@dataclass(frozen=True)
class Regression:
    """A regression: weights of the heads, and the data that it was trained on."""

    weights: list[list[float]]
    """(layers, heads) weights of features that are not scaled."""
    intercept: float
    model_checksum: str
    """Checksum of the weights of the model that it was trained for."""
    penalty: float
    structures: list[str]
    num_pairs: int
    num_contacts: int

    @property
    def num_heads_used(self) -> int:
        """Number of heads whose weight is not 0."""
        return int(np.count_nonzero(self.weights))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps({"format": _FORMAT} | asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def of(cls, model: ProteinLM) -> "Regression":
        """Return the regression of a model that has one of its own, as ESM-2 has.

        Raises:
            ConfigError: the model has none.
        """
        if model.contact_head is None:
            raise ConfigError(
                "this model has no contact head, as ESM-2 with its contact regression has; train a regression with "
                "protein-lm contacts train, and name it with --regression"
            )
        head, shape = model.contact_head.regression, (model.config.num_layers, model.config.num_heads)
        weights = head.weight.double().view(shape).tolist()
        return cls(weights, float(head.bias), model_checksum(model, with_settings=False), 0.0, [], 0, 0)

    @classmethod
    def load(cls, path: Path, model: ProteinLM) -> "Regression":
        """Read the regression of a model.

        Raises:
            InputError: the file is missing or is no regression.
            ModelError: it was trained for another model.
        """
        try:
            fields = read_json(path)
            if fields.pop("format") != _FORMAT:
                raise ValueError
            regression = cls(**fields)
            shape = np.array(regression.weights, dtype=float).shape
            float(regression.intercept)
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; make it with protein-lm contacts train") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no contact regression; make one with protein-lm contacts train") from error
        expected = model.config.num_layers, model.config.num_heads
        if shape != expected or regression.model_checksum != model_checksum(model, with_settings=False):
            raise ModelError(
                f"{path} was trained for another model; train one for this model with protein-lm contacts train"
            )
        return regression


def corrected(matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Symmetrize (heads, L, L) and correct for the average product: a_ij - a_i· a_·j / a_··.

    Source: Dunn et al. 2008 (doi 10.1093/bioinformatics/btm604).
    """
    symmetric = matrices + matrices.swapaxes(1, 2)
    sums = symmetric.sum(2)
    totals = sums.sum(1)[:, None, None]
    return symmetric - sums[:, :, None] * sums[:, None, :] / np.where(totals == 0, 1, totals)


def _visit_features(
    model: ProteinLM, record: SequenceRecord, visit: Callable[[int, NDArray[np.float32]], None]
) -> None:
    """Show the features (heads, L, L) of each layer to `visit`, with the layer's index."""
    _check_memory(model, record)
    residues, tokens = slice(1, len(record) + 1), slice(0, len(record) + alphabet.NUM_SPECIAL_TOKENS)
    layers, heads = chosen_layers(model, None), chosen_heads(model, None)

    def show(slot: int, call: LayerCall) -> None:
        matrices = Matrices(Region(residues, residues), 1, len(heads))
        call.show([matrices], 0, heads, tokens)
        visit(slot, corrected(matrices.values[0]))

    visit_layers(model, record, show, layers=layers)


def _check_memory(model: ProteinLM, record: SequenceRecord) -> None:
    num_bytes = 12 * model.config.num_heads * len(record) ** 2  # matrices, symmetrized, corrected
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"sequence {record.sequence_id}: maps of {len(record):,} residues take {num_bytes / 2**30:.1f} GiB, over the "
            f"limit of {MAX_BYTES / 2**30:.0f}; give its domains one by one"
        )


def distances(chain: Chain) -> NDArray[np.float64]:
    """Return the distances (L, L) between residues in Å; NaN if one was not seen."""
    return np.asarray(cdist(chain.points, chain.points), dtype=np.float64)


def _known_pairs(between: NDArray[np.float64], separation: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the pairs i < j of residues that were seen, with j - i at least `separation`."""
    first, second = np.triu_indices(len(between), separation)
    known = ~np.isnan(between[first, second])
    return first[known], second[known]


def train_regression(
    model: ProteinLM, examples: Sequence[tuple[SequenceRecord, Chain]], *, penalty: float
) -> Regression:
    """Fit the weights of all heads to the pairs of residues 6 or more apart of some structures.

    Args:
        model: any model.
        examples: proteins, and chains of the same sequence.
        penalty: factor of the sum of absolute (scaled) weights, added to the sum over pairs of the loss in nats.

    Raises:
        InputError: a protein is longer than the model's window, features would take too much memory, or no pair or all are
            in contact.
    """
    for record, _ in examples:
        check_length(record, model)
    pairs = [_known_pairs(distances(chain), MIN_SEPARATION) for _, chain in examples]
    num_pairs = sum(first.size for first, _ in pairs)
    shape = model.config.num_layers, model.config.num_heads
    if 4 * num_pairs * shape[0] * shape[1] > MAX_BYTES:
        raise InputError(
            f"{num_pairs:,} pairs of residues in {shape[0] * shape[1]} heads take over {MAX_BYTES / 2**30:.0f} GiB; train on "
            "fewer or smaller structures"
        )
    is_contact = np.concatenate(
        [distances(chain)[ij] < CONTACT_DISTANCE for (_, chain), ij in zip(examples, pairs, strict=True)]
    )
    if not 0 < is_contact.sum() < is_contact.size:
        raise InputError(
            f"{int(is_contact.sum()):,} of {num_pairs:,} pairs of residues {MIN_SEPARATION} or more apart are in contact: "
            "there is nothing to tell apart; give larger structures"
        )
    features = np.empty((shape[0] * shape[1], num_pairs), dtype=np.float32)
    end = 0
    for (record, _), (first, second) in zip(examples, pairs, strict=True):
        span, end = slice(end, end + first.size), end + first.size

        def keep(layer: int, of_layer: NDArray[np.float32], ij=(first, second), span=span) -> None:
            features[layer * shape[1] : (layer + 1) * shape[1], span] = of_layer[:, ij[0], ij[1]]

        _visit_features(model, record, keep)
    scales = features.std(1, dtype=np.float64)
    scales[scales == 0] = 1
    features /= scales[:, None].astype(np.float32)
    weights, intercept = fit_logistic(features, is_contact, penalty=penalty)
    return Regression(
        weights=(weights / scales).reshape(shape).tolist(),
        intercept=intercept,
        model_checksum=model_checksum(model, with_settings=False),
        penalty=penalty,
        structures=[chain.name for _, chain in examples],
        num_pairs=num_pairs,
        num_contacts=int(is_contact.sum()),
    )


def fit_logistic(
    features: NDArray[np.float32], labels: NDArray[np.bool_], *, penalty: float
) -> tuple[NDArray[np.float64], float]:
    """Return the weights (F,) and intercept that minimize Σ -log p(label) + penalty Σ |weight|.

    Each weight is the difference of two numbers that are not negative. So the penalty is smooth, and L-BFGS-B can be used. Of
    scikit-learn's solvers, liblinear penalizes the intercept too and takes four times the memory, and saga is slower and
    stops short of the minimum.

    Args:
        features: (F, N), one row per head.
        labels: (N,).
        penalty: factor of the sum of absolute weights.
    """
    count = len(features)
    signs = np.where(labels, -1.0, 1.0)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = parameters[:count] - parameters[count:-1]
        margins = signs * (weights.astype(np.float32) @ features + parameters[-1])
        slopes = signs * expit(margins)
        gradient = (features @ slopes.astype(np.float32)).astype(np.float64)
        value = np.logaddexp(0, margins).sum() + penalty * parameters[:-1].sum()
        return float(value), np.concatenate((gradient + penalty, penalty - gradient, [slopes.sum()]))

    share = labels.mean()
    begin = np.zeros(2 * count + 1)
    begin[-1] = np.log(share / (1 - share))
    bounds = [(0, None)] * (2 * count) + [(None, None)]
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000}).x
    return found[:count] - found[count:-1], float(found[-1])


def predict_contacts(model: ProteinLM, record: SequenceRecord, regression: Regression) -> NDArray[np.float64]:
    """Return the probability (L, L) that two residues are in contact.

    Raises:
        InputError: the protein is longer than the model's window, or its maps would take too much memory.
    """
    check_length(record, model)
    _check_memory(model, record)
    logits = np.full((len(record), len(record)), regression.intercept)

    def add(layer: int, features: NDArray[np.float32]) -> None:
        nonlocal logits
        logits = logits + np.tensordot(np.array(regression.weights[layer]), features, axes=1)

    _visit_features(model, record, add)
    return expit(logits)


def precision(probabilities: NDArray[np.float64], chain: Chain) -> pd.DataFrame:
    """Return the share of contacts among the most probable pairs of residues that were seen.

    Columns: min_separation (least |i - j|), top (L, L/2 or L/5, for L residues that were seen), num_pairs (at most as many as
    there are), precision, contact_share (among all pairs with this separation, the precision of guessing).
    """
    between = distances(chain)
    length = int(chain.is_seen.sum())
    rows = []
    for separation in SEPARATIONS:
        first, second = _known_pairs(between, separation)
        order = np.argsort(-probabilities[first, second], kind="stable")
        hits = (between[first, second] < CONTACT_DISTANCE)[order]
        for name, part in (("L", 1), ("L/2", 2), ("L/5", 5)):
            count = min(max(1, length // part), hits.size)
            rows.append(
                {
                    "min_separation": separation,
                    "top": name,
                    "num_pairs": count,
                    "precision": hits[:count].mean() if count else np.nan,
                    "contact_share": hits.mean() if count else np.nan,
                }
            )
    return pd.DataFrame(rows)


def likely_pairs(probabilities: NDArray[np.float64], sequence: str, chain: Chain | None) -> pd.DataFrame:
    """Return all pairs with |i - j| of 6 or more, the most probable first.

    Columns: residue_i, residue_j (from 1), amino_acids, probability, and with a structure distance_angstrom and is_contact,
    empty if a residue was not seen.
    """
    first, second = np.triu_indices(len(sequence), MIN_SEPARATION)
    order = np.argsort(-probabilities[first, second], kind="stable")
    first, second = first[order], second[order]
    letters = np.array(list(sequence))
    table = pd.DataFrame(
        {
            "residue_i": first + 1,
            "residue_j": second + 1,
            "amino_acids": np.char.add(letters[first], letters[second]),
            "probability": probabilities[first, second],
        }
    )
    if chain is not None:
        between = distances(chain)[first, second]
        table["distance_angstrom"] = between
        table["is_contact"] = pd.array(between < CONTACT_DISTANCE, dtype="boolean")
        table.loc[np.isnan(between), "is_contact"] = pd.NA
    return table
