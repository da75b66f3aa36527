"""Launch linear + cross-entropy: chunks of rows, the GEMMs around the softmax kernels, and what they need in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_range
from .._runtime import cdiv, on_device_of, target_of
from . import tiles
from .arguments import Formula, Work
from .backward import gradient_kernel, scale_kernel
from .forward import count_targets_kernel, loss_and_gradient_kernel, loss_kernel

# Kernels number rows and columns in 32 bits, and their last tile looks a little past the end.
MAX_EXTENT = 2**31 - 2**15


class Rows(NamedTuple):
    """Logits of some rows, (rows, columns): V classes, then padding; the bias (columns,) is yet to be added."""

    logits: Tensor
    bias: Tensor | None
    V: int
    columns: int


class Result(NamedTuple):
    """losses (N,), stats (2, N) = row maximum and log-sum, float32; counts (2,) int64; gradients, empty if not asked.

    The gradients are those of the sum of the losses: `scale` applies the reduction and the upstream gradient.
    """

    losses: Tensor
    stats: Tensor
    counts: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor


# ---- linear_cross_entropy -----------------------------------------------------------------------------------------


def linear_forward(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, formula: Formula, work: Work
) -> Result:
    """Losses of x (N, d) against weight (V, d), and the gradients asked for, a chunk of rows at a time.

    Memory beyond inputs and results: the logits of one chunk (`tiles.rows_per_chunk`), weight in x's dtype if it has
    another (autocast) or V is odd (`_for_gemms`), and without float32 output of the GEMM one (V, d) of x's dtype.
    """
    N, V = x.shape[0], weight.shape[0]
    with on_device_of(x):
        counts = check_targets(target, V, formula.ignore_index)
        losses, stats = x.new_empty(N, dtype=torch.float32), x.new_empty(2, N, dtype=torch.float32)
        grads = _Gradients(x, weight, work)
        for chunk, rows in _chunks(x, grads.weight, V, bias, work.num_chunks):
            where = target[chunk], losses[chunk], stats[:, chunk]
            if grads.any:
                _loss_and_gradient(rows, *where, formula)
                grads.add(chunk, rows.logits)
            else:
                _loss(rows, *where, formula)
        return Result(losses, stats, counts, grads.dx, grads.dweight[:V], grads.dbias[:V])


def linear_backward(
    dlosses: Tensor, dlse: Tensor | None, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None,
    stats: Tensor, formula: Formula, work: Work,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dweight, dbias for upstream gradients (N,) of the losses and of lse, making the logits once more."""
    V = weight.shape[0]
    with on_device_of(x):
        grads = _Gradients(x, weight, work)
        for chunk, rows in _chunks(x, grads.weight, V, bias, work.num_chunks):
            upstream = dlosses[chunk], None if dlse is None else dlse[chunk]
            _gradient(rows, rows.logits, target[chunk], stats[:, chunk], *upstream, formula)
            grads.add(chunk, rows.logits)
        dbias = grads.dbias[:V].to(weight.dtype if bias is None else bias.dtype)
        return grads.dx, grads.dweight[:V].to(weight.dtype), dbias


