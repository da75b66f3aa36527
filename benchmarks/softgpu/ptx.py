"""PTX text -> Kernel: parameters, variables, registers and instructions with their operands. Syntax only, no meaning.

    kernel = parse(text)                  # the text has one .entry
    kernel = parse(text, "up_kernel")     # the one of that name

Names are resolved here: a register or label of a `{ }` scope (inline assembly) is its own, whatever it is called
outside. What cannot be read stops with kernel, line and text: `Unreadable`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple


class Unreadable(ValueError):
    """PTX that this tool does not know: kernel, line in the text, the statement, and why."""

    def __init__(self, kernel: str, line: int, text: str, why: str) -> None:
        text, why = " ".join(text.split()), " ".join(why.split())
        shown = text if len(text) <= 200 else text[:200] + " ..."
        super().__init__(f"{kernel or 'PTX'}, line {line}: {why}: `{shown}`")
        self.kernel, self.line, self.why = kernel, line, why


@dataclass(eq=False, slots=True)
class Register:
    name: str
    type: str  # "pred", "b32", ...
    bytes: int  # of a thread; 0: a predicate
    index: int  # in Kernel.registers


class Literal(NamedTuple):
    text: str


class Special(NamedTuple):
    """A special register, "%tid.x"."""

    name: str


class Symbol(NamedTuple):
    """The address of a variable or parameter, plus an offset; or a label."""

    name: str
    offset: int


class Sink(NamedTuple):
    """`_`: a result that nobody wants."""


class Not(NamedTuple):
    """`!p`."""

    register: Register


Scalar = Register | Literal | Special | Symbol | Sink | Not


class Vector(NamedTuple):
    """`{a, b}`."""

    items: tuple[Scalar, ...]


class Pair(NamedTuple):
    """`p|q`: two results."""

    items: tuple[Scalar, ...]


class Address(NamedTuple):
    """`[base + offset]`, or `[base, {coordinates}]` of a tensor map."""

    base: Scalar
    offset: int
    coordinates: tuple[Scalar, ...] = ()


Operand = Scalar | Vector | Pair | Address


@dataclass(slots=True)
class Instruction:
    line: int  # in the text, from 1
    opcode: str  # "add.rn.f32"
    guard: Register | None
    negated: bool  # the guard: `@!p`
    operands: tuple[Operand, ...]  # without labels
    text: str
    source: str  # "attention/forward.py:123" of the Triton source, "" if unknown
    targets: tuple[int, ...] = ()  # of a branch: indices of instructions


class Param(NamedTuple):
    name: str
    offset: int  # in the parameter block
    size: int
    align: int


class Variable(NamedTuple):
    space: str  # "shared", "global", "const" or "local"
    size: int
    align: int
    is_extern: bool  # its size is the launch's affair


@dataclass
class Kernel:
    name: str
    target: str  # "sm_90a"
    params: tuple[Param, ...]
    num_threads: int  # of a CTA; 0 if the text does not say
    max_registers: int  # .maxnreg; 0 if the text does not say
    cluster: tuple[int, int, int]
    variables: dict[str, Variable]
    registers: list[Register] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)

    @property
    def param_bytes(self) -> int:
        return self.params[-1].offset + self.params[-1].size if self.params else 0


def parse(text: str, entry: str | None = None) -> Kernel:
    """The kernel `entry` of a PTX module, or its only one."""
    files = {
        n: "".join(re.findall(r'"([^"]*)"', names)) for n, names in re.findall(r"^\s*\.file\s+(\d+)(.*)$", text, re.M)
    }
    text = _COMMENT.sub(_without_comment, text)
    module = _Module(text)
    module.scan()
    if entry is None and len(module.entries) == 1:
        entry = next(iter(module.entries))
    if entry not in module.entries:
        raise Unreadable("", 1, "", f"no .entry {entry or 'chosen'} among {sorted(module.entries) or 'none'}")
    header, body = module.entries[entry]
    directives = header["directives"]

    def sizes(directive: str) -> list[int]:
        found = re.search(rf"\.{directive}\s+(\d+(?:\s*,\s*\d+)*)", directives)
        return [int(n) for n in found[1].split(",")] if found else []

    threads = sizes("reqntid") or sizes("maxntid")
    cluster = [*sizes("reqnctapercluster"), 1, 1, 1][:3]
    kernel = Kernel(
        name=entry,
        target=module.target,
        params=_params(entry, header),
        num_threads=prod(threads) if threads else 0,
        max_registers=next(iter(sizes("maxnreg")), 0),
        cluster=(cluster[0], cluster[1], cluster[2]),
        variables=dict(module.variables),
    )
    _Body(kernel, text, body, {n: "/".join(name.split("/")[-2:]) for n, name in files.items()}).scan()
    return kernel


# ---- the module ------------------------------------------------------------------------------------------------------

_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.S)
_FUNCTION = re.compile(
    r"(?:\.(?:extern|visible|weak|common)\s+)*\.(?P<kind>entry|func)\s*(?:\([^)]*\)\s*)?(?P<name>[\w$]+)\s*"
    r"(?:\((?P<params>[^)]*)\))?(?P<directives>[^{};]*)(?P<end>[{;])"
)
_LINE_DIRECTIVE = re.compile(r"\.(version|target|address_size|file|loc)\b([^\n]*)")
_VARIABLE = re.compile(
    r"(?P<linkage>(?:\.(?:extern|visible|weak|common)\s+)*)\.(?P<space>shared|global|const|local)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?(?:\.v(?P<lanes>[24])\s+)?\.(?P<type>[busf]\d+)\s+"
    r"(?P<name>[\w$%]+)\s*(?P<array>(?:\[\s*\d*\s*\]\s*)*)(?:=(?P<values>.*))?",
    re.S,
)


def _without_comment(match: re.Match[str]) -> str:
    token = match[0]
    return token if token[0] == '"' else " " + "\n" * token.count("\n")


class _Module:
    """What stands outside function bodies."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.target = ""
        self.variables: dict[str, Variable] = {}
        self.entries: dict[str, tuple[re.Match[str], int]] = {}  # name -> header, where the body starts

    def scan(self) -> None:
        text, at = self.text, 0
        space = re.compile(r"\s*")
        while (at := space.match(text, at).end()) < len(text):  # type: ignore[union-attr]
            if directive := _LINE_DIRECTIVE.match(text, at):
                at = directive.end()
                if directive[1] == "target":
                    self.target = directive[2].split(",")[0].strip()
            elif text.startswith(".section", at):
                at = self._behind_braces(text.find("{", at) + 1 or len(text))
            elif function := _FUNCTION.match(text, at):
                at = function.end()
                if function["end"] == "{":
                    if function["kind"] == "entry":
                        self.entries[function["name"]] = (function, at)
                    at = self._behind_braces(at)
            else:
                end = text.find(";", at)
                statement = text[at : end if end >= 0 else len(text)]
                if variable := _VARIABLE.fullmatch(statement.strip()):
                    self.variables[variable["name"]] = _variable(variable)
                elif not statement.startswith(".pragma"):
                    line = text.count("\n", 0, at) + 1
                    raise Unreadable("", line, statement[:200].split("\n")[0], "unknown statement of a module")
                at = len(text) if end < 0 else end + 1

    def _behind_braces(self, at: int) -> int:
        """Where the scope that is open at `at` has been closed."""
        depth = 1
        for brace in re.compile(r"[{}]").finditer(self.text, at):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return brace.end()
        raise Unreadable("", self.text.count("\n", 0, at) + 1, "{", "this brace is never closed")


