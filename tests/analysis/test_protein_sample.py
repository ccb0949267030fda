"""Draws are seeded, the same for a file and its corpus, and keep the order."""

import numpy as np
import pytest

from protein_lm.analysis.protein_sample import draw, draw_sequences
from protein_lm.corpus.prepare import prepare
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.sources import STANDARD_INPUT
from tests.conftest import grammar, write_fasta


def test_drawing_is_seeded_and_counts_long_sequences_apart(tmp_path) -> None:
    sequences = grammar(50) | {"long": "A" * 100}
    fasta = write_fasta(tmp_path / "a.fasta", sequences)
    prepare([fasta], tmp_path / "corpus")
    for source in (fasta, tmp_path / "corpus"):
        drawn = draw(source, 10, longest=62, seed=3)
        names = [record.sequence_id for record in drawn.records(source)]
        assert len(names) == drawn.num_chosen == 11 and names[-1] == "long", "for the reader to count"
        assert names == sorted(names, key=list(sequences).index)
        everything = draw(source, None, longest=62)
        assert [record.sequence_id for record in everything.records(source)] == list(sequences)
    one, again, other = (draw_sequences(fasta, 10, longest=62, seed=seed) for seed in (3, 3, 4))
    same = draw_sequences(tmp_path / "corpus", 10, longest=62, seed=3)
    assert len(one) == 10 and max(map(len, one)) <= 62
    assert [a.tobytes() for a in one] == [a.tobytes() for a in again] == [a.tobytes() for a in same]
    assert [a.tobytes() for a in one] != [a.tobytes() for a in other]
    assert len(draw_sequences(fasta, 1000, longest=62)) == 50


def test_standard_input_cannot_be_drawn_from(tmp_path) -> None:
    with pytest.raises(ConfigError, match="standard input is read only once"):
        draw(STANDARD_INPUT, 10, longest=62)
    assert draw(STANDARD_INPUT, None, longest=62).num_chosen is None
    (tmp_path / "empty.fasta").write_text("")
    with pytest.raises(InputError):
        draw(tmp_path / "empty.fasta", 10, longest=62)
    assert np.asarray(draw(write_fasta(tmp_path / "b.fasta", {"a": "M"}), 5, longest=62).chosen).tolist() == [True]
