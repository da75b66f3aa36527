"""Any memory layout, any number of rows; a row's result depends on nothing but that row, bit for bit."""

import functools
import random
import re

import numpy as np
import pytest
import torch

from benchmarks.gate.offline import offline
from benchmarks.gate.usage import usage
from fastgpt.kernels import _runtime, add_layer_norm, layer_norm, reference
from fastgpt.kernels.layer_norm import launch
from fastgpt.kernels.layer_norm.launch import alignment, as_rows
from fastgpt.kernels.layer_norm.structs import Rows
from tests.support.budget import GRADIENT, assert_all_within_budget, exactly

from .cases import DTYPES, bf16, fp16, fp32, layer_norm_case, parameters

pytest.importorskip("triton")

VIEWS = {
    "padded rows": lambda x: x[:, :, :40],
    "every second row": lambda x: x[:, ::2],
    "last token": lambda x: x[:, -1:],
    "transposed tokens": lambda x: x.transpose(0, 1),
    "transposed features": lambda x: x.transpose(1, 2),
    "every second column": lambda x: x[:, :, ::2],
    "reversed": lambda x: x.flip(2)[:, :, 3:],
    "expanded rows": lambda x: x[:1, :1].expand(4, 6, 48),
    "expanded columns": lambda x: x[:, :, :1].expand(4, 6, 48),
    "starts two bytes late": lambda x: x.flatten()[1 : 1 + 23 * 48].view(23, 48),
    "one row": lambda x: x[0, 0],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [fp32, bf16])
def test_views_of_x(device, seed, dtype, view):
    x = VIEWS[view](torch.randn(4, 6, 48).to(device, dtype)).detach()
    layer_norm_case(x, *parameters(x.shape[-1], dtype, device))


@pytest.mark.parametrize("view", ["padded rows", "transposed tokens", "transposed features", "expanded columns"])
def test_views_of_the_upstream_gradient(device, seed, view):
    dy = VIEWS[view](torch.randn(4, 6, 48, device=device))
    layer_norm_case(torch.randn(dy.shape, device=device), *parameters(dy.shape[-1], fp32, device), dy=dy)


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean])
def test_stride_0_upstream_gradient(device, seed, reduce):
    x = torch.randn(6, 33, device=device, requires_grad=True)
    weight, bias = (t.requires_grad_() for t in parameters(33, fp32, device))
    new = torch.randn(6, 33, device=device, requires_grad=True)

    def gradients(function, *tensors):
        return torch.autograd.grad(reduce(function(tensors[0], (33,), *tensors[1:])), tensors)

    ours, torchs = (gradients(f, x, weight, bias) for f in (layer_norm, torch.nn.functional.layer_norm))
    exact = exactly(functools.partial(gradients, reference.layer_norm), x, weight, bias)
    assert_all_within_budget(("dx", "dweight", "dbias"), ours, torchs, exact, factor=GRADIENT)
    _, new_residual = add_layer_norm(x, new)
    (dx,) = torch.autograd.grad(reduce(new_residual), x)
    torch.testing.assert_close(dx, torch.full_like(x, 1.0 if reduce is torch.sum else 1 / x.numel()))


@pytest.mark.parametrize("which", ["x", "residual"])
def test_views_in_add_layer_norm(device, seed, which):
    wide = torch.randn(5, 80, device=device)
    tensors = {"x": torch.randn(5, 64, device=device), "residual": torch.randn(5, 64, device=device)}
    tensors[which] = wide[:, 8:72]
    copies = {name: t.contiguous() for name, t in tensors.items()}
    for ours, expected in zip(add_layer_norm(**tensors), add_layer_norm(**copies)):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (4, 0), (1, 8), (1, 1, 1), (8,)])
