"""Where padding lies changes nothing, for every kind of attention and of positions."""

import pytest
import torch

from protein_lm import alphabet
from protein_lm.attention.kinds.table import ATTENTION_KINDS
from protein_lm.attention.packing import Packing
from protein_lm.choices import PositionKind
from protein_lm.model.language_model import ProteinLM
from tests.attention.test_sequence_parallel import group_of
from tests.conftest import fresh_model

FORMS = [
    (kind, objective)
    for kind, options in ATTENTION_KINDS.items()
    for objective in ("causal", "masked")
    if objective == "masked" or options.has_causal_form
]
SMALL = {
    "num_layers": 2,
    "width": 16,
    "feedforward_width": 16,
    "num_random_features": 8,
    "window": 4,
    "num_buckets": 2,
    "num_landmarks": 3,
    "axial_shape": [8, 8],
    "kmer_sizes": [3],
    "kmer_buckets": 32,
    "convolution_taps": 4,
}
LENGTH = 12
MASK = torch.tensor(
    [
        [1] * 12,  # whole
        [0] * 5 + [1] * 7,  # padding before
        [1] * 4 + [0] * 8,  # behind
        [0, 1, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0],  # everywhere
        [0] * 11 + [1],
    ],
    dtype=torch.bool,
)
RIGHT = MASK.sort(dim=1, descending=True).values


def small_model(objective: str = "masked", **changes) -> ProteinLM:
    settings = SMALL | changes | {"objective": objective, "token_dropout": objective == "masked"}
    return fresh_model(**settings).double()  # in float32 nothing can be said of normalizers that cancel


def batch() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(alphabet.FIRST_RESIDUE, alphabet.FIRST_RESIDUE + 20, MASK.shape, generator=generator)
    tokens[:, 3] = alphabet.MASK
    return tokens.where(MASK, alphabet.PAD)


@pytest.mark.parametrize(("kind", "objective"), FORMS)
def test_wherever_it_lies_a_sequence_has_its_own_result(kind, objective) -> None:
    tokens = batch()
    for positions in PositionKind:
        model = small_model(attention=kind, objective=objective, positions=positions.value)
        with torch.no_grad():
            together = model(tokens, valid_mask=MASK)
            for row, real in enumerate(MASK):
                alone = model(tokens[row, real][None])[0]
                torch.testing.assert_close(together[row, real], alone, rtol=1e-9, atol=1e-9, msg=positions.value)


def test_every_layer_and_what_is_selected() -> None:
    model, tokens = small_model(attention="local"), batch()
    layers = range(3)
    selected = torch.rand(MASK.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        states = model.layer_states(tokens, layers=layers, valid_mask=MASK)
        for row, real in enumerate(MASK):
            alone = model.layer_states(tokens[row, real][None], layers=layers)
            for layer in layers:
                torch.testing.assert_close(states[layer][row, real], alone[layer][0], rtol=1e-9, atol=1e-9)
        chosen = model(tokens, valid_mask=MASK, selected=selected)
        torch.testing.assert_close(chosen, model(tokens, valid_mask=MASK)[selected], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("is_traced", [False, True])
def test_gradients_are_those_of_padding_behind(is_traced, monkeypatch) -> None:
    """In a traced pass the mask is not looked at: rows are put in order even where they are."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_traced)
    model, tokens = small_model(), batch()
    moved = torch.full_like(tokens, alphabet.PAD)
    moved[RIGHT] = tokens[MASK]
    gradients = []
    for rows, mask in ((tokens, MASK), (moved, RIGHT)):
        loss = model(rows, valid_mask=mask)[mask].square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_right_padding_is_not_moved(monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "argsort", None)
    small_model()(batch(), valid_mask=RIGHT)


def test_what_does_not_fit_is_refused() -> None:
    model, tokens = small_model(), batch()
    with pytest.raises(ValueError, match=r"valid_mask is torch.bool \(5, 11\), expected boolean \(5, 12\)"):
        model(tokens, valid_mask=MASK[:, 1:])
    with pytest.raises(ValueError, match=r"valid_mask is torch.int64 \(5, 12\), expected boolean \(5, 12\)"):
        model(tokens, valid_mask=MASK.long())
    with pytest.raises(ValueError, match="row 4 of valid_mask has no real token; leave the row out"):
        model(tokens, valid_mask=MASK & (torch.arange(LENGTH) < 11))
    with pytest.raises(ValueError, match="give valid_mask or packing, not both"):
        model(tokens[:1], valid_mask=MASK[:1], packing=Packing.of_lengths([LENGTH]))
    with pytest.raises(ValueError, match="have their padding behind the real tokens; pad on the right"):
        model(tokens, valid_mask=MASK, group=group_of(2))
