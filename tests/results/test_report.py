"""The page about a run: one whole HTML file that needs nothing else, and one clear line for every mistake."""

import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from protein_lm.checkpoint.card import model_card, model_facts
from protein_lm.checkpoint.config_file import read_facts
from protein_lm.checkpoint.directory import find_model, load_model
from protein_lm.cli import main
from protein_lm.corpus.prepare import prepare
from protein_lm.results.report.page import Picture, Section, Table, render
from protein_lm.results.report.subject import ReportChoice
from protein_lm.results.report.write import write_report
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from tests.cli.test_model import fails
from tests.conftest import fresh_model, small_recipe, write_fasta

TITLES = [
    "Model and recipe",
    "Data",
    "Learning curves",
    "Evaluation",
    "Attention",
    "Similarity of amino acids",
    "Error of random features",
    "Generated proteins",
]
VOID = {"meta", "img", "link", "br", "hr", "input"}
HOSTILE = "<script>alert('1')</script>&\"$x$"


class Page(HTMLParser):
    """The tags of a page, closed in order, with the addresses that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def check_page(text: str) -> Page:
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(address.startswith(("#s", "data:image/png;base64,")) for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import", text)
    return page


def test_a_whole_page(corpus, tmp_path, monkeypatch, capsys) -> None:
    """Of a run with softmax features, to which every section applies; each command exists, with its options."""
    recipe = small_recipe(attention="performer-softmax", num_steps=6, validate_every=3)
    Trainer(LanguageModelling(recipe, corpus), tmp_path / "run").fit()
    output = tmp_path / "report.html"
    sections: list[Section] = []
    monkeypatch.setattr("protein_lm.analysis.substitution.NUM_PERMUTATIONS", 99)
    monkeypatch.setattr("protein_lm.results.report.predictions.NUM_GENERATED", 8)
    choice = ReportChoice(data=corpus.path, max_sequences=8)
    write_report(tmp_path / "run", output, choice, on_section=sections.append)
    text = output.read_text(encoding="utf-8")
    page = check_page(text)
    assert page.titles == TITLES and page.tags.count("img") >= 7
    assert "Not computed" not in text and "held out" in text and "The run does not tell" not in text

    for command in (line for section in sections for line in section.commands):
        words = shlex.split(command)[1:]
        verb = words[:2] if words[0] == "data" else words[:1]
        assert main([*verb, "--help"]) == 0
        shown = capsys.readouterr().out
        assert not [word for word in words if word.startswith("-") and word not in shown]
    facts = model_facts(load_model(tmp_path / "run"), read_facts(tmp_path / "run/best")["training"])
    assert list(facts.items()) == sections[0].tables[0].rows
    card = (tmp_path / "run/best/README.md").read_text()
    assert all(f"- {name}: " in card for name in facts)


def test_without_a_corpus(runs, tmp_path, capsys) -> None:
    """Sections that do not apply say why; names from the data are text, whatever they look like."""
    fasta = write_fasta(tmp_path / "proteins.fasta", {HOSTILE: "MKTAYIAKQRQISF"})
    output = tmp_path / "report.html"
    assert main(["report", str(runs["masked"]), "-o", str(output), "--fasta", str(fasta)]) == 0
    told = capsys.readouterr().out
    for title in ("Data", "Evaluation", "Similarity of amino acids"):
        assert f"{title}: not computed: it needs the corpus of the run; name it with --data" in told
    assert "performer-relu attention does not estimate the softmax kernel by random features" in told
    assert "a masked model writes no proteins; protein-lm infill has it fill in residues" in told
    text = output.read_text(encoding="utf-8")
    assert check_page(text).titles == TITLES and "&lt;script&gt;alert(" in text


def test_everything_is_escaped() -> None:
    section = Section(
        title=HOSTILE,
        what=HOSTILE,
        commands=[HOSTILE],
        tables=[Table([HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]])],
        pictures=[Picture(b"png", HOSTILE)],
        text=HOSTILE,
        seconds=0.1,
    )
    missing = Section(title=HOSTILE, missing=HOSTILE)
    text = render(HOSTILE, [section, missing], subtitle=HOSTILE, footer=HOSTILE)
    assert check_page(text).titles == [HOSTILE, HOSTILE]


def test_the_card_says_what_config_says() -> None:
    training = {
        "step": 1300,
        "num_tokens": 2368293,
        "best_validation_loss_nats": 2.5,
        "corpus": {"<b>\n.fasta": "0123"},
        "weights_from": "elsewhere",
    }
    card = model_card(fresh_model(), training)
    assert card.startswith("---\nlibrary_name: protein_lm\ntags:\n- protein\n- causal-language-model\n---\n")
    for line in (
        "- window: 64 tokens, the two special ones included",
        "- optimizer steps: 1,300",
        "- tokens seen in training: 2,368,293",
        "- best validation loss: 2.5000 nats per residue, perplexity 12.18",
        "- corpus, from &lt;b&gt; .fasta: SHA-256 0123",
        "- weights from: elsewhere",
    ):
        assert line in card.splitlines()
    assert "best validation loss nats: none" in model_card(fresh_model(), {"best_validation_loss_nats": None})


def test_mistakes(corpus, runs, tmp_path, capsys) -> None:
    run, output = runs["causal"], tmp_path / "report.html"
    assert "absent is no run: there is no such folder" in fails(capsys, "report", tmp_path / "absent", "-o", output)
    assert "is no run: it has no metrics.jsonl" in fails(capsys, "report", find_model(str(run)), "-o", output)
    assert "end its name in .html" in fails(capsys, "report", run, "-o", tmp_path / "report.pdf")
    other = write_fasta(tmp_path / "other.fasta", {f"P{number}": "MKTAYIAKQRQ" + "A" * number for number in range(30)})
    prepare([other], tmp_path / "other")
    message = fails(capsys, "report", run, "--data", tmp_path / "other", "-o", output)
    assert "not the corpus that" in message and "protein-lm evaluate" in message
    assert "does not exist" in fails(capsys, "report", run, "--data", tmp_path / "no", "-o", output)
    long = write_fasta(tmp_path / "long.fasta", {"long": "A" * 63})
    assert "long has 63 residues; this model reads 62" in fails(capsys, "report", run, "--fasta", long, "-o", output)
    assert not output.exists()
    output.write_text("mine")
    assert "exists already" in fails(capsys, "report", run, "--data", corpus.path, "-o", output)
    assert output.read_text() == "mine"


@pytest.mark.parametrize("lines", [0, 1])
def test_a_run_that_has_logged_little(runs, tmp_path, lines) -> None:
    shutil.copytree(runs["causal"], run := Path(tmp_path / "run"))
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(rows[:lines]))
    sections: list[Section] = []
    write_report(run, tmp_path / "report.html", ReportChoice(), on_section=sections.append)
    curves = next(section for section in sections if section.title == "Learning curves")
    assert bool(curves.missing) == (lines == 0)
