"""What a compiled kernel takes from its GPU: registers, spills, shared memory, and the instructions that matter."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton

from benchmarks.sass import loops, parser, roles
from benchmarks.sass.loops import find_loops, hot_loop
from benchmarks.sass.parser import Instruction, Program, program_of
from benchmarks.sass.roles import roles_of

from . import contraction, limits, prefetch
from .contraction import contracted_sums
from .limits import ctas_per_sm
from .offline import Compiled
from .prefetch import unconditional_copies

# Tensor-core opcodes: HMMA etc. (warp-wide mma.sync), HGMMA etc. (warpgroup), UTCHMMA etc. (tcgen05), v_mfma_* (AMD).
_TENSOR = {
    "mma": re.compile(r"[HIQDO]MMA\b"),
    "wgmma": re.compile(r"[HIQB]GMMA\b"),
    "tcgen05": re.compile(r"UTC[HIQO]MMA\b"),
    "mfma": re.compile(r"v_s?mfmac?_"),
}
# 512 bytes per warp and instruction: 16 bytes for each of 32 lanes, or 8 for each of AMD's 64.
_WIDE = re.compile(r"(LDG|LDGSTS)\..*\b128\b|(global|buffer)_load_(lds_)?(dwordx[24]|b64|b128)")
_NARROW = re.compile(r"LDG\..*\b[US]16\b|(global|buffer)_load_(ushort|sshort|short|u16|i16|d16)")
_TMA = re.compile(r"UTMALDG|UTMASTG|UTMAREDG|tensor_load_to_lds")
_REGISTER = re.compile(r"\bR(\d+)\b")
# ptxas: "Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..."
_SERIALIZED = re.compile(r"\(C(75\d\d)\)")


@dataclass(frozen=True)
class Usage:
    """One compiled kernel on one architecture; byte counts are per thread (spills) or per CTA (shared memory)."""

    registers: int  # of a warp-specialised kernel, the most that its code names: a role has others than at the launch
    spill_bytes: int
    hot_spills: int  # of a warp-specialised kernel, accesses to local memory in the hot loops of its roles
    shared_bytes: int
    warps: int
    ctas_per_sm: int
    tensor_core: str  # "mma", "wgmma", "tcgen05", "mfma" or "none"
    tensor_core_count: int
    wide_loads: int  # 16-byte global loads (on AMD, of 8 bytes or more)
    narrow_loads: int  # 16-bit global loads
    tma: int
    instructions: int
    hot_loop: int  # instructions in it; 0 without a loop
    wgmma_serialized: bool
    warnings: tuple[str, ...]  # ptxas codes, "C7510"
    has_dot: bool
    contracted_sums: int  # sums over lanes whose result differs between the lanes that hold it: contraction.py
    unconditional_copies: tuple[str, ...]  # places in the source; see prefetch.py
    tensor_memory: int  # columns for each CTA (tcgen05); 0: none


def usage(compiled: Compiled | Any, arch: str) -> Usage:
    """Usage of a kernel compiled for `arch`: a `Compiled` of `offline()`, or Triton's own compiled kernel.

    Kept in Triton's cache beside the kernel, for as long as neither the machine code nor this analysis changes.
    """
    kernel = compiled.kernel if isinstance(compiled, Compiled) else compiled
    binary = kernel.asm["cubin"] if "cubin" in kernel.asm else kernel.asm["amdgcn"].encode()
    key = [binary, arch.encode(), _analysis(), str((kernel.metadata.shared, kernel.metadata.num_warps)).encode()]
    text = _remembered("usage", key, lambda: json.dumps(asdict(_analyse(kernel, arch))))
    known = json.loads(text)
    return Usage(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


def _analyse(kernel: Any, arch: str) -> Usage:
    program = program_of(kernel)
    code, found = program.instructions, find_loops(program)
    kinds = {kind: sum(bool(p.match(i.opcode)) for i in code) for kind, p in _TENSOR.items()}
    kind = max(kinds, key=lambda k: (kinds[k], k))
    hot = hot_loop(found, is_tensor)
    if "cubin" in kernel.asm:
        registers, spills, log = _nvidia(kernel, uses_wgmma=kinds["wgmma"] > 0)
    else:
        registers, spills, log = _amd(kernel.asm["amdgcn"])
    warnings = tuple(sorted({"C" + c for c in _SERIALIZED.findall(log)}))
    shared, warps, specialised = kernel.metadata.shared, kernel.metadata.num_warps, is_specialised(code)
    return Usage(
        registers=highest_register(code) if specialised else registers,
        spill_bytes=spills,
        hot_spills=sum(map(is_local, in_hot_loops(program, warps))) if specialised else 0,
        shared_bytes=shared,
        warps=warps,
        ctas_per_sm=ctas_per_sm(arch, registers=registers, warps=warps, shared_bytes=shared),
        tensor_core=kind if kinds[kind] else "none",
        tensor_core_count=kinds[kind],
        wide_loads=sum(bool(_WIDE.match(i.opcode)) for i in code),
        narrow_loads=sum(bool(_NARROW.match(i.opcode)) for i in code),
        tma=sum(bool(_TMA.match(i.opcode)) for i in code),
        instructions=len(code),
        hot_loop=len(hot.instructions) if hot else 0,
        wgmma_serialized="serialized" in log or any(waits_each_wgmma(loop.instructions) for loop in found),
        warnings=warnings,
        has_dot=bool(re.search(r"\btt\.dot", kernel.asm.get("ttir", ""))),
        contracted_sums=len(contracted_sums(program)),
        unconditional_copies=tuple(unconditional_copies(kernel.asm.get("ttgir", ""), kernel.asm.get("ptx", ""))),
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
    )


@functools.cache
def _analysis() -> bytes:
    """The source of everything that a `Usage` depends on besides the machine code."""
    return b"".join(
        Path(inspect.getfile(module)).read_bytes()
        for module in (sys.modules[__name__], contraction, limits, loops, parser, prefetch, roles)
    )


def _remembered(kind: str, key: Sequence[bytes], compute: Callable[[], str]) -> str:
    """compute(), or what it returned for this key before: a file in Triton's cache."""
    name = hashlib.sha256(b"\0".join([triton.__version__.encode(), *key])).hexdigest()
    cached = Path(triton.knobs.cache.dir) / f"gate_{kind}" / name
    if cached.exists():
        return cached.read_text()
    text = compute()
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(cached)  # at once: another process may look
    return text


