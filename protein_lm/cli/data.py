"""The verbs under `protein-lm data`; as everywhere here, heavy imports stand inside them."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Annotated

import typer

from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.cli.app import app
from protein_lm.cli.options import bytes_progress

_SHOWN = 20
data = typer.Typer(help="Prepare sequences for training, and look at what was prepared.")
app.add_typer(data, name="data")


@data.command("download", epilog="Example: protein-lm data download uniref50 -o downloads --dry-run")
def download_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="swissprot, trembl, uniref50, uniref90 or uniref100.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the file.")],
    release: Annotated[
        str, typer.Option(metavar="R", help="Stop if the server has another release than this.")
    ] = "current",
    base: Annotated[str | None, typer.Option(metavar="URL", help="Base address of a mirror.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print address, release, sizes.")] = False,
) -> None:
    """Fetch a release file of UniProt, going on where it broke off, and check it against the release's list."""
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
            help="FASTA, UniProtKB .dat, UniProtKB or UniRef XML, CSV, TSV or Parquet; plain, .gz, .xz or .zst; folders of "
            "these; - for standard input.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="Folder to make.")],
    residues: Annotated[
        ResiduePolicy,
        typer.Option(
            help="What happens to B, J, O, U, X, Z: keep the letter (J becomes X), make it X, drop the sequence, stop."
        ),
    ] = ResiduePolicy.KEEP,
    on_error: Annotated[
        OnError, typer.Option(help="A record at fault stops the command, or is skipped and counted.")
    ] = OnError.STOP,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    valid_fraction: Annotated[float, typer.Option(help="Fraction of sequences for validation.")] = 0.05,
    test_fraction: Annotated[float, typer.Option(help="Fraction of sequences for the test.")] = 0.05,
    split_table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TSV or CSV with columns sequence_id and split (train, valid, test, held_out, or empty: by hash).",
        ),
    ] = None,
    clusters: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TSV or CSV with columns sequence_id and cluster_id, or MMseqs2's: clusters are split, not sequences.",
        ),
    ] = None,
    hold_out_families: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAMILIES",
            help="Pfam accessions (PF00069,PF07714), a file of them, or performer (that paper's 20): their members get the "
            "split held_out. Repeatable.",
        ),
    ] = None,
    family_table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TSV or CSV with columns sequence_id and family_id, or Pfam's; UniProtKB .dat and XML need none.",
        ),
    ] = None,
    min_length: Annotated[int, typer.Option(help="Drop shorter sequences (residues).")] = 1,
    max_length: Annotated[int | None, typer.Option(help="Drop longer sequences (residues).")] = None,
    drop_fragments: Annotated[
        bool, typer.Option("--drop-fragments", help="Drop what is marked as a fragment.")
    ] = False,
    taxon_ids: Annotated[
        list[int] | None,
        typer.Option("--taxon", metavar="ID", help="Keep only this NCBI taxonomy identifier. Repeatable."),
    ] = None,
    min_cluster_size: Annotated[int, typer.Option(help="Drop UniRef clusters of fewer members.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that parse, threads with the compiled reader; by default all processors but one, at most four "
            "threads, and processes for large files if there are three processors.",
        ),
    ] = None,
    protein_existence: Annotated[
        list[int] | None,
        typer.Option(metavar="LEVEL", help="Keep only this level of evidence, 1 to 5. Repeatable."),
    ] = None,
) -> None:
    """Read sequence files, filter, drop duplicates, split, and write a token store for training."""
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
        if absent := [family for family, number in numbers.items() if not number]:
            shown = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
            print(f"{len(absent):,} of {len(numbers):,} families have no sequence held out: {shown}", file=sys.stderr)
    dropped = {name.replace("_", " "): count for name, count in manifest["num_dropped"].items() if count}
    listed = f" ({', '.join(f'{name} {count:,}' for name, count in dropped.items())})" if dropped else ""
    print(
        f"{output}: {manifest['num_sequences']:,} sequences, {manifest['num_residues']:,} residues; "
        f"{sum(dropped.values()):,} dropped{listed}"
    )


