"""What `import fastgpt` gives: the names that users use, and the nearest of them for one that is misspelt."""

import inspect
import subprocess
import sys

import pytest

import fastgpt

NAMES = {
    *("GPT", "GPTConfig", "GPTOutput", "OneHeadLM", "TokenDataset", "Tokenizer", "TrainConfig", "Trainer"),
    *("implementations", "kernels", "nn", "patch", "prepare", "presets"),
}


def test_dir_and_star_hold_what_users_use():
    assert set(dir(fastgpt)) == NAMES | {"__version__"}
    found = {}
    exec("from fastgpt import *", found)
    assert set(found) - {"__builtins__"} == NAMES
    for name in dir(fastgpt):
        assert getattr(fastgpt, name) is not None


def test_names_say_what_they_are():
    for name in NAMES:
        thing = getattr(fastgpt, name)
        assert inspect.isclass(thing) == name[0].isupper(), name
        assert inspect.getdoc(thing), name
    assert {name for name in NAMES if inspect.ismodule(getattr(fastgpt, name))} == {"kernels", "nn", "presets"}


def test_no_module_reads_like_a_function():
    import fastgpt.model.sampling

    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        fastgpt.generate  # noqa: B018


@pytest.mark.parametrize(
    ("name", "near"),
    [("GPTconfig", "GPTConfig"), ("gpt", "GPT"), ("TokenDataSet", "TokenDataset"), ("trainer_", "Trainer"),
     ("implementation", "implementations"), ("kernel", "kernels"), ("Patch", "patch"), ("Tokeniser", "Tokenizer")],
)  # fmt: skip
def test_a_misspelt_name_gets_the_nearest(name, near):
    with pytest.raises(AttributeError, match=f"module 'fastgpt' has no attribute '{name}'; did you mean '{near}'"):
        getattr(fastgpt, name)


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(AttributeError, match=r"module 'fastgpt' has no attribute 'zzz'$"):
        fastgpt.zzz  # noqa: B018
    assert not hasattr(fastgpt, "__wrapped__")


def test_modules_and_models_need_nothing_that_only_unix_has():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'termios']))\n"
        "import fastgpt, torch\n"
        "model = fastgpt.GPT(fastgpt.GPTConfig(vocab_size=7, max_len=4, n_layers=1, n_heads=1, d_model=4))\n"
        "fastgpt.nn, fastgpt.patch\n"
        "print(*model(torch.zeros(1, 3, dtype=torch.long)).logits.shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (0, "1 3 7\n"), found.stderr
