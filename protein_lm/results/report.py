"""One page about a run: its data, recipe and curves, how well it predicts, what it looks at, what it writes."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm import __version__, alphabet
from protein_lm.analysis.attention.forms import BlockMeans, Region
from protein_lm.analysis.attention.heads import HeadSums
from protein_lm.analysis.attention.maps import read_attention
from protein_lm.analysis.curves import learning_curves
from protein_lm.analysis.draw import draw_sequences
from protein_lm.analysis.evaluation import evaluate
from protein_lm.analysis.generated import compare, composition, reference
from protein_lm.analysis.kernel_error import kernel_error
from protein_lm.analysis.pair_attention import pair_attention
from protein_lm.analysis.similarity import correlation_over_heads, enrichment, frame
from protein_lm.analysis.substitution import MATRIX, agreement, normalized, substitution_matrix
from protein_lm.attention.kinds.linear import RandomFeatureOptions
from protein_lm.checkpoint.card import model_facts
from protein_lm.checkpoint.config_file import read_facts
from protein_lm.checkpoint.directory import find_model, load_model
from protein_lm.checkpoint.training_state import read_training_facts
from protein_lm.choices import LongPolicy
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.inspect import measure
from protein_lm.corpus.joined import open_corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, OutputError, ProteinLMError
from protein_lm.files.output import check_absent, new_file
from protein_lm.inference.generate import Generator
from protein_lm.inference.score import check_length
from protein_lm.io.readers import read_records
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM
from protein_lm.plots.attention import attention_grid
from protein_lm.plots.corpus import corpus_contents
from protein_lm.plots.curves import learning_curve
from protein_lm.plots.generated import generated_and_real
from protein_lm.plots.kernel_error import kernel_errors
from protein_lm.plots.saving import png
from protein_lm.plots.similarity import MEASURES, similarity_heatmaps
from protein_lm.results.report_page import Picture, Section, Table, render
from protein_lm.training.checkpoints import Checkpoints
from protein_lm.training.run_log import METRICS, RECIPE, read_metrics, read_recipe

MAX_COUNTED_RESIDUES = 10**9
"""Beyond so many the lengths and residues of a corpus are not counted."""
NUM_EXAMPLES = 2
"""Proteins whose attention is shown."""
EXAMPLE_RESIDUES = 150
"""Examples from a corpus are the proteins of the split test whose length is nearest to this."""
MAX_LAYERS, MAX_HEADS, MAX_PIXELS = 6, 8, 256
"""Of the attention shown; layers and heads beyond that are left out evenly."""
KERNEL_ERROR_TOKENS, KERNEL_ERROR_DRAWS = 512, 3
NUM_GENERATED, NUM_REAL, MAX_GENERATED_RESIDUES = 64, 2000, 1024
NUM_PAIRS = 10
"""Pairs of amino acids that are listed as most alike."""
SOFTMAX_FEATURES = {
    "performer-softmax": "positive",
    "performer-optimal": "optimal",
    "performer-saderf": "saderf",
}
"""Kinds that estimate the softmax kernel -> the map of their features as `analysis.kernel_error` calls it."""


@dataclass(frozen=True, kw_only=True)
class ReportChoice:
    """What a report looks at, and how much of it."""

    data: Path | None = None
    """The prepared corpus of the run."""
    fasta: Path | None = None
    """Proteins to show attention of, instead of those of the split test."""
    max_sequences: int = 256
    """Most sequences of a split to evaluate, and to take attention of for the similarity of amino acids."""
    seed: int = 0
    """Of everything that is drawn."""
    tokens_per_batch: int = 8192
    device: str = "auto"


class _DoesNotApply(ProteinLMError):
    """Why a section has nothing to show."""


def check_report_output(path: Path) -> None:
    """Refuse an output early, before the work.

    Raises:
        OutputError: another suffix, or it exists.
    """
    if path.suffix != ".html":
        raise OutputError(f"{path}: a report is an HTML page; end its name in .html")
    check_absent(path)


def write_report(
    run: Path, output: Path, choice: ReportChoice, *, on_section: Callable[[Section], None] = lambda _: None
) -> None:
    """Write the page, whole or not at all.

    Args:
        run: a run directory of `train`.
        output: an .html file that does not exist.
        choice: what to look at.
        on_section: called with each section as soon as it is there.

    Raises:
        InputError: no run, or a protein of the FASTA file that is too long or cannot be read.
        ConfigError: a run of fine-tuning, or another corpus than that of the run.
        ModelError, StoreError: model or corpus cannot be opened.
        OutputError: as `check_report_output`, or it cannot be written.
    """
    check_report_output(output)
    report = _Report(run, choice)
    sections = []
    for title, build in report.parts():
        section = _timed(title, build)
        on_section(section)
        sections.append(section)
    page = render(
        f"Report of {run.resolve().name}",
        sections,
        subtitle=f"A {report.model.config.objective.value} protein language model, {report.model.config.attention_name} "
        f"attention, {report.model.num_parameters:,} weights; the best model of the run.",
        footer=f"Written by protein_lm {__version__} on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, computed on "
        f"{report.model.device.type}, in {sum(section.seconds or 0 for section in sections):.0f} s.",
    )
    with new_file(output) as partial:
        partial.write_text(page, encoding="utf-8")


def _timed(title: str, build: Callable[[], Section]) -> Section:
    start = time.perf_counter()
    try:
        section = build()
    except ProteinLMError as error:
        section = Section(missing=" ".join(str(error).split()))
    return dataclasses.replace(section, title=title, seconds=time.perf_counter() - start)


class _Report:
    """The sections of a run's report."""

    def __init__(self, run: Path, choice: ReportChoice) -> None:
        self.run, self.choice = run, choice
        read_metrics(run)
        read_recipe(run)
        self.model: ProteinLM = load_model(run, device=choice.device)
        self.store = None if choice.data is None else open_corpus(choice.data)
        self.is_own_corpus = self.store is not None and _is_corpus_of(run, self.store)
        self.examples, self.examples_missing = self._examples()

    def parts(self) -> list[tuple[str, Callable[[], Section]]]:
        """Title and builder of each section."""
        return [
            ("Model and recipe", self.model_and_recipe),
            ("Data", self.data),
            ("Learning curves", self.curves),
            ("Evaluation", self.evaluation),
            ("Attention", self.attention),
            ("Similarity of amino acids", self.similarity),
            ("Error of random features", self.kernel_error),
            ("Generated proteins", self.generated),
        ]

    def model_and_recipe(self) -> Section:
        facts = model_facts(self.model, read_facts(find_model(str(self.run)))["training"])
        return Section(
            what="What the model is, as its card says it, and the recipe that it was trained by.",
            commands=[_command("info", self.run)],
            tables=[Table(["fact", "value"], list(facts.items()))],
            text=(self.run / RECIPE).read_text(encoding="utf-8"),
        )

    def data(self) -> Section:
        store = self._corpus()
        sources = [
            [str(source["name"]), f"{source['sequences']:,}", str(source["sha256"])[:16] + "…"]
            for source in store.sources
        ]
        manifest = store.manifest
        rows = [
            [name.replace("_", " "), f"{counts['num_sequences']:,}", f"{counts['num_residues']:,}"]
            for name, counts in manifest["splits"].items()
        ]
        splits = Table(["split", "sequences", "residues"], rows)
        what, pictures = "What the corpus was made of, as its manifest says", []
        if store.num_residues <= MAX_COUNTED_RESIDUES:
            contents = measure(store)
            splits = _with_lengths(splits, contents.lengths, [contents.numbers[name] for name in manifest["splits"]])
            title = f"{store.num_sequences:,} sequences, {store.num_residues:,} residues"
            figure = corpus_contents(contents.lengths, contents.numbers, contents.residue_counts, title=title)
            caption = "Left: lengths of the sequences of each split. Right: shares of the residues."
            pictures.append(Picture(png(figure), caption))
            what += ", and its lengths and residues, counted."
        else:
            what += f"; of over {MAX_COUNTED_RESIDUES:,} residues they are not counted here."
        tables = [Table(["source", "sequences", "SHA-256"], sources), splits]
        if "num_read" in manifest:  # a joined corpus has been read before
            rule = manifest["split"]
            by_table = f", and {rule['table']['name']}" if rule["table"] else ""
            what += f" Split by {rule['rule']}, seed {rule['seed']}{by_table}."
            dropped = {f"dropped, {reason}": count for reason, count in manifest["num_dropped"].items() if count}
            counts = {"read": manifest["num_read"], **(dropped or {"dropped": 0})}
            tables.append(Table(["sequences", "number"], [[k.replace("_", " "), f"{n:,}"] for k, n in counts.items()]))
        if not self.is_own_corpus:
            what += " The run does not tell whether it was trained on this corpus."
        command = _command("data", "inspect", store.path, "--plot", "corpus.png")
        return Section(what=what, commands=[command], tables=tables, pictures=pictures)

    def curves(self) -> Section:
        metrics = learning_curves([self.run])
        totals = {"steps": ("step", ""), "tokens seen": ("num_tokens", ""), "time of training": ("seconds", " s")}
        last = {column: float(metrics[column].to_numpy(dtype=np.float64)[-1]) for column, _ in totals.values()}
        rows = [
            [name, f"{last[column]:,.0f}{unit}"]
            for name, (column, unit) in totals.items()
            if np.isfinite(last[column])  # runs of the first versions lack some
        ]
        valid = pd.DataFrame(metrics[metrics["split"] == "valid"]).reset_index(drop=True)
        if not valid.empty:
            best = valid.loc[valid["loss_nats"].idxmin()]
            rows += [
                ["best validation", f"step {best['step']:,}"],
                ["its perplexity", f"{np.exp(best['loss_nats']):.2f}"],
                ["its accuracy", f"{best['accuracy']:.1%}"],
            ]
            if "unigram_perplexity" in best:
                rows.append(["perplexity of the unigram baseline", f"{best['unigram_perplexity']:.2f}"])
        caption = "Perplexity and accuracy in training (dashed) and validation (solid, points)."
        return Section(
            what=f"The rows of {METRICS}. A masked model is validated with all residues to predict masked, and trained on "
            "residues of which some show themselves, so that its two curves measure different things.",
            commands=[_command("curves", self.run, "-o", "curves.png")],
            tables=[Table(["training", "value"], rows)],
            pictures=[Picture(png(learning_curve(metrics)), caption)],
        )

    def evaluation(self) -> Section:
        store, number = self._corpus(), self.choice.max_sequences
        table = evaluate(
            self.model,
            store,
            long_sequences=LongPolicy.CROP,
            tokens_per_batch=self.choice.tokens_per_batch,
            max_sequences=number,
        )
        rows = [
            [
                row["split"].replace("_", " "),
                f"{row['num_sequences']:,}",
                f"{row['num_residues']:,}",
                f"{row['accuracy']:.1%}",
                f"{row['unigram_accuracy']:.1%}",
                _interval(row, "perplexity"),
                _interval(row, "unigram_perplexity"),
                f"{row['num_too_long']:,}",
            ]
            for row in table.to_dict("records")
        ]
        columns = ["split", "proteins", "residues", "accuracy", "of unigram", "perplexity (95 %)", "of unigram (95 %)"]
        measured = "every residue" if self.model.is_causal else "15 % of the residues of each protein, all masked"
        return Section(
            what=f"The first {number:,} proteins of each split at most; {measured}. Intervals are of a bootstrap over "
            "proteins. The unigram baseline knows the frequencies of the residues in training and nothing else. Cropped: "
            "proteins over the window, measured on their first residues. Test has new proteins, of families that training "
            "may know; held out, if it is there, families that training does not know.",
            commands=[
                _command(
                    "evaluate", "--model", self.run, "--data", store.path, "--long", "crop", "--max-sequences", number
                )
            ],
            tables=[Table([*columns, "cropped"], rows)],
        )

    def attention(self) -> Section:
        if not self.examples:
            raise _DoesNotApply(self.examples_missing)
        config = self.model.config
        layers, heads = _spread(config.num_layers, MAX_LAYERS), _spread(config.num_heads, MAX_HEADS)
        pictures, tables = [], []
        for record in self.examples:
            length = len(record) + alphabet.NUM_SPECIAL_TOKENS
            inner = slice(1, length - 1)
            means = BlockMeans(Region(inner, inner), MAX_PIXELS, len(layers), len(heads))
            sums = HeadSums(len(layers), len(heads), length)
            read_attention(self.model, record, [means, sums], layers=layers, heads=heads)
            ends = 1, len(record)
            figure = attention_grid(
                means.values, layers=layers, heads=heads, title=record.sequence_id, rows=ends, columns=ends
            )
            caption = (
                f"{record.sequence_id}, {len(record):,} residues: darker is more; each panel has a scale of its own."
            )
            pictures.append(Picture(png(figure), caption))
            tables.append(_head_table(record, sums.table(self.model, layers=layers, heads=heads)))
        shown = [word for layer in layers for word in ("--layer", layer + 1)]
        shown += [word for head in heads for word in ("--head", head + 1)]
        return Section(
            what=f"How much each residue (down) attends to each (across), in {len(layers)} of {config.num_layers} layers and "
            f"{len(heads)} of {config.num_heads} heads; over {MAX_PIXELS} residues, means over blocks."
            + self._examples_origin(),
            commands=[_command("attention", self._examples_file(), "--model", self.run, "-o", "attention", *shown)],
            tables=tables,
            pictures=pictures,
            text=self._examples_text(),
        )

    def similarity(self) -> Section:
        store, choice = self._corpus(), self.choice
        sequences = draw_sequences(store.path, choice.max_sequences, longest=self.model.max_residues, seed=choice.seed)
        sums = pair_attention(self.model, sequences, tokens_per_batch=choice.tokens_per_batch)
        measures, matrix = {"similarity": correlation_over_heads, "enrichment": enrichment}, substitution_matrix()
        tables = {name: frame(measure(sums)) for name, measure in measures.items()}
        rows = []
        for name, table in tables.items():
            found = agreement(table, matrix, seed=choice.seed)
            rows.append([MEASURES[name], f"{found.pearson:.3f}", f"{found.pearson_p:.4f}"])
            rows[-1] += [f"{found.spearman:.3f}", f"{found.spearman_p:.4f}"]
        figure = similarity_heatmaps(tables, normalized(matrix), name=MATRIX, caption="")
        return Section(
            what=f"Which amino acids the model treats alike, out of the attention of all heads on {len(sequences):,} "
            "proteins of the corpus, drawn at random, and how that agrees with BLOSUM62 over pairs of different amino "
            "acids. Proteins over the model's window take no part.",
            commands=[
                _command("similarity", store.path, "--model", self.run, "-o", "similarity")
                + f" --num-sequences {choice.max_sequences} --seed {choice.seed}"
            ],
            tables=[
                Table(["agreement with BLOSUM62", "Pearson", "permutation p", "Spearman", "permutation p"], rows),
                _most_alike(tables["similarity"], matrix),
            ],
            pictures=[
                Picture(
                    png(figure),
                    "Correlation over heads of the attention received; enrichment of pairs; BLOSUM62. Dashes: negative. "
                    "Frames: D–E, F–Y.",
                )
            ],
        )

    def kernel_error(self) -> Section:
        config = self.model.config
        layers = [
            layer
            for layer in config.attention_layers
            if isinstance(layer, RandomFeatureOptions) and layer.kind in SOFTMAX_FEATURES
        ]
        if not layers:
            raise _DoesNotApply(
                f"{config.attention_name} attention does not estimate the softmax kernel by random features"
            )
        if not self.examples:
            raise _DoesNotApply(self.examples_missing)
        record, number = self.examples[0], layers[0].num_features
        counts = sorted({max(2, 2 * round(number * factor / 2)) for factor in (0.25, 0.5, 1, 2, 4)})
        length = min(len(record) + alphabet.NUM_SPECIAL_TOKENS, KERNEL_ERROR_TOKENS)
        types = sorted({f"{SOFTMAX_FEATURES[layer.kind]}-{layer.projection}" for layer in layers})
        table = kernel_error(
            self.model,
            [record],
            feature_types=types,
            num_features=counts,
            lengths=[length],
            num_draws=KERNEL_ERROR_DRAWS,
            seed=self.choice.seed,
        )
        columns = ["matrix_error", "uniform_matrix_error", "output_error", "uniform_output_error"]
        means = table.groupby(["feature_type", "num_features"])[columns].mean()
        rows = [
            [name, f"{count:,}", *(f"{value:.3g}" for value in values)]
            for (name, count), *values in means.itertuples(name=None)
        ]
        options = [word for name in types for word in ("--type", name)]
        options += [word for count in counts for word in ("--features", count)]
        options += ["--length", length, "--draws", KERNEL_ERROR_DRAWS, "--seed", self.choice.seed]
        return Section(
            what=f"How far random features are from exact softmax attention on the model's own queries and keys: the first "
            f"{length:,} tokens of {record.sequence_id}, all layers and heads, {KERNEL_ERROR_DRAWS} draws. The model has "
            f"M = {number:,}. Errors are relative; attention to all alike has those of the columns alike."
            + self._examples_origin(),
            commands=[_command("kernel-error", self._examples_file(), "--model", self.run, "-o", "errors", *options)],
            tables=[Table(["features", "M", "error of the matrix", "alike", "error of the output", "alike"], rows)],
            pictures=[Picture(png(kernel_errors(table)), "Error of the attention matrix against M.")],
        )

    def generated(self) -> Section:
        if not self.model.is_causal:
            raise _DoesNotApply("a masked model writes no proteins; protein-lm infill has it fill in residues")
        store, seed = self._corpus(), self.choice.seed
        number, longest = NUM_GENERATED, min(MAX_GENERATED_RESIDUES, self.model.max_residues)
        real = reference(store, max_sequences=NUM_REAL, seed=seed)
        made = list(Generator(self.model, max_length=longest, seed=seed).generate(number))
        residues = [each.residues for each in made]
        table, shares = compare(residues, real, seed=seed), composition(residues, real.all)
        rows = [
            [str(name).replace("_", " "), *(f"{value:.4g}" for value in values)]
            for name, *values in table.itertuples(index=False, name=None)
        ]
        lengths = {
            name: np.array([each.size for each in group])
            for name, group in (("generated", residues), ("real", real.all))
        }
        title = f"{number} generated proteins beside {len(real.all):,} real ones"
        figure = generated_and_real(table, shares, lengths, None, title=title)
        unfinished = sum(not each.is_finished for each in made)
        return Section(
            what=f"{number} proteins drawn from the model as it is (temperature 1), beside {len(real.all):,} of the split "
            f"train. {unfinished} of them reached {longest:,} residues without an end. Each measure is beside its mean and "
            "95 % range for as many real proteins: within it, the measure does not tell generated from real ones.",
            commands=[
                _command("generate", "--model", self.run, "-n", number, "-o", "generated.fasta")
                + f" --max-length {longest} --seed {seed}",
                _command("compare", "generated.fasta", "--data", store.path, "-o", "comparison")
                + f" --max-sequences {NUM_REAL} --seed {seed}",
            ],
            tables=[Table(["measure", "generated", "real, mean", "real, low", "real, high"], rows)],
            pictures=[Picture(png(figure), "Lengths, residues and k-mers of generated and real proteins.")],
        )

    def _corpus(self) -> Corpus:
        if self.store is None:
            raise _DoesNotApply("it needs the corpus of the run; name it with --data")
        return self.store

    def _examples(self) -> tuple[list[SequenceRecord], str]:
        """Proteins to show, or why there are none."""
        if self.choice.fasta is not None:
            records = list(islice(read_records(self.choice.fasta), NUM_EXAMPLES))
            for record in records:
                check_length(record, self.model)
            return records, ""
        if self.store is None:
            return [], "it needs proteins; name the corpus of the run with --data, or a file with --fasta"
        indices = self.store.indices(Split.TEST)
        lengths = self.store.lengths_of(indices)
        fits = lengths <= self.model.max_residues
        nearest = np.argsort(np.abs(lengths[fits] - EXAMPLE_RESIDUES), kind="stable")[:NUM_EXAMPLES]
        records = [
            SequenceRecord(self.store.sequence_id(index), np.asarray(self.store.residues(index)), 1)
            for index in indices[fits][nearest].tolist()
        ]
        return records, "the split test has no protein that fits the model's window; name a file with --fasta"

    def _examples_file(self) -> Path:
        return self.choice.fasta or Path("examples.fasta")

    def _examples_origin(self) -> str:
        if self.choice.fasta is not None:
            return ""
        return " Proteins of the split test; examples.fasta of the command is the text under Attention."

    def _examples_text(self) -> str:
        """The content of `examples.fasta`, unless there is a file."""
        if self.choice.fasta is not None:
            return ""
        return "".join(f">{record.sequence_id}\n{record.sequence}\n" for record in self.examples)


