"""Which unit of the multiprocessor executes a SASS instruction, and for how long."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .machines import Machine
from .parser import Instruction

WARP = 32
UNITS = ("tensor", "fma", "alu", "mufu", "lsu", "global", "other")

_OPCODES = {
    "fma": "FFMA FMUL FADD HFMA2 HADD2 HMUL2 FFMA32I FMUL32I FADD32I FFMA2 FMUL2 FADD2 IMAD IDP",
    "alu": "FMNMX FMNMX3 FSEL FSETP FSET FCHK ISETP IADD3 IADD LOP3 LOP SHF PRMT SEL LEA F2FP VIADD VIMNMX IMNMX PLOP3 "
    "MOV ISCADD IABS HSETP2 HMNMX2 P2R R2P I2FP VOTE BMSK SGXT VABSDIFF",
    "mufu": "MUFU F2I I2F F2F FRND POPC FLO BREV",
    "lsu": "LDS STS LDSM STSM MOVM ATOMS SHFL",
    "global": "LDG STG LDGSTS ATOMG ATOM RED LDL STL UTMALDG UTMASTG UTMAREDG",
}
_UNIT = {opcode: unit for unit, opcodes in _OPCODES.items() for opcode in opcodes.split()}
_TENSOR_SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)\.")
# mma.sync names its shape with digits run together, M N K: 16816 is 16 x 8 x 16.
_MMA_SHAPES = {"1688": (16, 8, 8), "16816": (16, 8, 16), "16832": (16, 8, 32), "1684": (16, 8, 4)}


def unit_of(instruction: Instruction) -> str:
    """One of `UNITS`. What the scheduler, the uniform datapath and barriers do counts as "other"."""
    return "tensor" if is_tensor(instruction) else _UNIT.get(instruction.base, "other")


def is_tensor(instruction: Instruction) -> bool:
    return bool(re.match(r"(UTC)?[HIQDOB]G?MMA\b", instruction.base))


def access_bytes(instruction: Instruction) -> int:
    """Bytes that each lane reads or writes; 0 for a bulk copy, whose size is not in the instruction."""
    if instruction.base.startswith("UTMA"):
        return 0
    parts = instruction.opcode.split(".")
    for suffix, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if suffix in parts:
            return size
    return 4


def shared_cycles(instruction: Instruction, machine: Machine) -> float:
    """Cycles of the SM's shared memory and shuffle path that one warp takes."""
    base, opcode = instruction.base, instruction.opcode
    if base in ("LDSM", "STSM", "MOVM"):
        return 4 if ".4" in opcode or "x4" in opcode else 2 if ".2" in opcode or "x2" in opcode else 1
    if base in ("LDS", "STS", "ATOMS", "LDGSTS"):
        return max(1.0, access_bytes(instruction) * WARP / machine.shared_bytes)
    return 1.0 if base == "SHFL" else 0.0


@dataclass(frozen=True)
class TensorOp:
    """The product that one tensor-core instruction computes: (m, k) @ (k, n), for a warp or a warpgroup."""

    m: int
    n: int
    k: int
    element_bytes: int
    warps: int  # 4 for a warpgroup, 1 for mma.sync
    a_in_registers: bool

    @property
    def flop(self) -> int:
        return 2 * self.m * self.n * self.k

    @property
    def b_bytes(self) -> int:
        return self.n * self.k * self.element_bytes

    @property
    def a_bytes(self) -> int:
        return 0 if self.a_in_registers else self.m * self.k * self.element_bytes


def tensor_op(instruction: Instruction) -> TensorOp | None:
    """The shape of a tensor-core instruction; None where SASS does not hold it (tcgen05 has it in a register)."""
    opcode = instruction.opcode
    element = 4 if "TF32" in opcode else 1 if opcode.startswith(("QGMMA", "QMMA", "IGMMA", "IMMA")) else 2
    if match := _TENSOR_SHAPE.search(opcode + "."):
        m, n, k = map(int, match.groups())
        operands = instruction.operands.split(",")
        return TensorOp(m, n, k, element, 4, len(operands) > 1 and operands[1].strip().startswith("R"))
    for part in opcode.split(".")[1:]:
        if part in _MMA_SHAPES:
            return TensorOp(*_MMA_SHAPES[part], element, 1, True)
    return None


def tensor_work(instruction: Instruction) -> int:
    """FLOPs of a tensor-core instruction, 1 where SASS does not tell its shape, 0 for any other instruction."""
    if not is_tensor(instruction):
        return 0
    op = tensor_op(instruction)
    return 1 if op is None else op.flop
