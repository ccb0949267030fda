"""Files that `train` and `finetune` add to a run at its end: figures, and the evaluation of fine-tuning."""

from pathlib import Path

import pandas as pd

from protein_lm.files.output import new_file
from protein_lm.plots.curves import fine_tuning_curve, learning_curve
from protein_lm.plots.saving import save_figure
from protein_lm.training.run_log import read_metrics

FIGURE = "learning_curve.png"


def write_learning_curve(run: Path) -> Path:
    """Draw a run's metrics.jsonl into its folder; return the figure's path."""
    save_figure(learning_curve(pd.DataFrame(read_metrics(run))), run / FIGURE, replace=True)
    return run / FIGURE


def write_fine_tuning(run: Path, evaluation: pd.DataFrame) -> None:
    """Write the evaluation of a fine-tuning run and its learning curve into its folder."""
    with new_file(run / "evaluation.csv", replace=True) as partial:
        evaluation.to_csv(partial, index=False)
    save_figure(fine_tuning_curve(pd.DataFrame(read_metrics(run))), run / FIGURE, replace=True)
