"""The error budget itself: it catches what it must in every family and dtype, hangs on no luck, and can report."""

import functools
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fastgpt.kernels import reference
from fastgpt.tools import rounding, verify
from fastgpt.tools.budget import (
    GRADIENT,
    OUTPUT,
    REPORT,
    Verdict,
    assert_all_within_budget,
    assert_within_budget,
    errors,
    exactly,
    judge,
)

ROOT = Path(__file__).parents[3]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@functools.cache
def family(kernel, dtype):
    """[(function, inputs)] of the self-check's first calls of a kernel: the reference's outputs and gradients."""
    torch.manual_seed(0)
    calls = []
    for case in itertools.islice(verify.CASES[kernel](1), 2):
        inputs = case.inputs(dtype)
        upstream = case.upstream(inputs)
        calls.append((functools.partial(case.run, reference), (inputs, upstream), len(upstream)))
    return calls


def judged(kernel, dtype):
    """(name, torch's result, exact, factor) of every output and gradient."""
    for run, inputs, n in family(kernel, dtype):
        for i, (torchs, exact) in enumerate(zip(run(*inputs), exactly(run, *inputs), strict=True)):
            yield f"result {i}", torchs, exact, OUTPUT if i < n else GRADIENT


def ok(*args, **options):
    return all(verdict.ok for verdict in judge(*args, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", verify.names())
def test_eight_roundings_are_caught_wherever_they_are_planted(kernel, dtype):
    generator = torch.Generator().manual_seed(0)
    for name, torchs, exact, factor in judged(kernel, dtype):
        nearest = exact.value.to(torchs.dtype)
        assert ok(name, torchs, nearest, exact, factor=factor), f"{name}: torch itself is not within the budget"
        places = torch.randperm(exact.value.numel(), generator=generator)[:6].tolist()
        for place in (*places, exact.value.abs().argmax().item()):
            for sign in (-8.0, 8.0):
                planted = torchs.double().flatten()
                planted[place] += sign * exact.rounding.max
                assert not ok(name, planted.view_as(exact.value), torchs, exact, factor=factor), (name, place)
        signs = torch.randint(0, 2, exact.value.shape, generator=generator) * 16.0 - 8.0
        assert not ok(name, torchs.double() + signs * exact.rounding.rms, torchs, exact, factor=factor), name


def every_rounding(dtype):
    """(function, inputs, bound): all roundings added up by hand, to first order, each at its worst."""
    u, u32 = torch.finfo(dtype).eps / 2, 2**-24  # of what is stored; of what is computed inside, and of accumulators

    def summed(n):  # what a sum of n rounds, whose partial sums may all be as large as the total
        return math.sqrt(1 + 0.18 * n)

    q, k, v = (torch.randn(1, 2, 50, 32).to(dtype) for _ in range(3))
    Q, K, V = q.double(), k.double(), v.double()
    p, out = reference.attention_weights(Q, K), reference.flash_attention(Q, K, V).abs()
    scores = Q @ K.mT / math.sqrt(32)
    highest = scores.masked_fill(p == 0, -math.inf).amax(-1, keepdim=True)
    # Of p, relatively: q k, scaled, both stored; less the highest, exp, their sum, the quotient; and p as it is stored.
    of_p = u32 * (Q.abs() @ K.abs().mT / math.sqrt(32) + 2 * (highest - scores).abs() + 6) + u * (2 * scores.abs() + 1)
    bound = (p * of_p) @ V.abs() + (p * of_p).sum(-1, keepdim=True) * out  # p moves out, and the sum of all p
    yield reference.flash_attention, (q, k, v), bound + u32 * summed(50) * (p @ V.abs()) + u * out

    x, w, b = torch.randn(9, 64).to(dtype), torch.randn(64).to(dtype), torch.randn(64).to(dtype)
    X, W = x.double(), w.double().abs()

    def affine(x, w, b):
        return reference.layer_norm(x, None, w, b)

    normed, y = reference.layer_norm(X).abs(), affine(X, w.double(), b.double()).abs()
    mean = X.abs().mean(-1, keepdim=True) * (X.var(-1, correction=0, keepdim=True) + 1e-5) ** -0.5
    # The difference, its square, their mean, eps, rsqrt and two products are nine at most; and the mean, and with b.
    yield affine, (x, w, b), u32 * ((9 * normed + (1 + summed(64 / 32)) * mean) * W + y) + u * y

    y, total = (X @ w.double()).abs(), X.abs() @ W
    yield torch.matmul, (x, w), u32 * summed(64) * total + u * y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_scale_is_that_of_the_expression_over_absolute_values(seed, dtype):
    """The last rounding is within it, and it is within the sum of all roundings: both whatever the numbers are."""
    for function, inputs, bound in every_rounding(dtype):
        (exact,) = exactly(function, *inputs)
        last = torch.finfo(dtype).eps / 2 * exact.value.abs()
        for size, expected in ((last, True), (2.2 * bound, False)):  # 2 of the budget; 10 % for what is not first order
            planted = exact.value.clone().flatten()
            planted[size.argmax()] += size.max()
            assert ok("out", planted.view_as(exact.value), exact.value, exact) is expected, function


def by_hand(kernel, x):
    """(run, [scale of each result]): outputs and gradients over absolute values, each formula written out once more."""
    size = {name: t.double().abs() for name, t in x.items()}
    if kernel == "flash_attention":
        p = reference.attention_weights(x["q"].double(), x["k"].double())
        scores = size["q"] @ size["k"].mT / 4.0
        dp = size["g"] @ size["v"].mT
        ds = p * (dp + (p * dp).sum(-1, keepdim=True) + size["g_lse"][..., None])
        scales = [p @ size["v"], scores.amax(-1) + math.log(50), ds @ size["k"] / 4.0, ds.mT @ size["q"] / 4.0]
        scales.append(p.mT @ size["g"])
        return ("q", "k", "v"), lambda q, k, v: reference.flash_attention(q, k, v, return_lse=True), scales
    if kernel == "layer_norm":
        normed, rstd = reference.layer_norm(x["x"].double()).abs(), x["x"].double().var(-1, keepdim=True) ** -0.5
        g = size["g"] * size["weight"]
        dx = rstd * (g + g.mean(-1, keepdim=True) + normed * (g * normed).mean(-1, keepdim=True))
        offset = size["x"].mean(-1, keepdim=True) * rstd  # what the mean takes away was rounded
        scales = [(normed + offset) * size["weight"] + size["bias"], dx * (1 + offset), (size["g"] * normed).sum(0)]
        return (
            ("x", "weight", "bias"),
            lambda x, w, b: (reference.layer_norm(x, None, w, b),),
            [*scales, size["g"].sum(0)],
        )
    if kernel == "linear_gelu":
        pre = size["x"] @ size["weight"].mT + size["bias"]
        stored = (x["x"].double() @ x["weight"].double().mT + x["bias"].double()).abs()
        dpre = size["g"] * (1.13 + stored)  # |gelu'| <= 1.13, |gelu''| < 1
        scales = [pre, dpre @ size["weight"], dpre.mT @ size["x"], dpre.sum(0)]
        return ("x", "weight", "bias"), lambda x, w, b: (reference.linear_gelu(x, w, b),), scales
    logits, target = x["logits"].double(), x["target"]
    p = logits.softmax(-1)
    dlogits = size["g"][:, None] * (p * (1 + size["logits"]) + torch.nn.functional.one_hot(target, p.shape[1]))
    run = functools.partial(reference.cross_entropy, target=target, reduction="none")
    return ("logits",), lambda logits: (run(logits),), [size["logits"].amax(-1) + math.log(p.shape[1]), dlogits]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["flash_attention", "layer_norm", "linear_gelu", "cross_entropy"])
def test_the_scale_is_no_wider_than_the_arithmetic(seed, kernel, dtype):
    """Of every output and gradient: under eight roundings of the formula over absolute values."""
    shapes = {
        "flash_attention": {"q": (1, 2, 50, 16), "k": (1, 2, 50, 16), "v": (1, 2, 50, 16), "g": (1, 2, 50, 16)},
        "layer_norm": {"x": (9, 300), "weight": (300,), "bias": (300,), "g": (9, 300)},
        "linear_gelu": {"x": (9, 40), "weight": (24, 40), "bias": (24,), "g": (9, 24)},
        "cross_entropy": {"logits": (9, 300)},
    }[kernel]
    x = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    if kernel == "flash_attention":
        x["g_lse"] = torch.randn(1, 2, 50)
    if kernel == "cross_entropy":
        x |= {"g": torch.randn(9), "target": torch.randint(300, (9,))}
    wanted, forward, scales = by_hand(kernel, x)

    def run(inputs, upstream):
        outputs = forward(*inputs)
        return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]

    upstream = [x[name] for name in ("g", "g_lse") if name in x]
    inputs = [x[name].requires_grad_() for name in wanted]
    for i, (result, exact, scale) in enumerate(
        zip(run(inputs, upstream), exactly(run, inputs, upstream), scales, strict=True)
    ):
        u = torch.finfo(result.dtype).eps / 2
        used = exact.rounding.max / (u * scale.max().item())
        assert used < 8.0, (i, used)


