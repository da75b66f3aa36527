"""Places that are named by their roles, and what becomes of them, whatever the layout."""

from __future__ import annotations

import ast
import textwrap

import pytest

from .changes import edit_of
from .definitions import find
from .finding import tree_of
from .places import (
    Change,
    argument,
    assignment,
    call,
    caught,
    choice,
    collection,
    comparison,
    comprehension,
    condition,
    context,
    decorator,
    default,
    element,
    item,
    iterated,
    literal,
    name,
    operand,
    operation,
    otherwise,
    receiver,
    returned,
    statement,
    subscript,
    then,
    value,
)

FILE = textwrap.dedent(
    """\
    import functools

    class Loss:
        scale: float = 0.5

        @functools.cache
        def of(self, x, eps: float = 1e-5, *, lower=0):
            if 0 <= x < self.scale and x and (lower
                                              or eps):  # a remark
                x = self.f(x, eps = eps, lower=lower,)
            é = 'it is {}'; y = f"{x} and {eps}"
            return (x
                    + 1 + (eps * 2))

        def other(self, x, eps=1e-5):
            with self.lock(eps):
                low, high = x.min(), x.max()
            try:
                total = {"low": low, "high": -high}
            except (OSError, ValueError):
                raise
            for i in range(3):
                total[i] = [y for y in x[1:] if y > i]
                x *= eps
            self.done.clear()
            return max(y for y in x), low if eps else high, not x
    """
)


def planted(change: Change, where: str) -> list[str]:
    """The lines that differ, after the change."""
    before, after = FILE.split("\n"), edit_of(change, FILE, where).apply(FILE).split("\n")
    ast.parse("\n".join(after))
    first = next(i for i, (a, b) in enumerate(zip(before, after)) if a != b)
    last = next(i for i, (a, b) in enumerate(zip(before[::-1], after[::-1])) if a != b)
    return [line.strip() for line in after[first : len(after) - last]]


@pytest.mark.parametrize(
    ("change", "where", "expected"),
    [
        # each selector
        (assignment("x").dropped(), "Loss.of", ["pass"]),
        (assignment("total", "y").dropped(), "Loss.other", ["pass"]),
        (statement("for").dropped(), "Loss.other", ["pass"]),
        (value("high").becomes("low"), "Loss.other", ["low, high = x.min(), low"]),
        (value("x", "f").becomes("1"), "Loss.of", ["x = 1"]),
        (returned("eps").becomes("0"), "Loss.of", ["return (0)"]),
        (condition("lower").never(), "Loss.of", ["if False:  # a remark"]),
        (condition("y").always(), "Loss.other", ["total[i] = [y for y in x[1:] if True]"]),
        (comparison("scale").becomes("0 < x"), "Loss.of", ["if (0 < x) and x and (lower"]),
        (operation("*").becomes("eps"), "Loss.of", ["+ 1 + (eps))"]),
        (call("f").becomes("x"), "Loss.of", ["x = x"]),
        (call("max", "y").becomes("x"), "Loss.other", ["return x, low if eps else high, not x"]),
        (name("scale").becomes("1"), "Loss.of", ["if 0 <= x < 1 and x and (lower"]),
        (literal("it is {}").becomes("''"), "Loss.of", ["""é = ''; y = f"{x} and {eps}\""""]),
        (literal("and").becomes("x"), "Loss.of", ["é = 'it is {}'; y = x"]),
        (subscript("x").becomes("x"), "Loss.other", ["total[i] = [y for y in x if y > i]"]),
        (collection("OSError").becomes("OSError"), "Loss.other", ["except OSError:"]),
        (comprehension("i").becomes("x"), "Loss.other", ["total[i] = x"]),
        (operand("lower").becomes("1"), "Loss.of", ["if 0 <= x < self.scale and x and (1"]),
        (returned().operand(-1).becomes("1"), "Loss.of", ["+ 1 + (1))"]),
        (argument("eps").becomes("1"), "Loss.of", ["x = self.f(x, eps = 1, lower=lower,)"]),
        (call("f").argument(1).becomes("1"), "Loss.of", ["x = self.f(1, eps = eps, lower=lower,)"]),
        (item("high").becomes("1"), "Loss.other", ['total = {"low": low, "high": 1}']),
        (subscript("x").index().becomes(":-1"), "Loss.other", ["total[i] = [y for y in x[:-1] if y > i]"]),
        (call("x.min").receiver().becomes("self"), "Loss.other", ["low, high = self.min(), x.max()"]),
        (value("total[i]").element().becomes("1"), "Loss.other", ["total[i] = [1 for y in x[1:] if y > i]"]),
        (iterated("range").becomes("x"), "Loss.other", ["for i in x:"]),
        (default("eps").becomes("0"), "Loss.other", ["def other(self, x, eps=0):"]),
        (default("lower").becomes("1"), "Loss.of", ["def of(self, x, eps: float = 1e-5, *, lower=1):"]),
        (decorator("cache").dropped(), "Loss.of", [""]),
        (caught("OSError").becomes("OSError"), "Loss.other", ["except OSError:"]),
        (context("lock").becomes("x"), "Loss.other", ["with x:"]),
        (value().becomes("1.0"), "Loss.scale", ["scale: float = 1.0"]),
        # each verb
        (returned("eps").becomes("2 * it"), "Loss.of", ["return (2 * (x + 1 + eps * 2))"]),
        (call("f").becomes(argument("lower")), "Loss.of", ["x = lower"]),
        (assignment("x").becomes("x = 1\nit"), "Loss.of", ["x = 1", "x = self.f(x, eps=eps, lower=lower)"]),
        (assignment("x").becomes("x = '''a\nb'''"), "Loss.of", ["x = '''a", "b'''"]),
        (operand("x", nth=-1).dropped(), "Loss.of", ["return (1 + eps * 2)"]),
        (operand("self.scale").dropped(), "Loss.of", ["if (0 <= x) and x and (lower"]),
        (comparison("scale").dropped(), "Loss.of", ["if x and (lower or eps):  # a remark"]),
        (argument("eps").dropped(), "Loss.of", ["x = self.f(x, lower=lower)"]),
        (item("low").dropped(), "Loss.other", ["total = {'high': -high}"]),
        (call("clear").dropped(), "Loss.other", ["pass"]),
        (choice("low").always(), "Loss.other", ["return max(y for y in x), low, not x"]),
        (choice("low").never(), "Loss.other", ["return max(y for y in x), high, not x"]),
        (choice().becomes(otherwise()), "Loss.other", ["return max(y for y in x), high, not x"]),
        (choice().becomes(then()), "Loss.other", ["return max(y for y in x), low, not x"]),
        (operation("not").negated(), "Loss.other", ["return max(y for y in x), low if eps else high, x"]),
        (condition("i").negated(), "Loss.other", ["total[i] = [y for y in x[1:] if (not y > i)]"]),
        (comparison("scale").operator("<=", 2), "Loss.of", ["if (0 <= x <= self.scale) and x and (lower"]),
        (assignment("x").operator("+"), "Loss.other", ["x += eps"]),
        (returned().operator("-"), "Loss.of", ["return (x + 1 - eps * 2)"]),
        (call("f").swapped(1, 3), "Loss.of", ["x = self.f(lower, eps=eps, lower=x)"]),
        (choice().swapped(), "Loss.other", ["return max(y for y in x), (high if eps else low), not x"]),
        (call("x.min").unwrapped(), "Loss.other", ["low, high = x, x.max()"]),
        (call("f").unwrapped(), "Loss.of", ["x = x"]),
        (operation("-").unwrapped(), "Loss.other", ['total = {"low": low, "high": high}']),
        (statement("with").unwrapped(), "Loss.other", ["low, high = (x.min(), x.max())"]),
        (assignment("x").followed_by("x = 1"), "Loss.other", ["x = 1"]),
        (call("max", "y").becomes(element()), "Loss.other", ["return y, low if eps else high, not x"]),
        (call("x.max").becomes(receiver()), "Loss.other", ["low, high = x.min(), x"]),
    ],
)  # fmt: skip
def test_what_becomes_of_a_place(change, where, expected):
    assert planted(change, where) == expected


