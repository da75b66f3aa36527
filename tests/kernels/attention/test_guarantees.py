"""What flash_attention promises beyond right numbers: dropout, NaN, determinism, int64 offsets, errors."""

import math
import re
import warnings
from pathlib import Path

import pytest
import torch

from fastgpt.kernels import _runtime, attention, reference, scaled_dot_product_attention
from fastgpt.kernels.attention import flash_attention, launch, op
from tests.support import philox
from tests.support.budget import GRADIENT, assert_within_budget, exactly

from .support import check, random_qkv


@pytest.fixture
def known_seed(monkeypatch, device):
    """The (seed, offset) that the next calls with dropout use."""
    seed = torch.tensor([123456789, 42], device=device)
    monkeypatch.setattr(op, "new_seed", lambda device: seed)
    return seed


@pytest.mark.parametrize("dropout_p", [0.1, 0.7])
def test_dropout_is_exactly_philox(device, seed, known_seed, dropout_p):
    B, H, T_q, T_k = 2, 2, 70, 100
    mask = philox.keep_mask(known_seed, dropout_p, B * H, T_q, T_k).view(B, H, T_q, T_k)
    qkv = random_qkv(device, B, H, T_q, T_k, 16, H_kv=1)
    check(device, qkv, dropout_p=dropout_p, dropout_mask=mask)
    check(device, qkv, dropout_p=dropout_p, dropout_mask=mask, causal=False, window=30)


def test_dropout_keeps_the_right_share(device, seed):
    T, p = 128, 0.3
    q = torch.zeros(1, 2, T, 16, device=device)  # uniform weights over the keys
    ones = torch.ones(1, 2, T, 16, device=device)
    kept = flash_attention(q, q, ones, causal=False, dropout_p=p)[..., 0] * (1 - p)  # share of keys kept, by row
    n = 2 * T * T
    assert abs(kept.mean().item() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / n)


def test_dropout_follows_torch_manual_seed(device, seed):
    q, k, v = random_qkv(device, 1, 1, 40, 40, 16)
    torch.manual_seed(3)
    a, b = flash_attention(q, k, v, dropout_p=0.5), flash_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(a, flash_attention(q, k, v, dropout_p=0.5))
    assert not torch.equal(a, b)


def test_dropout_under_checkpointing(device, seed):
    from torch.utils.checkpoint import checkpoint

    q, k, v = random_qkv(device, 1, 1, 40, 40, 16)

    def gradients(run):
        torch.manual_seed(3)
        return torch.autograd.grad(run().square().sum(), (q, k, v))

    plain = gradients(lambda: flash_attention(q, k, v, dropout_p=0.5))
    again = gradients(lambda: checkpoint(flash_attention, q, k, v, dropout_p=0.5, use_reentrant=False))
    assert all(map(torch.equal, plain, again))


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_stays_in_the_rows_that_it_touches(device, seed, which, value):
    T, at = 150, 70
    clean = random_qkv(device, 1, 1, T, T, 80)
    dirty = [x.detach().clone() for x in clean]
    dirty["qkv".index(which)][0, 0, at, 3] = value
    dirty = [x.requires_grad_() for x in dirty]
    dout = torch.randn(1, 1, T, 80, device=device)
    out, dirty_out = flash_attention(*clean), flash_attention(*dirty)
    touched = torch.arange(T) == at if which == "q" else torch.arange(T) >= at  # causal
    assert torch.equal(out[0, 0, ~touched], dirty_out[0, 0, ~touched])
    if math.isnan(value):
        assert dirty_out[0, 0, touched].isnan().any(dim=-1).all()
    before = torch.autograd.grad(out, clean, dout)
    after = torch.autograd.grad(dirty_out, dirty, dout)
    assert torch.equal(before[0][0, 0, ~touched], after[0][0, 0, ~touched])  # dq of the other rows
    if which == "q":  # key j is seen by the rows from j on
        for b, a in zip(before[1:], after[1:]):
            assert torch.equal(b[0, 0, at + 1 :], a[0, 0, at + 1 :])


