"""Find a piece of Python in a file by its syntax tree, and put another in its place.

Layout, comments, quotes and superfluous parentheses do not matter: what is compared are trees, not text. The file keeps
its text but for the piece that is exchanged.
"""

from __future__ import annotations

import ast
import functools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_IGNORED = ("ctx", "kind", "type_comment")
_ATOMS = (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.Constant, ast.List, ast.Dict, ast.Set)
_CHAINS = (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)
_Position = tuple[int, int]  # line, from 1; column, in bytes of UTF-8 from 0


@dataclass(frozen=True)
class Edit:
    """The file's text from `start` to `end` becomes `text`."""

    start: _Position
    end: _Position
    text: str

    def apply(self, text: str) -> str:
        data = text.encode()
        start, end = (_offset(data, position) for position in (self.start, self.end))
        return (data[:start] + self.text.encode() + data[end:]).decode()


def edits(text: str, source: str, replacement: str, where: str = "") -> list[Edit]:
    """Each place in `text`, inside the definitions named `where`, at which `source` occurs, as what would replace it.

    Raises SyntaxError if one of the three is no Python, LookupError if nothing is named `where`. What `source` and
    `replacement` may be is told by `tests.mutants.plant.Mutant`.
    """
    nodes = _nodes(text, where)
    source, replacement = textwrap.dedent(source).strip(), textwrap.dedent(replacement).strip()
    if source.startswith("@"):
        return list(_decorators(nodes, source, replacement))
    old, new = _expression(source), _expression(replacement)
    if old and new:
        return list(_expressions(nodes, old, new, replacement))
    old, new = _parsed(source).body, _parsed(replacement).body
    found = [*_statements(nodes, old, replacement or "pass")]
    if given := _assignment(old):
        found += [*_keywords(nodes, given, replacement), *_defaults(nodes, given, _assignment(new))]
    return found


def same(a, b) -> bool:
    """Whether two syntax trees mean the same: places and contexts (load, store) aside."""
    if type(a) is not type(b):
        return False
    if isinstance(a, ast.AST):
        return all(same(getattr(a, f, None), getattr(b, f, None)) for f in a._fields if f not in _IGNORED)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# --- what is looked for -----------------------------------------------------------------------------------------------


def _expressions(nodes, old: ast.expr, new: ast.expr, text: str) -> Iterator[Edit]:
    for node in (node for node in nodes if type(node) is type(old)):
        if same(node, old):
            # A generator that is a call's only argument has the call's parentheses for its own.
            bare = isinstance(new, _ATOMS) and "\n" not in text and not isinstance(node, ast.GeneratorExp)
            yield Edit(*_span(node), text if bare else f"({text})")
        else:
            for chain in _chains(node, old, new):
                yield Edit(*_span(node), f"({ast.unparse(chain)})")