class AnyOrder(TorchDispatchMode):
    """Every sum in an order of its own, in parts of any length: some other machine's. Accumulators are float32."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def parts(self, n, least=1):
        order = torch.randperm(n, generator=self.generator)
        return order.split(max(least, [1, 3, 8, 32, n][torch.randint(0, 5, (), generator=self.generator)]))

    def product(self, a, b):
        return functools.reduce(torch.add, (a[..., i] @ b[..., i, :] for i in self.parts(a.shape[-1])))

    def reduction(self, x, dims):
        dims = [d % x.dim() for d in dims or range(x.dim())]
        kept = [d for d in range(x.dim()) if d not in dims]
        flat = x.permute(*kept, *dims).flatten(len(kept))
        return functools.reduce(torch.add, (flat[..., i].sum(-1) for i in self.parts(flat.shape[-1], rounding.LANES)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operation, aten = func.overloadpacket, torch.ops.aten
        dtype = args[0].dtype if args and isinstance(args[0], torch.Tensor) else None
        if dtype not in DTYPES or args[0].numel() == 0:
            return func(*args, **kwargs)
        wide = tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, args)
        if operation in (aten.mm, aten.bmm):
            return self.product(*wide).to(dtype)
        if operation is aten.addmm:
            return (self.product(*wide[1:]) + wide[0]).to(dtype)
        if operation in (aten.sum, aten.mean):
            found = func(*args, **kwargs)
            total = self.reduction(wide[0], args[1] if len(args) > 1 else None).view(found.shape)
            return (total / (args[0].numel() / found.numel()) if operation is aten.mean else total).to(found.dtype)
        if operation in rounding.FORMULAS:
            with self:  # the sums inside
                found = rounding.FORMULAS[operation](*wide, **kwargs)
            return tree_map(lambda x, like: None if x is None else x.to(like.dtype), found, func(*args, **kwargs))
        return func(*args, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", verify.names())
def test_no_verdict_hangs_on_the_order_of_sums(kernel, dtype):
    """However lucky torch is here (its results exact but for the last rounding), any machine's order is right."""
    for run, inputs, n in family(kernel, dtype):
        exact, native = exactly(run, *inputs), run(*inputs)
        luckiest = [x.value.to(found.dtype) for x, found in zip(exact, native, strict=True)]
        changed = [False] * len(native)
        for seed in range(20):
            with AnyOrder(seed), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                results = run(*inputs)
            names = [f"result {i}" for i in range(len(results))]
            assert_all_within_budget(names[:n], results[:n], luckiest[:n], exact[:n])
            assert_all_within_budget(names[n:], results[n:], luckiest[n:], exact[n:], factor=GRADIENT)
            changed = [c or not torch.equal(a, b) for c, a, b in zip(changed, results, native, strict=True)]
        # In 16 bits, the last rounding hides most of it; and in add_layer_norm one result adds up nothing.
        assert dtype != torch.float32 or sum(changed) >= len(changed) - 1, f"sums left alone: {changed}"


