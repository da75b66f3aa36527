"""What a call costs beside the bytes: launches, allocations, saved tensors; and how tiles are chosen."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt.kernels import _runtime, add_layer_norm, layer_norm

from .cases import DTYPES, bf16, count_launches, fp32, parameters

triton = pytest.importorskip("triton")

from fastgpt.kernels.layer_norm import launch, tiles  # noqa: E402

GPUS = [target for target in _runtime.KNOWN_TARGETS.values() if target.backend == "cuda"]
FACTORIES = (
    "aten::empty",
    "aten::new_empty",
    "aten::zeros",
    "aten::new_zeros",
    "aten::clone",
    "aten::full",
    "aten::_to",
)


class Allocations(TorchDispatchMode):
    """Bytes of every tensor made inside the block."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.name().startswith(FACTORIES) and out.numel():
            self.bytes.append(out.numel() * out.element_size())
        return out


@pytest.mark.parametrize(
    ("N", "forward", "backward"),
    [
        (64, ["layer_norm_forward_kernel"], ["layer_norm_backward_kernel", "sum_partials_kernel"]),
        (8193, ["layer_norm_forward_kernel"], ["layer_norm_backward_held_kernel", "sum_partials_kernel"]),
        (12289, ["layer_norm_forward_kernel"], ["layer_norm_backward_kernel", "layer_norm_dweight_long_kernel"]),
        (33000, ["layer_norm_forward_held_kernel"], ["layer_norm_dh_long_kernel", "layer_norm_dweight_long_kernel"]),
        (65537, ["layer_norm_forward_long_kernel"], ["layer_norm_dh_long_kernel", "layer_norm_dweight_long_kernel"]),
    ],
)
def test_launches(device, seed, monkeypatch, N, forward, backward):
    x, residual = (torch.randn(2, N, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (t.requires_grad_() for t in parameters(N, fp32, device))
    counted = count_launches(monkeypatch)
    y = layer_norm(x, N, weight, bias)
    assert counted.names == forward
    counted.names.clear()
    y.sum().backward()
    assert counted.names == backward
    if N > 12288:
        return
    counted.names.clear()
    normed, new = add_layer_norm(x, residual, weight, bias, dropout_p=0.1)
    assert counted.names == forward
    counted.names.clear()
    (normed.sum() + new.sum()).backward()
    assert len(counted.names) == 2


@pytest.mark.parametrize(
    "wanted", ["x", "weight", "bias", "weight bias", "x weight", "x bias", "x residual", "residual"]
)
@pytest.mark.parametrize("N", [40, 8200, 12300])
def test_only_the_gradients_asked_for(device, seed, monkeypatch, wanted, N):
    tensors = {"x": torch.randn(2, N, device=device), "residual": torch.randn(2, N, device=device)}
    tensors["weight"], tensors["bias"] = parameters(N, fp32, device)
    if "residual" not in wanted:
        del tensors["residual"]
    function = add_layer_norm if "residual" in wanted else layer_norm
    every = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    some = {name: t.clone().requires_grad_(name in wanted) for name, t in tensors.items()}
    made = []
    original = launch.backward
    monkeypatch.setattr(launch, "backward", lambda *args: made.append(original(*args)) or made[-1])
    counted = count_launches(monkeypatch)
    for case in (every, some):
        counted.names.clear()
        out = function(**case)
        out = out[0] if isinstance(out, tuple) else out
        out.square().sum().backward()
    assert [name for name, t in some.items() if t.grad is not None] == [name for name in tensors if name in wanted]
    for name in wanted.split():
        assert torch.equal(some[name].grad, every[name].grad)
    sums, rows = "weight" in wanted or "bias" in wanted, "x" in wanted or "residual" in wanted
    last = "sum_partials_kernel" if N < 12288 else "layer_norm_dweight_long_kernel"
    first = "layer_norm_backward_held_kernel" if N == 8200 else "layer_norm_backward_kernel"
    # Up to 12288 the kernel of the rows also sums the weight gradients; beyond, each runs only if it is asked for.
    assert counted.names[1:] == [first] * (rows or N < 12288) + [last] * sums
    assert sum(t is not None for t in made[-1]) == len(wanted.split()) - (wanted == "x residual")


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_allocated_but_outputs_statistics_and_partial_sums(device, seed, dtype):
    M, N, size = 6, 64, torch.empty(0, dtype=dtype).element_size()
    x, residual = torch.randn(2, M, N).to(device, dtype)
    weight, bias = parameters(N, dtype, device)
    with Allocations() as seen:
        y, _, stats = launch.forward(x, None, weight, bias, None, 1, 1e-5, 0.0, dtype)
    assert sorted(seen.bytes) == sorted([M * N * size, 2 * M * 4])
    with Allocations() as seen:
        launch.forward(x, residual, weight, bias, None, 1, 1e-5, 0.0, dtype)
    assert sorted(seen.bytes) == sorted([M * N * size, M * N * size, 2 * M * 4])
    with Allocations() as seen:
        launch.backward(y, None, x, weight, stats, None, 1, 0.0, dtype, None, dtype, dtype)
    tile = tiles.backward_tile(N, (size, size), False, _runtime.target_of(x))
    partials = 2 * triton.cdiv(M, tile.block_m) * N * 4
    assert sorted(seen.bytes) == sorted([M * N * size, partials, N * size, N * size])


def test_saves_nothing_but_its_input_and_two_numbers_a_row(device, seed):
    x = torch.randn(6, 64, device=device).to(bf16).requires_grad_()
    weight, bias = (t.requires_grad_() for t in parameters(64, fp32, device))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer_norm(x, 64, weight, bias)
    assert sorted(t.numel() for t in saved) == [2 * 6, 64, 6 * 64]
    assert {t.data_ptr() for t in saved} > {x.data_ptr(), weight.data_ptr()}
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _, new_residual = add_layer_norm(x, x.detach(), weight, bias, dropout_p=0.1)
    assert sorted(t.numel() for t in saved) == [2, 2 * 6, 64, 6 * 64]  # the seed, too
    assert new_residual.data_ptr() in {t.data_ptr() for t in saved}


@pytest.mark.parametrize(
    "N", [1, 7, 64, 100, 768, 1024, 1600, 2048, 4096, 8192, 8193, 16384, 32768, 32769, 65536, 10**6]
)
@pytest.mark.parametrize("itemsizes", [(2, 2), (4, 4), (2, 4, 4), (2, 2, 2)])
@pytest.mark.parametrize("dropout", [False, True])
def test_tile_rules(N, itemsizes, dropout):
    forward = tiles.forward_tile(N, itemsizes[1:], dropout, GPUS[0])
    for target in _runtime.KNOWN_TARGETS.values():
        threads = 64 if target.backend == "hip" else 32
        assert tiles.forward_tile(N, itemsizes[1:], dropout, target).num_warps * threads <= 1024
        assert tiles.backward_tile(N, itemsizes, dropout, target).num_warps * threads <= 1024
    found = {tiles.backward_tile(N, itemsizes, dropout, target) for target in GPUS}
    assert len({(t.block_m, t.block_n, t.num_warps, t.programs, t.long) for t in found}) == 1, "bits depend on the GPU"
    for tile in (forward, *found):
        for size in (tile.block_m, tile.block_n, tile.num_warps):
            assert size & (size - 1) == 0
        assert tile.num_warps <= 32
        assert tile.held or tile.long or N <= tile.block_n < 2 * max(N, 16)
    assert forward.long == ((65536 if len(itemsizes) == 2 else 16384 if dropout else 32768) < N)
    widest = max(itemsizes)
    if N * widest >= 4096 and not forward.held and not forward.long:  # whole 16-byte loads for every thread
        assert forward.block_m * forward.block_n * min(itemsizes) >= 16 * 32 * forward.num_warps


def test_small_rows_share_a_program():
    assert [tiles.forward_tile(N, (2,), False, GPUS[0]).block_m for N in (64, 256, 512, 768, 1024, 1600)] == [
        16,
        8,
        4,
        2,
        2,
        1,
    ]


def test_programs_do_not_depend_on_the_number_of_multiprocessors():
    few, many = (_runtime.Target("cuda", "sm_90", count) for count in (16, 132))
    for N in (768, 4096, 8192):
        assert tiles.backward_tile(N, (2, 2), False, few) == tiles.backward_tile(N, (2, 2), False, many)


def test_rows_longer_than_the_kernels_can_number_are_refused():
    x = torch.empty(1, device="meta").expand(3, tiles.LONGEST)
    assert launch.rows_and_columns(x, 1) == (3, tiles.LONGEST)
    with pytest.raises(ValueError, match=r"layer_norm: rows of 2147483648 elements.*reference.layer_norm"):
        launch.rows_and_columns(torch.empty(1, device="meta").expand(3, 2**31), 1)
