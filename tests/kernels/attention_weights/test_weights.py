"""attention_weights against float64: masks, selections, strides, gradients, refusals."""

import functools

import numpy as np
import pytest
import torch

from fastgpt.kernels import attention_weights, flash_attention, reference
from fastgpt.kernels.attention_weights import launch
from tests.support.budget import GRADIENT, assert_within_budget, exactly

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def inputs(device, T_q, T_k, D=20, B=2, H=2, H_kv=1, dtype=torch.float32):
    q = torch.randn(B, H, T_q, D, device=device).to(dtype)
    k = torch.randn(B, H_kv, T_k, D, device=device).to(dtype)
    return q, k


def fast_lse(q, k, **options):
    return flash_attention(q, k, k, return_lse=True, **options)[1]


def through_lse(q, k, softmax_scale=None, **mask):
    """The weights by our route, exp(s - lse): lse is off by half an ulp of itself, which softmax is spared."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    sees = reference.attention_mask(q.shape[2], k.shape[2], **mask, device=q.device)
    s = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(2, 3) * scale
    s = s.masked_fill(~sees, float("-inf"))
    return torch.exp(s - torch.logsumexp(s, dim=-1, keepdim=True)).masked_fill(~sees, 0.0)


def assert_right(q, k, lse, options):
    ours = attention_weights(q, k, lse, **options)
    plain = through_lse if q.dtype == torch.float32 else reference.attention_weights
    (exact,) = exactly(lambda q, k: plain(q, k, **options), q, k)
    assert ours.dtype == q.dtype
    assert_within_budget("weights", ours, plain(q, k, **options), exact)
    return ours, exact.value


MASKS = {
    "causal": lambda T, B: {},
    "full": lambda T, B: {"causal": False},
    "scale": lambda T, B: {"softmax_scale": 0.4},
    "window": lambda T, B: {"window": 9},
    "two-sided window": lambda T, B: {"causal": False, "window": (3, 20)},
    "open window": lambda T, B: {"causal": False, "window": (-1, 2)},
    "padding": lambda T, B: {"key_lengths": torch.tensor([T - 30, T]), "key_starts": torch.tensor([5, 40])},
    "documents": lambda T, B: {"document_ids": torch.arange(B * T).view(B, T) // 37 % 3},
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_mask(device, seed, dtype, name):
    q, k = inputs(device, 40, 140, dtype=dtype)
    options = {n: x.to(device) if torch.is_tensor(x) else x for n, x in MASKS[name](140, 2).items()}
    ours, exact = assert_right(q, k, fast_lse(q, k, **options), options)
    assert torch.equal(ours == 0, exact.to(ours.dtype) == 0), "a key is seen that should not be, or the reverse"
    total = ours.double().sum(dim=-1)
    assert (torch.minimum(total, (total - 1).abs()) < 16 * torch.finfo(dtype).eps).all(), "rows sum to 1 or to 0"


def test_packed_documents_by_cu_seqlens(device, seed):
    q, k = inputs(device, 60, 60, B=1)
    options = {"cu_seqlens": torch.tensor([0, 7, 7, 40, 60], dtype=torch.int32, device=device)}
    assert_right(q, k, fast_lse(q, k, **options), options)


@pytest.mark.parametrize("D", [1, 16, 33, 80, 96, 256])
def test_head_dims(device, seed, D):
    q, k = inputs(device, 17, 17, D=D, B=1)
    assert_right(q, k, fast_lse(q, k), {})


@pytest.mark.parametrize(("T_q", "T_k"), [(1, 1), (1, 200), (65, 30), (3, 129)])
def test_lengths(device, seed, T_q, T_k):
    """Also T_q > T_k: the first queries see no key, and their weights are 0."""
    q, k = inputs(device, T_q, T_k)
    ours, _ = assert_right(q, k, fast_lse(q, k), {})
    assert (ours[:, :, : max(0, T_q - T_k)] == 0).all()


@pytest.mark.parametrize(
    ("heads", "rows"),
    [
        (None, slice(-1, None)),
        ([2], None),
        ([0, 2], slice(3, 60, 7)),
        ([3, 1, -4, 0, 0, 2], slice(None, -65)),
        ([1], slice(1000, None)),
        (None, slice(-1000, 1)),
    ],
)
def test_chosen_heads_and_rows_are_those_of_the_whole(device, seed, heads, rows):
    q, k = inputs(device, 70, 130, H=4, H_kv=2)
    lse = reference.flash_attention(q, k, k, window=50, return_lse=True)[1]
    ours = attention_weights(q, k, lse, heads=heads, rows=rows, window=50)
    whole = attention_weights(q, k, lse, window=50)
    whole = whole if heads is None else whole[:, heads]
    assert torch.equal(ours, whole if rows is None else whole[:, :, rows])
    (exact,) = exactly(lambda q, k: through_lse(q, k, window=50), q, k)
    assert_within_budget("whole", attention_weights(q, k, lse, window=50), through_lse(q, k, window=50), exact)


@pytest.mark.parametrize("selection", [{}, {"heads": []}, {"rows": slice(4, 2)}])
@pytest.mark.parametrize(
    "sizes", [{"T_q": 0}, {"T_k": 0}, {"B": 0}, {"H": 0, "H_kv": 0}, {"H": 0, "H_kv": 2}, {}], ids=str
)
def test_nothing_to_write(device, sizes, selection):
    """Nothing is launched, and every gradient that has elements is 0."""
    sizes = {"T_q": 5, "T_k": 5, "B": 2, "H": 2, "H_kv": 1, **sizes}
    q, k = (x.requires_grad_() for x in inputs(device, **sizes))
    lse = torch.zeros(sizes["B"], sizes["H"], sizes["T_q"], device=device, requires_grad=True)
    ours = attention_weights(q, k, lse, **selection)
    assert ours.shape == reference.attention_weights(q, k, **selection).shape
    if ours.numel() == 0:
        ours.sum().backward()
        assert [x.grad.shape for x in (q, k, lse)] == [x.shape for x in (q, k, lse)]
        assert not any(x.grad.any() for x in (q, k, lse))


def test_any_strides(device, seed):
    """Packed projections, an lse that is a view, a broadcast key, documents shared by the batch."""
    packed = torch.randn(2, 50, 3, 2, 20, device=device)  # (B, T, 3, H, D)
    q, k, _ = packed.permute(2, 0, 3, 1, 4)
    k = k[:, :1, :, :1].expand(-1, 2, -1, 20)
    ids = (torch.arange(50, device=device) // 20)[None]
    lse = fast_lse(q, k, document_ids=ids.expand(2, -1)).transpose(1, 2).contiguous().transpose(1, 2)
    assert_right(q, k, lse, {"document_ids": ids})
    assert_right(q, k, lse, {"document_ids": torch.stack([ids, ids], dim=-1)[..., 0].expand(2, -1)})


def test_strided_lengths(device, seed):
    """Lengths that are a column of a larger tensor: every other number belongs to somebody else."""
    q, k = inputs(device, 40, 40)
    columns = torch.tensor([[30, 5], [40, 9]], device=device)
    options = {"key_lengths": columns[:, 0], "key_starts": columns[:, 1]}
    dense = {name: x.contiguous() for name, x in options.items()}
    lse = fast_lse(q, k, **dense)
    assert torch.equal(attention_weights(q, k, lse, **options), attention_weights(q, k, lse, **dense))


def test_offsets_beyond_2_to_the_31(device, seed):
    """Rows and heads 2^30 elements apart: the storage is reserved, and but a few pages of it are touched."""
    if device.type == "cuda":
        storage = torch.empty(5 * 2**30, dtype=torch.float16, device=device)
    else:
        storage = torch.from_numpy(np.empty(5 * 2**30, dtype=np.float16))
    q = storage.as_strided((1, 2, 3, 16), (0, 2**31, 2**30, 1))
    k = storage.as_strided((1, 2, 3, 16), (0, 2**31, 2**30, 1), 16)
    q.copy_(torch.randn(q.shape))
    k.copy_(torch.randn(k.shape))
    lse = torch.logsumexp((q.double() @ k.double().transpose(2, 3)) / 4, dim=-1).float()
    assert_right(q.clone(), k.clone(), lse, {"causal": False})
    ours = attention_weights(q, k, lse, causal=False)
    assert torch.equal(ours, attention_weights(q.clone(), k.clone(), lse, causal=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "rows"), [(None, None), ([3, 0, 3], slice(2, 30, 3))])
def test_gradients_through_weights_and_lse(device, seed, dtype, heads, rows):
    """A loss on the weights: its gradient runs through q, k and, in flash_attention's backward, through lse."""
    q, k = inputs(device, 33, 40, B=1, H=4, H_kv=2, dtype=dtype)
    mix = torch.randn_like(reference.attention_weights(q, k, heads=heads, rows=rows), dtype=torch.float32)

    def gradients(weights_of, q, k, mix):
        weights = weights_of(q, k)
        return torch.autograd.grad(weights, (q, k), mix.to(weights.dtype))

    def plain(q, k):
        return reference.attention_weights(q, k, heads=heads, rows=rows)

    q, k = q.requires_grad_(), k.requires_grad_()
    ours = gradients(lambda q, k: attention_weights(q, k, fast_lse(q, k), heads=heads, rows=rows), q, k, mix)
    torchs, exact = gradients(plain, q, k, mix), exactly(functools.partial(gradients, plain), q, k, mix)
    for name, a, b, c in zip("qk", ours, torchs, exact):
        assert_within_budget(f"d{name}", a, b, c, factor=GRADIENT)