def test_long_sums_are_within_the_budget_of_the_luckiest_torch():
    """`make test-luck` asks this of every numeric test; here, of where rounding of partial sums weighs most."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.support.luckiest"]
    tests = "tests/kernels/linear_cross_entropy/test_values.py::test_any_vocabulary"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", REPORT))}
    done = subprocess.run(
        [*command, tests, "-k", "sum-9001 or none-20000"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_missing_term_is_caught():
    """1e-6 of a float32 result, and a key left out of 200 in any dtype."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        q, k, v = (torch.randn(1, 1, 200, 16).to(dtype) for _ in range(3))
        (exact,) = exactly(functools.partial(reference.flash_attention, causal=False), q, k, v)
        torchs = reference.flash_attention(q, k, v, causal=False)
        short = reference.flash_attention(q, k[:, :, 1:], v[:, :, 1:], causal=False)
        assert not ok("out", short, torchs, exact)
        if dtype == torch.float32:
            assert not ok("out", torchs + 1e-6 * v.abs().max(), torchs, exact)


def exact_of(*values):
    (exact,) = exactly(lambda x: x * 1.0, torch.tensor(values))
    return exact


def test_what_is_not_a_number():
    inf, nan = math.inf, math.nan
    exact = exact_of(inf, nan, 2.0)
    assert ok("x", torch.tensor([inf, nan, 2.0]), torch.tensor([inf, nan, 2.0]), exact)
    for wrong in ([-inf, nan, 2.0], [inf, 0.0, 2.0], [inf, nan, nan], [1e38, nan, 2.0]):
        assert not ok("x", torch.tensor(wrong), torch.tensor([inf, nan, 2.0]), exact)
        # That torch overflows or fails excuses nothing, and costs nothing.
        assert not ok("x", torch.tensor(wrong), torch.tensor([0.0, 0.0, nan]), exact)
    assert ok("x", torch.tensor([inf, nan, 2.0]), torch.tensor([0.0, 0.0, nan]), exact)


