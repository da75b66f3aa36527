"""Syntax trees and the text that they are read from: what two of them have in common, and exchanging a piece."""

from __future__ import annotations

import ast
from dataclasses import dataclass

Position = tuple[int, int]  # line, from 1; column, in bytes of UTF-8 from 0

_IGNORED = ("ctx", "kind", "type_comment")


@dataclass(frozen=True)
class Edit:
    """The file's text from `start` to `end` becomes `text`."""

    start: Position
    end: Position
    text: str

    def apply(self, text: str) -> str:
        data = text.encode()
        start, end = (_offset(data, position) for position in (self.start, self.end))
        return (data[:start] + self.text.encode() + data[end:]).decode()


def same(a, b) -> bool:
    """Whether two syntax trees mean the same: places and contexts (load, store) aside."""
    if type(a) is not type(b):
        return False
    if isinstance(a, ast.AST):
        return all(same(getattr(a, f, None), getattr(b, f, None)) for f in a._fields if f not in _IGNORED)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def span(node: ast.AST) -> tuple[Position, Position]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def start_of(statement: ast.stmt) -> Position:
    """Where a statement begins, its decorators included."""
    lines = [decorator.lineno for decorator in getattr(statement, "decorator_list", ())]
    return min([statement.lineno, *lines]), statement.col_offset


def indented(text: str, columns: int) -> str:
    """Statements as a block's: every line but the first, and but those that lie in a string, moved to the right."""
    strings = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Constant, ast.JoinedStr))]
    inside = {line for node in strings for line in range(node.lineno + 1, node.end_lineno + 1)}
    lines = text.split("\n")
    moved = [line if i in inside or not line else " " * columns + line for i, line in enumerate(lines[1:], 2)]
    return "\n".join([lines[0], *moved])


def _offset(data: bytes, position: Position) -> int:
    line, column = position
    return sum(map(len, data.splitlines(keepends=True)[: line - 1])) + column
