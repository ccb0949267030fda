"""Writes embeddings of all sequences of a file, as safetensors shards or HDF5, with an index.

Tensors are called `mean.layer_N`, (sequences, D), and `residues.layer_N`, (residues, D) of all sequences back to back.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from protein_lm import __version__, alphabet
from protein_lm.checkpoint.tensor_files import save_tensors
from protein_lm.checkpoint.weights import model_checksum
from protein_lm.choices import EmbeddingFormat, ReadingLongPolicy, StorageType
from protein_lm.errors import ConfigError, InputError, NumericalError
from protein_lm.files.output import check_absent
from protein_lm.files.resume import WorkFolder, unfinished_work
from protein_lm.files.tables import rows_of_text, write_grown_table
from protein_lm.inference.embed import chosen_layers, embed
from protein_lm.inference.reading import TOKENS_OF_PART, Reading, Summary, lift_window_if, survey
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM

SHARD_BYTES = 2**27
"""Size at which a shard is complete."""
INDEX, DESCRIPTION = "index.parquet", "embeddings.json"
_ROWS, _H5_ROWS = "index.text", "datasets.text"
_MEAN, _RESIDUES = "mean", "residues"


@dataclass(frozen=True)
class Storage:
    """Settings: which embeddings of each sequence are stored, and how."""

    layers: Sequence[int] | None = None
    """Layers, as for `embed`."""
    per_residue: bool = False
    """Whether each residue's embedding is stored, next to the mean over residues."""
    dtype: StorageType = StorageType.FLOAT32
    format: EmbeddingFormat = EmbeddingFormat.SAFETENSORS

    def check(self) -> None:
        """Refuse settings that cannot be written.

        Raises:
            ConfigError: HDF5 has no bfloat16, or its package is not installed.
        """
        if self.format is EmbeddingFormat.H5:
            if self.dtype is StorageType.BFLOAT16:
                raise ConfigError("--dtype bfloat16: HDF5 has no such numbers; choose float16 or float32")
            _h5py()

    @property
    def kinds(self) -> list[str]:
        """Beginnings of the tensors' names."""
        return [_MEAN, _RESIDUES] if self.per_residue else [_MEAN]

    def tensor_names(self, layers: Sequence[int]) -> list[str]:
        """Return the names of all tensors."""
        return [f"{kind}.layer_{layer}" for kind in self.kinds for layer in layers]


