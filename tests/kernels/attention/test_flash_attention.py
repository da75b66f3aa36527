"""flash_attention against float64, forward and gradients: dtypes, shapes, every mask, layouts."""

import contextlib
import itertools

import pytest
import torch

from fastgpt.kernels import _runtime, reference
from fastgpt.kernels.attention import flash_attention, tiles
from fastgpt.kernels.attention.descriptors import descriptors
from tests.support.budget import assert_all_within_budget, assert_within_budget, exactly
from tests.support.compiled import COMPILED

from .support import check, random_qkv

HALF = torch.float16, torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_dtypes(device, seed, dtype, causal):
    check(device, random_qkv(device, 1, 2, 70, 70, 32, dtype=dtype), causal=causal)


@pytest.mark.parametrize("head_dim", [1, 8, 33, 64, 80, 96, 100, 128, 192, 256])
def test_head_dims(device, seed, head_dim):
    dtype = torch.bfloat16 if head_dim % 32 == 0 else torch.float32
    check(device, random_qkv(device, 1, 1, 70, 70, head_dim, dtype=dtype))


def test_head_dim_is_split_without_waste():
    for head_dim in (64, 80, 96, 128, 192, 256, 16, 32, 48, 72, 90):
        assert sum(tiles.split_head_dim(head_dim)) == -(-head_dim // 16) * 16
    for head_dim in range(1, 257):
        d_a, d_b = tiles.split_head_dim(head_dim)
        assert d_a + d_b >= head_dim
        assert d_a >= d_b
        assert all(d == 0 or d & (d - 1) == 0 for d in (d_a, d_b))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("T_q", "T_k"), [(5, 70), (1, 97), (64, 64), (65, 130), (130, 65), (129, 129)])
def test_lengths(device, seed, T_q, T_k, causal):
    check(device, random_qkv(device, 1, 1, T_q, T_k, 16), causal=causal)


@pytest.mark.parametrize("T_q", [1, 97])
def test_one_key(device, seed, T_q):
    """The only weight is 1, and what reaches dq and dk by way of out is an exact 0: a difference that we round."""
    qkv = random_qkv(device, 1, 1, T_q, 1, 16)
    out, *_ = check(device, qkv, causal=False)
    division = 2**-22 if COMPILED else 0  # a GPU's may be off by 2 ulp
    torch.testing.assert_close(out, qkv[2].expand_as(out), rtol=2**-22 + division, atol=0.0)


