"""Make the models that ship in checkpoints/: tiny-causal and tiny-masked, trained on the bundled sample.

They are scripts/recipes/tiny.yaml with fewer embeddings of k-mers, so that each is a file of under 4 MB. With the same number
of threads and the same versions the same weights come out.

    OMP_NUM_THREADS=1 python scripts/make_checkpoints.py WORK

WORK is a folder for corpus and runs; a run that was interrupted there is gone on with.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from protein_lm.checkpoint.card import CARD
from protein_lm.checkpoint.config_file import read_facts
from protein_lm.checkpoint.directory import load_model, save_model

ROOT = Path(__file__).resolve().parent.parent
SAMPLE, FAMILIES = ROOT / "data/swissprot_sample.fasta.gz", ROOT / "data/swissprot_sample_families.tsv.gz"
RECIPE = ROOT / "scripts/recipes/tiny.yaml"
CHANGES = (
    "model.kmer_sizes=[3]",
    "model.kmer_buckets=4096",
    "data.tokens_per_batch=2048",
    "training.num_steps=1300",
    "training.learning_rate=0.006",
    "training.warmup_steps=20",
    "training.validate_every=325",
    "training.checkpoint_every=650",
    "training.precision=bfloat16",
)
"""The recipe takes larger batches since these models were made; they ran in bfloat16."""
OBJECTIVES = ("causal", "masked")
COLUMNS = ["split", "num_sequences", "num_residues", "accuracy", "perplexity", "unigram_perplexity"]

CARD_TEXT = """
## Evaluation
Measured by `protein-lm evaluate` on the bundled sample: `test` are unseen proteins of known families, `held_out` are unseen
families. One seed.

{table}

The unigram baseline knows nothing but the frequencies of amino acids, and on unseen families the model is not far from it, or
worse: it was trained for minutes on 16,795 proteins. It is there for examples and tests, not for answers about proteins.

## Made by
`OMP_NUM_THREADS=1 python scripts/make_checkpoints.py WORK`: the recipe `scripts/recipes/tiny.yaml` with
{changes}.

Code and weights: Apache-2.0. Trained on Swiss-Prot, (c) UniProt consortium, CC BY 4.0 (see `data/README.md`).
"""


def protein_lm(*arguments: object) -> None:
    """Run a verb; its failure ends this."""
    command = [sys.executable, "-m", "protein_lm", *map(str, arguments)]
    print("$ protein-lm", *arguments, flush=True)
    if status := subprocess.run(command).returncode:
        sys.exit(status)


def make(objective: str, corpus: Path, run: Path, target: Path) -> None:
    """Train, evaluate, and write the model directory."""
    settings = [word for change in (f"model.objective={objective}", *CHANGES) for word in ("--set", change)]
    protein_lm("train", RECIPE, "--data", corpus, "-o", run, *settings, *(["--resume"] if run.exists() else []))
    evaluation = run / "evaluation.csv"
    evaluation.unlink(missing_ok=True)
    protein_lm("evaluate", "--model", run, "--data", corpus, "--split", "test", "--split", "held_out", "-o", evaluation)
    save_model(load_model(run), target, facts=read_facts(run / "best")["training"])
    with (target / CARD).open("a", encoding="utf-8") as card:
        changes = ", ".join(f"`{change}`" for change in (f"model.objective={objective}", *CHANGES))
        card.write(CARD_TEXT.format(table=markdown(pd.read_csv(evaluation)), changes=changes))


def markdown(table: pd.DataFrame) -> str:
    """The columns that a card shows."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for row in table.reindex(columns=COLUMNS).itertuples(index=False):
        lines.append(" | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Make both models, unless they are there."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/make_checkpoints.py WORK")
    work = Path(sys.argv[1])
    corpus = work / "corpus"
    if not corpus.exists():
        protein_lm("data", "prepare", SAMPLE, "--split-table", FAMILIES, "-o", corpus)
    for objective in OBJECTIVES:
        target = ROOT / f"checkpoints/tiny-{objective}"
        if not target.exists():
            make(objective, corpus, work / objective, target)


if __name__ == "__main__":
    main()
