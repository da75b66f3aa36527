"""gelu_ffn and linear_gelu against float64: every dtype, path, layout, size and option, forward and backward."""

import pytest
import torch

from fastgpt.kernels import gelu_ffn, linear_gelu, reference
from fastgpt.kernels._runtime import KNOWN_TARGETS, pretend
from tests.kernels.ffn.cases import NAMES, copies, exactly_ffn, ffn_inputs, out_and_grads, three_ways
from tests.support import philox
from tests.support.budget import GRADIENT, OUTPUT, assert_within_budget, exactly

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PATHS = ("triton", "cublas")


def check(ours, theirs, exact, names=NAMES):
    for i, (name, a, b, c) in enumerate(zip(names, ours, theirs, exact, strict=True)):
        assert (a is None) == (c is None), name
        if a is not None:
            assert_within_budget(name, a, b, c, factor=OUTPUT if i == 0 else GRADIENT)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ffn(device, seed, dtype, approximate, path):
    tensors = ffn_inputs(device, dtype)
    dout = torch.randn(2, 19, 24, device=device)
    check(*three_ways(tensors, dout, approximate, path=path))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_gelu(device, seed, dtype, approximate, path):
    tensors = ffn_inputs(device, dtype)[:3]
    dout = torch.randn(2, 19, 72, device=device)
    check(*three_ways(tensors, dout, approximate, path=path, function="linear_gelu"), names=("out", "dx", "dw", "db"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("shape", "d_hidden", "d_out"),
    [((1, 1), 1, 1), ((7,), 5, 3), ((3, 2, 5, 17), 131, 33), ((1, 48), 64, 32), ((150, 64), 260, 130)],
    ids=str,
)
def test_any_size(device, seed, shape, d_hidden, d_out, path):
    tensors = ffn_inputs(device, torch.float32, shape, d_hidden, d_out)
    dout = torch.randn(*shape[:-1], d_out, device=device)
    check(*three_ways(tensors, dout, path=path))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("biases", [(False, True), (True, False), (False, False)])
def test_without_biases(device, seed, biases, path):
    tensors = ffn_inputs(device, torch.bfloat16, biases=biases)
    check(*three_ways(tensors, torch.randn(2, 19, 24, device=device), path=path))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(0, 40), (2, 0, 40)], ids=str)
def test_no_tokens(device, shape, path):
    tensors = ffn_inputs(device, torch.float32, shape)
    out, *grads = out_and_grads(gelu_ffn, tensors, torch.randn(*shape[:-1], 24, device=device), path=path)
    assert out.shape == (*shape[:-1], 24)
    assert grads[0].shape == shape
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads[1:], tensors[1:]))
    out, *grads = out_and_grads(linear_gelu, tensors[:3], torch.randn(*shape[:-1], 72, device=device), path=path)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, tensors))


@pytest.mark.parametrize("path", PATHS)
def test_no_features(device, seed, path):
    for sizes in (((5, 0), 8, 6), ((5, 8), 0, 6)):
        tensors = ffn_inputs(device, torch.float32, *sizes)
        check(*three_ways(tensors, torch.randn(5, 6, device=device), path=path))


