"""A kernel's instructions as the machine takes them: records whose operands are places in a warp's register file.

    lowered = lower(parse(text))

The form is described in machine/machine.h. Every constant, special register and address of a variable is a register
too, filled before the start.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from . import pairs
from .instructions import Opcode, opcode, type_bytes
from .origins import origins
from .ptx import (
    Address,
    Instruction,
    Kernel,
    Literal,
    Not,
    Operand,
    Pair,
    Register,
    Scalar,
    Sink,
    Special,
    Symbol,
    Unreadable,
    Variable,
    Vector,
    integer,
)
from .registers import Step, allocate

SHARED_WINDOW, PARAM_WINDOW, LOCAL_WINDOW = 1 << 60, 1 << 61, 1 << 62  # as in machine.h

# The order of machine.h's SpecialRegister.
SPECIAL = (
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"),
    *(
        "%laneid",
        "%warpid",
        "%nwarpid",
        "%smid",
        "%nsmid",
        "%clock",
        "%clock_hi",
        "%clock64",
        "%globaltimer",
        "%gridid",
    ),
    *(f"%lanemask_{order}" for order in ("eq", "le", "lt", "ge", "gt")),
    *(f"%{name}.{axis}" for name in ("clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid") for axis in "xyz"),
    *("%cluster_ctarank", "%cluster_nctarank", "%dynamic_smem_size", "%total_smem_size"),
)
_SPECIAL_INDEX = {name: index for index, name in enumerate(SPECIAL)}
_LONG_SPECIALS = frozenset({"%clock64", "%globaltimer", "%gridid"})


@dataclass(slots=True)
class Record:
    pc: int
    line: int
    key: str
    pred: int  # unit of the guard, -1: none
    negated: bool
    num_dst: int
    operands: list[int]  # units; -1: `_`
    widths: list[int]  # bytes of each operand's register; 0: a predicate
    imms: list[int]
    text: str
    source: str  # "attention/forward.py:123"
    origins: int = 0  # of an address in global memory: bits of Lowered.pointers that it comes from; 0: unknown


class Constant(NamedTuple):
    unit: int
    bytes: int  # 0: a predicate, whose value is 0 or 1
    value: int


@dataclass
class Lowered:
    kernel: Kernel
    records: list[Record]
    constants: list[Constant]
    specials: list[tuple[int, int]]  # unit, index in SPECIAL
    num_units: int
    shared_static: int
    local_bytes: int
    shared_granule: int
    global_granule: int
    pointers: list[int]  # offsets of the parameters that addresses come from
    uses_wgmma: bool
    has_atomics: bool

    @property
    def name(self) -> str:
        return self.kernel.name

    @property
    def num_threads(self) -> int:
        return self.kernel.num_threads

    @property
    def max_registers(self) -> int:
        return self.kernel.max_registers

    @property
    def cluster(self) -> tuple[int, int, int]:
        return self.kernel.cluster


def lower(kernel: Kernel) -> Lowered:
    return _Lowering(kernel).run()


class _Lowering:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        # Registers by number: the kernel's own, then constants, special registers, negated predicates as they are met.
        self.bytes = [register.bytes for register in kernel.registers]
        self.constants: dict[tuple[int, int], int] = {}  # bytes, value -> register
        self.specials: dict[str, int] = {}
        self.records: list[Record] = []  # with registers, targets in instructions; both are replaced in the end
        self.steps: list[Step] = []
        # Of each record: the offset of the 8-byte parameter that it loads; the register of its global address.
        self.loaded_params: list[int | None] = []
        self.addresses: list[int | None] = []
        self.of_wgmma: set[int] = set()
        self.has_atomics = False
        self.shared_writes, self.shared_reads, self.global_accesses = set[int](), set[int](), set[int]()
        self.halves = {
            register: (self._new_half(), self._new_half()) for register in pairs.separable(kernel.instructions)
        }
        self.params = {param.name: param for param in kernel.params}
        self.offsets, self.shared_static, self.local_bytes = _lay_out(kernel.variables)

    def run(self) -> Lowered:
        records, instructions = self.records, self.kernel.instructions
        first = []  # record of each instruction
        for instruction in instructions:
            first.append(len(records))
            try:
                for part in pairs.separated(instruction, self.halves, self._new_half):
                    self._instruction(part)
            except IndexError as error:
                raise self._error(instruction, "operands are missing") from error
        end = len(instructions)
        falls_off = not self.steps or self.steps[-1].successors is None or self.steps[-1].is_guarded
        if falls_off or any(end in instruction.targets for instruction in instructions):  # a kernel's end is a return
            first.append(len(records))
            line = instructions[-1].line if instructions else 0
            self._append(Instruction(line, "ret", None, False, (), "ret", ""), opcode("ret"), [], 0, [])
        for pc, (record, step) in enumerate(zip(records, self.steps)):
            record.pc = pc
            if step.successors is not None and record.imms:
                record.imms = [first[target] for target in record.imms]
                falls_through = (pc + 1,) if step.is_guarded else ()
                self.steps[pc] = step._replace(successors=(*record.imms, *falls_through))
        return self._placed()

    def _placed(self) -> Lowered:
        """Registers get their places."""
        pointers, origins_of = origins(
            [record.key for record in self.records], self.steps, self.loaded_params, self.addresses, self.bytes
        )
        # What a wgmma names is read and written until the wait, and must not have been written after the fence.
        alone = [*self.constants.values(), *self.specials.values(), *sorted(self.of_wgmma)]
        place, num_units = allocate(self.steps, [units(size) for size in self.bytes], alone)
        place[-1] = -1
        for record, record.origins in zip(self.records, origins_of):
            record.operands = [place[register] for register in record.operands]
            if record.pred >= 0:
                record.pred = place[record.pred]
        return Lowered(
            kernel=self.kernel,
            records=self.records,
            constants=[Constant(place[register], size, value) for (size, value), register in self.constants.items()],
            specials=[(place[register], _SPECIAL_INDEX[name]) for name, register in self.specials.items()],
            num_units=num_units,
            shared_static=self.shared_static,
            local_bytes=self.local_bytes,
            # A narrower read shares its granule with no other write: writes decide, if there are any.
            shared_granule=min(self.shared_writes or self.shared_reads, default=16),
            global_granule=min(self.global_accesses, default=16),
            pointers=pointers,
            uses_wgmma=bool(self.of_wgmma),
            has_atomics=self.has_atomics,
        )

    # ---- an instruction

    def _instruction(self, instruction: Instruction) -> None:
        facts = opcode(instruction.opcode)
        operands = instruction.operands
        if facts.has_cache_policy:
            operands = operands[:-1]
        registers: list[int] = []
        imms = list(instruction.targets)
        num_dst = 0
        if facts.parts[:2] == ("ld", "param"):
            imms.append(self._param_offset(instruction, operands[-1]))
            operands = operands[:-1]
        for position, operand in enumerate(operands):
            if type(operand) is Register:
                registers.append(operand.index)
            elif type(operand) is Address:
                registers.append(self._value(instruction, operand.base, self._address_type(operand.base)))
                registers += [self._value(instruction, item, "s32") for item in operand.coordinates]
                imms.append(operand.offset)
            else:
                assert not isinstance(operand, Address)
                items = operand.items if isinstance(operand, Vector | Pair) else (operand,)
                literal_type = facts.types.get(position, facts.type)
                if facts.parts[0] == "mov" and len(items) > 1:  # `mov.b64 d, {a, 0}`: each has its part of the bits
                    literal_type = f"b{8 * type_bytes(literal_type) // len(items)}"
                registers += [self._value(instruction, item, literal_type) for item in items]
            if position == 0 and facts.has_result:
                num_dst = len(registers)
        if facts.access is not None:
            self._count_access(facts, operands)
        self.has_atomics |= facts.is_atomic
        if facts.is_wgmma:  # its accumulators, and the left operand if that is in registers
            left = len(operands[1].items) if isinstance(operands[1], Vector) else 0
            self.of_wgmma.update(registers[: num_dst + left])
        self._append(instruction, facts, registers, num_dst, imms)

    def _append(
        self, instruction: Instruction, facts: Opcode, registers: list[int], num_dst: int, imms: list[int]
    ) -> None:
        guard = instruction.guard
        if -1 in registers:
            reads = tuple(register for register in registers[num_dst:] if register >= 0)
            writes = tuple(register for register in registers[:num_dst] if register >= 0)
        else:
            reads, writes = tuple(registers[num_dst:]), tuple(registers[:num_dst])
        pred = -1
        if guard is not None:
            pred = guard.index
            reads += (pred,)
        successors: tuple[int, ...] | None = None
        if facts.parts[0] in ("bra", "brx") or (facts.parts[0] in ("ret", "exit", "trap") and guard is None):
            successors = ()  # a branch's are filled in when all records are there
        loads_param = facts.parts[:2] == ("ld", "param") and self.bytes[registers[0]] == 8
        self.loaded_params.append(imms[0] if loads_param else None)
        self.addresses.append(registers[num_dst + facts.address] if facts.address is not None else None)
        self.steps.append(Step(reads, writes, guard is not None, successors))
        widths = [0 if register < 0 else self.bytes[register] for register in registers]
        self.records.append(
            Record(
                0, instruction.line, facts.key, pred, instruction.negated, num_dst, registers, widths, imms,
                instruction.text, instruction.source,
            )
        )  # fmt: skip

    def _param_offset(self, instruction: Instruction, operand: Operand) -> int:
        if isinstance(operand, Address) and isinstance(operand.base, Symbol) and operand.base.name in self.params:
            return self.params[operand.base.name].offset + operand.base.offset + operand.offset
        raise self._error(instruction, "no parameter of this kernel")

    def _count_access(self, facts: Opcode, operands: tuple[Operand, ...]) -> None:
        access = facts.access
        assert access is not None
        size = access.bytes
        if size == 0:
            sizes = [integer(operand.text) for operand in operands[2:4] if isinstance(operand, Literal)]
            size = min(filter(None, sizes), default=4)
        size = min(size, 16)
        if access.shared:
            (self.shared_writes if access.writes_shared else self.shared_reads).add(size)
        if access.is_global:
            self.global_accesses.add(size)

    # ---- operands

    def _value(self, instruction: Instruction, operand: Scalar, literal_type: str) -> int:
        """The number of the register that holds a scalar; -1 for `_`."""
        if isinstance(operand, Register):
            return operand.index
        if isinstance(operand, Sink):
            return -1
        if isinstance(operand, Literal):
            try:
                return self._constant(*literal(operand.text, literal_type))
            except ValueError as error:
                raise self._error(instruction, str(error)) from error
        if isinstance(operand, Special):
            if operand.name not in _SPECIAL_INDEX:
                raise self._error(instruction, f"{operand.name} is neither a declared nor a known special register")
            if operand.name not in self.specials:
                self.specials[operand.name] = self._new(8 if operand.name in _LONG_SPECIALS else 4)
            return self.specials[operand.name]
        if isinstance(operand, Not):
            negated = self._new(0)
            plain = Instruction(instruction.line, "not.pred", None, False, (), instruction.text, instruction.source)
            self._append(plain, opcode("not.pred"), [negated, operand.register.index], 1, [])
            return negated
        return self._constant(type_bytes(literal_type), self._address(instruction, operand, type_bytes(literal_type)))

    def _address_type(self, base: Scalar) -> str:
        """Shared and local memory have addresses of 32 bits."""
        return "u32" if isinstance(base, Symbol) and base.name in self.offsets else "u64"

    def _address(self, instruction: Instruction, symbol: Symbol, size: int) -> int:
        if symbol.name == "WARP_SZ":
            return 32
        if symbol.name in self.params and size == 8:
            return PARAM_WINDOW + self.params[symbol.name].offset + symbol.offset
        if symbol.name in self.offsets and size >= 4:
            return self.offsets[symbol.name] + symbol.offset
        if symbol.name in self.kernel.variables:
            space = self.kernel.variables[symbol.name].space
            raise self._error(instruction, f"{symbol.name} lies in {space} memory, which only a launch can fill")
        raise self._error(instruction, f"unknown name {symbol.name}")

    def _constant(self, size: int, value: int) -> int:
        if (size, value) not in self.constants:
            self.constants[size, value] = self._new(size)
        return self.constants[size, value]

    def _new(self, size: int) -> int:
        self.bytes.append(size)
        return len(self.bytes) - 1

    def _new_half(self) -> Register:
        return Register("half", "b32", 4, self._new(4))

    def _error(self, instruction: Instruction, why: str) -> Unreadable:
        return Unreadable(self.kernel.name, instruction.line, instruction.text, why)


def units(size: int) -> int:
    """Of 64 bytes, in a warp's register file: 2 bytes of 32 lanes, or a predicate's mask."""
    return max(size // 2, 1)


def literal(text: str, type_name: str) -> tuple[int, int]:
    """Bytes of the register that holds a literal, and its bits."""
    size = type_bytes(type_name)
    if size == 0:
        return 0, int(integer(text) != 0)
    size = max(size, 2)
    is_hex = text[:2].lower() in ("0f", "0d")
    if is_hex or "." in text:
        if size not in (4, 8) or type_name in ("f16x2", "bf16x2"):
            raise ValueError(f"{text} is no literal of type {type_name}")
        if is_hex and len(text) == 2 + 2 * size:
            return size, int(text[2:], 16)
        if is_hex:
            (number,) = struct.unpack(">f" if text[1] in "fF" else ">d", bytes.fromhex(text[2:]))
        else:
            number = float(text)
        return size, int.from_bytes(struct.pack("<f" if size == 4 else "<d", number), "little")
    if type_name in ("f32", "f64", "tf32") or size > 8:
        raise ValueError(f"{text} is no literal of type {type_name}")
    return size, integer(text) & ((1 << 8 * size) - 1)


def _lay_out(variables: dict[str, Variable]) -> tuple[dict[str, int], int, int]:
    """Offsets of shared and local variables; bytes of the static shared and the local ones.

    Dynamic shared memory, of which all extern variables are the start, follows the static variables.
    """
    offsets: dict[str, int] = {}
    sizes = {"shared": 0, "local": 0}
    for name, variable in variables.items():
        if variable.space in sizes and not variable.is_extern:
            offsets[name] = _aligned(sizes[variable.space], variable.align)
            sizes[variable.space] = offsets[name] + variable.size
    dynamic = {name: v.align for name, v in variables.items() if v.space == "shared" and v.is_extern}
    start = _aligned(sizes["shared"], max(dynamic.values(), default=1))
    return offsets | dict.fromkeys(dynamic, start), start, sizes["local"]


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align
