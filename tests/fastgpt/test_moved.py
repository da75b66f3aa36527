"""The import paths of version 0.1: each gives the module as it is now, and says its name."""

import importlib
import pickle
import sys
import warnings

import pytest

import fastgpt
from fastgpt._moved import MOVED, MOVED_NAMES


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old, monkeypatch):
    new = importlib.import_module(MOVED[old])
    parent, _, name = old.rpartition(".")
    monkeypatch.delitem(sys.modules, old, raising=False)
    vars(importlib.import_module(parent)).pop(name, None) if name != "presets" else None
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {MOVED[old]}$") as said:
        found = importlib.import_module(old)
    assert found is new is sys.modules[old] is getattr(sys.modules[parent], name)
    assert len(said) == 1
    assert new.__spec__.name == new.__name__ == MOVED[old]
    assert importlib.import_module(old) is new


@pytest.mark.parametrize(("old", "name"), [(old, name) for old, names in MOVED_NAMES.items() for name in names])
def test_a_name_that_is_elsewhere_now_is_found_under_its_old_path(old, name, monkeypatch):
    home = MOVED_NAMES[old][name]
    if old in MOVED:
        monkeypatch.delitem(sys.modules, old, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vars(importlib.import_module(old)).pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"^{old}.{name} is now {home}.{name}$") as said:
        exec(f"from {old} import {name}", found := {"__name__": "theirs"})
    assert len(said) == 1
    assert said[0].filename == "<string>", "the import is what is told of"
    assert found[name] is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("module", ["fastgpt.data", "fastgpt.interop", "fastgpt.model", "fastgpt.train.trainer"])
def test_a_name_that_never_was_is_no_attribute(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'lead_to_gold'$"):
        importlib.import_module(module).lead_to_gold  # noqa: B018


@pytest.mark.filterwarnings("ignore:fastgpt.* is now:DeprecationWarning")
@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("fastgpt.config", "GPTConfig"), ("fastgpt.dataset", "TokenDataset"), ("fastgpt.impl", "Row"),
        ("fastgpt.model", "GPT"), ("fastgpt.model", "GPTConfig"), ("fastgpt.modules", "Head"),
        ("fastgpt.one_head", "OneHeadLM"), ("fastgpt.one_head_base", "OneHeadConfig"), ("fastgpt.output", "GPTOutput"),
        ("fastgpt.sampler", "BatchSampler"), ("fastgpt.settings", "SettingError"), ("fastgpt.tokenizer", "Tokenizer"),
        ("fastgpt.train_config", "TrainConfig"), ("fastgpt.trainer", "Trainer"), ("fastgpt.trainer", "TrainConfig"),
    ],
)  # fmt: skip
def test_what_was_pickled_under_an_old_path_is_read(old, name):
    """Whole models too, which torch.save pickles by the paths of their classes."""
    found = pickle.loads(f"c{old}\n{name}\n.".encode())
    assert found.__name__ == name
    assert found is getattr(importlib.import_module(found.__module__), name)


def test_what_fastgpt_offers_has_its_names_where_they_were():
    p = fastgpt.presets
    assert (p.GPT2_VOCAB_SIZE, p.STUDY_MAX_LEN) == (50257, 512)
    assert (p.STUDY_LAYERS, p.STUDY_WIDTHS, p.STUDY_HEADS) == ((2, 4, 8, 12), (256, 512), (4, 8))
