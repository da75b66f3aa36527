"""What becomes of a place: each verb of `Place`, as an edit of the file's text."""

from __future__ import annotations

import ast
import copy
import functools
import textwrap
from collections.abc import Callable

from .edits import Edit, indented, span, start_of
from .finding import Tree, arguments, items, operands, tree_of
from .places import OPERATORS, Change, Place

_ATOMS = (ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.Constant, ast.List, ast.Dict, ast.Set)


def edit_of(change: Change, text: str, where: str) -> Edit:
    """What `change` does to a file's text, inside its definition `where`. LookupError if its place is not one, or is
    nothing that the verb could be said of; SyntaxError if what shall stand there is no Python."""
    tree = tree_of(text)
    return _VERBS[change.verb](tree, tree.find(change.place, where), *change.given)


def _becomes(tree: Tree, node: ast.AST, new: str | Place) -> Edit:
    if isinstance(new, Place):
        return _put(tree, node, tree.within([node], new))
    text = textwrap.dedent(new).strip()
    parsed = _expression(text)
    if parsed is None and isinstance(node, ast.expr) and not isinstance(tree.parents[node], ast.Expr):
        return Edit(*span(node), text)  # between brackets: no expression by itself
    if parsed is None or isinstance(node, ast.stmt):
        statement = _statement(tree, node)
        block = ast.parse(text)
        return _put_block(statement, ast.unparse(_With(statement).visit(block)) if _names_it(block) else text)
    return _put(tree, node, _With(node).visit(parsed) if _names_it(parsed) else text)


def _dropped(tree: Tree, node: ast.AST) -> Edit:
    above = tree.parents[node]
    if isinstance(node, ast.stmt) or isinstance(above, ast.Expr):
        return _put_block(_statement(tree, node), "pass")
    if node in getattr(above, "decorator_list", ()):
        return Edit((node.lineno, above.col_offset), span(node)[1], "")
    if isinstance(above, ast.keyword):
        call = tree.parents[above]
        return _put(tree, call, ast.Call(call.func, call.args, [k for k in call.keywords if k is not above]))
    if isinstance(above, ast.Call):
        return _put(tree, above, ast.Call(above.func, [a for a in above.args if a is not node], above.keywords))
    if isinstance(above, ast.Dict):
        kept = [(key, value) for key, value in zip(above.keys, above.values) if value is not node]
        return _put(tree, above, ast.Dict(*map(list, zip(*kept))) if kept else ast.Dict([], []))
    if isinstance(above, (ast.Tuple, ast.List, ast.Set)):
        return _put(tree, above, _with_items(above, [item for item in above.elts if item is not node]))
    if whole := tree.operation_of(node):
        return _put(tree, whole, _without(whole, operands(whole).index(node)))
    raise LookupError(f"nothing to take `{ast.unparse(node)}` out of")


def _always(tree: Tree, node: ast.AST, holds: bool = True) -> Edit:
    if isinstance(node, ast.IfExp):
        return _put(tree, node, node.body if holds else node.orelse)
    return _put(tree, node, str(holds))


def _negated(tree: Tree, node: ast.expr) -> Edit:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _put(tree, node, node.operand)
    return _put(tree, node, ast.UnaryOp(ast.Not(), node))


def _operator(tree: Tree, node: ast.AST, new: str, nth: int = 1) -> Edit:
    other = OPERATORS[new]()
    match node:
        case ast.Compare(left, ops, others):
            return _put(tree, node, ast.Compare(left, [*ops[: nth - 1], other, *ops[nth:]], others))
        case ast.BoolOp(_, values):
            return _put(tree, node, ast.BoolOp(other, values))
        case ast.BinOp(left, _, right):
            return _put(tree, node, ast.BinOp(left, other, right))
        case ast.AugAssign(target, _, value):
            return _put_block(node, ast.unparse(ast.AugAssign(target, other, value)))
    raise LookupError("there is no operator")