def test_nan_in_the_upstream_gradient(device, seed):
    T, at = 150, 70
    qkv = random_qkv(device, 1, 1, T, T, 32)
    out = flash_attention(*qkv)
    dout = torch.randn_like(out)
    before = torch.autograd.grad(out, qkv, dout, retain_graph=True)
    dout[0, 0, at, 5] = math.nan
    dq, dk, dv = torch.autograd.grad(out, qkv, dout)
    others = torch.arange(T) != at
    assert torch.equal(dq[0, 0, others], before[0][0, 0, others])
    assert torch.equal(dk[0, 0, at + 1 :], before[1][0, 0, at + 1 :])
    assert torch.equal(dv[0, 0, at + 1 :], before[2][0, 0, at + 1 :])
    assert dq[0, 0, at].isnan().any()
    assert dk[0, 0, : at + 1].isnan().any(dim=-1).all()
    assert dv[0, 0, : at + 1].isnan().any(dim=-1).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_may_hold_nan(device, seed, side):
    B, T = 2, 130
    q, k, v = random_qkv(device, B, 1, T, T, 16)
    limits = torch.tensor([75, 130] if side == "right" else [70, 0], device=device)
    padding = {"key_lengths": limits} if side == "right" else {"key_starts": limits}
    hidden = torch.arange(T, device=device) >= 75 if side == "right" else torch.arange(T, device=device) < 70
    clean = flash_attention(q, k, v, **padding)
    expected = torch.autograd.grad(clean.square().sum(), (q, k, v))
    k2, v2 = k.detach().clone(), v.detach().clone()
    k2[0, :, hidden], v2[0, :, hidden] = math.nan, math.nan
    k2, v2 = k2.requires_grad_(), v2.requires_grad_()
    out = flash_attention(q, k2, v2, **padding)
    assert torch.equal(out, clean)
    for a, b in zip(torch.autograd.grad(out.square().sum(), (q, k2, v2)), expected):
        assert torch.equal(a, b)


def test_fully_masked_rows(device, seed):
    q, k, v = random_qkv(device, 2, 1, 100, 70, 16)  # the first 30 queries stand before the first key
    out, lse = flash_attention(q, k, v, return_lse=True, key_lengths=torch.tensor([70, 0], device=device))
    blind = torch.ones(2, 100, dtype=torch.bool)
    blind[0, 30:] = False
    assert torch.equal(out[:, 0][blind], torch.zeros_like(out[:, 0][blind]))
    assert torch.equal(lse[:, 0][blind], torch.full_like(lse[:, 0][blind], -torch.inf))
    assert lse[:, 0][~blind].isfinite().all()
    # Whatever arrives at a blind row's lse, even the NaN of exp(-inf - -inf), leaves no trace.
    dlse = torch.where(blind[:, None].to(device), math.nan, 1.0)
    dq, dk, dv = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), dlse))
    assert torch.equal(dq[:, 0][blind], torch.zeros_like(dq[:, 0][blind]))
    assert all(g.isfinite().all() for g in (dq, dk, dv))
    assert torch.equal(dk[1], torch.zeros_like(dk[1]))
    assert torch.equal(dv[1], torch.zeros_like(dv[1]))


@pytest.mark.parametrize("kind", ["stride 0", "transposed", "lse only"])
def test_upstream_gradients_of_any_stride(device, seed, kind):
    q, k, v = random_qkv(device, 1, 2, 40, 40, 16)
    out, lse = flash_attention(q, k, v, return_lse=True)
    if kind == "stride 0":
        result, upstream = out, torch.ones((), device=device).expand(out.shape)
    elif kind == "transposed":
        result, upstream = out, torch.randn(1, 2, 16, 40, device=device).transpose(2, 3)
    else:
        result, upstream = lse, torch.ones((), device=device).expand(lse.shape)
    mine = torch.autograd.grad(result, (q, k, v), upstream, allow_unused=True)

    def plain(q, k, v, upstream):
        result = reference.flash_attention(q, k, v, return_lse=True)[1 if kind == "lse only" else 0]
        return torch.autograd.grad(result, (q, k, v), upstream, allow_unused=True)

    torchs, exact = plain(q, k, v, upstream), exactly(plain, q, k, v, upstream)
    for name, a, b, c in zip("qkv", mine, torchs, exact):
        if c is None:
            assert not a.any()
        else:
            assert_within_budget(f"d{name}", a, b, c, factor=GRADIENT)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "kv"])
def test_only_the_gradients_that_are_asked_for(device, seed, wanted, monkeypatch):
    launched = []
    for name in ("attention_dq_kernel", "attention_dkdv_kernel"):
        kernel = getattr(launch.device_backward, name)

        class Counted:
            def __init__(self, kernel, name):
                self.kernel, self.name = kernel, name

            def __getitem__(self, grid):
                launched.append(self.name)
                return self.kernel[grid]

        monkeypatch.setattr(launch.device_backward, name, Counted(kernel, name))
    qkv = [x.requires_grad_(name in wanted) for name, x in zip("qkv", random_qkv(device, 1, 1, 20, 20, 16))]
    flash_attention(*qkv).sum().backward()
    assert [x.grad is not None for x in qkv] == [name in wanted for name in "qkv"]
    assert launched == (["attention_dq_kernel"] if wanted == "q" else ["attention_dkdv_kernel"])


