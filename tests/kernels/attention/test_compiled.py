"""What only machine code shows of the attention kernels; the interpreter runs the source, in order."""

from __future__ import annotations

import pytest
import torch
import triton

from benchmarks.gate.offline import offline
from benchmarks.gate.usage import usage
from fastgpt.kernels.attention import launch
from fastgpt.kernels.attention.hopper import choice

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1 leaves nothing to compile in this process"
)


@pytest.fixture(autouse=True)
def portable(monkeypatch):
    monkeypatch.setattr(choice, "setting", "triton")


def compiled(arch: str, *, dtype: torch.dtype, group: int, head_dim: int, T: int, need_dkdv: bool) -> dict:
    """Kernel name -> what was measured of its machine code; the delta pass, and dK/dV if asked for."""

    def meta(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, dout = meta(1, group, T, head_dim), meta(1, group, T, head_dim)
    k, v = meta(1, 1, T, head_dim), meta(1, 1, T, head_dim)
    lse = meta(1, group, T, dtype=torch.float32)
    with offline(arch) as launches:
        launch.backward(
            dout, lse, q, k, v, torch.empty_like(q), lse, None, None, None, None, 0.1, 0.0, True, -1, -1,
            False, need_dkdv,
        )  # fmt: skip
    return {launch.name: usage(launch, arch) for launch in launches}


@pytest.mark.parametrize(("arch", "group"), [("sm_80", 3), ("sm_90", 5)])
def test_prefetches_ask_whether_there_is_a_step(table_tiles, arch, group):
    kernels = compiled(arch, dtype=torch.bfloat16, group=group, head_dim=64, T=2048, need_dkdv=True)
    used = kernels["attention_dkdv_kernel"]
    assert used.unconditional_copies == ()
    assert used.spill_bytes <= 16  # none with Triton 3.7, 12 for the group of 3 by the older assembler of 3.6


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("head_dim", [1, 2, 8, 17, 31, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_lanes_agree_about_delta(arch, head_dim, dtype):
    used = compiled(arch, dtype=dtype, group=1, head_dim=head_dim, T=40, need_dkdv=False)["attention_delta_kernel"]
    if dtype == torch.float32:  # two 16-bit numbers' product is exact, wherever it is rounded
        assert used.contracted_sums == 0
