"""Validated configuration of model, data and training. Frozen; unknown keys are refused; only builders see it.

A recipe is a YAML file with the three parts `model`, `data` and `training`.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from protein_lm.choices import (
    BIDIRECTIONAL_ONLY,
    KEPT_ORTHOGONAL,
    AttentionKind,
    LongPolicy,
    LoraLayers,
    Objective,
    OptimizerName,
    OutputHead,
    Pooling,
    PositionKind,
    Precision,
    ProjectionKind,
    Task,
    TrackerName,
    TrainingLongPolicy,
    Windows,
)
from protein_lm.errors import ConfigError, named, quoted
from protein_lm.files.plain_yaml import MOST_CHARACTERS, parse_yaml

_MANY = 2**31 - 1
"""More than any number that only costs time, or that torch takes for a seed, has a use for."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """Everything needed to build a model; stored in its directory."""

    objective: Objective
    """causal or masked."""
    attention: AttentionKind | tuple[AttentionKind, ...]
    """Kind of attention: one for all layers, or a list with one for each, the lowest first."""
    num_layers: int = Field(ge=1, le=10_000)
    """Number of blocks."""
    width: int = Field(ge=2, le=2**20)
    """D, width of the residual stream."""
    num_heads: int = Field(ge=1, le=2**16)
    """H, attention heads per layer; must divide the width into an even head width."""
    feedforward_width: int = Field(ge=1, le=2**24)
    """Inner width of the feed-forward layers."""
    num_random_features: int = Field(default=256, ge=1, le=2**20)
    """M, random features per head of the Performer kinds."""
    projection: ProjectionKind = ProjectionKind.ORTHOGONAL
    """How the random features of the Performer kinds are drawn."""
    window: int = Field(default=256, ge=1, le=_MANY)
    """Tokens in sight of local, local-global, strided and bigbird attention (on both sides together, or before a token in
    causal models); of lsh, within a bucket."""
    num_global_tokens: int = Field(default=1, ge=1, le=_MANY)
    """First tokens of a sequence, which local-global and bigbird attention lets see and be seen by all."""
    stride: int = Field(default=4, ge=1, le=_MANY)
    """Blocks of 64 tokens from one to the next that strided attention sees beside its window."""
    num_strides: int = Field(default=2, ge=1, le=_MANY)
    """How many of these blocks on each side."""
    num_random_blocks: int = Field(default=3, ge=1, le=_MANY)
    """Blocks of 64 tokens that bigbird attention draws for each block."""
    num_buckets: int = Field(default=32, ge=2, le=_MANY)
    """Buckets of lsh attention, an even number."""
    num_hash_rounds: int = Field(default=2, ge=1, le=_MANY)
    """Rounds of hashing of lsh attention."""
    num_landmarks: int = Field(default=64, ge=1, le=_MANY)
    """Rank of linformer attention, landmarks of nystrom attention."""
    positions: PositionKind = PositionKind.ROTARY
    """How the model knows where a token stands."""
    axial_shape: tuple[Annotated[int, Field(ge=1, le=_MANY)], Annotated[int, Field(ge=1, le=_MANY)]] = (64, 128)
    """Rows and columns of axial positions; their product is the longest length."""
    qk_norm: bool = False
    """Whether queries and keys are normalized per head, which keeps them where softmax features estimate well."""
    max_length: int = Field(default=1024, ge=3, le=_MANY)
    """The model's window in tokens, special tokens included."""
    kmer_sizes: Annotated[tuple[Annotated[int, Field(ge=2, le=12)], ...], Field(max_length=11)] = ()
    """Lengths of the k-mers (runs of tokens) that have embeddings of their own; empty for none."""
    kmer_buckets: int = Field(default=32768, ge=1, le=_MANY)
    """Rows of the hashed embedding table of each k-mer length."""
    convolution_taps: int = Field(default=0, ge=0, le=2**20)
    """Tokens of a short convolution in front of each attention layer, the token itself included; 0 for none."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping each output of attention and feed-forward layers in training."""
    token_dropout: bool = False
    """Whether embeddings of <mask> are zero and the others of a sequence larger for it, as in ESM-2; masked models only."""
    stored_frequencies: bool = False
    """Whether the frequencies of rotary positions are stored with the weights, as for ESM-2, whose training rounded them."""
    output_head: OutputHead = OutputHead.TIED
    """How logits come out of hidden states: tied, dense, or none for a model without logits."""
    contact_head: bool = False
    """Whether the model has weights that make probabilities of contacts out of its attention."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(
                f"width {self.width} over num_heads {self.num_heads} must give an even whole number (rotary positions "
                "turn pairs); change either"
            )
        return self

    @model_validator(mode="after")
    def _esm2_settings_fit(self) -> "ModelConfig":
        if self.token_dropout and self.objective is Objective.CAUSAL:
            raise ValueError("token_dropout counts the <mask> of the whole sequence; it is for objective masked")
        if self.stored_frequencies and self.positions is not PositionKind.ROTARY:
            raise ValueError(
                f"positions {self.positions.value} have no frequencies; stored_frequencies is for rotary ones"
            )
        return self

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """The kind of each layer, the lowest first."""
        if isinstance(self.attention, AttentionKind):
            return (self.attention,) * self.num_layers
        return self.attention

    @property
    def attention_name(self) -> str:
        """The kinds in words, such as `local, local, performer-relu`, or one name if all are the same."""
        names = [kind.value for kind in self.attention_kinds]
        return names[0] if len(set(names)) == 1 else ", ".join(names)

    @field_validator("attention", mode="wrap")
    @classmethod
    def _known_kinds(cls, value: Any, handler: Any) -> Any:
        """Check names first: pydantic's own message for one name or a list of names would speak of neither."""
        names = value if isinstance(value, list | tuple) else [value]
        known = [kind.value for kind in AttentionKind]
        for name in names:
            if name not in known:
                raise ValueError(f"{quoted(name)} is no kind of attention; known ones: {', '.join(known)}")
        return handler(value)

    @model_validator(mode="after")
    def _a_kind_for_each_layer(self) -> "ModelConfig":
        if len(self.attention_kinds) != self.num_layers:
            raise ValueError(
                f"attention lists {len(self.attention_kinds)} kinds for num_layers {self.num_layers}; give one for each "
                "layer, or a single one for all"
            )
        return self

    @model_validator(mode="after")
    def _kinds_have_a_causal_form(self) -> "ModelConfig":
        without = sorted({kind.value for kind in self.attention_kinds if kind in BIDIRECTIONAL_ONLY})
        if self.objective is Objective.CAUSAL and without:
            raise ValueError(
                f"{without[0]} attention has no causal form; choose objective masked, or another kind of attention"
            )
        return self

    @model_validator(mode="after")
    def _buckets_come_in_pairs(self) -> "ModelConfig":
        if self.num_buckets % 2:
            raise ValueError(f"num_buckets {self.num_buckets} must be even: a rotation makes two buckets of each axis")
        return self

    @model_validator(mode="after")
    def _axial_shape_holds_the_window(self) -> "ModelConfig":
        rows, columns = self.axial_shape
        if self.positions is PositionKind.AXIAL and rows * columns < self.max_length:
            raise ValueError(
                f"axial_shape {rows} x {columns} holds {rows * columns:,} positions, max_length is {self.max_length:,}; "
                "make the shape larger or the window smaller"
            )
        return self

    @model_validator(mode="after")
    def _softmax_features_are_random(self) -> "ModelConfig":
        estimators = {
            AttentionKind.PERFORMER_SOFTMAX,
            AttentionKind.PERFORMER_OPTIMAL,
            AttentionKind.PERFORMER_SADERF,
        } & set(self.attention_kinds)
        if self.projection is ProjectionKind.NONE and estimators:
            name = min(kind.value for kind in estimators)
            raise ValueError(f"{name} estimates with random features; projection cannot be none")
        return self

    @model_validator(mode="after")
    def _features_come_in_pairs(self) -> "ModelConfig":
        if self.projection is ProjectionKind.HYPERBOLIC and self.num_random_features % 2:
            raise ValueError(
                f"num_random_features {self.num_random_features} must be even for the hyperbolic projection, whose rows come "
                "in pairs"
            )
        return self


