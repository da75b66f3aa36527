"""Sums over the lanes of a warp into whose first step the compiler has contracted a product.

A butterfly adds what the partner lane holds to what the lane holds itself, and all lanes end with the same bits because
an addition does not care which of the two came first. Of `sum(a * b)` with one product a lane, the compiler makes
fma(a, b, partner): its own product unrounded, the partner's rounded. The partner does the reverse, the lanes hold sums
that differ in the last bit, and which of them is stored where several lanes hold one result is not defined.
`kernels/device/sums.py` has sums to which that cannot happen. Neither the interpreter nor a test of values sees it.

It is visible in machine code alone: ptxas contracts what LLVM has left.
"""

from __future__ import annotations

import re

from benchmarks.sass.parser import Instruction, Program

# What moves a value to this lane from the one whose index differs in some bits. SHFL.IDX, .UP and .DOWN move tiles
# between layouts, or scan; on AMD, data-parallel primitives and the swizzles of shared memory are all there is.
_BUTTERFLY = re.compile(r"SHFL\.BFLY|v_mov_b(32|64)_dpp|ds_swizzle|ds_b?permute|v_permlane")
# Multiply-adds whose last operand is the addend; v_fmac and v_mac add to what they write.
_FMA = re.compile(r"([FD]FMA2?|HFMA2)\b|v_(pk_)?(fma|mad)_|v_(pk_)?(fmac|mac)_")
_ACCUMULATES = re.compile(r"v_(pk_)?(fmac|mac)_")
_COPY = re.compile(r"(MOV|v_mov_b(32|64)_e32|v_accvgpr_(read|write)_b32)\b")
_NVIDIA_REGISTER = re.compile(r"(?<![\w.\[])[-|~]*R(\d+)\b")
_AMD_REGISTER = re.compile(r"(?<![\w.])[-|]*([va])(?:(\d+)\b|\[(\d+):(\d+)\])")
_ZERO = re.compile(r"-?(RZ\b.*|0)$")
_MANY_WRITTEN = re.compile(r"GMMA|MMA|MATRIX|UTC|LDTM|v_s?mfma")
_WIDTH = re.compile(r"\.(64|128|WIDE|F32x2|U64|S64)\b|^(FFMA2|FMUL2|FADD2|D[A-Z]+)\b")


def contracted_sums(program: Program) -> list[Instruction]:
    """The multiply-adds of a kernel whose addend comes from a partner lane: none, if all lanes agree."""
    found = []
    moved: set[str] = set()  # registers that hold what a partner lane sent
    starts = set(program.labels.values())
    for index, instruction in enumerate(program.instructions):
        if index in starts:  # control flow joins: nothing is known
            moved.clear()
        texts = _split(instruction.operands)
        operands = [_registers(text, instruction.opcode) for text in texts]
        if _FMA.match(instruction.opcode) and operands:
            accumulates = bool(_ACCUMULATES.match(instruction.opcode))
            addend, factors = operands[0 if accumulates else -1], texts[1:] if accumulates else texts[1:-1]
            # A product with 0 is 0 or NaN, which no rounding changes: what poisons sums where a tile is not finite.
            if moved.intersection(addend) and not any(map(_ZERO.match, factors)):
                found.append(instruction)
        written = next((registers for registers in operands if registers), [])
        source = operands[-1] if operands else []
        copied = bool(_COPY.match(instruction.opcode)) and bool(moved.intersection(source))
        if _MANY_WRITTEN.search(instruction.opcode):
            moved.clear()
        moved.difference_update(written)
        if copied or _BUTTERFLY.match(instruction.opcode):
            moved.update(written)
    return found


def _split(operands: str) -> list[str]:
    """Operands at the commas outside of brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", operands)]


def _registers(operand: str, opcode: str) -> list[str]:
    """The vector registers that an operand names, e.g. ["R4", "R5"] for R4 of a 64-bit instruction."""
    if match := _NVIDIA_REGISTER.match(operand):
        width = _WIDTH.search(opcode)
        count = 1 if width is None else 4 if width[1] == "128" else 2
        return [f"R{int(match[1]) + k}" for k in range(count)]
    if match := _AMD_REGISTER.match(operand):
        kind, single, first, last = match.groups()
        numbers = [int(single)] if single else range(int(first), int(last) + 1)
        return [f"{kind}{n}" for n in numbers]
    return []
