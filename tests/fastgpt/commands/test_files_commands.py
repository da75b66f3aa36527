"""prepare, eval, sample and inspect as a user types them: what paths may be, what is refused, what is never lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from fastgpt import GPT, GPTConfig, cli
from fastgpt.commands import _inputs
from fastgpt.data import TokenDataset, prepare, token_cache
from fastgpt.data.shards import FolderError
from fastgpt.data.tokenizer import Tokenizer
from tests.support import command

pytestmark = pytest.mark.needs("tyro", "tiktoken")

CPU = ("--device", "cpu")
TEXT = "To be, or not to be, that is the question. " * 30


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with `m` (a model and its tokenizer), `runs/a` (a run of one step) and `a.txt`."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=4096, max_len=16, n_layers=2, n_heads=2, d_model=16)
    for path in (folder / "m", folder / "runs" / "a" / "checkpoints" / "step-00000001"):
        GPT(config).save_pretrained(path)
        Tokenizer.named("shakespeare").save(path)
    (folder / "runs" / "a" / "settings.json").write_text("{}")
    (folder / "a.txt").write_text(TEXT)
    return folder


@pytest.fixture
def here(run, tmp_path):
    shutil.copytree(run, tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="module")
def prepared_once(run, tmp_path_factory):
    """`run`, with `src` (texts), `shards` (of them) and `work` (somebody's files)."""
    folder = tmp_path_factory.mktemp("prepared") / "here"
    shutil.copytree(run, folder)
    (folder / "src").mkdir()
    (folder / "src" / "a.txt").write_text("some text")
    (folder / "work").mkdir()
    (folder / "work" / "code.py").write_text("mine")
    prepare(folder / "src", folder / "shards", Tokenizer.named("shakespeare"), progress=False)
    return folder


@pytest.fixture
def prepared(prepared_once, tmp_path):
    shutil.copytree(prepared_once, tmp_path / "here")
    return tmp_path / "here"


def tree(folder) -> dict[str, bytes | None]:
    """Every path under `folder` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def fails(*argv: str, cwd, **options) -> str:
    """The one line on stderr of a command that must end with status 2."""
    done = command.run(*argv, cwd=cwd, **options)
    assert done.code == 2, (argv, done)
    assert done.err.startswith(f"fastgpt {argv[0]}: error: "), done.err
    assert done.err.count("\n") == 1, done.err
    return done.err


# ---- the cache of tokens -------------------------------------------------------------------------------------------


def test_texts_are_cached_for_the_user_and_named_as_typed(here, tmp_path):
    argv = ("eval", "m", "--data", "a.txt", *CPU, "--json")
    first = command.run(*argv, cwd=here, FASTGPT_CACHE=None, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert json.loads(first.out)["data"] == "a.txt"
    (entry,) = (tmp_path / "xdg" / "fastgpt" / "tokens").iterdir()
    again = command.run(*argv, cwd=here, FASTGPT_CACHE=None, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert again == first
    assert sorted(p.name for p in here.iterdir()) == ["a.txt", "m", "runs"]
    home = command.run(*argv, cwd=here, FASTGPT_CACHE=None, XDG_CACHE_HOME=None, HOME=str(tmp_path))
    assert home.out == first.out
    assert [p.name for p in (tmp_path / ".cache" / "fastgpt" / "tokens").iterdir()] == [entry.name]


def test_a_relative_cache_folder_does_not_count(here, tmp_path):
    argv, home = ("eval", "m", "--data", "a.txt", *CPU), {"FASTGPT_CACHE": None, "HOME": str(tmp_path)}
    assert command.run(*argv, cwd=here, XDG_CACHE_HOME="cache", **home).code == 0
    assert sorted(p.name for p in here.iterdir()) == ["a.txt", "m", "runs"]
    assert (tmp_path / ".cache" / "fastgpt" / "tokens").is_dir()


def test_a_full_disk_costs_the_cache_not_the_command(here, monkeypatch, caplog):
    monkeypatch.setenv("FASTGPT_CACHE", str(here / "cache"))
    prepare = token_cache.prepare

    def full(paths, folder, *args, **options):
        if here in Path(folder).parents:
            raise FolderError("prepare", "folder", str(folder), "no") from OSError(errno.ENOSPC, "No space left")
        return prepare(paths, folder, *args, **options)

    monkeypatch.setattr(token_cache, "prepare", full)
    token_cache._temporary_folder.cache_clear()
    found = token_cache.tokenized([str(here / "a.txt")], Tokenizer.named("shakespeare"), progress=False)
    assert len(found) > 2
    assert "No space left" in caplog.text
    assert list((here / "cache" / "tokens").iterdir()) == []


def test_the_cache_may_lie_in_a_folder_that_is_named(here, monkeypatch):
    monkeypatch.setenv("FASTGPT_CACHE", str(here / ".cache"))  # as `--data .` in the home folder
    small = Tokenizer.named("shakespeare")
    found = token_cache.tokenized([here], small, progress=False)
    assert found.name == str(here)
    assert len(found) == len(token_cache.tokenized([here / "a.txt"], small, progress=False))


def test_a_changed_text_replaces_its_entry_whatever_its_times_say(here, monkeypatch):
    monkeypatch.setenv("FASTGPT_CACHE", str(here / "cache"))
    monkeypatch.chdir(here)
    small, gpt2 = Tokenizer.named("shakespeare"), Tokenizer.named("gpt2")

    def entries():
        return sorted(p.name for p in (here / "cache" / "tokens").iterdir())

    first = token_cache.tokenized(["a.txt"], small, progress=False)
    made = entries()
    assert token_cache.tokenized(["a.txt"], small, progress=False).documents.tolist() == first.documents.tolist()
    assert entries() == made
    token_cache.tokenized(["a.txt"], gpt2, progress=False)
    assert len(entries()) == 2
    times = os.stat("a.txt")
    (here / "a.txt").write_text(TEXT.replace("To be", "To Be"))
    os.utime("a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = token_cache.tokenized(["a.txt"], small, progress=False)
    assert second.read(0, 40).tolist() != first.read(0, 40).tolist()
    assert len(entries()) == 2
    assert not set(made) & set(entries())


def test_entries_that_nobody_used_for_long_go_and_foreign_files_stay(here, monkeypatch):
    monkeypatch.setenv("FASTGPT_CACHE", str(here / "cache"))
    (here / "cache" / "tokens" / "mine").mkdir(parents=True)
    old = here / "cache" / "tokens" / f"{'0' * 16}-{'1' * 16}"
    old.mkdir()
    for folder in (old, here / "cache" / "tokens" / "mine"):
        os.utime(folder, (1, 1))
    token_cache.tokenized([here / "a.txt"], Tokenizer.named("shakespeare"), progress=False)
    assert not old.exists()
    assert (here / "cache" / "tokens" / "mine").is_dir()


def test_a_damaged_entry_is_made_again(here, monkeypatch):
    monkeypatch.setenv("FASTGPT_CACHE", str(here / "cache"))
    small = Tokenizer.named("shakespeare")
    first = token_cache.tokenized([here / "a.txt"], small, progress=False)
    first = first.read(0, len(first)).tolist()
    for damage in ("tokens-00000.bin", "manifest.json", "documents.npy"):
        for path in (here / "cache").rglob(damage):
            path.write_bytes(path.read_bytes()[:50])
        again = token_cache.tokenized([here / "a.txt"], small, progress=False)
        assert again.read(0, len(again)).tolist() == first


def test_two_processes_may_make_the_same_entry(here, monkeypatch):
    monkeypatch.setenv("FASTGPT_CACHE", str(here / "cache"))
    small = Tokenizer.named("shakespeare")

    def prepare_after_another(paths, folder, tokenizer, **options):
        prepare(paths, folder, tokenizer, **options)
        return prepare(paths, folder, tokenizer, **options)

    monkeypatch.setattr(token_cache, "prepare", prepare_after_another)
    found = token_cache.tokenized([here / "a.txt"], small, progress=False)
    assert found.read(0, 3).tolist() == small.encode(TEXT)[:3]


def test_a_cache_that_cannot_be_written_is_said_and_done_without(here):
    (here / "file").write_text("")
    done = command.run("eval", "m", "--data", "a.txt", *CPU, "--json", cwd=here, FASTGPT_CACHE="file")
    assert done.code == 0
    assert "the cache of tokens cannot be written" in done.err
    assert "set FASTGPT_CACHE" in done.err
    assert json.loads(done.out)["data"] == "a.txt"


# ---- what a path is ------------------------------------------------------------------------------------------------


def test_configs_are_read_from_every_kind_of_path(here, monkeypatch):
    monkeypatch.chdir(here)
    config = GPT.from_pretrained("m").config
    nano = config.replace(gelu="none")
    GPT(nano).save_pretrained("nano", "nanogpt")
    GPT(config).save_pretrained("hf", "hf")
    for path in ("m", "m/", "m/config.json", "runs/a", "runs/a/checkpoints", "runs/a/checkpoints/step-00000001", "hf"):
        assert _inputs.read_config(path) == config, path
    for path in ("nano", "nano/ckpt.pt"):
        assert _inputs.read_config(path) == nano, path
    assert _inputs.read_config("GPT2-124m") == GPTConfig.preset("gpt2")
    with pytest.raises(FileNotFoundError, match=r"gpt2-medum: no such .*; did you mean 'gpt2-medium'"):
        _inputs.read_config("gpt2-medum")


def test_every_kind_of_path_is_sampled_from(here):
    model = GPT.from_pretrained(here / "m")
    model.save_pretrained(here / "hf", "hf")
    model.save_pretrained(here / "nano", "nanogpt")
    argv = ("--seed", "1", "--max-new-tokens", "4", *CPU)
    first = command.run("sample", "m", "To be", *argv, cwd=here)
    assert first.code == 0
    named = ("--tokenizer", "shakespeare")
    for path, more in (("m/config.json", ()), ("hf", named), ("nano", named), ("nano/ckpt.pt", named)):
        assert command.run("sample", path, "To be", *argv, *more, cwd=here).out == first.out, path
    assert command.run("sample", "runs/a", "To be", *argv, cwd=here).code == 0


def test_what_is_no_model_is_named_for_what_it_is(here):
    command.run("prepare", "a.txt", "--out", "shards", "--tokenizer", "shakespeare", cwd=here)
    (here / "runs" / "new").mkdir()
    (here / "runs" / "new" / "settings.json").write_text("{}")
    (here / "peft").mkdir()
    (here / "peft" / "adapter_config.json").write_text("{}")
    (here / "peft" / "adapter_model.safetensors").write_bytes(b"")
    (here / "empty").mkdir()
    (here / "other").mkdir()
    (here / "other" / "model-best.safetensors").write_bytes(b"")
    for path, said in (
        ("nowhere", "nowhere: no such file or folder"),
        ("x" * 300, "no such file or folder"),
        ("shards", "holds token shards, which are data, and no model"),
        ("a.txt", "is a file, and no checkpoint"),
        ("runs", "a folder of runs; give one of them: runs/a"),
        ("runs/new", "a run without a finished checkpoint"),
        ("peft", "holds a PEFT adapter, without the model"),
        ("empty", "exists, but has no config.json"),
        ("other", "model-best.safetensors is there: if that is the model, rename it"),
    ):
        assert said in fails("sample", path, cwd=here), path
    for name in ("eval", "inspect"):
        assert "shards, which are data" in fails(name, "shards", cwd=here), name


# ---- prepare -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("src", "--out", "src", "--overwrite"), "--out src holds the source src; choose another folder"),
        (("src/a.txt", "--out", "src", "--overwrite"), "--out src holds the source src/a.txt"),
        (("src", "--out", ".", "--overwrite"), "--out . holds the source src"),
        (("src", "--out", "src/tokens"), "--out src/tokens lies inside of the source src"),
        (
            ("src", "--out", "work", "--overwrite"),
            "--out work holds other files (code.py), no token shards: nothing in",
        ),
        (("src", "--out", "work"), "--out work holds other files (code.py)"),
        (("src", "--out", "shards"), "--out shards exists; choose another folder, or pass --overwrite"),
        (("src", "--out", "work/code.py"), "--out work/code.py is a file; choose a folder"),
        (("src", "--out", "work/code.py/x"), "--out work/code.py/x lies in a file"),
        (("src", "--out", "x" * 300), "cannot be: File name too long"),
        (("src", "--out", "/proc/none/x"), "--out /proc/none/x could not be written (No such file or directory)"),
        (("src", "--out", "new", "--shard-tokens", "0"), "--shard-tokens 0 must be an integer, at least 1"),
        (("src", "--out", "new", "--threads", "0"), "--threads 0 must be an integer, at least 1"),
        (("src", "src/a.txt", "--out", "new"), "src/a.txt: named twice"),
        (("src", "--out", "new", "--tokenizer", "gpt9"), "neither a bundled tokenizer"),
        ((), "SOURCES"),
        (("gone", "--out", "new"), "gone: no such file or folder"),
        (("x" * 300, "--out", "new"), "no such file or folder"),
        (("m", "--out", "new"), "m: a model's or a run's folder, not data"),
        (("shards", "--out", "new"), "shards: token shards, which"),
        (("work", "--out", "new"), "work: the folder holds no data file"),
        (("m/model.safetensors", "--out", "new"), "model.safetensors: binary data"),
    ],
)
def test_prepare_refuses_what_could_lose_or_mean_nothing(prepared, argv, said):
    before = tree(prepared)
    assert said in fails("prepare", *argv, cwd=prepared)
    assert tree(prepared) == before


def test_prepare_replaces_its_own_shards_file_by_file(prepared):
    (prepared / "shards" / "notes.txt").write_text("mine")
    (prepared / "src" / "a.txt").write_text("another text")
    done = command.run("prepare", "src", "--out", "shards", "--tokenizer", "shakespeare", "--overwrite", cwd=prepared)
    assert done.code == 0
    assert (prepared / "shards" / "notes.txt").read_text() == "mine"
    small = Tokenizer.named("shakespeare")
    assert TokenDataset.open(prepared / "shards").read(0, 3).tolist() == small.encode("another text")[:3]


def test_a_folder_in_a_link_to_nowhere_is_none(prepared):
    (prepared / "link").symlink_to("gone")
    assert "--out link is a link to nowhere" in fails("prepare", "src", "--out", "link", cwd=prepared)
    said = fails("prepare", "src", "--out", "link/x", cwd=prepared)
    assert said.startswith("fastgpt prepare: error: --out link/x lies in ")


def test_ctrl_c_in_prepare_says_what_is_left(prepared, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(prepared)
    monkeypatch.setattr("fastgpt.data.preparation._tokenized", interrupt)
    before = tree(prepared)
    for out, said in (("new", "nothing was written"), ("shards", "shards is as it was")):
        assert cli.main(["prepare", "src", "--out", out, "--overwrite"]) == 130
        assert said in capsys.readouterr().err
    assert tree(prepared) == before


# ---- eval, sample, inspect -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("eval", "m", "--seq-len", "0"), "--seq-len 0 must be an integer, at least 1"),
        (("eval", "m", "--seq-len", "17"), "--seq-len 17 must be at most the model's max_len, 16"),
        (("eval", "m", "--batch-size", "0"), "--batch-size 0 must be an integer, at least 1"),
        (("eval", "m", "--max-batches", "0"), "--max-batches 0 must be an integer, at least 1"),
        (("eval", "m", "--tokenizer", "gpt2"), "--tokenizer gpt2 is not the tokenizer that m was trained with"),
        (("eval", "m", "--data", "gone.txt"), "--data gone.txt: no such file or folder"),
        (("eval", "m", "--data", "x" * 300), "no such file or folder"),
        (("eval", "m", "--data", "m"), "--data m: a model's or a run's folder, not data"),
        (("eval", "m", "--data", "work"), "--data work: the folder holds no data file"),
        (("eval", "m", "--data", "shards", "src"), "--data shards: token shards"),
        (("eval", "m", "--data", "a.txt", "a.txt"), "--data a.txt: named twice"),
        (("eval", "hf", "--tokenizer", "gpt2", "--data", "shards"), "the model has 4096 token ids"),
        (("eval", "m", "--data", "shakespeare", "a.txt"), "--data shakespeare: the embedded corpus stands alone"),
        (("eval", "m", "--device", "gpu"), "--device gpu must be one of"),
        (("eval", "m", "--dtype", "float64"), "--dtype float64 must be one of"),
        (("sample", "gpt2", "x"), "gpt2: a preset, which has no weights"),
        (("sample", "m", "x", "--max-new-tokens", "-1"), "--max-new-tokens -1 must be an integer, at least 0"),
        (("sample", "m", "x", "--tokenizer", "nowhere"), "neither a bundled tokenizer"),
        (("sample", "m", "x", "--tokenizer", "src"), "no tokenizer in 'src'"),
        (("sample", "m", "x", "--tokenizer", "m/config.json"), "--tokenizer m/config.json is no ranks file"),
        (("sample", "hf", "x"), "holds no tokenizer; name the one"),
        (("inspect", "m", "To be", "--layers", "99"), "--layers 99 must lie between -2 and 1"),
        (("inspect", "m", "To be", "--layers", "0", "-3"), "there is no layer -3: the model has 2"),
        (("inspect", "m", "To be", "--heads", "99"), "--heads 99 must lie between -2 and 1"),
        (("inspect", "m", "To be", "--out", "a.txt"), "--out a.txt is a file; choose a folder"),
        (("inspect", "m", "To be", "--out", "a.txt/b"), "--out a.txt/b lies in a file"),
        (("inspect", "m", "To be", "--out", "x" * 300), "cannot be: File name too long"),
        (("inspect", "m", ""), "PROMPT '' is empty"),
        (("inspect", "m", "word " * 50), "the model's max_len is 16"),
    ],
)
def test_mistakes_name_the_option_the_value_and_the_fix(models, argv, said):
    before = tree(models)
    assert said in fails(*argv, cwd=models)
    assert tree(models) == before


@pytest.fixture(scope="module")
def models_once(prepared_once):
    GPT.from_pretrained(prepared_once / "m").save_pretrained(prepared_once / "hf", "hf")
    return prepared_once


@pytest.fixture
def models(models_once, tmp_path):
    shutil.copytree(models_once, tmp_path / "here")
    return tmp_path / "here"


def test_damage_is_one_clear_error_in_every_command(models):
    weights, config = models / "m" / "model.safetensors", models / "m" / "config.json"
    whole = {path: path.read_bytes() for path in (weights, config)}
    middle = len(whole[weights]) // 2
    commands = itertools.cycle([("sample", "m", "x"), ("eval", "m"), ("inspect", "m", "To be")])
    for path, content, said in (
        (weights, whole[weights][:middle] + b"\0\1\2\3" + whole[weights][middle + 4 :], "is corrupted or was altered"),
        (weights, whole[weights][:middle], "is truncated or corrupted"),
        (weights, b"", "is truncated or corrupted"),
        (config, whole[config][:40], "config.json is corrupted"),
        (config, b"", "config.json is corrupted"),
        (config, b"[]", "config.json is corrupted"),
    ):
        path.write_bytes(content)
        argv = next(commands)
        assert said in fails(*argv, cwd=models), (path, argv)
        path.write_bytes(whole[path])


def test_training_does_not_start_from_damage(models):
    weights = models / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    before = tree(models)
    assert "is corrupted or was altered" in fails("train", "--init-from", "m", "--no-progress", *CPU, cwd=models)
    assert tree(models) == before


def test_a_damaged_newest_checkpoint_points_to_the_one_before(models):
    checkpoints = models / "runs" / "a" / "checkpoints"
    shutil.copytree(checkpoints / "step-00000001", checkpoints / "step-00000002")
    (checkpoints / "step-00000002" / "model.safetensors").write_bytes(b"")
    for name in ("sample", "eval", "inspect"):
        said = fails(name, "runs/a", cwd=models)
        assert said.endswith("; the checkpoint before it is runs/a/checkpoints/step-00000001\n")
    assert command.run("sample", "runs/a/checkpoints/step-00000001", "x", *CPU, cwd=models).code == 0


def test_weights_that_are_not_finite_are_refused(models):
    model = GPT.from_pretrained(models / "m")
    for bad in (float("nan"), float("inf")):
        with torch.no_grad():
            model.ln_f.bias[3] = bad
        model.save_pretrained(models / "bad")
        Tokenizer.named("shakespeare").save(models / "bad")
        for argv in (("sample", "bad", "x"), ("eval", "bad"), ("inspect", "bad", "To be")):
            assert "ln_f.bias holds 1 of 16 numbers that are NaN or infinite" in fails(*argv, cwd=models)


def test_a_loss_that_is_not_finite_is_no_result(models):
    model = GPT.from_pretrained(models / "m")
    with torch.no_grad():
        model.ln_f.weight.fill_(3e38)
    model.save_pretrained(models / "large")
    Tokenizer.named("shakespeare").save(models / "large")
    done = command.run("eval", "large", "--data", "a.txt", *CPU, "--json", cwd=models)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("fastgpt eval: error: the loss of large on a.txt is nan")


def test_eval_says_what_it_scored(models):
    done = command.run("eval", "m", "--data", "a.txt", *CPU, "--max-batches", "1", "--batch-size", "2", cwd=models)
    assert done.out.startswith("a.txt: 23 of 391 tokens scored\n")
    assert done.err == ""
    found = command.run("eval", "m", "--data", "shards", *CPU, "--json", cwd=models)
    assert json.loads(found.out)["data"] == "shards"
    assert json.loads(found.out)["tokens"] == len(TokenDataset.open(models / "shards")) - 1


def test_perplexity_beyond_numbers_is_null_in_json(models, monkeypatch, capsys):
    from fastgpt.train.evaluation import Validation

    monkeypatch.chdir(models)
    monkeypatch.setattr(
        "fastgpt.train.evaluation.evaluate", lambda *args, **kwargs: Validation(800.0, float("inf"), 9.0, 5)
    )
    assert cli.main(["eval", "m", "--data", "a.txt", *CPU, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] is None


def test_prompts(models):
    argv = ("--max-new-tokens", "2", "--seed", "1", *CPU)
    long = command.run("sample", "m", "word " * 50, *argv, cwd=models)
    assert long.err == "the prompt has 52 tokens; the model reads the last 16 of them\n"
    assert long.out.startswith("word " * 50)
    for empty in (command.run("sample", "m", "", *argv, cwd=models), command.run("sample", "m", *argv, cwd=models)):
        assert empty.code == 0
        assert empty.err == ""
    given = command.run("sample", "m", "naïve", *argv, cwd=models)
    assert command.run("sample", "m", "-", *argv, cwd=models, stdin="naïve").out == given.out
    assert command.run("sample", "m", "-", *argv, cwd=models, stdin="naïve", PYTHONIOENCODING="ascii").code == 0
    assert command.run("sample", "m", "To", "--max-new-tokens", "0", *CPU, cwd=models).out == "To\n"


def test_ctrl_c_says_what_is_left(models, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(models)
    for target, argv, said in (
        ("fastgpt.train.evaluation.evaluate", ("eval", "m", "--data", "a.txt"), "nothing was written"),
        ("fastgpt.data.tokenizer.Tokenizer.decode_stream", ("sample", "m", "To"), "what was drawn stands above"),
        ("fastgpt.model.GPT.attention_maps", ("inspect", "m", "To"), "nothing was written"),
        ("fastgpt.study.attention_maps.save_png", ("inspect", "m", "To"), "wrote attention/attention.html only"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, interrupt)
            assert cli.main([*argv, *CPU]) == 130
        assert said in capsys.readouterr().err


def test_inspect_replaces_only_what_it_wrote(models):
    pytest.importorskip("matplotlib")
    for prompt in ("To be", "or not"):
        assert command.run("inspect", "m", prompt, *CPU, cwd=models).code == 0
    for name in ("attention.png", "attention.html"):
        (models / "attention" / name).write_text("mine")
        before = tree(models)
        assert f"--out attention holds {name}, which" in fails("inspect", "m", "To be", cwd=models)
        assert tree(models) == before