def is_tensor(instruction: Instruction) -> bool:
    """Whether this is a tensor-core instruction of any architecture."""
    return any(p.match(instruction.opcode) for p in _TENSOR.values())


def is_local(instruction: Instruction) -> bool:
    """Whether this reads or writes what a thread has spilled."""
    return instruction.base in ("LDL", "STL")


def is_specialised(instructions: Sequence[Instruction]) -> bool:
    """Whether warps have roles, and registers that go from one to the other."""
    return any(i.base == "USETMAXREG" for i in instructions)


def highest_register(instructions: Sequence[Instruction]) -> int:
    """How many registers it takes to have all that are named."""
    return 1 + max((int(n) for i in instructions for n in _REGISTER.findall(i.operands)), default=0)


def in_hot_loops(program: Program, warps: int) -> Iterator[Instruction]:
    """What the loops hold that the warps of each role spend their time in, where they multiply."""
    for role in roles_of(program, warps):
        yield from role.loops[0].instructions


def waits_each_wgmma(instructions: tuple[Instruction, ...]) -> bool:
    """Whether a loop waits after each warpgroup MMA, which is what serialized wgmma look like in SASS."""
    wgmma = sum(bool(_TENSOR["wgmma"].match(i.opcode)) for i in instructions)
    waits = sum(i.opcode.startswith("WARPGROUP.DEPBAR") for i in instructions)
    return wgmma >= 4 and waits >= wgmma


def _nvidia(kernel: Any, *, uses_wgmma: bool) -> tuple[int, int, str]:
    """(registers, spill bytes, ptxas log). The cubin says all unless there is a stack frame, or wgmma to warn about."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (max(map(int, re.findall(rf"{what}:(\d+)", text))) for what in ("REG", "STACK"))
    if not stack and not uses_wgmma:
        return registers, 0, ""
    log = ptxas_log(kernel)
    spills = max((int(n) for n in re.findall(r"(\d+) bytes spill stores", log)), default=0)
    return registers, spills, log


def ptxas_log(kernel: Any) -> str:
    """What `ptxas -v` says of the kernel, with the ptxas and the flags that Triton itself uses; kept in its cache."""
    from triton.backends.nvidia import compiler

    ptx, metadata = kernel.asm["ptx"], kernel.metadata
    target = re.search(r"^\.target (sm_\w+)", ptx, re.M)[1]
    tool = compiler.get_ptxas(metadata.target.arch).path
    flags = ["-lineinfo", "-v", f"--gpu-name={target}"]
    if "--regAllocOptLevel=2" in inspect.getsource(compiler.CUDABackend.make_cubin):
        flags.append("--regAllocOptLevel=2")  # some releases of Triton pass it
    if not metadata.enable_fp_fusion:
        flags.append("--fmad=false")
    flags += (getattr(metadata, "ptx_options", None) or "").split()

    def run() -> str:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "kernel.ptx")
            source.write_text(ptx)
            command = [tool, *flags, str(source), "-o", f"{folder}/kernel.cubin"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout + done.stderr

    return _remembered("ptxas", [text.encode() for text in (ptx, tool, *flags)], run)


def _amd(text: str) -> tuple[int, int, str]:
    """(VGPRs per lane, spill bytes per lane, "") from the metadata that the AMD compiler leaves in the assembly."""
    registers, spilled = (
        max(map(int, re.findall(rf"^\s*\.{what}:\s+(\d+)", text, re.M))) for what in ("vgpr_count", "vgpr_spill_count")
    )
    return registers, 4 * spilled, ""
