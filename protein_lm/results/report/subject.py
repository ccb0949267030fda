"""The run that a report describes: its model, its corpus, and the proteins that serve as examples."""

import shlex
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from protein_lm.checkpoint.directory import load_model
from protein_lm.checkpoint.training_state import read_training_facts
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.joined import open_corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, ProteinLMError
from protein_lm.inference.score import check_length
from protein_lm.io.readers import read_records
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM
from protein_lm.training.checkpoints import Checkpoints
from protein_lm.training.run_log import read_metrics, read_recipe

NUM_EXAMPLES = 2
"""Proteins whose attention is shown."""
EXAMPLE_RESIDUES = 150
"""Examples from a corpus are the proteins of the split test whose length is nearest to this."""


@dataclass(frozen=True, kw_only=True)
class ReportChoice:
    """Choice of what a report shows, and how much of it."""

    data: Path | None = None
    """Prepared corpus of the run."""
    fasta: Path | None = None
    """Proteins whose attention is shown, instead of those of the split test."""
    max_sequences: int = 256
    """Most sequences of a split to evaluate, and to take attention of for the similarity of amino acids."""
    seed: int = 0
    """Seed of all draws."""
    tokens_per_batch: int = 8192
    device: str = "auto"


class NotApplicableError(ProteinLMError):
    """The reason why a section has nothing to show."""


class Subject:
    """A run with what the sections need of it.

    Raises:
        InputError: no run, or a protein of the FASTA file that is too long or cannot be read.
        ConfigError: a run of fine-tuning, or another corpus than that of the run.
        ModelError, StoreError: model or corpus cannot be opened.
    """

    def __init__(self, run: Path, choice: ReportChoice) -> None:
        self.run, self.choice = run, choice
        read_metrics(run)
        read_recipe(run)
        self.model: ProteinLM = load_model(run, device=choice.device)
        self._corpus = None if choice.data is None else open_corpus(choice.data)
        self.is_own_corpus = self._corpus is not None and _is_corpus_of(run, self._corpus)
        self._examples, self._why_no_examples = self._choose_examples()

    @property
    def corpus(self) -> Corpus:
        """The corpus of the run.

        Raises:
            NotApplicableError: none is named.
        """
        if self._corpus is None:
            raise NotApplicableError("it needs the corpus of the run; name it with --data")
        return self._corpus

    @property
    def examples(self) -> list[SequenceRecord]:
        """Proteins to show, at least one.

        Raises:
            NotApplicableError: there are none.
        """
        if not self._examples:
            raise NotApplicableError(self._why_no_examples)
        return self._examples

    @property
    def examples_file(self) -> Path:
        """The file of the examples, which for a corpus is yet to be made of `examples_text`."""
        return self.choice.fasta or Path("examples.fasta")

    @property
    def examples_origin(self) -> str:
        """A sentence on where the examples come from, unless they have a file."""
        if self.choice.fasta is not None:
            return ""
        return " Proteins of the split test; examples.fasta of the command is the text under Attention."

    @property
    def examples_text(self) -> str:
        """The content of `examples.fasta`, unless the examples have a file."""
        if self.choice.fasta is not None:
            return ""
        return "".join(f">{record.sequence_id}\n{record.sequence}\n" for record in self.examples)

    def _choose_examples(self) -> tuple[list[SequenceRecord], str]:
        """Return proteins to show, and the reason if there are none."""
        if self.choice.fasta is not None:
            records = list(islice(read_records(self.choice.fasta), NUM_EXAMPLES))
            for record in records:
                check_length(record, self.model)
            return records, ""
        corpus = self._corpus
        if corpus is None:
            return [], "it needs proteins; name the corpus of the run with --data, or a file with --fasta"
        indices = corpus.indices(Split.TEST)
        lengths = corpus.lengths_of(indices)
        fits = lengths <= self.model.max_residues
        nearest = np.argsort(np.abs(lengths[fits] - EXAMPLE_RESIDUES), kind="stable")[:NUM_EXAMPLES]
        records = [
            SequenceRecord(corpus.sequence_id(index), np.asarray(corpus.residues(index)), 1)
            for index in indices[fits][nearest].tolist()
        ]
        return records, "the split test has no protein that fits the model's window; name a file with --fasta"


def command(*words: object) -> str:
    """Return a command line of protein-lm."""
    return shlex.join(["protein-lm", *map(str, words)])


def _is_corpus_of(run: Path, corpus: Corpus) -> bool:
    """Tell whether a corpus is that of the run; False if the run has no checkpoint, or one of the first versions.

    Raises:
        ConfigError: it is another one, whose test proteins may be those that the run was trained on.
    """
    checkpoints = Checkpoints(run).newest_first()
    trained_on = read_training_facts(checkpoints[0]).get("corpus") if checkpoints else None
    if trained_on is None:
        return False
    if different := [name for name, value in corpus.identity.items() if trained_on.get(name) != value]:
        raise ConfigError(
            f"{corpus.path}: not the corpus that {run} was trained on ({different[0]} differs), and its test proteins may be "
            "among those; name the corpus of the run, or measure this one with protein-lm evaluate"
        )
    return True