def _swapped(tree: Tree, node: ast.expr, i: int = 1, j: int = 2) -> Edit:
    if isinstance(node, ast.IfExp):
        return _put(tree, node, ast.IfExp(node.test, node.orelse, node.body))
    new = copy.deepcopy(node)
    parts = arguments(new) if isinstance(new, ast.Call) else operands(new) or items(new)
    a, b = parts[i - 1], parts[j - 1]
    return _put(tree, node, _Exchange({a: b, b: a}).visit(new))


def _unwrapped(tree: Tree, node: ast.AST) -> Edit:
    match node:
        case ast.Call(_, [first, *_]):
            return _put(tree, node, first)
        case ast.Call(ast.Attribute(receiver), [], []):
            return _put(tree, node, receiver)
        case ast.UnaryOp(_, operand):
            return _put(tree, node, operand)
        case ast.With(_, body) | ast.If(_, body) | ast.For(_, _, body):
            return _put_block(node, "\n".join(map(ast.unparse, body)))
    raise LookupError("nothing is wrapped")


def _followed_by(tree: Tree, node: ast.AST, statements: str) -> Edit:
    statement = _statement(tree, node)
    end = span(statement)[1]
    return Edit(end, end, "\n" + " " * statement.col_offset + indented(_block(statements), statement.col_offset))


_VERBS: dict[str, Callable[..., Edit]] = {
    "becomes": _becomes,
    "dropped": _dropped,
    "always": _always,
    "never": functools.partial(_always, holds=False),
    "negated": _negated,
    "operator": _operator,
    "swapped": _swapped,
    "unwrapped": _unwrapped,
    "followed_by": _followed_by,
}


# --- trees and text ---------------------------------------------------------------------------------------------------


def _put(tree: Tree, node: ast.expr, new: ast.expr | str) -> Edit:
    """`new` in the place of an expression, in parentheses unless it needs none."""
    text = new if isinstance(new, str) else ast.unparse(new)
    parsed = new if isinstance(new, ast.AST) else _expression(new)
    # A generator that is a call's only argument has the call's parentheses for its own.
    is_atom = isinstance(parsed, _ATOMS) and not isinstance(node, ast.GeneratorExp)
    bare = (is_atom or isinstance(tree.parents[node], ast.stmt)) and "\n" not in text
    return Edit(*span(node), text if bare else f"({text})")


def _put_block(statement: ast.stmt, text: str) -> Edit:
    start = start_of(statement)
    return Edit(start, span(statement)[1], indented(text, start[1]))


def _statement(tree: Tree, node: ast.AST) -> ast.stmt:
    while not isinstance(node, ast.stmt):
        node = tree.parents[node]
    return node


def _block(text: str) -> str:
    return textwrap.dedent(text).strip()


def _expression(text: str) -> ast.expr | None:
    try:
        return ast.parse(f"(\n{text}\n)", mode="eval").body
    except SyntaxError:
        return None


def _with_items(node: ast.expr, elements: list[ast.expr]) -> ast.expr:
    return type(node)(elements) if isinstance(node, ast.Set) else type(node)(elements, ast.Load())


def _without(node: ast.expr, i: int) -> ast.expr:
    """An operation without its i-th operand; without one of two the other."""
    kept = [*operands(node)[:i], *operands(node)[i + 1 :]]
    if len(kept) == 1:
        return kept[0]
    match node:
        case ast.BoolOp(op):
            return ast.BoolOp(op, kept)
        case ast.Compare(_, ops):
            ops = [*ops[: max(i - 1, 0)], *ops[max(i, 1) :]]
            return ast.Compare(kept[0], ops, kept[1:])
    return functools.reduce(lambda a, b: ast.BinOp(a, node.op, b), kept)


def _names_it(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "it" for node in ast.walk(tree))


class _With(ast.NodeTransformer):
    """`it` becomes what was there."""

    def __init__(self, old: ast.AST) -> None:
        self.old = old

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        is_it = isinstance(node.value, ast.Name) and node.value.id == "it"
        return self.old if is_it and isinstance(self.old, ast.stmt) else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.old if node.id == "it" else node


class _Exchange(ast.NodeTransformer):
    """Nodes become others."""

    def __init__(self, others: dict[ast.AST, ast.AST]) -> None:
        self.others = others

    def visit(self, node: ast.AST) -> ast.AST:
        return self.others.get(node) or self.generic_visit(node)