def test_parts_of_a_result_are_judged_on_their_own():
    exact = exact_of(1e6, 1.0, 2.0)
    torchs = exact.value.float()
    ours = torchs + torch.tensor([0.0, 1e-3, 0.0])
    small = exact.value < 10
    assert ok("all", ours, torchs, exact)
    assert not ok("small", ours[small], torchs[small], exact[small])
    assert not ok("small", ours[1:], torchs[1:], exact[1:])
    assert exact[3:].rounding.max == 0.0


def test_inputs_may_be_written_over_before_rounding_is_asked_for():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    exact, gradient = exactly(lambda x: [x * x, *torch.autograd.grad((x * x).sum(), x)], x)
    with torch.no_grad():
        x.fill_(1000.0)
    assert exact.rounding.max == pytest.approx(4.0 * 2**-24)
    assert gradient.rounding.max < 5 * 2**-24


def test_what_does_not_fit_is_an_error():
    x = torch.tensor([1.0, 2.0])
    exact = exact_of(1.0, 2.0)
    with pytest.raises(
        AssertionError, match=r"y: max error 1.000e\+00 .* exceeds .* = 2 x max\(torch's 0.000e\+00, float32"
    ):
        assert_within_budget("y", x + 1, x, exact)
    with pytest.raises(AssertionError, match=r"y: shape \(1,\), expected \(2,\)"):
        assert_within_budget("y", x[:1], x, exact)
    with pytest.raises(AssertionError, match=r"y: torch's has shape \(1,\), expected \(2,\)"):
        assert_within_budget("y", x, x[:1], exact)
    with pytest.raises(AssertionError, match=r"y: dtype torch.float32, expected torch.bfloat16"):
        assert_within_budget("y", x, x.bfloat16(), exact)
    with pytest.raises(AssertionError, match="y: missing in torch's results"):
        assert_all_within_budget(["y"], [x], [None], [exact])
    with pytest.raises(TypeError, match=r"y: exact is a Tensor; make it with exactly\(function, \*inputs\)"):
        assert_within_budget("y", x, x, x.double())
    with pytest.raises(AssertionError, match=r"must be float64, not torch\.float32"):
        exactly(lambda x: x.float(), x)
    with pytest.raises(AssertionError, match="y: not asked for"):
        assert_all_within_budget(["y"], [x], [x], [None])
    with pytest.raises(AssertionError, match="y: missing"):
        assert_all_within_budget(["y"], [None], [x], [exact])
    assert_within_budget("y", x[:0], x[:0], exact[:0])


