"""Validated configuration of model, data and training. It is frozen, and unknown keys are refused.

A recipe is a YAML file with the three parts `model`, `data` and `training`.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from protein_lm.attention.kinds.interface import AttentionOptions
from protein_lm.attention.kinds.table import ATTENTION_KINDS, attention_options, options_in, with_defaults
from protein_lm.choices import (
    LongPolicy,
    LoraLayers,
    Objective,
    OptimizerName,
    OutputHead,
    Pooling,
    PositionKind,
    Precision,
    Task,
    TrackerName,
    TrainingLongPolicy,
    Windows,
)
from protein_lm.errors import ConfigError
from protein_lm.files.settings import parse, parse_override, put, read_recipe

_MANY = 2**31 - 1
"""Bound of numbers that only cost time, and of seeds."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """Everything needed to build a model; stored in its directory."""

    objective: Objective
    """causal or masked."""
    attention: SerializeAsAny[AttentionOptions] | tuple[SerializeAsAny[AttentionOptions], ...]
    """Kind of attention: its name, or {kind: NAME, OPTION: value}; or a list with one for each layer, the lowest first."""
    num_layers: int = Field(ge=1, le=10_000)
    """Number of blocks."""
    width: int = Field(ge=2, le=2**20)
    """D, width of the residual stream."""
    num_heads: int = Field(ge=1, le=2**16)
    """H, attention heads per layer; must divide the width into an even head width."""
    feedforward_width: int = Field(ge=1, le=2**24)
    """Inner width of the feed-forward layers."""
    positions: PositionKind = PositionKind.ROTARY
    """Positions: rotary, sinusoidal, learned, axial or none."""
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
    """Whether embeddings of <mask> are zero and others scaled up for it, as in ESM-2; masked models only."""
    stored_frequencies: bool = False
    """Whether the frequencies of rotary positions are stored with the weights, as for ESM-2, whose training rounded them."""
    output_head: OutputHead = OutputHead.TIED
    """Layers between hidden states and logits: tied, dense, or none for a model without logits."""
    contact_head: bool = False
    """Whether the model has weights that turn its attention into probabilities of contacts."""

    @property
    def attention_layers(self) -> tuple[AttentionOptions, ...]:
        """The kind of each layer with its options, the lowest first."""
        return self.attention if isinstance(self.attention, tuple) else (self.attention,) * self.num_layers

    @property
    def attention_kinds(self) -> tuple[str, ...]:
        """The name of the kind of each layer, the lowest first."""
        return tuple(layer.kind for layer in self.attention_layers)

    @property
    def attention_name(self) -> str:
        """The kinds in words, such as `local, local, performer-relu`, or one name if all are the same."""
        names = self.attention_kinds
        return names[0] if len(set(names)) == 1 else ", ".join(names)

    @model_validator(mode="before")
    @classmethod
    def _nest_older_options(cls, content: Any) -> Any:
        """Move options that older recipes and models have next to `attention` into the kinds that have them."""
        if not isinstance(content, dict) or "attention" not in content:
            return content
        older = {OLDER_OPTIONS[key]: value for key, value in content.items() if key in OLDER_OPTIONS}
        rest = {key: value for key, value in content.items() if key not in OLDER_OPTIONS}
        return rest | {"attention": with_defaults(content["attention"], older)} if older else content

    @field_validator("attention", mode="before")
    @classmethod
    def _read_kinds(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return attention_options(value)
        layers = []
        for layer, each in enumerate(value, 1):
            try:
                layers.append(attention_options(each))
            except ValueError as error:
                raise ValueError(f"layer {layer}: {error}") from error
        return tuple(layers)

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(
                f"width {self.width} over num_heads {self.num_heads} must give an even whole number (rotary positions "
                "turn pairs); change either"
            )
        return self

    @model_validator(mode="after")
    def _attention_fits(self) -> "ModelConfig":
        layers = self.attention_layers
        if len(layers) != self.num_layers:
            raise ValueError(
                f"attention lists {len(layers)} kinds for num_layers {self.num_layers}; give one for each layer, or a "
                "single one for all"
            )
        without = sorted({layer.kind for layer in layers if not layer.has_causal_form})
        if self.objective is Objective.CAUSAL and without:
            raise ValueError(
                f"{without[0]} attention has no causal form; choose objective masked, or another kind of attention"
            )
        return self

    @model_validator(mode="after")
    def _positions_and_objective_fit(self) -> "ModelConfig":
        if self.token_dropout and self.objective is Objective.CAUSAL:
            raise ValueError("token_dropout counts the <mask> of the whole sequence; it is for objective masked")
        if self.stored_frequencies and self.positions is not PositionKind.ROTARY:
            raise ValueError(
                f"positions {self.positions.value} have no frequencies; stored_frequencies is for rotary ones"
            )
        rows, columns = self.axial_shape
        if self.positions is PositionKind.AXIAL and rows * columns < self.max_length:
            raise ValueError(
                f"axial_shape {rows} x {columns} holds {rows * columns:,} positions, max_length is {self.max_length:,}; "
                "make the shape larger or the window smaller"
            )
        return self


OLDER_OPTIONS = {"num_random_features": "num_features"} | {
    name: name
    for name in (
        *("projection", "window", "num_global_tokens", "stride", "num_strides", "num_random_blocks"),
        *("num_buckets", "num_hash_rounds", "num_landmarks"),
    )
}
"""Names of options of attention next to `attention` in older recipes and models -> their names as options of a kind."""


class DataConfig(_Section):
    """Settings of training batches from a corpus."""

    tokens_per_batch: int = Field(default=4096, ge=3, le=_MANY)
    """Tokens of one forward and backward pass per process, special tokens included."""
    windows: Windows = Windows.PACK
    """pack whole proteins, or concatenate them and cut."""
    long_sequences: TrainingLongPolicy = TrainingLongPolicy.CROP
    """Treatment of sequences longer than the model's window; without meaning when they are concatenated."""
    window_overlap: int = Field(default=0, ge=0, le=_MANY)
    """Least number of residues that the windows of a long sequence share."""
    weights: dict[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] | None = None
    """Shares of the stores of a joined corpus, by name, in sequences drawn; None draws each sequence once an epoch."""
    mask_fraction: float = Field(default=0.15, gt=0.0, le=1.0)
    """Fraction of residues that a masked model predicts; of those 80 % show <mask>, 10 % another residue."""


