"""The import paths of version 0.1: each gives the module as it is now, and says its name."""

import importlib
import sys

import pytest

from fastgpt._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old, monkeypatch):
    new = importlib.import_module(MOVED[old])
    parent, _, name = old.rpartition(".")
    monkeypatch.delitem(sys.modules, old, raising=False)
    vars(sys.modules[parent]).pop(name, None) if name != "presets" else None
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {MOVED[old]}$") as said:
        found = importlib.import_module(old)
    assert found is new is sys.modules[old] is getattr(sys.modules[parent], name)
    assert len(said) == 1
    assert new.__spec__.name == new.__name__ == MOVED[old]
    assert importlib.import_module(old) is new


@pytest.mark.parametrize(
    "name", ["filled", "load", "load_one_head", "model_type", "read_config", "save", "save_one_head", "skeleton"]
)
def test_the_functions_that_interop_had(name):
    interop = importlib.import_module("fastgpt.interop")
    with pytest.warns(DeprecationWarning, match=f"is now fastgpt.model.formats.*{name}$"):
        assert callable(getattr(interop, name))
