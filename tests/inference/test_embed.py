"""Embeddings: the right layer, the same in any batch, and files that say where each sequence lies."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from protein_lm import alphabet
from protein_lm.attention.rows import WHOLE
from protein_lm.checkpoint.directory import save_model
from protein_lm.choices import EmbeddingFormat, StorageType
from protein_lm.cli import main
from protein_lm.errors import ConfigError, NumericalError, OutputError
from protein_lm.inference.embed import embed
from protein_lm.results import embed as module
from protein_lm.results.embed import Storage, embed_file
from tests.conftest import EVERY_FORM, fresh_model, grammar, write_fasta
from tests.results.test_score import ODD, Killed, kill_after

SEQUENCES = [alphabet.encode(sequence) for sequence in ("MKTAYIAKQR", "GG", "ACDEFGHIKLMNPQRSTVWY" * 3, "W")]


@pytest.fixture
def fasta(tmp_path) -> Path:
    return write_fasta(tmp_path / "proteins.fasta", grammar(40))


@pytest.fixture
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(module, "TOKENS_OF_PART", 200)
    monkeypatch.setattr(module, "SHARD_BYTES", 60_000)


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_layers_are_numbered_from_the_embedding_to_the_final_norm(objective) -> None:
    model = fresh_model(objective=objective)
    tokens = torch.tensor([[alphabet.CLS, *SEQUENCES[0].tolist(), alphabet.EOS]])
    (values,) = embed(model, SEQUENCES[:1], layers=[0, 2, 1])
    with torch.inference_mode():
        first = model.embedding(tokens)
        rotary = model.rotary.tables(torch.arange(12))  # type: ignore[union-attr]
        second = model.blocks[0](first, rotary, WHOLE)
        expected = torch.cat([first, model.hidden_states(tokens), second])
    torch.testing.assert_close(values, expected[:, 1:-1])
    (last,) = embed(model, SEQUENCES[:1])
    torch.testing.assert_close(last, values[1:2])


@pytest.mark.parametrize(("attention", "objective"), EVERY_FORM)
def test_an_embedding_does_not_depend_on_its_batch(attention, objective) -> None:
    model = fresh_model(attention=attention, objective=objective)
    alone = [next(embed(model, [residues], layers=[1, 2])) for residues in SEQUENCES]
    for tokens_per_batch in (20, 1000):
        together = embed(model, SEQUENCES, layers=[1, 2], tokens_per_batch=tokens_per_batch)
        for values, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_numbers_that_cannot_be_are_refused(tmp_path, fasta) -> None:
    model = fresh_model(objective="masked")
    with pytest.raises(ConfigError, match=r"layer 3 does not exist: layers run from 0 \(embedding\) to 2 \(the last\)"):
        next(embed(model, SEQUENCES, layers=[3]))
    with pytest.raises(ConfigError, match="layer 1 is named twice"):
        next(embed(model, SEQUENCES, layers=[1, 0, 1]))
    with torch.no_grad():
        model.final_norm.weight[0] = 1e6
    with pytest.raises(NumericalError, match="sequence S0: an embedding is over the range of float16; choose --dtype"):
        embed_file(model, fasta, tmp_path / "e", Storage(dtype=StorageType.FLOAT16))
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    with pytest.raises(NumericalError, match="the model gives NaN"):
        embed_file(model, fasta, tmp_path / "e", Storage())
    assert [path.name for path in tmp_path.iterdir()] == ["proteins.fasta"]


@pytest.mark.parametrize("dtype", StorageType)
def test_shards_hold_what_the_index_says(tmp_path, fasta, small_shards, dtype) -> None:
    model, output = fresh_model(objective="masked"), tmp_path / "e"
    embed_file(model, fasta, output, Storage(layers=[0, 2], per_residue=True, dtype=dtype))
    index = pd.read_parquet(output / "index.parquet")
    assert index["sequence_id"].tolist() == list(grammar(40))
    names = index["shard"].unique().tolist()
    assert len(names) > 2 and sorted(p.name for p in output.iterdir()) == ["embeddings.json", "index.parquet", *names]
    shards = {name: load_file(output / name) for name in names}
    stored = getattr(torch, dtype.value)
    expected = embed(model, [alphabet.encode(s) for s in grammar(40).values()], layers=[0, 2])
    for row, values in zip(index.itertuples(), expected, strict=True):
        tensors = shards[str(row.shard)]
        for layer, wanted in zip((0, 2), values, strict=True):
            span = slice(row.first_residue, row.first_residue + row.length)
            residues, mean = tensors[f"residues.layer_{layer}"][span], tensors[f"mean.layer_{layer}"][row.row]
            assert residues.dtype == mean.dtype == stored
            torch.testing.assert_close(residues.float(), wanted, rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(mean.float(), wanted.mean(0), rtol=1e-2, atol=1e-2)
    facts = json.loads((output / "embeddings.json").read_text())
    assert facts["layers"] == [0, 2] and facts["dtype"] == dtype.value and facts["num_sequences"] == 40


@pytest.mark.parametrize("form", EmbeddingFormat)
def test_a_stopped_command_goes_on_to_the_same_files(tmp_path, fasta, small_shards, form) -> None:
    if form is EmbeddingFormat.H5:
        pytest.importorskip("h5py")
    model, storage = fresh_model(objective="causal"), Storage(per_residue=True, format=form)
    embed_file(model, fasta, tmp_path / "whole", storage)
    for number in (9, 25, 31):
        with pytest.raises(Killed):
            embed_file(model, fasta, tmp_path / "e", storage, resume=True, on_progress=kill_after(number))
        assert not (tmp_path / "e").exists()
        (tmp_path / "e.unfinished" / "shard-00099.safetensors").write_text("written, but not saved")
    with pytest.raises(OutputError, match="resume it with --resume"):
        embed_file(model, fasta, tmp_path / "e", storage)
    with pytest.raises(OutputError, match="begun with another dtype"):
        embed_file(
            model, fasta, tmp_path / "e", Storage(per_residue=True, dtype=StorageType.FLOAT16, format=form), resume=True
        )
    embed_file(model, fasta, tmp_path / "e", storage, resume=True)
    assert contents(tmp_path / "e") == contents(tmp_path / "whole")
    assert not (tmp_path / "e.unfinished").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_h5_has_a_dataset_for_each_sequence_and_no_folders(tmp_path) -> None:
    h5py = pytest.importorskip("h5py")
    odd = [*ODD, ".", "..", "50%2F", "50/"]
    fasta = write_fasta(tmp_path / "odd.fasta", {name: "MKV" + "A" * n for n, name in enumerate(odd)})
    model, output = fresh_model(objective="masked"), tmp_path / "e"
    storage = Storage(per_residue=True, dtype=StorageType.FLOAT16, format=EmbeddingFormat.H5)
    embed_file(model, fasta, output, storage)
    index = pd.read_parquet(output / "index.parquet")
    assert index["sequence_id"].tolist() == odd and index["dataset"].is_unique
    with h5py.File(output / "residues.layer_2.h5") as residues, h5py.File(output / "mean.layer_2.h5") as means:
        assert set(residues) == set(means) == set(index["dataset"])
        for number, row in enumerate(index.itertuples()):
            dataset = residues[row.dataset]
            assert dataset.attrs["original_id"] == row.sequence_id and dataset.dtype == np.float16
            assert dataset.shape == (row.length, 32) == (3 + number, 32) and means[row.dataset].shape == (32,)
            np.testing.assert_allclose(means[row.dataset], dataset[:].astype(np.float32).mean(0), atol=2e-3)


def test_the_command(tmp_path, fasta, capsys) -> None:
    save_model(fresh_model(objective="masked"), tmp_path / "model")
    arguments = ["embed", str(fasta), "--model", str(tmp_path / "model"), "-o", str(tmp_path / "e")]
    assert main([*arguments, "--format", "h5", "--dtype", "bfloat16"]) == 2
    assert "HDF5 has no such numbers; choose float16 or float32" in capsys.readouterr().err
    assert main([*arguments, "--layer", "1", "--layer", "2"]) == 0
    assert "40 embedded" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    long = write_fasta(tmp_path / "long.fasta", {"long": "M" * 63, "short": "MKV"})
    arguments = ["embed", str(long), "--model", str(tmp_path / "model"), "-o", str(tmp_path / "f")]
    assert main(arguments) == 2
    assert (
        "sequence long has 63 residues; this model reads 62; leave it out with --long drop" in capsys.readouterr().err
    )
    assert main([*arguments, "--long", "drop"]) == 0
    assert "1 over the model's window left out: long" in capsys.readouterr().err