def test_same_bits_every_time(device, seed):
    runs = 100 if device.type == "cuda" else 3
    qkv = random_qkv(device, 1, 2, 100, 100, 16, H_kv=1, dtype=torch.bfloat16)
    dout = torch.randn_like(qkv[0])

    def run():
        out = flash_attention(*qkv)
        return out, *torch.autograd.grad(out, qkv, dout)

    first = run()
    for _ in range(runs - 1):
        assert all(map(torch.equal, first, run()))


def test_no_atomics():
    source = "".join(p.read_text() for p in Path(attention.__file__).parent.glob("*.py"))
    assert not re.search(r"\batomic_", source)


def test_offsets_beyond_int32(interpreter, seed):
    """Heads 2^31 elements apart, and rows 2^25 apart: storage that is reserved, and never touched in between."""
    device = interpreter  # reserves 9 GB of address space, which on a GPU would be memory
    T, D = 80, 16
    for strides in ((0, 2**31 + 16, D, 1), (0, 64, 2**25, 1)):
        elements = 1 + sum(s * (n - 1) for s, n in zip(strides, (1, 2, T, D)))
        big = torch.empty(0, dtype=torch.float16).set_(
            torch.UntypedStorage(2 * elements), 0, (1, 2, T, D), strides
        )  # fmt: skip
        small = torch.randn(1, 2, T, D, dtype=torch.float16)
        big.copy_(small)
        qkv = random_qkv(device, 1, 2, T, T, D, dtype=torch.float16)
        check(device, (qkv[0], big.requires_grad_(), qkv[2]))
        check(device, (big, qkv[1], qkv[2]))


def test_more_elements_than_int32_counts(device):
    """An expanded view of 2^32 elements: shapes, grid and bounds without a launch of that size."""
    pytest.importorskip("triton")
    from benchmarks.gate.offline import offline

    if _runtime.INTERPRETED_PROCESS:
        pytest.skip("TRITON_INTERPRET=1 leaves nothing to compile in this process")
    with offline("sm_80") as compiled:
        q, k, v = (
            torch.empty(1, 1, 1, 64, dtype=torch.float16, device="meta").expand(512, 2**15, 4, 64) for _ in "qkv"
        )
        assert q.numel() == 2**32
        launch.forward(q, k, v, None, None, None, None, 0.125, 0.0, True, -1, -1)
    grid = compiled[0].grid
    assert 65535 < grid[0] == 512 * 2**15 < 2**31  # every program on the axis that has room
    assert grid[1:] in ((), (1,), (1, 1))


