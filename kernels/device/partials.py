"""Device code: the last step of a sum that many programs made in parts.

Programs that walk over rows each leave a partial sum of a weight's or bias's gradient behind. Adding these up in a
fixed order, instead of atomically as they arrive, gives the same bits in every run.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["P"])
def sum_partials_kernel(
    Partials, Out, OtherOut, P,
    N: tl.constexpr, IS_WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[n] = Σ_p partials[p, n] in float32, rounded once; launched by `_partials.sum_partials`, for every family.

    Partials         (P, N) float32, or (2, P, N): the second P of them belong to OtherOut
    Out, OtherOut    (N,) of any float dtype; OtherOut None where there is one sum
    IS_WIDE          a partial's index may pass 2^31

    Grid (cdiv(N, BLOCK_N), sums). Each of BLOCK_P lanes adds every BLOCK_P-th partial, and then the lanes are added: an
    order that the compiler fixes (see `_partials.sum_partials`).
    """
    which = tl.program_id(1)
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    sums = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in tl.range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)  # (BLOCK_P,)
        mask = (p < P)[:, None] & (cols < N)[None, :]
        rows = which * P + p
        if IS_WIDE:
            rows = rows.to(tl.int64)
        sums += tl.load(Partials + rows[:, None] * N + cols[None, :], mask=mask, other=0.0)
    out = tl.sum(sums, axis=0)  # (BLOCK_N,)
    if which == 0:
        tl.store(Out + cols, out.to(Out.dtype.element_ty), mask=cols < N)
    elif OtherOut is not None:
        tl.store(OtherOut + cols, out.to(OtherOut.dtype.element_ty), mask=cols < N)