def scale(dloss: Tensor, counts: Tensor | None, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient · dloss / counts[0], computed in float32, as a new contiguous tensor of `dtype`."""
    block, num_warps = tiles.SCALE
    out = gradient.new_empty(gradient.shape, dtype=dtype)
    if out.numel():
        with on_device_of(out):
            scale_kernel[(cdiv(out.numel(), block),)](
                dloss, counts, gradient, out, out.numel(), BLOCK=block, num_warps=num_warps
            )
    return out


class _Gradients:
    """dx, dweight and dbias of the chunks so far; dweight and dbias add up in float32, and are as long as `weight`."""

    def __init__(self, x: Tensor, weight: Tensor, work: Work) -> None:
        self.x, self.weight, self.work = x, _for_gemms(weight, x.dtype), work
        self.any = work.need_dx or work.need_dweight or work.need_dbias
        self.dx = x.new_empty(x.shape if work.need_dx else 0)
        self.dweight = x.new_empty(self.weight.shape if work.need_dweight else 0, dtype=torch.float32)
        self.dbias = x.new_empty(self.weight.shape[0] if work.need_dbias else 0, dtype=torch.float32)

    def add(self, chunk: slice, dlogits: Tensor) -> None:
        """dlogits (rows, columns): the gradient of the chunk's logits, and of their padding what is finite."""
        x, first = self.x[chunk], chunk.start == 0
        dlogits = dlogits[:, : self.weight.shape[0]]
        if self.work.need_dx:
            torch.mm(dlogits, self.weight, out=self.dx[chunk])
        if self.work.need_dweight:
            _matmul_into_float32(self.dweight, dlogits.t(), x, first)
        if self.work.need_dbias:
            partial = dlogits.sum(0, dtype=torch.float32)
            self.dbias.copy_(partial) if first else self.dbias.add_(partial)


def _for_gemms(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight (V, d) in `dtype`; where a row of logits is no multiple of 16 bytes, with rows of zeros up to whole cache
    lines: cuBLAS then takes GPT-2's 50,257 classes as fast as 50,304, and several times slower without."""
    V, itemsize = weight.shape[0], dtype.itemsize
    if V * itemsize % 16 == 0:
        return weight.to(dtype)
    padded = weight.new_empty(tiles.padded_columns(V, itemsize), weight.shape[1], dtype=dtype)
    padded[:V] = weight
    padded[V:] = 0
    return padded


def _chunks(x: Tensor, weight: Tensor, V: int, bias: Tensor | None, num_chunks: int) -> Iterator[tuple[slice, Rows]]:
    """Yield (slice of rows, their logits without bias, padded to whole cache lines); one buffer serves all.

    weight: of `_for_gemms`, for V classes.
    """
    N = x.shape[0]
    columns = tiles.padded_columns(V, x.element_size())
    step = tiles.rows_per_chunk(N, V, x.element_size(), num_chunks)
    buffer = x.new_empty(step, columns)
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (0, columns - V))
    for start in range(0, max(N, 1), step):  # no rows at all: one empty chunk, whose GEMMs set the gradients to 0
        chunk = slice(start, min(start + step, N))
        logits = buffer[: chunk.stop - chunk.start]
        # Every matmul here writes to `out`: that is what autocast leaves alone.
        torch.mm(x[chunk], weight.t(), out=logits[:, : weight.shape[0]])
        yield chunk, Rows(logits, bias, V, columns)


def _matmul_into_float32(out: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """out = a b (first) or out += a b, accumulated in float32 whatever the dtype of a and b is.

    cuBLAS does both in one pass over `out`. Where torch offers no such call, on a CPU the operands are widened (the
    same result), and on other GPUs each chunk's product is rounded to its dtype before it is added: with k chunks at
    most k roundings of relative size eps / 2, of the same order as the final rounding of the gradient.
    """
    if out.numel() == 0:  # x of no features, for which not all of these calls are made
        return
    if a.dtype == torch.float32 or a.device.type == "cpu":
        a, b = a.float(), b.float()
        torch.mm(a, b, out=out) if first else torch.addmm(out, a, b, out=out)
    elif _has_float32_output(target_of(a).backend, a.dtype, a.device):
        if first:
            torch.mm(a, b, out_dtype=torch.float32, out=out)
        elif not out.is_meta:  # memory is only counted there, and torch 2.11 raises
            torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        product = torch.mm(a, b, out=a.new_empty(out.shape))
        out.copy_(product) if first else out.add_(product)


@functools.cache
def _has_float32_output(backend: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch.addmm adds a product of `dtype` matrices to a float32 matrix; releases differ, so it is tried."""
    if device.type == "meta":
        return backend == "cuda"
    a, out = torch.zeros(16, 16, dtype=dtype, device=device), torch.zeros(16, 16, device=device)
    try:
        torch.addmm(out, a, a, out_dtype=torch.float32, out=out)
    except (RuntimeError, TypeError):
        return False
    return True


# ---- cross_entropy ------------------------------------------------------------------------------------------------


def logits_forward(logits: Tensor, target: Tensor, formula: Formula) -> tuple[Tensor, Tensor, Tensor]:
    """losses, stats and counts (see `Result`) of logits (N, V) with unit column stride."""
    N, V = logits.shape
    with on_device_of(logits):
        counts = check_targets(target, V, formula.ignore_index)
        losses, stats = logits.new_empty(N, dtype=torch.float32), logits.new_empty(2, N, dtype=torch.float32)
        _loss(Rows(logits, None, V, V), target, losses, stats, formula)
        return losses, stats, counts


def logits_backward(
    dlosses: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, stats: Tensor, formula: Formula, out: Tensor
) -> None:
    """Write dlogits to `out` (N, V), which may be `logits` itself."""
    with on_device_of(logits):
        V = logits.shape[1]
        _gradient(Rows(logits, None, V, V), out, target, stats, dlosses, dlse, formula)


# ---- kernels ------------------------------------------------------------------------------------------------------


def check_targets(target: Tensor, V: int, ignore_index: int) -> Tensor:
    """(2,) int64: how many targets count, and 1 if all of those are in [0, V).

    On CUDA a target out of range trips a device-side assertion, as torch's does: the next synchronisation raises. No
    host sync, and CUDA graphs capture it.

    Raises:
        IndexError: on a CPU (the interpreter), a target out of range.
        ValueError: more rows or classes than the kernels can number.
    """
    N = target.numel()
    if N > MAX_EXTENT or V > MAX_EXTENT:
        extent, what = (N, "rows") if N > MAX_EXTENT else (V, "classes")
        raise ValueError(
            f"cross-entropy: {extent} {what}, and the kernels number them in 32 bits, up to {MAX_EXTENT}; split the "
            "call, or use fastgpt.kernels.reference"
        )
    block_n, num_warps = tiles.COUNT
    counts = target.new_empty(2, dtype=torch.int64)
    count_targets_kernel[(1,)](target, counts, N, V, ignore_index, BLOCK_N=block_n, num_warps=num_warps)
    if target.is_cuda:
        torch._assert_async(counts[1], "cross-entropy: a target is neither ignore_index nor in [0, V)")
    elif target.device.type == "cpu" and not counts[1]:
        check_range("cross-entropy", target, V, ignore_index)
    return counts


def _loss(rows: Rows, target: Tensor, losses: Tensor, stats: Tensor, formula: Formula) -> None:
    """`stats` is passed for its first row here and below: a kernel takes the pointer alone, and views take time."""
    logits, bias, V, columns = rows
    if not logits.shape[0]:
        return
    tile = tiles.part_of_row(columns, logits.element_size(), target_of(logits))
    loss_kernel[(logits.shape[0],)](
        logits, bias, target, losses, stats, stats[1], V, columns, logits.stride(0), *formula,
        HAS_SMOOTHING=formula.label_smoothing != 0.0, LANES=tile.lanes, WIDTH=tile.width, num_warps=tile.num_warps,
    )  # fmt: skip


def _loss_and_gradient(rows: Rows, target: Tensor, losses: Tensor, stats: Tensor, formula: Formula) -> None:
    logits, bias, V, columns = rows
    if not logits.shape[0]:
        return
    tile = tiles.whole_row(columns, logits.element_size(), target_of(logits))
    loss_and_gradient_kernel[(logits.shape[0],)](
        logits, bias, target, losses, stats, stats[1], V, columns, logits.stride(0), *formula,
        HAS_SMOOTHING=formula.label_smoothing != 0.0, IN_REGISTERS=tile.in_registers, LANES=tile.lanes,
        WIDTH=tile.width, num_warps=tile.num_warps,
    )  # fmt: skip


def _gradient(
    rows: Rows, out: Tensor, target: Tensor, stats: Tensor, dlosses: Tensor, dlse: Tensor | None, formula: Formula
) -> None:
    logits, bias, V, columns = rows
    if not logits.shape[0]:
        return
    block_v, num_warps = tiles.part_of_gradient(columns, logits.element_size())
    parts = cdiv(columns, block_v)
    gradient_kernel[(logits.shape[0] * parts,)](
        logits, out, bias, target, stats, stats[1], dlosses, dlse,
        V, columns, parts, logits.stride(0), out.stride(0), dlosses.stride(0), *formula,
        BLOCK_V=block_v, num_warps=num_warps,
    )  # fmt: skip