def embed_file(
    model: ProteinLM,
    source: Path,
    output: Path,
    storage: Storage,
    *,
    long_sequences: ReadingLongPolicy = ReadingLongPolicy.ERROR,
    resume: bool = False,
    tokens_per_batch: int = 2048,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Summary:
    """Embed the sequences of a file, as `embed` does, into a new folder, in their order.

    `index.parquet` has a row for each sequence: `sequence_id`, `length`, and the position of its embedding:

    - safetensors: the file `shard`, its `row` among the means, and `first_residue`, its first row among the residues.
    - HDF5: the `dataset` in `mean.layer_N.h5` and in `residues.layer_N.h5`, see `dataset_name`.

    `embeddings.json` describes what was computed.

    Args:
        model: any model; `EXTEND` lifts its window.
        source: any sequence file; `-` is standard input.
        output: the folder.
        storage: what is stored.
        long_sequences: treatment of sequences over the model's window.
        resume: resume what a stopped process did for this output, if there is any; the files are the same.
        tokens_per_batch: tokens computed at once.
        on_progress: called with the number of sequences read, and of all if it is known.

    Raises:
        ConfigError: a layer does not exist, or the settings cannot be written.
        InputError: as `survey` and `Reading.parts`.
        NumericalError: the model gives no number, or one beyond the range of the stored type.
        OutputError: as `unfinished_work`.
    """
    storage.check()
    layers = chosen_layers(model, storage.layers)
    longest = model.max_residues
    lift_window_if(long_sequences, model)
    check_absent(output)
    total = survey(source, longest=longest if long_sequences is ReadingLongPolicy.ERROR else None)
    settings = {
        "model": model_checksum(model),
        "protein_lm version": __version__,
        **asdict(storage),
        "layers": layers,
        "tokens per batch": tokens_per_batch,
        "--long": long_sequences.value,
        "device": model.device.type,
    }
    with unfinished_work(output, settings, resume=resume) as work:
        state = work.state or {"reading": None, "position": [0, 0, 0]}
        if work.state is None:
            work.append(_ROWS, rows_of_text([tuple(_index_columns(storage))], INDEX))
        reading = Reading(source, longest=longest, policy=long_sequences, state=state["reading"])
        shards = _Shards(work, storage, layers, *state["position"])
        for records in reading.parts(lambda length: length + alphabet.NUM_SPECIAL_TOKENS, TOKENS_OF_PART):
            found = embed(model, [r.tokens for r in records], layers=layers, tokens_per_batch=tokens_per_batch)
            for record, values in zip(records, found, strict=True):
                shards.add(record, values)
            work.save({"reading": reading.state(), "position": shards.position})
            if on_progress:
                on_progress(reading.num_read, total)
        shards.close()
        work.save({"reading": reading.state(), "position": shards.position})
        if storage.format is EmbeddingFormat.H5:
            _write_h5(work, storage, layers)
        else:
            write_grown_table(work.flushed(_ROWS), work.folder / INDEX, _index_columns(storage))
        description = {
            "protein_lm_version": __version__,
            "model": {"xxh3_128": settings["model"], **model.config.model_dump(mode="json")},
            "layers": layers,
            "width": model.config.width,
            "dtype": storage.dtype.value,
            "num_sequences": reading.summary().num_used,
        }
        (work.folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        work.finish_as_folder(output, without_whole=storage.format is EmbeddingFormat.H5)
    return reading.summary()


def dataset_name(sequence_id: str) -> str:
    """Return the name of a sequence in HDF5, which takes `/` for folders and `.` for the folder itself.

    >>> dataset_name("P12345"), dataset_name("a/50%"), dataset_name(".")
    ('P12345', 'a%2F50%25', '%2E')
    """
    name = sequence_id.replace("%", "%25").replace("/", "%2F")
    return name.replace(".", "%2E") if not name.strip(".") else name


class _Shards:
    """Appends embeddings to a file for each tensor; large files become a shard."""

    def __init__(
        self, work: WorkFolder, storage: Storage, layers: Sequence[int], number: int, row: int, first_residue: int
    ) -> None:
        self._work, self._storage, self._layers = work, storage, layers
        self._names = storage.tensor_names(layers)
        self.position = [number, row, first_residue]
        """Number of the current shard, its sequences and its residues."""

    def add(self, record: SequenceRecord, values: Tensor) -> None:
        """Append the embedding (layers, length, D) of a sequence."""
        number, row, first_residue = self.position
        location = [_shard_name(number), row]
        if self._storage.per_residue:
            location.append(first_residue)
        self._work.append(_ROWS, rows_of_text([(record.sequence_id, len(record), *location)], INDEX))
        contents = {_MEAN: values.mean(1, keepdim=True), _RESIDUES: values}
        for kind in self._storage.kinds:
            stored = contents[kind].to(getattr(torch, self._storage.dtype.value)).cpu()
            if not stored.isfinite().all():
                raise NumericalError(
                    f"sequence {record.sequence_id}: an embedding is over the range of {self._storage.dtype.value}; choose "
                    "--dtype float32 or bfloat16"
                )
            for layer, part in zip(self._layers, stored, strict=True):
                self._work.append(self._raw(f"{kind}.layer_{layer}"), part.contiguous().view(torch.uint8).numpy().data)
        self.position = [number, row + 1, first_residue + len(record)]
        if sum(self._work.num_bytes(self._raw(name)) for name in self._names) >= SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Make a shard of everything since the last one."""
        number, num_rows, num_residues = self.position
        if not num_rows:
            return
        dtype, tensors = getattr(torch, self._storage.dtype.value), {}
        for name in self._names:
            path = self._work.flushed(self._raw(name))
            size = path.stat().st_size // dtype.itemsize
            values = torch.from_file(str(path), shared=False, size=size, dtype=dtype)
            tensors[name] = values.view(num_rows if name.startswith(_MEAN) else num_residues, -1)
        save_tensors(tensors, self._work.folder / _shard_name(number))
        self._work.keep(_shard_name(number))
        for name in self._names:
            self._work.remove(self._raw(name))
        self.position = [number + 1, 0, 0]

    def _raw(self, name: str) -> str:
        return f"{self.position[0]:05}.{name}.raw"


def _shard_name(number: int) -> str:
    return f"shard-{number:05}.safetensors"


def _index_columns(storage: Storage) -> dict[str, str]:
    columns = {"sequence_id": "string", "length": "int64", "shard": "string", "row": "int64"}
    return columns | ({"first_residue": "int64"} if storage.per_residue else {})


def _write_h5(work: WorkFolder, storage: Storage, layers: Sequence[int]) -> None:
    """Write the contents of the shards into HDF5 files instead."""
    for name in storage.tensor_names(layers):
        with _h5py().File(work.folder / f"{name}.h5", "w") as file:
            for identifier, values in _stored(work, name):
                if dataset_name(identifier) in file:  # `survey` does not see standard input
                    raise InputError(f"sequence {identifier} comes twice; use --format safetensors, or rename one")
                dataset = file.create_dataset(dataset_name(identifier), data=values.numpy())
                dataset.attrs["original_id"] = identifier
    columns = {"sequence_id": "string", "length": "int64", "dataset": "string"}
    work.append(_H5_ROWS, rows_of_text([tuple(columns)], INDEX))
    for row in _index(work):
        identifier = row["sequence_id"]
        work.append(_H5_ROWS, rows_of_text([(identifier, row["length"], dataset_name(identifier))], INDEX))
    write_grown_table(work.flushed(_H5_ROWS), work.folder / INDEX, columns)


def _stored(work: WorkFolder, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield identifiers, each with its sequence's part of a tensor."""
    for shard, rows in groupby(_index(work), key=lambda row: row["shard"]):
        with safe_open(work.folder / shard, framework="pt") as file:
            tensor = file.get_slice(name)
            for row in rows:
                if name.startswith(_MEAN):
                    yield row["sequence_id"], tensor[int(row["row"])]
                else:
                    first = int(row["first_residue"])
                    yield row["sequence_id"], tensor[first : first + int(row["length"])]


def _index(work: WorkFolder) -> Iterator[dict[str, str]]:
    with work.flushed(_ROWS).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _h5py() -> Any:
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--format h5 needs h5py, which is not installed; install it (pip install h5py)") from error
    return h5py
