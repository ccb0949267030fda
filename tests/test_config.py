"""Recipes: what is wrong is said in one line."""

import math
import re
from pathlib import Path

import pytest
import yaml

from protein_lm.attention.kinds.table import attention_options
from protein_lm.config import FineTuningRecipe, ModelConfig, Recipe, load_fine_tuning_recipe, load_recipe
from protein_lm.errors import ConfigError
from protein_lm.files.settings import parse

RECIPES = sorted((Path(__file__).parent.parent / "scripts/recipes").glob("*.yaml"))
GOOD = """
model: {objective: causal, attention: exact, num_layers: 1, width: 8, num_heads: 2, feedforward_width: 8}
training: {num_steps: 200}
"""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid(path) -> None:
    if path.stem == "finetune":
        loaded = load_fine_tuning_recipe(path, model=parse(ModelConfig, yaml.safe_load(GOOD)["model"], "model"))
        assert isinstance(loaded, FineTuningRecipe)
    else:
        assert isinstance(load_recipe(path), Recipe)


def test_the_papers_recipe_has_the_papers_figures() -> None:
    recipe = load_recipe(Path(__file__).parent.parent / "scripts/recipes/performer-paper.yaml")
    model, training = recipe.model, recipe.training
    assert (model.num_layers, model.num_heads, model.width, model.feedforward_width) == (36, 8, 512, 1024)
    assert (model.attention_layers[0].num_features, model.dropout, recipe.data.mask_fraction) == (256, 0.1, 0.15)
    assert (training.betas, training.epsilon, training.learning_rate) == ((0.9, 0.98), 1e-9, 1e-3)
    assert (training.weight_decay, training.gradient_clip) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.attention=performer",
            "model.attention: 'performer' is no kind of attention; known ones: exact, performer-relu, performer-softmax",
        ),
        ("model.width=-3", "model.width: input should be greater than or equal to 2 (got -3)"),
        ("model.width=9", "width 9 over num_heads 2 must give an even whole number"),
        (
            "model.attention=[exact, local]",
            "model: attention lists 2 kinds for num_layers 1; give one for each layer, or a single one for all",
        ),
        (
            "model.attention={kind: lsh, num_buckets: 7}",
            "model.attention: lsh attention: num_buckets 7 must be even: a rotation makes two buckets of each axis",
        ),
        (
            "model.attention={kind: performer-relu, num_features: 0}",
            "model.attention: performer-relu attention: num_features: input should be greater than or equal to 1 (got 0)",
        ),
        (
            "model.attention=[{kind: performer-relu, projection: odd}]",
            "layer 1: performer-relu attention: 'odd' is no projection; known ones: orthogonal, iid, regularized,",
        ),
        (
            "model.attention.num_landmarks=8",
            "model.attention: exact attention has no option 'num_landmarks'; kinds that have it: linformer, nystrom",
        ),
        (
            "model.attention={kind: local, widow: 8}",
            "model.attention: local attention has no option 'widow'; its options: window",
        ),
        ("model.attention={window: 8}", "options of attention need their kind, such as {kind: performer-relu, num_fe"),
        ("model.width.a=8", "--set model.width.a: model.width is not a section of the recipe"),
        (
            "training.orthogonality=0.1",
            "training.orthogonality 0.1 acts on weights that exact attention does not have; set it to 0, or choose "
            "one of aoglu-3, oglu, oglu-2, orthogonal-softplus",
        ),
        (
            "model.heads=3",
            "model.heads: unknown key; known ones here: attention, axial_shape, contact_head, convolution_taps, dropout",
        ),
        ("mode.width=8", "mode: unknown key; known ones here: data, model, training"),
        ("training.num_steps=many", "training.num_steps: input should be a valid integer"),
        ("training.num_steps=50", "warmup_steps 100 must be below num_steps 50"),
        ("training=3", "--set training=3: expected section.key=value"),
        ("training.num_steps", "expected section.key=value"),
        ("data.mask_fraction=0", "data.mask_fraction: input should be greater than 0 (got 0)"),
        ("training.seed=[", "--set training.seed=[: the value is not valid YAML"),
    ],
)
def test_impossible_values(tmp_path, override, message) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    with pytest.raises(ConfigError) as error:
        load_recipe(path, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "a recipe has the parts model, data and training"),
        ("training: {num_steps: 200}", "model: missing; give it a value"),
        ("\x00", "not valid YAML"),
    ],
)
def test_broken_recipes(tmp_path, content, message) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)
    with pytest.raises(ConfigError, match="no such recipe"):
        load_recipe(tmp_path / "absent.yaml")


