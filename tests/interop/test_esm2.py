"""Converted models give what fair-esm gives, and files that are no ESM-2 are refused without running anything of them."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from protein_lm import alphabet
from protein_lm.analysis.attention.maps import recorded_calls
from protein_lm.analysis.contacts import Regression, predict_contacts
from protein_lm.attention.packing import Packing
from protein_lm.checkpoint.directory import load_model, save_model
from protein_lm.choices import OutputHead, Precision, VariantStrategy
from protein_lm.cli import main
from protein_lm.config import ModelConfig
from protein_lm.errors import ConfigError, ModelError
from protein_lm.files.settings import parse
from protein_lm.inference.variants import Scoring, variant_scores
from protein_lm.interop.esm_directory import is_file_of_others, read_esm2
from protein_lm.interop.fair_esm import read_fair_esm
from protein_lm.interop.verification import verify
from protein_lm.io.variants.variant_table import all_substitutions
from protein_lm.model.conversion import with_attention
from tests.inference.toys import records
from tests.interop.conftest import NUM_LAYERS, checkpoint, untrained, write_hugging_face, write_release


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three proteins of different lengths, two with <mask>, padded: tokens and valid mask (3, 40)."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 29, (3, 40), generator=generator)
    lengths = torch.tensor([40, 23, 9])
    tokens[:, 0] = alphabet.CLS
    tokens[torch.arange(3), lengths - 1] = alphabet.EOS
    tokens[0, 5:12] = tokens[1, 3] = alphabet.MASK
    valid_mask = torch.arange(40) < lengths[:, None]
    tokens[~valid_mask] = alphabet.PAD
    return tokens, valid_mask


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    found, expected = found.detach(), expected.detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def check_equal(model, esm2) -> None:
    """Logits, hidden states of each layer, attention and contacts."""
    tokens, valid_mask = padded_batch()
    num_layers = esm2.num_layers
    expected = esm2(tokens, repr_layers=range(num_layers + 1), need_head_weights=True)
    after_blocks = []
    handles = [block.register_forward_hook(lambda *call: after_blocks.append(call[2])) for block in model.blocks]
    with recorded_calls(model) as calls:
        logits = model(tokens, valid_mask=valid_mask)
    for handle in handles:
        handle.remove()
    close(logits[valid_mask], expected["logits"][valid_mask])
    for layer in range(1, num_layers):
        close(after_blocks[layer - 1][valid_mask], expected["representations"][layer][valid_mask])
    final = model.hidden_states(tokens, valid_mask=valid_mask)
    close(final[valid_mask], expected["representations"][num_layers][valid_mask])
    both = valid_mask[:, None, :, None] & valid_mask[:, None, None, :]
    for layer, call in enumerate(calls):
        close(call.operation.matrix(call.query, call.key, call.rows) * both, expected["attentions"][:, layer])
    [record] = records("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ")
    row = torch.tensor([[alphabet.CLS, *record.tokens.tolist(), alphabet.EOS]])
    contacts = torch.from_numpy(predict_contacts(model, record, Regression.of(model))).float()
    close(contacts, esm2.predict_contacts(row)[0])


def test_a_checkpoint_of_fair_esm(esm2, tmp_path) -> None:
    model, remarks = read_esm2(write_release(esm2, tmp_path))
    assert remarks == [] and model.config.token_dropout and model.config.stored_frequencies
    check_equal(model, esm2)
    save_model(model, tmp_path / "saved")
    check_equal(load_model(tmp_path / "saved"), esm2)


@pytest.mark.slow
@pytest.mark.parametrize(("num_layers", "width"), [(6, 320), (12, 480), (30, 640)], ids=["8M", "35M", "150M"])
def test_the_sizes_of_the_release(num_layers, width, tmp_path) -> None:
    esm2 = untrained(num_layers, width, 20)
    check_equal(read_esm2(write_release(esm2, tmp_path)).model, esm2)


@pytest.mark.slow
def test_both_models_are_run_on_a_protein(esm2, tmp_path, capsys) -> None:
    path = write_release(esm2, tmp_path)
    arguments = ["convert", str(path), "-o", str(tmp_path / "model"), "--verify"]
    assert main([*arguments, "--set", "attention=elu"]) == 0
    said = re.search(r"largest difference from fair-esm's logits, .* on 58 residues: (\S+)", capsys.readouterr().out)
    assert said is not None and float(said[1]) < 1e-4
    (tmp_path / "esm2_small-contact-regression.pt").unlink()
    assert main([*arguments[:3], str(tmp_path / "second"), "--verify"]) == 0
    capsys.readouterr()
    for given, fault in (
        (["convert", str(tmp_path / "model")], "--verify compares with fair-esm's own model"),
        (["convert", str(path), "--merge"], "leave it out with --merge"),
    ):
        assert main([*given, "-o", str(tmp_path / "none"), "--verify"]) == 2
        assert fault in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_model_that_differs_from_fair_esm_is_refused(esm2, tmp_path) -> None:
    path = write_release(esm2, tmp_path)
    model, _ = read_fair_esm(path)
    with torch.no_grad():
        model.final_norm.weight.mul_(2)
    with pytest.raises(ModelError, match=r"logits differ by .* from those of fair-esm's model; nothing was written"):
        verify(path, model)
    content = torch.load(path, weights_only=False)
    torch.save(content["model"], path)
    with pytest.raises(ModelError, match="fair-esm does not read it"):
        verify(path, model)


def test_masked_marginals_are_those_of_fair_esm(tmp_path) -> None:
    esm2 = untrained(12, 480, 20)
    model = read_esm2(write_release(esm2, tmp_path)).model.eval()
    wild_type = (alphabet.FIRST_RESIDUE + np.random.default_rng(0).integers(0, 20, 60)).astype(np.uint8)
    tokens = torch.tensor([[alphabet.CLS, *wild_type.tolist(), alphabet.EOS]])
    rows = []
    for place in range(1, 61):  # as in fair-esm's examples/variant-prediction
        hidden = tokens.clone()
        hidden[0, place] = alphabet.MASK
        with torch.no_grad():
            rows.append(torch.log_softmax(esm2(hidden)["logits"], dim=-1)[0, place])
    variants = all_substitutions(wild_type)
    expected = [
        float(rows[v.sites[0]][v.substitutions[0][1]] - rows[v.sites[0]][wild_type[v.sites[0]]]) for v in variants
    ]
    found = variant_scores(model, wild_type, variants, Scoring(VariantStrategy.MASKED_MARGINALS))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    rounded = variant_scores(
        model, wild_type, variants, Scoring(VariantStrategy.MASKED_MARGINALS, precision=Precision.BFLOAT16)
    )
    assert spearmanr(rounded, expected).statistic >= 0.999


def test_a_directory_of_hugging_face(esm2, tmp_path) -> None:
    folder = write_hugging_face(esm2, tmp_path / "hf")
    check_equal(read_esm2(folder).model, esm2)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_equal(read_esm2(folder).model, esm2)
    (folder / "model.safetensors.index.json").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    check_equal(read_esm2(folder).model, esm2)


def test_without_its_head_a_model_says_so(esm2, tmp_path, capsys) -> None:
    folder = write_hugging_face(esm2, tmp_path / "hf", head=False)
    assert main(["convert", str(folder), "-o", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "no language-model head: no logits and no scores" in said and "its classifier was left out" in said
    model = load_model(tmp_path / "model")
    assert model.config.output_head is OutputHead.NONE
    tokens, valid_mask = padded_batch()
    expected = esm2(tokens, repr_layers=[NUM_LAYERS])["representations"][NUM_LAYERS]
    close(model.hidden_states(tokens, valid_mask=valid_mask)[valid_mask], expected[valid_mask])
    with pytest.raises(ConfigError, match="has no language-model head and predicts no residues"):
        model(tokens)


def test_what_a_sequence_gives_does_not_depend_on_its_company(esm2, tmp_path) -> None:
    """Token dropout counts within each sequence: the <mask> of another one, or padding, changes nothing."""
    model = read_esm2(write_release(esm2, tmp_path)).model
    tokens, valid_mask = padded_batch()
    alone = [tokens[row : row + 1, valid_mask[row]] for row in range(3)]
    packing = Packing.of_lengths(row.shape[1] for row in alone)
    with torch.no_grad():
        packed = model(torch.cat(alone, 1), packing=packing).split(packing.lengths.tolist(), 1)
        padded = model(tokens, valid_mask=valid_mask)
        for number, row in enumerate(alone):
            expected = model(row)
            close(packed[number], expected)
            close(padded[number : number + 1, valid_mask[number]], expected)
        assert model(torch.full((1, 3), alphabet.MASK)).isfinite().all()


def test_other_attention_keeps_what_belongs_to_esm2(esm2, tmp_path) -> None:
    path = write_release(esm2, tmp_path)
    assert main(["convert", str(path), "-o", str(tmp_path / "relu"), "--set", "attention=performer-relu"]) == 0
    model = load_model(tmp_path / "relu")
    assert model.config.contact_head and model.config.attention_name == "performer-relu"
    check_equal(with_attention(model, attention="exact"), esm2)


def test_a_model_without_a_contact_head(esm2, tmp_path) -> None:
    torch.save(checkpoint(esm2), tmp_path / "alone.pt")
    model, remarks = read_esm2(tmp_path / "alone.pt")
    assert remarks == ["it has no contact head"]
    with pytest.raises(ConfigError, match="this model has no contact head"):
        Regression.of(model)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_payload_is_refused_and_not_executed(esm2, tmp_path, capsys, protocol) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "executed"
    content = checkpoint(esm2) | {"extra": Payload(trace)}
    if protocol == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Payload(trace), protocol=2))
    assert main(["convert", str(path), "-o", str(tmp_path / "model")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{path}: not only weights, it asks to run posix.mkdir; refused, nothing of it was executed" in line
    assert not trace.exists() and not (tmp_path / "model").exists()
    folder = write_hugging_face(esm2, tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"asks to run posix\.mkdir"):
        read_esm2(folder)
    assert not trace.exists()


def test_damaged_and_foreign_files(esm2, tmp_path) -> None:
    path = write_release(esm2, tmp_path)
    content = path.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message) as error:
            read_esm2(path)
        assert "\n" not in str(error.value) and str(path.parent) in str(error.value)

    for part in (
        b"",
        b"MKTAYIAK",
        pickle.dumps(Payload(tmp_path / "executed")),
        content[:-100],
        content[: len(content) // 2],
    ):
        path.write_bytes(part)
        refused("damaged, or no file of torch's weights; nothing of it was executed")
    assert not (tmp_path / "executed").exists()
    whole = checkpoint(esm2)
    for broken, message in (
        ({"model": [1], "cfg": 2}, r"no checkpoint of ESM-2 in fair-esm's form"),
        ({"a": torch.ones(2)}, "holds no weights of ESM-2 under the names of fair-esm or of transformers"),
        ([1, 2], "no checkpoint of ESM-2"),
        (whole | {"args": 1}, "a checkpoint of ESM-1 or of an MSA Transformer"),
        (whole | {"cfg": {"model": None}}, "the settings cfg.model is missing"),
        (whole | {"cfg": {"model": {"encoder_layers": 3}}}, "its settings lack encoder_embed_dim"),
        (checkpoint(esm2, encoder_attention_heads=5), "width 32 over num_heads 5 must give an even whole number"),
        (checkpoint(esm2, encoder_layers="many"), "num_layers: input should be a valid integer"),
        (checkpoint(esm2, encoder_layers=4), "weight layers.3.self_attn_layer_norm.weight is missing"),
        (
            checkpoint(esm2, encoder_layers=2),
            r"contact_head.regression.weight has shape \(1, 12\), .* ask for \(1, 8\)",
        ),
        (
            whole | {"model": whole["model"] | {"new": torch.ones(1)}},
            "weight new has no place in ESM-2 of these settings",
        ),
        (checkpoint(esm2, encoder_attention_heads=8), r"inv_freq has shape \(4,\), its settings ask for \(2,\)"),
        (whole | {"model": 3}, "its part model is no table of weights"),
    ):
        torch.save(broken, path)
        refused(message)
    name = "encoder.sentence_encoder.layers.1.fc1.weight"
    for change, message in (
        (None, "weight layers.1.fc1.weight is missing"),
        (torch.zeros(3), r"weight layers.1.fc1.weight has shape \(3,\), its settings ask for \(128, 32\)"),
    ):
        weights = {key: tensor for key, tensor in whole["model"].items() if key != name}
        torch.save(whole | {"model": weights if change is None else weights | {name: change}}, path)
        refused(message)
    torch.save(whole | {"model": whole["model"] | {"encoder.lm_head.weight": torch.zeros(33, 32)}}, path)
    refused("lm_head.weight is not the embedding")
    rounded = {"encoder.sentence_encoder.layers.1.self_attn.rot_emb.inv_freq": torch.ones(4)}
    torch.save(whole | {"model": whole["model"] | rounded}, path)
    refused("layers have different rotary frequencies")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "a model of type 'bert', not esm"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type is 'absolute', ESM-2 has 'rotary'"),
        ({"emb_layer_norm_before": True}, "emb_layer_norm_before is True"),
        ({"is_folding_model": True}, "is_folding_model is True"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12, ESM-2 has 1e-05"),
        ({"vocab_size": 30}, "vocab_size is 30"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 5}, "weight encoder.layer.3.attention.LayerNorm.weight is missing"),
        (
            {"intermediate_size": 64},
            r"intermediate.dense.weight has shape \(128, 32\), its settings ask for \(64, 32\)",
        ),
    ],
)
def test_directories_that_are_not_esm2(esm2, tmp_path, changes, message) -> None:
    folder = write_hugging_face(esm2, tmp_path / "hf", **changes)
    assert is_file_of_others(folder)
    with pytest.raises(ModelError, match=message):
        read_esm2(folder)


def test_other_faults_of_directories(esm2, tmp_path, capsys) -> None:
    folder = write_hugging_face(esm2, tmp_path / "hf")
    (folder / "vocab.txt").write_text("A C D")
    with pytest.raises(ModelError, match="its 3 tokens are not ESM's 33 in their order"):
        read_esm2(folder)
    (folder / "vocab.txt").unlink()
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="damaged, not a readable safetensors file"):
        read_esm2(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights; expected model.safetensors or pytorch_model.bin"):
        read_esm2(folder)
    config = json.loads((folder / "config.json").read_text()) | {"format_version": 9}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["convert", str(folder), "-o", str(tmp_path / "x"), "--set", "attention=exact"]) == 2
    assert "format version 9, this program reads 1" in capsys.readouterr().err


def test_what_does_not_fit_together_is_refused(esm2, tmp_path) -> None:
    model = read_esm2(write_release(esm2, tmp_path)).model
    settings = model.config.model_dump(mode="json")
    with pytest.raises(ConfigError, match="token_dropout counts the <mask> of the whole sequence"):
        parse(ModelConfig, settings | {"objective": "causal"}, "it")
    with pytest.raises(ConfigError, match="stored_frequencies is for rotary ones"):
        parse(ModelConfig, settings | {"positions": "none"}, "it")
    assert np.isfinite(predict_contacts(model, records("M")[0], Regression.of(model))).all()


WRAPPERS = (
    "",
    "module.",
    "model.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model.model._orig_mod.",
    "model.esm.",
)


def wrapped(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_weights_as_trainers_save_them(esm2, tmp_path, prefix) -> None:
    path, folder = tmp_path / "trained.pt", tmp_path / "hf"
    theirs = load_file(write_hugging_face(esm2, folder) / "model.safetensors")
    save_file(wrapped(theirs, prefix), folder / "model.safetensors")
    expected = read_esm2(write_release(esm2, tmp_path)).model.state_dict()
    contents = [
        checkpoint(esm2) | {"model": wrapped(esm2.state_dict(), prefix)},
        wrapped(esm2.state_dict(), prefix),
        {"state_dict": wrapped(esm2.state_dict(), prefix), "epoch": 3, "hyper_parameters": {"rate": 1e-3}},
        {"model_state_dict": wrapped(theirs, prefix), "optimizer_state_dict": {}},
        wrapped(theirs, prefix) | {f"{prefix}classifier.weight": torch.ones(2)},
        {"model": wrapped(checkpoint(esm2)["model"], prefix)},
    ]
    for number, content in enumerate(contents):
        torch.save(content, path)
        model, remarks = read_esm2(path)
        found = model.state_dict()
        assert number == 5 or found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        assert model.config.token_dropout
        told = ["its settings were told by its weights, with token dropout as ESM-2 has it"]
        heads = {4: ["its classifier was left out"], 5: ["it has no contact head"]}.get(number, [])
        assert remarks == [*(told if number else []), *heads]
    found = read_esm2(folder).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_weights_that_cannot_be_told(esm2, tmp_path) -> None:
    path, weights = tmp_path / "trained.pt", esm2.state_dict()
    plain = {n: t for n, t in weights.items() if not n.endswith("inv_freq") and not n.startswith("contact_head")}
    long = "x\n\x1b" * 1000
    for content, message in (
        (plain, "its weights do not tell how many heads the attention has"),
        (weights | {"module.embed_tokens.weight": torch.ones(33, 32)}, "two weights are called embed_tokens.weight"),
        (weights | {"base_model.model.lora_A.weight": torch.ones(2)}, "belongs to adapters of the library peft; merge"),
        (
            weights | {"layers.0.fc1.lora_A.default.weight": torch.ones(2)},
            "belongs to adapters of the library peft; merge",
        ),
        (weights | {long: torch.ones(2)}, "has no place in ESM-2"),
        (
            weights | {"layers.1.fc1.bias": torch.ones(128, dtype=torch.int64)},
            "fc1.bias has type torch.int64; save it as",
        ),
        (weights | {"layers.1.fc1.bias": torch.ones(128, dtype=torch.cfloat)}, "fc1.bias has type torch.complex64"),
        (weights | {"embed_tokens.weight": torch.ones(1, 1).expand(33, 2**45)}, "does not hold all of its numbers"),
        (weights | {"embed_tokens.weight": torch.ones(33, 32, device="meta")}, "does not hold all of its numbers"),
        (weights | {"embed_tokens.weight": torch.ones(33)}, "holds no weights of ESM-2"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelError, match=message) as error:
            read_esm2(path)
        assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, r"weight encoder.layer.3.attention.LayerNorm.weight is missing"),
        ({"hidden_size": 2**31}, r"LayerNorm.weight has shape \(32,\), its settings ask for \(2147483648,\)"),
        ({"intermediate_size": 2**31}, r"intermediate.dense.weight has shape \(128, 32\), its settings ask for \(2147"),
        ({"intermediate_size": 2**62}, "its settings ask for a size of 4611686018427387904, which no model has"),
        ({"hidden_size": 10**4000}, r"ask for a size of 10+\.\.\.0+, which no model has"),
        ({"hidden_size": True}, "hidden_size is missing"),
        ({"model_type": ["x"] * 10**5}, r"a model of type \['x', .*\.\.\.\], not esm"),
    ],
)
def test_sizes_are_compared_with_the_weights_before_a_model_is_made(esm2, tmp_path, changes, message) -> None:
    folder = write_hugging_face(esm2, tmp_path / "hf", **changes)
    with pytest.raises(ModelError, match=message) as error:
        read_esm2(folder)
    assert len(str(error.value)) < 500
    theirs = {"num_hidden_layers": "encoder_layers", "hidden_size": "encoder_embed_dim"}
    settings = {theirs[name]: size for name, size in changes.items() if name in theirs and 1 < size < 2**40}
    if settings:
        torch.save(checkpoint(esm2, **settings), tmp_path / "large.pt")
        with pytest.raises(ModelError, match=r"is missing|has shape|a size of 8589934592"):
            read_esm2(tmp_path / "large.pt")


def sharded(esm2, folder: Path) -> Path:
    """The same weights in two files and an index."""
    weights = load_file(write_hugging_face(esm2, folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {name: f"model-{1 + (number % 2):05}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_weights_in_several_files(esm2, tmp_path) -> None:
    cache = tmp_path / "models--org--esm"
    (cache / "snapshots").mkdir(parents=True)
    folder = sharded(esm2, cache / "snapshots" / "abc")
    check_equal(read_esm2(folder).model, esm2)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):  # as the Hub's cache has them
        path.rename(cache / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    check_equal(read_esm2(folder).model, esm2)
    with pytest.raises(
        ModelError, match=r"models--org--esm: a folder of the Hub's cache; give the model in it, .*/abc"
    ):
        load_model(cache)


def test_faults_of_an_index(esm2, tmp_path) -> None:
    folder = sharded(esm2, tmp_path / "hf")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    name = sorted(places)[0]
    (tmp_path / "outside.safetensors").write_bytes((folder / places[name]).read_bytes())
    (folder / "link.safetensors").symlink_to("../outside.safetensors")
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.safetensors")
    for text, message in (
        ("[" * 100_000, "damaged, not valid JSON"),
        ("1" * 5000, "damaged, not valid JSON"),
        ("[1]", "its weight_map does not say"),
        ('{"weight_map": {}}', "its weight_map does not say"),
        ('{"weight_map": [1]}', "its weight_map does not say"),
        *(
            (json.dumps({"weight_map": places | {name: file}}), message)
            for file, message in (
                (3, "it names 3 where a file of this folder must stand"),
                ("../outside.safetensors", r"it names '\.\./outside.safetensors' where"),
                ("/dev/zero", "it names '/dev/zero' where"),
                ("x" * 10**6, r"it names 'x+\.\.\.x+' where"),
                ("a\n", r"it names 'a\\n' where"),
                ("..", "it names '..' where"),
                ("link.safetensors", "link.safetensors: a link out of its folder; put the file itself there"),
                ("zero.safetensors", "zero.safetensors: a link out of its folder"),
                ("pipe.safetensors", "pipe.safetensors: no plain file"),
                ("absent.safetensors", "incomplete, absent.safetensors is missing"),
                (places[sorted(places)[1]], "has weight|lacks weight"),
            )
        ),
        (json.dumps({"weight_map": places | {"new": places[name]}}), "lacks weight new, other than"),
    ):
        index.write_text(text)
        with pytest.raises(ModelError, match=message) as error:
            read_esm2(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_what_a_path_is_comes_before_the_settings(esm2, tmp_path, capsys) -> None:
    release, folder = write_release(esm2, tmp_path), write_hugging_face(esm2, tmp_path / "hf")
    write_hugging_face(esm2, tmp_path / "bert", model_type="bert")
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "facebook/esm2_t6_8M_UR50D"}))
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nMK\n")
    both = {
        tmp_path / "absent": "no such model directory or run",
        tmp_path / ("x" * 5000): "cannot be looked for (File name too long); correct the name",
        peft: "adapters of the library peft that stand on 'facebook/esm2_t6_8M_UR50D', and no whole model; merge them there",
        alone: "a file, of weights alone; give a folder that holds it and its config.json",
        folder / "model.safetensors": f"give the folder that holds it, {folder}",
        folder / "config.json": f"give the folder that holds it, {folder}",
    }
    score = both | {
        release: f"if it holds ESM-2, make a model of it with: protein-lm convert {release} -o DIR",
        folder: f"of the library transformers, of type 'esm'; make one of it with: protein-lm convert {folder} -o DIR",
        tmp_path / "bert": "of type 'bert', of which only ESM-2 can be converted",
        fasta: "not a model directory but a file; give the folder that holds config.json",
        Path("esm2_t6_8M_UR50D"): "downloaded and made a model with: protein-lm convert esm2_t6_8M_UR50D -o DIR",
        Path("facebook/esm2_t6_8M_UR50D"): "made a model with: protein-lm convert esm2_t6_8M_UR50D -o DIR",
    }
    for path, message in score.items():
        for verb in (["score", str(fasta), "--model"], ["info"]):
            assert main([*verb, str(path)]) == 2
            said = capsys.readouterr()
            assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    for path, message in both.items():
        for options in ([], ["--set", "attention=none-such"], ["--merge"]):
            assert main(["convert", str(path), "-o", str(tmp_path / "out"), *options]) == 2
            assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
