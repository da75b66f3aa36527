"""Faults planted in PTX text: one instruction changed or removed, as a compiler's or an author's mistake would.

    for fault in faults_of(ptx):
        fault.kind, fault.line, fault.before, fault.after
        fault.planted(ptx)                  # the text with this fault in it

A kind is a function of an instruction that yields what could stand in its place ("" for nothing).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`before`, the instruction in this line (the first is 1), becomes `after`."""

    kind: str
    line: int
    before: str
    after: str

    def planted(self, text: str) -> str:
        lines = text.split("\n")
        lines[self.line - 1] = lines[self.line - 1].replace(self.before, self.after, 1)
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.kind}, line {self.line}: {shortened(self.before)} -> {shortened(self.after) or 'nothing'}"


def shortened(instruction: str) -> str:
    """In one line of moderate length: lists of registers lose their middle."""
    text = re.sub(r"\{([^{},]+),[^{}]*,([^{},]+)\}", r"{\1, ...,\2}", instruction)
    return re.sub(r"\s+", " ", text)


@dataclass(frozen=True)
class Instruction:
    """A line of PTX text, taken apart: `guard` ("@%p3 " or ""), opcode, operands as they stand there."""

    text: str
    guard: str
    opcode: str
    operands: str
    is_shared_address: bool = False  # of its result: see `_shared_addresses`

    def rewritten(self, guard: str | None = None, opcode: str | None = None, operands: str | None = None) -> str:
        guard, opcode = self.guard if guard is None else guard, opcode or self.opcode
        operands = self.operands if operands is None else operands
        return f"{guard}{opcode} {operands}".rstrip() + ";"


_INSTRUCTION = re.compile(r"(@!?%?[\w.$]+\s+)?([a-z][\w.:]*)((?:\s+[^;]*)?);")
Kind = Callable[[Instruction], Iterator[str]]
KINDS: dict[str, Kind] = {}


def faults_of(text: str) -> list[Fault]:
    """Every fault of every kind that this text has a place for, in the order of its lines."""
    instructions: dict[int, Instruction] = {}
    for number, line in enumerate(text.split("\n"), 1):
        found = _INSTRUCTION.fullmatch(line.split("//")[0].strip())
        if found:
            instructions[number] = Instruction(found[0], found[1] or "", found[2], found[3].strip())
    addresses = _shared_addresses(instructions.values())
    faults = []
    for number, i in instructions.items():
        result = _REGISTER.match(i.operands)
        i = Instruction(i.text, i.guard, i.opcode, i.operands, result is not None and result[0] in addresses)
        faults += [
            Fault(kind, number, i.text, after) for kind, plant in KINDS.items() for after in plant(i) if after != i.text
        ]
    return faults


_REGISTER = re.compile(r"%\w+")
_ADDRESSED = re.compile(r"\[\s*(%\w+)")
_ARITHMETIC = ("add.", "sub.", "or.", "xor.", "and.", "shl.", "shr.", "mad.", "bfi.", "lop3.", "mov.b32", "selp.b32")


def _shared_addresses(instructions: Iterable[Instruction]) -> set[str]:
    """Registers that addresses in shared memory are computed from, these addresses included."""
    instructions = list(instructions)
    made_of: dict[str, set[str]] = {}
    wanted: list[str] = []
    for i in instructions:
        registers = _REGISTER.findall(i.operands)
        if i.opcode.startswith(_ARITHMETIC) and registers:
            made_of.setdefault(registers[0], set()).update(registers[1:])
        if _is_shared(i):
            address = _ADDRESSED.search(i.operands)
            wanted += [address[1]] if address else []
    found: set[str] = set()
    while wanted:
        register = wanted.pop()
        if register not in found:
            found.add(register)
            wanted += made_of.get(register, ())
    return found


def _is_shared(i: Instruction) -> bool:
    """Whether its first address is one of shared memory."""
    return i.opcode.startswith(("ld.shared", "st.shared", "ldmatrix", "stmatrix", "cp.async.ca", "cp.async.cg"))


def _kind(name: str) -> Callable[[Kind], Kind]:
    def add(plant: Kind) -> Kind:
        KINDS[name] = plant
        return plant

    return add


def _altered(i: Instruction, which: int, name: str, opcode: str, *by: str) -> str:
    """The same instruction, its last operand but `which` replaced by what `opcode` makes of it in a register %name."""
    before, operand, *rest = i.operands.rsplit(",", which + 1)
    declared = f".reg .{opcode.split('.')[1]} %{name};"
    made = f"{opcode} {', '.join((f'%{name}', operand.strip(), *by))};"
    return f"{{ {declared} {made} {i.rewritten(operands=','.join((before, f' %{name}', *rest)))} }}"


# ---- order: barriers, groups, mbarriers, fences ----------------------------------------------------------------------


def _removed(name: str, *opcodes: str) -> None:
    """A kind that removes instructions whose opcode starts with one of these."""

    @_kind(name)
    def plant(i: Instruction) -> Iterator[str]:
        if i.opcode.startswith(opcodes):
            yield ""


