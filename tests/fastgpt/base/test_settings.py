"""Checks of settings: what they take, and what they say of the rest, in Python and on the command line."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from fastgpt.base.settings import SettingError, SettingTypeError, check_choice, check_flag, check_integer, check_number

from ...support import command


def test_integers():
    assert check_integer("F", "n", np.int64(3), least=1) == 3
    for value in (True, 2.0, "2", None):
        with pytest.raises(SettingTypeError, match=r"F: n=.* must be an integer, at least 1; raise it"):
            check_integer("F", "n", value, least=1, hint="; raise it")
    assert [check_integer("F", "n", n, least=1, most=4) for n in (1, 4)] == [1, 4]
    for value in (0, 5):
        with pytest.raises(SettingError, match=rf"F: n={value} must be an integer, at least 1 and at most 4"):
            check_integer("F", "n", value, least=1, most=4)
    for value in (0.2, 0.8):
        with pytest.raises(SettingError, match=rf"F: p={value} must be a number, at least 0.25 and at most 0.75"):
            check_number("F", "p", value, least=0.25, most=0.75)


def test_integers_have_an_end_where_nothing_else_bounds_them():
    assert check_integer("F", "n", 2**63 - 1, least=1) == 2**63 - 1
    assert check_integer("F", "n", 2**64, most=2**64) == 2**64
    for value in (2**63, 10**400):
        with pytest.raises(SettingError, match=r"n=.* must be an integer, at least 1 and at most 9223372036854775807$"):
            check_integer("F", "n", value, least=1)


def test_where_ranges_end():
    assert [check_integer("F", "n", n, least=1, most=4) for n in (1, 4)] == [1, 4]
    assert [check_number("F", "p", p, least=0.5, most=2.5) for p in (0.5, 2.5)] == [0.5, 2.5]
    for value in (0, 5):
        with pytest.raises(SettingError):
            check_integer("F", "n", value, least=1, most=4)
    for value, ends in ((0.4, {"least": 0.5}), (2.6, {"most": 2.5}), (1, {"above": 1}), (1, {"below": 1})):
        with pytest.raises(SettingError):
            check_number("F", "p", value, **ends)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(SettingError, match=r"must be a number$"):
            check_number("F", "p", value)


def test_numbers():
    assert check_number("F", "p", np.float32(0.5), least=0.0, below=1.0) == 0.5
    for value in (math.nan, math.inf, 1.0, -0.1):
        with pytest.raises(SettingError, match=r"F: p=.* must be a number, at least 0 and below 1"):
            check_number("F", "p", value, least=0, below=1)
    with pytest.raises(SettingError, match=r"F: p=0 must be a number, above 0"):
        check_number("F", "p", 0, above=0)
    for value in ("3e-4", True, None, 1j):
        with pytest.raises(SettingTypeError):
            check_number("F", "p", value)


def test_choices():
    assert check_choice("F", "mode", "a", ("a", "b")) == "a"
    with pytest.raises(SettingError, match="F: mode='c' must be one of a, b"):
        check_choice("F", "mode", "c", ("a", "b"))
    with pytest.raises(SettingTypeError):
        check_choice("F", "mode", 1, ("a", "b"))


def test_flags():
    assert check_flag("F", "on", False) is False
    for value in (0, 1, "no", None):
        with pytest.raises(SettingTypeError, match=r"F: on=.* must be True or False"):
            check_flag("F", "on", value)


def test_a_long_value_is_cut():
    with pytest.raises(SettingTypeError, match=r"F: n=\[0, 1, .*\.\.\. \(list\) must be an integer") as caught:
        check_integer("F", "n", list(range(10000)))
    assert len(str(caught.value)) < 300


def test_the_errors_are_values_or_types_and_pickle():
    assert issubclass(SettingError, ValueError)
    assert issubclass(SettingTypeError, TypeError)
    error = pickle.loads(pickle.dumps(SettingError("F", "n", 0, "must be odd")))
    assert str(error) == "F: n=0 must be odd"


@pytest.mark.needs("tyro", "rich")
def test_the_command_line_names_the_option(tmp_path):
    done = command.run("plan", "gpt2", "--gpu", "x", cwd=tmp_path)
    assert done.code == 2
    assert "fastgpt plan: error: --gpu x must be a number of GiB, " in done.err