LAYOUTS = {
    "sliced features": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "every other feature": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "time first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "feature first": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "odd offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_inputs(device, seed, layout, path):
    strided = LAYOUTS[layout]
    plain = [t.detach() for t in ffn_inputs(device, torch.bfloat16)]
    dout = torch.randn(2, 19, 24, device=device).to(torch.bfloat16)
    moved = (
        [strided(t) if t.dim() > 1 else t for t in plain] if "time" not in layout else [strided(plain[0]), *plain[1:]]
    )
    for a, b in zip(moved, plain):
        assert torch.equal(a, b)
    want = out_and_grads(reference.gelu_ffn, [t.clone().requires_grad_() for t in plain], dout)
    got = out_and_grads(gelu_ffn, [t.requires_grad_() for t in moved], strided(dout), path=path)
    check(got, want, exactly_ffn([t.requires_grad_() for t in plain], dout))


def test_rows_with_a_stride_are_not_copied(device, seed):
    pytest.importorskip("triton")
    from fastgpt.kernels.ffn import launch

    x = torch.randn(4, 6, 80, device=device)[..., :40]
    assert launch.rows_of(x).data_ptr() == x.data_ptr()
    assert launch.rows_of(x).stride() == (80, 1)


@pytest.mark.parametrize("path", PATHS)
def test_upstream_gradient_of_stride_zero(device, seed, path):
    tensors = ffn_inputs(device, torch.float32)

    def eager(tensors):
        return torch.autograd.grad(reference.gelu_ffn(*tensors).sum(), tensors)

    ours = torch.autograd.grad(gelu_ffn(*tensors, path=path).sum(), tensors)
    check(*([None, *gradients] for gradients in (ours, eager(tensors), exactly(eager, tensors))))
    linear = copies(tensors[:3], torch.float32)
    linear_gelu(*linear, path=path).sum().backward()
    assert all(t.grad.isfinite().all() for t in linear)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("residual_dtype", [None, torch.bfloat16, torch.float32], ids=str)
def test_dropout_and_residual(device, seed, residual_dtype, path, monkeypatch):
    key = torch.tensor([seed, 7], device=device)
    monkeypatch.setattr("fastgpt.kernels.ffn.op.new_seed", lambda _: key)
    tensors = ffn_inputs(device, torch.bfloat16)
    dout = torch.randn(2, 19, 24, device=device)
    mask = philox.keep_mask(key, 0.3, 1, 38, 24).view(2, 19, 24).to(device)
    options = {"dropout_p": 0.3}
    if residual_dtype is not None:
        options["residual"] = torch.randn(2, 19, 24, device=device).to(residual_dtype)
    ours, theirs, exact = three_ways(
        tensors, dout, path=path, reference_options={**options, "dropout_mask": mask}, **options
    )
    assert ours[0].dtype == (residual_dtype or torch.bfloat16)
    check(ours, theirs, exact)
    if residual_dtype is None:
        assert torch.equal(ours[0] == 0, ~mask | (ours[0] == 0))
        assert not ours[0][~mask].any()


def test_passes_of_many_tiles_of_rows_and_columns(device, seed, monkeypatch):
    key = torch.tensor([seed, 7], device=device)
    monkeypatch.setattr("fastgpt.kernels.ffn.op.new_seed", lambda _: key)
    tensors = ffn_inputs(device, torch.bfloat16, (140, 24), 300, 270)
    residual, dout = (torch.randn(140, 270, device=device) for _ in range(2))
    options = {"dropout_p": 0.3, "residual": residual}
    mask = philox.keep_mask(key, 0.3, 1, 140, 270)[0].to(device)
    check(*three_ways(tensors, dout, path="cublas", reference_options={**options, "dropout_mask": mask}, **options))


def test_residual_gets_the_upstream_gradient(device, seed):
    tensors = ffn_inputs(device, torch.float32)
    residual = torch.randn(2, 19, 24, device=device, requires_grad=True)
    dout = torch.randn(2, 19, 24, device=device)
    for p in (0.0, 0.5):
        (grad,) = torch.autograd.grad(gelu_ffn(*tensors, dropout_p=p, residual=residual), residual, dout)
        assert torch.equal(grad, dout)


@pytest.mark.parametrize("path", PATHS)
def test_only_the_gradients_asked_for(device, seed, path):
    full = ffn_inputs(device, torch.float32)
    dout = torch.randn(2, 19, 24, device=device)
    want = out_and_grads(gelu_ffn, full, dout, path=path)
    for wanted in ({0}, {1}, {2}, {3}, {4}, {0, 3}, {1, 2}, {2, 4}):
        tensors = [t.detach().clone().requires_grad_(i in wanted) for i, t in enumerate(full)]
        got = out_and_grads(gelu_ffn, tensors, dout, path=path)
        assert torch.equal(got[0], want[0])
        for i in range(5):
            assert (got[i + 1] is not None) == (i in wanted)
            assert got[i + 1] is None or torch.equal(got[i + 1], want[i + 1])
    for wanted in ({0}, {1}, {2}):
        tensors = [t.detach().clone().requires_grad_(i in wanted) for i, t in enumerate(full[:3])]
        got = out_and_grads(linear_gelu, tensors, torch.randn(2, 19, 72, device=device), path=path)
        assert [g is not None for g in got[1:]] == [i in wanted for i in range(3)]


@pytest.mark.parametrize("path", PATHS)
def test_recompute_and_kept_graphs_give_the_same(device, seed, path):
    tensors, dout = ffn_inputs(device, torch.bfloat16), torch.randn(2, 19, 24, device=device).bfloat16()
    want = out_and_grads(gelu_ffn, tensors, dout, path=path)
    out = gelu_ffn(*tensors, path=path)
    for keep in (True, True, False):  # the last pass may overwrite what was saved; the ones before must not
        grads = torch.autograd.grad(out, tensors, dout, retain_graph=keep)
        assert all(torch.equal(a, b) for a, b in zip(grads, want[1:]))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, tensors, dout)
    again = out_and_grads(gelu_ffn, tensors, dout, recompute=True, path=path)
    assert torch.equal(again[0], want[0])
    check(again, out_and_grads(reference.gelu_ffn, tensors, dout), exactly_ffn(tensors, dout))