def test_no_rows_no_columns_one_row(device, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    weight = torch.ones(shape[-1], device=device, requires_grad=True)
    bias = torch.zeros(shape[-1], device=device, requires_grad=True)
    y = layer_norm(x, shape[-1], weight, bias)
    new, normed = add_layer_norm(x, x, weight, bias)
    (y.sum() + new.sum() + normed.sum()).backward()
    assert y.shape == new.shape == normed.shape == x.grad.shape == shape
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    if x.numel() == 0:
        assert (weight.grad == 0).all()
        assert (bias.grad == 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, at inf - inf
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("N", [40, 768, 8200, 33000])
def test_nan_and_inf_stay_in_their_rows(device, seed, poison, N):
    M, bad = (5, 2) if N < 8000 else (2, 1)
    x, dy = torch.randn(M, N, device=device), torch.randn(M, N, device=device)
    weight, bias = parameters(N, fp32, device)

    def run(x):
        x = x.detach().requires_grad_()
        y = layer_norm(x, N, weight, bias)
        return y.detach(), torch.autograd.grad(y, x, dy)[0]

    poisoned = x.clone()
    poisoned[bad, 7] = poison
    rest = [i for i in range(M) if i != bad]
    for clean, touched in zip(run(x), run(poisoned)):
        assert torch.equal(clean[rest], touched[rest])
        assert touched[bad].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [17, 64, 768])
def test_a_row_has_the_same_bits_in_any_company(device, seed, dtype, N):
    x, dy = torch.randn(70, N).to(device, dtype), torch.randn(70, N).to(device, dtype)
    residual = torch.randn(70, N, device=device)
    weight, bias = parameters(N, dtype, device)

    def run(rows):
        a, r = x[rows].detach().requires_grad_(), residual[rows].detach().requires_grad_()
        y = layer_norm(a, N, weight, bias)
        normed, new = add_layer_norm(a, r, weight, bias)
        return y, torch.autograd.grad(y, a, dy[rows])[0], normed, new, *torch.autograd.grad(normed, (a, r), dy[rows])

    full = run(slice(0, 70))
    for rows in (slice(0, 1), slice(0, 3), slice(5, 38), slice(69, 70)):
        for whole, part in zip(full, run(rows)):
            assert torch.equal(whole[rows], part)


def test_a_held_row_has_the_same_bits_in_the_stream(device, seed):
    """layer_norm holds a row of 33000 elements, add_layer_norm walks over it twice: one order of summation for both."""
    x, residual = torch.randn(2, 33000, device=device), torch.randn(2, 33000, device=device)
    weight, bias = parameters(33000, fp32, device)
    normed, new = add_layer_norm(x, residual, weight, bias)
    assert torch.equal(new, residual + x)
    assert torch.equal(normed, layer_norm(new, 33000, weight, bias))


@pytest.mark.parametrize("N", [96, 8200])
def test_every_run_has_the_same_bits(device, seed, N):
    runs = 100 if device.type == "cuda" else 3
    M = 4096 if device.type == "cuda" else 3
    x = torch.randn(M, N).to(device, bf16).requires_grad_()
    weight, bias = (t.requires_grad_() for t in parameters(N, fp32, device))
    dy = torch.randn(M, N).to(device, bf16)

    def run():
        y = layer_norm(x, N, weight, bias)
        return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy)]

    first = run()
    for _ in range(runs - 1):
        assert all(torch.equal(a, b) for a, b in zip(first, run()))


def test_offsets_beyond_2_to_the_31(device, seed):
    """Rows 2^30 elements apart in memory that is never touched in between."""
    stride, N = 2**30, 64
    length = 2 * stride + N
    if device.type == "cuda":
        memory = torch.empty(0, dtype=fp16, device=device).resize_(length)
    else:  # untouched pages of numpy's memory take no space
        memory = torch.from_numpy(np.empty(length, dtype=np.float16))
    far = memory.as_strided((3, N), (stride, 1))
    far.copy_(torch.randn(3, N))
    near = far.contiguous()
    weight, bias = parameters(N, fp16, device)
    results = []
    for rows in (far, near):
        x = rows.detach().requires_grad_()
        y = layer_norm(x, N, weight, bias)
        normed, new = add_layer_norm(x, rows, weight, bias)
        results.append((y, normed, new, *torch.autograd.grad((y, new), x, (rows, rows))))
    for a, b in zip(*results):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    M, N = 2**31 // 4096 + 5, 4096
    x = torch.randn(1, N, device="cuda", dtype=bf16).expand(M, N).detach().requires_grad_()
    weight = torch.ones(N, device="cuda", requires_grad=True)
    y = layer_norm(x, N, weight)
    assert torch.equal(y[0], y[-1])
    dx, dweight = torch.autograd.grad(y, (x, weight), y.detach())
    assert torch.equal(dx[0], dx[-1])
    torch.testing.assert_close(dweight, M * y[0].float().square(), rtol=1e-2, atol=1.0)