OF_ATTENTION = (
    "attention",
    "num_random_features",
    "projection",
    "window",
    "num_global_tokens",
    "stride",
    "num_strides",
    "num_random_blocks",
    "num_buckets",
    "num_hash_rounds",
    "num_landmarks",
)
"""Settings of `ModelConfig` that kinds of attention are built from; other weights of a model do not depend on them."""


class DataConfig(_Section):
    """How sequences become training batches."""

    tokens_per_batch: int = Field(default=4096, ge=3, le=_MANY)
    """Tokens of one forward and backward pass per process, special tokens included."""
    windows: Windows = Windows.PACK
    """pack whole proteins, or concatenate them and cut."""
    long_sequences: TrainingLongPolicy = TrainingLongPolicy.CROP
    """Sequences that are longer than the model's window; without meaning when they are concatenated."""
    window_overlap: int = Field(default=0, ge=0, le=_MANY)
    """Residues that the windows of a long sequence share, at least."""
    weights: dict[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] | None = None
    """Of a joined corpus: how often its stores, by name, are drawn from, in sequences; None: each sequence once an epoch."""
    mask_fraction: float = Field(default=0.15, gt=0.0, le=1.0)
    """Masked objective: fraction of residues that are scored; of those 80 % show <mask>, 10 % another residue."""


