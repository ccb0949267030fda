"""The benchmark harness: measures, resumes, divides the right way round, refuses clearly."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import run, session
from benchmarks.cases import CASES, Choice, specs
from benchmarks.contestants import attention, attention_layers, attention_peers
from benchmarks.contestants.scoring import proteins
from benchmarks.journal import Journal, JournalError
from benchmarks.machine import installed_version
from benchmarks.report import markdown, summary
from benchmarks.spec import Spec

ROOT = Path(__file__).parents[2]
MACHINE = {"processor": "abacus", "cores": 2, "threads": 2, "torch": "2", "peers": {}, "code": "0"}
LIMITS = {"float32_gflops": 100.0, "bfloat16_gflops": 200.0, "copy_gb_per_s": 20.0}


def attention_spec(contestant: str, *, dtype: str = "float32", length: int = 512) -> Spec:
    return Spec("attention", contestant, "causal", dtype, 1, length)


def result(seconds: list[float]) -> dict:
    return {"seconds": seconds, "peak_bytes": 2**20, "resident_bytes": 2**27, "units": 512, "facts": {}}


class FakeProcesses:
    """Stands for `launch_process`; remembers who was measured."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.measured = seconds, []

    def __call__(self, arguments: list[str], allocator: str, time_limit: float) -> dict:
        if arguments[1] == "benchmarks.machine":
            return LIMITS
        spec = Spec(**json.loads(arguments[2]))
        self.measured.append((spec.contestant, allocator))
        return result([self.seconds[spec.contestant]])


def test_worker_measures_our_attention() -> None:
    spec = Spec("attention", "ours-relu", "causal", "bfloat16", 1, 64, passes=2)
    command = [sys.executable, "-m", "benchmarks.worker", spec.to_json()]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    measured = json.loads(output)
    assert len(measured["seconds"]) == 2 and all(0 < value < 60 for value in measured["seconds"])
    assert measured["units"] == 64
    if sys.platform == "linux":
        assert 0 <= measured["peak_bytes"] < measured["resident_bytes"] < 8 * 2**30


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_training_step_learns_something(objective) -> None:
    spec = Spec("training_step", "ours-relu", objective, "float32", 1, 16)
    prepared = CASES["training_step"].contestants["ours-relu"].prepare(spec)
    losses = []
    for _ in range(3):
        prepared.once()
        losses.append(prepared.facts["loss_nats"])
    assert losses[2] < losses[0]


@pytest.mark.parametrize("contestant", ["ours-relu", "fair-esm"])
def test_embedding_counts_every_residue_once(contestant) -> None:
    prepared = (
        CASES["embedding"].contestants[contestant].prepare(Spec("embedding", contestant, "masked", "float32", 99, 3))
    )
    assert prepared.units == sum(map(len, proteins(3)))
    prepared.once()


def test_contestants_take_turns_and_nothing_is_measured_twice(tmp_path) -> None:
    todo = [attention_spec("ours-relu"), attention_spec("torch-sdpa")]
    path = tmp_path / "results.jsonl"
    first = FakeProcesses({"ours-relu": 1.0, "torch-sdpa": 2.0})
    session.run(todo, Journal(path, MACHINE), rounds=2, time_limit=1, launch=first)
    assert [name for name, _ in first.measured] == ["ours-relu", "torch-sdpa"] * 2
    path.write_text(path.read_text() + '{"spec": {"cut off')
    again = FakeProcesses({"ours-relu": 1.0, "torch-sdpa": 2.0})
    session.run(todo, Journal(path, MACHINE), rounds=3, time_limit=1, launch=again)
    assert [name for name, _ in again.measured] == ["ours-relu", "torch-sdpa"]
    assert len(Journal(path, MACHINE).results) == 6


