"""The compiled kernels against the torch path, on every level of this machine; and the contract of attention once more."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from protein_lm.attention.backends.interface import LinearInputs
from protein_lm.attention.backends.native_linear import _forward, takes
from protein_lm.attention.feature_maps.performer import ReLUFeatures
from protein_lm.attention.kinds.interface import LayerShape
from protein_lm.attention.kinds.linear import LinearOperation
from protein_lm.attention.kinds.table import build_attention, with_defaults
from protein_lm.attention.packing import Packing
from protein_lm.attention.rows import Rows
from protein_lm.native import build, library

KINDS = ["performer-relu", "performer-softmax", "elu"]
HEADS = 3
LENGTHS = [1, 40, 130, 32, 3, 64, 5, 5, 1, 300]
EXACT_TESTS = Path(__file__).with_name("test_native_exact.py")
READER_TESTS = Path(__file__).parents[2] / "io" / "test_compiled_reader.py"
has_compiler = any(map(shutil.which, build.COMPILERS))
pytestmark = pytest.mark.skipif(not has_compiler, reason="no C++ compiler")
kinds = pytest.mark.parametrize("kind", KINDS)
forms = pytest.mark.parametrize(("kind", "causal"), [(kind, causal) for kind in KINDS for causal in (True, False)])


def operation_of(kind: str, causal: bool, width: int = 64, num_features: int = 96) -> LinearOperation:
    layer = LayerShape(num_heads=HEADS, head_width=width, causal=causal)
    return build_attention(with_defaults(kind, {"num_features": num_features}), layer)


def draw(length: int, width: int = 64, batch: int = 2, dtype=torch.float32, scale: float = 1.0) -> list[torch.Tensor]:
    """Query, key and value as projections leave them: heads of a token side by side."""
    generator = torch.Generator().manual_seed(length)
    shape = batch, length, HEADS, width
    rows = (scale * torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(3))
    return [row.to(dtype).transpose(1, 2) for row in rows]


def run(operation, tensors, rows: Rows, weight: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and gradients in float64, computed in a type."""
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    output = operation(*tensors, rows)
    assert output.dtype == dtype
    results = [output.detach(), *torch.autograd.grad(output, tensors, weight.to(dtype))]
    return [result.double() for result in results]


def on_torch(operation, tensors, rows: Rows, weight: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, library.OFF)
        if dtype == torch.float64:
            operation = operation.double()
        return run(operation, tensors, rows, weight, dtype)


