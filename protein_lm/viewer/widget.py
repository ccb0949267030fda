"""The viewer in a notebook; needs the extra `notebooks`."""

from collections.abc import Sequence
from typing import Any

import anywidget  # pyright: ignore[reportMissingImports]
import traitlets

from protein_lm.analysis.attention.forms import Region
from protein_lm.analysis.attention.maps import chosen_heads, chosen_layers, read_attention
from protein_lm.inference.score import check_length
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.chains import read_chain
from protein_lm.model.language_model import ProteinLM
from protein_lm.viewer.content import Content, structure_data
from protein_lm.viewer.page import asset, structure_library


class AttentionViewer(anywidget.AnyWidget):
    """The attention of one protein, as the last expression of a cell."""

    _esm = asset("viewer.js")
    _css = asset("viewer.css")
    content = traitlets.Dict().tag(sync=True)
    """Data of `Content.data`."""
    library = traitlets.Unicode().tag(sync=True)
    """3Dmol.js if there is a structure to show."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(content=data, library=structure_library() if data["structure"] else "")


def attention_viewer(
    model: ProteinLM,
    record: SequenceRecord,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    structure: str | None = None,
) -> AttentionViewer:
    """Read the attention of one protein; layers and heads are numbered from 1, None for all.

    Raises:
        InputError: the protein is longer than the model's window; the structure `FILE[:CHAIN]` cannot be read or is of
            another protein.
        ConfigError: a layer or head that the model does not have.
    """
    check_length(record, model)
    numbers, chosen = chosen_layers(model, layers), chosen_heads(model, heads)
    shown = structure_data(structure, read_chain(structure), record) if structure else None
    residues = slice(1, len(record) + 1)
    content = Content(Region(residues, residues), numbers, chosen)
    read_attention(model, record, content.forms, layers=numbers, heads=chosen)
    title = f"{record.sequence_id}: {model.config.attention_name}, {model.config.objective.value}"
    return AttentionViewer(content.data(record, title=title, structure=shown))