def test_over_time_is_not_tried_again(tmp_path) -> None:
    calls = []

    def launch(arguments: list[str], allocator: str, time_limit: float) -> dict:
        calls.append(arguments)
        return LIMITS if arguments[1] == "benchmarks.machine" else {"over_seconds": time_limit}

    for _ in range(2):
        journal = Journal(tmp_path / "results.jsonl", MACHINE)
        session.run([attention_spec("torch-sdpa")], journal, rounds=3, time_limit=7, launch=launch)
    assert sum("benchmarks.worker" in arguments for arguments in calls) == 1
    assert "| over 7 s |" in markdown(summary(journal, []))


def test_a_process_that_fails_or_lasts_is_a_result() -> None:
    failed = session.launch_process(["-c", "raise ValueError('no such thing')"], "default", 30)
    assert failed == {"failed": "status 1: ValueError: no such thing"}
    assert session.launch_process(["-c", "import time; time.sleep(30)"], "default", 0.2) == {"over_seconds": 0.2}
    show = "import os; print(repr(os.environ.get('MALLOC_MMAP_MAX_', 'unset')).replace(chr(39), chr(34)))"
    assert [session.launch_process(["-c", show], name, 30) for name in ("default", "tuned")] == ["unset", "0"]


def test_other_code_is_refused(tmp_path) -> None:
    Journal(tmp_path / "results.jsonl", MACHINE)
    with pytest.raises(JournalError, match="measured with another code; name another output, or use --fresh"):
        Journal(tmp_path / "results.jsonl", MACHINE | {"code": "1"})


def test_ratios_are_times_of_ours(tmp_path) -> None:
    journal = Journal(tmp_path / "results.jsonl", MACHINE)
    for number, (ours, peer) in enumerate([(0.5, 2.0), (0.4, 3.0), (90.0, 2.5)]):
        journal.add_result(attention_spec("ours-relu"), number, result([ours]))
        journal.add_result(attention_spec("torch-sdpa"), number, result([peer]))
    journal.add_limits("first", LIMITS)
    missing = [{"contestant": "fair-esm", "package": "fair-esm", "install": "pip install fair-esm"}]
    table = markdown(summary(journal, missing))
    assert "| 1 × 512 | ours-relu | 500 | 1.00 | 1,024 | 1 |" in table
    assert "| 1 × 512 | torch-sdpa | 2,500 | 5.00 | 205 | 1 |" in table
    assert "fair-esm (fair-esm is not installed: `pip install fair-esm`)" in table
    assert "first round: 100 GFLOP/s float32" in table