def test_gradient_of_each_argument_alone(device, seed):
    q, k = inputs(device, 9, 9)
    lse = fast_lse(q, k)
    together = [x.detach().requires_grad_() for x in (q, k, lse)]
    attention_weights(*together).square().sum().backward()
    for i, name in enumerate(("q", "k", "lse")):
        alone = [x.detach().requires_grad_(i == n) for n, x in enumerate((q, k, lse))]
        attention_weights(*alone).square().sum().backward()
        assert torch.equal(alone[i].grad, together[i].grad), name
        assert all(x.grad is None for n, x in enumerate(alone) if n != i)


def test_same_bits_every_time(device, seed):
    q, k = inputs(device, 40, 40, dtype=torch.float16)
    lse = fast_lse(q, k)
    first = attention_weights(q, k, lse)
    assert all(torch.equal(first, attention_weights(q, k, lse)) for _ in range(5))


def test_nan_stays_in_the_rows_it_touches(device, seed):
    q, k = inputs(device, 20, 20, B=1, H_kv=2)
    q[0, 0, 3, 5] = float("nan")
    ours = attention_weights(q, k, fast_lse(q, k))
    touched = ours.isnan().any(dim=-1)[0]
    assert touched[0, 3]
    assert touched.sum() == 1


def test_autocast_is_that_of_flash_attention(device, seed):
    q, k = inputs(device, 20, 20)
    with torch.autocast(device.type, torch.bfloat16):
        ours = attention_weights(q, k, fast_lse(q, k))
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, attention_weights(q.bfloat16(), k.bfloat16(), fast_lse(q.bfloat16(), k.bfloat16())))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"q": torch.float64}, "q is torch.float64, and the kernels take"),
        ({"k": torch.float64}, "k is torch.float64, and the kernels take"),
        ({"q": torch.int32, "k": torch.int32}, "q is torch.int32, and the kernels take"),
    ],
)
def test_autocast_leaves_other_dtypes_to_be_refused(device, changes, words):
    q, k = inputs(device, 5, 5)
    tensors = {"q": q, "k": k}
    tensors |= {name: tensors[name].to(dtype) for name, dtype in changes.items()}
    lse = torch.zeros(q.shape[:3], device=device)
    with torch.autocast(device.type, torch.bfloat16), pytest.raises(TypeError, match=f"attention_weights: {words}"):
        attention_weights(**tensors, lse=lse)


