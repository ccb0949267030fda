"""The whole model keeps the promises of its parts."""

import math

import pytest
import torch

from protein_lm import alphabet
from protein_lm.attention.dispatch import rotate
from protein_lm.attention.packing import Packing
from protein_lm.model.embedding import RotaryPositions
from tests.conftest import EVERY_FORM, KINDS, fresh_model

every_model = pytest.mark.parametrize(("attention", "objective"), EVERY_FORM)


def random_tokens(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(alphabet.FIRST_RESIDUE, alphabet.FIRST_RESIDUE + 20, (batch, length), generator=generator)


@every_model
def test_padding_and_batch_change_nothing(attention, objective) -> None:
    model = fresh_model(attention=attention, objective=objective)
    tokens = random_tokens(3, 60)
    lengths = torch.tensor([60, 41, 7])
    valid_mask = torch.arange(60) < lengths[:, None]
    tokens[~valid_mask] = alphabet.PAD
    with torch.no_grad():
        together = model(tokens, valid_mask=valid_mask)
        for row, length in enumerate(lengths.tolist()):
            alone = model(tokens[row : row + 1, :length])
            torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
def test_a_causal_model_does_not_see_the_future(attention) -> None:
    model = fresh_model(attention=attention, objective="causal")
    tokens = random_tokens(1, 50)
    changed = tokens.clone()
    changed[0, 30:] = alphabet.MASK
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    # The future decides where in a matrix product a token of a hash lies, and so the order of its sums, but nothing else.
    torch.testing.assert_close(before[:, :30], after[:, :30], rtol=0, atol=1e-6 if attention == "lsh" else 0)
    assert not torch.equal(before[:, 30:], after[:, 30:])


def test_a_masked_model_sees_both_sides() -> None:
    model = fresh_model(objective="masked")
    tokens = random_tokens(1, 50)
    changed = tokens.clone()
    changed[0, 49] = alphabet.MASK
    with torch.no_grad():
        assert not torch.equal(model(tokens)[:, 0], model(changed)[:, 0])


def test_an_untrained_model_knows_nothing() -> None:
    model = fresh_model()
    tokens = random_tokens(4, 60)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss - math.log(alphabet.VOCABULARY_SIZE)) < 1.0


@every_model
def test_forward_changes_no_state(attention, objective) -> None:
    model = fresh_model(attention=attention, objective=objective).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    model(random_tokens(2, 30)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_selected_positions_are_rows_of_the_whole() -> None:
    model = fresh_model()
    tokens = random_tokens(2, 20)
    selected = torch.zeros(2, 20, dtype=torch.bool)
    selected[0, 3] = selected[1, 19] = True
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, selected=selected), model(tokens)[selected])


def test_over_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens are over the model's window of 64"):
        fresh_model()(random_tokens(1, 65))


def test_redraw_changes_only_the_projections() -> None:
    model = fresh_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.redraw_features(torch.Generator().manual_seed(9))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"blocks.{layer}.attention.operation.feature_map.projection" for layer in range(2)}


def test_rotation_keeps_norms_and_sees_only_distances() -> None:
    torch.manual_seed(0)
    positions = RotaryPositions(8)
    cosines, sines = positions.tables(torch.arange(20))
    query, key = torch.randn(8).expand(1, 1, 20, 8), torch.randn(8).expand(1, 1, 20, 8)
    turned_query, turned_key = rotate(query, cosines, sines), rotate(key, cosines, sines)
    torch.testing.assert_close(turned_query.norm(dim=-1), query.norm(dim=-1))
    scores = (turned_query @ turned_key.mT)[0, 0]
    for distance in (-3, 0, 5):
        diagonal = torch.diagonal(scores, distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned_query[0, 0, 0], query[0, 0, 0])


def test_rotation_equals_that_of_esm2() -> None:
    from esm.rotary_embedding import RotaryEmbedding

    torch.manual_seed(0)
    query, key = torch.randn(1, 15, 8), torch.randn(1, 15, 8)
    theirs, _ = RotaryEmbedding(8)(query, key)
    ours = rotate(query[None], *RotaryPositions(8).tables(torch.arange(15)))[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_meaningless_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="width 33 over num_heads 2 must give an even whole number"):
        fresh_model(width=33)


REFINED = {
    "kmer_sizes": [3, 4],
    "kmer_buckets": 256,
    "convolution_taps": 4,
    "qk_norm": True,
}
refined_or_plain = pytest.mark.parametrize("extras", [{}, REFINED], ids=["plain", "refined"])