def bomb(levels: int, times: int) -> str:
    """Aliases that stand for times ** levels values."""
    lines = ["a0: &a0 [lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * times)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"model: *a{levels - 1}", ""])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb(9, 9), "not valid YAML: its aliases stand for over 100,000 keys and values"),
        (bomb(4, 4), "model: input should be a valid dictionary or instance of ModelConfig (got "),
        ("model: &a [*a]", "not valid YAML: an alias stands for a part that it is in itself"),
        ("model: " + "[" * 5_000, "not valid YAML: nested too deeply"),
        ("model: " + "{a: " * 3_000, "not valid YAML: nested too deeply"),
        ("model: " + "9" * 5_000, "not valid YAML: Exceeds the limit"),
        ("model: 2026-99-99", "not valid YAML: month must be in 1..12"),
        ("model: !!int ''", "not valid YAML: "),
        ("model: !!bool maybe", "not valid YAML: "),
        ("? [a]\n: b", "not valid YAML: "),
        ("model: !!python/object/apply:os.system [ls]", "not valid YAML: could not determine a constructor"),
        ("a" * 2**20 + ": b", "not valid YAML: over 1,048,576 characters"),
        (GOOD + "training: {num_steps: 7}", "line 4: training is on line 3 already; keep one of them"),
        ("model:\n  width: 8\n  width: 9", "line 3: width is on line 2 already; keep one of them"),
        (GOOD.replace("exact", "A" * 100_000), "is no kind of attention; known ones: exact"),
        (GOOD.replace("200", "x" * 100_000), "training.num_steps: input should be a valid integer"),
        (GOOD.replace("200", "[" + "[1, 2], " * 999 + "]"), "training.num_steps: input should be a valid integer"),
        (GOOD + f'"{"k" * 1_000}": 1', "unknown key; known ones here: data, model, training"),
        (GOOD + r'"\e[31m\a": 1', r"\x1b[31m\x07: unknown key; known ones here: data, model, training"),
        (GOOD.replace("200", ".inf"), "training.num_steps: input should be a finite number (got inf)"),
        (GOOD.replace("}\n", ", seed: 4294967296}\n"), "seed: unknown key"),
        (
            GOOD.replace("200", "200, seed: 2147483648"),
            "training.seed: input should be less than or equal to 2147483647",
        ),
        (GOOD.replace("200", "200, learning_rate: .inf"), "training.learning_rate: input should be a finite number"),
    ],
    ids=range(23),
)
def test_recipes_of_any_content(tmp_path, content, message) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    text = str(error.value)
    assert message in text and len(text) <= 2000 and text.isprintable()
    with pytest.raises(ConfigError) as error:
        load_recipe(path, [f"training.num_steps={'[' * 10_000}"] if "not valid YAML" not in message else [])
    assert len(str(error.value)) <= 2000


@pytest.mark.parametrize("override", ["training.num_steps=" + "[" * 10_000, "x" * 10**6, "training.x=" + "9" * 5_000])
def test_overrides_of_any_content(tmp_path, override) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"--set .*(not valid YAML|expected section\.key)") as error:
        load_recipe(tmp_path / "recipe.yaml", [override])
    assert len(str(error.value)) <= 600


