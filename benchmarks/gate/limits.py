"""What one multiprocessor of each architecture holds, and so how many CTAs of a kernel fit on it.

Sources, by the letter in each entry:
  [C] CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per Compute Capability"
      (docs.nvidia.com/cuda/cuda-c-programming-guide)
  [T] the tuning guides for Ampere, Ada, Hopper and Blackwell, "Occupancy" and "Unified Shared Memory/L1/Texture
      Cache": a CTA's limit is 1 KiB below the SM's, because the system reserves 1 KiB per CTA (docs.nvidia.com/cuda)
  [A] AMD GPU hardware specifications: LDS and VGPR file per compute unit
      (rocm.docs.amd.com/en/latest/reference/gpu-specs)
  [L] LLVM, User Guide for AMDGPU Backend: 8 waves per SIMD and 512 unified VGPRs per lane, allocated by 8, on gfx90a
      and later; 4 SIMDs per compute unit (llvm.org/docs/AMDGPUUsage)
"""

from __future__ import annotations

from dataclasses import dataclass

KiB = 1024


@dataclass(frozen=True)
class Limits:
    """One streaming multiprocessor (compute unit on AMD); shared memory in bytes, registers of 32 bits."""

    shared_per_cta: int
    shared_per_sm: int
    shared_reserved: int  # by the system, for each CTA
    warps: int
    ctas: int
    registers: int
    register_granule: int  # a warp's registers are rounded up to a multiple of this
    warp_size: int
    sources: str
    tensor_memory: int = 0  # columns, of tcgen05


def _nvidia(shared_kib: int, warps: int, ctas: int, tensor_memory: int = 0) -> Limits:
    shared = (shared_kib - 1) * KiB, shared_kib * KiB, 1 * KiB
    return Limits(*shared, warps, ctas, 64 * KiB, 256, 32, "C, T", tensor_memory)


def _amd(lds_kib: int) -> Limits:
    # A CU's 512 KiB of VGPRs are 4 SIMDs x 512 registers x 64 lanes. A CU holds at most 16 groups of several waves.
    return Limits(lds_kib * KiB, lds_kib * KiB, 0, 4 * 8, 16, 4 * 512 * 64, 8 * 64, 64, "A, L")


LIMITS = {
    "sm_80": _nvidia(164, warps=64, ctas=32),
    "sm_86": _nvidia(100, warps=48, ctas=16),
    "sm_89": _nvidia(100, warps=48, ctas=24),
    "sm_90": _nvidia(228, warps=64, ctas=32),
    "sm_100": _nvidia(228, warps=64, ctas=32, tensor_memory=512),
    "sm_120": _nvidia(100, warps=48, ctas=24),
    "gfx942": _amd(64),
    "gfx950": _amd(160),
}


def ctas_per_sm(arch: str, *, registers: int, warps: int, shared_bytes: int) -> int:
    """How many CTAs of `warps` warps fit on one SM at once; 0 if not even one does."""
    limits = LIMITS[arch]
    per_warp = -(-max(registers, 1) * limits.warp_size // limits.register_granule) * limits.register_granule
    # Registers are split evenly over the SM's four schedulers, and a warp cannot straddle two.
    warps_by_registers = 4 * (limits.registers // 4 // per_warp)
    by_shared = limits.shared_per_sm // max(shared_bytes + limits.shared_reserved, 1)
    if shared_bytes > limits.shared_per_cta:
        return 0
    return min(limits.ctas, limits.warps // warps, warps_by_registers // warps, by_shared)
