"""Files of `protein-lm attention`: matrices or block means, tables and figures, for proteins of any length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protein_lm import alphabet
from protein_lm.analysis.attention.forms import (
    BlockMeans,
    LargestWeights,
    Matrices,
    Region,
    Rollout,
)
from protein_lm.analysis.attention.heads import HeadSums
from protein_lm.analysis.attention.maps import Form, chosen_heads, chosen_layers, read_attention
from protein_lm.analysis.attention.redraws import check_draws, draw_features
from protein_lm.errors import ConfigError, InputError, named
from protein_lm.files.output import new_directory, safe_name
from protein_lm.files.tables import write_table
from protein_lm.inference.score import check_length
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.chains import Chain, read_chain
from protein_lm.model.language_model import ProteinLM
from protein_lm.plots.attention import attention_grid, attention_profiles, attention_rollout
from protein_lm.plots.saving import save_figure
from protein_lm.viewer.content import Content, structure_data
from protein_lm.viewer.page import page

FULL_BYTES = 2**28
"""Largest size of a protein's matrices that are kept whole, unless block means are asked for."""
MAX_BYTES = 4 * 2**30
"""Most memory that the matrices or block means of one protein may take."""
DEFAULT_PIXELS = 512


@dataclass(frozen=True, kw_only=True)
class AttentionChoice:
    """Choice of what is written for each protein."""

    rows: tuple[int, int] | None = None
    """First and last attending residue, from 1; None for all."""
    columns: tuple[int, int] | None = None
    """First and last attended residue, from 1; None for all."""
    pixels: int | None = None
    """Blocks on each side to take means over; None: all weights if they are small enough, or 512 blocks."""
    full: bool = False
    """Write all weights, whatever their size."""
    top: int | None = None
    """Number of attended residues to list for each residue."""
    profiles: bool = False
    """Write attention by offset and by attended residue."""
    rollout: bool = False
    """Write attention through all layers."""
    num_draws: int | None = None
    """Draws of random features to take mean and standard error over."""
    html: bool = False
    """Write an interactive page."""
    structure: str | None = None
    """`FILE` or `FILE:CHAIN` that the page shows as well."""


class AttentionFiles(NamedTuple):
    """Names of one protein's files."""

    name: str
    """Name of its files, without ending."""
    note: str | None
    """One line about a choice that the user did not make."""


def write_attention(
    model: ProteinLM,
    records: Iterable[SequenceRecord],
    output: Path,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    choice: AttentionChoice | None = None,
    figure_format: str = ".png",
) -> list[AttentionFiles]:
    """Write for each protein an .npz, a table of head statistics, a figure, and what else is chosen.

    The .npz of whole matrices has
        `matrices` (layers, heads, R, C) in float32, rows attend;
        `rows` (R,) and `columns` (C,), the positions of the residues, 0 for <cls> and L + 1 for <eos>. Only matrices without
        `--rows` and `--columns` have <cls> and <eos>; their rows sum to 1.
    The .npz of block means has
        `block_means` (layers, heads, P, P);
        `row_edges` and `column_edges` (P + 1,), the positions at which blocks begin, and one more than the last position.
    Both have `sequence_id`, `sequence`, and `layers` and `heads`, numbered from 1. With draws they have `draw_mean` and
    `draw_standard_error`, with rollout `rollout` (R, C) or (P, P).

    Head statistics, the tables in the folders `offsets` and `received`, the figures in `profiles`, and rollout describe whole
    proteins. The folder `top` and the page NAME.html have the chosen rows and columns alone.

    Args:
        model: any model.
        records: the proteins.
        output: the folder to make.
        layers: layers to write, from 1; None for all.
        heads: heads to write, from 1; None for all.
        choice: what is written.
        figure_format: ending of the figures.

    Raises:
        InputError: a protein is longer than the model's window, or lacks the residues asked for; the structure cannot be
            read, or belongs to another protein.
        ConfigError: a layer or head that does not exist, matrices over the memory limit, draws of a kind that draws
            nothing, rollout of some layers or heads only.
        OutputError: `output` exists or cannot be written.
    """
    choice = choice or AttentionChoice()
    if choice.rollout and (layers is not None or heads is not None):
        raise ConfigError("--rollout goes through all layers and heads; leave out --layer and --head")
    numbers, chosen = chosen_layers(model, layers), chosen_heads(model, heads)
    if choice.num_draws:
        check_draws(model, numbers)
    chain = read_chain(choice.structure) if choice.structure else None
    written: list[AttentionFiles] = []
    with new_directory(output) as folder:
        for record in records:
            name = safe_name(record.sequence_id, taken=[each.name for each in written])
            part = _ProteinPart(model, record, numbers, chosen, choice, chain)
            part.write(folder, name, figure_format)
            written.append(AttentionFiles(name, part.note))
    return written