@pytest.mark.parametrize(
    ("B", "H", "T_q", "T_k"), [(0, 1, 4, 4), (1, 0, 4, 4), (1, 1, 0, 4), (1, 1, 4, 0), (1, 1, 0, 0)]
)
def test_empty(device, B, H, T_q, T_k):
    q, k, v = random_qkv(device, B, H, T_q, T_k, 16)
    out, lse = flash_attention(q, k, v, return_lse=True)
    assert out.shape == q.shape
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    for x, gradient in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v))):
        assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize(("H", "H_kv"), [(4, 2), (3, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_queries(device, seed, H, H_kv, causal):
    check(device, random_qkv(device, 1, H, 70, 70, 16, H_kv=H_kv), causal=causal)


@pytest.mark.parametrize(
    ("window", "causal"),
    [(20, True), (500, True), (20, False), ((30, 5), False), ((-1, 10), False), ((10, -1), False),
     ((3, 3), False), ((40, 100), True), ((-1, -1), True)],
)  # fmt: skip
def test_windows(device, seed, window, causal):
    check(device, random_qkv(device, 1, 1, 130, 150, 16), window=window, causal=causal)


def test_window_wider_than_int32(device, seed):
    check(device, random_qkv(device, 1, 1, 20, 20, 16), window=(2**40, 2**40), causal=False)


@pytest.mark.parametrize(("causal", "dtype"), [(True, torch.int32), (False, torch.int64)])
def test_padding(device, seed, causal, dtype):
    lengths = torch.tensor([130, 64, 0, 999], dtype=dtype, device=device)
    starts = torch.tensor([66, 3, 0, -5], dtype=dtype, device=device)
    qkv = random_qkv(device, 4, 1, 40, 130, 16)
    check(device, qkv, key_lengths=lengths, causal=causal)
    check(device, qkv, key_lengths=lengths, key_starts=starts, causal=causal, window=60)


@pytest.mark.parametrize("boundaries", [[0, 130], [0, 1, 64, 65, 130], [0, 40, 40, 130]])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents(device, seed, boundaries, causal):
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32, device=device)
    check(device, random_qkv(device, 1, 2, 130, 130, 16, H_kv=1), cu_seqlens=cu_seqlens, causal=causal)


def test_packed_documents_equal_separate_ones(device, seed):
    q, k, v = random_qkv(device, 1, 1, 150, 150, 16)
    boundaries = [0, 30, 97, 150]
    packed = flash_attention(q, k, v, cu_seqlens=torch.tensor(boundaries, dtype=torch.int32, device=device))
    for start, end in itertools.pairwise(boundaries):
        part = [x[:, :, start:end].detach().cpu() for x in (q, k, v)]
        (exact,) = exactly(reference.flash_attention, *part)
        assert_within_budget("part", packed[:, :, start:end], reference.flash_attention(*part), exact)
        alone = flash_attention(*(x[:, :, start:end] for x in (q, k, v)))
        assert_within_budget("alone", alone, reference.flash_attention(*part), exact)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("order", ["sorted", "interleaved", "one", "negative"])
def test_document_ids(device, seed, order, causal):
    B, T = 2, 130
    ids = {
        "sorted": torch.randint(0, 4, (B, T)).sort(dim=1).values,
        "interleaved": torch.randint(0, 3, (B, T)),
        "one": torch.full((B, T), 7),
        "negative": (torch.arange(T) // 50 - 1).expand(B, T),  # e.g. -1 for padding; expanded, not contiguous
    }[order].to(device)
    check(device, random_qkv(device, B, 1, 100, T, 16), document_ids=ids, causal=causal)


def test_documents_with_padding_and_window(device, seed):
    ids = torch.randint(0, 3, (2, 130), dtype=torch.int32).sort(dim=1).values.to(device)
    check(
        device, random_qkv(device, 2, 1, 130, 130, 16), document_ids=ids, window=30,
        key_lengths=torch.tensor([130, 90], device=device), key_starts=torch.tensor([17, 0], device=device),
    )  # fmt: skip


@pytest.mark.parametrize("scale", [0.5, 0.0, -0.3])
def test_softmax_scale(device, seed, scale):
    check(device, random_qkv(device, 1, 1, 70, 70, 16), softmax_scale=scale)


def test_large_scores(device, seed):
    q, k, v = random_qkv(device, 1, 1, 70, 70, 16)
    q.data *= 30.0  # scores beyond 88: exp would overflow without the row maximum
    out, lse = flash_attention(q, k, v, return_lse=True)
    inputs = [x.detach().cpu() for x in (q, k, v)]
    torchs = reference.flash_attention(*inputs, return_lse=True)
    exact = exactly(lambda *qkv: reference.flash_attention(*qkv, return_lse=True), *inputs)
    assert torchs[1].max() > 88.0
    assert_all_within_budget(("out", "lse"), (out, lse), torchs, exact)


def test_descriptors(seed, monkeypatch, interpreter):
    """The TMA path, which the interpreter's default target does not take: ragged edges, two-part head_dim, strides."""
    device = interpreter
    monkeypatch.setattr(tiles, "MIN_TMA_ROWS", 1)
    target = _runtime.KNOWN_TARGETS["sm_90"]
    with _runtime.pretend(target):
        assert descriptors(target, torch.empty(1, 2, 300, 80, dtype=torch.float16), 64)[1] is not None
        check(device, random_qkv(device, 1, 2, 150, 150, 80, dtype=torch.float16, H_kv=1))
        check(device, random_qkv(device, 1, 1, 170, 290, 72, dtype=torch.bfloat16), window=200)
        check(device, random_qkv(device, 1, 1, 150, 170, 36), causal=False)


def test_descriptors_need_alignment():
    target = _runtime.KNOWN_TARGETS["sm_90"]
    x = torch.empty(2, 3, 512, 64, dtype=torch.float16)

    def taken(x):
        return descriptors(target, x, 64)[0] is not None

    assert taken(x)
    assert taken(x.transpose(1, 2).contiguous().transpose(1, 2))
    assert taken(x[:1].expand(1, 3, 512, 64))
    assert not taken(x[..., 1:])  # address off by 2 bytes, rows by 126
    assert not taken(x.expand(2, 3, 512, 64)[:, :1].expand(2, 3, 512, 64))  # stride 0
    assert not taken(torch.empty(2, 3, 64, 512, dtype=torch.float16).transpose(2, 3))  # last dimension strided
    assert not taken(torch.empty(2, 3, 512, 60, dtype=torch.float16))  # rows of 120 bytes
    assert descriptors(_runtime.KNOWN_TARGETS["sm_80"], x, 64) == (None, None)


@pytest.mark.parametrize("layout", ["packed", "heads_last", "strided_head_dim", "expanded"])
def test_strides(device, seed, layout):
    B, T, H, D = 1, 70, 2, 16
    base = torch.randn(B, T, 3, H, D, device=device)
    if layout == "packed":
        views = base.permute(2, 0, 3, 1, 4)
    elif layout == "heads_last":
        views = [torch.randn(B, T, H, D, device=device).transpose(1, 2) for _ in range(3)]
    elif layout == "strided_head_dim":
        views = [torch.randn(B, H, D, T, device=device).transpose(2, 3) for _ in range(3)]
    else:
        views = [torch.randn(1, 1, T, D, device=device).expand(B, H, T, D) for _ in range(3)]
    check(device, tuple(x.detach().requires_grad_() for x in views))


def test_views_are_not_copied_and_heads_merge_by_view(device, seed):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func.name())
            return func(*args, **(kwargs or {}))

    packed = torch.randn(2, 40, 3, 2, 16, device=device).requires_grad_()
    with Watch() as watch:
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        out = flash_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, T, H·D)
        assert out.is_contiguous()
    copies = [n for n in watch.seen if any(w in n for w in ("clone", "copy", "contiguous", "reshape"))]
    assert not copies, copies
    assert "fastgpt::attention_fwd" in watch.seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_tiles_of_the_table(device, seed, table_tiles, dtype, arch):
    if COMPILED and _runtime.KNOWN_TARGETS[arch].backend == "hip":
        pytest.skip("an AMD GPU's, which only the interpreter can pretend to be")
    with _runtime.pretend(_runtime.KNOWN_TARGETS[arch]) if device.type == "cpu" else contextlib.nullcontext():
        check(device, random_qkv(device, 1, 1, 70, 70, 64, dtype=dtype))


@pytest.mark.parametrize("arch", sorted(_runtime.KNOWN_TARGETS))
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_head_dim_has_tiles(arch, itemsize, table_tiles):
    target = _runtime.KNOWN_TARGETS[arch]
    for head_dim in (1, 64, 65, 100, 128, 129, 256):
        for rows in (1, 300, 10**5):
            for roomy in (False, True):
                for tile, step in (
                    (tiles.forward(target, itemsize, head_dim, roomy=roomy, T_q=rows, heads=8), "block_n"),
                    (tiles.dkdv(target, itemsize, head_dim, roomy=roomy, T_k=rows, heads=8), "block_m"),
                    (tiles.dq(target, itemsize, head_dim, roomy=roomy, T_q=rows, heads=8), "block_n"),
                ):
                    assert all(n >= 16 and n & (n - 1) == 0 for n in tile[:3])
                    assert getattr(tile, step) % tile.edge == 0  # full tiles begin where edge tiles end


def test_short_sequences_take_smaller_tiles(table_tiles):
    target = _runtime.KNOWN_TARGETS["sm_90"]
    large = tiles.forward(target, 2, 128, T_q=4096, heads=64)
    assert tiles.forward(target, 2, 128, T_q=256, heads=4).block_m < large.block_m
    assert tiles.forward(target, 2, 128, T_q=1, heads=4).block_m == 16