def _is_corpus_of(run: Path, store: Corpus) -> bool:
    """Whether a corpus is that of the run; False where it does not tell: no checkpoint, or one of the first versions.

    Raises:
        ConfigError: it is another one, whose test proteins may be those that the run was trained on.
    """
    checkpoints = Checkpoints(run).newest_first()
    trained_on = read_training_facts(checkpoints[0]).get("corpus") if checkpoints else None
    if trained_on is None:
        return False
    if different := [name for name, value in store.identity.items() if trained_on.get(name) != value]:
        raise ConfigError(
            f"{store.path}: not the corpus that {run} was trained on ({different[0]} differs), and its test proteins may be "
            "among those; name the corpus of the run, or measure this one with protein-lm evaluate"
        )
    return True


def _command(*words: object) -> str:
    return shlex.join(["protein-lm", *map(str, words)])


def _interval(row: dict, name: str) -> str:
    return f"{row[name]:.2f} ({row[name + '_low']:.2f}–{row[name + '_high']:.2f})"


def _spread(count: int, most: int) -> list[int]:
    """Up to so many of 0 ... count - 1, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _with_lengths(splits: Table, lengths: NDArray[np.int64], numbers: Sequence[NDArray[np.int64]]) -> Table:
    """The table of splits with the shortest, median and longest length of each.

    Args:
        splits: a row for each split.
        lengths: (K,) different lengths, ascending.
        numbers: (K,) sequences of each length, of each split.
    """
    rows = []
    for row, counts in zip(splits.rows, numbers, strict=True):
        up_to = np.cumsum(counts)
        places = np.searchsorted(up_to, [1, (up_to[-1] + 1) // 2, up_to[-1]]) if up_to[-1] else []
        rows.append([*row, *(f"{lengths[place]:,}" for place in places), *[""] * (3 - len(places))])
    return Table([*splits.columns, "shortest", "median", "longest"], rows)


def _head_table(record: SequenceRecord, heads: pd.DataFrame) -> Table:
    columns = ["layer", "head", "class", "mean distance (tokens)", "within 3 tokens", "largest share of one token"]
    rows = [
        [
            f"layer {row['layer']}",
            f"{row['head']}",
            row["head_class"],
            f"{row['mean_distance']:.1f}",
            f"{row['local_share']:.1%}",
            f"{row['max_column_share']:.1%}",
        ]
        for row in heads.to_dict("records")
    ]
    return Table([record.sequence_id, *columns[1:]], rows)


def _most_alike(similarity: pd.DataFrame, matrix: pd.DataFrame) -> Table:
    """The pairs of different amino acids of largest similarity, beside BLOSUM62."""
    letters = list(similarity.index)
    pairs: Iterable[tuple[int, int]] = zip(*np.tril_indices(len(letters), -1), strict=True)
    found: Sequence[tuple[float, str, float]] = [
        (float(similarity.iat[i, j]), f"{letters[j]}–{letters[i]}", float(matrix.iat[i, j])) for i, j in pairs
    ]
    best = sorted((each for each in found if np.isfinite(each[0])), reverse=True)[:NUM_PAIRS]
    rows = [[name, f"{value:.3f}", f"{score:.0f}"] for value, name, score in best]
    return Table(["most alike", "correlation over heads", "BLOSUM62"], rows)
