"""Decoding by the compiled kernels against the torch path, on every level of this machine."""

import pytest
import torch

from protein_lm.model.backends import native_decoding
from protein_lm.model.decoding import DecodingInputs
from protein_lm.native import library
from tests.attention.backends.test_native_linear import has_compiler
from tests.conftest import fresh_model

pytestmark = pytest.mark.skipif(not has_compiler, reason="no C++ compiler")
SHAPE = {"width": 64, "num_heads": 2, "feedforward_width": 96, "num_random_features": 96, "max_length": 300}
REFINED = {"kmer_sizes": [3, 4], "kmer_buckets": 256, "convolution_taps": 4, "qk_norm": True}


def model_of(**settings):
    """A causal model with weights that are no longer zero anywhere, laid out for decoding."""
    model = fresh_model(objective="causal", **(SHAPE | settings))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.eval().arrange_for_decoding()
    return model


def has_kernels(model) -> bool:
    """Whether the kernels take the next token of one row."""
    with torch.no_grad():
        hidden = torch.zeros(1, 1, model.config.width)
        return native_decoding.takes(DecodingInputs(hidden, None, model.blocks, model.new_state()))


def decode(model, tokens, state, monkeypatch, path: str) -> torch.Tensor:
    """Logits (B, L, V) of tokens read one by one on a path."""
    monkeypatch.setenv(library.VARIABLE, path)
    with torch.inference_mode():
        assert has_kernels(model) == (path != library.OFF)
        return torch.stack([model.step(tokens[:, index], state) for index in range(tokens.shape[1])], dim=1)


@pytest.mark.parametrize("attention", ["performer-relu", "performer-softmax", "elu"])
@pytest.mark.parametrize("batch", [1, 2, 7, 19])
@pytest.mark.parametrize(
    "settings",
    [{}, REFINED, {"positions": "none", "convolution_taps": 1}, {"num_heads": 4}, {"width": 128, "num_heads": 1}],
    ids=["plain", "refined", "positionless", "narrow", "wide"],
)
def test_equals_the_torch_path(level, attention, batch, settings, monkeypatch) -> None:
    settings = settings | ({"positions": "rotary"} if "positions" not in settings else {})
    model = model_of(attention=attention, **settings)
    if attention == "elu" and model.config.width // model.config.num_heads % 32:
        pytest.skip("as many features as the head is wide, and there are kernels for multiples of 32")
    tokens = torch.randint(4, 24, (batch, 150), generator=torch.Generator().manual_seed(0))
    by_torch = decode(model, tokens, model.new_state(batch), monkeypatch, library.OFF)
    output = decode(model, tokens, model.new_state(batch), monkeypatch, level)
    with torch.inference_mode():
        exact = model.double()(tokens)
    allowed = 2 * (by_torch - exact).abs().max() + 1e-5 * exact.abs().max()
    assert (output - exact).abs().max() <= allowed


@pytest.mark.parametrize("attention", ["performer-relu", "performer-softmax", "elu"])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["queries", "keys", "values"])
def test_what_is_not_a_number_stays_so(level, attention, part, monkeypatch) -> None:
    """Otherwise nobody would notice a model that diverged."""
    model = model_of(attention=attention)
    with torch.no_grad():
        model.blocks[0].attention.input_projection.bias[64 * part] = torch.nan  # of the first head
    logits = decode(model, torch.full((2, 20), 5), model.new_state(2), monkeypatch, level)
    assert logits.isnan().all()


def test_either_path_resumes_from_the_other(level, monkeypatch) -> None:
    model = model_of(**REFINED)
    tokens = torch.randint(4, 24, (3, 160), generator=torch.Generator().manual_seed(0))
    expected = decode(model, tokens, model.new_state(3), monkeypatch, library.OFF)
    state = model.new_state(3)
    with torch.inference_mode():
        parts = [model.extend(tokens[:, :30], state)]
    for span, path in ((slice(30, 101), level), (slice(101, 120), library.OFF), (slice(120, 160), level)):
        parts.append(decode(model, tokens[:, span], state, monkeypatch, path))
    assert (torch.cat(parts, dim=1) - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_rows_are_replaced_kept_and_repeated(level, monkeypatch) -> None:
    model = model_of(**REFINED)
    tokens = torch.randint(4, 24, (4, 90), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def go(path: str) -> list[torch.Tensor]:
        state, other = model.new_state(3), model.new_state(1)
        results = [decode(model, tokens[:3, :70], state, monkeypatch, path)]
        decode(model, tokens[3:, :20], other, monkeypatch, path)
        state.put(1, other)
        results.append(decode(model, tokens[:3, 70:80], state, monkeypatch, path))
        state.keep(torch.tensor([2, 1]))
        results.append(decode(model, tokens[1:3, 80:85], state, monkeypatch, path))
        results.append(decode(model, tokens[:2, 85:], other.repeated(2), monkeypatch, path))
        return results

    for output, expected in zip(go(level), go(library.OFF), strict=True):
        assert (output - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_the_number_of_threads_changes_nothing(level, monkeypatch) -> None:
    model, threads = model_of(**REFINED), torch.get_num_threads()
    tokens = torch.randint(4, 24, (3, 70), generator=torch.Generator().manual_seed(0))
    results = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(decode(model, tokens, model.new_state(3), monkeypatch, level))
    finally:
        torch.set_num_threads(threads)
    # The embedding and the head are torch's.
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=1e-6, atol=1e-6)


def test_what_there_is_no_kernel_for_takes_the_torch_path(level) -> None:
    assert has_kernels(model_of())
    for settings in ({"attention": "exact"}, {"attention": "performer-optimal"}, {"num_random_features": 40}):
        assert not has_kernels(model_of(**settings))
    model = model_of()
    model.train()
    assert not has_kernels(model)
    assert not has_kernels(model_of().to(torch.bfloat16))
    unarranged = fresh_model(objective="causal", **SHAPE).eval()
    assert not has_kernels(unarranged)
