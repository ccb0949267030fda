"""Folders that somebody else made, to do harm or by mistake: one line, quickly, without the memory that they ask for."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protein_lm.checkpoint.checksums import write_checksums
from protein_lm.checkpoint.directory import load_model, load_predictor, save_model
from protein_lm.checkpoint.sizes import check_room
from protein_lm.checkpoint.training_state import read_training_facts
from protein_lm.choices import Task
from protein_lm.cli import main
from protein_lm.config import HeadConfig, Recipe
from protein_lm.corpus.joined import open_corpus
from protein_lm.corpus.prepare import prepare
from protein_lm.errors import ConfigError, InputError, ModelError, StoreError
from protein_lm.interop.esm_directory import read_esm2
from protein_lm.model.predictor import PredictionHead
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import read_metrics, read_recipe
from tests.conftest import fresh_model, grammar, small_recipe, write_fasta

NESTED = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5000


@pytest.fixture
def directory(tmp_path) -> Path:
    model = fresh_model(objective="masked")
    head = PredictionHead(HeadConfig(task=Task.CLASSIFICATION), model.config.width, ("a", "b"))
    save_model(model, tmp_path / "model", head=head)
    return tmp_path / "model"


def set_in_config(directory: Path, part: str, **values: str) -> None:
    """Change values of config.json, given as JSON."""
    content = json.loads((directory / "config.json").read_text())
    names = {f"@{name}": value for name, value in values.items()}
    content[part] |= {name: f"@{name}" for name in values}
    text = json.dumps(content)
    for name, value in names.items():
        text = text.replace(f'"{name}"', value)
    (directory / "config.json").write_text(text)


def refused(directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["info", str(directory)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("protein-lm: error: ") and message.count("\n") == 1 and len(message) < 2100
    assert message[:-1].isprintable()
    return message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("width", str(2**40), "width: input should be less than or equal to 1048576"),
        ("width", str(2**20), "weight embedding.weight has shape (33, 32), the config asks for (33, 1048576)"),
        ("num_layers", str(10**6), "num_layers: input should be less than or equal to 10000"),
        ("num_layers", str(10**9), "num_layers: input should be less than or equal to 10000"),
        ("num_layers", "10000", "weight blocks.2.* is missing, the config asks for 10,000 blocks"),
        ("feedforward_width", str(2**24), "the config asks for (16777216"),
        ("attention", '{"kind": "performer-relu", "num_features": 1048576}', "the config asks for (1048576, 16)"),
        ("num_heads", "32", "must give an even whole number"),
        ("kmer_buckets", str(10**15), "kmer_buckets: input should be less than or equal to"),
        ("kmer_sizes", "[2, 3, 4]", "weight kmer_embedding."),
        ("kmer_sizes", f"[{'3, ' * 999}3]", "kmer_sizes: tuple should have at most 11 items"),
        ("max_length", str(10**18), "max_length: input should be less than or equal to"),
        ("positions", '"learned"', "is missing"),
        ("width", DIGITS, "damaged, not valid JSON (Exceeds the limit (4300 digits) for integer string conversion"),
        ("width", NESTED, "damaged, not valid JSON (nested too deeply)"),
        ("width", "1e999", "width: input should be a finite number (got inf)"),
        ("dropout", "NaN", "dropout: input should be a finite number (got nan)"),
        ("attention", f'"{"A" * 3_000_000}"', "is no kind of attention; known ones: exact"),
        ("attention", '"\\u001b[31m\\u202e\\u0007"', r"'\x1b[31m\u202e\x07' is no kind of attention"),
        ("objective", '"\\ud800"', r"objective: input should be a valid string, unable to parse raw data as a unicode"),
    ],
)
def test_settings_of_impossible_models(directory, capsys, name, value, message) -> None:
    set_in_config(directory, "model", **{name: value})
    assert message in refused(directory, capsys)


@pytest.mark.parametrize("kind", ["lsh", "linformer"])
def test_sizes_that_no_computer_counts(directory, kind, capsys) -> None:
    sizes = {"max_length": str(2**31 - 1), "num_landmarks": str(2**31 - 1), "num_hash_rounds": str(2**31 - 1)}
    set_in_config(directory, "model", attention=f'"{kind}"', num_buckets=str(2**31 - 2), **sizes)
    assert "no model can have these sizes" in refused(directory, capsys)


def test_a_recipe_whose_weights_no_machine_holds() -> None:
    model = small_recipe().model
    check_room(model)
    huge = {"width": 2**20, "feedforward_width": 2**24}
    for changes in (
        huge,
        huge | {"num_layers": 10_000},
        {"kmer_sizes": (3, 4), "kmer_buckets": 2**31 - 1, "width": 2**16},
    ):
        with pytest.raises(ConfigError, match=r"the weights of such a model take [\d,.]+ GiB, and this machine has"):
            check_room(model.model_copy(update=changes))


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../../etc/passwd", "..", ".", "", "a\0b", "pipe", "folder", "x" * 10**6]
)
def test_checksums_name_plain_files_of_their_folder(directory, capsys, name) -> None:
    write_checksums(directory)
    os.mkfifo(directory / "pipe")
    (directory / "folder").mkdir()
    sums = json.loads((directory / "checksums.json").read_text())
    (directory / "checksums.json").write_text(json.dumps(sums | {name: "0"}))
    message = refused(directory, capsys)
    assert any(fault in message for fault in ("which is no file of this folder", "(no plain file)", "too long"))


@pytest.mark.parametrize("content", ["[1, 2]", '{"config.json": 3}', '{"config.json": []}', NESTED, DIGITS, "\x80"])
def test_checksums_of_any_content(directory, capsys, content) -> None:
    (directory / "checksums.json").write_text(content)
    assert "damaged" in refused(directory, capsys)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "checksums.json", "head.safetensors"])
@pytest.mark.parametrize("make", ["pipe", "device", "folder"])
def test_pipes_devices_and_folders_are_no_files_of_a_model(directory, file, make) -> None:
    (directory / file).unlink(missing_ok=True)
    if make == "pipe":
        os.mkfifo(directory / file)
    elif make == "device":
        (directory / file).symlink_to("/dev/zero")
    else:
        (directory / file).mkdir()
    with pytest.raises(ModelError, match=r"no plain file|config\.json is missing"):
        load_predictor(directory)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
@pytest.mark.parametrize("file", ["model.safetensors", "head.safetensors"])
def test_weights_are_floating_point_numbers(directory, file, dtype) -> None:
    tensors = load_file(directory / file)
    name = sorted(tensors)[0]
    save_file(tensors | {name: torch.zeros(tensors[name].shape, dtype=dtype)}, directory / file)
    with pytest.raises(ModelError, match=rf"weight {name} is of type \w+; expected floating-point numbers"):
        load_predictor(directory)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, directory / file)
    load_predictor(directory)


@pytest.mark.parametrize(
    "classes", ["3", "null", "[1, 2]", '["a"]', '["a", "b", "c"]', f"[{'0,' * 9999}0]", '"ab"', NESTED]
)
def test_heads_of_impossible_classes(directory, classes) -> None:
    set_in_config(directory, "head", classes=classes)
    with pytest.raises(ModelError, match=r"its head cannot be read|has shape|not valid JSON"):
        load_predictor(directory)


@pytest.fixture(scope="module")
def tuned(corpus, tmp_path_factory) -> Path:
    recipe = small_recipe(objective="masked", num_steps=1, warmup_steps=0, lora_rank=2, num_validation_sequences=2)
    run = tmp_path_factory.mktemp("tuned") / "run"
    save_model(fresh_model(objective="masked"), run.with_name("base"))
    Trainer(LanguageModelling(recipe, corpus), run, initial=str(run.with_name("base"))).fit()
    return run / "best"


@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha", "1e999"), ("rank", "1e999"), ("rank", "0"), ("rank", '"x"'), ("alpha", "null"), ("alpha", NESTED)],
)
def test_adapters_of_impossible_settings(tuned, name, value) -> None:
    (tuned / "checksums.json").unlink(missing_ok=True)
    content = json.loads((tuned / "config.json").read_text())
    before = json.dumps(content)
    content["base"]["adapters"][name] = "@value"
    (tuned / "config.json").write_text(json.dumps(content).replace('"@value"', value))
    with pytest.raises(ModelError, match=r"damaged|does not fit"):
        load_model(tuned)
    (tuned / "config.json").write_text(before)
    load_model(tuned)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> tuple[Recipe, Path]:
    recipe = small_recipe(num_steps=1, warmup_steps=0, keep_checkpoints=1, num_validation_sequences=2)
    run = tmp_path_factory.mktemp("trained") / "run"
    Trainer(LanguageModelling(recipe, corpus), run).fit()
    return recipe, run


@pytest.fixture
def short_run(trained, tmp_path) -> tuple[Recipe, Path]:
    return trained[0], Path(shutil.copytree(trained[1], tmp_path / "run"))


@pytest.mark.parametrize(
    "change",
    [
        {"progress": None},
        {"progress": {"step": "many"}},
        {"progress": {"step": 3, "unknown": 1}},
        {"progress": {"step": 3, "seconds": -1}},
        {"progress": {"step": 3, "best_loss": math.nan}},
        {"corpus": 3},
        {"recipe": {}},
        {"changes": None},
        {"protein_lm_version": "\x1b" * 10**5},
    ],
)
def test_training_states_of_any_content(corpus, short_run, change: dict[str, Any]) -> None:
    recipe, run = short_run
    state = read_training_facts(run / "last")
    (run / "last/training_state.json").write_text(json.dumps(state | change))
    (run / "last/checksums.json").unlink()
    write_checksums(run / "last")
    if "protein_lm_version" in change:
        Trainer(LanguageModelling(recipe, corpus), run, resume=True)
        return
    with pytest.raises((ModelError, ConfigError), match=r"damaged training state|missing; give it a value"):
        Trainer(LanguageModelling(recipe, corpus), run, resume=True)


@pytest.mark.parametrize(("name", "size"), [("0.999.exp_avg", 1), ("x", 1), ("0.0.exp_avg", 7)])
def test_moments_of_other_weights(corpus, short_run, name, size) -> None:
    recipe, run = short_run
    file = run / "last/training_state.safetensors"
    save_file(load_file(file) | {name: torch.zeros(size)}, file)
    (run / "last/checksums.json").unlink()
    write_checksums(run / "last")
    with pytest.raises(ModelError, match=r"the training state has moments '.*' of"):
        Trainer(LanguageModelling(recipe, corpus), run, resume=True)


@pytest.mark.parametrize(
    "line",
    [
        NESTED,
        '{"step": ' + DIGITS + "}",
        '{"step": "1", "split": "train", "loss_nats": 1}',
        '{"step": 1, "split": 2, "loss_nats": 1}',
        '{"step": 1, "split": "train", "loss_nats": "low"}',
        '{"step": 1, "split": "train", "loss_nats": 1, "seconds": []}',
    ],
)
def test_metrics_of_any_content(tmp_path, line) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss_nats": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: (damaged|not a row)"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match=r"is no run: it has no metrics\.jsonl"):
        read_metrics(tmp_path)
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: no plain file; give a folder that protein-lm train made"):
        read_recipe(tmp_path)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("store")
    prepare([write_fasta(folder / "p.fasta", grammar(20))], folder / "store")
    return folder / "store", json.loads((folder / "store/manifest.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../x": {"bytes": 1, "xxh3_128": "0"}}},
        {"files": {"/dev/zero": {"bytes": 0, "xxh3_128": "0"}}},
        {"files": {"tokens.npy": 3}},
        {"files": []},
        {"splits": {"train": {}}},
        {"sources": [{}]},
        {"sources": [{"name": 1, "sha256": "0"}]},
        {"format_version": "x" * 10**6},
        {"split": None, "num_read": None, "num_dropped": 7, "parts": [{"path": 3}]},
    ],
)
def test_manifests_of_any_content(manifest, change) -> None:
    store, content = manifest
    (store / "manifest.json").write_text(json.dumps(content | change))
    with pytest.raises(StoreError, match=r"is damaged|has store format") as error:
        open_corpus(store)
    assert len(str(error.value)) <= 2000
    for text in (NESTED, DIGITS, "[]", "\x80"):
        (store / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match="is damaged"):
            open_corpus(store)


def test_files_of_others_are_plain_too(tmp_path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    folder = tmp_path / "hf"
    folder.mkdir()
    shape = {
        "num_hidden_layers": 1,
        "hidden_size": 4,
        "num_attention_heads": 1,
        "intermediate_size": 4,
        "vocab_size": 33,
    }
    settings = {"model_type": "esm", "position_embedding_type": "rotary", "layer_norm_eps": 1e-5, "token_dropout": True}
    (folder / "config.json").write_text(json.dumps(settings | shape))
    for content in ('{"weight_map": {"a": "../other.safetensors"}}', '{"weight_map": {"a": 3}}', "[]", NESTED):
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ModelError, match="damaged"):
            read_esm2(folder)
    (folder / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="no plain file"):
        read_esm2(folder)
    (tmp_path / "model.pt").unlink()
    (tmp_path / "model.pt").symlink_to("/dev/zero")
    with pytest.raises(ModelError):
        read_esm2(tmp_path / "model.pt")


@pytest.mark.parametrize("value", [None, "6", [6], {}, 10**15, -1, float("inf")])
def test_settings_of_impossible_checkpoints(tmp_path, value) -> None:
    names = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads")
    for name in names:
        settings = dict.fromkeys(names, 2) | {"token_dropout": True, name: value}
        weights = {"encoder.sentence_encoder.embed_tokens.weight": torch.zeros(33, 2, dtype=torch.int64)}
        torch.save({"cfg": {"model": settings}, "model": weights}, tmp_path / "model.pt")
        with pytest.raises(ModelError):
            read_esm2(tmp_path / "model.pt")