def test_equal_infinities_are_no_error():
    value = torch.tensor([math.inf, 1.0])
    assert errors(value, value.double()).max == 0.0
    assert errors(-value, value.double()).max == math.inf
    assert errors(value[:0], value[:0].double()).rms == 0.0


# ---- the report ----------------------------------------------------------------------------------------------------


def test_a_report_takes_the_place_of_failing(monkeypatch, tmp_path):
    path = tmp_path / "ratios.jsonl"
    monkeypatch.setenv(REPORT, str(path))
    x = torch.tensor([1.0, 2.0])
    assert_within_budget("fine", x, x, exact_of(1.0, 2.0))
    assert_within_budget("wrong", x + 1, x, exact_of(1.0, 2.0), factor=GRADIENT)
    assert_within_budget("nan", x * math.nan, x, exact_of(1.0, 2.0))
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [(line["name"], line["norm"], line["ok"]) for line in lines] == [
        ("fine", "max", True), ("fine", "rms", True), ("wrong", "max", False), ("wrong", "rms", False),
        ("nan", "max", False), ("nan", "rms", False),
    ]  # fmt: skip
    wrong = lines[2]
    assert wrong["test"] == "tests/fastgpt/tools/test_budget.py::test_a_report_takes_the_place_of_failing"
    assert (wrong["dtype"], wrong["factor"], wrong["error"], wrong["torch_error"]) == ("float32", 3.0, 1.0, 0.0)
    assert wrong["u_scale"] == pytest.approx(2**-23)
    assert wrong["limit"] == 3.0 * wrong["u_scale"]
    assert wrong["used"] == wrong["error"] / wrong["limit"]
    assert lines[4]["error"] is None
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget("shape", x[:1], x, exact_of(1.0, 2.0))


def _append(path, name):
    from fastgpt.tools.budget import write_report

    for _ in range(200):
        write_report([Verdict(name * 50, "float32", "max", 2.0, 0.0, 0.0, 0.0)])


def test_processes_do_not_mix_their_lines(monkeypatch, tmp_path):
    path = tmp_path / "ratios.jsonl"
    monkeypatch.setenv(REPORT, str(path))
    workers = [multiprocessing.get_context("fork").Process(target=_append, args=(path, name)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    names = [json.loads(line)["name"] for line in path.read_text().splitlines()]
    assert sorted(names) == sorted(name * 50 for name in "abcd" for _ in range(200))


def test_verify_reports_as_well(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    path = tmp_path / "ratios.jsonl"
    monkeypatch.setenv(REPORT, str(path))
    report = verify.verify("cpu", only=("layer_norm",))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    results = sum(1 + len(case.wanted) for case in verify.CASES["layer_norm"](1))
    assert len(lines) == results * len(verify.DTYPES) * 2  # two norms
    assert max(line["used"] for line in lines) == max(row.used for row in report.rows)
