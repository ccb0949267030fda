"""Make the bundled sample of Swiss-Prot: data/swissprot_sample.fasta.gz and its table of families.

The source is the Debian package metastudent-data, whose BLAST databases hold Swiss-Prot release 2014_01.
Needs dpkg-deb, blastdbcmd (NCBI BLAST+) and mmseqs (MMseqs2) on PATH. Same inputs, seed and MMseqs2 version give the
same bytes. See data/README.md for what the result holds.

    python scripts/make_swissprot_sample.py --metastudent-data metastudent-data_2.0.1-8_all.deb -o data
"""

import argparse
import gzip
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

Sequences = dict[str, str]  # accession -> residues
Families = dict[str, list[str]]  # accession of the cluster's representative -> accessions of its members

TOOLS = {"dpkg-deb": "dpkg", "blastdbcmd": "ncbi-blast+", "mmseqs": "mmseqs2"}

# Proteins that the project scores variants or structures of. They and their clusters stay out of the sample.
EVALUATION = ("P62593", "P06654", "P05067", "Q13148", "P42212", "P00974", "P04147", "P31016")

MIN_LENGTH, MAX_LENGTH = 30, 1022
COVERAGE = ("-c", "0.8", "--cov-mode", "1")
FAMILY_IDENTITY, REDUNDANCY_IDENTITY, EVALUATION_IDENTITY = 0.5, 0.9, 0.5
MIN_MEMBERS, MAX_MEMBERS = 20, 80
TARGET_PROTEINS = 20_000
HELD_OUT_SHARE = 0.07
LINK_SENSITIVITY, CHECK_SENSITIVITY, MAX_EVALUE = 5.7, 7.5, 1e-3
LINE = 60
MEMORY = "8G"  # fixed, so that MMseqs2 does not split its work by what the machine happens to have


