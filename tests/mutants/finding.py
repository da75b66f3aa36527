"""Find a `Place` in a syntax tree."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator

from .definitions import definitions
from .places import OPERATORS, Place

_STATEMENTS = {
    "if": ast.If, "for": ast.For, "while": ast.While, "with": ast.With, "try": ast.Try, "raise": ast.Raise,
    "return": ast.Return, "del": ast.Delete, "continue": ast.Continue, "break": ast.Break, "def": ast.FunctionDef,
}  # fmt: skip
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_COLLECTIONS = (ast.Tuple, ast.List, ast.Set, ast.Dict)
_OPERATIONS = (ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Compare)
_HEADS = ("test", "target", "iter", "items")  # of a statement that has a body


class Tree:
    """A file's syntax tree, whose nodes know their parents."""

    def __init__(self, text: str) -> None:
        self.module = ast.parse(text)
        self.parents = {child: node for node in ast.walk(self.module) for child in ast.iter_child_nodes(node)}
        self.definitions: dict[str, list[ast.AST]] = {"": [self.module]}
        for name, node in definitions(self.module):
            self.definitions.setdefault(name, []).append(node)

    def find(self, place: Place, where: str) -> ast.AST:
        """The node at `place` inside the definition `where`; "" is the whole file. LookupError if it is not one."""
        if where not in self.definitions:
            raise LookupError(f"there is no {where!r}")
        return self.within(self.definitions[where], place)

    def within(self, roots: list[ast.AST], place: Place) -> ast.AST:
        for i, (kind, given, nth) in enumerate(place.steps):
            found = list(dict.fromkeys(node for root in roots for node in _FINDERS[kind](self, root, *given)))
            reached = Place(place.steps[: i + 1])
            if nth is None and len(found) != 1:
                lines = ", ".join(str(node.lineno) for node in found)
                raise LookupError(f"{reached} is there {len(found)} times{lines and f' (lines {lines})'}, must be once")
            if nth is not None and not -len(found) <= nth - (nth > 0) < len(found):
                raise LookupError(f"{reached} is not there: {len(found)} of its kind are")
            roots = [found[nth - (nth > 0)] if nth is not None else found[0]]
        return roots[0]

    def operation_of(self, operand: ast.expr) -> ast.expr | None:
        """The operation that has this operand: of a chain, which is nested to the left, all of it."""
        node = self.parents.get(operand)
        return self.whole(node) if isinstance(node, _OPERATIONS) else None

    def whole(self, node: ast.expr) -> ast.expr:
        """The chain of which an operation is the beginning, nested to the left."""
        above = self.parents.get(node)
        while isinstance(node, ast.BinOp) and isinstance(above, ast.BinOp) and above.left is node:
            if type(above.op) is not type(node.op):
                break
            node, above = above, self.parents.get(above)
        return node


@functools.lru_cache(maxsize=64)
def tree_of(text: str) -> Tree:
    return Tree(text)


