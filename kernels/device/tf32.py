"""Device code: float32 operands of tensor-core products, rounded to TF32 as cuBLAS rounds them.

TF32 is float32 with 10 bits of mantissa. Tensor cores take float32 registers and ignore the low 13 bits: operands that
are not rounded first are truncated, which errs by up to twice as much, and always towards 0. cuBLAS rounds to nearest,
ties away from zero (cvt.rna.tf32.f32), and so do these products.
"""

import triton
import triton.language as tl


@triton.jit
def dot_operand(tile, PRECISION: tl.constexpr):
    """`tile`, of any shape, as tl.dot(..., input_precision=PRECISION) must get it: rounded if that is "tf32"."""
    if PRECISION == "tf32":
        return round_to_tf32(tile)
    else:
        return tile


@triton.jit
def round_to_tf32(x):
    """float32 x moved away from zero by half a unit of TF32, once; the tensor core drops the rest, the low 13 bits.

    Two instructions an element: every warp that shares an operand rounds it for itself. inf and NaN stay what they are,
    which adding half a unit to the bits would not ensure (a GPU's own NaN, 0x7fffffff, would turn into -0). As in every
    rounding to nearest, what is nearer to 2^128 than to the largest TF32 becomes inf.
    """
    power = (x.to(tl.uint32, bitcast=True) & 0xFF800000).to(tl.float32, bitcast=True)  # x's sign, and 2^exponent
    return x + power * 0.00048828125  # 2^-11; the product is exact, so contracting it changes nothing
