"""`fastgpt study smoothing` as a user types it."""

from __future__ import annotations

import errno
import json

import pytest
import torch

from fastgpt import GPT, GPTConfig, OneHeadLM, cli
from fastgpt.base import files
from fastgpt.data import shakespeare_tokens
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.study import smoothing_page
from fastgpt.study.measures import largest_entropy
from fastgpt.study.smoothing_record import row_of
from tests.support import command

pytestmark = pytest.mark.needs("tyro", "tiktoken")

TEXT = "To be, or not to be, that is the question. "
CONFIG = GPTConfig(vocab_size=4096, max_len=16, n_layers=2, n_heads=2, d_model=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with `m` (a GPT), `one` (a OneHeadLM), `nan` (a model that diverged) and `mine` (somebody's file)."""
    folder = tmp_path_factory.mktemp("smoothing")
    torch.manual_seed(0)
    broken = GPT(CONFIG)
    torch.nn.init.constant_(broken.blocks[1].ffn[0].weight, 1e38)
    for name, model in (("m", GPT(CONFIG)), ("nan", broken), ("one", OneHeadLM(4096, 8, 16))):
        model.save_pretrained(folder / name)
        Tokenizer.named("shakespeare").save(folder / name)
    (folder / "mine").write_text("mine")
    return folder


def smoothing(run, *argv, **options):
    return command.run("study", "smoothing", *argv, cwd=run, **options)


def test_the_table_and_the_file_are_of_the_embedded_text(run):
    done = smoothing(run, "m", "--seq-len", "12", "--sequences", "3", "--out", "a.json")
    assert (done.code, done.err) == (0, "")
    ids = shakespeare_tokens("val", Tokenizer.named("shakespeare"))
    apart = len(ids) // 12 / 3
    idx = torch.stack([torch.from_numpy(ids.read(12 * int(n * apart), 12 * int(n * apart) + 12)) for n in range(3)])
    expected = row_of("m", GPT.from_pretrained(run / "m"), idx)
    record = json.loads((run / "a.json").read_text())
    assert record["text"] == {"name": "shakespeare/val", "tokens": len(ids), "sequences": 3, "seq_len": 12}
    for found, layer in zip(record["rows"][0]["layers"], expected["layers"], strict=True):
        assert found.keys() == layer.keys()
        assert all(found[key] == (value and pytest.approx(value, rel=1e-4, abs=1e-6)) for key, value in layer.items())
    lines = done.out.splitlines()
    assert lines[1] == f"3 sequences of 12 tokens of shakespeare/val ({len(ids):,} tokens)"
    assert lines[3].split() == ["cosine", "centred", "rank", "top", "share", "energy", "entropy"]
    cells = [line.split() for line in lines[4:7]]
    assert [cell[:-6] for cell in cells] == [["embeddings"], ["block", "1"], ["block", "2"]]
    layer = expected["layers"][1]
    means = [sum(layer[key]) / 2 for key in ("energy", "entropy")]
    values = [layer["cosine"], layer["centred_cosine"], layer["effective_rank"], layer["top_share"], *means]
    assert list(map(float, cells[1][-6:])) == pytest.approx(values, abs=6e-3)
    assert cells[2][-2:] == ["-", "-"]
    assert f"{largest_entropy(12):.4f} nats" in " ".join(lines)
    assert lines[-1] == "a.json"


def test_a_text_that_is_given_or_comes_through_a_pipe(run):
    given = smoothing(run, "m", TEXT * 5)
    piped = smoothing(run, "m", "-", stdin=TEXT * 5)
    assert given.code == piped.code == 0
    n = len(Tokenizer.named("shakespeare").encode(TEXT * 5))
    assert f"{n // 16} sequences of 16 tokens of the text given ({n} tokens)" in given.out
    assert f"{n // 16} sequences of 16 tokens of stdin ({n} tokens)" in piped.out
    assert given.out.splitlines()[3:] == piped.out.splitlines()[3:]
    assert "1 sequence of 2 tokens" in smoothing(run, "m", "be be").out.replace("3 tokens", "2 tokens")


def test_a_gpt2_folder_of_transformers(run):
    GPT.from_pretrained(run / "m").save_pretrained(run / "hf", format="hf")
    own = smoothing(run, "m", TEXT)
    theirs = smoothing(run, "hf", TEXT, "--tokenizer", "shakespeare")
    assert theirs.code == 0, theirs.err
    assert theirs.out.splitlines()[0].startswith("hf: 2 layers, 2 heads, width 16")
    assert theirs.out.splitlines()[1:] == own.out.splitlines()[1:]


def test_a_page_and_a_file_of_ours_are_replaced(run):
    for _ in range(2):
        done = smoothing(run, "m", TEXT, "--page", "new/p.html", "--out", "new/p.json")
        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines()[-2:] == ["new/p.json", "new/p.html"]
    assert "Over-smoothing in m" in (run / "new" / "p.html").read_text()


MISTAKES = [
    (["m", "a"], "TEXT a has 1 token: tokens are compared in pairs; give some more text"),
    (["m", TEXT, "--seq-len", "17"], "--seq-len 17 must be an integer, at least 2 and at most 16, the model's max_len"),
    (["m", TEXT, "--out", "mine"], "--out mine is a file that `fastgpt study smoothing` did not write"),
    (["m", TEXT, "--page", "mine"], "--page mine is a file that `fastgpt study smoothing` did not write"),
    (["m", TEXT, "--out", "m"], "--out m is a folder; name a file in it"),
    (["m", TEXT, "--out", "mine/a.json"], "--out mine/a.json cannot be written: mine is a file; choose a folder"),
    (["m", TEXT, "--out", "x", "--page", "./x"], "--page ./x is the file of --out too; name another"),
    (["one", TEXT], "FOLDER one is a OneHeadLM, one head and no blocks"),
    (["nan", TEXT], "FOLDER nan has numbers in its layers that are not finite: its training diverged"),
    (["gone"], "FOLDER gone: no such file or folder"),
    ([], "FOLDER is missing; write fastgpt study smoothing FOLDER [TEXT] [options], or --train in its place"),
    (["m", "--steps", "5"], "--steps 5 is of the comparison that --train makes; add --train, or leave it out"),
    (["--train", "m"], "FOLDER m is of one model, and --train trains its own"),
    (["--train", "--out", "a.json"], "--out a.json is of one model, and --train trains its own (it writes study.json)"),
    (["--train", "--seq-len", "8"], "--seq-len 8 is of one model, and --train trains its own (--max-len says it)"),
    (["--train", "--dropout", "0"], "--dropout 0 must be a number, above 0"),
    (["--train", "--seeds", "1", "1"], "--seeds 1 1 names a number twice"),
    (["--train", "--n-heads", "3"], "--n-heads 3 must divide d_model (64)"),
    (["--train", "--runs-dir", "mine"], "--runs-dir mine cannot be a folder of runs: mine is a file"),
    (["--train", "--runs-dir", ".", "--name", "m"], "m holds files that are no study's"),
    (["--train", "--threads", "0"], "--threads 0 must be an integer, at least 1"),
    (["--train", "--sequences", "0"], "--sequences 0 must be an integer, at least 1"),
]


@pytest.mark.parametrize(("argv", "expected"), MISTAKES, ids=[line for _, line in MISTAKES])
def test_mistakes(run, argv, expected):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = smoothing(run, *argv)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert done.err.startswith(f"fastgpt study smoothing: error: {expected}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_empty_stdin(run):
    done = smoothing(run, "m", "-", stdin="")
    assert done.code == 2
    assert (
        done.err
        == "fastgpt study smoothing: error: TEXT - has 0 tokens: tokens are compared in pairs; give some more text\n"
    )


def test_a_full_disk_is_one_line_and_leaves_the_old_file(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["study", "smoothing", str(run / "m"), TEXT, "--device", "cpu", "--out", "a.json", "--page", "a.html"]
    assert cli.main(argv) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "flush_all", full)
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "could not write a.json (No space left on device)" in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ctrl_c_between_the_files_says_what_was_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def stop(record):
        raise KeyboardInterrupt

    monkeypatch.setattr(smoothing_page, "page_of", stop)
    argv = ["study", "smoothing", str(run / "m"), TEXT, "--device", "cpu", "--out", "a.json", "--page", "a.html"]
    assert cli.main(argv) == 130
    assert capsys.readouterr().err == "fastgpt study smoothing: interrupted; wrote a.json only\n"


def test_the_comparison(run, tmp_path):
    sizes = "--train --steps 1 --n-layers 1 --n-heads 1 --d-model 8 --max-len 16 --batch-size 64 --sequences 2 --name c"
    for number in range(2):
        done = smoothing(tmp_path, *sizes.split(), "--device", "cpu", timeout=120)
        assert done.code == 0, done.err
        assert done.err.count("run ") == (4 if number == 0 else 0)
        lines = done.out.splitlines()
        assert lines[0].split("  ")[-1].strip() == "dropout 0.1 and decay 0.1"
        assert lines[-1] == "runs/c/study.html"
        changes = lines[lines.index("what they change") + 1 :]
        assert changes[0].split() == ["dropout", "weight", "decay"]
        assert changes[1].startswith("validation loss")
        assert changes[1].count(" of 2)") == 2
    done = smoothing(tmp_path, *sizes.split(), "--steps", "2", timeout=120)
    assert done.code == 2
    assert done.err == (
        "fastgpt study smoothing: error: runs/c holds a study that was begun with --steps 1, now 2; give it the "
        "same, or another --name\n"
    )
