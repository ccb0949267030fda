"""The verbs under `protein-lm data`: download, prepare, join, inspect, cluster, leakage, verify, export."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Annotated

import typer

from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.cli.app import app
from protein_lm.cli.options import OutputTable, bytes_progress, tell_names

data = typer.Typer(help="Prepare a corpus for training, and inspect it.")
app.add_typer(data, name="data")

_MOST_FAMILIES = 20
"""Families that are named at most."""
PreparedCorpus = Annotated[
    Path, typer.Argument(metavar="CORPUS", help="Corpus: a folder made by data prepare or data join.")
]
Threads = Annotated[int, typer.Option(min=0, help="Threads of MMseqs2; 0: one for each processor.")]


@data.command("download", epilog="Example: protein-lm data download uniref50 -o downloads --dry-run")
def download_data(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="File to fetch: swissprot, trembl, uniref50, uniref90 or uniref100.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the file.")],
    release: Annotated[
        str,
        typer.Option(metavar="R", help="Release to fetch, for example 2026_01; stop if the server has another one."),
    ] = "current",
    base: Annotated[
        str | None, typer.Option(metavar="URL", help="Base address of a mirror; UniProt's server if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the address, release and sizes.")] = False,
) -> None:
    """Download a release file of UniProt, and check its size and MD5. A download that broke off is resumed."""
    from protein_lm.files.uniprot_release import BASE, STORE_BYTES_PER_BYTE, UniProtServer

    with closing(UniProtServer(base or BASE)) as server:
        file = server.find(name, release)
        store_bytes = STORE_BYTES_PER_BYTE * file.num_bytes
        print(
            f"{file.url}: release {file.release}, {file.num_bytes:,} bytes, MD5 {file.md5}; prepared, about "
            f"{store_bytes / 1e9:,.1f} GB more"
        )
        if not dry_run:
            with bytes_progress("fetching", file.num_bytes) as on_progress:
                path = server.fetch(file, output, on_progress)
            print(f"{path}: complete, size and MD5 are those of the release")


@data.command("prepare", epilog="Example: protein-lm data prepare uniprot_sprot.fasta.gz -o swissprot --min-length 30")
def prepare_data(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Proteins: FASTA, UniProtKB .dat, UniProtKB or UniRef XML, CSV, TSV or Parquet; plain, .gz, .xz or .zst; "
            "folders of these; - for standard input.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="CORPUS", help="Folder to make.")],
    residues: Annotated[
        ResiduePolicy,
        typer.Option(
            help="Letters B, J, O, U, X, Z: keep them (J becomes X), change them to X, drop the sequence, or stop."
        ),
    ] = ResiduePolicy.KEEP,
    on_error: Annotated[
        OnError, typer.Option(help="Records that cannot be read: stop, or skip and count them.")
    ] = OnError.STOP,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    valid_fraction: Annotated[float, typer.Option(help="Fraction of sequences for the split valid, 0 to 1.")] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="Fraction of sequences for the split test, 0 to 1.")] = 0.05,
    split_table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Splits of sequences: TSV or CSV with sequence_id and split (train, valid, test, held_out; empty: by hash).",
        ),
    ] = None,
    clusters: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Clusters of sequences that get one split: TSV or CSV with sequence_id and cluster_id, or MMseqs2's table.",
        ),
    ] = None,
    hold_out_families: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAMILIES",
            help="Families whose members get the split held_out: Pfam accessions (PF00069,PF07714), a file of them, or "
            "performer (the 20 of that paper). Repeatable.",
        ),
    ] = None,
    family_table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Families of sequences: TSV or CSV with sequence_id and family_id, or Pfam's table; UniProtKB .dat and XML "
            "need none.",
        ),
    ] = None,
    min_length: Annotated[int, typer.Option(help="Drop shorter sequences, in residues.")] = 1,
    max_length: Annotated[
        int | None, typer.Option(help="Drop longer sequences, in residues; no limit if not given.")
    ] = None,
    drop_fragments: Annotated[
        bool, typer.Option("--drop-fragments", help="Drop sequences that are marked as fragments.")
    ] = False,
    taxon_ids: Annotated[
        list[int] | None,
        typer.Option(
            "--taxon", metavar="ID", help="Keep only this NCBI taxonomy identifier. Repeatable; all if not given."
        ),
    ] = None,
    min_cluster_size: Annotated[int, typer.Option(help="Drop UniRef clusters of fewer members.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that parse; threads with the compiled reader. Default: all processors but one, at most four "
            "threads; processes only for large files and three processors or more.",
        ),
    ] = None,
    protein_existence: Annotated[
        list[int] | None,
        typer.Option(metavar="LEVEL", help="Keep only this level of evidence, 1 to 5. Repeatable; all if not given."),
    ] = None,
) -> None:
    """Make a corpus for training: read sequence files, filter them, drop duplicates, split, and write tokens."""
    from protein_lm.corpus.filters import Filters
    from protein_lm.corpus.prepare import prepare
    from protein_lm.files.sources import sequence_files

    files, ignored = sequence_files(sources)
    if ignored:
        print(f"not read, by their suffix: {', '.join(map(str, ignored))}", file=sys.stderr)
    with _progress("reading", files) as on_progress:
        manifest = prepare(
            files,
            output,
            policy=residues,
            on_error=on_error,
            seed=seed,
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
            split_table=split_table,
            clusters=clusters,
            hold_out_families=hold_out_families or (),
            family_table=family_table,
            filters=Filters(
                min_length=min_length,
                max_length=max_length,
                drop_fragments=drop_fragments,
                taxon_ids=frozenset(taxon_ids or ()),
                min_cluster_size=min_cluster_size,
                protein_existence=frozenset(protein_existence or ()),
            ),
            on_progress=on_progress,
            say=lambda line: print(line, file=sys.stderr),
            workers=workers,
        )
    if families := manifest["split"]["families"]:
        numbers = families["num_held_out"]
        absent = [family for family, number in numbers.items() if not number]
        tell_names(
            f"of {len(numbers):,} families have no sequence held out", absent, number=len(absent), most=_MOST_FAMILIES
        )
    dropped = {name.replace("_", " "): count for name, count in manifest["num_dropped"].items() if count}
    listed = f" ({', '.join(f'{name} {count:,}' for name, count in dropped.items())})" if dropped else ""
    print(
        f"{output}: {manifest['num_sequences']:,} sequences, {manifest['num_residues']:,} residues; "
        f"{sum(dropped.values()):,} dropped{listed}"
    )


@data.command("join", epilog="Example: protein-lm data join shards/* -o uniref50")
def join_data(
    corpora: Annotated[
        list[Path], typer.Argument(metavar="CORPUS...", help="Folders made by data prepare or data join, in order.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="CORPUS", help="Folder to make.")],
) -> None:
    """Join several corpora into one, without copying them. A sequence that several have is taken from the first."""
    from protein_lm.corpus.joined import join

    manifest = join(corpora, output)
    number = sum(numbers["num_sequences"] for numbers in manifest["splits"].values())
    print(
        f"{output}: {number:,} sequences of {len(manifest['parts'])} stores; "
        f"{manifest['num_dropped']['duplicate_sequence']:,} duplicates left out"
    )


@data.command("inspect", epilog="Example: protein-lm data inspect swissprot")
def inspect_data(
    corpus: PreparedCorpus,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON instead.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FIGURE", help="Figure of lengths and residues to make: .png, .svg or .pdf."),
    ] = None,
) -> None:
    """Show what a corpus holds: sources, splits, residues and lengths."""
    from protein_lm.corpus.inspect import measure, report
    from protein_lm.corpus.joined import open_corpus

    opened = open_corpus(corpus)
    if plot:
        from protein_lm.plots.saving import check_figure_output

        check_figure_output(plot)
    contents = measure(opened) if plot or not json else None
    if plot and contents:
        from protein_lm.plots.corpus import corpus_contents
        from protein_lm.plots.saving import save_figure

        title = f"{opened.path}: {opened.num_sequences:,} sequences, {opened.num_residues:,} residues"
        save_figure(corpus_contents(contents.lengths, contents.numbers, contents.residue_counts, title=title), plot)
    if json:
        from json import dumps

        print(dumps(opened.manifest, indent=2))
    elif contents:
        from rich.console import Console

        Console(highlight=False, markup=False, soft_wrap=True).print(*report(opened, contents), sep="\n")


@data.command("cluster", epilog="Example: protein-lm data cluster swissprot -o clusters.tsv --identity 0.5")
def cluster_data(
    corpus: PreparedCorpus,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TABLE", help="Table to make: .tsv.")],
    identity: Annotated[float, typer.Option(help="Least share of identical residues in an alignment, 0 to 1.")] = 0.5,
    coverage: Annotated[float, typer.Option(help="Least share of both sequences in the alignment, 0 to 1.")] = 0.5,
    fast: Annotated[
        bool, typer.Option("--fast", help="Cluster in linear time (linclust); misses some relatives.")
    ] = False,
    threads: Threads = 0,
) -> None:
    """Cluster the sequences of a corpus with MMseqs2, for `data prepare --clusters`."""
    from protein_lm.corpus.clusters import cluster
    from protein_lm.corpus.joined import open_corpus

    opened = open_corpus(corpus)
    number = cluster(opened, output, identity=identity, coverage=coverage, fast=fast, threads=threads)
    print(f"{output}: {opened.num_sequences:,} sequences in {number:,} clusters")


@data.command("leakage", epilog="Example: protein-lm data leakage swissprot")
def leakage_data(corpus: PreparedCorpus, output: OutputTable = "-", threads: Threads = 0) -> None:
    """Measure the leakage of a split with MMseqs2: shares with relatives in training of 30, 50 and 90 % identity."""
    from protein_lm.files.tables import check_table_output, write_table

    check_table_output(output)

    from protein_lm.corpus.clusters import leakage
    from protein_lm.corpus.joined import open_corpus

    write_table(leakage(open_corpus(corpus), threads=threads), output)


@data.command("verify", epilog="Example: protein-lm data verify swissprot")
def verify_data(corpus: PreparedCorpus) -> None:
    """Check every file of a corpus against its checksum."""
    from protein_lm.corpus.joined import open_corpus
    from protein_lm.corpus.verify import files_of, verify

    opened = open_corpus(corpus)
    with _progress("checking", files_of(opened)) as on_progress:
        num_bytes = verify(opened, on_progress)
    print(f"{corpus}: {opened.num_sequences:,} sequences, {num_bytes:,} bytes as they were written")


@data.command("export", epilog="Example: protein-lm data export swissprot -o train.fasta.gz --split train")
def export_data(
    corpus: PreparedCorpus,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File to make: .fasta, .fa or .faa, also with .gz, or .parquet."
        ),
    ],
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="Split to write: train, valid, test or held_out. Repeatable; all if not given.",
        ),
    ] = None,
) -> None:
    """Write the sequences of a corpus as FASTA or as a table."""
    from protein_lm.corpus.export import export
    from protein_lm.corpus.joined import open_corpus
    from protein_lm.corpus.split import Split, parse_split

    number = export(open_corpus(corpus), output, splits=[parse_split(name) for name in splits or ()] or list(Split))
    print(f"{output}: {number:,} sequences")


def _progress(label: str, files: Sequence[Path]) -> AbstractContextManager[Callable[[int], None] | None]:
    """Show a progress bar for the bytes read of some files."""
    return bytes_progress(label, sum(file.stat().st_size for file in files if file.is_file()))