@pytest.mark.parametrize("path", PATHS)
def test_the_same_bits_every_time(device, seed, path):
    tensors, dout = ffn_inputs(device, torch.bfloat16, (300, 32), 136, 24), torch.randn(300, 24, device=device)
    first = out_and_grads(gelu_ffn, tensors, dout, path=path)
    second = out_and_grads(gelu_ffn, tensors, dout, path=path)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_output_does_not_depend_on_whether_gradients_are_needed(device, seed):
    for path in PATHS:
        tensors = ffn_inputs(device, torch.bfloat16)
        with torch.no_grad():
            without = gelu_ffn(*tensors, path=path)
        assert torch.equal(without, gelu_ffn(*tensors, path=path))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tma_path(device, seed, dtype, dropout, monkeypatch):
    """Descriptors in place of pointers: on a GPU where it has TMA, in the interpreter as if it were an H100."""
    pytest.importorskip("triton")
    from fastgpt.kernels.ffn import launch

    used = []
    monkeypatch.setattr(launch, "TensorDescriptor", lambda *a, real=launch.TensorDescriptor: used.append(a) or real(*a))
    key = torch.tensor([seed, 3], device=device)
    monkeypatch.setattr("fastgpt.kernels.ffn.op.new_seed", lambda _: key)
    tensors = ffn_inputs(device, dtype, (3, 50, 72), 264, 136)
    dout, residual = (torch.randn(3, 50, 136, device=device).to(dtype) for _ in range(2))
    options = {"residual": residual, "dropout_p": 0.2} if dropout else {}
    mask = {"dropout_mask": philox.keep_mask(key, 0.2, 1, 150, 136).view(3, 50, 136).to(device)} if dropout else {}
    if torch.cuda.is_available():
        results = three_ways(tensors, dout, path="triton", reference_options={**options, **mask}, **options)
        expected = torch.cuda.get_device_capability() >= (9, 0)
    else:
        with pretend(KNOWN_TARGETS["sm_90"]):
            results = three_ways(tensors, dout, path="triton", reference_options={**options, **mask}, **options)
        expected = True
    check(*results)
    assert bool(used) == expected


@pytest.mark.parametrize("path", PATHS)
def test_long_sums_and_chunks(device, seed, path, monkeypatch):
    """Long sums over tokens; tokens in two chunks forward (dropout's rows with them), hidden columns backward."""
    pytest.importorskip("triton")
    from fastgpt.kernels.ffn import tiles

    monkeypatch.setattr(tiles, "_WORTH_HALVING", 1)
    key = torch.tensor([seed, 7], device=device)
    monkeypatch.setattr("fastgpt.kernels.ffn.op.new_seed", lambda _: key)
    tensors = ffn_inputs(device, torch.bfloat16, (1100, 24), 200, 16)
    mask = philox.keep_mask(key, 0.25, 1, 1100, 16)[0].to(device)
    told = {"dropout_p": 0.25, "dropout_mask": mask}
    dout = torch.randn(1100, 16, device=device)
    check(*three_ways(tensors, dout, path=path, dropout_p=0.25, reference_options=told))


@pytest.mark.parametrize("path", PATHS)
def test_nan_stays_in_its_row(device, seed, path):
    tensors = ffn_inputs(device, torch.float32, grad=False)
    tensors[0][1, 3, 5] = float("nan")
    out = gelu_ffn(*tensors, path=path)
    bad = out.isnan()
    assert bad[1, 3].all()
    bad[1, 3] = False
    assert not bad.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float32 products through tensor cores need a GPU")
@pytest.mark.gpu
def test_tf32_follows_torchs_flag(device, seed):
    tensors, matmul = ffn_inputs(device, torch.float32, (512, 256), 512, 256, grad=False), torch.backends.cuda.matmul
    exact = reference.gelu_ffn(*(t.double() for t in tensors))
    saved, found = matmul.fp32_precision, {}
    try:
        for precision in ("ieee", "tf32"):
            matmul.fp32_precision = precision
            found[precision] = (gelu_ffn(*tensors, path="triton").double() - exact).abs().max().item()
    finally:
        matmul.fp32_precision = saved
    assert found["ieee"] < 1e-5 < found["tf32"] < 1e-2
