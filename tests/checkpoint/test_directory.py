"""Model directories: what goes in comes out, and what is broken is said."""

import json

import pytest
import torch

from protein_lm.checkpoint.directory import choose_device, describe, load_model, save_model
from protein_lm.errors import ConfigError, ModelError, OutputError
from tests.conftest import fresh_model


@pytest.fixture
def directory(tmp_path):
    save_model(fresh_model(), tmp_path / "model", facts={"step": 3})
    return tmp_path / "model"


def test_round_trip(directory) -> None:
    model, opened = fresh_model(), load_model(directory)
    assert opened.config == model.config and not opened.training
    assert opened.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, opened.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "step" in (directory / "README.md").read_text()
    assert "performer-relu" in describe(str(directory))


def test_a_run_directory_is_its_best_model(directory, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    directory.rename(tmp_path / "run/best")
    assert load_model(tmp_path / "run").num_parameters == fresh_model().num_parameters


def test_an_existing_model_is_never_overwritten(directory) -> None:
    with pytest.raises(OutputError, match="exists already; remove it or name another output"):
        save_model(fresh_model(), directory)


def change_config(directory, **changes) -> None:
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "incomplete model directory, config.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), "incomplete model directory, model.safetensors is missing"),
        (lambda d: (d / "config.json").write_text("{"), "damaged, not valid JSON"),
        (
            lambda d: (d / "model.safetensors").write_bytes(b"\x80\x04pickle"),
            "damaged, not a readable safetensors file",
        ),
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
            "damaged, not a readable safetensors file",
        ),
        (lambda d: change_config(d, format_version=99), "format version 99, this program reads 1"),
        (lambda d: change_config(d, alphabet=["A"]), "its alphabet is not the 33 tokens"),
        (lambda d: change_config(d, model={"width": 3}), "model|objective: missing"),
    ],
)
def test_damaged_directories(directory, damage, message) -> None:
    damage(directory)
    with pytest.raises(ModelError, match=message) as error:
        load_model(directory)
    assert "\n" not in str(error.value)


def test_weights_of_another_model(directory) -> None:
    content = json.loads((directory / "config.json").read_text())
    change_config(directory, model=content["model"] | {"width": 64})
    with pytest.raises(
        ModelError, match=r"weight embedding.weight has shape \(33, 32\), the config asks for \(33, 64\)"
    ):
        load_model(directory)
    change_config(directory, model=content["model"] | {"num_layers": 1})
    with pytest.raises(ModelError, match=r"weight blocks\.1\..* does not belong to this model"):
        load_model(directory)
    change_config(directory, model=content["model"] | {"num_layers": 3})
    with pytest.raises(ModelError, match=r"weight blocks\.2\..* is missing"):
        load_model(directory)


def test_no_model(tmp_path) -> None:
    with pytest.raises(ModelError, match="no such model directory or run"):
        load_model(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="not a model directory but a file"):
        load_model(tmp_path / "file")


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:93"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used on this machine"):
            choose_device(name)


def test_others_may_read_weights_as_they_may_any_new_file(tmp_path) -> None:
    save_model(fresh_model(), tmp_path / "model")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
