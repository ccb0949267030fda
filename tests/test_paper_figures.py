"""The scripts that draw the paper's figures, run as their user would."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parents[1]
SCRIPTS = ["attention_grid", "attention_heads", "attention_and_structure"]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / f"scripts/paper_figures/{script}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("script", "model"), list(zip(SCRIPTS, ["causal", "masked", "causal"], strict=True)))
def test_draws_bpti(script, model, tmp_path) -> None:
    figure = tmp_path / "figure.png"
    done = run(script, str(ROOT / f"checkpoints/tiny-{model}"), "-o", str(figure))
    assert done.returncode == 0, done.stderr
    assert imread(figure).std() > 0.05  # not an empty page
    if script == "attention_and_structure":  # 1,378 pairs of 58 residues are 6 or more apart
        assert "125 pairs in contact get" in done.stdout
        assert "of all 1,378" in done.stdout


def test_faults_are_one_line(tmp_path) -> None:
    model = str(ROOT / "checkpoints/tiny-causal")
    two = tmp_path / "two.fasta"
    two.write_text(">a\nMKV\n>b\nMKL\n")
    for script, arguments, fault in [
        ("attention_grid", [model, str(two)], "has 2 sequences; give a file with one"),
        ("attention_heads", [model, "-o", str(tmp_path / "x.gif")], "unknown figure format"),
        ("attention_and_structure", [model, "--bridges", "1-500"], "'1-500' is no pair of residues 1 to 100"),
        ("attention_and_structure", [str(tmp_path)], "error: "),
    ]:
        done = run(script, *arguments, *([] if "-o" in arguments else ["-o", str(tmp_path / "figure.png")]))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert fault in done.stderr
    assert not (tmp_path / "figure.png").exists()