def _one_short(name: str, *opcodes: str) -> None:
    """A kind in which waits let one group more be on its way."""

    @_kind(name)
    def plant(i: Instruction) -> Iterator[str]:
        if i.opcode.startswith(opcodes):
            yield i.rewritten(operands=str(int(i.operands) + 1))


_removed("barrier removed", "bar.sync", "barrier.sync", "barrier.cta.sync", "bar.red")
_removed("warp's barrier removed", "bar.warp.sync")
_removed("commit of cp.async removed", "cp.async.commit_group")
_one_short("wait for cp.async one group short", "cp.async.wait_group")
_removed("wait for cp.async removed", "cp.async.wait_group", "cp.async.wait_all")
_removed("commit of wgmma removed", "wgmma.commit_group")
_one_short("wait for wgmma one group short", "wgmma.wait_group")
_removed("wait for wgmma removed", "wgmma.wait_group")
_removed("wgmma's fence removed", "wgmma.fence")
_removed("commit of bulk copies removed", "cp.async.bulk.commit_group")
_one_short("wait for bulk copies one group short", "cp.async.bulk.wait_group")
_removed("wait for bulk copies removed", "cp.async.bulk.wait_group")
_removed("proxy fence removed", "fence.proxy.async")
_removed("fence of mbarrier's init removed", "fence.mbarrier_init")
_removed("commit of tcgen05 removed", "tcgen05.commit")
_removed("wait for tensor memory removed", "tcgen05.wait")
_removed("tcgen05's fence removed", "tcgen05.fence")
_removed("tensor memory not given back", "tcgen05.dealloc")
_removed("arrival removed", "mbarrier.arrive.shared", "mbarrier.arrive.release")


@_kind("barrier's number changed")
def _(i: Instruction) -> Iterator[str]:
    """Of a barrier for some of the CTA's warps."""
    if i.opcode == "bar.sync" and re.fullmatch(r"\d+, *\d+", i.operands):
        number, threads = i.operands.split(",")
        yield i.rewritten(operands=f"{int(number) % 15 + 1},{threads}")


@_kind("mbarrier's phase flipped")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("mbarrier.try_wait.parity"):
        yield _altered(i, 0, "flipped", "xor.b32", "1")


@_kind("wait at an mbarrier removed")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("mbarrier.try_wait"):
        yield f"setp.eq.u32 {i.operands.split(',')[0]}, 0, 0;"


@_kind("expected bytes changed")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("mbarrier.arrive.expect_tx"):
        *others, size = i.operands.rsplit(",", 1)
        for wrong in (int(size) // 2, int(size) + 16):
            yield i.rewritten(operands=f"{others[0]}, {wrong}")


@_kind("mbarrier's count changed")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("mbarrier.init"):
        address, count = i.operands.rsplit(",", 1)
        yield i.rewritten(operands=f"{address}, {int(count) + 1}")


@_kind("registers not released")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("setmaxnreg.dec"):
        yield ""


@_kind("copy not begun")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith(("cp.async.bulk.tensor", "cp.async.ca", "cp.async.cg")):
        yield ""


ORDER = frozenset(KINDS)  # all of those above

# ---- addresses -------------------------------------------------------------------------------------------------------

_OFFSET = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+)\s*)?\]")


def _moved(i: Instruction, which: int, by: int = 16) -> Iterator[str]:
    """The same instruction, its address number `which` so much further on."""
    addresses = list(_OFFSET.finditer(i.operands))
    if which < len(addresses):
        a = addresses[which]
        moved = f"[{a[1]}+{int(a[2] or 0) + by}]"
        yield i.rewritten(operands=i.operands[: a.start()] + moved + i.operands[a.end() :])


@_kind("shared address 16 bytes off")
def _(i: Instruction) -> Iterator[str]:
    if _is_shared(i):
        yield from _moved(i, 0)


@_kind("global address 16 bytes off")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith(("ld.global", "st.global")):
        yield from _moved(i, 0)
    elif i.opcode.startswith(("cp.async.ca", "cp.async.cg")):
        yield from _moved(i, 1)


@_kind("tensor memory a column off")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith(("tcgen05.ld", "tcgen05.st", "tcgen05.mma")):
        yield from _moved(i, 0, by=1)
    if i.opcode.startswith("tcgen05.mma"):
        yield from _moved(i, 1, by=1)


@_kind("swizzle changed")
def _(i: Instruction) -> Iterator[str]:
    """Of an address in shared memory."""
    if i.opcode == "xor.b32" and i.is_shared_address:
        result, left, right = (x.strip() for x in i.operands.split(","))
        if right.lstrip("-").isdigit():
            yield i.rewritten(operands=f"{result}, {left}, {int(right) ^ 16}")
        else:
            yield i.rewritten(opcode="mov.b32", operands=f"{result}, {left}")


_DESCRIPTOR = re.compile(r"\b\d{19}\b")


