"""float32 products follow torch's switch, set by whichever of its APIs, and round their operands as cuBLAS does."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from benchmarks.gate.rows import multiplying_in
from fastgpt.kernels import _runtime, attention_weights, flash_attention, gelu_ffn
from fastgpt.kernels.device.tf32 import dot_operand, round_to_tf32
from fastgpt.kernels.ffn.products import float32_reductions

OLD = "torch.backends.cuda.matmul.allow_tf32 = "
OLDEST = "torch.set_float32_matmul_precision"
NEW = "torch.backends.cuda.matmul.fp32_precision = "
ALL = "torch.backends.fp32_precision = "
SETTINGS = {  # statements, and what float32 products then are
    "pass": "ieee",
    f"{OLD}True": "tf32",
    f"{OLD}False": "ieee",
    f"{OLDEST}('high')": "tf32",
    f"{OLDEST}('medium')": "tf32",
    f"{OLDEST}('highest')": "ieee",
    f"{NEW}'tf32'": "tf32",
    f"{NEW}'ieee'": "ieee",
    f"{ALL}'tf32'": "tf32",
    f"{ALL}'ieee'": "ieee",
    # Both APIs: torch's old getters raise after most of these.
    f"{ALL}'tf32'; {NEW}'ieee'": "ieee",
    f"{ALL}'ieee'; {NEW}'tf32'": "tf32",
    f"{ALL}'tf32'; {NEW}'none'": "tf32",
    f"{ALL}'tf32'; {OLD}False": "ieee",
    f"{ALL}'ieee'; {OLD}True": "tf32",
    f"{OLD}True; {NEW}'ieee'": "ieee",
    f"{OLD}True; {ALL}'ieee'": "tf32",  # the narrower setting wins
    f"{OLD}False; {NEW}'tf32'": "tf32",
    f"{OLDEST}('high'); {NEW}'ieee'": "ieee",
    f"{OLDEST}('high'); {ALL}'ieee'": "tf32",
    f"{NEW}'tf32'; {OLDEST}('highest')": "ieee",
    f"{NEW}'tf32'; {OLD}False": "ieee",
    "torch.backends.cuda.fp32_precision = 'tf32'": None,  # no setting of torch's (2.10 to 2.13), or matmul's
}

ASK = """
import json, os, sys, warnings
import torch
from fastgpt.kernels import _runtime
warnings.simplefilter("error")  # asking may not warn; setting may
for statement in json.load(sys.stdin):
    sys.stdout.flush()
    if not os.fork():  # a process of its own: not every setting can be taken back
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(statement)
        found = {str(d): _runtime.dot_precision(torch.empty(1, dtype=d)) for d in
                 (torch.float32, torch.float16, torch.bfloat16)}
        print(json.dumps([statement, found, torch.backends.cuda.matmul.fp32_precision]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, statement
"""


def test_every_way_to_set_torchs_switch():
    run = subprocess.run(
        [sys.executable, "-c", ASK], input=json.dumps(list(SETTINGS)), capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answers = {statement: rest for statement, *rest in map(json.loads, run.stdout.splitlines())}
    assert list(answers) == list(SETTINGS)
    for statement, (found, torchs) in answers.items():
        expected = SETTINGS[statement] or ("tf32" if torchs == "tf32" else "ieee")
        assert found == {
            "torch.float32": expected, "torch.float16": "ieee", "torch.bfloat16": "ieee"
        }, statement  # fmt: skip


def calls_of(tree, function):
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == function]


class Rounding:
    """Which expressions of a family's device code `dot_operand` has rounded, wherever they were handed on from."""

    def __init__(self, files):
        body = [n for file in files for n in ast.parse(file.read_text()).body]
        self.functions = {n.name: n for n in body if isinstance(n, ast.FunctionDef) and n.decorator_list}
        self.structs = {
            n.name: [field.target.id for field in n.body if isinstance(field, ast.AnnAssign)]
            for n in body if isinstance(n, ast.ClassDef)
        }  # fmt: skip
        self.asking = set()

    def of(self, node, function, path=()):
        """True if `node`, an expression in `function`, is rounded, or of the struct that it is what `path` leads to."""
        match node:
            case ast.Attribute(value=value, attr=field):
                return self.of(value, function, (field, *path))
            case ast.Name(id=name):
                return self.of_name(name, function, path)
            case ast.Call(func=ast.Name(id="dot_operand")):
                return True
            case ast.Call(func=ast.Name(id=name), args=parts) if name in self.structs:
                fields = dict(zip(self.structs[name], parts))
                return bool(path) and path[0] in fields and self.of(fields[path[0]], function, path[1:])
            case ast.Tuple(elts=parts):  # what a function returns, several values
                return bool(path) and isinstance(path[0], int) and self.of(parts[path[0]], function, path[1:])
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                called = self.functions[name]
                returned = [n.value for n in ast.walk(called) if isinstance(n, ast.Return)]
                return all(self.of(value, called, path) for value in returned)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="tl"), attr="trans"), args=[tile]):
                return self.of(tile, function, path)
        return False

    def of_name(self, name, function, path):
        """A variable: some value of it is. An argument: all that is passed for it."""
        asked = name, function.name, path
        if asked in self.asking:  # its own next value
            return True
        self.asking.add(asked)
        try:
            values = list(self.values_of(name, function))
            if values:
                return any(self.of(value, function, (*before, *path)) for value, before in values)
            passed = [
                (call.args[place], caller) for place, argument in enumerate(function.args.args) if argument.arg == name
                for caller in self.functions.values() for call in calls_of(caller, function.name)
            ]  # fmt: skip
            return bool(passed) and all(self.of(value, caller, path) for value, caller in passed)
        finally:
            self.asking.remove(asked)

    @staticmethod
    def values_of(name, function):
        for n in ast.walk(function):
            for target in n.targets if isinstance(n, ast.Assign) else ():
                if isinstance(target, ast.Name) and target.id == name:
                    yield n.value, ()
                elif isinstance(target, ast.Tuple) and name in [ast.unparse(part) for part in target.elts]:
                    at = [ast.unparse(part) for part in target.elts].index(name)
                    yield n.value, (at,)


