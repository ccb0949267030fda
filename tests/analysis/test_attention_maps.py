"""The matrices are those that the layers apply."""

import numpy as np
import pytest
import torch

from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.analysis.attention.maps import recorded_calls
from protein_lm.batches.packed_batches import pack
from protein_lm.errors import ConfigError, InputError
from tests.conftest import EVERY_FORM, fresh_model
from tests.inference.toys import records

PROTEIN = records("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILS")[0]
every_model = pytest.mark.parametrize(("attention", "objective"), EVERY_FORM)


@every_model
def test_matrix_times_values_is_the_output_of_the_layer(attention, objective) -> None:
    model = fresh_model(attention=attention, objective=objective)
    matrices = torch.from_numpy(attention_matrices(model, PROTEIN))
    assert matrices.shape == (2, 2, len(PROTEIN) + 2, len(PROTEIN) + 2)
    if model.operations()[0].weights_are_positive:
        torch.testing.assert_close(matrices.sum(-1), torch.ones(matrices.shape[:-1]), rtol=1e-5, atol=1e-5)
    if objective == "causal":
        assert (matrices.triu(1) == 0).all()
    tokens, packing = pack([PROTEIN.tokens])
    with recorded_calls(model) as calls, torch.no_grad():
        model(tokens, packing=packing)
    for layer, call in enumerate(calls):
        values = call.value[0].chunk(call.operation.heads_per_output)
        rows = matrices[layer] @ values[0]
        rows[:, :1] = (matrices[layer] @ values[-1])[:, :1]  # a global token may have values of its own
        torch.testing.assert_close(rows, call.output[0], rtol=1e-4, atol=1e-5)


def test_chosen_layers_and_heads_are_those_of_the_whole() -> None:
    model = fresh_model()
    whole = attention_matrices(model, PROTEIN)
    np.testing.assert_array_equal(attention_matrices(model, PROTEIN, layers=[2], heads=[2, 1]), whole[[1]][:, [1, 0]])
    for wrong, message in (({"layers": [3]}, "layer 3 does not exist; this model has layers 1 to 2"),):
        with pytest.raises(ConfigError, match=message):
            attention_matrices(model, PROTEIN, **wrong)
    with pytest.raises(ConfigError, match="head 9 does not exist; this model has heads 1 to 2"):
        attention_matrices(model, PROTEIN, heads=[9])


def test_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="sequence P0 has 63 residues; this model reads 62; leave it out, or use"):
        attention_matrices(fresh_model(), records("A" * 63)[0])
