"""A model to train on top of."""

from pathlib import Path

import pytest

from protein_lm.checkpoint.directory import save_model
from tests.conftest import fresh_model


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "model"
    save_model(fresh_model(), path)
    return path
