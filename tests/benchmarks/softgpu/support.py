"""Small PTX kernels for tests of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.softgpu.engine import Memory, Result, Settings, launch, load

_HEADER = ".version 8.7\n.target {target}\n.address_size 64\n"


def kernel(
    body: str, *arrays: np.ndarray, threads: int = 32, grid: tuple[int, ...] = (1,), declarations: str = "",
    shared: int = 0, target: str = "sm_90a", directives: str = "", scalars: tuple[int, ...] = (),
    tracked: tuple[int, ...] = (), **settings: Any,
) -> Result:  # fmt: skip
    """Run `body` with the address of each array in %g0, %g1, ... (b64), and each of `scalars` in %n0, ... (b32).

    `declarations` stand before the body; `shared` is dynamic shared memory, whose symbol is `smem`; of the arrays in
    `tracked` (by number) nothing counts as written. The arrays are written in place. 32-bit %tid and %ctaid hold the
    thread and the CTA.
    """
    params = [f".param .u64 p{k}" for k in range(len(arrays))] + [f".param .u32 s{k}" for k in range(len(scalars))]
    loads = [f"ld.param.u64 %g{k}, [p{k}];" for k in range(len(arrays))]
    loads += [f"ld.param.u32 %n{k}, [s{k}];" for k in range(len(scalars))]
    text = "\n".join((
        _HEADER.format(target=target),
        ".extern .shared .align 1024 .b8 smem[];" if shared else "",
        f".visible .entry test({', '.join(params)})", directives, f".reqntid {threads}", "{",
        *(f".reg .b64 %g{k};" for k in range(len(arrays))), *(f".reg .b32 %n{k};" for k in range(len(scalars))),
        ".reg .b32 %tid, %ctaid;", declarations, *loads, "mov.u32 %tid, %tid.x;", "mov.u32 %ctaid, %ctaid.x;",
        body, "ret;", "}",
    ))  # fmt: skip
    program = load(text)
    memory = Memory()
    ids = [memory.register(a.ctypes.data, a.nbytes, f"g{k}", k in tracked) for k, a in enumerate(arrays)]
    block = bytearray(program.kernel.param_bytes)
    for param, value in zip(program.kernel.params, [*(a.ctypes.data for a in arrays), *scalars]):
        block[param.offset : param.offset + param.size] = int(value).to_bytes(param.size, "little")
    return launch(program, grid, bytes(block), shared, memory, ids, Settings(**settings))


def lanes(
    body: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, Any], declarations: str = "", threads: int = 32,
    **settings: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Run `body` in every thread, with element `thread` of each input `a` in register %a; returns the outputs.

    Inputs are arrays of one length, a multiple of 32 (there are as many threads, in CTAs of `threads`); a bool array
    becomes a predicate. Each output is named with its numpy dtype. No findings are allowed.
    """
    count = len(next(iter(inputs.values())))
    assert count >= threads, f"{count} elements are fewer than the {threads} threads of a CTA"
    assert count % threads == 0, f"{count} elements are no whole number of CTAs of {threads} threads"
    results = {name: np.zeros(count, dtype) for name, dtype in outputs.items()}
    arrays = [a.astype(np.uint16) if a.dtype == bool else np.ascontiguousarray(a) for a in inputs.values()]
    stored = [a.astype(np.uint16) if a.dtype == bool else a for a in results.values()]
    declared, before, after = [], [], []
    address = [f"mad.lo.s32 %i_, %ctaid, {threads}, %tid;"]
    for k, (name, array) in enumerate((*inputs.items(), *results.items())):
        is_input, is_pred = name in inputs, array.dtype == bool
        size = 2 if is_pred else array.dtype.itemsize
        kind = f"b{8 * max(size, 2)}"
        declared.append(f".reg .{'pred' if is_pred else kind} %{name}; .reg .b64 %a{k}_;")
        address.append(f"mad.wide.s32 %a{k}_, %i_, {size}, %g{k};")
        register = f"%h{k}_" if is_pred else f"%{name}"
        if is_pred:
            declared.append(f".reg .b16 %h{k}_;")
        if is_input:
            before.append(f"ld.global.b{8 * size} {register}, [%a{k}_];")
            before += [f"setp.ne.u16 %{name}, {register}, 0;"] if is_pred else []
        else:
            after += [f"selp.b16 {register}, 1, 0, %{name};"] if is_pred else []
            after.append(f"st.global.b{8 * size} [%a{k}_], {register};")
    result = kernel(
        "\n".join((*address, *before, body, *after)), *arrays, *stored, threads=threads, grid=(count // threads,),
        declarations="\n".join((".reg .b32 %i_;", *declared, declarations)), **settings,
    )  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    return {name: s.astype(bool) if r.dtype == bool else s for (name, r), s in zip(results.items(), stored)}


def kinds(result: Result) -> set[str]:
    """The kinds of a launch's findings."""
    return {f.kind for f in result.findings}