def test_backward_is_the_same_inside_of_autocast(device, seed):
    """Where backward() is called rounds nothing: the products are float32's."""
    q, k = inputs(device, 20, 20)
    q, k, lse = (x.detach().requires_grad_() for x in (q, k, fast_lse(q, k)))
    loss = attention_weights(q, k, lse).square().sum()
    expected = torch.autograd.grad(loss, (q, k, lse), retain_graph=True)
    with torch.autocast(device.type, torch.bfloat16):
        ours = torch.autograd.grad(loss, (q, k, lse))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


@pytest.mark.parametrize("rows", [lambda T: slice(-T // 2, None), lambda T: slice(T // 3, T - 2, T // 8)])
def test_symbolic_rows_compile(device, seed, rows):
    torch._dynamo.reset()

    def chosen(q, k, lse):
        return attention_weights(q, k, lse, rows=rows(q.shape[2]))

    compiled = torch.compile(chosen, backend="aot_eager", fullgraph=True, dynamic=True)
    for T in (20, 33):
        q, k = inputs(device, T, T)
        lse = fast_lse(q, k)
        torch.testing.assert_close(compiled(q, k, lse), attention_weights(q, k, lse)[:, :, rows(T)])


def test_rows_by_whatever_is_an_integer(device, seed):
    q, k = inputs(device, 9, 9)
    lse = fast_lse(q, k)
    ours = attention_weights(q, k, lse, rows=slice(np.int64(1), np.int32(-1), np.uint8(2)))
    assert torch.equal(ours, attention_weights(q, k, lse, rows=slice(1, -1, 2)))


def test_one_launch_for_each_progression_of_heads():
    assert launch.progressions(list(range(12))) == [(0, 1, 12)]
    assert launch.progressions([1, 3, 5, 4]) == [(1, 2, 3), (4, 0, 1)]
    assert launch.progressions([5, 5]) == [(5, 0, 2)]
    assert launch.progressions([]) == []


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.float64}, TypeError, "q is torch.float64, and the kernels take"),
        ({"k": torch.float16}, TypeError, "q and k must have one dtype, got q torch.float32, k torch.float16"),
        ({"lse": torch.float16}, TypeError, "lse must be float32"),
        ({"q": (2, 4, 9)}, ValueError, "q must be .B, heads, T, head_dim."),
        ({"k": (2, 2, 9, 19)}, ValueError, "k has head_dim 19, but q has head_dim 20"),
        ({"k": (1, 2, 9, 20)}, ValueError, "k has batch size 1, but q has 2"),
        ({"k": (2, 3, 9, 20)}, ValueError, "q's heads must be a multiple of k's, got q 4 and k 3"),
        ({"lse": (2, 4, 8)}, ValueError, "lse must be"),
        ({"heads": [4]}, ValueError, "heads must lie in"),
        ({"window": 0}, ValueError, "window must be"),
        ({"rows": 3}, TypeError, "rows must be a slice"),
        ({"rows": slice(None, None, -1)}, ValueError, "positive step"),
        ({"rows": slice(0.5, None)}, TypeError, "rows must be a slice of ints"),
        ({"rows": slice(torch.tensor(1), None)}, TypeError, "rows must be a slice of ints"),
        ({"key_lengths": torch.ones(3, dtype=torch.int32)}, ValueError, "key_lengths must be"),
        ({"key_starts": torch.ones(2)}, TypeError, "key_starts must hold integers"),
        ({"document_ids": torch.zeros(2, 8, dtype=torch.int32)}, ValueError, "document_ids must be"),
        (
            {"document_ids": torch.zeros(2, 9, dtype=torch.int32), "cu_seqlens": torch.zeros(2)},
            ValueError,
            "not both",
        ),
        ({"cu_seqlens": torch.tensor([0, 9])}, TypeError, "cu_seqlens must be int32"),
        ({"cu_seqlens": torch.tensor([0, 9], dtype=torch.uint8)}, TypeError, "cu_seqlens must be int32"),
        ({"cu_seqlens": torch.tensor([0, 9], dtype=torch.int32)}, ValueError, "B = 1; got B = 2"),
    ],
)
def test_bad_input_names_the_argument(device, change, error, words):
    arguments = {"q": torch.zeros(2, 4, 9, 20), "k": torch.zeros(2, 2, 9, 20), "lse": torch.zeros(2, 4, 9)}
    for name, value in change.items():
        if isinstance(value, torch.dtype):
            value = arguments[name].to(value)
        arguments[name] = torch.zeros(value) if isinstance(value, tuple) else value
    arguments = {n: x.to(device) if torch.is_tensor(x) else x for n, x in arguments.items()}
    q, k, lse = (arguments.pop(name) for name in ("q", "k", "lse"))
    with pytest.raises(error, match=f"attention_weights: .*{words}"):
        attention_weights(q, k, lse, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what a CPU tensor is told")
def test_a_cpu_without_the_interpreter_is_told_the_way_out(monkeypatch):
    monkeypatch.setattr("fastgpt.kernels._runtime.is_interpreting", lambda: False)
    q = torch.zeros(1, 1, 2, 16)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        attention_weights(q, q, torch.zeros(1, 1, 2))


@pytest.mark.parametrize("values", [[[0, 9]], [0, 8], [0, 5, 3, 9], [9]])
def test_packed_documents_are_checked_as_in_flash_attention(device, values):
    """What the forward refuses has no weights either."""
    q, lse = torch.zeros(1, 2, 9, 20, device=device), torch.zeros(1, 2, 9, device=device)
    cu_seqlens = torch.tensor(values, dtype=torch.int32)  # whose values are looked at on a CPU only
    for name, call in (
        ("flash_attention", lambda: flash_attention(q, q, q, cu_seqlens=cu_seqlens)),
        ("attention_weights", lambda: attention_weights(q, q, lse, cu_seqlens=cu_seqlens)),
    ):
        with pytest.raises(ValueError, match=f"{name}: cu_seqlens must"):
            call()