def assert_as_exact_as_torch(operation, tensors, rows: Rows, weight: torch.Tensor, dtype: torch.dtype) -> None:
    """Errors against float64 are at most those of the torch path and a half, or rounding."""
    compiled = run(operation, tensors, rows, weight, dtype)
    by_torch = on_torch(operation, tensors, rows, weight, dtype)
    exact = on_torch(operation, tensors, rows, weight, torch.float64)
    rounding = 2e-5 if dtype == torch.float32 else 4e-3
    largest = max(tensor.norm() for tensor in exact[1:])
    for name, ours, theirs, truth in zip("oqkv", compiled, by_torch, exact, strict=True):
        scale = truth.norm() if name == "o" else max(truth.norm(), 1e-2 * largest)
        allowed = 1.5 * (theirs - truth).norm() + rounding * scale
        assert (ours - truth).norm() <= allowed, name


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [2, 63, 128, 300])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_torch_path_and_float64(level, kind, causal, dtype, length, padded) -> None:
    tensors = draw(length)
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    rows = Rows()
    if padded:
        valid_mask = torch.arange(length) < torch.tensor([[length], [max(1, length // 2)]])
        valid_mask[0, length // 3] = False
        rows, weight = Rows(valid_mask), weight * valid_mask[:, None, :, None]
    assert_as_exact_as_torch(operation_of(kind, causal), tensors, rows, weight, dtype)


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_the_torch_path_and_float64(level, kind, causal, dtype) -> None:
    packing = Packing.of_lengths(LENGTHS)
    tensors = draw(packing.length, batch=1)
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    assert_as_exact_as_torch(operation_of(kind, causal), tensors, Rows(packing=packing), weight, dtype)


def test_long_sequences_whose_chunks_are_larger(level) -> None:
    packing = Packing.of_lengths([2100, 130])
    tensors = draw(packing.length, width=32, batch=1)
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    operation = operation_of("performer-relu", True, 32, 64)
    assert_as_exact_as_torch(operation, tensors, Rows(packing=packing), weight, torch.float32)


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["query", "key", "value"])
def test_what_is_not_a_number_stays_so_where_it_is_seen(level, kind, causal, dtype, place) -> None:
    """Otherwise nobody would notice a model that diverged."""
    tensors = draw(70, dtype=dtype)
    tensors[place][0, 0, 40] = torch.nan
    with torch.no_grad():
        is_lost = operation_of(kind, causal)(*tensors, Rows()).isnan().any(-1)
    seeing = slice(40, 41) if place == 0 else slice(40 if causal else 0, None)
    assert is_lost[0, 0, seeing].all() and (place > 0 or is_lost.sum() == 1)
    assert not is_lost[1:].any() and not is_lost[:, 1:].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [1, 20, 24, 32, 100, 128])
@pytest.mark.parametrize("kind", ["performer-relu", "performer-softmax"])
def test_any_width_of_heads(best_level, kind, causal, width) -> None:
    tensors = draw(150, width)
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    operation = operation_of(kind, causal, width, 64)
    assert_as_exact_as_torch(operation, tensors, Rows(), weight, torch.float32)


@pytest.mark.parametrize("causal", [True, False])
def test_values_of_another_width(best_level, causal) -> None:
    operation = operation_of("performer-relu", causal)
    query, key, _ = draw(150)
    value = draw(150, 40)[2]
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    assert_as_exact_as_torch(operation, [query, key, value], Rows(), weight, torch.float32)


@forms
def test_float32_under_autocast(best_level, kind, causal) -> None:
    operation = operation_of(kind, causal)
    tensors = draw(300)
    exact = operation(*tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = operation(*tensors)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.02


@forms
def test_padding_batch_and_packing_change_nothing(level, kind, causal) -> None:
    operation = operation_of(kind, causal)
    tensors = draw(150, batch=3)
    whole = operation(*tensors)
    for row in range(3):
        assert torch.equal(operation(*(tensor[row : row + 1] for tensor in tensors)), whole[row : row + 1])
    alone = operation(*(tensor[:, :, :90] for tensor in tensors))
    padded = operation(*tensors, Rows((torch.arange(150) < 90).expand(3, -1)))
    torch.testing.assert_close(padded[:, :, :90], alone, rtol=1e-5, atol=1e-6)
    packing = Packing.of_lengths(LENGTHS)
    tensors = draw(packing.length, batch=1)
    packed = operation(*tensors, Rows(packing=packing))
    for part, *alone in zip(packed.split(LENGTHS, 2), *(tensor.split(LENGTHS, 2) for tensor in tensors), strict=True):
        assert torch.equal(part, operation(*alone))


@kinds
@pytest.mark.parametrize("factor", [1.0, 10.0])
@pytest.mark.parametrize("changed", [1, 64, 127, 128, 130])
def test_the_future_does_not_change_the_past(level, kind, factor, changed) -> None:
    operation = operation_of(kind, causal=True)
    tensors = draw(200)
    before = operation(*tensors)
    generator = torch.Generator().manual_seed(7)
    for tensor in tensors:
        tensor[:, :, changed:] = factor * torch.randn(tensor[:, :, changed:].shape, generator=generator)
    after = operation(*tensors)
    assert torch.equal(after[:, :, :changed], before[:, :, :changed])
    assert not torch.equal(after[:, :, changed:], before[:, :, changed:])


@forms
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_any_norm(level, kind, causal, scale, dtype) -> None:
    tensors = [tensor.requires_grad_() for tensor in draw(200, dtype=dtype, scale=scale)]
    output = operation_of(kind, causal)(*tensors)
    assert output.isfinite().all()
    for gradient in torch.autograd.grad(output.float().sum(), tensors):
        assert gradient.isfinite().all()


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_a_weighted_mean_of_the_values(level, kind, causal, dtype) -> None:
    query, key, value = draw(300, dtype=dtype)
    output = operation_of(kind, causal)(query, key, torch.ones_like(value)).float()
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(output, torch.ones_like(output), rtol=tolerance, atol=tolerance)


@forms
def test_a_row_without_keys_gives_zeros(level, kind, causal) -> None:
    tensors = draw(140)
    valid_mask = torch.ones(2, 140, dtype=torch.bool)
    valid_mask[1, :3] = False
    output = operation_of(kind, True)(*tensors, Rows(valid_mask))
    assert (output[1, :, :3] == 0).all()


@forms
def test_the_number_of_threads_changes_nothing(best_level, kind, causal) -> None:
    packing = Packing.of_lengths(LENGTHS)
    tensors = draw(packing.length, batch=1)
    operation, threads = operation_of(kind, causal), torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(run(operation, tensors, Rows(packing=packing), torch.ones_like(tensors[0]), torch.float32))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


def test_going_on_from_a_state_equals_one_pass(best_level) -> None:
    operation = operation_of("performer-softmax", causal=True)
    tensors = draw(257)
    state = operation.new_state(2, HEADS, 64, torch.device("cpu"))
    pieces = zip(*(tensor.split([100, 1, 1, 155], 2) for tensor in tensors), strict=True)
    with torch.no_grad():
        output = torch.cat([operation.extend(*piece, state) for piece in pieces], dim=2)
        torch.testing.assert_close(output, operation(*tensors), rtol=1e-4, atol=1e-5)


@forms
@pytest.mark.filterwarnings("ignore")
def test_the_operator_keeps_the_rules_of_torch(best_level, kind, causal) -> None:
    """Schema, fake tensors, autograd and tracing, as torch itself checks them; and what torch.compile makes of it."""
    operation = operation_of(kind, causal)
    tensors = [tensor.requires_grad_() for tensor in draw(150)]
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "protein_lm.attention.backends.native_linear._forward", lambda *call: calls.append(call) or _forward(*call)
        )
        expected = operation(*tensors)
    torch.library.opcheck(_forward, calls[0])
    traced = torch.compile(operation, backend="aot_eager")(*tensors)
    torch.testing.assert_close(traced, expected)
    gradients = (torch.autograd.grad(output.square().sum(), tensors) for output in (traced, expected))
    torch.testing.assert_close(*gradients)


def test_plans_made_without_gradients_serve_with_them(best_level) -> None:
    operation, packing = operation_of("performer-relu", causal=False), Packing.of_lengths([70, 71])
    tensors = draw(141, batch=1)
    with torch.inference_mode():
        operation(*tensors, Rows(packing=packing))
        operation(*tensors)
    for rows in (Rows(packing=packing), Rows()):
        run(operation, tensors, rows, torch.ones_like(tensors[0]), torch.float32)


def test_what_there_is_no_kernel_for_takes_the_torch_path(best_level) -> None:
    def is_taken(tensor: torch.Tensor, feature_map: ReLUFeatures) -> bool:
        return takes(LinearInputs(tensor, tensor, tensor, feature_map, causal=True, product=torch.float32))

    query = draw(10)[0]
    assert is_taken(query, ReLUFeatures(64, 96))
    assert not is_taken(query, ReLUFeatures(64, 90))
    assert not is_taken(query.double(), ReLUFeatures(64, 96))
    assert not is_taken(query.half(), ReLUFeatures(64, 96))
    assert not is_taken(query, type("Other", (ReLUFeatures,), {})(64, 96))
    assert not is_taken(torch.zeros(1, 1, 4, 160), ReLUFeatures(160, 96))


@forms
def test_what_surrounds_the_matrix_units(emulated_tiles, kind, causal) -> None:
    packing = Packing.of_lengths(LENGTHS)
    tensors = draw(packing.length, batch=1)
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.bfloat16, torch.float32):
        assert_as_exact_as_torch(operation_of(kind, causal), tensors, Rows(packing=packing), weight, dtype)


SANITIZED = """
import sys
from protein_lm.native import build
build.FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1", "-O1"]
import pytest
sys.exit(pytest.main(["-p", "no:cacheprovider", "-m", "", "-k", "{tests}", "--no-header", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "tests"),
    [
        ([Path(__file__), EXACT_TESTS], "equals_torch or torch_path or width or keys_gives_zeros or rotary"),
        ([READER_TESTS], "equals"),
    ],
    ids=["attention", "reading"],
)
def test_sanitizers_find_nothing(tmp_path, files, tests) -> None:
    """The tests of equality again, with the kernels built for the address and undefined-behaviour sanitizers."""
    compiler = build.find_compiler()
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("this compiler brings no sanitizers")
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED.format(tests=tests), *map(str, files)],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "LD_PRELOAD": " ".join(runtimes),
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        },
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