class _ProteinPart:
    """One protein's part of the output."""

    def __init__(
        self,
        model: ProteinLM,
        record: SequenceRecord,
        layers: list[int],
        heads: list[int],
        choice: AttentionChoice,
        chain: Chain | None,
    ) -> None:
        check_length(record, model)  # before there is memory for it, and before advice that would be refused then
        self.model, self.record, self.layers, self.heads, self.choice = model, record, layers, heads, choice
        self.length = len(record) + alphabet.NUM_SPECIAL_TOKENS
        self.residues = Region(_tokens(choice.rows, record, "--rows"), _tokens(choice.columns, record, "--columns"))
        self.is_whole = choice.rows is None and choice.columns is None
        self.pixels, self.note = self._size()
        self.structure = structure_data(choice.structure, chain, record) if choice.structure and chain else None
        self.region = self.residues
        if self.pixels is None and self.is_whole:
            self.region = Region(slice(0, self.length), slice(0, self.length))

    def write(self, folder: Path, name: str, figure_format: str) -> None:
        """Walk over the attention once for all forms, and write them."""
        choice, numbers = self.choice, {"layers": self.layers, "heads": self.heads}
        picture = self._picture(len(self.layers))
        sums = HeadSums(len(self.layers), len(self.heads), self.length)
        largest = LargestWeights(self.residues, choice.top) if choice.top else None
        rollout = Rollout(self.region, self.pixels or self.length, self.length) if choice.rollout else None
        content = Content(self.residues, self.layers, self.heads) if choice.html else None
        forms: list[Form] = [form for form in (picture, sums, largest, rollout) if form is not None]
        forms += content.forms if content else []
        read_attention(self.model, self.record, forms, **numbers)
        arrays: dict[str, Any] = self._frame(picture)
        if choice.num_draws:
            arrays |= self._draws(choice.num_draws)
        if rollout is not None:
            arrays["rollout"] = rollout.values
        np.savez(folder / f"{name}.npz", **arrays)
        title = f"{self.record.sequence_id}: {self.model.config.attention_name}, {self.model.config.objective.value}"
        shown = {"title": title, "rows": _ends(self.residues.rows), "columns": _ends(self.residues.columns)}
        inner = slice(1, -1) if self.region is not self.residues else slice(None)
        figure = attention_grid(picture.values[:, :, inner, inner], **numbers, **shown)
        save_figure(figure, folder / f"{name}{figure_format}")
        if content is not None:
            data = content.data(self.record, title=title, structure=self.structure)
            (folder / f"{name}.html").write_text(page(data), encoding="utf-8")
        if rollout is not None:
            shown["title"] = f"{title}, rollout"
            save_figure(
                attention_rollout(rollout.values[inner, inner], **shown),
                folder / "rollout" / f"{name}{figure_format}",
            )
        sums.table(self.model, **numbers).to_csv(folder / f"{name}_heads.csv", index=False)
        if largest is not None:
            write_table(largest.table(**numbers), str(folder / "top" / f"{name}.parquet"))
        if choice.profiles:
            letters = ["<cls>", *self.record.sequence, "<eos>"]
            offsets, received = sums.offset_table(**numbers), sums.received_table(letters, **numbers)
            write_table(offsets, str(folder / "offsets" / f"{name}.parquet"))
            write_table(received, str(folder / "received" / f"{name}.parquet"))
            save_figure(
                attention_profiles(offsets, received, title=title),
                folder / "profiles" / f"{name}{figure_format}",
            )

    def _size(self) -> tuple[int | None, str | None]:
        """Return the number of pixels, None for all weights, and a note on a choice that the user did not make."""
        count, shape = len(self.layers) * len(self.heads), self.residues.shape
        if self.is_whole:
            shape = self.length, self.length
        full_bytes = 4 * count * shape[0] * shape[1]
        pixels = self.choice.pixels
        if pixels is None and (self.choice.full or full_bytes <= FULL_BYTES):
            self._check_memory(full_bytes, f"{count} matrices of {shape[0]:,} × {shape[1]:,} weights")
            return None, None
        num_pixels = pixels or DEFAULT_PIXELS
        height, width = (min(num_pixels, size) for size in self.residues.shape)
        self._check_memory(4 * count * height * width, f"{count} maps of {height:,} × {width:,} pixels")
        note = None
        if pixels is None:
            ways = [*self._fewer(), *(["--full"] if full_bytes <= MAX_BYTES else [])]
            note = (
                f"{named(self.record.sequence_id)}: block means, {height} × {width} pixels, instead of "
                f"{full_bytes / 2**30:.1f} GiB of weights; {' or '.join(ways)} give the weights themselves"
            )
        return num_pixels, note

    def _fewer(self) -> list[str]:
        """Return options that choose fewer numbers, and fit those that were given."""
        return [*([] if self.choice.rollout else ["--layer and --head"]), "--rows and --columns"]

    def _check_memory(self, num_bytes: int, what: str) -> None:
        if num_bytes > MAX_BYTES:
            others = ", or leave out --full" if self.choice.full else ", or lower --pixels"
            raise ConfigError(
                f"sequence {self.record.sequence_id}: {what} take {num_bytes / 2**30:.1f} GiB, over the limit of "
                f"{MAX_BYTES / 2**30:.0f}; choose fewer with {' or '.join(self._fewer())}{others}"
            )

    def _picture(self, num_layers: int) -> Matrices | BlockMeans:
        if self.pixels is None:
            return Matrices(self.region, num_layers, len(self.heads))
        return BlockMeans(self.region, self.pixels, num_layers, len(self.heads))

    def _draws(self, num_draws: int) -> dict[str, Any]:
        draws = draw_features(
            self.model,
            self.record,
            lambda: self._picture(1),
            region=self.region,
            num_draws=num_draws,
            layers=self.layers,
            heads=self.heads,
        )
        return {"draw_mean": draws.mean, "draw_standard_error": draws.standard_error}

    def _frame(self, picture: Matrices | BlockMeans) -> dict[str, Any]:
        """Return the picture, and the layers, heads and residues that its numbers belong to."""
        rows, columns = self.region
        if isinstance(picture, BlockMeans):
            arrays = {
                "block_means": picture.values,
                "row_edges": picture.row_edges + rows.start,
                "column_edges": picture.column_edges + columns.start,
            }
        else:
            arrays = {
                "matrices": picture.values,
                "rows": np.arange(rows.start, rows.stop),
                "columns": np.arange(columns.start, columns.stop),
            }
        return arrays | {
            "sequence_id": self.record.sequence_id,
            "sequence": self.record.sequence,
            "layers": np.array(self.layers),
            "heads": np.array(self.heads),
        }


def _tokens(chosen: tuple[int, int] | None, record: SequenceRecord, option: str) -> slice:
    """Return the tokens of the residues `chosen`, of all residues for None."""
    first, last = chosen or (1, len(record))
    if last > len(record):
        raise InputError(
            f"{option} {first}-{last} is outside of sequence {record.sequence_id}, which has residues 1 to {len(record):,}"
        )
    return slice(first, last + 1)


def _ends(tokens: slice) -> tuple[int, int]:
    return tokens.start, tokens.stop - 1