def main() -> None:
    """Read the command line and make the sample."""
    args = parse_args()
    check_tools()
    if args.work is None:
        with tempfile.TemporaryDirectory() as folder:
            make_sample(args, Path(folder))
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        make_sample(args, args.work)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Make the bundled Swiss-Prot sample.")
    parser.add_argument("--metastudent-data", type=Path, required=True, metavar="DEB_OR_FOLDER",
                        help="the Debian package metastudent-data, or a folder it was extracted to")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, default=Path("data"), help="output folder (default: data)")
    parser.add_argument("--seed", type=int, default=0, help="chooses families and members (default: 0)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of MMseqs2 (default: all)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="scratch folder, kept (default: a temporary one)")
    return parser.parse_args()


def check_tools() -> None:
    """Stop with one line that names what to install if a program is missing."""
    missing = [f"{tool} (Debian package {package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        sys.exit(f"error: not found on PATH: {', '.join(missing)}")


def make_sample(args: argparse.Namespace, work: Path) -> None:
    """Run every step and write the two files."""
    mmseqs = Mmseqs(work, args.threads)
    everything = read_swissprot(args.metastudent_data, work)
    log(f"{len(everything):,} records, {len(set(everything.values())):,} unique sequences")
    sequences = unique_sequences(everything)
    log(f"{len(sequences):,} unique sequences of {MIN_LENGTH} to {MAX_LENGTH} residues")

    families = mmseqs.cluster(sequences, FAMILY_IDENTITY)
    log(f"{len(families):,} clusters at {FAMILY_IDENTITY:.0%} identity")
    families = at_least(families, MIN_MEMBERS)
    families = drop_evaluation(families, sequences, everything, mmseqs)
    families = at_least(drop_redundant(families, sequences, mmseqs), MIN_MEMBERS)
    log(f"{len(families):,} families of {MIN_MEMBERS} or more members below {REDUNDANCY_IDENTITY:.0%} identity, "
        f"{count(families):,} proteins")  # fmt: skip

    families = choose_families(families, args.seed)
    held_out = choose_held_out(families, sequences, args.seed, mmseqs)
    families, held_out = drop_leaks(families, held_out, sequences, mmseqs)
    write_sample(args.output, families, held_out, sequences)
    summarize(args.output, families, held_out, sequences, mmseqs)


def log(message: str) -> None:
    """Report progress on standard error."""
    print(message, file=sys.stderr, flush=True)


# Reading


def read_swissprot(source: Path, work: Path) -> Sequences:
    """Return the union by accession of the BLAST databases in `source`, a .deb or a folder."""
    if not source.exists():
        sys.exit(f"error: {source} does not exist; give the metastudent-data .deb or the folder it was extracted to")
    folder = source
    if source.is_file():
        folder = work / "package"
        subprocess.run(["dpkg-deb", "-x", str(source), str(folder)], check=True)
    databases = sorted(path.with_suffix("") for path in folder.rglob("*.pin"))
    if not databases:
        sys.exit(f"error: no BLAST protein database (*.pin) in {source}")
    records: Sequences = {}
    for database in databases:
        for accession, residues in read_blast(database):
            if records.setdefault(accession, residues) != residues:
                sys.exit(f"error: {accession} has another sequence in {database} than in an earlier database")
    return records


def read_blast(database: Path) -> Iterator[tuple[str, str]]:
    """Yield accession and residues of each entry; titles read `P12345|GO:0000166,...`."""
    command = ["blastdbcmd", "-db", str(database), "-entry", "all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        accession, lines = "", list[str]()
        for line in process.stdout:
            if line.startswith(">"):
                if accession:
                    yield accession, "".join(lines)
                accession, lines = line[1:].split("|")[0].strip(), []
            else:
                lines.append(line.strip())
        yield accession, "".join(lines)
    if process.returncode:
        sys.exit(f"error: blastdbcmd stopped with status {process.returncode} on {database}")


def unique_sequences(records: Sequences) -> Sequences:
    """Return the sequences of usable length, each once, under its first accession in alphabetical order."""
    first: Sequences = {}
    for accession in sorted(records):
        if MIN_LENGTH <= len(records[accession]) <= MAX_LENGTH:
            first.setdefault(records[accession], accession)
    return {accession: residues for residues, accession in first.items()}


def write_fasta(path: Path, sequences: Sequences, accessions: Iterable[str]) -> Path:
    """Write the named sequences, one line each, for MMseqs2."""
    path.write_text("".join(f">{name}\n{sequences[name]}\n" for name in accessions))
    return path


# MMseqs2


class Mmseqs:
    """Runs MMseqs2 in a scratch folder."""

    def __init__(self, work: Path, threads: int) -> None:
        """Work in `work` with `threads` threads."""
        self.work = work
        self.threads = threads

    def version(self) -> str:
        """Return the version that `mmseqs version` prints."""
        return subprocess.run(["mmseqs", "version"], check=True, capture_output=True, text=True).stdout.strip()

    def cluster(self, sequences: Sequences, identity: float, *, linear: bool = True) -> Families:
        """Cluster at a sequence identity; the linear-time method is faster, the cascaded one more thorough."""
        method = "easy-linclust" if linear else "easy-cluster"
        fasta = write_fasta(self.work / "cluster.fasta", sequences, sequences)
        self._run(method, fasta, self.work / "cluster", self.work / "tmp",
                  "--min-seq-id", str(identity), *COVERAGE, "--split-memory-limit", MEMORY)  # fmt: skip
        families: Families = defaultdict(list)
        for line in (self.work / "cluster_cluster.tsv").read_text().splitlines():
            representative, member = line.split("\t")
            families[representative].append(member)
        return {name: sorted(families[name]) for name in sorted(families)}

    def search(self, sequences: Sequences, queries: Iterable[str], targets: Iterable[str],
               sensitivity: float) -> Iterator[tuple[str, str, float]]:  # fmt: skip
        """Yield query, target and identity (0 to 1) of every hit up to the greatest E-value."""
        query = write_fasta(self.work / "query.fasta", sequences, queries)
        target = write_fasta(self.work / "target.fasta", sequences, targets)
        hits = self.work / "hits.tsv"
        self._run("easy-search", query, target, hits, self.work / "tmp", "-s", str(sensitivity), "-e", str(MAX_EVALUE),
                  "--max-seqs", "4000", "--format-output", "query,target,fident")  # fmt: skip
        with hits.open() as lines:
            for line in lines:
                first, second, identity = line.split("\t")
                yield first, second, float(identity)

    def _run(self, *arguments: str | Path) -> None:
        """Run one MMseqs2 command quietly."""
        command = ["mmseqs", *map(str, arguments), "--threads", str(self.threads), "-v", "1"]
        status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if status:
            sys.exit(f"error: mmseqs {arguments[0]} stopped with status {status}")


# Choosing


def at_least(families: Families, members: int) -> Families:
    """Keep the families with that many members or more."""
    return {name: group for name, group in families.items() if len(group) >= members}


def count(families: Families) -> int:
    """Return the number of proteins."""
    return sum(map(len, families.values()))


def all_members(families: Families) -> list[str]:
    """Return the members of all families, family by family."""
    return [accession for name in sorted(families) for accession in families[name]]


def family_of(families: Families) -> dict[str, str]:
    """Return each member's family."""
    return {accession: name for name, group in families.items() for accession in group}


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Return the names in an order that depends on nothing but them and the seed."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name))


def drop_evaluation(families: Families, sequences: Sequences, everything: Sequences, mmseqs: Mmseqs) -> Families:
    """Drop every family that holds an evaluation protein or a sequence similar to one."""
    missing = [accession for accession in EVALUATION if accession not in everything]
    if missing:
        sys.exit(f"error: evaluation proteins not in the databases: {' '.join(missing)}")
    owner = family_of(families)
    same = {residues: owner[accession] for accession, residues in sequences.items() if accession in owner}
    dropped = {same[everything[accession]] for accession in EVALUATION if everything[accession] in same}
    log(f"{len(dropped)} families hold an evaluation protein: {' '.join(sorted(dropped)) or 'none'}")
    # Duplicates are known by one accession only, so the queries come from the full set.
    for _, target, identity in mmseqs.search(everything, EVALUATION, all_members(families), CHECK_SENSITIVITY):
        if identity >= EVALUATION_IDENTITY:
            dropped.add(owner[target])
    log(f"{len(dropped)} families dropped for the evaluation proteins: {' '.join(sorted(dropped)) or 'none'}")
    return {name: group for name, group in families.items() if name not in dropped}


def drop_redundant(families: Families, sequences: Sequences, mmseqs: Mmseqs) -> Families:
    """Keep one representative of each cluster at the redundancy identity."""
    members = {accession: sequences[accession] for accession in sorted(all_members(families))}
    kept = mmseqs.cluster(members, REDUNDANCY_IDENTITY, linear=False)
    log(f"{len(kept):,} of {len(members):,} candidates left at {REDUNDANCY_IDENTITY:.0%} identity")
    return {name: [accession for accession in group if accession in kept] for name, group in families.items()}


def choose_families(families: Families, seed: int) -> Families:
    """Take families in seeded order, each up to the greatest size, until the target is reached."""
    chosen: Families = {}
    for name in shuffled(families, seed):
        if count(chosen) >= TARGET_PROTEINS:
            break
        chosen[name] = sorted(shuffled(families[name], seed)[:MAX_MEMBERS])
    log(f"{len(chosen):,} families chosen, {count(chosen):,} proteins")
    return {name: chosen[name] for name in sorted(chosen)}


def choose_held_out(families: Families, sequences: Sequences, seed: int, mmseqs: Mmseqs) -> set[str]:
    """Choose families to set aside: whole groups of families linked by any hit, up to the held-out share."""
    groups = linked_groups(families, sequences, mmseqs)
    limit = round(HELD_OUT_SHARE * count(families))
    held_out, total = set[str](), 0
    for first in shuffled(groups, seed):
        size = sum(len(families[name]) for name in groups[first])
        if total + size <= limit:
            held_out.update(groups[first])
            total += size
    return held_out


def linked_groups(families: Families, sequences: Sequences, mmseqs: Mmseqs) -> Families:
    """Search all proteins against all and return the connected groups of families, under their first name."""
    owner, parent = family_of(families), {name: name for name in families}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    members, nearest = all_members(families), dict[str, float]()
    for query, target, identity in mmseqs.search(sequences, members, members, LINK_SENSITIVITY):
        first, second = sorted((root(owner[query]), root(owner[target])))
        parent[second] = first
        if query != target:
            nearest[query] = max(nearest.get(query, 0.0), identity)
    groups: Families = defaultdict(list)
    for name in sorted(families):
        groups[root(name)].append(name)
    sizes = sorted(map(len, groups.values()), reverse=True)
    log(f"{len(groups):,} groups of linked families; {sizes.count(1):,} hold one family, the largest hold {sizes[:5]}")
    log(f"identity to the nearest other protein: median {statistics.median(nearest.values()):.3f}, "
        f"{sum(value >= REDUNDANCY_IDENTITY for value in nearest.values()):,} of {len(members):,} proteins at "
        f"{REDUNDANCY_IDENTITY:.0%} or more (local alignment)")  # fmt: skip
    return groups


def drop_leaks(
    families: Families, held_out: set[str], sequences: Sequences, mmseqs: Mmseqs
) -> tuple[Families, set[str]]:
    """Search held-out against known proteins and drop held-out families until there is no hit.

    An E-value counts chance hits per query, so this is the direction with few queries (about one chance hit in all);
    the other way, thousands of known queries would bring tens of chance hits.
    """
    while True:
        aside = all_members({name: families[name] for name in held_out})
        known = all_members({name: group for name, group in families.items() if name not in held_out})
        owner = family_of(families)
        hits = list(mmseqs.search(sequences, aside, known, CHECK_SENSITIVITY))
        log(f"check: {len(hits)} hits of {len(aside):,} held-out proteins in {len(known):,} known ones")
        leaks = {owner[query] for query, _, _ in hits}
        if not leaks:
            return families, held_out
        log(f"dropped held-out families with a known relative: {' '.join(sorted(leaks))}")
        families = {name: group for name, group in families.items() if name not in leaks}
        held_out = held_out - leaks


# Writing


def write_sample(output: Path, families: Families, held_out: set[str], sequences: Sequences) -> None:
    """Write the FASTA file and the table, family by family so that homologs compress well."""
    output.mkdir(parents=True, exist_ok=True)
    records, rows = list[str](), ["sequence_id\tfamily\tsplit\n"]
    for name in sorted(families):
        split = "held_out" if name in held_out else ""
        for accession in families[name]:
            records.append(f">{accession}\n{wrap(sequences[accession])}\n")
            rows.append(f"{accession}\t{name}\t{split}\n")
    write_gzip(output / "swissprot_sample.fasta.gz", "".join(records))
    write_gzip(output / "swissprot_sample_families.tsv.gz", "".join(rows))


def wrap(residues: str) -> str:
    """Break a sequence into lines as UniProt does."""
    return "\n".join(residues[start : start + LINE] for start in range(0, len(residues), LINE))


def write_gzip(path: Path, text: str) -> None:
    """Write beside and rename, with no name or time inside, so that equal text gives equal bytes."""
    beside = path.with_name(f"{path.name}.new")
    with beside.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(text.encode())
    beside.replace(path)


def summarize(output: Path, families: Families, held_out: set[str], sequences: Sequences, mmseqs: Mmseqs) -> None:
    """Print the figures that data/README.md quotes."""
    lengths = [len(sequences[accession]) for accession in all_members(families)]
    sizes = list(map(len, families.values()))
    residues = "".join(sequences[accession] for accession in all_members(families))
    print(f"MMseqs2\t{mmseqs.version()}")
    print(f"proteins\t{len(lengths):,}\nresidues\t{sum(lengths):,}\nfamilies\t{len(sizes):,}")
    print(f"length\tmin {min(lengths)}, median {statistics.median(lengths):g}, max {max(lengths)}")
    print(f"family size\tmin {min(sizes)}, median {statistics.median(sizes):g}, max {max(sizes)}")
    print(f"held out\t{len(held_out):,} families, {sum(len(families[name]) for name in held_out):,} proteins")
    print("other letters\t" + ", ".join(f"{letter} {residues.count(letter)}" for letter in "BJOUXZ"))
    for path in (output / "swissprot_sample.fasta.gz", output / "swissprot_sample_families.tsv.gz"):
        packed = path.read_bytes()
        print(f"{path.name}\t{len(packed):,} bytes\tSHA-256 {hashlib.sha256(packed).hexdigest()}")
        print(f"  uncompressed\tSHA-256 {hashlib.sha256(gzip.decompress(packed)).hexdigest()}")


if __name__ == "__main__":
    main()
