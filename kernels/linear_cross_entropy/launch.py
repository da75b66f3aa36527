"""Launch linear + cross-entropy: chunks of rows, the GEMMs around the softmax kernels, and what they need in memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_range
from .._runtime import on_device_of, target_of
from . import scalars, softmax, tiles

# Kernels number rows and columns in 32 bits, and their last tile looks a little past the end.
LARGEST = 2**31 - 2**15


class Settings(NamedTuple):
    """What every row shares: see `fastgpt.kernels.linear_cross_entropy`."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None


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


def linear_forward(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, settings: Settings, num_chunks: int,
    need_dx: bool, need_dweight: bool, need_dbias: bool,
) -> Result:  # fmt: skip
    """Losses of x (N, d) against weight (V, d), and the gradients asked for, a chunk of rows at a time.

    Memory beyond inputs and results: the logits of one chunk (`tiles.rows_per_chunk`), weight in x's dtype if it has
    another (autocast), and without float32 output of the GEMM one (V, d) of x's dtype.
    """
    N, V = x.shape[0], weight.shape[0]
    with on_device_of(x):
        counts = check_targets(target, V, settings.ignore_index)
        losses, stats = x.new_empty(N, dtype=torch.float32), x.new_empty(2, N, dtype=torch.float32)
        grads = _Gradients(x, weight, need_dx, need_dweight, need_dbias)
        for chunk, logits, padded_bias in _chunks(x, grads.weight, bias, num_chunks):
            where = target[chunk], losses[chunk], stats[:, chunk]
            if need_dx or need_dweight or need_dbias:
                _loss_and_gradient(logits, padded_bias, *where, V, settings)
                grads.add(chunk, logits[:, :V])
            else:
                _loss(logits, padded_bias, *where, V, settings)
        return Result(losses, stats, counts, grads.dx, grads.dweight, grads.dbias)


