"""The interface for Python: what may stand for proteins, and how quickly it is there. Its examples run as tests too."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import protein_lm
from protein_lm.api import records
from protein_lm.checkpoint.directory import save_model
from protein_lm.choices import LongPolicy, Task
from protein_lm.cli import main
from protein_lm.config import HeadConfig
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.predict import read_sequences
from protein_lm.io.variants.assays import read_assays
from protein_lm.model.predictor import PredictionHead, Predictor
from tests.conftest import fresh_model, write_fasta

PROTEINS = {"first protein": "MKTAYIAKQR", "sp|P12345|X": "mkvlaag-*", "third": "GSSJ"}
ROOT = Path(__file__).parent.parent
CLEAN = ["MKTAYIAKQR", "MKVLAAG", "GSSX"]


@pytest.fixture(scope="module")
def base():
    return fresh_model()


def test_every_name_is_there() -> None:
    assert set(protein_lm.__all__) <= set(dir(protein_lm))
    assert all(getattr(protein_lm, name) is not None for name in protein_lm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'scores'"):
        _ = protein_lm.scores  # type: ignore[attr-defined]
    assert (Path(protein_lm.__file__).parent / "py.typed").is_file()


def test_the_import_is_quick() -> None:
    heavy = ["torch", "pandas", "transformers", "huggingface_hub", "protein_lm.api"]
    code = f"import sys, protein_lm; sys.exit(', '.join(name for name in {heavy} if name in sys.modules) or None)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_what_stands_for_proteins(tmp_path) -> None:
    fasta = write_fasta(tmp_path / "three.fasta", PROTEINS)
    assert [record.sequence_id for record in records(PROTEINS)] == list(PROTEINS)
    assert [record.sequence_id for record in records(list(PROTEINS.values()))] == ["1", "2", "3"]
    assert [record.sequence_id for record in records(str(fasta))] == ["first", "P12345", "third"]
    for given in (PROTEINS, list(PROTEINS.values()), tuple(PROTEINS.values()), fasta, str(fasta)):
        assert [record.sequence for record in records(given)] == CLEAN
    assert [record.sequence for record in records("mkt")] == ["MKT"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("MK1", "sequence 1: '1' at position 3 is not a residue letter"),
        ({"a b": "MKé"}, "sequence a b: 'é' at position 3 is not a residue letter"),
        (["MKT", ""], "sequence 2: no residues; correct the sequence or remove it"),
        ({"gaps": "--*"}, "sequence gaps: no residues"),
        ("absent.fasta", "absent.fasta does not exist"),
        (["proteins.fasta"], "sequence 1: 'proteins.fasta' is no protein but a path; give it alone"),
        ("M" * 63, "sequence 1 has 63 residues; this model reads 62"),
    ],
)
def test_what_does_not(given, message) -> None:
    model = fresh_model()
    for function in (protein_lm.score, protein_lm.similarity, protein_lm.attention_maps):
        with pytest.raises(InputError, match=message):
            function(model, given)


def test_an_identifier_that_comes_twice_is_refused_everywhere(base, tmp_path) -> None:
    """No function keeps the last of two results, or gives two rows that cannot be told apart."""
    fasta, table = tmp_path / "twice.fasta", tmp_path / "twice.csv"
    fasta.write_text(">a\nMKT\n>b\nMK\n>a x\nGSS\n")
    table.write_text("sequence_id,sequence\na,MKT\nb,MK\na,GSS\n")
    predictor = Predictor(base, PredictionHead(HeadConfig(task=Task.REGRESSION), base.config.width)).eval()
    functions = [protein_lm.score, protein_lm.embed, protein_lm.attention_maps, protein_lm.similarity]
    for given, lines in ((fasta, (5, 1)), (str(table), (4, 2))):
        fault = (
            f"twice.*, line {lines[0]}: sequence a is on line {lines[1]} too, and results are found by identifiers; ren"
        )
        for function in [*functions, protein_lm.variants, protein_lm.attention_viewer]:
            with pytest.raises(InputError, match=fault):
                function(base, given)
        with pytest.raises(InputError, match=fault):
            protein_lm.predict(predictor, given)
        with pytest.raises(InputError, match=fault):
            protein_lm.generate(base, prefix=given)
    for path, place in ((fasta, "line 5: sequence a is on line 1"), (table, "row 3: sequence a is on row 1")):
        with pytest.raises(InputError, match=f"twice.*, {place} too, and results are found by identifiers"):
            read_sequences(path, max_residues=62, long_sequences=LongPolicy.ERROR)
    (tmp_path / "assays").mkdir()
    (tmp_path / "assays" / "a.csv").write_text("mutant,DMS_score\nM1A,1\nK2A,2\n")
    with pytest.raises(InputError, match=r"twice.fasta, line 5: sequence a is on line 1 too"):  # wild types
        read_assays(tmp_path / "assays", fasta, first_residue=1)


def test_prefixes_have_names(base, tmp_path) -> None:
    fasta = write_fasta(tmp_path / "p.fasta", {"a": "MK", "b": "m-k*"})
    options = {"max_length": 5, "seed": 1}
    made = protein_lm.generate(base, 2, prefix=fasta, **options)
    assert made["sequence_id"].tolist() == ["a_1", "a_2", "b_1", "b_2"]
    assert set(made["sequence"].str[:2]) == {"MK"}
    assert protein_lm.generate(base, 1, prefix="m-k*", **options)["sequence_id"].tolist() == ["generated_1"]
    assert protein_lm.generate(base, 1, prefix=["MK", "GS"], **options)["sequence_id"].tolist() == ["1_1", "2_1"]
    by_letters, by_file = (protein_lm.generate(base, 2, prefix=given, **options) for given in ("MK", {"a": "m k"}))
    assert by_letters["sequence"].tolist() == by_file["sequence"].tolist()


def test_it_agrees_with_the_command_line(runs, tmp_path) -> None:
    fasta = write_fasta(tmp_path / "three.fasta", {"A": CLEAN[0], "B": CLEAN[1], "C": CLEAN[2]})
    for run in runs.values():
        output = tmp_path / f"{run.name}.csv"
        assert main(["score", str(fasta), "--model", str(run), "-o", str(output), "--device", "cpu"]) == 0
        model = protein_lm.load(run, device="cpu")
        pd.testing.assert_frame_equal(protein_lm.score(model, fasta), pd.read_csv(output))
        by_name = protein_lm.score(model, dict(zip("ABC", CLEAN, strict=True)))
        pd.testing.assert_frame_equal(by_name, protein_lm.score(model, fasta))
    maps = protein_lm.attention_maps(model, CLEAN[:2], layers=[2], heads=[1])
    assert {name: tuple(matrices.shape) for name, matrices in maps.items()} == {"1": (1, 1, 12, 12), "2": (1, 1, 9, 9)}
    assert torch.allclose(maps["1"].sum(-1), torch.ones(1, 1, 12))


def test_python_of_the_guide(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/python.md").read_text()
    ours, with_transformers = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(ours, found := {})
    assert found["table"]["sequence_id"].tolist() == ["wild type", "W5"]
    assert found["matrices"].shape == (2, 4, 102, 102) and found["similar"].shape == (20, 20)
    pytest.importorskip("transformers")
    exec(with_transformers, {})
    assert capsys.readouterr().out.startswith("MKT")


def test_the_small_models_are_small() -> None:
    for path in (ROOT / "checkpoints").glob("tiny-*/*"):
        assert path.name in ("README.md", "config.json", "model.safetensors") and path.stat().st_size <= 4_000_000


def test_what_is_computed_is_what_the_verbs_write(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fasta = write_fasta(tmp_path / "wild.fasta", {"wild": "MKTAYIAKQR"})
    (tmp_path / "mutants.csv").write_text("mutant\nK2R\nA4G:Y5F\n")
    for objective in ("causal", "masked"):
        model = fresh_model(objective=objective)
        save_model(model, tmp_path / objective)
        command = [
            "variants",
            "-m",
            objective,
            "--sequence",
            str(fasta),
            "--mutants",
            "mutants.csv",
            "-o",
            f"{objective}.csv",
        ]
        assert main(command) == 0
        expected = pd.read_csv(tmp_path / f"{objective}.csv")
        found = protein_lm.variants(model, {"wild": "MKTAYIAKQR"}, ["K2R", "A4G:Y5F"])
        pd.testing.assert_frame_equal(found, expected[["mutant", "score"]], atol=1e-6)
        with pytest.raises(InputError, match=r"^A2G: the sequence has K at position 2, not A$"):
            protein_lm.variants(model, "MKTAYIAKQR", ["A2G"])
        with pytest.raises(InputError, match="one wild type; 3 proteins were given"):
            protein_lm.variants(model, PROTEINS)
        with pytest.raises(ConfigError, match="unknown strategy 'best'; choose "):
            protein_lm.variants(model, "MKTAYIAKQR", strategy="best")
        whole = protein_lm.embed(model, PROTEINS, per_residue=True)
        assert {name: tuple(rows.shape) for name, rows in whole.items()} == {
            name: (len(letters), model.config.width) for name, letters in zip(PROTEINS, CLEAN, strict=True)
        }
        means = protein_lm.embed(model, PROTEINS)
        torch.testing.assert_close(means["third"], whole["third"].mean(0))
    made = protein_lm.generate(fresh_model(objective="causal"), 3, max_length=9, seed=4, batch_size=2)
    assert main(["generate", "-m", "causal", "-n", "3", "--max-length", "9", "--seed", "4", "-o", "made.fasta"]) == 0
    assert (tmp_path / "made.fasta").read_text().split("\n")[1::2] == made["sequence"].tolist()
