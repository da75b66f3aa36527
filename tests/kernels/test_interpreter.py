"""The interpreter's mends: bfloat16 arithmetic, and the memory checker that upstream lacks."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from fastgpt.kernels import _runtime  # noqa: E402
from fastgpt.kernels.interpreter import OutOfBounds, interpret  # noqa: E402


@triton.jit
def _scale(X, Y, n, s, block: tl.constexpr):
    o = tl.program_id(0) * block + tl.arange(0, block)
    x = tl.load(X + o, mask=o < n, other=0.0)
    tl.store(Y + o, x * s, mask=o < n)


@triton.jit
def _dot(X, Y, n: tl.constexpr):
    i = tl.arange(0, n)
    x = tl.load(X + i[:, None] * n + i[None, :])
    tl.store(Y + i[:, None] * n + i[None, :], tl.dot(x, tl.trans(x)))


@triton.jit
def _overrun(X, Y, block: tl.constexpr):
    o = tl.arange(0, block)
    tl.store(Y + o, tl.load(X + o))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_elementwise_rounds_as_torch_does(dtype):
    x = torch.randn(300).to(dtype)
    y = torch.full_like(x, float("nan"))
    with interpret():
        _scale[(3,)](x, y, 300, 1.7, block=128)
    torch.testing.assert_close(y, (x.float() * 1.7).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_bfloat16_dot():
    x = torch.randn(16, 16).bfloat16()
    y = torch.full((16, 16), float("nan"))
    with interpret():
        _dot[(1,)](x, y, 16)
    torch.testing.assert_close(y, x.float() @ x.float().T)


@pytest.mark.skipif(_runtime.INTERPRETED_PROCESS, reason="the checker works only inside interpret()")
def test_out_of_bounds_access_raises():
    x, y = torch.zeros(8), torch.zeros(16)
    with interpret(), pytest.raises(OutOfBounds, match="load of bytes"):
        _overrun[(1,)](x, y, 16)


def test_context_leaves_kernels_as_they_were(tmp_path, monkeypatch):
    """Neither existing kernels nor those of a module that is first imported inside the context stay interpreted."""
    (tmp_path / "late_kernel.py").write_text(
        "import triton, triton.language as tl\n@triton.jit\ndef nothing(X):\n    tl.store(X, 1.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    x = torch.zeros(1)
    with interpret():
        assert _runtime.is_interpreting()
        late = importlib.import_module("late_kernel")
        late.nothing[(1,)](x)
    assert x.item() == 1.0
    if not _runtime.INTERPRETED_PROCESS:
        assert not _runtime.is_interpreting()
        assert not triton.knobs.runtime.interpret
        assert isinstance(late.nothing, triton.runtime.JITFunction)


def test_empty_memory_is_poisoned(device):
    assert torch.empty(7, device=device).isnan().all()
    assert torch.empty_like(torch.zeros(3, 4, device=device)).isnan().all()
    assert torch.zeros(2, device=device).new_empty(5).isnan().all()


@pytest.mark.skipif(_runtime.INTERPRETED_PROCESS, reason="this process interprets already")
@pytest.mark.parametrize(
    "tests",
    [
        "layer_norm/test_accuracy.py -k (held_rows and 500) or (long_rows_on_many and 40) or mixed",
        "layer_norm/test_add_layer_norm.py -k dropout_is_exact and 0.5",
        "attention/test_flash_attention.py -k test_dtypes",
        "ffn/test_values.py -k test_linear_gelu",
        "linear_cross_entropy/test_values.py -k test_options",
    ],
    ids=lambda tests: tests.split("/")[0],
)
def test_a_process_that_interprets_passes_the_same_tests(tests):
    """With TRITON_INTERPRET=1 the language is upstream's: the index of a tl.range, for one, is a Python int there."""
    file, _, expression = tests.partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", expression]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / file)],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


LOOPS = """
import numpy as np, torch, triton, triton.language as tl
from triton.runtime import interpreter

if {as_triton_36}:  # whatever is installed, and with it every numpy from 2.4 on
    patch = interpreter._patch_lang_tensor

    def as_triton_36(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda t: int(t.handle.data))

    interpreter._patch_lang_tensor = as_triton_36

import fastgpt.kernels

@triton.jit
def count(n, step):
    c = 0
    for _ in tl.range(0, n, step):
        c += 1
    return c

@triton.jit
def loops(N, Out, n):
    loaded = tl.load(N)  # a tensor, as an argument is, and as a sum of the two is
    c = count(loaded, 2)
    for _ in range(n):
        c += 100
    for _ in tl.range(loaded, loaded + n, num_stages=2):
        c += 10000
    tl.store(Out, c)

assert isinstance(loops, interpreter.InterpretedFunction)
n, out = torch.tensor([7]), torch.zeros(1, dtype=torch.int64)
loops[(1,)](n, out, 3)
assert out.item() == 4 + 300 + 30000, out
with fastgpt.kernels.interpret():  # changes nothing in such a process
    loops[(1,)](n + 1, out, 1)
assert out.item() == 4 + 100 + 10000, out
"""


@pytest.mark.parametrize("as_triton_36", [False, True], ids=["as installed", "as Triton 3.6"])
def test_loops_to_a_tensor_in_a_process_that_interprets(tmp_path, as_triton_36):
    """Triton 3.6 gives one-element arrays to int(), which numpy 2.4 and later refuse: range(tensor) failed."""
    script = tmp_path / "loops.py"
    script.write_text(LOOPS.format(as_triton_36=as_triton_36))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


THREADS = """
import contextlib, sys, threading
import torch
import fastgpt.kernels
from fastgpt.kernels import _runtime

torch.set_num_threads(1)
sys.setswitchinterval(1e-5)
block = contextlib.nullcontext if _runtime.INTERPRETED_PROCESS else fastgpt.kernels.interpret
failed = []

def work(seed):
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    try:
        for _ in range(4):
            with block():
                y = fastgpt.kernels.layer_norm(x)
                (dx,) = torch.autograd.grad(y.square().sum(), x)
            torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (16,)))
            assert dx.abs().max() < 1e-2, dx  # a normalised row's square sum does not change
    except BaseException as error:
        failed.append(repr(error)[:300])

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
assert _runtime.is_interpreting() is _runtime.INTERPRETED_PROCESS
"""


@pytest.mark.parametrize("process", ["0", "1"], ids=["interpret()", "TRITON_INTERPRET=1"])
def test_threads_launch_in_turn(tmp_path, process):
    """At once, they wrote into each other's tensors, and glibc ended the process."""
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": process}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
