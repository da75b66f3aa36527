"""How faults are found in a file: each kind of source that `Mutant` lists, whatever the layout."""

from __future__ import annotations

import textwrap

import pytest

from .plant import Mutant
from .syntax import edits

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
            é = 'it is {}'; x = f"{x} and {eps}"
            return (x
                    + 1 + (eps * 2))

        def other(self, x, eps=1e-5):
            for i in range(3):
                x += i
                x *= eps
            return max(y for y in x)
    """
)


def planted(source: str, replacement: str, where: str = "") -> list[tuple[str, str]]:
    """The lines that differ, before and after."""
    text = Mutant("fault", "file.py", source, replacement, "", where).plant(FILE)
    before, after = FILE.split("\n"), text.split("\n")
    first = next(i for i, (a, b) in enumerate(zip(before, after)) if a != b)
    last = next(i for i, (a, b) in enumerate(zip(before[::-1], after[::-1])) if a != b)
    return [line.strip() for line in after[first : len(after) - last]]


@pytest.mark.parametrize(
    ("source", "replacement", "where", "expected"),
    [
        # expressions; what is no atom comes in parentheses
        ("eps*2", "eps", "", ["+ 1 + (eps))"]),
        ("x+1+eps*2", "x - 1", "", ["return ((x - 1))"]),
        ('"it is {}"', '"it was"', "", ["""é = "it was"; x = f"{x} and {eps}\""""]),
        ('f"{x} and {eps}"', "x", "", ["é = 'it is {}'; x = x"]),
        ("(y for y in x)", "x", "", ["return max(x)"]),
        # consecutive operands
        ("x and (lower or eps)", "x", "", ["if (0 <= x < self.scale and x):  # a remark"]),
        ("1 + eps * 2", "eps", "", ["return ((x + eps))"]),
        ("x < self.scale", "x <= self.scale", "", ["if (0 <= x <= self.scale) and x and (lower"]),
        ("0 <= x", "0 < x", "", ["if (0 < x < self.scale) and x and (lower"]),
        # statements
        ("x += i; x *= eps", "x -= eps", "", ["x -= eps"]),
        ("x *= eps", "", "", ["pass"]),
        ("x += i", "if i:\n    x += '''a\nb'''", "", ["if i:", "x += '''a", "b'''"]),
        # keyword arguments, parameters' defaults, fields
        ("eps=eps", "eps=0", "", ["x = self.f(x, eps=0, lower=lower,)"]),
        ("eps=eps", "", "", ["x = self.f(x, lower=lower)"]),
        ("eps=1e-5", "eps=1e-6", "Loss.other", ["def other(self, x, eps=(1e-06)):"]),
        ("eps: float = 1e-5", "eps: float = 0", "", ["def of(self, x, eps: float = (0), *, lower=0):"]),
        ("lower=0", "lower=1", "", ["def of(self, x, eps: float = 1e-5, *, lower=(1)):"]),
        ("scale: float = 0.5", "scale: float = 1.0", "", ["scale: float = 1.0"]),
        # decorators
        ("@functools.cache", "@staticmethod", "", ["@staticmethod"]),
        ("@functools.cache", "", "Loss.of", [""]),
    ],
)  # fmt: skip
def test_what_a_source_may_be(source, replacement, where, expected):
    assert planted(source, replacement, where) == expected


@pytest.mark.parametrize(
    ("source", "where", "count"),
    [
        ("eps", "Loss.other", 1),  # a parameter is no expression
        ("eps", "", 4),  # nor is what lies in an f-string
        ("x and eps", "", 0),  # operands that are not neighbours
        ("eps = x = eps", "", 0),  # of two names: no argument
        ("self.scale and x", "", 0),  # as deep as another operator's
        ("x = self.f(x, eps=eps, lower=lower)\ny = 1", "", 0),
    ],
)
def test_how_often(source, where, count):
    assert len(edits(FILE, source, "0", where)) == count