def linear_backward(
    grad_losses: Tensor, grad_lse: Tensor | None, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None,
    stats: Tensor, settings: Settings, num_chunks: int, need_dx: bool, need_dweight: bool, need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dweight, dbias for upstream gradients (N,) of the losses and of lse, making the logits once more."""
    V = weight.shape[0]
    with on_device_of(x):
        grads = _Gradients(x, weight, need_dx, need_dweight, need_dbias)
        for chunk, logits, padded_bias in _chunks(x, grads.weight, bias, num_chunks):
            upstream = grad_losses[chunk], None if grad_lse is None else grad_lse[chunk]
            _gradient(logits, logits, padded_bias, target[chunk], stats[:, chunk], *upstream, V, settings)
            grads.add(chunk, logits[:, :V])
        return grads.dx, grads.dweight.to(weight.dtype), grads.dbias.to(weight.dtype if bias is None else bias.dtype)


def logits_forward(logits: Tensor, target: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """losses, stats and counts (see `Result`) of logits (N, V) with unit column stride."""
    N, V = logits.shape
    with on_device_of(logits):
        counts = check_targets(target, V, settings.ignore_index)
        losses, stats = logits.new_empty(N, dtype=torch.float32), logits.new_empty(2, N, dtype=torch.float32)
        _loss(logits, None, target, losses, stats, V, settings)
        return losses, stats, counts


def logits_backward(
    grad_losses: Tensor, grad_lse: Tensor | None, logits: Tensor, target: Tensor, stats: Tensor, settings: Settings,
    out: Tensor,
) -> None:  # fmt: skip
    """Write dlogits to `out` (N, V), which may be `logits` itself."""
    with on_device_of(logits):
        _gradient(logits, out, None, target, stats, grad_losses, grad_lse, logits.shape[1], settings)


def scale(grad: Tensor, counts: Tensor | None, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient · grad / counts[0], computed in float32, as a new contiguous tensor of `dtype`."""
    out = gradient.new_empty(gradient.shape, dtype=dtype)
    if out.numel():
        block = 2048
        with on_device_of(out):
            scalars.scale_kernel[(-(-out.numel() // block),)](
                grad, counts, gradient, out, out.numel(), block=block, num_warps=4
            )
    return out


def check_targets(target: Tensor, V: int, ignore_index: int) -> Tensor:
    """(2,) int64: how many targets count, and 1 if all of those are in [0, V).

    On CUDA a target out of range trips a device-side assertion, as torch's does: the next synchronisation raises. No
    host sync, and CUDA graphs capture it.

    Raises:
        IndexError: on a CPU (the interpreter), a target out of range.
        ValueError: more rows or classes than the kernels can number.
    """
    for extent, what in ((target.numel(), "rows"), (V, "classes")):
        if extent > LARGEST:
            raise ValueError(
                f"cross-entropy: {extent} {what}, and the kernels number them in 32 bits, up to {LARGEST}; split the "
                "call, or use fastgpt.kernels.reference"
            )
    counts = target.new_empty(2, dtype=torch.int64)
    scalars.count_targets_kernel[(1,)](target, counts, target.numel(), V, ignore_index, block_n=4096, num_warps=8)
    if target.is_cuda:
        torch._assert_async(counts[1], "cross-entropy: a target is neither ignore_index nor in [0, V)")
    elif target.device.type == "cpu" and not counts[1]:
        check_range("cross-entropy", target, V, ignore_index)
    return counts


class _Gradients:
    """dx, dweight and dbias of the chunks so far; dweight and dbias add up in float32."""

    def __init__(self, x: Tensor, weight: Tensor, need_dx: bool, need_dweight: bool, need_dbias: bool) -> None:
        self.x, self.weight = x, weight.to(x.dtype)
        self.dx = x.new_empty(x.shape if need_dx else 0)
        self.dweight = x.new_empty(weight.shape if need_dweight else 0, dtype=torch.float32)
        self.dbias = x.new_empty(weight.shape[0] if need_dbias else 0, dtype=torch.float32)
        self.need = need_dx, need_dweight, need_dbias

    def add(self, chunk: slice, dlogits: Tensor) -> None:
        """dlogits (rows, V): the gradient of the chunk's logits."""
        need_dx, need_dweight, need_dbias = self.need
        x, first = self.x[chunk], chunk.start == 0
        if need_dx:
            torch.mm(dlogits, self.weight, out=self.dx[chunk])
        if need_dweight:
            _matmul_into_float32(self.dweight, dlogits.t(), x, first)
        if need_dbias:
            partial = dlogits.sum(0, dtype=torch.float32)
            self.dbias.copy_(partial) if first else self.dbias.add_(partial)


def _chunks(x: Tensor, weight: Tensor, bias: Tensor | None, num_chunks: int):
    """Yield (slice of rows, their logits (rows, columns >= V) without bias, bias (columns,)); one buffer serves all."""
    N, V = x.shape[0], weight.shape[0]
    columns = tiles.padded_columns(V, x.element_size())
    rows = tiles.rows_per_chunk(N, V, x.element_size(), num_chunks)
    buffer = x.new_empty(rows, columns)
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (0, columns - V))
    for start in range(0, max(N, 1), rows):  # no rows at all: one empty chunk, whose GEMMs set the gradients to 0
        chunk = slice(start, min(start + rows, N))
        logits = buffer[: chunk.stop - chunk.start]
        # Every matmul here writes to `out`: that is what autocast leaves alone.
        torch.mm(x[chunk], weight.t(), out=logits[:, :V])
        yield chunk, logits, bias


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


def _loss(
    logits: Tensor, bias: Tensor | None, target: Tensor, losses: Tensor, stats: Tensor, V: int, settings: Settings
) -> None:
    N, columns = logits.shape
    if not N:
        return
    tile = tiles.part_of_row(columns, logits.element_size(), target_of(logits))
    softmax.loss_kernel[(N,)](
        logits, bias, target, losses, stats[0], stats[1],
        V, columns, logits.stride(0), settings.ignore_index, settings.label_smoothing, settings.z_loss,
        settings.softcap,
        has_smoothing=settings.label_smoothing != 0.0, lanes=tile.lanes, width=tile.width, num_warps=tile.num_warps,
    )  # fmt: skip


def _loss_and_gradient(
    logits: Tensor, bias: Tensor | None, target: Tensor, losses: Tensor, stats: Tensor, V: int, settings: Settings
) -> None:
    N, columns = logits.shape
    if not N:
        return
    tile = tiles.whole_row(columns, logits.element_size(), target_of(logits))
    softmax.loss_and_gradient_kernel[(N,)](
        logits, bias, target, losses, stats[0], stats[1],
        V, columns, logits.stride(0), settings.ignore_index, settings.label_smoothing, settings.z_loss,
        settings.softcap,
        has_smoothing=settings.label_smoothing != 0.0, in_registers=tile.in_registers, lanes=tile.lanes,
        width=tile.width, num_warps=tile.num_warps,
    )  # fmt: skip


def _gradient(
    logits: Tensor, out: Tensor, bias: Tensor | None, target: Tensor, stats: Tensor, grad_losses: Tensor,
    grad_lse: Tensor | None, V: int, settings: Settings,
) -> None:  # fmt: skip
    N, columns = logits.shape
    if not N:
        return
    block_v, num_warps = tiles.part_of_gradient(columns, logits.element_size())
    parts = -(-columns // block_v)
    softmax.gradient_kernel[(N * parts,)](
        logits, out, bias, target, stats[0], stats[1], grad_losses, grad_lse,
        V, columns, parts, logits.stride(0), out.stride(0), grad_losses.stride(0), settings.ignore_index,
        settings.label_smoothing, settings.z_loss, settings.softcap,
        block_v=block_v, num_warps=num_warps,
    )  # fmt: skip
