"""Shared by all tests: a small corpus with a rule to learn, and small models trained on it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from protein_lm.attention.kinds.table import with_defaults
from protein_lm.config import ModelConfig, Recipe
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.store import TokenStore
from protein_lm.model.language_model import ProteinLM
from protein_lm.native import build, library
from protein_lm.native import reader as file_reader
from tests.processes import Processes

KINDS = [
    "exact",
    "performer-relu",
    "performer-softmax",
    "performer-saderf",
    "cosformer",
    "aoglu-3",
    "local-global",
    "bigbird",
    "lsh",
]
"""One kind of each build; tests of operations run all kinds, tests of whole models these."""
EVERY_FORM = [(kind, objective) for kind in KINDS for objective in ("causal", "masked")]
EVERY_FORM += [("linformer", "masked"), ("nystrom", "masked")]

# Tests take the torch path whatever was built on this machine, unless a level is named; those of the kernels name theirs.
os.environ.setdefault("PROTEIN_LM_KERNELS", "off")

# Property tests may take their time on a busy machine.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


def write_fasta(path: Path, sequences: dict[str, str]) -> Path:
    """A FASTA file of these sequences."""
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    return path


def grammar(count: int, seed: int = 0) -> dict[str, str]:
    """Sequences with a rule to learn: each residue but one in eight follows from the one before it."""
    generator = np.random.default_rng(seed)
    letters, sequences = "ACDEFGHIKLMNPQRSTVWY", {}
    for number in range(count):
        place, residues = int(generator.integers(20)), []
        for _ in range(int(generator.integers(12, 60))):
            residues.append(letters[place])
            place = int(generator.integers(20)) if generator.random() < 1 / 8 else (place + 7) % 20
        sequences[f"S{number}"] = "".join(residues)
    return sequences


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A prepared corpus of the grammar, with a held-out family of its own rule."""
    folder = tmp_path_factory.mktemp("corpus")
    sequences = grammar(400)
    held_out = {f"H{number}": "WYYW" * (5 + number) for number in range(8)}
    fasta = write_fasta(folder / "grammar.fasta", sequences | held_out)
    table = folder / "splits.tsv"
    table.write_text("sequence_id\tsplit\n" + "".join(f"{name}\theld_out\n" for name in held_out))
    prepare([fasta], folder / "store", valid_fraction=0.1, test_fraction=0.1, split_table=table)
    return TokenStore.open(folder / "store")


def small_recipe(*, objective: str = "causal", attention: str = "performer-relu", **training: Any) -> Recipe:
    """A recipe that learns the grammar in seconds."""
    return Recipe.model_validate(
        {
            "model": {
                "objective": objective,
                "attention": with_defaults(attention, {"num_features": 32}),
                "num_layers": 2,
                "width": 32,
                "num_heads": 2,
                "feedforward_width": 64,
                "max_length": 64,
            },
            "data": {"tokens_per_batch": 1024},
            "training": {
                "num_steps": 60,
                "optimizer": "adamw",
                "learning_rate": 0.01,
                "gradient_clip": 1.0,
                "warmup_steps": 5,
                "precision": "float32",
                "validate_every": 30,
                "checkpoint_every": 30,
                **training,
            },
        }
    )


@pytest.fixture(scope="session")
def runs(corpus: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained run for each objective."""
    from protein_lm.training.language_modelling import LanguageModelling
    from protein_lm.training.loop import Trainer

    folder = tmp_path_factory.mktemp("runs")
    for objective in ("causal", "masked"):
        Trainer(LanguageModelling(small_recipe(objective=objective), corpus), folder / objective).fit()
    return {objective: folder / objective for objective in ("causal", "masked")}


def fresh_model(**changes: Any) -> ProteinLM:
    """An untrained model of the small recipe. Options of attention may stand next to `attention`, by their older names."""
    settings = small_recipe().model.model_dump() | {"attention": "performer-relu", "num_random_features": 32}
    model = ProteinLM(ModelConfig.model_validate(settings | changes))
    model.initialize(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="session")
def kernels_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `$PROTEIN_LM_KERNELS_FOLDER` that all tests share; `have_built` fills it."""
    return tmp_path_factory.mktemp("kernels")


def have_built(names: Sequence[str], root: Path) -> None:
    """Have libraries in the shared folder: those that this machine has of this version already, the others are built once."""
    target = root / build.stamp()
    target.mkdir(exist_ok=True)
    names = [name for name in names if not (target / build.file_of(name)).exists()]
    for name in names:
        if (there := build.library_of(name)).exists():
            shutil.copy(there, target)
    if names := [name for name in names if not (target / build.file_of(name)).exists()]:
        assert not build.build(names, compiler=build.find_compiler(), target=target).left_out


@pytest.fixture(scope="module")
def kernels_folder(kernels_root):
    """A folder with the libraries of the levels that this processor has."""
    have_built(build.levels_of_this_processor(build.find_compiler(), kernels_root), kernels_root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.FOLDER_VARIABLE, str(kernels_root))
        patch.setenv(library.VARIABLE, library.OFF)
        library.forget()
        yield build.folder()
    library.forget()


@pytest.fixture(scope="module")
def reader(kernels_root):
    """The compiled reader, in use."""
    have_built([build.READER], kernels_root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.FOLDER_VARIABLE, str(kernels_root))
        patch.delenv(build.VARIABLE)
        library.forget()
        yield file_reader.reader()
    library.forget()


@pytest.fixture(params=build.levels_of_this_kind())
def level(request, kernels_folder, monkeypatch):
    """Each level that this processor has, in use."""
    if request.param not in library.available_levels():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv(library.VARIABLE, request.param)
    return request.param


@pytest.fixture
def best_level(kernels_folder, monkeypatch):
    """The best level of this processor, in use."""
    monkeypatch.setenv(library.VARIABLE, library.available_levels()[0])


@pytest.fixture
def emulated_tiles(kernels_folder, tmp_path_factory, monkeypatch):
    """The level for matrix units with their instructions emulated: shapes of tiles, layouts, depths. Not the instructions."""
    if "avx512-bf16" not in library.available_levels():
        pytest.skip("they are emulated with AVX-512")
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path_factory.getbasetemp() / "emulated"))
    emulated = [*build.LEVELS["avx512-bf16"], "-DPROTEIN_LM_EMULATED_TILES"]
    monkeypatch.setattr(build, "LEVELS", {"avx512-bf16": emulated, "plain": ["-O1"]})
    if not build.library_of("plain").exists():
        build.build(list(build.LEVELS), compiler=build.find_compiler())
    monkeypatch.setenv(library.VARIABLE, "avx512-bf16")
    library.forget()
    yield
    library.forget()


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Four processes that work together."""
    four = Processes(tmp_path_factory.mktemp("processes"))
    yield four
    four.stop()


@pytest.fixture
def write(tmp_path):
    """Write a file of this content and name into the test's folder, and return its path."""

    def write(content: bytes | str, name: str = "in.fasta") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
