"""New proteins from a causal model, residue by residue, many rows at once.

A row whose sequence has ended begins the next one, so that a batch stays full. Every sequence has its own random numbers, so
it does not depend on the batch, except for rounding. Log-probabilities differ in the seventh digit between batch sizes. A
random number that close to the border between two residues then falls to the other side.

The end of a sequence is drawn with the model's own probability, without temperature. Within a protein <eos> is rare
everywhere, so with a sharper distribution no sequence would ever end.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.errors import ConfigError
from protein_lm.inference.sampling import Sampling, draw, log_softmax, stream_of
from protein_lm.io.proteins import Proteins, is_path, records
from protein_lm.io.residues import read_residues
from protein_lm.model.language_model import DecodingState, ProteinLM

Residues = NDArray[np.uint8]


@dataclass(frozen=True)
class Prefix:
    """The beginning of some of the sequences."""

    name: str
    residues: Residues
    """(length,) token ids without special tokens."""


NO_PREFIX = Prefix("generated", np.empty(0, dtype=np.uint8))


def read_prefixes(given: Proteins) -> list[Prefix]:
    """Read prefixes from a user: residue letters (none if empty), or several with names, as in a sequence file.

    Raises:
        InputError: as `proteins.records`.
    """
    if given == "":
        return [NO_PREFIX]
    if isinstance(given, str) and not is_path(given):
        return [Prefix(NO_PREFIX.name, read_residues(given, f"prefix {given[:40]}", _PREFIX_REMEDY).tokens)]
    return [Prefix(record.sequence_id, record.tokens) for record in records(given)]


_PREFIX_REMEDY = "give residue letters, or a FASTA file by name"


@dataclass(frozen=True)
class Generated:
    """A sequence made by a model."""

    sequence_id: str
    residues: Residues
    """(length,) token ids, the prefix included."""
    log_likelihood: float
    """Log-likelihood of all residues in nats, as `score` gives it, whatever distribution they were drawn from."""
    is_finished: bool
    """Whether the model ended it; otherwise it reached the longest length."""

    @property
    def header(self) -> str:
        """Its header in FASTA."""
        perplexity = np.exp(-self.log_likelihood / self.residues.size)
        return (
            f"{self.sequence_id} length={self.residues.size} log_likelihood={self.log_likelihood:.3f} "
            f"perplexity={perplexity:.3f} {'finished' if self.is_finished else 'unfinished'}"
        )


@dataclass
class _Row:
    """A sequence in the making, in one row of a batch."""

    number: int
    """Number of the sequence, from 0."""
    prefix: Prefix
    random: np.random.Generator
    log_likelihood: float
    """Nats, of the residues so far."""
    is_finished: bool = False

    def __post_init__(self) -> None:
        self.residues = self.prefix.residues.tolist()

    @property
    def last(self) -> int:
        """The token that the model reads next."""
        return self.residues[-1] if self.residues else alphabet.CLS


class Generator:
    """Generates sequences from a causal model.

    Args:
        model: the model.
        sampling: how residues are drawn.
        min_length: least residues, the prefix included.
        max_length: most residues, the prefix included; None: as many as the model's window holds.
        batch_size: sequences that grow at once.
        seed: of the random numbers.

    Raises:
        ConfigError: a masked model, lengths that fit neither each other nor the window, no rows, or a seed below 0.
    """

    def __init__(
        self,
        model: ProteinLM,
        *,
        sampling: Sampling | None = None,
        min_length: int = 1,
        max_length: int | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        if not model.is_causal:
            raise ConfigError(
                "a masked model cannot continue a sequence; generate with a causal model, or fill in marked "
                "residues with protein-lm infill"
            )
        self.model = model
        self.sampling = sampling or Sampling()
        self.min_length = min_length
        self.max_length = model.max_residues if max_length is None else max_length
        self.batch_size = batch_size
        self.seed = seed
        if self.max_length > model.max_residues:
            raise ConfigError(
                f"--max-length {self.max_length:,} is over the {model.max_residues:,} residues that the model's window "
                "holds; lower it, or use a model with a longer window"
            )
        if not 1 <= min_length <= self.max_length:
            raise ConfigError(
                f"--min-length {min_length:,} must lie between 1 and the longest length, {self.max_length:,}"
            )
        if batch_size < 1:
            raise ConfigError(f"--batch-size {batch_size} grows no sequence; choose 1 or more")
        if seed < 0:
            raise ConfigError(f"--seed {seed} must be 0 or more")
        self._allowed = self.sampling.allowed()
        self._opening: tuple[Prefix, DecodingState, float] | None = None
        """The prefix that was read last, with its state and log-likelihood, for all sequences that begin with it."""

    @torch.inference_mode()
    def generate(self, number: int, prefixes: Sequence[Prefix] = (NO_PREFIX,)) -> Iterator[Generated]:
        """Generate `number` sequences for each prefix. They come in order, each as soon as those before it are done.

        Raises:
            ConfigError: no sequences, or a prefix that leaves no room.
            NumericalError: the model gives NaN or infinity.
        """
        if number < 1:
            raise ConfigError(f"{number} sequences for each prefix are none; choose 1 or more")
        for prefix in prefixes:
            if prefix.residues.size >= self.max_length:
                raise ConfigError(
                    f"prefix {prefix.name} has {prefix.residues.size:,} residues, which leaves no room within the longest "
                    f"length of {self.max_length:,}; shorten it"
                )
        waiting = deque(enumerate(prefix for prefix in prefixes for _ in range(number)))
        ended: dict[int, Generated] = {}
        num_out = 0
        while waiting:
            for row in self._rows_of_a_batch(waiting):
                ended[row.number] = Generated(
                    f"{row.prefix.name}_{row.number % number + 1}",
                    np.array(row.residues, dtype=np.uint8),
                    row.log_likelihood,
                    row.is_finished,
                )
                while num_out in ended:
                    yield ended.pop(num_out)
                    num_out += 1

    def _rows_of_a_batch(self, waiting: deque[tuple[int, Prefix]]) -> Iterator[_Row]:
        """Grow rows and give each when it ends: all that wait, or one batch where rows of a state cannot be replaced."""
        refills = self.model.rows_can_be_replaced
        state, rows = self._mixed_batch(waiting) if refills else self._equal_batch(waiting)
        while rows:
            last = torch.tensor([row.last for row in rows], device=self.model.device)
            over = self._grow(rows, log_softmax(self.model.step(last, state).double().cpu().numpy()))
            idle = []
            for slot in over:
                yield rows[slot]
                if refills and waiting:
                    rows[slot] = self._put(waiting, state, slot)
                else:
                    idle.append(slot)
            if idle:
                stay = [slot for slot in range(len(rows)) if slot not in idle]
                rows = [rows[slot] for slot in stay]
                state.keep(torch.tensor(stay, dtype=torch.int64))

    def _grow(self, rows: Sequence[_Row], log_probabilities: NDArray[np.float64]) -> list[int]:
        """Draw a token for each row from log-probabilities (R, V); returns the slots of rows that have ended."""
        repeated = None
        if self.sampling.repetition_penalty != 1:
            repeated = np.zeros(log_probabilities.shape, dtype=bool)
            for slot, row in enumerate(rows):
                repeated[slot, row.residues[-self.sampling.repetition_window :]] = True
        probabilities = self.sampling.distribution(log_probabilities, self._allowed, repeated)
        ends = self._probability_of_end(log_probabilities) * [len(row.residues) >= self.min_length for row in rows]
        probabilities *= 1 - ends[:, None]
        probabilities[:, alphabet.EOS] = ends
        drawn = draw(probabilities, np.array([row.random.random() for row in rows])).tolist()
        over = []
        for slot, (row, token) in enumerate(zip(rows, drawn, strict=True)):
            row.is_finished = token == alphabet.EOS
            if row.is_finished or len(row.residues) == self.max_length:
                over.append(slot)
            else:
                row.residues.append(token)
                row.log_likelihood += float(log_probabilities[slot, token])
        return over

    def _probability_of_end(self, log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability (R,) of <eos> compared with residues that may be drawn; 0 or 1 at temperature 0."""
        end, residues = log_probabilities[:, alphabet.EOS], log_probabilities[:, self._allowed]
        if self.sampling.temperature == 0:
            return (end > residues.max(1)).astype(np.float64)
        return np.exp(end) / (np.exp(end) + np.exp(residues).sum(1))

    def _mixed_batch(self, waiting: deque[tuple[int, Prefix]]) -> tuple[DecodingState, list[_Row]]:
        """A state whose rows begin with any prefixes."""
        state = self.model.new_state(min(self.batch_size, len(waiting)))
        return state, [self._put(waiting, state, slot) for slot in range(state.num_tokens.numel())]

    def _equal_batch(self, waiting: deque[tuple[int, Prefix]]) -> tuple[DecodingState, list[_Row]]:
        """A state whose rows begin with the same prefix."""
        prefix, numbers = waiting[0][1], []
        while waiting and waiting[0][1] is prefix and len(numbers) < self.batch_size:
            numbers.append(waiting.popleft()[0])
        state, log_likelihood = self._read(prefix, len(numbers))
        return state, [_Row(number, prefix, stream_of(self.seed, number), log_likelihood) for number in numbers]

    def _put(self, waiting: deque[tuple[int, Prefix]], state: DecodingState, slot: int) -> _Row:
        """Begin the next sequence in a row of a state."""
        number, prefix = waiting.popleft()
        if self._opening is None or self._opening[0] is not prefix:
            self._opening = prefix, *self._read(prefix, 1)
        _, opened, log_likelihood = self._opening
        state.put(slot, opened)
        return _Row(number, prefix, stream_of(self.seed, number), log_likelihood)

    def _read(self, prefix: Prefix, num_rows: int) -> tuple[DecodingState, float]:
        """Read <cls> and a prefix except its last token; the state, and the log-likelihood of the whole prefix."""
        state = self.model.new_state(num_rows)
        if not prefix.residues.size:
            return state, 0.0
        tokens = torch.tensor([alphabet.CLS, *prefix.residues[:-1].tolist()], device=self.model.device)
        logits = self.model.extend(tokens.expand(num_rows, -1), state)[0]
        log_probabilities = log_softmax(logits.double().cpu().numpy())
        return state, float(log_probabilities[np.arange(prefix.residues.size), prefix.residues].sum())