def operands(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.BinOp(left, op, right):
            chain = isinstance(left, ast.BinOp) and type(left.op) is type(op)
            return [*(operands(left) if chain else [left]), right]
        case ast.BoolOp(_, values):
            return values
        case ast.UnaryOp(_, operand):
            return [operand]
        case ast.Compare(left, _, others):
            return [left, *others]
    return []


def items(node: ast.expr) -> list[ast.expr]:
    return node.values if isinstance(node, ast.Dict) else getattr(node, "elts", [])


def arguments(node: ast.Call) -> list[ast.expr]:
    return [*node.args, *(keyword.value for keyword in node.keywords)]


# --- one finder for each selector -------------------------------------------------------------------------------------


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes in the order of the text, but those inside f-strings."""
    yield tree
    if not isinstance(tree, ast.JoinedStr):
        for node in ast.iter_child_nodes(tree):
            yield from _walk(node)


def _mentioning(words: tuple, found: list, looked_at: Callable = lambda node: [node]) -> list:
    """Those of `found` that mention every word, each in itself and not only in another of them that it contains."""
    others = set(found)

    def mentions(node: ast.AST, word) -> bool:
        below = (child for child in ast.iter_child_nodes(node) if child not in others)
        return _says(node, word) or any(mentions(child, word) for child in below)

    return [node for node in found if all(any(mentions(part, w) for part in looked_at(node)) for w in words)]


def _says(node: ast.AST, word) -> bool:
    match node:
        case ast.Name(name) | ast.keyword(name) | ast.arg(name):
            return name == word
        case ast.Attribute():
            return _ends(node, word)
        case ast.Constant(constant):
            return type(constant) is type(word) and constant == word
    return False


def _ends(node: ast.expr, dotted: str) -> bool:
    """Whether the text of a name, dotted or not, is `dotted` or ends with it."""
    return f".{ast.unparse(node)}".endswith(f".{dotted}")


def _of_types(*types: type) -> Callable:
    def finder(tree: Tree, root: ast.AST, *words) -> list:
        return _mentioning(words, [node for node in _walk(root) if isinstance(node, types)])

    return finder


def _is_target(node: ast.expr, target: str) -> bool:
    match node:
        case ast.Tuple(elements) | ast.List(elements):
            return any(_is_target(element, target) for element in elements)
        case ast.Subscript(base):
            return _is_target(base, target) or ast.unparse(node) == target
        case ast.Starred(starred):
            return _is_target(starred, target)
    return _ends(node, target)


def _targets(node: ast.stmt | ast.NamedExpr) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _assignments(tree: Tree, root: ast.AST, target: str = "", *words) -> list[ast.stmt]:
    found = [node for node in _walk(root) if isinstance(node, _ASSIGNMENTS)]
    return _mentioning(words, [node for node in found if any(_is_target(t, target) for t in _targets(node))])


def _values(tree: Tree, root: ast.AST, target: str = "", *words) -> list[ast.expr]:
    found = []
    for node in _walk(root):
        if isinstance(node, (*_ASSIGNMENTS, ast.NamedExpr)) and node.value is not None:
            for into in _targets(node):
                pairs = [(into, node.value)]
                if target and isinstance(into, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(into.elts, node.value.elts) if len(into.elts) == len(node.value.elts) else pairs
                found += [given for name, given in pairs if not target or _is_target(name, target)]
    return _mentioning(words, found)


def _statements(tree: Tree, root: ast.AST, kind: str, *words) -> list[ast.stmt]:
    def head(node: ast.stmt) -> list[ast.AST]:
        parts = [getattr(node, field) for field in _HEADS if hasattr(node, field)]
        return [p for part in parts for p in (part if isinstance(part, list) else [part])] or [node]

    return _mentioning(words, [node for node in _walk(root) if isinstance(node, _STATEMENTS[kind])], head)


def _returned(tree: Tree, root: ast.AST, *words) -> list[ast.expr]:
    found = []
    for node in _walk(root):
        if isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)) and node.value is not None:
            found.append(node.value)
        elif isinstance(node, ast.Lambda):
            found.append(node.body)
    return _mentioning(words, found)


def _conditions(tree: Tree, root: ast.AST, *words) -> list[ast.expr]:
    found = []
    for node in _walk(root):
        if isinstance(node, (ast.If, ast.While, ast.Assert)):
            found.append(node.test)
        elif isinstance(node, ast.comprehension):
            found += node.ifs
    return _mentioning(words, found)


def _operations(tree: Tree, root: ast.AST, operator: str, *words) -> list[ast.expr]:
    kind = (OPERATORS[operator], ast.USub) if operator == "-" else OPERATORS[operator]
    found = [n for n in _walk(root) if isinstance(n, (ast.BinOp, ast.BoolOp, ast.UnaryOp)) and isinstance(n.op, kind)]
    return _mentioning(words, [node for node in found if tree.whole(node) is node])


def _calls(tree: Tree, root: ast.AST, function: str = "", *words) -> list[ast.Call]:
    found = [node for node in _walk(root) if isinstance(node, ast.Call)]
    return _mentioning(words, [node for node in found if not function or _ends(node.func, function)])


def _names(tree: Tree, root: ast.AST, dotted: str) -> list[ast.expr]:
    found = [n for n in _walk(root) if isinstance(n, (ast.Name, ast.Attribute)) and isinstance(n.ctx, ast.Load)]
    return [node for node in found if _ends(node, dotted)]


def _literals(tree: Tree, root: ast.AST, value) -> list[ast.expr]:
    def is_it(node: ast.AST) -> bool:
        if isinstance(node, ast.JoinedStr) and isinstance(value, str):
            return any(isinstance(part, ast.Constant) and value in part.value for part in node.values)
        return isinstance(node, ast.Constant) and _says(node, value)

    return [node for node in _walk(root) if is_it(node)]


def _subscripts(tree: Tree, root: ast.AST, base: str, *words) -> list[ast.Subscript]:
    found = [n for n in _walk(root) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Load)]
    return _mentioning(words, [node for node in found if _ends(node.value, base)])


def _parts_of(root: ast.AST, types: tuple) -> list[ast.AST]:
    """What has the parts asked for: the root itself, or else what is inside of it."""
    return [root] if isinstance(root, types) else [node for node in _walk(root) if isinstance(node, types)]


def _operands(tree: Tree, root: ast.AST, which: int | str, *words) -> list[ast.expr]:
    if isinstance(which, int):
        found = [operands(node) for node in _parts_of(root, _OPERATIONS) if node is root or tree.whole(node) is node]
        return _mentioning(words, _numbered(found, which))
    found = [tree.whole(node) for node in _walk(root) if isinstance(node, _OPERATIONS)]
    return _mentioning((which, *words), [part for node in dict.fromkeys(found) for part in operands(node)])


def _arguments(tree: Tree, root: ast.AST, which: int | str, *words) -> list[ast.expr]:
    calls = _parts_of(root, (ast.Call,))
    if isinstance(which, int):
        return _mentioning(words, _numbered([arguments(call) for call in calls], which))
    if isinstance(root, ast.Call) and all(keyword.arg != which for keyword in root.keywords):
        calls = [node for node in _walk(root) if isinstance(node, ast.Call)]
    return _mentioning(words, [k.value for call in calls for k in call.keywords if k.arg == which])


def _items(tree: Tree, root: ast.AST, which: int | str, *words) -> list[ast.expr]:
    if isinstance(which, int):
        return _mentioning(words, _numbered([items(node) for node in _parts_of(root, _COLLECTIONS)], which))
    found = [node for node in _walk(root) if isinstance(node, _COLLECTIONS)]
    keyed = [v for node in found if isinstance(node, ast.Dict) for k, v in zip(node.keys, node.values) if _is(k, which)]
    return _mentioning(words, keyed) or _mentioning((which, *words), [part for node in found for part in items(node)])


def _is(key: ast.expr | None, word) -> bool:
    return key is not None and _says(key, word)


def _numbered(lists: list[list], which: int) -> list:
    places = [which - (which > 0)]
    return [parts[i] for parts in lists for i in places if -len(parts) <= i < len(parts)]


def _indices(tree: Tree, root: ast.AST) -> list[ast.expr]:
    return [node.slice for node in _parts_of(root, (ast.Subscript,))]


def _receivers(tree: Tree, root: ast.AST) -> list[ast.expr]:
    return [node.func.value for node in _parts_of(root, (ast.Call,)) if isinstance(node.func, ast.Attribute)]


def _elements(tree: Tree, root: ast.AST) -> list[ast.expr]:
    return [node.value if isinstance(node, ast.DictComp) else node.elt for node in _parts_of(root, _COMPREHENSIONS)]


def _iterated(tree: Tree, root: ast.AST, *words) -> list[ast.expr]:
    loops = [node for node in _walk(root) if isinstance(node, (ast.For, ast.comprehension))]
    return [loop.iter for loop in loops if all(_mentioning((word,), [loop.target, loop.iter]) for word in words)]


def _branches(field: str) -> Callable:
    return lambda tree, root: [getattr(node, field) for node in _parts_of(root, (ast.IfExp,))]


def _defaults(tree: Tree, root: ast.AST, parameter: str) -> list[ast.expr]:
    found = []
    for node in _walk(root):
        if isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            pairs = [*zip(positional[::-1], node.defaults[::-1]), *zip(node.kwonlyargs, node.kw_defaults)]
            found += [default for name, default in pairs if name.arg == parameter and default is not None]
    return found


def _decorators(tree: Tree, root: ast.AST, *words) -> list[ast.expr]:
    return _mentioning(words, [d for node in _walk(root) for d in getattr(node, "decorator_list", ())])


def _caught(tree: Tree, root: ast.AST, *words) -> list[ast.expr]:
    return _mentioning(words, [n.type for n in _walk(root) if isinstance(n, ast.ExceptHandler) and n.type is not None])


def _contexts(tree: Tree, root: ast.AST, *words) -> list[ast.expr]:
    return _mentioning(words, [node.context_expr for node in _walk(root) if isinstance(node, ast.withitem)])


_FINDERS: dict[str, Callable] = {
    "assignment": _assignments,
    "statement": _statements,
    "value": _values,
    "returned": _returned,
    "condition": _conditions,
    "choice": _of_types(ast.IfExp),
    "comparison": _of_types(ast.Compare),
    "operation": _operations,
    "call": _calls,
    "name": _names,
    "literal": _literals,
    "subscript": _subscripts,
    "collection": _of_types(*_COLLECTIONS),
    "comprehension": _of_types(*_COMPREHENSIONS),
    "operand": _operands,
    "argument": _arguments,
    "item": _items,
    "index": _indices,
    "receiver": _receivers,
    "element": _elements,
    "iterated": _iterated,
    "then": _branches("body"),
    "otherwise": _branches("orelse"),
    "default": _defaults,
    "decorator": _decorators,
    "caught": _caught,
    "context": _contexts,
}