def test_every_product_names_its_precision_and_rounds_its_operands():
    """By the source: a new product that forgets either would multiply in TF32 unasked, or truncate."""
    kernels, products = Path(_runtime.__file__).parent, 0
    for family in (folder for folder in kernels.rglob("*") if folder.is_dir()):
        rounding = Rounding(family.glob("*.py"))
        for function in rounding.functions.values():
            for product in calls_of(function, "tl.dot"):
                products += 1
                where = f"{family.name}, {function.name}: {ast.unparse(product)}"
                asked = {k.arg: ast.unparse(k.value) for k in product.keywords}
                assert "input_precision" in asked, where
                if asked["input_precision"] == "'ieee'":  # never TF32: nothing to round
                    continue
                for operand in product.args[:2]:
                    assert rounding.of(operand, function), f"{where}: {ast.unparse(operand)} is no dot_operand"
    assert products == sum(len(calls_of(ast.parse(file.read_text()), "tl.dot")) for file in kernels.rglob("*.py"))


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("sm_75", "ieee"), ("sm_80", "tf32"), ("sm_90", "tf32"), ("sm_100", "tf32"), ("gfx942", "ieee")],
)
def test_gpus_without_tf32(arch, expected):
    """torch ignores its switch on Turing, whose tensor cores know no TF32."""
    with multiplying_in("tf32"), _runtime.pretend(_runtime.KNOWN_TARGETS[arch]):
        assert _runtime.dot_precision(torch.empty(1)) == expected


# --- one operand ------------------------------------------------------------------------------------------------------