@pytest.mark.parametrize("case", range(12))
def test_any_shape_and_padding(device, case):
    draw = random.Random(case)
    lead = [draw.randint(1, 4) for _ in range(draw.randint(0, 2))]
    N, pad, start = draw.randint(1, 300), draw.randint(0, 9), draw.randint(0, 9)
    dtype, weight_dtype = draw.choice(DTYPES), draw.choice([None, fp32])
    torch.manual_seed(case)
    x = torch.randn(*lead, N + pad + start).to(device, dtype)[..., start : start + N].detach()
    layer_norm_case(x, *(parameters(N, weight_dtype, device) if weight_dtype else (None, None)))


@pytest.mark.skipif(_runtime.INTERPRETED_PROCESS, reason="an interpreting process compiles nothing")
@pytest.mark.parametrize("dtype", [bf16, fp32])
@pytest.mark.parametrize("N", [768, 1032, 8200, 33000, 65544])
def test_a_row_is_summed_in_one_order_wherever_it_starts(dtype, N):
    """The order of a sum lies in how threads share the row: the same whether or not it is read 16 bytes at a time."""
    found = []
    for late in (0, 1):
        x = torch.empty(64, N + late, dtype=dtype, device="meta")[:, :N]
        weight = torch.empty(N, dtype=dtype, device="meta")
        with offline("sm_90") as compiled:
            _, _, stats = launch.forward(x, None, weight, weight, None, 1, 1e-5, 0.0, dtype)
            launch.backward(x, None, x, weight, stats, None, 1, 0.0, dtype, None, None, None)
        if dtype == bf16:
            used = [usage(k, "sm_90") for k in compiled]
            assert all((u.wide_loads > u.narrow_loads) == (late == 0) for u in used)
        found.append([layouts_of_sums(k.kernel.asm["ttgir"]) for k in compiled])
    assert found[0] == found[1]
    assert all(found[0])


def layouts_of_sums(ttgir: str) -> set[str]:
    """How the operands of tt.reduce are distributed over threads."""
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.\S.*)$", ttgir, re.MULTILINE))
    operands = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<(\S+), (#\w+)>\)', ttgir, re.DOTALL)
    return {f"{shape} {layouts[name]}" for shape, name in operands}


def test_rows_are_read_in_place_where_they_can_be():
    wide = torch.zeros(4, 6, 48)
    for view, copied in (
        (wide, False), (wide[:, :, :40], False), (wide[:1, :1].expand(4, 6, 48), False), (wide[:, -1:], False),
        (wide[:, ::2], False), (wide[:, :4], True), (wide.transpose(0, 1), True), (wide.transpose(1, 2), True),
    ):  # fmt: skip
        M, N = view.shape[0] * view.shape[1], view.shape[2]
        rows, stride = as_rows(view, M, N)
        assert (rows.data_ptr() != view.data_ptr()) == copied
        assert torch.equal(rows.as_strided((M, N), (stride, 1)), view.reshape(M, N))


def test_alignment():
    x = torch.zeros(4, 64, dtype=bf16)
    assert alignment(64, [Rows(x, 64)]) == 8
    assert alignment(64, [Rows(x.float(), 64)]) == 4
    assert alignment(64, [Rows(x, 64), Rows(x.float(), 64)]) == 8
    assert alignment(60, [Rows(x, 64)]) == 1  # rows of the contiguous result would not begin on 16 bytes
    assert alignment(64, [Rows(x, 68)]) == 1
    assert alignment(56, [Rows(x[:, 1:], 64)]) == 1
