"""A sample of all kernels, compiled and executed: right values, and nothing that a GPU forbids."""

import ast
import mmap
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

import fastgpt.kernels
from benchmarks.gate.rows import attending_by
from benchmarks.softgpu.cases import trials
from benchmarks.softgpu.driver import simulate
from benchmarks.softgpu.engine import SCHEDULES, Settings
from benchmarks.softgpu.trials import CAPABILITIES, execute, expect
from fastgpt.kernels import _runtime

SAMPLE = [trial for trial in trials() if trial.sample]
LANDINGS = ("late", "random", "late", "early", "random")
NAMES = [trial.name for trial in SAMPLE]
# Of sm_100, whose kernels take long to compile, what has products: in each dtype, with A in tensor memory and without.
WITH_PRODUCTS = ("attention fp16 d128 documents end to end, window", "ffn bf16 d64 tanh, residual, dropout")
CASES = [
    (number, capability)
    for number, trial in enumerate(SAMPLE)
    for capability in (80, 90)
    if capability in trial.capabilities
]
CASES += [(NAMES.index(name), 100) for name in WITH_PRODUCTS]


@pytest.mark.parametrize(("number", "capability"), CASES, ids=[f"{NAMES[number]}-{gpu}" for number, gpu in CASES])
def test_a_sample_of_all_kernels(number, capability):
    """Schedules, arrivals of copies and errors of special functions take turns: the matrix has them all."""
    which = (number + capability // 10) % len(SCHEDULES)
    settings = Settings(SCHEDULES[which], LANDINGS[which], seed=number, approx=number % 4 - 1)
    outcome = execute(SAMPLE[number], expect(SAMPLE[number]), capability, settings)
    assert outcome.launches
    assert not outcome.problems, "\n".join([str(settings), *outcome.problems])


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_rows_that_lie_beyond_2_to_the_31_elements(capability):
    """LayerNorm of three rows of a memory of 8 GiB, whose other pages are never touched."""
    n, stride, torch_norm = 520, (1 << 31) + 8, torch.nn.functional.layer_norm
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
    block = mmap.mmap(-1, 2 * (2 * stride + n), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    x = torch.frombuffer(block, dtype=torch.bfloat16).as_strided((3, n), (stride, 1))
    x.copy_(torch.randn(3, n)).requires_grad_()
    weight, dy = torch.randn(n), torch.randn(3, n).bfloat16()
    with simulate(capability) as gpu:
        y = fastgpt.kernels.layer_norm(x, n, weight)
        (dx,) = torch.autograd.grad(y, x, dy)
    assert not gpu.findings, "\n".join(map(str, gpu.findings))
    wide = x.detach().double().requires_grad_()
    exact = torch_norm(wide, (n,), weight.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(dx.double(), *torch.autograd.grad(exact, wide, dy.double()), rtol=2e-2, atol=2e-2)


def far_apart(x, stride):
    """A copy of `x` whose dimension 1 has this stride, in memory that is reserved and never touched in between."""
    strides = (0, stride, *x.stride()[2:])
    elements = 1 + sum(step * (n - 1) for step, n in zip(strides, x.shape))
    storage = torch.UntypedStorage(elements * x.element_size())
    return torch.empty(0, dtype=x.dtype).set_(storage, 0, x.shape, strides).copy_(x)


@pytest.mark.parametrize("capability", [80, 90])
def test_heads_that_lie_beyond_2_to_the_31_elements(capability):
    """Of 300 rows, so that on sm_90 the tensor maps of k and v have such strides, too."""

    def run(q, k, v, dout):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = fastgpt.kernels.flash_attention(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, dout)]

    torch.manual_seed(0)
    near = [torch.randn(1, 2, 300, 64, dtype=torch.bfloat16) for _ in range(4)]
    with simulate(capability) as gpu:
        wanted, got = run(*near), run(*(far_apart(x, 2**31 + 16) for x in near))
    assert not gpu.findings, "\n".join(map(str, gpu.findings))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_sample_reaches_every_kernel(capability):
    launched = launches([trial for trial in SAMPLE if capability in trial.capabilities], capability)
    kernels = kernels_in_the_source()
    assert len(kernels) > 20
    of_hopper = {name for name in kernels if name.startswith("hopper_")}
    assert len(of_hopper) == 3
    assert kernels - set(launched) == (set() if capability == 90 else of_hopper)


def test_the_sample_loads_by_tma_where_the_gpu_can():
    by_tma = {name for name, calls in launches(SAMPLE, 90).items() for call in calls if any(map(has_descriptor, call))}
    attention = {f"{path}_{part}_kernel" for path in ("attention", "hopper") for part in ("forward", "dkdv", "dq")}
    assert attention | {"up_kernel", "dgelu_kernel"} <= by_tma


def has_descriptor(argument):
    return isinstance(argument, TensorDescriptor | GluonDescriptor) or (
        isinstance(argument, tuple) and any(has_descriptor(x) for x in argument)
    )


def kernels_in_the_source():
    """Names of functions under @triton.jit or @gluon.jit that are launched, not called."""
    found = set()
    for path in Path(fastgpt.kernels.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                found |= {node.name for decorator in node.decorator_list if ".jit" in ast.unparse(decorator)}
    return found


def launches(chosen, capability):
    """Kernel -> the arguments of each launch, of calls in which no kernel runs."""
    found = {}

    def run(jit, *args, **kwargs):
        found.setdefault(jit.fn.__name__, []).append(args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        patch.setattr(_runtime, "interpreting", True)
        patch.setattr(_runtime, "simulating", True)
        for trial in chosen:
            target = _runtime.Target("cuda", f"sm_{capability}", trial.num_sms)
            case = trial.make()
            inputs = case.inputs(trial.dtype)
            with _runtime.pretend(target), attending_by(trial.path):
                case.run(fastgpt.kernels, inputs, case.upstream(inputs))
    return found


def test_trials_have_names_of_their_own():
    names = [trial.name for trial in trials()]
    assert len(set(names)) == len(names) > 100
    assert {trial.dtype for trial in trials()} == {torch.bfloat16, torch.float16, torch.float32}
