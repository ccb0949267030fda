"""The door to attention: the first backend of a table that takes a call computes it."""

from types import SimpleNamespace

import pytest
import torch

from protein_lm.attention import dispatch
from protein_lm.attention.dispatch import exact_attention, linear_attention, rotate
from protein_lm.attention.feature_maps.performer import ReLUFeatures


def calls() -> dict:
    query = torch.ones(1, 2, 5, 4)
    angles = torch.zeros(5, 2)
    return {
        "LINEAR": lambda: linear_attention(query, query, query, ReLUFeatures(4, 8), causal=True),
        "EXACT": lambda: exact_attention(query, query, query, causal=True),
        "ROTARY": lambda: rotate(query, angles.cos(), angles.sin()),
    }


@pytest.mark.parametrize("table", ["LINEAR", "EXACT", "ROTARY"])
def test_a_backend_is_one_entry_and_torch_takes_the_rest(table, monkeypatch) -> None:
    by_torch, answer = calls()[table](), torch.tensor(7.0)
    for takes in (True, False):
        backend = SimpleNamespace(takes=lambda inputs, takes=takes: takes, forward=lambda inputs: answer)
        monkeypatch.setattr(dispatch, table, (backend, *getattr(dispatch, table)))
        assert torch.equal(calls()[table](), answer if takes else by_torch)
        monkeypatch.undo()