def _variable(match: re.Match[str]) -> Variable:
    element = int(match["type"][1:]) // 8 * int(match["lanes"] or 1)
    counts = [int(n or 0) for n in re.findall(r"\[\s*(\d*)\s*\]", match["array"])]
    if counts and counts[0] == 0 and match["values"]:  # `name[] = {1, 2}`
        counts[0] = match["values"].count(",") + 1
    return Variable(
        match["space"], element * prod(counts), int(match["align"] or element), ".extern" in match["linkage"]
    )


def _params(kernel: str, header: re.Match[str]) -> tuple[Param, ...]:
    """`.param .u64 .ptr .global .align 1 name` (that alignment is the pointee's), `.param .align 64 .b8 name[128]`."""
    params: list[Param] = []
    offset = 0
    for part in re.finditer(r"[^\s,][^,]*", header["params"] or ""):
        declaration = part[0].strip()
        match = re.fullmatch(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.[busf](\d+)\s+(?:\.ptr\s+(?:\.\w+\s+(?:\d+\s+)?)*)?([\w$%]+)\s*(?:\[(\d+)\])?",
            declaration,
        )
        if match is None:
            line = header.string.count("\n", 0, header.start("params") + part.start()) + 1
            raise Unreadable(kernel, line, declaration, "unknown parameter")
        element = int(match[2]) // 8
        align = int(match[1] or element)
        offset = -(-offset // align) * align
        params.append(Param(match[3], offset, element * int(match[4] or 1), align))
        offset += params[-1].size
    return tuple(params)


# ---- a kernel's body -------------------------------------------------------------------------------------------------

_STATEMENT = re.compile(r"\s*(?:(\.loc\b[^\n]*)|([\w$]+)\s*:(?!:)|([{}])|([^\s{};][^;]*);)")
_GUARD = re.compile(r"@\s*(!?)\s*([%\w$]+)\s+")
_OPCODE = re.compile(r"([a-z][\w.]*(?:::[\w.]+)*)\s*")
_LITERAL = re.compile(
    r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|-?\d+\.\d*(?:[eE][-+]?\d+)?"
)
_NAME = re.compile(r"[A-Za-z_$%][\w$]*")
_SPECIAL = re.compile(r"%[a-z_][a-z_0-9]*(?:\.[xyzw])?")
_SUM = re.compile(r"([\w$%.]+)\s*([+-])\s*(-?)\s*(\w+)")
_CLOSING = {"{": "}", "[": "]", "(": ")"}
SINK = Sink()


class _Scope:
    def __init__(self, parent: _Scope | None) -> None:
        self.parent = parent
        self.registers: dict[str, Register] = {}
        self.labels: dict[str, int] = {}
        # Operands read so far in this environment of registers: most are met many times.
        self.operands: dict[str, Operand] = {} if parent is None else parent.operands

    def declare(self, register: Register) -> None:
        if not self.registers and self.parent is not None:
            self.operands = {}
        self.registers[register.name] = register

    def register(self, name: str) -> Register | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.registers:
                return scope.registers[name]
            scope = scope.parent
        return None

    def label(self, name: str) -> int | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.parent
        return None


class _Body:
    def __init__(self, kernel: Kernel, text: str, start: int, files: dict[str, str]) -> None:
        self.kernel, self.text, self.at, self.files = kernel, text, start, files
        self.scope = _Scope(None)
        self.line = 0
        self.statement = ""
        self.source = ""
        self.tables: dict[str, tuple[str, ...]] = {}  # .branchtargets
        self.branches: list[tuple[Instruction, _Scope, tuple[str, ...]]] = []

    def error(self, why: str) -> Unreadable:
        return Unreadable(self.kernel.name, self.line, self.statement, why)

    def scan(self) -> None:
        text, at = self.text, self.at
        self.line, counted = text.count("\n", 0, at) + 1, at
        last_label = ""
        while True:
            match = _STATEMENT.match(text, at)
            if match is None:
                self.line += text.count("\n", counted, at)
                self.statement = text[at : at + 100].strip()
                raise self.error("not a statement")
            kind = match.lastindex or 0
            start, at = match.start(kind), match.end()
            self.line += text.count("\n", counted, start)
            counted = start
            self.statement = token = match[kind]
            if kind == 4:
                if token[0] == ".":
                    self._directive(token, last_label)
                else:
                    self._instruction(token)
            elif kind == 1:
                parts = token.split(None, 3)
                self.source = f"{self.files.get(parts[1], '?')}:{parts[2]}"
            elif kind == 2:
                if token in self.scope.labels:
                    raise self.error("a label that was there before")
                self.scope.labels[token] = len(self.kernel.instructions)
                last_label = token
            elif token == "{":
                self.scope = _Scope(self.scope)
            elif self.scope.parent is not None:
                self.scope = self.scope.parent
            else:
                break
        for instruction, scope, names in self.branches:
            self.line, self.statement = instruction.line, instruction.text
            targets = [scope.label(name) for name in names]
            if None in targets:
                raise self.error(f"no label {names[targets.index(None)]}")
            instruction.targets = tuple(target for target in targets if target is not None)

    def _directive(self, text: str, last_label: str) -> None:
        word = text.split(None, 1)[0]
        if word == ".reg":
            self._declare(text)
        elif word == ".branchtargets":
            self.tables[last_label] = tuple(name.strip() for name in text.removeprefix(word).split(","))
        elif variable := _VARIABLE.fullmatch(text.strip()):
            if variable["name"] in self.kernel.variables:
                raise self.error("a variable that was there before")
            self.kernel.variables[variable["name"]] = _variable(variable)
        elif word == ".param":
            raise self.error("functions are not called here")
        elif word != ".pragma":
            raise self.error("unknown directive")

    def _declare(self, text: str) -> None:
        match = re.fullmatch(r"\.reg\s+\.(pred|[busf]\d+|b?f16x2)\s+(.*)", text, re.S)
        if match is None:
            raise self.error("unknown declaration of registers")
        size = 0 if match[1] == "pred" else 4 if match[1].endswith("x2") else max(int(match[1].lstrip("busf")) // 8, 2)
        for part in match[2].split(","):
            name = re.fullmatch(r"([\w$%]+)(?:<(\d+)>)?", part.strip())
            if name is None:
                raise self.error("unknown declaration of registers")
            names = [name[1]] if name[2] is None else [f"{name[1]}{i}" for i in range(int(name[2]))]
            for one in names:
                register = Register(one, match[1], size, len(self.kernel.registers))
                self.kernel.registers.append(register)
                self.scope.declare(register)

    def _instruction(self, text: str) -> None:
        at, guard, negated = 0, None, False
        if text[0] == "@":
            match = _GUARD.match(text)
            guard = self.scope.register(match[2]) if match else None
            if match is None or guard is None or guard.type != "pred":
                raise self.error("unknown guard")
            at, negated = match.end(), match[1] == "!"
        match = _OPCODE.match(text, at)
        if match is None:
            raise self.error("not an instruction")
        opcode = match[1]
        operands = self._operands(text[match.end() :].strip())
        instruction = Instruction(self.line, opcode, guard, negated, operands, " ".join(text.split()), self.source)
        if opcode == "bra" or opcode.startswith(("bra.", "brx.")):
            label = operands[-1] if operands else None
            if not isinstance(label, Symbol):
                raise self.error("a branch to no label")
            names: tuple[str, ...] = (label.name,)
            if opcode.startswith("brx."):
                if label.name not in self.tables:
                    raise self.error(f"no .branchtargets {label.name}")
                names = self.tables[label.name]
            instruction.operands = operands[:-1]
            self.branches.append((instruction, self.scope, names))
        self.kernel.instructions.append(instruction)

    def _operands(self, text: str) -> tuple[Operand, ...]:
        known = self.scope.operands
        operands: list[Operand] = []
        at, length = 0, len(text)
        while at < length:
            closing = _CLOSING.get(text[at])
            end = at
            if closing is not None:
                end = text.find(closing, at) + 1
                if end == 0:
                    raise self.error(f"no {closing}")
            comma = text.find(",", end)
            if comma < 0:
                comma = length
            elif comma + 1 == length:
                raise self.error("an operand is missing")
            part = text[at:comma].strip()
            operand = known.get(part)
            if operand is None:
                operand = known[part] = self._operand(part)
            operands.append(operand)
            at = comma + 1
            while at < length and text[at].isspace():
                at += 1
        return tuple(operands)

    def _operand(self, text: str) -> Operand:
        if text[:1] == "{" and text[-1] == "}":
            return Vector(tuple(self._scalar(part.strip()) for part in text[1:-1].split(",")))
        if text[:1] == "[" and text[-1] == "]":
            base, _, rest = text[1:-1].partition(",")
            coordinates: tuple[Scalar, ...] = ()
            if rest:
                vector = self._operand(rest.strip())
                if not isinstance(vector, Vector):
                    raise self.error(f"unknown address {text}")
                coordinates = vector.items
            match = _SUM.fullmatch(base.strip())
            if match is None:
                return Address(self._scalar(base.strip()), 0, coordinates)
            return Address(self._scalar(match[1]), self._offset(match), coordinates)
        if "|" in text:
            return Pair(tuple(self._scalar(part.strip()) for part in text.split("|")))
        return self._scalar(text)

    def _offset(self, match: re.Match[str]) -> int:
        if not _LITERAL.fullmatch(match[4]):
            raise self.error(f"unknown offset {match[0]}")
        return integer(match[4]) * (-1 if (match[2] == "-") != (match[3] == "-") else 1)

    def _scalar(self, text: str) -> Scalar:
        register = self.scope.register(text)
        if register is not None:
            return register
        if text == "_":
            return SINK
        if _LITERAL.fullmatch(text):
            return Literal(text)
        if text[:1] == "!":
            register = self.scope.register(text[1:].strip())
            if register is not None and register.type == "pred":
                return Not(register)
        elif text[:1] == "%":
            if _SPECIAL.fullmatch(text):
                return Special(text)
        elif _NAME.fullmatch(text):
            return Symbol(text, 0)
        elif (match := _SUM.fullmatch(text)) and _NAME.fullmatch(match[1]):
            return Symbol(match[1], self._offset(match))
        raise self.error(f"unknown operand {text}")


def integer(text: str) -> int:
    """The value of an integer literal."""
    text = text.rstrip("U").lower()
    digits = text.lstrip("-")
    if digits.startswith(("0x", "0b")):
        value = int(digits, 0)
    else:
        value = int(digits, 8 if len(digits) > 1 and digits[0] == "0" else 10)
    return -value if text[0] == "-" else value
