"""Which model is the better one after so many minutes: ours beside other packages' and our own exact attention.

    python -m benchmarks.time_to_perplexity STORE --recipe scripts/recipes/tiny.yaml -o time_to_perplexity.json

Every contestant trains for the same time on the same machine, in turns of `--slice` seconds, so that none has the machine's
better hours; validation and saving do not count. All see the same corpus, and the learning rate rises and falls with the
time that is used up. After each turn the state is saved and a line of results is written: the same command goes on where
it stopped.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt

from benchmarks.contestants.learners import PEERS, Learner, ours, peer, validation_sequences
from benchmarks.machine import processor
from protein_lm.batches.plan import PlanPosition
from protein_lm.config import Recipe, load_recipe
from protein_lm.corpus.joined import open_corpus

ROOT = Path(__file__).resolve().parents[1]
LEARNING_RATES = {"hf-esm": 1e-3, "hf-gpt2": 1e-3, "performer-pytorch": 1e-3}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not there yet, and report."""
    options = _parser().parse_args(arguments)
    if options.worker:
        _work(json.loads(options.worker))
        return 0
    rows = run(options)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    text = table(rows, options.minutes)
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)
    if options.plot:
        draw(rows, options.plot)
    return 0


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Turn by turn, every contestant of every objective."""
    journal = options.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    folder = options.output.with_suffix(".states")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        {"objective": objective, "contestant": contestant}
        for objective in options.objectives
        for contestant in ("ours", "ours-exact", *PEERS[objective])
        if not options.contestants or contestant in options.contestants
    ]
    num_turns = max(1, round(60 * options.minutes / options.slice))
    for turn in range(num_turns):
        for job in jobs:
            if any(row["job"] == job and row["turn"] == turn for row in rows):
                continue
            work = {
                **job,
                "store": str(options.store.resolve()),
                "recipe": str(options.recipe.resolve()),
                "overrides": options.overrides,
                "state": str(folder.resolve() / f"{job['objective']}-{job['contestant']}.pt"),
                "begin": turn / num_turns,
                "end": (turn + 1) / num_turns,
                "seconds": 60 * options.minutes / num_turns,
                "validation": options.validation,
                "learning_rate": dict(map(_pair, options.learning_rates)).get(job["contestant"]),
            }
            command = [sys.executable, "-m", "benchmarks.time_to_perplexity", str(options.store), "--worker"]
            process = subprocess.run(
                [*command, json.dumps(work)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
            )
            if process.returncode:
                raise SystemExit(f"benchmarks.time_to_perplexity: {job['contestant']} failed")
            row = {"job": job, "turn": turn, **json.loads(process.stdout.strip().splitlines()[-1])}
            rows.append(row)
            with journal.open("a") as file:
                file.write(json.dumps(row) + "\n")
            facts = f"perplexity {row['perplexity']:.2f} after {row['seconds']:.0f} s, {row['num_tokens']:,} tokens"
            print(f"{job['objective']} {job['contestant']}: {facts}", file=sys.stderr, flush=True)
    return rows


def _work(work: dict[str, Any]) -> None:
    """One turn in this process."""
    recipe = _recipe(work)
    corpus = open_corpus(Path(work["store"]))
    validation = validation_sequences(corpus, work["validation"], recipe.model.max_length - 2)
    if work["contestant"].startswith("ours"):
        learner = ours(recipe, corpus, validation)
    else:
        rate = work["learning_rate"] or LEARNING_RATES[work["contestant"]]
        learner = peer(work["contestant"], recipe, corpus, validation, rate)
    path, place, done = Path(work["state"]), PlanPosition(), {"seconds": 0.0, "num_steps": 0, "num_tokens": 0}
    state = torch.load(path, weights_only=True) if path.exists() else {}
    is_over = state.get("end") == work["end"]  # it was stopped after it had saved this turn, before it said so
    if is_over or work["begin"] > 0:
        learner.model.load_state_dict(state["model"])
        for optimizer, saved in zip(learner.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        place, done = PlanPosition(*state["place"]), state["done"]
    if not is_over:
        place = _train(learner, place, done, work)
    perplexity = learner.perplexity()
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "model": learner.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in learner.optimizers],
            "place": [place.epoch, place.sequence, place.part],
            "done": done,
            "end": work["end"],
        },
        partial,
    )
    partial.replace(path)
    num_parameters = sum(weight.numel() for weight in learner.model.parameters())
    print(json.dumps({**done, "perplexity": perplexity, "num_parameters": num_parameters}))


def _train(learner: Learner, place: PlanPosition, done: dict[str, Any], work: dict[str, Any]) -> PlanPosition:
    """Train for the seconds of a turn; returns where the next one begins."""
    learner.model.train()
    start = time.perf_counter()
    for loss, num_tokens, next_position in learner.steps(place):
        used = (time.perf_counter() - start) / work["seconds"]
        if used >= 1:
            break
        learner.step(loss, work["begin"] + used * (work["end"] - work["begin"]))
        done["num_steps"] += 1
        done["num_tokens"] += num_tokens
        place = next_position
    done["seconds"] += time.perf_counter() - start
    return place


def _recipe(work: dict[str, Any]) -> Recipe:
    attention = ["model.attention=exact"] if work["contestant"] == "ours-exact" else []
    return load_recipe(Path(work["recipe"]), [*work["overrides"], f"model.objective={work['objective']}", *attention])


def table(rows: Sequence[dict[str, Any]], minutes: float) -> str:
    """Markdown: final perplexity, and the time in which the best peer's final one was reached."""
    lines = [f"{processor()}, {minutes:g} minutes each.", ""]
    for objective in dict.fromkeys(row["job"]["objective"] for row in rows):
        curves = _curves([row for row in rows if row["job"]["objective"] == objective])
        finals = {name: curve[-1]["perplexity"] for name, curve in curves.items()}
        peers = [value for name, value in finals.items() if not name.startswith("ours")]
        lines += [
            f"**{objective}**",
            "",
            "| contestant | weights | perplexity | tokens | minutes to the best peer's perplexity |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, curve in sorted(curves.items(), key=lambda item: finals[item[0]]):
            reached = [row["seconds"] for row in curve if peers and row["perplexity"] <= min(peers)]
            shown = f"{reached[0] / 60:.1f}" if reached else ""
            last = curve[-1]
            lines.append(
                f"| {name} | {last['num_parameters']:,} | {last['perplexity']:.2f} | {last['num_tokens']:,} | {shown} |"
            )
        lines.append("")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Perplexity against minutes, a panel per objective."""
    objectives = list(dict.fromkeys(row["job"]["objective"] for row in rows))
    figure, panels = plt.subplots(1, len(objectives), figsize=(5.5 * len(objectives), 4), squeeze=False)
    for panel, objective in zip(panels[0], objectives, strict=True):
        for name, curve in _curves([row for row in rows if row["job"]["objective"] == objective]).items():
            minutes = [row["seconds"] / 60 for row in curve]
            panel.plot(minutes, [row["perplexity"] for row in curve], marker="o", markersize=3, label=name)
        panel.set(title=objective, xlabel="minutes of training", ylabel="validation perplexity")
        panel.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["turn"]):
        curves.setdefault(row["job"]["contestant"], []).append(row)
    return curves


def _pair(setting: str) -> tuple[str, float]:
    name, separator, value = setting.partition("=")
    try:
        if name in LEARNING_RATES and separator:
            return name, float(value)
    except ValueError:
        pass
    known = ", ".join(LEARNING_RATES)
    raise SystemExit(
        f"benchmarks.time_to_perplexity: --learning-rates {setting}: expected NAME=NUMBER, NAME of {known}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.time_to_perplexity", description="Perplexity against time.")
    parser.add_argument("store", type=Path, metavar="STORE", help="corpus made by protein-lm data prepare")
    parser.add_argument("-o", "--output", type=Path, default=Path("time_to_perplexity.json"))
    parser.add_argument("--recipe", type=Path, default=ROOT / "scripts" / "recipes" / "tiny.yaml", help="of ours")
    parser.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe"
    )
    parser.add_argument("--objectives", nargs="+", choices=sorted(PEERS), default=sorted(PEERS))
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="some of them")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training for each, 10 by default")
    parser.add_argument("--slice", type=float, default=60.0, help="seconds of a turn, 60 by default")
    parser.add_argument("--validation", type=int, default=256, help="sequences, 256 by default")
    parser.add_argument("--learning-rates", nargs="+", default=[], metavar="NAME=NUMBER", help="of peers")
    parser.add_argument("--markdown", type=Path, help="table; it is printed by default")
    parser.add_argument("--plot", type=Path, help="figure")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
