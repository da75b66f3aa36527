"""Numbers at the ends of their types: starts, lengths, windows, ids, and products of sizes beyond int32."""

from __future__ import annotations

import pytest
import torch

from fastgpt.kernels import _runtime, attention_weights, flash_attention, reference
from fastgpt.kernels.attention import host, launch, masks
from fastgpt.kernels.attention.arguments import FARTHEST
from fastgpt.kernels.attention.hopper import choice

from .support import check, random_qkv

SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T_q", "ids"),
    [
        (16, [0] * 40 + [1] * 40),  # the first key tile holds no query's document
        (16, [0] * 100 + [1] * 200),  # and the first two
        (5, [3] * 70 + [9] * 70 + [5] * 6),  # and the first two, of two documents
        (1, [7] * 129 + [8] * 9),
        (70, [3] * 64 + [2] * 70 + [1] * 20),
        (40, [0, 1] * 40 + [2] * 40),
        (33, list(range(97))),  # each token a document
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_keys_whose_documents_have_no_query(device, seed, T_q, ids, causal):
    qkv = random_qkv(device, 2, 2, T_q, len(ids), 16, H_kv=1)
    document_ids = torch.tensor([ids, ids[::-1]], device=device)
    _, _, _, dk, dv = check(device, qkv, document_ids=document_ids, causal=causal)
    asked = (document_ids[:, :, None] == document_ids[:, None, len(ids) - T_q :]).any(-1)  # (B, T_k)
    assert not asked.all()
    for gradient in (dk, dv):
        assert (gradient.transpose(1, 2)[~asked] == 0.0).all()


@pytest.mark.parametrize("dtype", [*SIGNED, torch.uint8])
def test_document_ids_at_the_ends_of_their_type(device, seed, dtype):
    info, T = torch.iinfo(dtype), 90
    ids = torch.tensor([info.min] * 30 + [info.max] * 30 + [info.min, info.max, 0] * 10, dtype=dtype, device=device)
    check(device, random_qkv(device, 1, 1, 70, T, 16), document_ids=ids[None])
    lse = torch.zeros(1, 1, 70, device=device)
    q, k, _ = random_qkv(device, 1, 1, 70, T, 16)
    got = attention_weights(q, k, lse, document_ids=ids[None]) != 0
    assert torch.equal(got[0].cpu(), reference.attention_mask(70, T, document_ids=ids[None].cpu())[0])


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*SIGNED, *UNSIGNED], ids=str)
def test_starts_and_lengths_of_any_integer_type(device, seed, dtype):
    """Beyond the keys there are none, whatever the number: the same bits as with numbers inside."""
    T, info = 70, torch.iinfo(dtype)
    extremes = [x for x in (info.min, -(2**32), -1, 0, 5, T, T + 1, 2**31 - 1, 2**32 + 9, info.max) if
                info.min <= x <= info.max]  # fmt: skip
    q, k, v = random_qkv(device, len(extremes), 1, T, T, 16)
    given = torch.tensor(extremes, dtype=dtype).to(device)
    inside = torch.tensor([min(max(x, 0), T) for x in extremes], device=device)

    for name in ("key_starts", "key_lengths"):

        def run(numbers, name=name):
            out, lse = flash_attention(q, k, v, return_lse=True, **{name: numbers})
            weights = attention_weights(q, k, lse, rows=slice(-3, None), **{name: numbers})
            return out, lse, weights, *torch.autograd.grad(out.square().sum(), (q, k, v))

        for mine, wanted in zip(run(given), run(inside)):
            assert torch.equal(mine, wanted)
    check(device, (q, k, v), key_starts=inside)
    check(device, (q, k, v), key_lengths=inside)


# --- windows ----------------------------------------------------------------------------------------------------------

FAR = (2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**80)


