"""Errors of random features against their number, as figure 4 of the Performer paper shows them, with the newer maps in it.

    python -m benchmarks.kernel_error -o kernel_error.csv --plot kernel_error.png

Queries, keys and values are normal, of length 4,096 and width 16, at three sizes; nothing of a model is in it. Source of the
setting: Choromanski et al. 2021 (arXiv 2009.14794), section 4.2.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from protein_lm.analysis.kernel_error import FEATURE_TYPES, matrix_errors

TYPES = (
    "positive-orthogonal",
    "positive-iid",
    "positive-simplex",
    "optimal-orthogonal",
    "trigonometric-orthogonal",
    "trigonometric-iid",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the means, and write table and figure."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernel_error", description="Errors of random features.")
    parser.add_argument("-o", "--output", type=Path, default=Path("kernel_error.csv"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--features", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[0.35, 0.5, 0.85], help="standard deviations of q and k"
    )
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(FEATURE_TYPES))
    parser.add_argument("--num-draws", type=int, default=15)
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, options.length, options.width, generator=generator) for _ in range(3))
    table = matrix_errors(
        query,
        key,
        value,
        causal=False,
        feature_types=options.types,
        num_features=options.features,
        norm_scales=options.scales,
        num_draws=options.num_draws,
    )
    table.to_csv(options.output, index=False)
    for scale, rows in table.groupby("norm_scale"):
        print(f"standard deviation {scale}: relative error of the output, mean over {options.num_draws} draws")
        print(
            rows.pivot_table(index="feature_type", columns="num_features", values="output_error").round(3).to_string()
        )
    if options.plot:
        from protein_lm.plots.kernel_error import kernel_errors

        kernel_errors(table, error="output_error").savefig(options.plot, dpi=150)


if __name__ == "__main__":
    main()