def _chains(node: ast.expr, old: ast.expr, new: ast.expr) -> Iterator[ast.expr]:
    """The chains that `node` becomes when `old`, some consecutive operands of it but not all, become `new`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, _CHAINS) and type(node.op) is type(old.op):
        # a + b + c is (a + b) + c: its first operands are a node, and so are those of every chain that ends earlier.
        operands, wanted = _operands(node), _operands(old)
        first = len(operands) - len(wanted)
        if first > 0 and same(operands[first:], wanted):
            yield functools.reduce(lambda a, b: ast.BinOp(a, node.op, b), [*operands[:first], new])
    elif isinstance(node, ast.BoolOp) and type(node.op) is type(old.op):
        for i, j in _runs(node.values, old.values):
            yield ast.BoolOp(node.op, [*node.values[:i], new, *node.values[j:]])
    elif isinstance(node, ast.Compare) and isinstance(new, ast.Compare):
        operands = [node.left, *node.comparators]
        for i, j in _runs(operands, [old.left, *old.comparators]):
            if same(node.ops[i : j - 1], old.ops):
                left, *others = [*operands[:i], new.left, *new.comparators, *operands[j:]]
                yield ast.Compare(left, [*node.ops[:i], *new.ops, *node.ops[j - 1 :]], others)


def _statements(nodes, old: list[ast.stmt], text: str) -> Iterator[Edit]:
    for node in nodes:
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            for i, j in _runs(block, old) if isinstance(block, list) else ():
                start = _start(block[i])
                yield Edit(start, _span(block[j - 1])[1], _indented(text, start[1]))


def _decorators(nodes, source: str, replacement: str) -> Iterator[Edit]:
    (old,) = _parsed(f"{source}\ndef decorated(): pass").body[0].decorator_list
    for node in nodes:
        for decorator in getattr(node, "decorator_list", ()):
            if same(decorator, old):
                yield Edit((decorator.lineno, node.col_offset), _span(decorator)[1], replacement)


class _Assignment(NamedTuple):
    name: str
    kind: ast.expr | None  # its annotation
    value: ast.expr


def _assignment(statements: list[ast.stmt]) -> _Assignment | None:
    """`name = value` or `name: kind = value`, which may as well be an argument or a parameter."""
    match statements:
        case [ast.Assign([ast.Name(name)], value)]:
            return _Assignment(name, None, value)
        case [ast.AnnAssign(ast.Name(name), kind, ast.expr() as value)]:
            return _Assignment(name, kind, value)
    return None


def _keywords(nodes, old: _Assignment, replacement: str) -> Iterator[Edit]:
    """`name=value` in a call."""
    if old.kind is not None:
        return
    wanted = ast.keyword(old.name, old.value)
    for node in nodes:
        for i, keyword in enumerate(node.keywords if isinstance(node, ast.Call) else ()):
            if same(keyword, wanted):
                without = ast.Call(node.func, node.args, [*node.keywords[:i], *node.keywords[i + 1 :]])
                yield Edit(*_span(keyword), replacement) if replacement else Edit(*_span(node), ast.unparse(without))


def _defaults(nodes, old: _Assignment, new: _Assignment | None) -> Iterator[Edit]:
    """`name=value`, `name: kind = value` among a function's parameters, whose value is exchanged."""
    for node in nodes if new else ():
        if isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            pairs = [*zip(positional[::-1], node.defaults[::-1]), *zip(node.kwonlyargs, node.kw_defaults)]
            for parameter, default in pairs:
                if parameter.arg == old.name and same(parameter.annotation, old.kind) and same(default, old.value):
                    yield Edit(*_span(default), f"({ast.unparse(new.value)})")


# --- trees and text ---------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _expression(text: str) -> ast.expr | None:
    try:
        return ast.parse(f"(\n{text}\n)", mode="eval").body if text else None
    except SyntaxError:
        return None


@functools.lru_cache(maxsize=64)
def _nodes(text: str, where: str) -> list[ast.AST]:
    """All nodes inside the definitions named `where`."""
    tree = _parsed(text)
    scopes = [tree] if not where else [node for name, node in _definitions(tree, "") if name == where]
    if not scopes:
        raise LookupError(f"there is no {where!r}")
    return [node for scope in scopes for node in _walk(scope)]


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
            yield from _definitions(node, f"{prefix}{node.name}.")
        else:
            yield from _definitions(node, prefix)


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those inside f-strings, whose places older Pythons do not tell."""
    yield tree
    if not isinstance(tree, ast.JoinedStr):
        for node in ast.iter_child_nodes(tree):
            yield from _walk(node)


def _operands(node: ast.BinOp) -> list[ast.expr]:
    left = node.left
    chain = isinstance(left, ast.BinOp) and type(left.op) is type(node.op)
    return [*(_operands(left) if chain else [left]), node.right]


def _runs(items: list, wanted: list) -> Iterator[tuple[int, int]]:
    for i in range(len(items) - len(wanted) + 1):
        if same(items[i : i + len(wanted)], wanted):
            yield i, i + len(wanted)


def _span(node: ast.AST) -> tuple[_Position, _Position]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _start(statement: ast.stmt) -> _Position:
    """Where a statement begins, its decorators included."""
    lines = [decorator.lineno for decorator in getattr(statement, "decorator_list", ())]
    return min([statement.lineno, *lines]), statement.col_offset


def _offset(data: bytes, position: _Position) -> int:
    line, column = position
    return sum(map(len, data.splitlines(keepends=True)[: line - 1])) + column


def _indented(text: str, columns: int) -> str:
    """Statements as a block's: every line but the first, and but those that lie in a string, moved to the right."""
    strings = [n for n in ast.walk(_parsed(text)) if isinstance(n, (ast.Constant, ast.JoinedStr))]
    inside = {line for node in strings for line in range(node.lineno + 1, node.end_lineno + 1)}
    lines = text.split("\n")
    moved = [line if i in inside or not line else " " * columns + line for i, line in enumerate(lines[1:], 2)]
    return "\n".join([lines[0], *moved])
