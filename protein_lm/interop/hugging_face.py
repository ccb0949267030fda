"""Our models as models of the library transformers.

Importing this module lets the Auto classes of transformers open our model directories, from disk or from the Hub, without
remote code. These are `AutoConfig`, `AutoTokenizer`, `AutoModel`, and by the model's objective `AutoModelForCausalLM` or
`AutoModelForMaskedLM`. They save model directories of ours again.

Importing `protein_lm` alone does not do this, since it would have to import transformers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from protein_lm import __version__
from protein_lm.alphabet import CLS, EOS, PAD, TOKENS, VOCABULARY_SIZE
from protein_lm.attention.input_checks import check_mask
from protein_lm.checkpoint.config_file import FORMAT_VERSION, MODEL_TYPE, READABLE_VERSIONS
from protein_lm.choices import Objective
from protein_lm.config import ModelConfig
from protein_lm.errors import ModelError, quoted
from protein_lm.files.settings import parse
from protein_lm.interop.tokenizer import ProteinLMTokenizer
from protein_lm.model.embedding import RotaryPositions, SinusoidalPositions
from protein_lm.model.language_model import DecodingState, ProteinLM

_BACKBONE = "backbone"
States = tuple[Tensor, ...] | None


class ProteinLMConfig(PreTrainedConfig):
    """The config.json of a model directory; `model` has the settings of `protein_lm.config.ModelConfig`."""

    model_type = MODEL_TYPE
    has_no_defaults_at_init = True
    format_version: int = FORMAT_VERSION
    protein_lm_version: str = __version__
    alphabet: list[str] | tuple[str, ...] = TOKENS
    model: dict[str, Any]
    vocab_size: int = VOCABULARY_SIZE
    pad_token_id: int = PAD
    bos_token_id: int = CLS
    eos_token_id: int = EOS

    def __post_init__(self, **others: Any) -> None:
        """Refuse models that this program does not read.

        Raises:
            ModelError: another format version, or another alphabet.
        """
        if self.format_version not in READABLE_VERSIONS or tuple(self.alphabet) != TOKENS:
            raise ModelError(
                f"format version {quoted(self.format_version)} with {len(self.alphabet)} tokens, this program reads "
                f"1 to {FORMAT_VERSION} with {len(TOKENS)}; use the version of protein_lm that wrote it, or a newer one"
            )
        super().__post_init__(**others)

    @property
    def settings(self) -> ModelConfig:
        """The model's settings, checked.

        Raises:
            ConfigError: they make no model.
        """
        return parse(ModelConfig, self.model, "config.json")

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.settings.width

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return self.settings.num_layers

    @property
    def num_attention_heads(self) -> int:
        """H."""
        return self.settings.num_heads


class _WithBackbone(PreTrainedModel):
    """A model with a `ProteinLM` inside; on disk its weights have the names of `ProteinLM`."""

    config_class = ProteinLMConfig
    base_model_prefix = _BACKBONE
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    config: ProteinLMConfig

    def __init__(self, config: ProteinLMConfig) -> None:
        super().__init__(config)
        self.backbone = ProteinLM(config.settings)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of tokens, which the output shares."""
        return self.backbone.embedding

    def save_pretrained(
        self, save_directory: Any, *args: Any, state_dict: dict[str, Tensor] | None = None, **options: Any
    ) -> None:
        """Save as in transformers, into a folder that `protein_lm.load` opens."""
        if not getattr(self, "_hf_peft_config_loaded", False):  # adapters alone keep their names
            weights = self.state_dict() if state_dict is None else state_dict
            state_dict = {name.removeprefix(f"{_BACKBONE}."): weight for name, weight in weights.items()}
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **options)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize what no file holds: fixed frequencies, and all weights of a model made from a config alone."""
        if isinstance(module, RotaryPositions):
            fresh = RotaryPositions(2 * module.inverse_frequencies.numel())
            module.inverse_frequencies.copy_(fresh.inverse_frequencies)
        elif isinstance(module, SinusoidalPositions):
            module.inverse_frequencies.copy_(SinusoidalPositions(module.width).inverse_frequencies)
        elif isinstance(module, nn.LayerNorm):
            super()._init_weights(module)
        elif isinstance(module, ProteinLM) and not all(
            getattr(weight, "_is_hf_initialized", False) for weight in module.parameters()
        ):
            module.initialize(torch.Generator().manual_seed(torch.initial_seed()))

    def _loss(self, logits: Tensor, labels: Tensor | None, options: dict[str, Any]) -> Tensor | None:
        """The loss that transformers has for the class, with labels of the same positions or shifted by one."""
        return None if labels is None else self.loss_function(logits, labels, vocab_size=VOCABULARY_SIZE, **options)

    def _wants_states(self, wanted: bool | None) -> bool:
        return bool(self.config.output_hidden_states if wanted is None else wanted)

    def _all_states(self, input_ids: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Hidden states (B, L, D): embeddings, then each block's output, the last one after the final norm."""
        layers = range(self.backbone.config.num_layers + 1)
        return tuple(self.backbone.layer_states(input_ids, layers=layers, valid_mask=mask).values())

    def _logits(self, input_ids: Tensor, mask: Tensor | None, wanted: bool | None) -> tuple[Tensor, States]:
        """Logits (B, L, V), and hidden states if they are wanted."""
        if not self._wants_states(wanted):
            return self.backbone(input_ids, valid_mask=mask), None
        states = self._all_states(input_ids, mask)
        return self.backbone.logits(states[-1]), states


