"""What the arguments of `redundant.py` ask of a PTX text: whether what they say of a fault is so of this one in it."""

from __future__ import annotations

import re
from collections import defaultdict

from .faults import Fault


def _lines(text: str, opcode: str) -> list[tuple[int, str]]:
    """(line, instruction) of those whose opcode starts so."""
    return [
        (number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip().startswith(opcode)
    ]


def _setters(text: str, register: str) -> list[tuple[int, str]]:
    """(line, instruction) of those whose first operand is this register."""
    pattern = re.compile(rf"(?:@!?%\w+\s+)?[a-z][\w.:]*\s+{re.escape(register)}\b")
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in lines if pattern.match(line)]


def _definition(text: str, line: int, register: str) -> str:
    """The last instruction before this line that sets the register."""
    return next((i for number, i in reversed(_setters(text, register)) if number < line), "")


def _stored(fault: Fault) -> str:
    return re.findall(r"%\w+", fault.before)[-1]


def is_reduced(text: str, fault: Fault) -> bool:
    """Whether the stored value is the last step of a butterfly, or redux': each lane of it holds the same."""
    made = _definition(text, fault.line, _stored(fault))
    if made.startswith("redux.sync"):
        return True
    makers = [_definition(text, fault.line, register) for register in re.findall(r"%\w+", made)[1:]]
    for maker in makers:  # the halves of a 64-bit number are shuffled apart
        if maker.startswith(("mov.b64", "or.b64", "shl.b64", "cvt.u64")):
            makers += [_definition(text, fault.line, register) for register in re.findall(r"%\w+", maker)[1:]]
    return any(maker.startswith("shfl.sync.bfly") for maker in makers)


def reads_all_of_it(text: str, fault: Fault) -> bool:
    """Whether the copy loses its count of bytes to read, before the first wait of the pipeline."""
    waits = [line for line, _ in _lines(text, "cp.async.wait_group")]
    return fault.after.count(",") < fault.before.count(",") and fault.line < min(waits, default=0)


def is_unused(text: str, fault: Fault) -> bool:
    """Whether nobody reads the register that is loaded."""
    register = re.escape(re.findall(r"%\w+", fault.before.split("[")[0])[-1])
    pattern = re.compile(rf"[a-z][\w.:]*\s+\{{?\s*{register}\b")
    return all(
        pattern.search(re.sub(r"^@!?%\w+\s+", "", line.strip())) for line in text.split("\n")
        if re.search(rf"{register}\b", line) and not line.strip().startswith(("//", ".reg"))
    )  # fmt: skip


def is_of_an_upper_half(text: str, fault: Fault) -> bool:
    """Whether what is shuffled is the upper half of a 64-bit number."""
    register = re.escape(re.findall(r"%\w+", fault.before)[1])
    return re.search(rf"mov\.b64\s+\{{(%\w+|_), {register}\}},", text) is not None


def is_uniform(text: str, fault: Fault) -> bool:
    """Whether what is shuffled is the number of the warp."""
    made = _definition(text, fault.line, re.findall(r"%\w+", fault.before)[1])
    return re.fullmatch(r"(shr|bfe)\.u32\s+%\w+, %\w+, 5(, \d+)?;", made) is not None


def _next(text: str, opcode: str, line: int) -> int:
    return next((number for number, _ in _lines(text, opcode) if number > line), 0)


def is_of_the_first_sum(text: str, fault: Fault) -> bool:
    """Whether butterflies for two later lines of the source follow: the second look at the mean, and the variance."""
    later = {_source(text, line) for line, _ in _lines(text, "shfl.sync.bfly") if line > fault.line}
    return len({place for place in later if place > _source(text, fault.line)}) == 2


def _source(text: str, line: int) -> int:
    """The line of the family's device.py that this one comes of; 0: none."""
    at = next((i for i in reversed(text.split("\n")[:line]) if i.startswith("\t.loc")), "")
    places = re.findall(r"device\.py:(\d+)", at)
    return int(places[0]) if places else 0


