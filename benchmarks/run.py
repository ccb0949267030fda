"""Measure protein_lm beside its peers, each case in a process of its own, contestants in turns.

    python benchmarks/run.py [CASE ...] [-o results.json] [--markdown table.md] [--plot plot.png]

Results are kept as they come in a file of JSON lines beside the output; the same command goes on where it stopped.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, installed or not

from benchmarks import session
from benchmarks.cases import CASES, Choice, specs
from benchmarks.journal import Journal, JournalError
from benchmarks.machine import description, fast_dtypes, installed_version
from benchmarks.report import markdown, summary
from benchmarks.spec import ALLOCATORS, Spec


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; status 2 and one line for what cannot be done."""
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen, missing = _present(_chosen_specs(parser, options))
    journal_path = options.output.with_suffix(".jsonl")
    if options.fresh:
        journal_path.unlink(missing_ok=True)
    try:
        journal = Journal(journal_path, description())
    except JournalError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    session.run(chosen, journal, rounds=options.repeats, time_limit=options.time_limit)
    results = summary(journal, missing)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = markdown(results)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    else:
        print(table)
    if options.plot:
        from benchmarks.plot import draw

        try:
            draw(results, options.plot)
        except ValueError as error:
            parser.exit(2, f"{parser.prog}: no {options.plot}: {error}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; all of them by default")
    add("-o", "--output", type=Path, default=Path("results.json"), help="results, %(default)s by default")
    add("--markdown", type=Path, help="tables; they are printed by default")
    add("--plot", type=Path, help="figure of the case attention")
    add("--repeats", type=int, default=5, metavar="N", help="rounds, %(default)s by default")
    add(
        "--lengths",
        type=int,
        nargs="+",
        help="lengths; tokens to generate in decoding, proteins in embedding and scoring",
    )
    add("--batches", type=int, nargs="+", metavar="N", help="only shapes of these batch sizes")
    add("--contestants", nargs="+", metavar="NAME", help="only these")
    add("--directions", nargs="+", metavar="NAME", help="only these of causal, bidirectional, masked")
    add(
        "--dtypes",
        nargs="+",
        metavar="NAME",
        help="only these of float32, bfloat16; by default those that are not emulated",
    )
    add("--allocator", choices=[*ALLOCATORS, "both"], default="default", help="settings of glibc's malloc")
    add("--time-limit", type=float, default=900.0, metavar="SECONDS", help="per process, %(default)g by default")
    add("--fresh", action="store_true", help="forget earlier measurements of the same output")
    return parser


def _chosen_specs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Spec]:
    names = options.cases or list(CASES)
    _check(parser, "case", names, list(CASES))
    cases = [CASES[name] for name in names]
    _check(parser, "contestant", options.contestants, [name for case in cases for name in case.contestants])
    _check(parser, "direction", options.directions, [name for case in cases for name in case.directions])
    _check(parser, "dtype", options.dtypes, [name for case in cases for name in case.dtypes])
    if options.repeats < 1 or min(options.lengths or [1]) < 1:
        parser.exit(2, f"{parser.prog}: repeats and lengths must be at least 1\n")
    choice = Choice(
        lengths=options.lengths,
        batches=options.batches,
        contestants=options.contestants,
        directions=options.directions,
        dtypes=options.dtypes or fast_dtypes(),
        allocators=tuple(ALLOCATORS) if options.allocator == "both" else (options.allocator,),
    )
    chosen = [spec for name in names for spec in specs(name, choice)]
    if not chosen:
        parser.exit(
            2, f"{parser.prog}: no contestant takes part in this choice of cases, lengths, batches and directions\n"
        )
    return chosen


def _check(parser: argparse.ArgumentParser, what: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in names or ():
        if name not in known:
            parser.exit(2, f"{parser.prog}: unknown {what} {name!r}; there are {', '.join(dict.fromkeys(known))}\n")


def _present(chosen: list[Spec]) -> tuple[list[Spec], list[dict[str, str]]]:
    """The specs whose package is installed, and the contestants whose package is not; these are named on stderr."""
    present, missing = [], {}
    for spec in chosen:
        contestant = CASES[spec.case].contestants[spec.contestant]
        if contestant.package is None or installed_version(contestant.package):
            present.append(spec)
        else:
            missing[spec.contestant] = {"package": contestant.package, "install": contestant.install}
    for name, peer in missing.items():
        print(f"{name} is left out: {peer['package']} is not installed; {peer['install']}", file=sys.stderr)
    return present, [{"contestant": name, **peer} for name, peer in missing.items()]


if __name__ == "__main__":
    sys.exit(main())
