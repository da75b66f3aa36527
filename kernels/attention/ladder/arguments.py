"""What all rungs of the ladder check of q, k and v."""

from __future__ import annotations

from torch import Tensor

from ..._checks import check_dense, wrong_dtype
from ...support import KERNEL_DTYPES, check_launchable

HEAD_DIMS = (16, 32, 64, 128)  # what the two rungs in Triton take: tiles have sides that are powers of two


def check(rung: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    """B, H, T, D of q, k and v (B, H, T, D).

    Raises:
        TypeError: no dense tensors, or of different dtypes.
        ValueError: another number of dimensions, different shapes or devices, or no elements.
    """
    check_dense(rung, 3, q=q, k=k, v=v)
    if q.ndim != 4 or not q.numel():
        need = "expected (B, H, T, D), each at least 1; for one head use q[None, None]"
        raise ValueError(f"{rung}: q has shape {tuple(q.shape)}, {need}")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            need = f"expected that of q, {tuple(q.shape)}; the ladder knows no other lengths and no grouped heads"
            raise ValueError(f"{rung}: {name} has shape {tuple(x.shape)}, {need}")
        if x.dtype != q.dtype:
            raise TypeError(f"{rung}: {name} is {x.dtype} and q {q.dtype}; convert one by .to()")
        if x.device != q.device:
            raise ValueError(f"{rung}: {name} is on {x.device} and q on {q.device}; move them together")
    B, H, T, D = q.shape
    return B, H, T, D


def check_kernel(rung: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    """As `check`, and for a kernel of the ladder: dtype, head dimension, and a machine that can run it.

    Raises:
        RuntimeError: no Triton, a CPU without the interpreter, or a GPU that is too old.
    """
    B, H, T, D = check(rung, q, k, v)
    if q.dtype not in KERNEL_DTYPES:
        raise wrong_dtype("flash_attention", "q", q.dtype)
    if D not in HEAD_DIMS:
        need = f"the ladder's kernels take {', '.join(map(str, HEAD_DIMS))}; flash_attention takes all up to 256"
        raise ValueError(f"{rung}: q has head dimension {D}, {need}")
    check_launchable(rung, q=q, k=k, v=v)
    return B, H, T, D


def block_of(q: Tensor) -> int:
    """Queries, and keys, of a kernel's tile: 64; 32 where a tile of 64 rows would fill the memory of most chips."""
    return 64 if q.shape[-1] * q.element_size() <= 256 else 32
