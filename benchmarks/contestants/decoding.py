"""Greedy generation of a given number of tokens after a prompt of one, no gradients.

float32 or bfloat16 is the type of the weights.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import models
from benchmarks.contestants.base import DTYPES, UNLIMITED, Contestant, Prepared
from benchmarks.spec import Spec
from protein_lm import alphabet

LAST_TOKENS = 64
"""Tokens at the end of the sequence over which the time per token there is taken."""

Step = Callable[[Tensor], Tensor]
"""Tokens (B,) -> logits (B, V) of the next; remembers what came before."""


def by_hand(build: Callable[[Spec], Callable[[], Step]]) -> Callable[[Spec], Prepared]:
    """A contestant's `prepare` out of what builds its model and, for every pass, an empty memory."""

    def prepare(spec: Spec) -> Prepared:
        begin = build(spec)
        late = max(spec.length - LAST_TOKENS, 0)

        @torch.inference_mode()
        def once() -> None:
            step, tokens, mark = begin(), torch.full((spec.batch,), alphabet.CLS), 0.0
            for number in range(spec.length):
                if number == late:
                    mark = time.perf_counter()
                tokens = step(tokens).argmax(-1)
            at_end = (time.perf_counter() - mark) / (spec.length - late)
            prepared.facts["seconds_per_token_at_end"] = at_end

        prepared = Prepared(once, units=spec.batch * spec.length)
        return prepared

    return prepare


def ours(attention: str) -> Callable[[Spec], Callable[[], Step]]:
    """`ProteinLM.step`: a state of fixed size for the linear kinds."""

    def build(spec: Spec) -> Callable[[], Step]:
        model = models.ours(models.Size(spec.length + 1), objective="causal", attention=attention)
        model.to(DTYPES[spec.dtype]).eval()
        model.arrange_for_decoding()  # as `load_model` does

        def begin() -> Step:
            state = model.new_state(batch_size=spec.batch)
            return lambda tokens: model.step(tokens, state)

        return begin

    return build


def gpt2(cache_name: str) -> Callable[[Spec], Callable[[], Step]]:
    """Hugging Face GPT-2, called token by token with a cache that grows (dynamic) or has its full size at once (static)."""

    def build(spec: Spec) -> Callable[[], Step]:
        from transformers import DynamicCache, StaticCache  # pyright: ignore[reportMissingImports]

        model = _gpt2(spec)

        def begin() -> Step:
            dynamic = cache_name == "dynamic"
            cache = DynamicCache(config=model.config) if dynamic else StaticCache(model.config, spec.length + 1)

            def step(tokens: Tensor) -> Tensor:
                return model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True).logits[:, -1]

            return step

        return begin

    return build


def gpt2_generate(spec: Spec) -> Prepared:
    """`model.generate` of Hugging Face GPT-2, as its users call it."""
    model = _gpt2(spec)
    prompt = torch.full((spec.batch, 1), alphabet.CLS)

    @torch.inference_mode()
    def once() -> None:
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=spec.length
        )
        assert output.shape[1] == spec.length + 1, output.shape

    return Prepared(once, units=spec.batch * spec.length)


def performer_generate(spec: Spec) -> Prepared:
    """`generate` of performer-pytorch's `AutoregressiveWrapper`, which computes the whole sequence anew for each token."""
    from performer_pytorch import AutoregressiveWrapper  # pyright: ignore[reportMissingImports]

    model = models.performer_pytorch(models.Size(spec.length + 1), causal=True).to(DTYPES[spec.dtype]).eval()
    wrapped = AutoregressiveWrapper(model)
    prompt = torch.full((spec.batch, 1), alphabet.CLS)

    @torch.inference_mode()
    def once() -> None:
        output = wrapped.generate(prompt, spec.length)
        assert output.shape[1] == spec.length, output.shape

    return Prepared(once, units=spec.batch * spec.length)


def _gpt2(spec: Spec) -> Any:
    return models.gpt2(models.Size(spec.length + 1)).to(DTYPES[spec.dtype]).eval()


CONTESTANTS = {
    "ours-relu": Contestant(by_hand(ours("performer-relu")), {"causal": UNLIMITED}),
    "ours-softmax": Contestant(by_hand(ours("performer-softmax")), {"causal": UNLIMITED}),
    "hf-gpt2-dynamic": Contestant(by_hand(gpt2("dynamic")), {"causal": 8192}, package="transformers"),
    "hf-gpt2-static": Contestant(by_hand(gpt2("static")), {"causal": 8192}, package="transformers"),
    "hf-gpt2-generate": Contestant(gpt2_generate, {"causal": 8192}, package="transformers"),
    "performer-pytorch-generate": Contestant(
        performer_generate, {"causal": 1024}, package="performer-pytorch", slow=frozenset({"causal"})
    ),
}