def copies_the_same_again(text: str, fault: Fault) -> bool:
    """Whether copies before the first wait read from the same address: into the same place, or all places of a ring."""
    to, source = re.findall(r"\[\s*(%\w+)", fault.before)[:2]
    first_wait = min((line for line, _ in _lines(text, "cp.async.wait_group")), default=0)
    before = [
        line for line in text.split("\n")[: max(0, first_wait - 1)] if "cp.async.c" in line and f"[ {source} +" in line
    ]
    is_set_once = len(_setters(text, source)) == 1
    return is_set_once and fault.line > first_wait and (len(before) > 1 or any(f"[ {to} +" in line for line in before))


def all_wait_for_bulk_copies(text: str, fault: Fault) -> bool:
    """Whether the next wait for bulk copies has no guard."""
    return bool(_next(text, "cp.async.bulk.wait_group", fault.line))


def is_summed_by_the_first_lanes(text: str, fault: Fault) -> bool:
    """Whether what is loaded goes next into a butterfly that joins fewer than all lanes."""
    register = re.escape(re.findall(r"%\w+", fault.after.split("[")[0])[-1])
    for _, shuffle in _lines(text, "shfl.sync.bfly"):
        if found := re.search(rf", {register}, (\d+), 31", shuffle):
            return int(found[1]) < 16
    return False


def is_shuffled_for_nothing(text: str, fault: Fault) -> bool:
    """Whether every lane holds the same of what is shuffled."""
    return _is_the_same_in_all(text, re.findall(r"%\w+", fault.before)[1])


def is_stored_by_any(text: str, fault: Fault) -> bool:
    """Whether every thread of the CTA holds the same address and the same number."""
    place, stored = fault.before.split("]", 1)
    registers = re.findall(r"%\w+", place.split("[", 1)[1] + stored)
    return all(_is_the_same_in_all(text, register) for register in registers)


def _is_the_same_in_all(text: str, register: str) -> bool:
    """Whether the number of the thread has no part in it: of all that it is computed from, wherever that is set."""
    made_of: dict[str, list[str]] = defaultdict(list)
    for line in text.split("\n"):
        if found := re.match(r"\s+(?:@!?%\w+\s+)?[a-z][\w.:]*\s+(\{[^}]*\}|%\w+(?:\|%\w+)?)(.*)", line.split("//")[0]):
            for result in re.findall(r"%\w+", found[1]):
                made_of[result].append(line)
    wanted, seen = [register], {register}
    while wanted:
        for line in made_of[wanted.pop()]:
            if re.search(r"%(tid|laneid)\b|elect\.sync|shfl\.sync\.(up|down|idx)|atom\.|ldmatrix|mma", line):
                return False
            more = {r for r in re.findall(r"%\w+", line) if r in made_of} - seen
            seen |= more
            wanted += more
    return True


def copies_a_lower_half(text: str, fault: Fault) -> bool:
    """Whether four of eight bytes are read."""
    return fault.after.endswith(", 4;")


def turns_by_one(text: str, fault: Fault) -> bool:
    """Whether the mbarrier, at an offset that stands in the text, was initialised for one arrival."""
    offset = _offset(text, fault.line, _address(fault.before))
    inits = [(line, re.findall(r"\d+", i)[-1], _address(i)) for line, i in _guarded(text, "mbarrier.init")]
    counts = {count for line, count, address in inits if _offset(text, line, address) == offset}
    return bool(offset) and counts == {"1"}


def _guarded(text: str, opcode: str) -> list[tuple[int, str]]:
    """(line, instruction) of those with this opcode, whatever guards them."""
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in lines if re.match(rf"(@!?%\w+\s+)?{re.escape(opcode)}\b", line)]


def _address(instruction: str) -> str:
    return re.search(r"\[\s*(%\w+)", instruction)[1]


def _offset(text: str, line: int, address: str) -> str:
    """The number that is added to a register of the program's base to make this address; "" where none is."""
    found = re.fullmatch(r"add\.s32\s+%\w+, %\w+, (\d+);", _definition(text, line, address))
    return found[1] if found else ""
