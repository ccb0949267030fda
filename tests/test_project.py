"""The files around the package agree with each other."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from protein_lm import __version__

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] not in "#"
)


def requirements() -> list[str]:
    extras = PROJECT["optional-dependencies"].values()
    return PROJECT["dependencies"] + [requirement for extra in extras for requirement in extra]


@pytest.mark.parametrize("requirement", requirements())
def test_every_dependency_is_locked_within_its_range(requirement) -> None:
    name, least = re.fullmatch(r"([a-z0-9-]+)(?:\[\w+\])?>=([\d.]+)(?:;.*)?", requirement).groups()  # type: ignore[union-attr]
    locked = tuple(int(part) for part in re.findall(r"\d+", LOCK[name]))
    assert locked >= tuple(int(part) for part in least.split("."))


def test_conda_installs_the_same() -> None:
    """environment.yml names no version of its own: it installs the project under the lock."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']},<3.14" and pip == "pip"
    assert from_pip == {"pip": ["--constraint requirements.lock", "--editable .[notebooks]"]}
    assert LOCK["torch"] == "2.13.0"


def test_the_named_packages_stay() -> None:
    declared = {re.split(r"[>\[;]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert {"torch", "biopython", "fair-esm", "accelerate", "matplotlib", "seaborn"} <= declared


def test_the_bundled_sample_is_the_documented_one() -> None:
    readme = (ROOT / "data/README.md").read_text()
    for name in ("swissprot_sample.fasta.gz", "swissprot_sample_families.tsv.gz"):
        path = ROOT / "data" / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() in readme
        assert path.stat().st_size <= 5_000_000


def test_held_out_families_are_whole() -> None:
    import pandas as pd

    table = pd.read_csv(ROOT / "data/swissprot_sample_families.tsv.gz", sep="\t", keep_default_na=False)
    assert set(table["split"]) == {"", "held_out"}
    assert (table.groupby("family")["split"].nunique() == 1).all()
    evaluation = {"P62593", "P06654", "P05067", "Q13148", "P42212", "P00974", "P04147", "P31016"}
    clusters = {"Q848S4", "P19909", "O73683", "Q5R5W2"}
    assert not (evaluation | clusters) & (set(table["sequence_id"]) | set(table["family"]))


def test_the_change_log_and_citation_know_the_version() -> None:
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}], ids=str)
def test_threads_wait_without_spinning_unless_the_user_says_so(given) -> None:
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import protein_lm, os, sys; print([os.environ.get(name) for name in {names}], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True)
    expected = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"} if "OMP_WAIT_POLICY" not in given else {}
    assert done.stdout.strip() == f"{[(expected | given).get(name) for name in names]} False"
