"""Contacts: the correction, the fit, precision, and the whole way from structures to a map."""

import numpy as np
import pytest

from protein_lm.alphabet import encode
from protein_lm.analysis import contacts
from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.analysis.contacts import (
    Regression,
    corrected,
    fit_logistic,
    likely_pairs,
    precision,
    predict_contacts,
    train_regression,
)
from protein_lm.errors import InputError, ModelError
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.chains import Chain
from tests.conftest import fresh_model

SEQUENCE = "MAELKKLLEELKKLGSGKELLKKLEELLKALEAAGSKLEE"


def chain_along(points: np.ndarray, sequence: str = SEQUENCE) -> Chain:
    numbers = tuple("" if np.isnan(point[0]) else str(place) for place, point in enumerate(points, 1))
    return Chain("toy.pdb:A", sequence, points, numbers)


def hairpin(sequence: str = SEQUENCE) -> tuple[SequenceRecord, Chain]:
    """A strand that comes back beside itself, 5 Å away."""
    size = len(sequence)
    up = np.arange(size) < size / 2
    height = np.where(up, np.arange(size), size - 1 - np.arange(size)) * 3.4
    points = np.stack([np.where(up, 0.0, 5.0), np.zeros(size), height], axis=1)
    return SequenceRecord("toy", encode(sequence), 1), chain_along(points, sequence)


def test_correction_by_hand() -> None:
    matrix = np.random.default_rng(0).random((1, 5, 5)).astype(np.float32)
    symmetric = matrix[0] + matrix[0].T
    expected = symmetric - np.outer(symmetric.sum(1), symmetric.sum(0)) / symmetric.sum()
    np.testing.assert_allclose(corrected(matrix)[0], expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(corrected(np.zeros((1, 3, 3), dtype=np.float32))).all()


@pytest.mark.parametrize("penalty", [0.0, 5.0, 1e6])
def test_the_fit_is_the_optimum(penalty) -> None:
    """Where a weight is not 0 the slope of the loss is the penalty, elsewhere no more; at a great penalty nothing is left."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((6, 4000)).astype(np.float32)
    labels = generator.random(4000) < 1 / (1 + np.exp(1.0 - 2 * features[0] + 0.5 * features[3]))
    weights, intercept = fit_logistic(features, labels, penalty=penalty)
    errors = 1 / (1 + np.exp(-(weights @ features + intercept))) - labels
    slopes = features @ errors
    used = np.abs(weights) > 1e-6
    np.testing.assert_allclose(slopes[used], -penalty * np.sign(weights[used]), atol=0.5)
    assert (np.abs(slopes[~used]) <= penalty + 0.5).all() and abs(errors.sum()) < 0.5
    if penalty == 0:
        np.testing.assert_allclose(weights, [2, 0, 0, -0.5, 0, 0], atol=0.15)
    if penalty == 1e6:
        assert not used.any() and intercept == pytest.approx(np.log(labels.mean() / (1 - labels.mean())), abs=1e-3)


def test_precision_by_hand() -> None:
    record, chain = hairpin()
    between = contacts.distances(chain)
    perfect = precision(1 - between / 1000, chain)
    assert perfect["num_pairs"].tolist() == [40, 20, 8] * 2 and perfect["min_separation"].tolist() == [6] * 3 + [24] * 3
    of_pairs = between[np.triu_indices(40, 24)] < 8
    assert perfect["precision"].tolist()[3:] == pytest.approx([of_pairs.sum() / 40, min(1, of_pairs.sum() / 20), 1])
    assert perfect["contact_share"].tolist()[3:] == pytest.approx([of_pairs.mean()] * 3)
    assert precision(between, chain)["precision"].max() == 0
    points = chain.points.copy()
    points[10:20] = np.nan
    partly = chain_along(points)
    assert precision(1 - between / 1000, partly)["num_pairs"].tolist()[:3] == [30, 15, 6]
    table = likely_pairs(1 - between / 1000, record.sequence, partly)
    assert len(table) == 34 * 35 / 2 and table["probability"].is_monotonic_decreasing
    assert table["is_contact"].isna().sum() == table["distance_angstrom"].isna().sum() > 0
    assert table["amino_acids"][0] == SEQUENCE[table["residue_i"][0] - 1] + SEQUENCE[table["residue_j"][0] - 1]


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_from_structures_to_a_map(objective, tmp_path) -> None:
    model, example = fresh_model(objective=objective, max_length=128), hairpin()
    regression = train_regression(model, [example, hairpin(SEQUENCE[::-1])], penalty=0.01)
    assert regression.num_pairs == 2 * 34 * 35 / 2 and 0 < regression.num_contacts < regression.num_pairs
    regression.save(tmp_path / "contacts.json")
    loaded = Regression.load(tmp_path / "contacts.json", model)
    assert loaded == regression
    found = predict_contacts(model, example[0], loaded)
    features = corrected(attention_matrices(model, example[0])[:, :, 1:-1, 1:-1].reshape(4, 40, 40))
    logits = np.tensordot(np.ravel(loaded.weights), features, axes=1) + loaded.intercept
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found, found.T, rtol=1e-4)
    other = fresh_model(objective=objective, max_length=128)
    other.output_bias.data += 1
    with pytest.raises(ModelError, match="was trained for another model"):
        Regression.load(tmp_path / "contacts.json", other)
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(InputError, match="is no contact regression"):
        Regression.load(tmp_path / "no.json", model)


def test_what_cannot_be_trained_on(monkeypatch) -> None:
    model = fresh_model(max_length=128)
    with pytest.raises(InputError, match="0 of 0 pairs of residues 6 or more apart are in contact"):
        train_regression(model, [hairpin("MKVA")], penalty=0.1)
    monkeypatch.setattr(contacts, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="595 pairs of residues in 4 heads take over 0 GiB; train on fewer"):
        train_regression(model, [hairpin()], penalty=0.1)
