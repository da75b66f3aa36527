"""What one multiprocessor of each NVIDIA architecture does in a cycle, and the board whose peak we quote.

Sources, by the letter in each entry:
  [W] the architecture's whitepaper: Ampere GA100, GA102, Ada AD102, Hopper H100, Blackwell, RTX Blackwell (nvidia.com)
  [D] the board's data sheet: dense tensor peak without sparsity, memory bandwidth (nvidia.com)
  [C] CUDA C++ Programming Guide, "Arithmetic Instructions": results per cycle and multiprocessor
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgpt.kernels import _runtime

SUSTAINED = 1.77 / 1.83  # of the boost clock: what our kernels ran at on an H200 (calibration.py)


@dataclass(frozen=True)
class Machine:
    """Rates per SM and cycle at `clock`, Hz. Peaks are those of `board`."""

    board: str
    clock: float  # boost, Hz: tensor_flop * clock * SMs is the data sheet's dense 16-bit peak
    sms: int
    tensor_flop: int  # dense bfloat16 or float16 with float32 accumulation
    fma_lanes: int  # float32 multiply-adds
    alu_lanes: int  # integer, compare, select, minimum and maximum, conversion
    mufu_lanes: int  # exp2, log2, reciprocal, square root, tanh
    shared_bytes: int
    hbm: float  # bytes per second
    l2: float  # bytes per second, all SMs reading
    sources: str

    @property
    def peak(self) -> float:
        """FLOP/s of the tensor cores, dense, 16-bit."""
        return self.tensor_flop * self.clock * self.sms

    @property
    def sustained_clock(self) -> float:
        """Hz, under load."""
        return self.clock * SUSTAINED


def _machine(arch: str, board: str, clock: float, tensor: int, fma: int, hbm: float, l2: float, src: str) -> Machine:
    return Machine(board, clock, _runtime.KNOWN_TARGETS[arch].num_sms, tensor, fma, 64, 16, 128, hbm, l2, src)


# L2 rates: 5.5 TB/s is what loads were published to reach on an H100; the others are 64 bytes per SM and cycle, halved.
MACHINES = {
    "sm_80": _machine("sm_80", "A100 SXM", 1.41e9, 2048, 64, 2.04e12, 4.0e12, "W, D, C"),
    "sm_86": _machine("sm_86", "A40", 1.74e9, 1024, 128, 0.70e12, 2.5e12, "W, D, C"),
    "sm_89": _machine("sm_89", "L40S", 2.52e9, 1024, 128, 0.86e12, 5.0e12, "W, D, C"),
    "sm_90": _machine("sm_90", "H100 SXM", 1.83e9, 4096, 128, 3.35e12, 5.5e12, "W, D, C"),
    "sm_100": _machine("sm_100", "B200", 1.85e9, 8192, 128, 8.0e12, 10.0e12, "W, D, C"),
    "sm_120": _machine("sm_120", "RTX PRO 6000", 2.60e9, 1024, 128, 1.79e12, 8.0e12, "W, D, C"),
}
