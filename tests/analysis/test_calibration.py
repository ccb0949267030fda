"""Attention that was exchanged comes nearer to the former one, and what was folded into projections changes no product."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from protein_lm.analysis import calibration
from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.analysis.calibration import calibrate, describe, worse_than_uniform
from protein_lm.attention.kinds.table import with_defaults
from protein_lm.checkpoint.directory import load_model, save_model
from protein_lm.cli import main
from protein_lm.errors import InputError
from protein_lm.model.conversion import QueryKeyScales, with_attention
from tests.conftest import fresh_model, grammar, write_fasta
from tests.inference.toys import records

PROTEINS = records(*list(grammar(12).values()))
SEQUENCES = [record.tokens for record in PROTEINS]


def peaked(**changes):
    """A model that looks at few tokens, with queries far larger than keys."""
    model = fresh_model(attention="exact", objective="masked", **changes)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.input_projection.weight[:32] *= 6
            block.attention.input_projection.weight[32:64] *= 0.4
    return model


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_balanced_queries_and_keys_give_the_same_attention(positions) -> None:
    torch.manual_seed(0)
    in_pairs = positions == "rotary"
    query, key = 5 * torch.randn(2, 30, 8), 0.3 * torch.randn(2, 30, 8)
    scales = QueryKeyScales(2, 8, in_pairs=in_pairs)
    scales.balance(query, key)
    scaled_query, scaled_key = scales(query[None], key[None])
    torch.testing.assert_close(scaled_query @ scaled_key.mT, (query @ key.mT)[None], rtol=1e-4, atol=1e-4)
    of_query, of_key = (rows[0].square().mean(1) for rows in (scaled_query, scaled_key))
    if in_pairs:
        of_query, of_key = (squares.unflatten(-1, (2, 4)).sum(1) for squares in (of_query, of_key))
    torch.testing.assert_close(of_query, of_key, rtol=1e-3, atol=1e-3)
    model = peaked(positions=positions)
    before = attention_matrices(model, PROTEINS[0])
    scales = QueryKeyScales(2, 16, in_pairs=in_pairs)
    scales.balance(5 * torch.randn(2, 30, 16), torch.randn(2, 30, 16))
    for block in model.blocks:
        scales.fold_into(block.attention)
    np.testing.assert_allclose(attention_matrices(model, PROTEINS[0]), before, rtol=1e-4, atol=1e-6)


def test_what_is_measured_is_what_the_layer_does() -> None:
    """Errors by hand: the first layer of the new model, adapted, on the sequences that were set aside."""
    model = peaked()
    converted = with_attention(model, attention={"kind": "performer-relu", "num_features": 16})
    table = calibrate(model, converted, SEQUENCES, num_steps=5)
    errors, floors = [], []
    for record in PROTEINS[3::4]:
        truth = attention_matrices(model, record)[0].astype(np.float64)
        found = attention_matrices(converted, record)[0]
        errors.append(np.linalg.norm(found - truth) / np.linalg.norm(truth))
        floors.append(np.linalg.norm(1 / truth.shape[-1] - truth) / np.linalg.norm(truth))
    assert table["matrix_error"][0] == pytest.approx(np.mean(errors), rel=1e-4)
    assert table["matrix_error_uniform"][0] == pytest.approx(np.mean(floors), rel=1e-4)


@pytest.mark.parametrize(
    "attention", ["hedgehog", "performer-softmax", "performer-saderf", "performer-relu", "linformer"]
)
def test_it_comes_nearer(attention) -> None:
    model = peaked()
    converted = with_attention(model, attention=with_defaults(attention, {"num_landmarks": 8}))
    table = calibrate(model, converted, SEQUENCES, num_steps=60)
    assert table["layer"].tolist() == [1, 2] and set(table["attention"]) == {attention}
    assert (table["output_error"] < table["output_error_before"]).all()
    assert str(table["output_error"][1].round(3)) in describe(table)


def test_the_same_again_and_nothing_to_adapt() -> None:
    model = peaked()
    weights = []
    for _ in range(2):
        converted = with_attention(model, attention="hedgehog")
        calibrate(model, converted, SEQUENCES, num_steps=5, seed=3)
        weights.append(converted.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    local = with_attention(model, attention={"kind": "local", "window": 8})
    before = {name: weight.clone() for name, weight in local.state_dict().items()}
    table = calibrate(model, local, SEQUENCES)
    assert all(torch.equal(weight, before[name]) for name, weight in local.state_dict().items())
    assert (table["output_error"] == table["output_error_before"]).all()
    exact = calibrate(model, with_attention(model, attention="exact"), SEQUENCES[:1])
    assert (exact["output_error"] < 1e-6).all()


def test_normalized_queries_and_keys_keep_their_projections() -> None:
    model = fresh_model(attention="exact", objective="causal", qk_norm=True)
    converted = with_attention(model, attention="performer-optimal")
    before = converted.blocks[0].attention.input_projection.weight.clone()
    calibrate(model, converted, SEQUENCES, num_steps=3)
    assert torch.equal(converted.blocks[0].attention.input_projection.weight, before)


def test_layers_worse_than_uniform_are_named() -> None:
    table = pd.DataFrame({"layer": [1, 2], "output_error": [0.5, 0.9], "output_error_uniform": [0.6, 0.8]})
    assert worse_than_uniform(table) == [2]
    with pytest.raises(InputError, match="no protein to calibrate on is short enough"):
        calibrate(peaked(), peaked(), [])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "peaked"
    save_model(peaked(), path)
    return path


def test_the_command(saved, tmp_path, capsys) -> None:
    fasta = write_fasta(tmp_path / "proteins.fasta", grammar(12))
    start = ["convert", str(saved), "-o"]
    settings = ["--set", "attention=hedgehog", "--calibrate", str(fasta)]
    assert main([*start, str(tmp_path / "new"), *settings]) == 0
    said = capsys.readouterr()
    assert "error of the output" in said.out and "fine-tune it before use" in said.out
    assert said.err.splitlines() == ["calibrated layer 1 of 2", "calibrated layer 2 of 2"]
    card = (tmp_path / "new/README.md").read_text()
    assert "calibrated on: 12 proteins of" in card and "output errors of uniform attention: [" in card
    assert load_model(tmp_path / "new").config.attention_name == "hedgehog"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--calibrate", "x.fasta"], "add --set attention=KIND"),
        (["--set", "attention=elu", "--force"], "--force keeps what --calibrate refuses"),
        (["--merge", "--calibrate", "x.fasta"], "--merge changes no kind of attention"),
        (["--set", "attention=elu", "--calibrate", "x.fasta"], "x.fasta"),
    ],
)
def test_mistakes(saved, tmp_path, capsys, arguments, fault) -> None:
    assert main(["convert", str(saved), "-o", str(tmp_path / "new"), *arguments]) == 2
    assert fault in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_what_is_of_no_use_is_refused(saved, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(calibration, "worse_than_uniform", lambda table: [1, 2])
    fasta = write_fasta(tmp_path / "proteins.fasta", grammar(8))
    command = ["convert", str(saved), "-o", str(tmp_path / "new"), "--calibrate", str(fasta)]
    command += ["--set", "attention=local", "--set", "window=2"]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "in layer 1, 2 the new attention is farther from the former than uniform attention" in error
    assert not (tmp_path / "new").exists()
    assert main([*command, "--force"]) == 0