class LabelledDataConfig(_Section):
    """How a table of labelled sequences becomes training batches."""

    tokens_per_batch: int = Field(default=4096, ge=3, le=_MANY)
    """Tokens of one forward and backward pass per process, special tokens included."""
    long_sequences: LongPolicy = LongPolicy.ERROR
    """Sequences that are longer than the model's window: error, drop, or crop to the first residues."""
    valid_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Of the sequences whose split the table leaves open; drawn by a hash of the sequence."""
    test_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """As valid_fraction."""


class HeadConfig(_Section):
    """What is predicted from a model's hidden states, by one linear layer; stored with the model."""

    task: Task
    """regression, classification, residue-regression or residue-classification."""
    column: str = "label"
    """Column of the table that holds the labels."""
    pooling: Pooling = Pooling.MEAN
    """What the head sees of a sequence: mean of the residues, or end; without meaning for tasks of residues."""
    no_label: str | None = None
    """Mark of what has no label and enters neither loss nor measures, beside empty cells and nan: the text of a cell, a
    number, or for classes of residues each of these letters (X if not given)."""
    frozen_model: bool = False
    """Whether only the head is trained."""

    @field_validator("no_label", mode="before")
    @classmethod
    def _numbers_are_marks(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class TrainingConfig(_Section):
    """How the weights are trained."""

    num_steps: int = Field(ge=1, le=_MANY)
    """Optimizer steps of the whole run."""
    accumulation: int = Field(default=1, ge=1, le=_MANY)
    """Batches per process that one optimizer step sums up."""
    optimizer: OptimizerName = OptimizerName.ADAMW
    """adamw, or muon for the matrices inside the blocks."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate; Muon scales it so that its updates are as large as those of AdamW."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the first and second moment."""
    epsilon: float = Field(default=1e-9, gt=0.0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled weight decay of matrices (not of biases, norms and embeddings)."""
    gradient_clip: float = Field(default=0.5, gt=0.0, allow_inf_nan=True)
    """Largest norm of the whole gradient; .inf for any."""
    warmup_steps: int = Field(default=100, ge=0, le=_MANY)
    """Steps over which the learning rate rises linearly from 0."""
    decay_fraction: float = Field(default=1.0, ge=0.0, le=1.0)
    """Fraction of the run, at its end, over which the learning rate falls linearly to final_fraction."""
    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the end, as a fraction of the peak."""
    precision: Precision = Precision.AUTO
    """Of matrix products: float32, bfloat16 (by autocast), or auto: the faster of both where the run begins."""
    sequence_parallel: int = Field(default=1, ge=1, le=_MANY)
    """Processes that hold each batch together, a stretch of its tokens each; for linear kinds of attention."""
    orthogonality: float = Field(default=0.0, ge=0.0)
    """λ of the term λ Σ ‖WWᵀ - I‖² in the loss, over the heads of the kinds orthogonal-softplus, oglu, oglu-2, aoglu-3."""
    redraw_every: int = Field(default=0, ge=0, le=_MANY)
    """Steps between new draws of the random features; 0 keeps the first draw."""
    lora_rank: int = Field(default=0, ge=0, le=_MANY)
    """Rank of adapters that are trained beside the frozen weights of an existing model; 0 trains all weights."""
    lora_alpha: float = Field(default=16.0, gt=0.0)
    """Adapters count lora_alpha / lora_rank times."""
    lora_layers: LoraLayers = LoraLayers.ALL
    """Matrices that have adapters: all of a block, or those of attention."""
    validate_every: int = Field(default=500, ge=1, le=_MANY)
    """Steps between validations."""
    num_validation_sequences: int = Field(default=512, ge=1, le=_MANY)
    """Sequences of the split `valid` that each validation uses: always the same, evenly spread over the corpus."""
    checkpoint_every: int = Field(default=500, ge=1, le=_MANY)
    """Steps between checkpoints."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that get the numbers of metrics.jsonl too."""
    keep_checkpoints: int = Field(default=2, ge=1, le=_MANY)
    """Newest checkpoints that are kept, beside the best model."""
    max_skipped_steps: int = Field(default=5, ge=1, le=_MANY)
    """Steps in a row that may be skipped since their loss or gradient is not finite; with the last of them the run stops."""
    gradient_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass: same gradients, less memory, about a third more time."""
    seed: int = Field(default=0, ge=0, le=_MANY)
    """Seed of the initial weights, the order of the data, masks, crops, dropout and feature draws."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> "TrainingConfig":
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below num_steps {self.num_steps}")
        return self


class _AnyRecipe(_Section):
    model: ModelConfig
    training: TrainingConfig

    @property
    def keeps_model(self) -> bool:
        """Whether the weights of the model that training starts from stay as they are."""
        return bool(self.training.lora_rank)

    @model_validator(mode="after")
    def _what_is_kept_does_not_change(self) -> "_AnyRecipe":
        changing = {"redraw_every": self.training.redraw_every, "orthogonality": self.training.orthogonality}
        for name, value in changing.items():
            if self.keeps_model and value:
                raise ValueError(
                    f"training.{name} {value} changes a model that adapters or a head alone leave as it is; set it to 0"
                )
        return self

    @model_validator(mode="after")
    def _orthogonality_has_weights(self) -> "_AnyRecipe":
        if self.training.orthogonality and not KEPT_ORTHOGONAL & set(self.model.attention_kinds):
            names = ", ".join(sorted(kind.value for kind in KEPT_ORTHOGONAL))
            raise ValueError(
                f"training.orthogonality {self.training.orthogonality} acts on weights that {self.model.attention_name} "
                f"attention does not have; set it to 0, or choose one of {names}"
            )
        return self


class Recipe(_AnyRecipe):
    """The training of a language model."""

    data: DataConfig = DataConfig()

    @model_validator(mode="after")
    def _something_is_predicted(self) -> "Recipe":
        if self.model.output_head is OutputHead.NONE:
            raise ValueError(
                "model.output_head none predicts no residues: such a model can be fine-tuned on labels (protein-lm finetune)"
            )
        return self


class FineTuningRecipe(_AnyRecipe):
    """The training of a head on labels, and of the model under it."""

    head: HeadConfig
    data: LabelledDataConfig = LabelledDataConfig()

    @property
    def keeps_model(self) -> bool:
        """Whether the weights of the model that training starts from stay as they are."""
        return self.head.frozen_model or super().keeps_model

    @model_validator(mode="after")
    def _what_is_frozen_has_no_adapters(self) -> "FineTuningRecipe":
        if self.head.frozen_model and self.training.lora_rank:
            raise ValueError(
                f"head.frozen_model trains the head alone, training.lora_rank {self.training.lora_rank} adapters too; "
                "set one of them"
            )
        return self


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides such as `training.num_steps=200`.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown or has an impossible value.
    """
    content = _read(path, overrides or [])
    if "head" in content:
        raise ConfigError(
            f"{path} is for fine-tuning on labels (protein-lm finetune): it has a part head; give the recipe or the run of a "
            "language model"
        )
    return parse(Recipe, content, str(path))


def load_fine_tuning_recipe(path: Path, overrides: list[str] | None = None, *, model: ModelConfig) -> FineTuningRecipe:
    """As `load_recipe`; a recipe without a part `model` is for the one given.

    Raises:
        ConfigError: as `load_recipe`.
    """
    return parse(FineTuningRecipe, {"model": model, **_read(path, overrides or [])}, str(path))


def _read(path: Path, overrides: list[str]) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such recipe; see scripts/recipes for examples") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe has the parts model, data and training; this file has none of them")
    for override in overrides:
        _apply(content, override)
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    name, separator, value = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not separator or not dot or not key:
        raise ConfigError(f"--set {named(override)}: expected section.key=value, for example training.num_steps=200")
    part = content.setdefault(section, {})
    if not isinstance(part, dict):
        raise ConfigError(f"--set {named(override)}: {section} is not a section of the recipe")
    part[key] = _value(override, value)


def _value(setting: str, value: str) -> Any:
    try:
        return parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"--set {named(setting)}: the value is not valid YAML") from error


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Settings of a model's attention given as `key=value`, such as `attention=performer-softmax`.

    Raises:
        ConfigError: not of this form, not a setting of the attention, or without a kind.
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or key not in OF_ATTENTION:
            known = ", ".join(OF_ATTENTION)
            raise ConfigError(f"--set {named(setting)}: expected key=value with a key of the attention: {known}")
        parsed[key] = _value(setting, value)
    if "attention" not in parsed:
        raise ConfigError("no kind of attention is set; add --set attention=KIND, for example performer-softmax")
    return parsed


def parse(section: type[BaseModel], content: Any, where: str) -> Any:
    """Validate `content` as `section`; the first thing wrong becomes one line that names the key and the value.

    Raises:
        ConfigError: an unknown key, a missing one or an impossible value.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(named(str(part)) for part in first["loc"]) or "recipe"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; known ones here: {', '.join(_known_keys(section, first['loc'][:-1]))}"
        elif first["type"] == "missing":
            message = "missing; give it a value"
        elif not isinstance(first["input"], dict | BaseModel):
            message = f"{message[0].lower()}{message[1:]} (got {quoted(first['input'])})"
        raise ConfigError(f"{where}: {key}: {message}") from error


def _known_keys(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        inner = section.model_fields[str(part)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        section = inner
    return sorted(section.model_fields)