@triton.jit
def _round_kernel(X, Y, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(Y + i, round_to_tf32(tl.load(X + i)))


@triton.jit
def _product_kernel(A, B, C, n: tl.constexpr, precision: tl.constexpr, rounded: tl.constexpr):
    i, j = tl.arange(0, n)[:, None], tl.arange(0, n)[None, :]
    a, b = tl.load(A + i * n + j), tl.load(B + i * n + j)
    if rounded:
        a, b = dot_operand(a, precision), dot_operand(b, precision)
    tl.store(C + i * n + j, tl.dot(a, b, input_precision=precision))


def bits_of(*values):
    return torch.tensor(values, dtype=torch.int64).to(torch.int32).view(torch.float32)


def nearest_tf32(x):
    """x in float64 rounded to 11 significant bits, ties away from zero: of any magnitude, infinities and NaN kept."""
    mantissa, exponent = torch.frexp(x.double())  # |mantissa| in [1/2, 1)
    rounded = torch.ldexp(torch.sign(mantissa) * (mantissa.abs() * 2048 + 0.5).floor(), exponent - 11)
    return torch.where(x.isfinite(), rounded, x.double())


def seen_by_a_tensor_core(x):
    return (x.view(torch.int32) & -(2**13)).view(torch.float32)


def test_rounding_of_every_kind_of_number(device, seed):
    """Ties, carries into the exponent, both signs, and numbers of every magnitude that has an exponent."""
    n = 4096
    ties = bits_of(0x3F801000, 0x3F803000, 0x3F800FFF, 0x3F801001, 0x3FFFF000, 0x3FFFEFFF, 0x7F7FEFFF, 0x00800000)
    plain = torch.randint(1 << 23, 0x7F7FF000, (n - 16,)).to(torch.int32).view(torch.float32)
    x = torch.cat([ties, -ties, plain * torch.tensor([1.0, -1.0]).repeat(n // 2 - 8)]).to(device)
    y = torch.empty_like(x)
    _round_kernel[(1,)](x, y, n)
    assert torch.equal(seen_by_a_tensor_core(y).double(), nearest_tf32(x))


def test_rounding_keeps_what_is_not_a_number(device):
    """0x7fffffff is what a GPU makes of 0 / 0: half a unit added to its bits would turn it into -0."""
    x = bits_of(0x7FFFFFFF, 0x7FC00000, 0xFFC00000, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0, 0x80000000).to(device)
    y = torch.empty_like(x)
    _round_kernel[(1,)](x, y, 8)
    y = seen_by_a_tensor_core(y)
    assert y[:4].isnan().all()
    assert torch.equal(y[4:].cpu(), torch.tensor([math.inf, -math.inf, 0.0, 0.0]))


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_one_product(device, seed, precision):
    n = 32
    a, b = torch.randn(2, n, n, device=device)
    c = torch.empty_like(a)
    _product_kernel[(1,)](a, b, c, n, precision, rounded=True)
    exact = a.double() @ b.double()
    rounded = nearest_tf32(a) @ nearest_tf32(b)
    wanted, other = (exact, rounded) if precision == "ieee" else (rounded, exact)
    assert (c - wanted).abs().max() < n * 2**-20 < 1e-4 < (c - other).abs().max()


def test_the_interpreter_multiplies_as_tensor_cores_do(interpreter, seed):
    """They ignore the low bits; an operand that nobody rounded must not look better in the interpreter than it is."""
    n = 32
    a, b = torch.randn(2, n, n)
    c = torch.empty_like(a)
    _product_kernel[(1,)](a, b, c, n, "tf32", rounded=False)
    truncated = seen_by_a_tensor_core(a).double() @ seen_by_a_tensor_core(b).double()
    assert (c - truncated).abs().max() < n * 2**-23


# --- whole operators: every operand of every product is rounded to the nearest ----------------------------------------


def distance(a, b):
    return (a.detach().double() - b).square().mean().sqrt().item()


def check(names, ours, emulated, exact, precision, limit=0.4):
    """In tf32, `ours` is what float64 makes of operands rounded to the nearest; in ieee, of the operands as they are.

    Not bit for bit: where float32 rounds a weight of the softmax across a tie, TF32 rounds it the other way. An operand
    of any product that is truncated instead moves the result by half of what all the rounding does, or more.
    """
    for name, x, tf32, truth in zip(names, ours, emulated, exact, strict=True):
        error = distance(tf32, truth)
        assert error > 1e-4 * truth.square().mean().sqrt().item(), name  # or the test would see nothing
        wanted, limit = (tf32, limit) if precision == "tf32" else (truth, 0.01)
        found = distance(x, wanted) / error
        assert found < limit, f"{name}: {found:.3f} of the error of rounding"


def attention_in_float64(q, k, v, d_out, scale, operand):
    """out, dq, dk, dv and the weights of full attention, all in float64, with operands as `operand` makes them."""
    q_, k_, v_, do_ = (operand(x) for x in (q, k, v, d_out))
    s = scale * q_ @ k_.mT
    unscaled = torch.exp(s - s.amax(-1, keepdim=True))
    total = unscaled.sum(-1, keepdim=True)
    out = operand(unscaled) @ v_ / total
    p = unscaled / total
    delta = (out * d_out.double()).sum(-1, keepdim=True)
    ds = operand(p * (do_ @ v_.mT - delta))
    return out, scale * ds @ k_, scale * ds.mT @ q_, operand(p).mT @ do_, p


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("head_dim", [16, 64, 80])  # 80: two tiles of the head_dim side by side
def test_attention(device, seed, head_dim, precision):
    q, k, v, d_out = torch.randn(4, 1, 2, 16, head_dim, device=device)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with multiplying_in(precision):
        out, lse = flash_attention(*leaves, causal=False, return_lse=True)
        grads = torch.autograd.grad(out, leaves, d_out)
        weights = attention_weights(q, k, lse, causal=False)
    tensors = (q.detach(), k.detach(), v.detach(), d_out, head_dim**-0.5)
    emulated, exact = (attention_in_float64(*tensors, f) for f in (nearest_tf32, torch.Tensor.double))
    check(("out", "dq", "dk", "dv", "weights"), (out, *grads, weights), emulated, exact, precision)


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": False, "key_lengths": [50]}], ids=str)
def test_attention_over_several_tiles(device, seed, options):
    """Loops over full tiles and over those at the edge of a mask; one query head of the two shares its keys."""
    T, D = 80, 64
    q, d_out = torch.randn(2, 1, 2, T, D, device=device)
    k, v = torch.randn(2, 1, 1, T, D, device=device)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    hidden = torch.ones(T, T, dtype=torch.bool, device=device).triu(1) if options["causal"] else None
    if not options["causal"]:
        hidden = (torch.arange(T, device=device) >= 50).expand(T, T)
        options = {**options, "key_lengths": torch.tensor([50], dtype=torch.int32, device=device)}

    def in_float64(operand):
        scores = [operand(x.detach()) for x in (q, k, v, d_out)]
        q_, k_, v_, do_ = scores[0], scores[1].expand(1, 2, T, D), scores[2].expand(1, 2, T, D), scores[3]
        s = (D**-0.5 * q_ @ k_.mT).masked_fill(hidden, -math.inf)
        unscaled = torch.exp(s - s.amax(-1, keepdim=True))
        p = unscaled / unscaled.sum(-1, keepdim=True)
        out = operand(unscaled) @ v_ / unscaled.sum(-1, keepdim=True)
        ds = operand(p * (do_ @ v_.mT - (out * d_out.double()).sum(-1, keepdim=True)))
        dk, dv = (x.sum(1, keepdim=True) for x in (D**-0.5 * ds.mT @ q_, operand(p).mT @ do_))
        return out, D**-0.5 * ds @ k_, dk, dv

    with multiplying_in("tf32"):
        out = flash_attention(*leaves, **options)
        grads = torch.autograd.grad(out, leaves, d_out)
    emulated, exact = in_float64(nearest_tf32), in_float64(torch.Tensor.double)
    # The forward rounds weights relative to the maximum so far: of its error only the size can be compared, and the
    # gradients have a little of it, through delta.
    check(("dq", "dk", "dv"), grads, emulated[1:], exact[1:], "tf32", limit=0.5)
    assert distance(out, exact[0]) < 1.1 * distance(emulated[0], exact[0])


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_ffn(device, seed, precision):
    M, d, h = 48, 40, 136
    x, dy = torch.randn(2, M, d, device=device)
    w1, w2 = torch.randn(h, d, device=device) / d**0.5, torch.randn(d, h, device=device) / h**0.5
    b1, b2 = torch.randn(h, device=device), torch.randn(d, device=device)
    leaves = [t.requires_grad_() for t in (x, w1, b1, w2, b2)]
    with multiplying_in(precision):
        out = gelu_ffn(*leaves, path="triton")
        grads = torch.autograd.grad(out, leaves, dy)

    def in_float64(operand):
        torchs = operand if device.type == "cuda" else torch.Tensor.double  # a CPU's products know no TF32
        x_, w1_, w2_, dy_ = (operand(t.detach()) for t in (x, w1, w2, dy))
        pre = (x_ @ w1_.mT + b1.detach().double()).requires_grad_()
        act = torch.nn.functional.gelu(pre)
        (dpre,) = torch.autograd.grad(act, pre, dy_ @ w2_)
        x_, w1_, w2_, dy_ = (torchs(t.detach()) for t in (x, w1, w2, dy))
        act = torchs(act.detach())
        out = act @ w2_.mT + b2.detach().double()
        return out, torchs(dpre) @ w1_, torchs(dpre).mT @ x_, dpre.sum(0), dy_.mT @ act

    emulated, exact = in_float64(nearest_tf32), in_float64(torch.Tensor.double)
    check(("out", "dx", "dw1", "db1", "dw2"), (out, *grads[:4]), emulated, exact, precision)


def test_rows_that_do_not_see_a_nan_stay_clean_in_tf32(device, seed):
    """A GPU's own NaN, 0x7fffffff, in the last key and value, which only the last query sees."""
    q, k, v = (torch.randn(1, 1, 40, 16, device=device) for _ in "qkv")
    k[..., -1, 3] = v[..., -1, 5] = bits_of(0x7FFFFFFF).item()
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with multiplying_in("tf32"):
        out = flash_attention(*leaves, causal=True)
        assert out[..., -1, :].isnan().any()
        assert out[..., :-1, :].isfinite().all()
        grads = torch.autograd.grad(out[..., :-1, :].sum(), leaves)
    assert grads[0][..., :-1, :].isfinite().all()
    assert grads[1].isnan().any()  # the last query sees every key


def test_numbers_that_round_to_infinity_stay_with_those_who_see_them(device, seed):
    """Nearer to 2^128 than to the largest TF32: in a product with the weight 0 of a hidden key they would make NaN."""
    q, k, v = (torch.randn(1, 1, 40, 16, device=device) for _ in "qkv")
    v[..., -1, :] = torch.finfo(torch.float32).max
    with multiplying_in("tf32"):
        out = flash_attention(q, k, v, causal=True)
        assert torch.equal(out[..., :-1, :], flash_attention(q, k, v * (v.abs() < 1e38), causal=True)[..., :-1, :])


def test_the_old_getter_raises_and_nobody_asks_it(device):
    """One setting after which `allow_tf32` raises: every family must run."""
    with multiplying_in("tf32"):
        with pytest.raises(RuntimeError):
            _ = torch.backends.cuda.matmul.allow_tf32
        q = torch.randn(1, 1, 8, 16, device=device)
        out, lse = flash_attention(q, q, q, return_lse=True)
        assert out.isfinite().all()
        assert attention_weights(q, q, lse).isfinite().all()
        x, w = torch.randn(3, 16, device=device), torch.randn(16, 16, device=device)
        assert gelu_ffn(x, w, None, w, None, path="triton").isfinite().all()


@pytest.mark.parametrize("setting", [(True, True), (False, True), (False, False)], ids=str)
def test_torchs_other_switches_are_as_they_were(setting):
    """A weight's gradient by cuBLAS forbids half-precision sums meanwhile, and allows no split that was forbidden."""
    flags = torch.backends.cuda.matmul
    names = "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"

    def state():
        return [(getattr(flags, name), getattr(flags, f"{name}_split_k")) for name in names]

    if not hasattr(flags, f"{names[0]}_split_k"):
        pytest.skip(f"torch {torch.__version__} does not say whether split sums are allowed")
    saved = state()
    try:
        for name in names:
            setattr(flags, name, setting)
        with float32_reductions():
            assert state() == [(False, setting[1])] * 2
        assert state() == [setting] * 2
    finally:
        for name, value in zip(names, saved, strict=True):
            setattr(flags, name, value)
