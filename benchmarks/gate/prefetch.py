"""Copies that a pipelined loop issues ahead of their step, and whether the machine code still asks if there is a step.

The pipeliner issues the copies of the first steps before the loop, and inside it those of the steps to come, each under
the condition that the loop has such a step. What it computes for them has to be defined where there is none: from a
division by 0, say, LLVM concludes that the step exists, and drops the condition. The copy then runs always: it reads
out of bounds, or lands in shared memory that has other uses by then. No interpreter sees this, and values seldom do.

Triton's last intermediate form (TTGIR) says which copies have such a condition: a scalar that depends on the kernel's
arguments or on which program this is. In PTX, the predicate of these copies (of cp.async also the number of bytes,
which is 0 where the condition does not hold) must still depend on a comparison of such scalars, one that is the same
for all threads. A copy whose own mask implies the condition, "k < K" with k >= 0 where the loop's is "K > 0", needs no
other: LLVM drops the condition with good reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

_REGISTER = re.compile(r"%(?!tid|ntid|ctaid|nctaid|laneid|warpid|clock)[A-Za-z_]+\d*\b")
_PTX_COPY = re.compile(r"cp\.async\.(c[ag]\.shared|bulk\.tensor\.\d+d\.shared|bulk\.shared)")
_PTX_PLACE = re.compile(r"\.loc\s+\d+ \d+ \d+.*//\s*([^\s/]+:\d+:\d+)")
_PTX = re.compile(r"(?:@!?(%\w+)\s+)?([a-z][\w.:]*)\s*(.*?);")
_PTX_LABEL = re.compile(r"^(\$L__BB\w+):")
_PTX_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$L__BB\w+);")
_OF_A_THREAD = re.compile(r"%(tid|laneid|warpid)|elect\.sync|activemask|shfl\.sync")
_OF_THE_LAUNCH = re.compile(r"ld\.param|ld\.global|%n?ctaid")

_MLIR = re.compile(r"^\s*(?:(%[\w#]+)(?::\d+)? = )?(?:\"?)([a-z_]+(?:\.[a-z_0-9]+)*)(.*)$")
_MLIR_VALUE = re.compile(r"%[\w$.-]+")
_MLIR_COPY = re.compile(r"ttg\.async_copy_global_to_local|ttng\.async_tma_copy_global_to_local")
_MLIR_CONDITION = re.compile(r":\s*i1 -> tensor")
_MLIR_LOWEST = re.compile(r"^ *(?:dense<)?(-?\d+)>? *:|\bstart = (\d+)")  # of a constant, of a range
_SAME_NUMBERS = {"tt.splat", "tt.broadcast", "tt.expand_dims", "ttg.convert_layout"}
_LOCATION = re.compile(r"^(#loc\d*) = loc\((.*)\)$")


def unconditional_copies(ttgir: str, ptx: str) -> list[str]:
    """Places in the source, "forward.py:21:19", whose copies have a condition in `ttgir` and none in `ptx`."""
    conditional = _conditional_copies(ttgir)
    everywhere = bool(conditional) and all(conditional.values())
    return sorted({place for place in _unguarded(ptx) if conditional.get(place, everywhere)})


@dataclass
class _Values:
    """What each value is computed from: names of others, and facts about its own definitions."""

    sources: dict[str, set[str]] = field(default_factory=dict)
    facts: dict[str, set[str]] = field(default_factory=dict)

    def define(self, names: Iterable[str], sources: Iterable[str], facts: Iterable[str] = ()) -> None:
        for name in names:
            self.sources.setdefault(name, set()).update(sources)
            self.facts.setdefault(name, set()).update(facts)

    def behind(self, names: Iterable[str]) -> set[str]:
        """All values that `names` depend on, themselves included."""
        seen, left = set(), list(names)
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += self.sources.get(name, ())
        return seen

    def facts_of(self, name: str) -> set[str]:
        return set().union(*(self.facts.get(value, ()) for value in self.behind([name])))


@dataclass(frozen=True)
class _Operation:
    """A line of TTGIR: "arith.cmpi", " sgt, %K, %c0_i32 : i32", ["%K", "%c0_i32"]."""

    name: str
    text: str
    operands: list[str]

    @property
    def predicate(self) -> str:
        """ "sgt" of a comparison."""
        return self.text.split(",")[0].strip()


def _conditional_copies(ttgir: str) -> dict[str, bool]:
    """Place in the source -> whether all copies there have a condition that depends on the launch."""
    values, copies, operations = _Values(), [], {}
    locations = dict(match.groups() for line in ttgir.splitlines() if (match := _LOCATION.match(line)))
    for line in ttgir.splitlines():
        if "tt.func" in line:
            values.define(re.findall(r"(%\w+):", line), (), ["launch"])
            continue
        match = _MLIR.match(line)
        if match is None:
            continue
        result, op, rest = match.groups()
        operands = rest.split(" loc(")[0]
        used = [name.split("#")[0] for name in _MLIR_VALUE.findall(operands)]
        if op == "scf.for":
            # The index, and what goes from step to step: of the bounds and of the first values, which is enough here.
            index, *_ = used
            values.define([index], used[1:])
            for name, first in re.findall(r"(%[\w]+) = (%[\w]+)", operands.split("iter_args", 1)[-1]):
                values.define([name], [first])
        facts = {"launch"} if op in ("tt.get_program_id", "tt.load") else set()
        if op == "tt.splat" and _MLIR_CONDITION.search(operands):
            facts.add("condition")
        if result:
            values.define([result], used, facts)
            operations[result] = _Operation(op, operands, used)
        if _MLIR_COPY.match(op):
            place = _place(rest.rsplit("loc(", 1)[-1].split(")")[0], locations)
            if "tma" in op:  # coordinates, destination, barrier, condition
                copies.append((place, [used[-1]], None))
            else:
                mask = re.search(r" mask (%[\w#]+)", operands)
                copies.append((place, [], mask[1].split("#")[0] if mask else None))
    found: dict[str, bool] = {}
    for place, conditions, mask in copies:
        if mask is not None:
            splats = [v for v in values.behind([mask]) if "condition" in values.facts.get(v, ())]
            conditions = [source for splat in splats for source in values.sources[splat]]
            conditions = [condition for condition in conditions if not _implied(condition, mask, operations)]
        conditional = any("launch" in values.facts_of(condition) for condition in conditions)
        found[place] = found.get(place, True) and conditional
    return found


def _implied(condition: str, mask: str, operations: dict[str, _Operation]) -> bool:
    """Whether `condition` is "K > n", and `mask` has a term "k < K" whose every k is n or more."""
    asked = operations.get(condition)
    if asked is None or asked.name != "arith.cmpi" or asked.predicate != "sgt":
        return False
    K, n = asked.operands
    least = _at_least(n, operations)
    return any(
        _same_everywhere(bound, operations) == K and _at_least(k, operations) >= least > -math.inf
        for k, bound in _upper_bounds(mask, operations)
    )


def _upper_bounds(mask: str, operations: dict[str, _Operation]) -> Iterator[tuple[str, str]]:
    """(k, K) of each comparison "k < K" that holds wherever `mask` does."""
    operation = operations.get(mask)
    if operation is None:
        return
    if operation.name == "arith.cmpi" and operation.predicate == "slt":
        k, bound = operation.operands
        yield k, bound
    if operation.name in ("arith.andi", *_SAME_NUMBERS):
        for name in operation.operands:
            yield from _upper_bounds(name, operations)


def _at_least(name: str, operations: dict[str, _Operation]) -> float:
    """A bound below the integers of `name`: constants, ranges and their sums have one, of others nothing is known."""
    operation = operations.get(name)
    if operation is None:
        return -math.inf
    if operation.name in ("arith.constant", "tt.make_range"):
        number = _MLIR_LOWEST.search(operation.text)
        return int(number[1] or number[2]) if number else -math.inf
    if operation.name in ("arith.addi", *_SAME_NUMBERS):
        return sum(_at_least(operand, operations) for operand in operation.operands)
    return -math.inf


def _same_everywhere(name: str, operations: dict[str, _Operation]) -> str:
    """The scalar whose value all elements of the tensor `name` have; `name` itself if none is known."""
    while (operation := operations.get(name)) and operation.name in _SAME_NUMBERS:
        (name,) = operation.operands
    return name


def _place(name: str, locations: dict[str, str]) -> str:
    """ "forward.py:21:19" of a location: its innermost file, line and column."""
    text = name
    while text.startswith("#") or not re.match(r'"[^"]*":\d+:\d+', text):
        inner = re.search(r"#loc\d*", text)
        if inner is None or inner[0] not in locations:
            return "?"
        text = locations[inner[0]]
    file, line, column = re.match(r'"([^"]*)":(\d+):(\d+)', text).groups()
    return f"{file.rsplit('/', 1)[-1]}:{line}:{column}"


def _unguarded(ptx: str) -> list[str]:
    """Places of the copies of `ptx` before a loop that no comparison of the launch's scalars guards."""
    values, copies, place = _Values(), [], "?"
    lines = ptx.splitlines()
    loops = _innermost_loops(lines)
    for index, line in enumerate(lines):
        if match := _PTX_PLACE.search(line):
            place = match[1]
            continue
        match = _PTX.match(line.split("//")[0].strip().lstrip("{ "))
        if match is None:
            continue
        predicate, opcode, operands = match.groups()
        guard = [predicate] if predicate else []
        if _PTX_COPY.match(opcode):
            size = [] if "bulk" in opcode else _REGISTER.findall(operands.rsplit("]", 1)[-1])
            # Inside the loop the condition may be a flag, or gone where the number of steps is a constant.
            before = any(index < first for first, _ in loops)  # a loop of one step is straight code
            if before and not any(first < index < last for first, last in loops):
                copies.append((place, guard + size))
            continue
        written, read = _split(operands)
        facts = {"thread"} if _OF_A_THREAD.search(match[0]) else set()
        if _OF_THE_LAUNCH.search(match[0]):
            facts.add("launch")
        if opcode.startswith("setp"):
            facts.add("comparison")
        values.define(written, [*read, *guard], facts)
    guarded = _remembering(lambda name: _is_condition(values, name))
    return [place for place, names in copies if not any(map(guarded, values.behind(names)))]