@pytest.mark.parametrize(("T_q", "T_k"), [(70, 70), (20, 100), (100, 20)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("far", FAR)
def test_a_window_beyond_every_key_is_none(device, seed, T_q, T_k, causal, far):
    q, k, v = random_qkv(device, 1, 1, T_q, T_k, 16)
    same = {
        far: None, (far, -1): None, (-1, far): None, (far, far): None, (far, 3): (-1, 3), (3, far): (3, -1),
        (far, 0): (-1, 0), (0, far): (0, -1),
    }  # fmt: skip

    def run(window):
        out, lse = flash_attention(q, k, v, causal=causal, window=window, return_lse=True)
        return out, lse, attention_weights(q, k, lse, causal=causal, window=window)

    known = {window: run(window) for window in set(same.values())}
    for window, equal in same.items():
        assert all(map(torch.equal, run(window), known[equal])), window
        masks_ = (reference.attention_mask(T_q, T_k, causal=causal, window=w) for w in (window, equal))
        assert torch.equal(*masks_), window


def test_windows_of_any_size_pass_the_dispatcher(device):
    """Its integers end at 2^63; called directly, an operator would take any."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q = torch.empty(1, 2, 30, 16, device=device)
        for window in (*FAR, (FAR[-1], -1), (0, FAR[-1])):
            out, lse = flash_attention(q, q, q, causal=False, window=window, return_lse=True)
            assert out.shape == q.shape
            assert attention_weights(q, q, lse, window=window, rows=slice(0, None, FAR[-1])).shape == (1, 2, 1, 30)


@pytest.mark.parametrize("function", [flash_attention, attention_weights])
@pytest.mark.parametrize(
    ("window", "error"),
    [
        (0, ValueError), (-1, ValueError), (-(2**40), ValueError), ((1, 2, 3), ValueError), ((), ValueError),
        ((4,), ValueError), ((-2, 0), ValueError), ((0, -(2**63)), ValueError), (1.5, TypeError),
        ((1.0, 2), TypeError), ("12", TypeError), (torch.tensor([1, 2]), TypeError),
    ],
)  # fmt: skip
def test_windows_that_say_nothing_are_refused(device, function, window, error):
    q = torch.zeros(1, 1, 4, 16, device=device)
    third = q if function is flash_attention else q[..., 0]
    with pytest.raises(error, match=rf"{function.__name__}: window must be"):
        function(q, q, third, window=window)


@pytest.mark.parametrize("step", [1, 3, 2**31 - 1, 2**31, 2**62, 2**70])
@pytest.mark.parametrize("start", [0, 5, -1])
def test_rows_of_weights_at_any_step(device, seed, step, start):
    q, k, _ = random_qkv(device, 1, 1, 40, 50, 16)
    lse = torch.zeros(1, 1, 40, device=device)
    whole = attention_weights(q, k, lse, window=9)
    wanted = [i for i in range(40)[start:] if (i - range(40)[start]) % step == 0]
    got = attention_weights(q, k, lse, window=9, rows=slice(start, None, step))
    torch.testing.assert_close(got, whole[:, :, wanted], rtol=1e-5, atol=0)  # tiles of other heights, other bits


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_positions_near_the_end_of_int32(interpreter, seed):
    """2^31 keys, one row of memory: the last tiles' positions, bounds and sums must not pass int32."""
    T_k, D = host.MAX_POSITIONS - 3, 16
    k, v = (torch.randn(1, 1, 1, D).expand(1, 1, T_k, D) for _ in "kv")
    q = torch.randn(1, 1, 3, D)
    for arguments in (
        {"window": 40}, {"causal": False, "window": (40, 2**31)}, {"key_starts": torch.tensor([T_k - 50])},
        {"window": 90, "key_lengths": torch.tensor([T_k - 9]), "causal": False},
    ):  # fmt: skip
        out = flash_attention(q, k, v, **arguments)
        torch.testing.assert_close(out, v[:, :, :3], rtol=0, atol=4e-6)  # a mean of equal rows
    with pytest.raises(ValueError, match=r"flash_attention: .* T_q = 4 and T_k = \d+: attend to the keys in parts"):
        flash_attention(torch.randn(1, 1, 4, D), k, v)
    with pytest.raises(ValueError, match=r"attention_weights: .* T_q = 4 "):
        attention_weights(torch.randn(1, 1, 4, D), k, torch.zeros(1, 1, 4))


@pytest.fixture
def recorded(monkeypatch):
    """(kernel, arguments by name, grid) of each launch of portable kernels, on meta tensors and without compiling."""
    pytest.importorskip("triton")
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    launches = []

    def run(kernel, *args, grid, warmup, **kwargs):
        launches.append((kernel.fn.__name__, dict(zip(kernel.arg_names, args)) | kwargs, grid))

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(InterpretedFunction, "run", run)
    monkeypatch.setattr(choice, "setting", "triton")
    with _runtime.pretend(_runtime.KNOWN_TARGETS["sm_90"]):
        yield launches


def launched(recorded, B, H, H_kv, T_q, T_k, D, **masks_):
    q = torch.empty(B, H, T_q, D, dtype=torch.bfloat16, device="meta")
    k, v = (torch.empty(B, H_kv, T_k, D, dtype=torch.bfloat16, device="meta") for _ in "kv")
    tensors = [masks_.get(name) for name in ("key_starts", "key_lengths", "document_ids", "seed")]
    numbers = (D**-0.5, 0.0, True, masks_.get("left", -1), -1)
    out, lse = launch.forward(q, k, v, *tensors, *numbers)
    launch.backward(torch.empty_like(out), None, q, k, v, out, lse, *tensors, *numbers, True, True)
    return {name: (arguments, grid) for name, arguments, grid in recorded}


@pytest.mark.parametrize(
    "shape",
    [
        (1, 64, 64, 1, 2**20, 16), (1, 16, 16, 1, 2**20, 1), (1, 16, 1, 2**20, 1, 1), (8, 8, 8, 2**24, 2**24, 1),
        (1, 1, 1, 2**30 - 2**10, 2**30 - 2**10, 1), (4096, 256, 1, 1, 2**12, 8), (70000, 2, 1, 64, 64, 16),
    ],
)  # fmt: skip
def test_products_of_sizes_fit_the_programs(recorded, shape):
    """What program_tile multiplies is at most the number of programs, and every number of a launch fits in int32."""
    T_q, T_k = shape[3:5]
    found = launched(recorded, *shape, left=2**40)
    for name in ("attention_forward_kernel", "attention_dkdv_kernel", "attention_dq_kernel"):
        arguments, grid = found[name]
        assert grid[1:] == ()
        assert grid[0] < 2**31
        config, heads = arguments["C"], shape[0] * shape[1 if name != "attention_dkdv_kernel" else 2]
        num_tiles = -(-T_k // config.block_n) if name == "attention_dkdv_kernel" else -(-T_q // config.block_m)
        assert num_tiles * heads == grid[0]  # which program_tile divides to find the number of heads
        assert 1 <= arguments["heads_per_section"] * num_tiles <= grid[0]
        for what in ("lower", "upper", "T_q", "T_k"):
            number = 0 if arguments[what] is None else arguments[what]
            assert -(2**31) + T_q + T_k <= number <= 2**31 - 1 - T_q, (name, what)


def test_documents_of_more_sequences_than_a_second_grid_dimension_holds(recorded):
    B, T = 2**17, 300
    ids = torch.empty(B, T, dtype=torch.int32, device="meta")
    arguments, grid = launched(recorded, B, 1, 1, T, T, 1, document_ids=ids)["document_ranges_kernel"]
    assert grid == (B * -(-T // arguments["ROWS"]),)


@pytest.mark.parametrize("height", [64, 48])
def test_document_ranges(interpreter, seed, height):
    """Against a loop; rows without any column say (num_columns, 0, 0)."""
    ids = torch.tensor([[0] * 40 + [1] * 24 + [1] * 64 + [2] * 22 + [3] * 10, [5] * 160])  # (B, T_k)
    for rows, columns in ((160, 160), (20, 160), (160, 20)):
        ranges = torch.full((2, -(-rows // height), 3), -7, dtype=torch.int32)
        masks.document_ranges_kernel[(ranges.shape[0] * ranges.shape[1],)](
            ids, ranges, ids.stride(0), 160 - rows, rows, 160 - columns, columns,
            ROWS=height, BLOCK=64, CHUNK=64,
        )  # fmt: skip
        for b in range(2):
            for tile in range(ranges.shape[1]):
                mine = ids[b, 160 - rows :][tile * height : (tile + 1) * height]
                other = ids[b, 160 - columns :]
                inside = ((other >= mine.min()) & (other <= mine.max())).nonzero().flatten().tolist()
                first, end = (inside[0], inside[-1] + 1) if inside else (columns, 0)
                one = mine.min() == mine.max() and len(inside) == end - first
                assert ranges[b, tile].tolist() == [first, end, int(one)]


def test_what_int32_cannot_count_is_refused(recorded):
    with pytest.raises(ValueError, match=r"flash_attention: \d+ tiles .* split the batch"):
        launched(recorded, 2**20, 2**12, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"backward: 1048575 query heads of T_q = 65536 share one key head"):
        launched(recorded, 1, 2**20 - 1, 1, 2**16, 1, 1)
    assert "attention_dkdv_kernel" not in [name for name, *_ in recorded]


WIDE = {"rows": (0, 0, 2**22, 1), "columns": (0, 0, 1, 2**22)}  # of one (1, 1, T, D) argument, in elements
FLAGGED = {  # arguments that a kernel reaches by offsets inside a tile
    "attention_forward_kernel": ("q", "k", "v"),
    "attention_delta_kernel": ("out", "dout", "dlse"),
    "attention_dkdv_kernel": ("q", "k", "v", "dout"),
    "attention_dq_kernel": ("q", "k", "v", "dout"),
}


@pytest.mark.parametrize("layout", WIDE)
@pytest.mark.parametrize("which", ["q", "k", "v", "out", "dout", "dlse", None])
def test_every_wide_argument_makes_offsets_inside_a_tile_int64(recorded, which, layout):
    """Also those that the neighbours of a test's tensors would not show: one wide argument at a time."""
    T, D = 64, 32

    def tensor(name, *shape):
        stride = WIDE[layout] if name == which else (0, 0, D, 1)
        return torch.empty_strided(shape, stride[: len(shape)], dtype=torch.float16, device="meta")

    q, k, v, out, dout = (tensor(name, 1, 1, T, D) for name in ("q", "k", "v", "out", "dout"))
    dlse = torch.empty_strided((1, 1, T), (0, 0, 2**22 if which == "dlse" else 1), device="meta")
    lse, none, numbers = torch.empty(1, 1, T, device="meta"), (None,) * 4, (0.1, 0.0, True, -1, -1)
    launch.forward(q, k, v, *none, *numbers)
    launch.backward(dout, dlse, q, k, v, out, lse, *none, *numbers, True, True)
    found = {name: arguments.get("IS_WIDE") for name, arguments, _ in recorded}
    found |= {name: arguments["C"].is_wide for name, arguments, _ in recorded if "C" in arguments}
    assert list(found) == list(FLAGGED)
    for name, arguments in FLAGGED.items():
        assert found[name] or which not in arguments, name
    assert which is not None or not any(found.values()), "what is not wide pays nothing"


def test_columns_of_weights_a_whole_tensor_apart(interpreter, seed):
    """head_dim is the slowest dimension of q and k: 64 columns, 2^26 elements apart, end past 2^31."""
    D, T, stride = 64, 3, 2**26
    storage = torch.UntypedStorage(2 * (stride * (D - 1) + T))  # reserved, and touched only where it holds numbers
    wide = torch.empty(0, dtype=torch.float16).set_(storage, 0, (1, 1, T, D), (0, 0, 1, stride))
    wide.copy_(torch.randn(1, 1, T, D))
    for q, k in ((wide, wide), (wide, wide.contiguous()), (wide.contiguous(), wide)):
        lse = reference.flash_attention(q.double(), k.double(), k.double(), return_lse=True)[1].float()
        got = attention_weights(q, k, lse).double()
        torch.testing.assert_close(got, reference.attention_weights(q.double(), k.double()), rtol=0, atol=1e-3)
        out = flash_attention(q, k, wide)
        want = reference.flash_attention(q.double(), k.double(), wide.double())
        torch.testing.assert_close(out.double(), want, rtol=0, atol=4e-3)


def test_strides_of_what_the_backward_is_given(interpreter, seed):
    """A gradient of lse whose rows lie 2^27 elements apart: the last of a tile's 32 is past 2^31."""
    T, stride = 33, 2**27
    storage = torch.UntypedStorage(4 * (stride * (T - 1) + 1))
    dlse = torch.empty(0).set_(storage, 0, (1, 1, T), (0, 0, stride))
    dlse.copy_(torch.randn(1, 1, T))
    q, k, v = random_qkv(interpreter, 1, 1, T, T, 16)
    gradients = [
        torch.autograd.grad(flash_attention(q, k, v, return_lse=True), (q, k), (torch.zeros_like(q), g))
        for g in (dlse, dlse.contiguous())
    ]
    assert all(map(torch.equal, *gradients))
    assert FARTHEST >= host.MAX_POSITIONS


def test_weights_without_a_head_dim_are_refused(device):
    q = torch.zeros(1, 1, 4, 0, device=device)
    with pytest.raises(ValueError, match=r"attention_weights: head_dim of q must be at least 1"):
        attention_weights(q, q, torch.zeros(1, 1, 4, device=device))
