"""Machine code as a list of instructions: NVIDIA's SASS (from nvdisasm) and AMD's assembly (from Triton itself)."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property

import triton

_SASS = re.compile(r"^/\*[0-9a-f]+\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_ENCODING = re.compile(r"/\* 0x([0-9a-f]{16}) \*/$")  # half an instruction, at the end of its line or alone on the next
_SASS_LABEL = re.compile(r"^(\.[\w.$]+):$")
_SASS_TARGET = re.compile(r"\.L_[\w.$]+")
_SASS_CONDITION = re.compile(r"^!?U?P\d")
_AMD = re.compile(r"^([a-z]\w+)(?:\s+(.*))?$")
_AMD_LABEL = re.compile(r"^(\.LBB\w+):")


@dataclass(frozen=True)
class Control:
    """What ptxas tells the scheduler about an instruction, from the upper bits of its encoding (sm_70 and newer).

    stall  cycles until the warp may issue its next instruction: how long a fixed-latency result is waited for
    write  scoreboard (0 to 5) that is held until the result is there; None without
    read   scoreboard that is held until the operands have been read
    waits  scoreboards that must be free before this instruction issues
    """

    stall: int = 1
    write: int | None = None
    read: int | None = None
    waits: tuple[int, ...] = ()

    @classmethod
    def decode(cls, upper: int) -> Control:
        """From the upper 64 bits: stall 4 bits, yield 1, write 3, read 3 (7: none), mask of waits 6, from bit 41 on."""
        bits = upper >> 41
        write, read, mask = bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63
        waits = tuple(b for b in range(6) if mask >> b & 1)
        return cls(max(1, bits & 15), None if write == 7 else write, None if read == 7 else read, waits)


@dataclass(frozen=True)
class Instruction:
    """One instruction, and where it may go next.

    opcode         "HGMMA.64x128x16.F32.BF16", "buffer_load_dwordx4"
    operands       the text that follows
    targets        labels that it may jump to
    falls_through  whether the next instruction may follow it
    control        for the scheduler; None where the listing has no encodings
    """

    opcode: str
    operands: str = ""
    targets: tuple[str, ...] = ()
    falls_through: bool = True
    control: Control | None = None

    @cached_property
    def base(self) -> str:
        """The opcode without its modifiers: "HGMMA"."""
        return self.opcode.split(".")[0]

    @property
    def ends_block(self) -> bool:
        return bool(self.targets) or not self.falls_through


@dataclass
class Program:
    """A kernel's instructions in order; `labels` maps a label to the index of the instruction that follows it."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse_sass(text: str) -> Program:
    """Program of `nvdisasm -c` output, with or without -hex."""
    program = Program()
    for line in map(str.strip, text.splitlines()):
        if label := _SASS_LABEL.match(line):
            program.labels[label[1]] = len(program.instructions)
        elif match := _SASS.match(line):
            predicate, opcode, operands = match.groups()
            base = opcode.split(".")[0]
            jumps = base in ("BRA", "BRX")
            conditional = bool(predicate) or (jumps and (".DIV" in opcode or bool(_SASS_CONDITION.match(operands))))
            program.instructions.append(
                Instruction(
                    opcode,
                    operands,
                    targets=tuple(_SASS_TARGET.findall(operands)) if jumps else (),
                    falls_through=conditional or not (jumps or base in ("EXIT", "RET")),
                )
            )
        elif line.startswith("/* 0x") and (upper := _ENCODING.search(line)):
            control = Control.decode(int(upper[1], 16))
            program.instructions[-1] = replace(program.instructions[-1], control=control)
    return program


def parse_amdgcn(text: str) -> Program:
    """Program of the "amdgcn" stage of a Triton kernel compiled for AMD."""
    program = Program()
    for line in text.splitlines():
        line = line.split(";")[0].strip()
        if line.startswith(".section"):  # the metadata and debug sections follow the code
            if program.instructions:
                break
        elif label := _AMD_LABEL.match(line):
            program.labels[label[1]] = len(program.instructions)
        elif match := _AMD.match(line):
            opcode, operands = match[1], match[2] or ""
            jumps = opcode.startswith(("s_branch", "s_cbranch"))
            program.instructions.append(
                Instruction(
                    opcode,
                    operands,
                    targets=(operands.strip(),) if jumps else (),
                    falls_through=not opcode.startswith(("s_branch", "s_endpgm", "s_setpc")),
                )
            )
    return program


def disassemble(cubin: bytes) -> str:
    """`nvdisasm -c -hex` of a cubin, with the nvdisasm that Triton ships."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", "-hex", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def program_of(kernel: object) -> Program:
    """Program of a compiled Triton kernel, NVIDIA or AMD."""
    asm = kernel.asm
    return parse_sass(disassemble(asm["cubin"])) if "cubin" in asm else parse_amdgcn(asm["amdgcn"])
