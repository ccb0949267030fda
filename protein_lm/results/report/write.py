"""One page about a run: its data, recipe and curves, its predictions, its attention, its generated proteins."""

import dataclasses
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from protein_lm import __version__
from protein_lm.errors import OutputError, ProteinLMError
from protein_lm.files.output import check_absent, new_file
from protein_lm.results.report.attention import attention, feature_error, similarity
from protein_lm.results.report.page import Section, render
from protein_lm.results.report.predictions import evaluation, generated
from protein_lm.results.report.subject import ReportChoice, Subject
from protein_lm.results.report.training import curves, data, model_and_recipe

SECTIONS: dict[str, Callable[[Subject], Section]] = {
    "Model and recipe": model_and_recipe,
    "Data": data,
    "Learning curves": curves,
    "Evaluation": evaluation,
    "Attention": attention,
    "Similarity of amino acids": similarity,
    "Error of random features": feature_error,
    "Generated proteins": generated,
}
"""Titles and builders of the sections, in order."""


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
        choice: what is shown.
        on_section: called with each section as soon as it is computed.

    Raises:
        InputError, ConfigError, ModelError, StoreError: as `Subject`.
        OutputError: as `check_report_output`, or it cannot be written.
    """
    check_report_output(output)
    subject = Subject(run, choice)
    sections = []
    for title, build in SECTIONS.items():
        sections.append(_timed(title, build, subject))
        on_section(sections[-1])
    model = subject.model
    page = render(
        f"Report of {run.resolve().name}",
        sections,
        subtitle=f"A {model.config.objective.value} protein language model, {model.config.attention_name} attention, "
        f"{model.num_parameters:,} weights; the best model of the run.",
        footer=f"Written by protein_lm {__version__} on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, computed on "
        f"{model.device.type}, in {sum(section.seconds or 0 for section in sections):.0f} s.",
    )
    with new_file(output) as partial:
        partial.write_text(page, encoding="utf-8")


def _timed(title: str, build: Callable[[Subject], Section], subject: Subject) -> Section:
    """Build a section; one that cannot be built says why."""
    start = time.perf_counter()
    try:
        section = build(subject)
    except ProteinLMError as error:
        section = Section(missing=" ".join(str(error).split()))
    return dataclasses.replace(section, title=title, seconds=time.perf_counter() - start)
