"""Device code: products that every lane rounds alike before they are summed.

A sum over lanes is a butterfly: each lane adds what its partner holds to what it holds itself. Where a lane holds one
product and nothing else, the compiler may contract the first of these additions into it: fma(a, b, partner's a * b)
rounds the partner's product and not its own, the partner does the reverse, and the lanes that should hold one sum hold
two that differ in the last bit. Which of them reaches memory is then not defined.
"""

import triton
import triton.language as tl


@triton.jit
def rounded_product(a, b):
    """a * b in float32, rounded as written: no addition that follows is contracted into it.

    A fused multiply-add is never split, and adding +0 to a product changes no bit but the sign of -0.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def sum_of_products(a, b, axis: tl.constexpr, keep_dims: tl.constexpr = False):
    """tl.sum(a * b, axis) of float32 tiles of one shape, with the same bits in every lane that holds a copy of it."""
    return tl.sum(rounded_product(a, b), axis=axis, keep_dims=keep_dims)