@pytest.mark.parametrize(
    ("place", "where", "message"),
    [
        (name("eps"), "Loss.of", r"name\('eps'\) is there 3 times \(lines 9, 10, 13\), must be once"),  # none in f"..."
        (call("g"), "Loss.of", r"call\('g'\) is there 0 times, must be once"),
        (call("f", nth=2), "Loss.of", r"call\('f', nth=2\) is not there: 1 of its kind are"),
        (value("x").call("f").argument("upper"), "Loss.of", r"value\('x'\).call\('f'\).argument\('upper'\) is there 0"),
        (value("x"), "Loss.all", "there is no 'Loss.all'"),
    ],
)
def test_a_place_that_is_not_one_is_an_error(place, where, message):
    with pytest.raises(LookupError, match=message):
        tree_of(FILE).find(place, where)


def test_nth_counts_from_1_and_from_the_end():
    found = [tree_of(FILE).find(operand("x", nth=n), "Loss.of") for n in (1, 2, 3, -1)]
    assert [node.lineno for node in found] == [8, 8, 12, 12]


def test_a_word_counts_where_it_is_and_not_around_it():
    """The innermost of operands in operands mentions it."""
    assert ast.unparse(tree_of(FILE).find(operand("lower"), "Loss.of")) == "lower"


def test_changes_show_how_they_are_written():
    change = value("x").call("f", nth=2).argument("eps").becomes(operand(1))
    assert str(change) == "value('x').call('f', nth=2).argument('eps').becomes(operand(1))"
    assert eval(str(change)) == change  # so they are equal by what they say


@pytest.fixture
def house(tmp_path):
    files = {
        "kernels/attention/forward.py": "def step(): ...\ndef forward(): ...",
        "kernels/attention/launch.py": "def forward(): ...\nLIMIT = 1",
        "kernels/device/sums.py": "def total(): ...",
        "fastgpt/train/trainer.py": "class Trainer:\n    lr: float = 1.0\n    def fit(self):\n        def inner(): ...",
        "fastgpt/train/presets.py": "def fit(): ...",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("where", "path", "qualified"),
    [
        ("attention.step", "kernels/attention/forward.py", "step"),
        ("step", "kernels/attention/forward.py", "step"),
        ("attention.launch.forward", "kernels/attention/launch.py", "forward"),
        ("attention.LIMIT", "kernels/attention/launch.py", "LIMIT"),
        ("kernels.total", "kernels/device/sums.py", "total"),
        ("Trainer.fit", "fastgpt/train/trainer.py", "Trainer.fit"),
        ("Trainer.fit.inner", "fastgpt/train/trainer.py", "Trainer.fit.inner"),
        ("train.Trainer.lr", "fastgpt/train/trainer.py", "Trainer.lr"),
        ("presets", "fastgpt/train/presets.py", ""),
    ],
)
def test_definitions_are_found_wherever_they_are(house, where, path, qualified):
    assert find(where, house) == (path, qualified)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("attention.forward", "'attention.forward' is in kernels/attention/forward.py and kernels/attention/launch.py"),
        ("train.step", "there is no 'train.step'"),
        ("inner", "there is no 'inner'"),
    ],
)
def test_a_definition_that_is_not_one_is_an_error(house, where, message):
    with pytest.raises(LookupError, match=message):
        find(where, house)