@data.command("join", epilog="Example: protein-lm data join shards/* -o uniref50")
def join_data(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE...", help="Folders made by data prepare or data join, in order.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="CORPUS", help="Folder to make.")],
) -> None:
    """Make one corpus of several token stores, which stay where they are; a sequence of two is taken from the first."""
    from protein_lm.corpus.joined import join

    manifest = join(stores, output)
    number = sum(numbers["num_sequences"] for numbers in manifest["splits"].values())
    print(
        f"{output}: {number:,} sequences of {len(manifest['parts'])} stores; "
        f"{manifest['num_dropped']['duplicate_sequence']:,} duplicates left out"
    )


@data.command("inspect", epilog="Example: protein-lm data inspect swissprot")
def inspect_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FIGURE", help="Draw lengths and residues: .png, .svg or .pdf to make."),
    ] = None,
) -> None:
    """Show what a token store holds, and how long its sequences are."""
    from protein_lm.corpus.inspect import measure, report
    from protein_lm.corpus.joined import open_corpus

    opened = open_corpus(store)
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
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TABLE", help=".tsv to make.")],
    identity: Annotated[float, typer.Option(help="Least share of identical residues in an alignment.")] = 0.5,
    coverage: Annotated[float, typer.Option(help="Least share of both sequences in the alignment.")] = 0.5,
    fast: Annotated[bool, typer.Option("--fast", help="In linear time (linclust); misses some relatives.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="0: all.")] = 0,
) -> None:
    """Cluster a token store with MMseqs2, for `data prepare --clusters`."""
    from protein_lm.corpus.clusters import cluster
    from protein_lm.corpus.joined import open_corpus

    opened = open_corpus(store)
    number = cluster(opened, output, identity=identity, coverage=coverage, fast=fast, threads=threads)
    print(f"{output}: {opened.num_sequences:,} sequences in {number:,} clusters")


@data.command("leakage", epilog="Example: protein-lm data leakage swissprot")
def leakage_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="TABLE", help=".csv, .tsv or .parquet, - for CSV on output.")
    ] = "-",
    threads: Annotated[int, typer.Option(min=0, help="0: all.")] = 0,
) -> None:
    """Search what is kept back against what is trained on (MMseqs2): shares with relatives of 30, 50, 90 % identity."""
    from protein_lm.files.tables import check_table_output, write_table

    check_table_output(output)

    from protein_lm.corpus.clusters import leakage
    from protein_lm.corpus.joined import open_corpus

    write_table(leakage(open_corpus(store), threads=threads), output)


@data.command("verify", epilog="Example: protein-lm data verify swissprot")
def verify_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare or data join.")],
) -> None:
    """Check every file of a prepared or joined corpus against its checksum."""
    from protein_lm.corpus.joined import open_corpus
    from protein_lm.corpus.verify import files_of, verify

    opened = open_corpus(store)
    with _progress("checking", files_of(opened)) as on_progress:
        num_bytes = verify(opened, on_progress)
    print(f"{store}: {opened.num_sequences:,} sequences, {num_bytes:,} bytes as they were written")


@data.command("export", epilog="Example: protein-lm data export swissprot -o train.fasta.gz --split train")
def export_data(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder made by data prepare.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help=".fasta, .fa, .faa, these with .gz, or .parquet.")
    ],
    splits: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="SPLIT", help="train, valid, test or held_out. Repeatable; all if none."),
    ] = None,
) -> None:
    """Write the sequences of a token store as FASTA or as a table."""
    from protein_lm.corpus.export import export
    from protein_lm.corpus.joined import open_corpus
    from protein_lm.corpus.split import Split, parse_split

    number = export(open_corpus(store), output, splits=[parse_split(name) for name in splits or ()] or list(Split))
    print(f"{output}: {number:,} sequences")


def _progress(label: str, files: Sequence[Path]) -> AbstractContextManager[Callable[[int], None] | None]:
    """A bar for the bytes read of some files."""
    return bytes_progress(label, sum(file.stat().st_size for file in files if file.is_file()))
