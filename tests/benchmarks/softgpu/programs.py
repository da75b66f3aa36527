"""Instructions in a kernel of their own, lowered: for tests of the form that the machine takes."""

from __future__ import annotations

from benchmarks.softgpu import ptx
from benchmarks.softgpu.lower import Lowered, lower

WGMMA = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r0,%r1,%r2,%r3}"


def program(body: str, declarations: str = "", params: str = "") -> Lowered:
    """A kernel with registers %p0.., %rs0.., %r0.., %rd0.. and %q0.. (pred, 16, 32, 64 and 128 bits)."""
    text = f"""
        .version 8.7
        .target sm_90a
        .address_size 64
        {declarations}
        .visible .entry test({params}) .reqntid 32
        {{
        .reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<200>; .reg .b64 %rd<20>; .reg .b128 %q<4>;
        {body}
        }}"""
    return lower(ptx.parse(text))
