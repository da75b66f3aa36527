"""Name a place in a function by the part that it plays, and say what becomes of it.

    value("lse").operand(2).dropped()                       what is assigned to lse, without its second operand
    comparison("j", "upper").operator("<")                  the comparison that mentions both, with another operator
    call("tl.load", nth=2).argument("mask").becomes("None")
    condition("HAS_BIAS").never()

A place must be one: a selector that finds none or several is an error, unless `nth` says which (from 1; -1 is the
last). A word is a name or the end of a dotted one ("loss.item", "item"), a keyword's name, or a constant; what mentions
a word holds it, and not only in a smaller one of its kind. Each selector also goes on from another place:
`value("q").call("transpose")` is the call in what is assigned to q. Layout, comments and quotes do not matter; inside
f-strings nothing is found (older Pythons do not tell where it is).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

OPERATORS = {
    "+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div, "//": ast.FloorDiv, "%": ast.Mod, "**": ast.Pow,
    "@": ast.MatMult, "<<": ast.LShift, ">>": ast.RShift, "|": ast.BitOr, "&": ast.BitAnd, "^": ast.BitXor,
    "and": ast.And, "or": ast.Or, "not": ast.Not, "~": ast.Invert,
    "==": ast.Eq, "!=": ast.NotEq, "<": ast.Lt, "<=": ast.LtE, ">": ast.Gt, ">=": ast.GtE,
    "is": ast.Is, "is not": ast.IsNot, "in": ast.In, "not in": ast.NotIn,
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A place and what becomes of it (`changes.py` does it)."""

    place: Place
    verb: str
    given: tuple = ()

    def __str__(self) -> str:
        return f"{self.place}.{self.verb}({', '.join(map(_shown, self.given))})"


