"""The tables: complete, within the machine's limits, and conservative about what they claim to know."""

import itertools

import pytest
import torch

from fastgpt.kernels._runtime import KNOWN_TARGETS
from fastgpt.kernels.ffn import tiles

ROLES = ("up", "dgelu")


@pytest.mark.parametrize("arch", KNOWN_TARGETS)
def test_every_gpu_has_a_tile_for_every_product(arch):
    target = KNOWN_TARGETS[arch]
    for dtype, tma, role in itertools.product((torch.float16, torch.bfloat16, torch.float32), (False, True), ROLES):
        if tma and not target.has_tma:
            continue
        for precision in ("ieee", "tf32") if target.backend == "cuda" else ("ieee",):
            tile = tiles.product_tile(target, tiles.kind_of(dtype, precision, tma), role)
            assert tile.block_n % tile.parts == 0
            assert tile.block_n // tile.parts >= 16
            for size in (tile.block_m, tile.block_n, tile.block_k, tile.num_warps):
                assert size & (size - 1) == 0


def test_auto_uses_triton_only_where_the_estimate_is_in_its_favour():
    chosen = {
        (arch, kind, role, depth)
        for arch, kind, role, depth in itertools.product(
            KNOWN_TARGETS, ("half-tma", "half", "tf32", "ieee"), ROLES, (256, 768, 1024, 1600, 4096)
        )
        if tiles.runs_in_triton("auto", KNOWN_TARGETS[arch], kind, role, depth)
    }
    assert chosen == {("sm_90", "half-tma", "dgelu", d) for d in (256, 768, 1024)}
    assert tiles.runs_in_triton("triton", KNOWN_TARGETS["sm_80"], "ieee", "dgelu", 4096)
    assert not tiles.runs_in_triton("cublas", KNOWN_TARGETS["sm_90"], "half-tma", "up", 256)


@pytest.mark.parametrize(("M", "d_hidden"), [(1, 8), (16384, 1024), (16384, 4096), (8192, 6400), (1 << 20, 100)])
def test_chunks_cover_everything_once(M, d_hidden):
    for chunks, n in ((tiles.token_chunks(M, d_hidden), M), (tiles.hidden_chunks(M, d_hidden), d_hidden)):
        assert [i for begin, end in chunks for i in range(begin, end)] == list(range(n))
        assert all(begin % 128 == 0 for begin, _ in chunks)  # so that TMA's alignment survives
        assert (len(chunks) > 1) == (M * d_hidden >= 1 << 25 and n > 128)
