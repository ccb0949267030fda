"""What training runs cost beside their steps: checkpoints, resuming, several processes, memory.

    python -m benchmarks.training_runs STORE --recipe scripts/recipes/small.yaml

starts the commands that a user would, in turns where they are compared, and reads their `metrics.jsonl`.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import processor
from protein_lm.training.run_log import METRICS, read_metrics

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "scripts" / "accelerate" / "cpu.yaml"
ROW = 20
"""Steps between rows of metrics."""
LONG, SHORT = 8192, 256
WAIT = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(options.store.resolve(), options.recipe.resolve(), Path(name))
        share, saving, step = runs.cost_of_checkpoints()
        print(f"{processor()}, {os.cpu_count()} processors, {options.recipe.name}", flush=True)
        print(
            f"checkpoint every 100 steps: {100 * share:.2f} % of the time ({saving:.2f} s each, steps of {step:.2f} s)"
        )
        print(f"resumed command, from its start to its first step: {runs.seconds_to_first_step():.1f} s", flush=True)
        one, two = runs.tokens_per_second(options.rounds)
        print(
            f"2 processes of 1 thread beside 1 of 2: {two / one:.3f} x ({two:,.0f} and {one:,.0f} tokens/s)", flush=True
        )
        total, before = runs.memory()
        print(
            f"1 x {LONG}: {total / 1e9:.2f} GB resident in all, {(total - before) / 1e9:.2f} GB more than 1 x {SHORT}"
        )
    return 0


class Runs:
    """Training runs of a recipe in a folder."""

    def __init__(self, store: Path, recipe: Path, folder: Path) -> None:
        self.store, self.recipe, self.folder = store, recipe, folder

    def cost_of_checkpoints(self) -> tuple[float, float, float]:
        """Share of the time with one every 100 steps; seconds of one; seconds of a step."""
        run = self.folder / "checkpoints"
        self._train(run, {"num_steps": 6 * ROW + 1, "checkpoint_every": ROW})
        rows = [row for row in read_metrics(run) if row["split"] == "train"][:6]
        saving, steps = [], []
        for before, row in itertools.pairwise(rows):
            computing = (row["num_tokens"] - before["num_tokens"]) / row["tokens_per_second"]
            saving.append(row["seconds"] - before["seconds"] - computing)
            steps.append(computing / ROW)
        one, step = statistics.median(saving), statistics.median(steps)
        return one / (100 * step + one), one, step

    def seconds_to_first_step(self) -> float:
        """Wall time of `train --resume` before the first of its steps begins."""
        run = self.folder / "checkpoints"
        known = len(read_metrics(run))
        start = time.perf_counter()
        settings = {"num_steps": 8 * ROW + 1, "checkpoint_every": ROW}
        process = self._start(run, settings, "--resume", "--allow-change", "training.num_steps")
        while (run / METRICS).read_bytes().count(b"\n") <= known:
            if process.poll() is not None:
                raise SystemExit("benchmarks.training_runs: the resumed run ended early")
            time.sleep(WAIT)
        elapsed = time.perf_counter() - start
        process.wait()
        rows = read_metrics(run)
        first = rows[known]
        return elapsed - (first["num_tokens"] - rows[known - 1]["num_tokens"]) / first["tokens_per_second"]

    def tokens_per_second(self, rounds: int) -> tuple[float, float]:
        """Medians of 1 process with 2 threads, and of 2 processes with 1 thread and half of the batch each."""
        found: dict[int, list[float]] = {1: [], 2: []}
        tokens = 8192
        for number in range(rounds):
            for processes, speeds in found.items():
                run = self.folder / f"{processes}-{number}"
                settings = {"num_steps": 2 * ROW, "checkpoint_every": 2 * ROW}
                data = f"data.tokens_per_batch={tokens // processes}"
                self._train(run, settings, "--set", data, processes=processes)
                speeds.append([row for row in read_metrics(run) if row["split"] == "train"][-1]["tokens_per_second"])
        return statistics.median(found[1]), statistics.median(found[2])

    def memory(self) -> tuple[int, int]:
        """Largest resident size of a run on rows of `LONG` tokens, and of one on rows of `SHORT`."""
        sizes = []
        for length in (LONG, SHORT):
            run = self.folder / f"memory-{length}"
            data = ["--set", f"data.tokens_per_batch={length}", "--set", f"model.max_length={length}"]
            self._train(run, {"num_steps": 3}, *data, "--set", "data.windows=concatenate")
            sizes.append(max(row["peak_memory_bytes"] for row in read_metrics(run) if row["split"] == "train"))
        return sizes[0], sizes[1]

    def _train(self, run: Path, settings: dict[str, int], *arguments: str, processes: int = 1) -> None:
        if self._start(run, settings, *arguments, processes=processes).wait():
            raise SystemExit(f"benchmarks.training_runs: {run.name} failed")

    def _start(
        self, run: Path, settings: dict[str, int], *arguments: str, processes: int = 1
    ) -> "subprocess.Popen[bytes]":
        launcher = [sys.executable, "-m", "protein_lm"]
        if processes > 1:
            launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
            launcher += ["--num_processes", str(processes), "-m", "protein_lm"]
        given = {"warmup_steps": 1, "validate_every": 10**6, "num_validation_sequences": 1} | settings
        command = [*launcher, "train", str(self.recipe), "--data", str(self.store), "-o", str(run), *arguments]
        for name, value in given.items():
            command += ["--set", f"training.{name}={json.dumps(value)}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(2 // processes)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.training_runs", description="What training costs beside its steps."
    )
    parser.add_argument("store", type=Path, metavar="STORE", help="corpus made by protein-lm data prepare")
    parser.add_argument("--recipe", type=Path, default=ROOT / "scripts" / "recipes" / "small.yaml")
    parser.add_argument("--rounds", type=int, default=3, help="turns of 1 and of 2 processes, 3 by default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