class LabelledDataConfig(_Section):
    """Settings of training batches from a table of labelled sequences."""

    tokens_per_batch: int = Field(default=4096, ge=3, le=_MANY)
    """Tokens of one forward and backward pass per process, special tokens included."""
    long_sequences: LongPolicy = LongPolicy.ERROR
    """Treatment of sequences longer than the model's window: error, drop, or crop to the first residues."""
    valid_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Fraction for validation, of the sequences whose split the table leaves open; drawn by a hash of the sequence."""
    test_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Fraction for the test, drawn in the same way."""


class HeadConfig(_Section):
    """A linear layer that predicts labels from a model's hidden states; stored with the model."""

    task: Task
    """regression, classification, residue-regression or residue-classification."""
    column: str = "label"
    """Column of the table that holds the labels."""
    pooling: Pooling = Pooling.MEAN
    """Summary of a sequence that the head sees: mean of the residues, or end; without meaning for tasks of residues."""
    no_label: str | None = None
    """Mark of a missing label, in addition to empty cells and nan: the text of a cell, a number, or for classes of residues
    each of these letters (X if not given)."""
    frozen_model: bool = False
    """Whether only the head is trained."""

    @field_validator("no_label", mode="before")
    @classmethod
    def _numbers_are_marks(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class TrainingConfig(_Section):
    """Settings of the optimizer and of the training loop."""

    num_steps: int = Field(ge=1, le=_MANY)
    """Optimizer steps of the whole run."""
    accumulation: int = Field(default=1, ge=1, le=_MANY)
    """Batches per process in one optimizer step."""
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
    """Type of matrix products: float32, bfloat16 (by autocast), or auto: whichever is faster where the run starts."""
    sequence_parallel: int = Field(default=1, ge=1, le=_MANY)
    """Processes that share each batch, each with a stretch of its tokens; for linear kinds of attention."""
    orthogonality: float = Field(default=0.0, ge=0.0)
    """λ of the term λ Σ ‖WWᵀ - I‖² in the loss, over the heads of the kinds orthogonal-softplus, oglu, oglu-2, aoglu-3."""
    redraw_every: int = Field(default=0, ge=0, le=_MANY)
    """Steps between new draws of the random features; 0 keeps the first draw."""
    lora_rank: int = Field(default=0, ge=0, le=_MANY)
    """Rank of adapters that are trained next to the frozen weights of an existing model; 0 trains all weights."""
    lora_alpha: float = Field(default=16.0, gt=0.0)
    """Adapters are multiplied by lora_alpha / lora_rank."""
    lora_layers: LoraLayers = LoraLayers.ALL
    """Matrices that have adapters: all of a block, or those of attention."""
    validate_every: int = Field(default=500, ge=1, le=_MANY)
    """Steps between validations."""
    num_validation_sequences: int = Field(default=512, ge=1, le=_MANY)
    """Sequences of the split `valid` that each validation uses: always the same, evenly spread over the corpus."""
    checkpoint_every: int = Field(default=500, ge=1, le=_MANY)
    """Steps between checkpoints."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that also get the numbers of metrics.jsonl."""
    keep_checkpoints: int = Field(default=2, ge=1, le=_MANY)
    """Newest checkpoints that are kept, in addition to the best model."""
    max_skipped_steps: int = Field(default=5, ge=1, le=_MANY)
    """Steps in a row with a loss or gradient that is not finite; they are skipped, and after so many the run stops."""
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
        """Whether the weights of the model that training starts from do not change."""
        return bool(self.training.lora_rank)

    @model_validator(mode="after")
    def _what_is_kept_does_not_change(self) -> "_AnyRecipe":
        changing = {"redraw_every": self.training.redraw_every, "orthogonality": self.training.orthogonality}
        for name, value in changing.items():
            if self.keeps_model and value:
                raise ValueError(
                    f"training.{name} {value} changes a model that adapters or a head alone leave unchanged; set it to 0"
                )
        return self

    @model_validator(mode="after")
    def _orthogonality_has_weights(self) -> "_AnyRecipe":
        if self.training.orthogonality and not any(
            layer.has_orthogonal_weights for layer in self.model.attention_layers
        ):
            kinds = [kind for kind in sorted(ATTENTION_KINDS) if attention_options(kind).has_orthogonal_weights]
            raise ValueError(
                f"training.orthogonality {self.training.orthogonality} acts on weights that {self.model.attention_name} "
                f"attention does not have; set it to 0, or choose one of {', '.join(kinds)}"
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
    content = read_recipe(path)
    for override in overrides:
        keys, value = parse_override(override)
        if keys[0] == "model" and isinstance(model := content.get("model"), dict):
            value = _prepare_attention(model, keys[1:], value)
        put(content, keys, value)
    return content


def _prepare_attention(model: dict[str, Any], keys: list[str], value: Any) -> Any:
    """Make a recipe's part `model` ready for an override of attention, and return the value to set.

    A kind set by its name keeps the options that it shares with the former kind. An older name of an option wins over the
    options that the recipe nests.
    """
    attention = model.get("attention")
    if keys == ["attention"]:
        return with_defaults(value, options_in(attention))
    if keys[0] == "attention" and isinstance(attention, str):
        model["attention"] = {"kind": attention}
    elif keys[0] == "attention" and isinstance(attention, list):
        raise ConfigError("--set model.attention has a kind for each layer here; set the whole list")
    elif keys[0] in OLDER_OPTIONS:
        for layer in attention if isinstance(attention, list) else [attention]:
            if isinstance(layer, dict):
                layer.pop(OLDER_OPTIONS[keys[0]], None)
    return value
