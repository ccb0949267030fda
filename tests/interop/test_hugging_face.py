"""Our model directories in transformers: what it opens, trains and saves is what we open, train and save."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protein_lm.checkpoint.directory import load_model, save_model
from protein_lm.errors import ModelError
from protein_lm.io.residues import residues_of
from tests.conftest import fresh_model

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")
hugging_face = pytest.importorskip("protein_lm.interop.hugging_face")

PROTEINS = ["MKTAYIAKQR", "MKVLAAGIVGLVLAACDEF", "MGSSHHH"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for objective in ("causal", "masked"):
        model = fresh_model(objective=objective, kmer_sizes=(3,), kmer_buckets=64, convolution_taps=3)
        save_model(model, folder / objective, facts={"step": 7})
    return {objective: folder / objective for objective in ("causal", "masked")}


def auto_class(objective: str):
    return transformers.AutoModelForCausalLM if objective == "causal" else transformers.AutoModelForMaskedLM


@pytest.fixture(params=["causal", "masked"])
def opened(request, directories):
    """A model of ours, the same in transformers, a padded batch."""
    path = directories[request.param]
    batch = transformers.AutoTokenizer.from_pretrained(path)(PROTEINS, padding=True, return_tensors="pt")
    return load_model(path), auto_class(request.param).from_pretrained(path).eval(), batch


def test_outputs_are_ours(opened, directories) -> None:
    model, wrapped, batch = opened
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = model(batch["input_ids"], valid_mask=real)
        output = wrapped(**batch, output_hidden_states=True)
        hidden = model.hidden_states(batch["input_ids"], valid_mask=real)
    torch.testing.assert_close(output.logits[real], expected[real], atol=1e-5, rtol=0)
    assert len(output.hidden_states) == model.config.num_layers + 1
    torch.testing.assert_close(output.hidden_states[-1][real], hidden[real], atol=1e-5, rtol=0)
    assert wrapped(**batch, return_dict=False)[0].shape == expected.shape
    base = transformers.AutoModel.from_pretrained(directories["causal" if model.is_causal else "masked"]).eval()
    torch.testing.assert_close(base(**batch).last_hidden_state[real], hidden[real], atol=1e-5, rtol=0)


def test_loss_predicts_what_the_objective_says(opened) -> None:
    model, wrapped, batch = opened
    tokens, real = batch["input_ids"], batch["attention_mask"].bool()
    labels = tokens.where(real, -100)
    with torch.no_grad():
        log_probabilities = model(tokens, valid_mask=real).log_softmax(-1)
        loss = wrapped(**batch, labels=labels).loss
    if model.is_causal:
        log_probabilities, tokens, real = log_probabilities[:, :-1], tokens[:, 1:], real[:, 1:]
    expected = -log_probabilities.gather(-1, tokens[..., None])[..., 0][real].mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_what_transformers_saves_is_a_model_directory(opened, tmp_path) -> None:
    model, wrapped, batch = opened
    wrapped.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.config == model.config
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    second = type(wrapped).from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(second(**batch).logits, wrapped(**batch).logits)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "axial"])
def test_other_positions(positions, tmp_path) -> None:
    model = fresh_model(objective="masked", positions=positions)
    save_model(model, tmp_path / "model")
    tokens = torch.randint(4, 24, (2, 30), generator=torch.Generator().manual_seed(0))
    wrapped = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(wrapped(tokens).logits, model(tokens))


def test_a_new_model_has_weights(directories) -> None:
    config = transformers.AutoConfig.from_pretrained(directories["masked"])
    assert config.hidden_size == 32 and config.num_hidden_layers == 2
    model = transformers.AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        logits = model(torch.tensor([[0, 20, 15, 2]])).logits
    assert logits.isfinite().all() and 0.1 < logits.std() < 10
    assert torch.equal(model.backbone.final_norm.weight, torch.ones(32))


def test_the_wrong_class_names_the_right_one(directories) -> None:
    with pytest.raises(ValueError, match="this is a causal model; open it with AutoModelForCausalLM"):
        transformers.AutoModelForMaskedLM.from_pretrained(directories["causal"])
    with pytest.raises(ValueError, match="this is a masked model; open it with AutoModelForMaskedLM"):
        transformers.AutoModelForCausalLM.from_pretrained(directories["masked"])


def test_a_model_of_another_version(directories, tmp_path) -> None:
    config = json.loads((directories["masked"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(ModelError, match="format version 99 with 33 tokens, this program reads 1 to 2 with 33"):
        transformers.AutoConfig.from_pretrained(tmp_path)


def test_what_it_cannot_do_is_said(opened) -> None:
    _, wrapped, batch = opened
    with pytest.raises(ValueError, match=r"attention matrices come from protein_lm\.attention_maps"):
        wrapped(**batch, output_attentions=True)
    with pytest.raises(ValueError, match="reads input_ids"):
        wrapped(**batch, inputs_embeds=torch.zeros(3, 4, 32))
    with pytest.raises(ValueError, match="leave out position_ids"):
        wrapped(**batch, position_ids=torch.arange(batch["input_ids"].shape[1])[None])


def test_the_tokenizer_agrees_with_that_of_esm(directories, tmp_path) -> None:
    from protein_lm import alphabet

    (tmp_path / "vocab.txt").write_text("\n".join(alphabet.TOKENS))
    esm = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"))
    ours = transformers.AutoTokenizer.from_pretrained(directories["masked"])
    for text in [*PROTEINS, "MK<mask>TX", "<cls>MB<eos>", alphabet.RESIDUES]:
        assert ours(text)["input_ids"] == esm(text)["input_ids"]
    for role in ("cls", "pad", "eos", "unk", "mask"):
        assert getattr(ours, f"{role}_token_id") == getattr(esm, f"{role}_token_id")
    assert ours("mkj-t 1*")["input_ids"] == [0, 20, 15, 24, 11, 3, 2]
    assert ours.model_max_length == 64 and len(ours("M" * 99, truncation=True)["input_ids"]) == 64
    assert ours.decode(ours("MKT")["input_ids"], skip_special_tokens=True) == "MKT"
    ours.save_pretrained(tmp_path / "saved")
    transformers.AutoConfig.from_pretrained(directories["masked"]).save_pretrained(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert type(again) is type(ours) and again("MKT")["input_ids"] == ours("MKT")["input_ids"]


@pytest.fixture(scope="module")
def tokenizer(directories):
    return transformers.AutoTokenizer.from_pretrained(directories["masked"])


@example(text="MK*\nA")
@example(text="mk-j t*-")
@settings(max_examples=60)
@given(
    text=st.text(st.sampled_from("MKBJmkj*-. \n") | st.characters(codec="utf-8", exclude_characters="<"), max_size=9)
)
def test_the_tokenizer_treats_letters_as_readers_do(text, tokenizer) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    try:
        assert ids == residues_of(text).tokens.tolist()
    except ValueError as error:
        assert (3 in ids) if ids else str(error) == "no residues"


def test_generate_carries_a_state(directories) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories["causal"])
    model = transformers.AutoModelForCausalLM.from_pretrained(directories["causal"])
    prompt = tokenizer(["<cls>MK", "<cls>GA"], add_special_tokens=False, return_tensors="pt")
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    with_state = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    handle.remove()
    assert sizes == [3] + [1] * 11 and with_state.shape == (2, 15)
    without = model.generate(**prompt, max_new_tokens=12, do_sample=False, use_cache=False)
    assert torch.equal(with_state, without)
    beams = model.generate(**prompt, max_new_tokens=4, num_beams=2, use_cache=False)
    assert beams.shape == (2, 7)
    with pytest.raises(ValueError, match="beam_search cannot go back in the model's state; add use_cache=False"):
        model.generate(**prompt, max_new_tokens=4, num_beams=2)


def begun(tokenizer, *prompts: str, side: str = "left"):
    return tokenizer(list(prompts), add_special_tokens=False, padding=True, padding_side=side, return_tensors="pt")


@pytest.mark.parametrize("attention", ["performer-relu", "cosformer", "exact"])
def test_prompts_of_different_lengths_go_on_as_alone(attention, directories, tmp_path) -> None:
    save_model(fresh_model(attention=attention, positions="learned", kmer_sizes=(3,), kmer_buckets=64), tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    options = {"max_new_tokens": 6, "do_sample": False, "output_hidden_states": True, "return_dict_in_generate": True}
    prompts = ["<cls>MKTAY", "<cls>G", "<cls>", "<cls>MKT"]
    alone = [model.generate(**begun(tokenizer, prompt), **options) for prompt in prompts]
    for use_cache in (True, False):
        if use_cache and attention == "exact":
            with pytest.raises(ValueError, match="cannot share a state of exact attention; add use_cache=False"):
                model.generate(**begun(tokenizer, *prompts), **options)
            continue
        together = model.generate(**begun(tokenizer, *prompts), use_cache=use_cache, **options)
        for row, (prompt, own) in enumerate(zip(prompts, alone, strict=True)):
            length = own.sequences.shape[1]
            assert torch.equal(together.sequences[row, -length:], own.sequences[0]), prompt
            for layer, states in enumerate(together.hidden_states[0]):
                found, expected = states[row, -own.hidden_states[0][layer].shape[1] :], own.hidden_states[0][layer][0]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_left_padding_changes_no_hidden_state(opened, directories) -> None:
    _, wrapped, batch = opened
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories["causal"])
    left = tokenizer(PROTEINS, padding=True, padding_side="left", return_tensors="pt")
    real, expected = batch["attention_mask"].bool(), wrapped(**batch, output_hidden_states=True)
    found = wrapped(**left, output_hidden_states=True)
    moved = left["attention_mask"].bool()
    for one, other in zip(
        [*expected.hidden_states, expected.logits], [*found.hidden_states, found.logits], strict=True
    ):
        torch.testing.assert_close(other[moved], one[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_protein_without_a_mask_either(opened, directories, side) -> None:
    _, wrapped, _ = opened
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories["causal"])
    batch = tokenizer(PROTEINS, padding=True, padding_side=side, return_tensors="pt")
    real = batch["attention_mask"].bool()
    expected, found = wrapped(**batch).logits, wrapped(batch["input_ids"]).logits
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


def test_prompts_behind_which_nothing_goes_on_are_refused(directories) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories["causal"])
    model = transformers.AutoModelForCausalLM.from_pretrained(directories["causal"])
    faults = {
        r'prompt 1 holds <eos>, behind which no protein goes on; give it as tokenizer\("<cls>MKT", add_sp': tokenizer(
            ["MKT"], return_tensors="pt"
        ),
        "prompt 2 holds <eos>": begun(tokenizer, "<cls>MKT", "<cls>M<eos>"),
        "prompt 1 does not begin with <cls>, as every protein does; give it as tokenizer": begun(tokenizer, "MKT"),
        "prompt 2 does not begin with <cls>": begun(tokenizer, "<cls>MKT", "M"),
        'prompt 2 has padding behind it; pad on the left: tokenizer.padding_side = "left"': begun(
            tokenizer, "<cls>MKT", "<cls>M", side="right"
        ),
    }
    for fault, prompts in faults.items():
        for arguments in (prompts, {"inputs": prompts["input_ids"]}):
            for use_cache in (True, False):
                with pytest.raises(ValueError, match=fault):
                    model.generate(**arguments, max_new_tokens=4, use_cache=use_cache)
    with pytest.raises(ValueError, match=r"valid_mask is torch.bool \(1, 2\), expected boolean \(1, 4\)"):
        model.generate(**begun(tokenizer, "<cls>MKT") | {"attention_mask": torch.ones(1, 2)}, max_new_tokens=4)


def test_generate_ends_with_eos(directories) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(directories["causal"])
    assert model.generate(max_new_tokens=4, do_sample=False).shape == (1, 5)
    with torch.no_grad():
        model.backbone.output_bias[2] = 100.0
    prompts = torch.tensor([[1, 0], [0, 20]])  # the first with <pad> before it, which the tokens tell
    assert model.generate(prompts, max_new_tokens=4, do_sample=False).tolist() == [[1, 0, 2], [0, 20, 2]]
    assert model.generate(prompts, max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (2, 6)


def test_a_state_is_followed_by_real_tokens(directories) -> None:
    """Prompts padded on any side are read into one state, which tokens then follow."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directories["causal"]).eval()
    tokens, mask = torch.tensor([[0, 20, 15], [0, 7, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    more, ones = torch.tensor([[4, 5], [6, 7]]), torch.ones(2, 2, dtype=torch.int64)
    with torch.no_grad():
        first = model(tokens, attention_mask=mask, use_cache=True)
        with pytest.raises(ValueError, match="padding cannot follow tokens that a state has read"):
            model(more, attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]]), state=first.state)
        second = model(more, attention_mask=torch.cat((mask, ones), 1), state=first.state).logits
        for row in range(2):
            real = tokens[row, mask[row].bool()]
            alone = model(torch.cat((real, more[row]))[None]).logits[0]
            torch.testing.assert_close(first.logits[row, : len(real)], alone[: len(real)], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(second[row], alone[len(real) :], rtol=1e-4, atol=1e-5)


def trained(model, path: Path, tokenizer, num_steps: int = 20) -> list[float]:
    """Losses of the library's own trainer on three proteins."""
    collator = transformers.DataCollatorForLanguageModeling(
        tokenizer, mlm=not model.backbone.is_causal if hasattr(model, "backbone") else False
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(path),
        max_steps=num_steps,
        learning_rate=0.01,
        logging_steps=num_steps // 4,
        per_device_train_batch_size=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    data = [tokenizer(protein) for protein in PROTEINS]
    trainer = transformers.Trainer(model, arguments, data_collator=collator, train_dataset=data)
    trainer.train()
    trainer.save_model(str(path / "final"))
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_the_trainer_of_transformers_trains_it(objective, directories, tmp_path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories[objective])
    model = auto_class(objective).from_pretrained(directories[objective])
    model.activation_checkpointing_enable()
    assert model.backbone.gradient_checkpointing
    losses = trained(model, tmp_path, tokenizer)
    assert losses[-1] < losses[0]
    opened, trained_weights = load_model(tmp_path / "final"), model.backbone.state_dict()
    assert all(torch.equal(weight, trained_weights[name]) for name, weight in opened.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # peft asks by the old name
def test_adapters_of_peft(directories, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories["causal"])
    model = transformers.AutoModelForCausalLM.from_pretrained(directories["causal"])
    before = {name: weight.clone() for name, weight in model.backbone.state_dict().items()}
    settings = peft.LoraConfig(r=4, target_modules=["input_projection", "output_projection"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    losses = trained(adapted, tmp_path, tokenizer)
    assert losses[-1] < losses[0]
    fresh = transformers.AutoModelForCausalLM.from_pretrained(directories["causal"])
    again = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "final")).eval()
    tokens = torch.tensor([[0, 20, 15, 11]])
    torch.testing.assert_close(again(tokens).logits, adapted.eval()(tokens).logits)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    opened = load_model(tmp_path / "merged")
    torch.testing.assert_close(opened(tokens), merged(tokens).logits)
    weight = "blocks.0.feedforward.input_projection.weight"
    assert not torch.equal(opened.state_dict()[weight], before[weight])