def _valid_mask(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
    """Which tokens are real (B, L); without a mask all but <pad>. None if all are real."""
    if attention_mask is None:
        is_real = input_ids != PAD
        return None if is_real.all() else is_real
    if attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask has {attention_mask.ndim} dimensions; give one of shape (B, L), 1 for real tokens"
        )
    return attention_mask.bool()


class ProteinLMModel(_WithBackbone):
    """Final hidden states of a model."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """Hidden states (B, L, D) of token ids (B, L); `attention_mask` (B, L) is 1 for real tokens (None: all but <pad>)."""
        mask = _valid_mask(attention_mask, input_ids)
        if not self._wants_states(output_hidden_states):
            return BaseModelOutput(last_hidden_state=self.backbone.hidden_states(input_ids, valid_mask=mask))  # type: ignore[arg-type]
        states = self._all_states(input_ids, mask)
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=states)  # type: ignore[arg-type]


class ProteinLMForMaskedLM(_WithBackbone):
    """A masked model: logits at a position predict the token there."""

    def __init__(self, config: ProteinLMConfig) -> None:
        _check_objective(config, Objective.MASKED, "AutoModelForCausalLM")
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **loss_options: Any,
    ) -> MaskedLMOutput:
        """Logits (B, L, V); with labels (B, L), -100 where nothing is predicted, the mean cross-entropy in nats too."""
        _check_options(loss_options)
        logits, states = self._logits(input_ids, _valid_mask(attention_mask, input_ids), output_hidden_states)
        loss = self._loss(logits, labels, loss_options)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=states)  # type: ignore[arg-type]


@dataclass
class CausalOutput(CausalLMOutput):
    """Outputs of a causal model, and its state."""

    state: DecodingState | None = None


class ProteinLMForCausalLM(_WithBackbone, GenerationMixin):
    """A causal model: logits at a position predict the next token. `generate` carries a state of constant size."""

    _is_stateful = True

    def __init__(self, config: ProteinLMConfig) -> None:
        _check_objective(config, Objective.CAUSAL, "AutoModelForMaskedLM")
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        use_cache: bool | None = None,
        state: DecodingState | None = None,
        **loss_options: Any,
    ) -> CausalOutput:
        """Logits (B, L, V) of token ids (B, L); with labels (B, L) the mean cross-entropy in nats too.

        Labels have the positions of `input_ids` and are shifted here; -100 where nothing is predicted. With `use_cache` the
        tokens follow those that `state` has read, and the output has the state after them.

        Raises:
            ValueError: padding after a state's tokens, rows of different lengths where a state cannot hold them, more
                tokens than the model's window, or a request for attentions.
        """
        _check_options(loss_options)
        mask = None if attention_mask is None and state is not None else _valid_mask(attention_mask, input_ids)
        if use_cache or state is not None:
            logits, states, state = self._extended(input_ids, mask, state, output_hidden_states)
        else:
            logits, states = self._logits(input_ids, mask, output_hidden_states)
        loss = self._loss(logits, labels, loss_options)
        return CausalOutput(loss=loss, logits=logits, hidden_states=states, state=state)  # type: ignore[arg-type]

    def _extended(
        self, input_ids: Tensor, mask: Tensor | None, state: DecodingState | None, wanted: bool | None
    ) -> tuple[Tensor, States, DecodingState]:
        """Read tokens that follow those in `state`, or begin; logits, hidden states if they are wanted, and the new state.

        Prompts of different lengths are read one by one, each without its padding, into a row of the state.
        """
        size, length = input_ids.shape
        if mask is not None:
            mask = mask if state is None else mask[:, -length:]
            check_mask(mask, (size, length))
        if mask is None or mask.all():
            state = state or self.backbone.new_state(size)
            with self._recorded(wanted) as states:
                logits = self.backbone.extend(input_ids, state)
            return logits, tuple(states) or None, state
        if state is not None:
            raise ValueError("padding cannot follow tokens that a state has read; give real tokens alone")
        if not self.backbone.rows_can_be_replaced:
            raise ValueError(
                f"prompts of different lengths cannot share a state of {self.backbone.config.attention_name} attention; "
                "add use_cache=False"
            )
        state, rows = self.backbone.new_state(size), []
        for row, real in enumerate(mask):
            logits, states, own = self._extended(input_ids[row, real][None], None, None, wanted)
            state.put(row, own)
            rows.append([_spread(values, real) for values in (logits, *(states or ()))])
        logits, *states = (torch.cat(values) for values in zip(*rows, strict=True))
        return logits, tuple(states) or None, state

    @contextmanager
    def _recorded(self, wanted: bool | None) -> Iterator[list[Tensor]]:
        """Record the hidden states of `extend`, in the form of `_all_states`."""
        states: list[Tensor] = []
        if not self._wants_states(wanted):
            yield states
            return
        handles = [
            block.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
            for block in self.backbone.blocks
        ]
        norm = self.backbone.final_norm
        handles.append(norm.register_forward_hook(lambda _, __, output: states.append(output)))  # type: ignore[arg-type]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()

    def generate(self, inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        """Generate as in transformers. Prompts begin with <cls> and may be padded on the left; sequences end with <eos>.

        Raises:
            ValueError: a prompt without <cls>, with an <eos>, or with padding after it.
        """
        prompts = options.get("input_ids") if inputs is None else inputs
        if prompts is not None and prompts.ndim == 2:
            _check_prompts(prompts, _valid_mask(options.get("attention_mask"), prompts))
        # Model directories say nothing about generation; without these tokens it would continue after <eos>.
        self.generation_config.update(defaults_only=True, bos_token_id=CLS, eos_token_id=EOS, pad_token_id=PAD)
        return super().generate(inputs, *args, **options)  # type: ignore[misc]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: GenerationMode, *sizes: int
    ) -> None:
        """Called by `generate`. The first pass makes the state; methods that return to earlier tokens must do without.

        Raises:
            ValueError: another method than sampling or greedy search, with the default use of a cache.
        """
        if generation_config.use_cache and generation_mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
            raise ValueError(f"{generation_mode.value} cannot go back in the model's state; add use_cache=False")


def _spread(values: Tensor, real: Tensor) -> Tensor:
    """Spread values (1, K, N) of the K real tokens over a row (L,), with 0 at its padding: (1, L, N)."""
    whole = values.new_zeros(1, real.shape[0], values.shape[2])
    whole[:, real] = values
    return whole


def _check_prompts(prompts: Tensor, mask: Tensor | None) -> None:
    """Refuse prompts (B, L) that no protein can continue.

    Raises:
        ValueError: names the first of them and what to do.
    """
    real = prompts != PAD if mask is None else mask.to(prompts.device)
    check_mask(real, (prompts.shape[0], prompts.shape[1]), empty_rows=True)
    written = 'give it as tokenizer("<cls>MKT", add_special_tokens=False, return_tensors="pt")'
    for number, (tokens, is_real) in enumerate(zip(prompts, real, strict=True), 1):
        if not is_real[-1]:
            raise ValueError(f'prompt {number} has padding behind it; pad on the left: tokenizer.padding_side = "left"')
        kept = tokens[is_real].tolist()
        if EOS in kept:
            raise ValueError(f"prompt {number} holds <eos>, behind which no protein goes on; {written}")
        if kept[0] != CLS:
            raise ValueError(f"prompt {number} does not begin with <cls>, as every protein does; {written}")


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options of other models of transformers that this one lacks; the rest are options of the loss."""
    if options.get("output_attentions"):
        raise ValueError("attention matrices come from protein_lm.attention_maps, not from output_attentions")
    if options.get("inputs_embeds") is not None:
        raise ValueError("a protein language model reads input_ids (k-mers are made of them), not inputs_embeds")
    if options.get("position_ids") is not None:
        raise ValueError("positions count the real tokens of each row; leave out position_ids and give attention_mask")


def _check_objective(config: ProteinLMConfig, objective: Objective, other: str) -> None:
    found = config.settings.objective
    if found is not objective:
        raise ValueError(f"this is a {found.value} model; open it with {other}")


AutoConfig.register(MODEL_TYPE, ProteinLMConfig, exist_ok=True)
AutoTokenizer.register(ProteinLMConfig, ProteinLMTokenizer, exist_ok=True)
AutoModel.register(ProteinLMConfig, ProteinLMModel, exist_ok=True)
AutoModelForMaskedLM.register(ProteinLMConfig, ProteinLMForMaskedLM, exist_ok=True)
AutoModelForCausalLM.register(ProteinLMConfig, ProteinLMForCausalLM, exist_ok=True)