def test_gradients_need_not_be_clipped(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    assert load_recipe(tmp_path / "recipe.yaml", ["training.gradient_clip=.inf"]).training.gradient_clip == math.inf
    with pytest.raises(ConfigError, match="gradient_clip"):
        load_recipe(tmp_path / "recipe.yaml", ["training.gradient_clip=.nan"])


def test_configuration_is_frozen(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    recipe = load_recipe(path, ["training.seed=7"])
    assert recipe.training.seed == 7
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.seed = 8  # type: ignore[misc]


def model_config(**changes: object) -> ModelConfig:
    return parse(ModelConfig, {**MODEL, **changes}, "recipe")


MODEL = {
    "objective": "masked",
    "attention": "exact",
    "num_layers": 3,
    "width": 32,
    "num_heads": 2,
    "feedforward_width": 64,
    "max_length": 100,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": "causal", "attention": ["exact", "nystrom", "exact"]},
            "nystrom attention has no causal form; choose objective masked, or another kind of attention",
        ),
        (
            {"positions": "axial", "axial_shape": [9, 11]},
            "axial_shape 9 x 11 holds 99 positions, max_length is 100; make the shape larger or the window smaller",
        ),
        (
            {"attention": {"kind": "performer-optimal", "projection": "none"}},
            "performer-optimal estimates with random features; projection cannot be none",
        ),
    ],
)
def test_models_that_cannot_be(changes, message) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        model_config(**changes)


def test_a_kind_for_each_layer() -> None:
    config = model_config(attention=["local", {"kind": "local", "window": 1_000_000}, "performer-relu"])
    assert config.attention_name == "local, local, performer-relu"
    assert config.attention_kinds == ("local", "local", "performer-relu")
    assert config.attention_layers[1] == attention_options({"kind": "local", "window": 1_000_000})
    assert model_config(attention=["exact"] * 3).attention_name == "exact"


def test_options_by_their_older_names_mean_the_same() -> None:
    older = model_config(attention=["local", "performer-relu", "exact"], window=8, num_random_features=16)
    newer = [{"kind": "local", "window": 8}, {"kind": "performer-relu", "num_features": 16}, "exact"]
    assert older == model_config(attention=newer)
    assert older == ModelConfig.model_validate(older.model_dump(mode="json"))
    assert model_config(attention="exact", num_buckets=4) == model_config(attention="exact")


@pytest.mark.parametrize(
    ("recipe", "overrides", "attention"),
    [
        # By older names, by nested ones, and one over the other: the later setting wins.
        ("elu, num_random_features: 8", ["attention=performer-relu"], {"kind": "performer-relu", "num_features": 8}),
        (
            "performer-relu, num_random_features: 8",
            ["attention.num_features=16"],
            {"kind": "performer-relu", "num_features": 16},
        ),
        (
            "{kind: performer-relu, num_features: 8}",
            ["num_random_features=16", "attention=performer-exp"],
            {"kind": "performer-exp", "num_features": 16},
        ),
        (
            "[{kind: performer-relu, num_features: 8}]",
            ["num_random_features=16"],
            [{"kind": "performer-relu", "num_features": 16}],
        ),
        # A kind set by its name keeps the options that it shares with the former kind.
        (
            "{kind: strided, window: 8, stride: 2}",
            ["attention=[local]"],
            [{"kind": "local", "window": 8}],
        ),
    ],
)
def test_overrides_of_attention(tmp_path, recipe, overrides, attention) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("exact", recipe))
    settings = [f"model.{override}" for override in overrides]
    expected = {**yaml.safe_load(GOOD)["model"], "attention": attention}
    assert load_recipe(path, settings).model == ModelConfig.model_validate(expected)


def test_one_option_of_a_list_of_kinds_is_not_set(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD.replace("exact", "[local]"))
    with pytest.raises(ConfigError, match=r"model.attention has a kind for each layer here; set the whole list"):
        load_recipe(tmp_path / "recipe.yaml", ["model.attention.window=8"])


def test_a_recipe_on_labels_is_not_one_of_a_language_model() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.yaml is for fine-tuning on labels \(protein-lm finetune\)"):
        load_recipe(RECIPES[0].with_name("finetune.yaml"))