def test_run_writes_everything(tmp_path, monkeypatch, capsys) -> None:
    seconds = {"ours-relu": 1.0, "torch-sdpa": 2.0}
    fake = FakeProcesses(seconds)
    monkeypatch.setattr(session, "launch_process", fake)
    monkeypatch.setattr(run, "installed_version", lambda package: None)
    names = ["ours-relu", "torch-sdpa", "fla-naive-chunk"]
    arguments = [
        "attention",
        "--lengths",
        "512",
        "1024",
        "--dtypes",
        "float32",
        "bfloat16",
        "--contestants",
        *names,
        "--allocator",
        "both",
        "--repeats",
        "1",
    ]
    files = [tmp_path / name for name in ("r.json", "r.md", "r.png")]
    arguments += ["-o", str(files[0]), "--markdown", str(files[1]), "--plot", str(files[2])]
    assert run.main(arguments) == 0
    assert len(fake.measured) == 2 * 2 * 2 * 2 * 2  # directions, types, lengths, contestants, allocators
    assert all(path.stat().st_size for path in files)
    assert json.loads(files[0].read_text())["missing"][0]["contestant"] == "fla-naive-chunk"
    assert "fla-naive-chunk is left out: fla-core is not installed; pip install -r" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["attentoin"],
            "unknown case 'attentoin'; there are attention, training_step, decoding, embedding, scoring, variants",
        ),
        (["scoring", "--contestants", "gpt5"], "unknown contestant 'gpt5'; there are ours-relu, ours-softmax"),
        (["decoding", "--directions", "masked"], "unknown direction 'masked'; there are causal"),
        (["attention", "--repeats", "0"], "repeats and lengths must be at least 1"),
        (["attention", "--lengths", "100", "--contestants", "longformer-layer"], "no contestant takes part"),
    ],
)
def test_a_wrong_choice_is_one_line(arguments, words, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_quadratic_contestants_stop_early() -> None:
    chosen = specs("attention", Choice())
    longest = {spec.contestant: max(s.length for s in chosen if s.contestant == spec.contestant) for spec in chosen}
    assert longest["ours-relu"] == 32768 and longest["torch-sdpa"] == 8192
    assert {spec.length for spec in specs("training_step", Choice(lengths=[8192]))} == {8192}


BUILDERS = attention.BUILDERS | attention_peers.BUILDERS | attention_layers.BUILDERS
NOT_REALLY_CAUSAL = {"performer-pytorch-softmax", "reformer-lsh-layer"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [name for name in BUILDERS if "causal" in CASES["attention"].contestants[name].longest]
)
def test_who_sees_the_future(name) -> None:
    """Change later tokens and see whether earlier outputs change; what README.md says of the two exceptions is true."""
    package = CASES["attention"].contestants[name].package
    if package and not installed_version(package):
        pytest.skip(f"{package} is not installed")
    spec, cut = attention_spec(name), 400
    if name in attention_layers.BUILDERS:
        _, attend = attention_layers.BUILDERS[name](spec)
        inputs = attention_layers.layer_inputs(spec)
    else:
        attend, inputs = BUILDERS[name](spec), attention.operation_inputs(spec)
    changed = [tensor.detach().clone() for tensor in inputs]
    for tensor in changed:
        tensor[..., cut:, :] = 10 * tensor[..., cut:, :].flip(-1)
    with torch.no_grad():
        before, after = attend(*inputs), attend(*changed)
    assert before.shape == inputs[0].shape
    sees = not torch.allclose(before[..., :cut, :], after[..., :cut, :], atol=1e-5)
    assert sees == (name in NOT_REALLY_CAUSAL)


def test_flops_of_the_compiled_kernel_are_those_of_its_loops(monkeypatch) -> None:
    """One chunk by hand: 128 tokens, M = 64, E = X = 32, tiles of 8 × 32."""
    from benchmarks import roofline
    from benchmarks.roofline import backward_flops, forward_flops

    for name, value in {"kernels": lambda: SimpleNamespace(chunk=lambda length: 128), "STRIP": 32, "TALL": 8}.items():
        monkeypatch.setattr(roofline, name, value)
    rows, projection, sequences = torch.zeros(1, 3, 128, 32), torch.zeros(64, 32), torch.tensor([[0, 0, 128, 0]])
    call = (rows, rows, rows, projection, None, None, sequences)
    causal, bidirectional = [0, 1, 0, 0], [0, 0, 0, 0]
    triangle = 32 * (128 + 96 + 64 + 32)
    features, state = 2 * 128 * 32 * 64, 128 * 64 * 32
    assert forward_flops(*call, causal, []) == 2 * 3 * (features + triangle * (64 + 32))
    assert forward_flops(*call, bidirectional, []) == 2 * 3 * (features + 2 * state)
    saved = (*call, rows, None, None, None)
    assert backward_flops(rows, *saved, causal, []) == 2 * 3 * (2 * features + 3 * triangle * (64 + 32))
    assert backward_flops(rows, *saved, bidirectional, []) == 2 * 3 * (2 * features + 4 * state)
    longer = (*call[:6], torch.tensor([[0, 0, 128, 0], [0, 128, 288, 0]]))
    tail = 2 * 32 * 32 * 64 + 32 * 32 * (64 + 32) + 32 * 64 * 32  # 32 places behind 128
    assert forward_flops(*longer, causal, []) == 2 * 3 * (2 * features + 2 * triangle * (64 + 32) + state + tail)