@dataclass(frozen=True)
class Place:
    """A part of a function, found by one selector, (kind, what it was given, nth), after the other."""

    steps: tuple[tuple[str, tuple, int | None], ...] = ()

    def __str__(self) -> str:
        return ".".join(
            f"{kind}({', '.join([*map(_shown, given), *([f'nth={nth}'] if nth else [])])})"
            for kind, given, nth in self.steps
        )

    # --- statements ---

    def assignment(self, target: str = "", *words, nth: int | None = None) -> Place:
        """The statement that assigns to `target`: a name, an attribute, or what is subscripted."""
        return self._then("assignment", (target, *words), nth)

    def statement(self, kind: str, *words, nth: int | None = None) -> Place:
        """An `if`, `for`, `while`, `with`, `try` (whose head mentions the words), `raise`, `return`, ..."""
        return self._then("statement", (kind, *words), nth)

    # --- expressions ---

    def value(self, target: str = "", *words, nth: int | None = None) -> Place:
        """What is assigned to `target`; where a tuple is unpacked, its own element."""
        return self._then("value", (target, *words), nth)

    def returned(self, *words, nth: int | None = None) -> Place:
        """What is returned or yielded, or what a lambda computes."""
        return self._then("returned", words, nth)

    def condition(self, *words, nth: int | None = None) -> Place:
        """What an `if`, `elif`, `while`, `assert` or a comprehension asks."""
        return self._then("condition", words, nth)

    def choice(self, *words, nth: int | None = None) -> Place:
        """`a if c else b`"""
        return self._then("choice", words, nth)

    def comparison(self, *words, nth: int | None = None) -> Place:
        """Of two values, or of a chain of them."""
        return self._then("comparison", words, nth)

    def operation(self, operator: str, *words, nth: int | None = None) -> Place:
        """All that one operator joins, `a + b + c` or `a and b`, or what it is put before, `not a`."""
        return self._then("operation", (operator, *words), nth)

    def call(self, function: str = "", *words, nth: int | None = None) -> Place:
        """A call of `function`, given by the end of its dotted name."""
        return self._then("call", (function, *words), nth)

    def name(self, dotted: str, nth: int | None = None) -> Place:
        """A name or an attribute that is read."""
        return self._then("name", (dotted,), nth)

    def literal(self, value, nth: int | None = None) -> Place:
        """A constant; for a string also an f-string that holds it."""
        return self._then("literal", (value,), nth)

    def subscript(self, base: str, *words, nth: int | None = None) -> Place:
        """`base[...]`"""
        return self._then("subscript", (base, *words), nth)

    def collection(self, *words, nth: int | None = None) -> Place:
        """A tuple, list, set or dict that is written out."""
        return self._then("collection", words, nth)

    def comprehension(self, *words, nth: int | None = None) -> Place:
        """A list, set, dict or generator that is made of others' elements."""
        return self._then("comprehension", words, nth)

    # --- parts: of the place itself if it has them, else of what is inside ---

    def operand(self, which: int | str, *words, nth: int | None = None) -> Place:
        """Of an operation or comparison: by number, or by what it mentions."""
        return self._then("operand", (which, *words), nth)

    def argument(self, which: int | str, *words, nth: int | None = None) -> Place:
        """Of a call: by number or keyword."""
        return self._then("argument", (which, *words), nth)

    def item(self, which: int | str, *words, nth: int | None = None) -> Place:
        """Of a collection: by number or by what it mentions; of a dict the value, by the key."""
        return self._then("item", (which, *words), nth)

    def index(self) -> Place:
        """Of a subscript: what is between the brackets."""
        return self._then("index", (), None)

    def receiver(self) -> Place:
        """Of a method's call: what the method is called on."""
        return self._then("receiver", (), None)

    def element(self) -> Place:
        """Of a comprehension: what is made of each."""
        return self._then("element", (), None)

    def iterated(self, *words, nth: int | None = None) -> Place:
        """Of a loop or comprehension, whose target or iterable mentions the words: what it goes through."""
        return self._then("iterated", words, nth)

    def then(self) -> Place:
        """Of a choice: what it is where the condition holds."""
        return self._then("then", (), None)

    def otherwise(self) -> Place:
        """Of a choice: what it is where the condition does not hold."""
        return self._then("otherwise", (), None)

    def default(self, parameter: str) -> Place:
        """Of a function's parameter."""
        return self._then("default", (parameter,), None)

    def decorator(self, *words, nth: int | None = None) -> Place:
        """Of a function or class."""
        return self._then("decorator", words, nth)

    def caught(self, *words, nth: int | None = None) -> Place:
        """What an `except` names."""
        return self._then("caught", words, nth)

    def context(self, *words, nth: int | None = None) -> Place:
        """What a `with` enters."""
        return self._then("context", words, nth)

    def _then(self, kind: str, given: tuple, nth: int | None) -> Place:
        return Place((*self.steps, (kind, given if given != ("",) else (), nth)))

    # --- what becomes of it ---

    def becomes(self, new: str | Place) -> Change:
        """Other Python, in which `it` is what was there; or only a part of what was there, by its place in it."""
        return Change(self, "becomes", (new,))

    def dropped(self) -> Change:
        """Taken out: a statement, an argument, an operand, an item, a decorator."""
        return Change(self, "dropped")

    def always(self) -> Change:
        """A condition that holds whatever it asked; of a choice its first branch."""
        return Change(self, "always")

    def never(self) -> Change:
        """A condition that does not hold whatever it asked; of a choice its other branch."""
        return Change(self, "never")

    def negated(self) -> Change:
        """`not` of it; without `not` where it has one."""
        return Change(self, "negated")

    def operator(self, new: str, nth: int = 1) -> Change:
        """The same operands with another operator (the nth of a chain of comparisons)."""
        return Change(self, "operator", (new,) if nth == 1 else (new, nth))

    def swapped(self, i: int = 1, j: int = 2) -> Change:
        """Two operands, arguments, items or branches change places."""
        return Change(self, "swapped", () if (i, j) == (1, 2) else (i, j))

    def unwrapped(self) -> Change:
        """Without what is around it. Of a call the first argument stays, or what a method without any is called on; of
        an `if`, a `with` or a loop the body; of `not x`, `-x` or `~x` x."""
        return Change(self, "unwrapped")

    def followed_by(self, statements: str) -> Change:
        """What is done after it, too."""
        return Change(self, "followed_by", (statements,))


_FUNCTION = Place()
assignment, statement = _FUNCTION.assignment, _FUNCTION.statement
value, returned, condition, choice = _FUNCTION.value, _FUNCTION.returned, _FUNCTION.condition, _FUNCTION.choice
comparison, operation, operand = _FUNCTION.comparison, _FUNCTION.operation, _FUNCTION.operand
call, argument, default, decorator = _FUNCTION.call, _FUNCTION.argument, _FUNCTION.default, _FUNCTION.decorator
name, literal, subscript, index = _FUNCTION.name, _FUNCTION.literal, _FUNCTION.subscript, _FUNCTION.index
collection, item, comprehension, iterated = (
    _FUNCTION.collection, _FUNCTION.item, _FUNCTION.comprehension, _FUNCTION.iterated,
)  # fmt: skip
caught, context = _FUNCTION.caught, _FUNCTION.context
element, receiver, then, otherwise = _FUNCTION.element, _FUNCTION.receiver, _FUNCTION.then, _FUNCTION.otherwise


def _shown(given) -> str:
    return str(given) if isinstance(given, Place) else repr(given)