@every_model
@refined_or_plain
def test_packing_changes_nothing(attention, objective, extras) -> None:
    model = fresh_model(attention=attention, objective=objective, **extras)
    lengths = [5, 30, 1, 2, 22]
    tokens = random_tokens(1, sum(lengths))
    with torch.no_grad():
        packed = model(tokens, packing=Packing.of_lengths(lengths)).split(lengths, 1)
        for part, alone in zip(packed, tokens.split(lengths, 1), strict=True):
            torch.testing.assert_close(part, model(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
@refined_or_plain
def test_step_by_step_equals_one_pass(attention, extras) -> None:
    model = fresh_model(attention=attention, objective="causal", **extras)
    tokens = random_tokens(3, 50)
    with torch.no_grad():
        expected = model(tokens)
        state = model.new_state(3)
        parts = [model.extend(tokens[:, :20], state), model.extend(tokens[:, 20:23], state)]
        parts += [model.step(tokens[:, place], state)[:, None] for place in range(23, 50)]
        output = torch.cat(parts, dim=1)
    assert state.num_tokens.tolist() == [50] * 3
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["performer-relu", "performer-softmax"])
def test_8192_steps_equal_one_pass_in_a_state_of_constant_size(attention) -> None:
    model = fresh_model(attention=attention, objective="causal", max_length=8192)
    tokens = random_tokens(1, 8192)
    with torch.no_grad():
        expected = model(tokens)[0]
        state = model.new_state()
        sizes = [layer.attention.sums.numel() for layer in state.layers]
        output = torch.cat([model.step(tokens[:, place], state) for place in range(8192)])
    assert [layer.attention.sums.numel() for layer in state.layers] == sizes
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_decoding_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="a masked model reads both ways and cannot resume from a state"):
        fresh_model(objective="masked").new_state()
    model = fresh_model(objective="causal")
    state = model.new_state()
    with torch.no_grad():
        model.extend(random_tokens(1, 60), state)
        with pytest.raises(ValueError, match="66 tokens are over the model's window of 64"):
            model.extend(random_tokens(1, 6), state)
        with pytest.raises(ValueError, match="it belongs to another batch or model"):
            model.extend(random_tokens(2, 3), model.new_state(1))


def test_weights_laid_out_for_decoding_give_the_same() -> None:
    model = fresh_model(objective="causal")
    tokens = random_tokens(2, 30)
    with torch.no_grad():
        before = model(tokens)
        model.arrange_for_decoding()
        torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-6)


LINEAR_KINDS = [kind for kind in KINDS if fresh_model(attention=kind, objective="causal").rows_can_be_replaced]
refined_or_learned = pytest.mark.parametrize(
    "extras", [REFINED, {"positions": "learned"}, {"positions": "sinusoidal"}], ids=["refined", "learned", "sinusoidal"]
)


@pytest.mark.parametrize("attention", LINEAR_KINDS)
@refined_or_learned
def test_a_row_that_was_replaced_equals_a_fresh_one(attention, extras) -> None:
    """Whether keys wait in the state or not, and whether the new row has read anything or not."""
    model = fresh_model(attention=attention, objective="causal", max_length=200, **extras)
    tokens = random_tokens(3, 150)
    new = random_tokens(1, 90)
    for num_read in (0, 17):
        with torch.no_grad():
            expected = torch.log_softmax(model(new), -1)
            others = torch.log_softmax(model(tokens), -1)
            state, fresh = model.new_state(3), model.new_state()
            for place in range(70):
                model.step(tokens[:, place], state)
            if num_read:
                model.extend(new[:, :num_read], fresh)
            state.put(1, fresh)
            for place in range(num_read, 80):
                column = torch.cat(
                    (tokens[:1, 70 + place - num_read], new[:, place], tokens[2:, 70 + place - num_read])
                )
                output = torch.log_softmax(model.step(column, state), -1)
                torch.testing.assert_close(output[1], expected[0, place], rtol=0, atol=1e-5)
                torch.testing.assert_close(output[0::2], others[0::2, 70 + place - num_read], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", KINDS)
def test_rows_that_stay_go_on_as_before(attention) -> None:
    model = fresh_model(attention=attention, objective="causal", **REFINED)
    tokens = random_tokens(4, 40)
    with torch.no_grad():
        expected = model(tokens)
        state = model.new_state(4)
        model.extend(tokens[:, :20], state)
        for place in range(20, 25):
            model.step(tokens[:, place], state)
        state.keep(torch.tensor([3, 1]))
        output = torch.cat([model.step(tokens[[3, 1], place], state)[:, None] for place in range(25, 40)], dim=1)
    assert (output - expected[[3, 1], 25:]).abs().max() <= 1e-5 * expected.abs().max()
