"""The type of matrix products: what auto chooses, what runs keep, what is refused."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from protein_lm.choices import Precision
from protein_lm.cli import main
from protein_lm.errors import ConfigError
from protein_lm.model import precision
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from tests.conftest import small_recipe

ORDINARY = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "PROTEIN_LM_KERNELS": "off",
}
"""What makes a processor with AVX-512 and bfloat16 compute as one without."""


def speed_is(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    monkeypatch.setattr(precision, "bfloat16_speed", lambda device: speed)


@pytest.mark.parametrize(
    ("speed", "wanted", "chosen", "said"),
    [
        (
            4.0,
            "auto",
            "bfloat16",
            "bfloat16, by auto: on this processor products in bfloat16 are 4.0 times as fast as in",
        ),
        (
            0.8,
            "auto",
            "float32",
            "float32, by auto: on this processor products in bfloat16 are 1.2 times as slow as in",
        ),
        (1 / 640, "auto", "float32", "are 640 times as slow as in float32"),
        (0.0, "auto", "float32", "bfloat16 cannot be multiplied"),
        (4.0, "bfloat16", "bfloat16", ""),
        (
            1 / 640,
            "bfloat16",
            "bfloat16",
            "bfloat16, as set, but on this processor products in bfloat16 are 640 times as",
        ),
        (4.0, "float32", "float32", ""),
    ],
)
def test_what_is_chosen_and_said(monkeypatch, speed, wanted, chosen, said) -> None:
    speed_is(monkeypatch, speed)
    choice = precision.choose(Precision(wanted), "cpu")
    assert choice.precision.value == chosen
    assert said in choice.reason and bool(said) == bool(choice.reason) and "\n" not in choice.reason


def test_what_a_device_cannot_do_is_refused(monkeypatch) -> None:
    speed_is(monkeypatch, 0.0)
    with pytest.raises(ConfigError, match="this processor cannot multiply bfloat16; choose float32 or auto"):
        precision.choose(Precision.BFLOAT16, "cpu")


def test_a_type_that_the_backend_lacks_has_no_speed(monkeypatch) -> None:
    def refuse(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(torch, "mm", refuse)
    assert precision.bfloat16_speed.__wrapped__("cpu") == 0.0


def test_context_is_that_of_the_choice() -> None:
    ones = torch.ones(2, 2)
    for chosen, dtype in ((Precision.BFLOAT16, torch.bfloat16), (Precision.FLOAT32, torch.float32)):
        with precision.Choice(chosen, "").context("cpu"):
            assert (ones @ ones).dtype == dtype


def test_a_run_keeps_what_it_began_with(corpus, tmp_path, monkeypatch, capfd) -> None:
    """Begun where bfloat16 is fast; gone on with where it is emulated."""
    short = {"num_steps": 4, "warmup_steps": 0, "validate_every": 4, "checkpoint_every": 2, "precision": "auto"}
    speed_is(monkeypatch, 2.0)
    Trainer(LanguageModelling(small_recipe(**short), corpus), tmp_path / "run").fit()
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["training"]["precision"] == "bfloat16"
    assert "precision: bfloat16, by auto" in capfd.readouterr().err
    speed_is(monkeypatch, 0.01)
    longer = small_recipe(**{**short, "num_steps": 6})
    Trainer(
        LanguageModelling(longer, corpus), tmp_path / "run", resume=True, allowed_changes=["training.num_steps"]
    ).fit()
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["training"]["precision"] == "bfloat16"
    assert "precision: bfloat16, as set, but on this processor" in capfd.readouterr().err
    new = Trainer(LanguageModelling(longer, corpus), tmp_path / "new")
    assert new.recipe.training.precision is Precision.FLOAT32
    with pytest.raises(ConfigError, match=r"training\.precision: bfloat16 -> float32"):
        Trainer(
            LanguageModelling(small_recipe(**{**short, "precision": "float32"}), corpus), tmp_path / "run", resume=True
        )


def test_an_unknown_precision_is_one_line(tmp_path, capsys) -> None:
    assert (
        main(["train", "scripts/recipes/tiny.yaml", "--set", "training.precision=half", "--data", "x", "-o", "y"]) == 2
    )
    assert "training.precision" in (line := capsys.readouterr().err) and line.count("\n") == 1
    assert main(["variants", "data/P00974.fasta", "--saturate", "--model", "m", "--precision", "half"]) == 2
    assert "'auto', 'float32', 'bfloat16'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="instructions of x86")
def test_an_ordinary_processor_trains_in_float32(corpus, tmp_path) -> None:
    recipe = small_recipe(num_steps=4, warmup_steps=0, precision="auto", optimizer="muon").model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "protein_lm", "train", str(tmp_path / "recipe.yaml"), "--data", str(corpus.path)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "run")], env=os.environ | ORDINARY, capture_output=True, text=True, check=True
    )
    assert "precision: float32, by auto: on this processor products in bfloat16 are" in done.stderr
    assert yaml.safe_load((Path(tmp_path) / "run/recipe.yaml").read_text())["training"]["precision"] == "float32"


def test_info_says_what_auto_chooses(monkeypatch, capsys) -> None:
    speed_is(monkeypatch, 1 / 640)
    assert main(["info"]) == 0
    line = (
        "precision: on this processor products in bfloat16 are 640 times as slow as in float32; auto chooses float32\n"
    )
    assert line in capsys.readouterr().out