@_kind("descriptor's swizzle changed")
def _(i: Instruction) -> Iterator[str]:
    """Bits 62 and 63 of a wgmma operand are 0 for none, then 128, 64, 32 bytes; of tcgen05's, 1, 2, 3 from 128 on."""
    if i.opcode == "or.b64" and (found := _DESCRIPTOR.search(i.operands)):
        bits = int(found[0])
        yield i.rewritten(operands=i.operands.replace(found[0], str(bits & ~(3 << 62) | ((bits >> 62) % 3 + 1) << 62)))


@_kind("descriptor's stride changed")
def _(i: Instruction) -> Iterator[str]:
    """Bits 32 to 45, from one group of eight rows to the next, in units of 16 bytes."""
    if i.opcode == "or.b64" and (found := _DESCRIPTOR.search(i.operands)):
        yield i.rewritten(operands=i.operands.replace(found[0], str(int(found[0]) ^ 0x60 << 32)))


@_kind("copy's size changed")
def _(i: Instruction) -> Iterator[str]:
    """cp.async [to], [from], 0x10, bytes to read: half of them, and all of them where the program reads fewer."""
    if i.opcode.startswith(("cp.async.ca", "cp.async.cg")):
        to, source, size, *read = (x.strip() for x in i.operands.split(","))
        yield i.rewritten(operands=f"{to}, {source}, {size}, {int(size, 0) // 2}")
        if read:
            yield i.rewritten(operands=f"{to}, {source}, {size}")


# ---- who takes part --------------------------------------------------------------------------------------------------


@_kind("predicate negated")
def _(i: Instruction) -> Iterator[str]:
    if i.guard:
        yield i.rewritten(guard="@" + i.guard[2:] if i.guard.startswith("@!") else "@!" + i.guard[1:])


@_kind("predicate removed")
def _(i: Instruction) -> Iterator[str]:
    if i.guard and i.opcode.startswith(("ld.", "st.", "red.", "atom.", "cp.", "mbarrier.")):
        yield i.rewritten(guard="")


@_kind("shuffle's lane changed")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("shfl.sync"):
        to, value, lane, *rest = (x.strip() for x in i.operands.split(","))
        if lane.isdigit():  # half of it: a butterfly then meets the same lanes twice, and others never
            wrong = {"0": "1", "1": "2"}.get(lane, str(int(lane) // 2))
            yield i.rewritten(operands=", ".join([to, value, wrong, *rest]))


@_kind("shuffle without a lane")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("shfl.sync") and i.operands.endswith("-1"):
        yield i.rewritten(operands=i.operands.removesuffix("-1") + "0x7fffffff")


# ---- values ----------------------------------------------------------------------------------------------------------

_LIST = re.compile(r"\{[^{}]*\}")


def _swapped(i: Instruction, which: int) -> Iterator[str]:
    """The same instruction, the registers of its list number `which` in reverse order."""
    lists = list(_LIST.finditer(i.operands))
    if which < len(lists):
        a = lists[which]
        registers = [x.strip() for x in a[0].strip("{} ").split(",")]
        turned = "{" + ", ".join(reversed(registers)) + "}"
        yield i.rewritten(operands=i.operands[: a.start()] + turned + i.operands[a.end() :])


@_kind("operands of mma turned round")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("mma.sync"):
        yield from _swapped(i, 1)
        yield from _swapped(i, 2)


@_kind("operands of wgmma swapped")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("wgmma.mma_async"):
        found = re.search(r"(%rd\d+), (%rd\d+)", i.operands)
        if found:
            yield i.rewritten(operands=i.operands.replace(found[0], f"{found[2]}, {found[1]}"))
        else:
            yield from _swapped(i, 1)


@_kind("operand of wgmma transposed")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("wgmma.mma_async"):
        found = re.search(r", ([01])$", i.operands)
        if found and i.operands.count(",") and ".tf32" not in i.opcode:
            yield i.rewritten(operands=i.operands[: found.start()] + f", {1 - int(found[1])}")


@_kind("operand of tcgen05 transposed")
def _(i: Instruction) -> Iterator[str]:
    """B: bit 16 of the instruction descriptor."""
    if i.opcode.startswith("tcgen05.mma"):
        yield _altered(i, 1, "turned", "xor.b32", "65536")


@_kind("accumulators of tcgen05 added or not")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith("tcgen05.mma"):
        yield _altered(i, 0, "not", "not.pred")


@_kind("ldmatrix transposes or not")
def _(i: Instruction) -> Iterator[str]:
    for name in ("ldmatrix", "stmatrix"):
        if i.opcode.startswith(name):
            without = i.opcode.replace(".trans", "")
            yield i.rewritten(opcode=without if without != i.opcode else i.opcode.replace(".shared", ".trans.shared"))


@_kind("store removed")
def _(i: Instruction) -> Iterator[str]:
    if i.opcode.startswith(("st.", "stmatrix")):
        yield ""