def _innermost_loops(lines: list[str]) -> list[tuple[int, int]]:
    """(line of the label, line of the branch back to it) of each loop that holds no other."""
    labels = {match[1]: i for i, line in enumerate(lines) if (match := _PTX_LABEL.match(line))}
    back = [(labels.get(name, i), i) for i, line in enumerate(lines) for name in _PTX_BRANCH.findall(line)]
    loops = [(first, last) for first, last in back if first < last]
    return [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]


def _is_condition(values: _Values, name: str) -> bool:
    """A comparison whose outcome is the same for all threads and differs between launches, programs or steps."""
    if "comparison" not in values.facts.get(name, ()):
        return False
    facts = values.facts_of(name)
    return "launch" in facts and "thread" not in facts


def _split(operands: str) -> tuple[list[str], list[str]]:
    """(registers written, registers read): the first operand is written unless it is an address."""
    depth, end = 0, 0
    while end < len(operands) and (operands[end] != "," or depth):
        depth += (operands[end] in "[{") - (operands[end] in "]}")
        end += 1
    first, rest = operands[:end], operands[end:]
    if "[" in first:
        return [], _REGISTER.findall(operands)
    return _REGISTER.findall(first), _REGISTER.findall(rest)


def _remembering(function: Callable[[str], bool]) -> Callable[[str], bool]:
    known: dict[str, bool] = {}

    def ask(name: str) -> bool:
        if name not in known:
            known[name] = function(name)
        return known[name]

    return ask