def test_double_backward_raises(device, seed):
    qkv = random_qkv(device, 1, 1, 20, 20, 16)
    (dq,) = torch.autograd.grad(flash_attention(*qkv).sum(), qkv[0], create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        dq.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(device, seed, dtype):
    q, k, v = random_qkv(device, 1, 1, 40, 40, 16)
    with torch.autocast(device.type, dtype=dtype):
        out, lse = flash_attention(q, k, v.to(dtype), return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert torch.equal(out, flash_attention(*(x.to(dtype) for x in (q, k, v))))
    out.sum().backward()
    assert q.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_autocast_leaves_other_dtypes_to_be_refused(device, name, dtype):
    tensors = {n: torch.zeros(1, 1, 2, 16, device=device) for n in "qkv"}
    tensors[name] = tensors[name].to(dtype)
    expected = f"flash_attention: {name} is {dtype}"
    with torch.autocast(device.type, torch.bfloat16), pytest.raises(TypeError, match=expected):
        flash_attention(**tensors)


def bad_calls():
    x = torch.zeros(2, 4, 8, 16)
    i32 = torch.int32
    return {
        "k is float16": ((x, x.half(), x), {}, TypeError, "k torch.float16"),
        "integers": ((x.int(), x.int(), x.int()), {}, TypeError, "q is torch.int32, and the kernels take"),
        "float64": ((x.double(),) * 3, {}, TypeError, "q is torch.float64, and the kernels take"),
        "3-D": ((x[0], x, x), {}, ValueError, "q must be"),
        "head_dim of k": ((x, x[..., :8], x[..., :8]), {}, ValueError, "head_dim 8"),
        "head_dim of v": ((x, x, x[..., :8]), {}, ValueError, "same shape"),
        "head_dim 0": ((x[..., :0],) * 3, {}, ValueError, "1 to 256"),
        "head_dim 257": ((torch.zeros(1, 1, 2, 257),) * 3, {}, ValueError, "1 to 256"),
        "batch": ((x, x[:1], x[:1]), {}, ValueError, "batch size 1"),
        "heads": ((x, x[:, :3], x[:, :3]), {}, ValueError, "multiple"),
        "length of v": ((x, x, x[:, :, :4]), {}, ValueError, "same shape"),
        "device": ((x, x.to("meta"), x), {}, ValueError, "k is on meta"),
        "dropout 1": ((x, x, x), {"dropout_p": 1.0}, ValueError, "dropout_p"),
        "dropout tensor": ((x, x, x), {"dropout_p": torch.tensor(0.0)}, TypeError, r"dropout_p is tensor\(0.\)"),
        "dropout tensors": ((x, x, x), {"dropout_p": torch.zeros(2)}, TypeError, r"dropout_p is tensor.*by .item"),
        "dropout None": ((x, x, x), {"dropout_p": None}, TypeError, "dropout_p is None"),
        "dropout < 0": ((x, x, x), {"dropout_p": -0.1}, ValueError, "dropout_p"),
        "window": ((x, x, x), {"window": (1, 2, 3)}, ValueError, "window"),
        "window 0": ((x, x, x), {"window": 0}, ValueError, "window"),
        "key_lengths shape": ((x, x, x), {"key_lengths": torch.zeros(3, dtype=i32)}, ValueError, "key_lengths"),
        "key_starts dtype": ((x, x, x), {"key_starts": torch.zeros(2)}, TypeError, "key_starts"),
        "document_ids shape": ((x, x, x), {"document_ids": torch.zeros(2, 9, dtype=i32)}, ValueError, "document_ids"),
        "document_ids bool": ((x, x, x), {"document_ids": torch.ones(2, 8).bool()}, TypeError, "document_ids"),
        "document_ids T_q": ((x, x[:, :, :4], x[:, :, :4]), {"document_ids": torch.zeros(2, 4, dtype=i32)}, ValueError,
                             "more queries"),
        "cu_seqlens dtype": ((x[:1],) * 3, {"cu_seqlens": torch.tensor([0, 8])}, TypeError, "cu_seqlens"),
        "cu_seqlens shape": ((x[:1],) * 3, {"cu_seqlens": torch.zeros(1, dtype=i32)}, ValueError, "cu_seqlens"),
        "cu_seqlens batch": ((x, x, x), {"cu_seqlens": torch.tensor([0, 8], dtype=i32)}, ValueError, "B = 1"),
        "cu_seqlens end": ((x[:1],) * 3, {"cu_seqlens": torch.tensor([0, 7], dtype=i32)}, ValueError, "cu_seqlens"),
        "cu_seqlens falls": ((x[:1],) * 3, {"cu_seqlens": torch.tensor([0, 5, 3, 8], dtype=i32)}, ValueError,
                             "cu_seqlens"),
        "cu_seqlens device": ((x[:1],) * 3, {"cu_seqlens": torch.zeros(2, dtype=i32, device="meta")}, ValueError,
                              "cu_seqlens is on meta but q is on"),
        "both documents": ((x[:1],) * 3, {"cu_seqlens": torch.tensor([0, 8], dtype=i32),
                                          "document_ids": torch.zeros(1, 8, dtype=i32)}, ValueError, "not both"),
    }  # fmt: skip


@pytest.mark.parametrize("case", bad_calls())
def test_bad_input_raises_before_launch(device, case, monkeypatch):
    monkeypatch.setattr(launch, "forward", lambda *a: pytest.fail("launched"))
    args, kwargs, error, words = bad_calls()[case]
    with pytest.raises(error, match=words) as raised:
        flash_attention(*args, **kwargs)
    assert str(raised.value).startswith("flash_attention")


def test_on_a_cpu_without_the_interpreter():
    x = torch.zeros(1, 1, 4, 16)
    if not _runtime.is_interpreting():
        with pytest.raises(RuntimeError, match="interpret"):
            flash_attention(x, x, x)


def test_the_layout_of_flash_attn_gives_a_warning(device, seed):
    """(B, T, H, D) has as many dims, and would silently be read as T heads of H tokens."""
    theirs = torch.randn(1, 20, 2, 16, device=device)
    with pytest.warns(UserWarning, match=r"read as \(B, heads, T, head_dim\): 20 heads of 2 tokens"):
        flash_attention(theirs, theirs, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q, k, v = random_qkv(device, 1, 2, 20, 20, 16)
        flash_attention(q, k, v)
        flash_attention(q[:, :, -1:], k, v)  # decoding
        view = torch.randn(1, 2, 3, 4, 16, device=device).permute(2, 0, 3, 1, 4)  # a prompt of 2 tokens, 4 heads
        flash_attention(view[0], view[1], view[2])
        few = torch.randn(1, 4, 2, 16, device=device)
        scaled_dot_product_attention(few, few, few, is_causal=True)


def test_a_graph_for_all_lengths_is_not_split_by_that_warning(device):
    """Compared with the number of heads, a length would belong to one side of it."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    attend = torch.compile(lambda q: flash_attention(q, q, q), backend=counter, dynamic=True)
    for T in (8, 12, 3, 2):
        attend(torch.randn(1, 4, T, 16, device=device))
    assert counter.frame_count == 1
