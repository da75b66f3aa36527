"""`fastgpt train` as it is typed: it loses nothing, falsifies nothing, and each mistake is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastgpt import GPT, GPTConfig, TrainConfig
from fastgpt.data import TokenDataset
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.train import trainer
from fastgpt.train.checkpoint import CheckpointError
from fastgpt.train.metrics import read_metrics

from ..train_command import TEXT, TINY, checkpoints, error, snapshot, train
from ..training import tiny_model

pytestmark = pytest.mark.needs("tyro", "rich", "tiktoken")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with runs/a: three steps of three, checkpoints of steps 2 and 3."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "a.txt").write_text(TEXT)
    done = train(folder, *TINY, "--name", "a")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def run(here, finished) -> Path:
    """The same, to be changed."""
    shutil.copytree(finished / "runs", here / "runs")
    return here


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "need"),
    [
        ("--batch-size", "0", "must be an integer, at least 1"),
        ("--steps", "0", "must be an integer, at least 1"),
        ("--seq-len", "0", "must be an integer, at least 1"),
        ("--seq-len", "17", "exceeds the model's max_len=16"),
        ("--grad-accum", "0", "must be an integer, at least 1"),
        ("--eval-batches", "0", "must be an integer, at least 1"),
        ("--keep", "0", "must be an integer, at least 1"),
        ("--save-every", "-1", "must be an integer, at least 0"),
        ("--log-every", "-1", "must be an integer, at least 0"),
        ("--seed", "-1", "must be an integer, at least 0"),
        ("--threads", "0", "must be an integer, at least 1"),
        ("--lr", "nan", "must be a number, at least 0"),
        ("--grad-clip", "inf", "must be a number, at least 0"),
        ("--beta1", "1", "must be a number, at least 0 and below 1"),
        ("--val-fraction", "0", "must be a number, above 0 and below 1"),
        ("--val-fraction", "0.00001", "splits the "),
        ("--dtype", "float64", "must be one of auto, float32, bfloat16"),
        ("--device", "gpu", "must be one of auto, cpu"),
        ("--name", "..", "must be the plain name of a folder"),
        ("--name", "a/b", "must be the plain name of a folder"),
        ("--name", "", ""),
        ("--name", "n" * 300, "cannot be a folder of runs: File name too long"),
        ("--name", "file", "cannot be a folder of runs: runs/file is a file"),
        ("--runs-dir", "a.txt", "cannot be a folder of runs: a.txt is a file"),
        ("--runs-dir", "a.txt/deep", "cannot be a folder of runs: Not a directory"),
        ("--runs-dir", "/proc/none", "cannot be a folder of runs: "),
    ],
)
def test_mistakes_name_the_option_as_typed(here, option, value, need):
    (here / "runs").mkdir()
    (here / "runs" / "file").touch()
    said = error(train(here, *TINY, option, value))
    assert said.startswith(option)
    assert need in said
    assert not [path for path in (here / "runs").rglob("*") if path.name != "file"]


def test_zero_is_a_value(here):
    zeros = ["--eval-every", "0", "--save-every", "0", "--log-every", "0", "--grad-clip", "0", "--warmup-fraction", "0"]
    done = train(here, *TINY, *zeros, "--lr", "0", "--seed", "0", "--dropout", "0", "--name", "a")
    assert done.code == 0, done.err
    assert checkpoints(here) == ["step-00000003"]
    assert [line["lr"] for line in read_metrics(here / "runs" / "a" / "metrics.jsonl")] == [0, 0, 0]


def test_a_folder_that_is_no_run_is_left_alone(here):
    other = here / "runs" / "mine"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints" / "epoch-1.ckpt").write_text("weights")
    (other / "metrics.jsonl").write_text('{"epoch": 1}\n')
    before = snapshot(other)
    for more in ([], ["--overwrite"]):
        assert "not a run's of fastgpt; choose another name (--name)" in error(
            train(here, *TINY, "--name", "mine", *more)
        )
    assert snapshot(other) == before
    (other / "metrics.jsonl").rename(other / "settings.json")
    before = snapshot(other)
    assert "not a run's of fastgpt" in error(train(here, *TINY, "--name", "mine"))
    assert snapshot(other) == before
    (other / "settings.json").unlink()
    assert train(here, *TINY, "--name", "mine").code == 0
    assert (other / "checkpoints" / "epoch-1.ckpt").read_text() == "weights"


def test_existing_run(run):
    before = snapshot(run / "runs")
    said = error(train(run, *TINY, "--name", "a"))
    assert "runs/a holds a run of 3 steps; go on with" in said
    for option in ("--resume", "--overwrite", "--name"):
        assert option in said
    assert snapshot(run / "runs") == before
    assert train(run, *TINY, "--name", "a", "--overwrite", "--steps", "1").code == 0
    assert checkpoints(run) == ["step-00000001"]


def test_the_header_and_the_hint_of_threads(here):
    done = train(here, *TINY, "--threads", "1")
    assert "hint" not in done.err
    assert "69,104 parameters, 418 training and 104 validation tokens, float32 on cpu; writing runs/run" in done.out


# ---- what it tells -------------------------------------------------------------------------------------------------


def test_a_log_file_gets_a_line_every_so_many_steps(here):
    done = train(here, *TINY, "--steps", "6", "--log-every", "2", "--eval-every", "3")
    steps = [line for line in done.out.splitlines() if line.startswith("step ") and "/6" in line]
    assert [int(line.split()[1].split("/")[0]) for line in steps] == [2, 4, 6]
    for line in steps:
        for word in ("loss ", "lr ", "tokens/s", "left"):
            assert word in line
    validations = [line for line in done.out.splitlines() if "validation loss" in line]
    assert [int(line.split()[1]) for line in validations] == [3, 6]  # the last is said once
    assert done.out.count("perplexity") == 2


@pytest.mark.parametrize("setting", [{"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"TTY_INTERACTIVE": "1"}])
def test_a_log_file_holds_lines_alone(here, setting):
    done = train(here, *TINY, "--log-every", "1", **setting)
    assert done.code == 0
    assert done.out.count("left\n") == 3
    for char in "\x1b\r\b":
        assert char not in done.out + done.err


def test_no_progress_leaves_the_lines(here):
    done = train(here, *TINY, "--no-progress", "--log-every", "1")
    assert done.out.count("left\n") == 3
    assert train(here, *TINY, "--log-every", "0", "--name", "quiet").out.count("left\n") == 0


# ---- resuming ------------------------------------------------------------------------------------------------------


def test_a_finished_run_stays_as_it_is(run):
    before = snapshot(run / "runs")
    done = train(run, "--resume", "--name", "a")
    assert done.code == 0
    assert "3 of 3 steps are done, so there is nothing to do" in done.err
    assert "validation loss" not in done.out
    assert done.out.endswith("step 3: already saved: runs/a/checkpoints/step-00000003\n")
    assert snapshot(run / "runs") == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "0.1"], "--lr 0.001, now 0.1"),
        (["--batch-size", "3"], "--batch-size 2, now 3"),
        (["--weight-decay", "0"], "--weight-decay 0.1, now 0.0"),
        (["--steps", "9"], "--steps 3, now 9 (the learning rate's schedule depends on it)"),
        (["--steps", "2"], "--steps 3, now 2"),
        (["--beta2", "0.9"], "--beta2 0.95, now 0.9"),
        (["--grad-clip", "0"], "--grad-clip 1.0, now 0.0"),
        (["--grad-accum", "2"], "--grad-accum 1, now 2"),
        (["--seed", "1"], "--seed 0, now 1"),
        (["--seq-len", "8"], "--seq-len 16, now 8"),
        (["--dtype", "bfloat16"], "--dtype float32, now bfloat16"),
        (["--eval-batches", "1"], "--eval-batches None, now 1"),
        (["--dropout", "0.5"], "--dropout 0.0, now 0.5"),
        (["--val-fraction", "0.3"], "--val-fraction 0.2, now 0.3"),
        (["--data", "a.txt", "b.txt"], "--data a.txt, now a.txt b.txt"),
        (["--val-data", "b.txt"], "--val-data none, now b.txt"),
        (["--lr", "0.1", "--steps", "9"], "--steps 3, now 9 (the learning rate's schedule depends on it); --lr 0.001"),
    ],
)
def test_other_settings_are_refused_by_name_with_both_values(run, options, words):
    (run / "b.txt").write_text("And more. " * 20)
    before = snapshot(run / "runs")
    said = error(train(run, "--resume", "--name", "a", *options))
    assert said.startswith("runs/a was trained with ")
    assert words in said
    assert "--allow-changes" in said
    assert snapshot(run / "runs") == before


def test_allowed_changes_are_said_and_recorded(run):
    done = train(run, "--resume", "--name", "a", "--steps", "5", "--lr", "0.01", "--allow-changes")
    assert done.code == 0, done.err
    assert "going on with changes: steps=3, now 5" in done.err
    assert [line["step"] for line in read_metrics(run / "runs" / "a" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    settings = json.loads((run / "runs" / "a" / "settings.json").read_text())
    assert (settings["train"]["steps"], settings["train"]["lr"]) == (5, 0.01)
    assert train(run, "--resume", "--name", "a").code == 0


def test_what_changes_nothing_may_differ(run):
    free = [
        "--keep", "5", "--save-every", "1", "--eval-every", "1", "--log-every", "1", "--tensorboard", "--threads", "1",
        "--no-progress", "--device", "auto", "--tokenizer", "shakespeare", "--attn-impl", "reference",
    ]  # fmt: skip
    done = train(run, "--resume", "--name", "a", *free, CUDA_VISIBLE_DEVICES="")
    assert done.code == 0, done.err


def test_a_script_that_goes_on_leaves_the_other_settings(run):
    tokenizer = Tokenizer.named("shakespeare")
    data, _ = TokenDataset.from_documents([tokenizer.encode(TEXT)], tokenizer).split(0.2)
    before = json.loads((run / "runs" / "a" / "settings.json").read_text())
    model = GPT(GPTConfig(tokenizer.vocab_size, 16, 1, 2, 16, dropout=0.0))
    config = TrainConfig(**before["train"] | {"runs_dir": str(run / "runs"), "steps": 4, "seq_len": 16})
    script = trainer.Trainer(model, data, config, tokenizer=tokenizer, show_progress=False)
    assert script.fit(resume=True, allow_changes=True).step == 4
    after = json.loads((run / "runs" / "a" / "settings.json").read_text())
    assert after["model"] == before["model"]
    assert after["data"] == before["data"]
    assert after["train"]["steps"] == 4


def test_another_tokenizer_is_refused(run):
    said = error(train(run, "--resume", "--name", "a", "--tokenizer", "gpt2", "--allow-changes"))
    assert said.startswith(
        "--tokenizer gpt2 is another tokenizer than that of the model in runs/a/checkpoints/step-0000"
    )


@pytest.mark.parametrize(
    "options",
    [["--d-model", "32"], ["--n-layers", "2"], ["--vocab-size", "5000"], ["--gelu", "tanh"], ["--n-heads", "4"]],
)
def test_another_model_is_refused_whatever_is_allowed(run, options):
    said = error(train(run, "--resume", "--name", "a", *options, "--allow-changes"))
    assert f"{' '.join(options)} is not what the model in runs/a/checkpoints/step-00000003 has" in said


def test_a_moved_run_is_found_where_it_is(run):
    (run / "elsewhere").mkdir()
    (run / "runs" / "a").rename(run / "elsewhere" / "b")
    options = ["--runs-dir", "elsewhere", "--name", "b", "--steps", "4", "--allow-changes"]
    assert train(run, "--resume", *options).code == 0
    assert (run / "elsewhere" / "b" / "checkpoints" / "step-00000004").is_dir()
    assert list((run / "runs").iterdir()) == []


def test_nothing_to_resume(here):
    said = error(train(here, "--resume", "--name", "new", "--runs-dir", "there"))
    for word in ("there/new/settings.json", "nothing to resume", "--name (here: new)", "--runs-dir (here: there)"):
        assert word in said
    (here / "runs" / "run").mkdir(parents=True)
    (here / "runs" / "run" / "settings.json").write_text('{"train": {}}')
    assert "no checkpoint, so nothing to resume" in error(train(here, "--resume"))
    (here / "runs" / "run" / "settings.json").write_text('{"train"')
    said = error(train(here, "--resume"))
    assert "runs/run/settings.json: cannot be read as JSON" in said
    assert said.endswith("start a new run from this one's weights: --init-from runs/run")
    assert error(train(here, "--resume", "--name", "n" * 300)).startswith("runs/nnn")


def test_resume_and_overwrite_exclude_each_other(run):
    before = snapshot(run / "runs")
    said = error(train(run, "--resume", "--overwrite", "--name", "a"))
    assert "--overwrite starts a run over and --resume goes on with it" in said
    said = error(train(run, "--resume-from", "runs/a/checkpoints/step-00000002", "--overwrite"))
    assert "--overwrite starts a run over" in said
    assert snapshot(run / "runs") == before


def test_config_beside_resume_is_compared_too(run):
    (run / "other.json").write_text((run / "runs" / "a" / "settings.json").read_text().replace("0.001", "0.002"))
    assert "--lr 0.001, now 0.002" in error(train(run, "--resume", "--config", "other.json"))
    assert train(run, "--resume", "--config", "runs/a/settings.json").code == 0


# ---- damaged checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("model.safetensors", "truncated"),
        ("model.safetensors", "removed"),
        ("training.safetensors", "flipped"),
        ("training.json", "emptied"),
        ("fastgpt_tokenizer.json", "truncated"),
        ("checksums.json", "emptied"),
        ("checksums.json", "removed"),
    ],
)
def test_a_damaged_newest_checkpoint_points_to_the_one_before_it(run, name, how):
    newest = run / "runs" / "a" / "checkpoints" / "step-00000003"
    data = (newest / name).read_bytes()
    if how == "removed":
        (newest / name).unlink()
    else:
        half = len(data) // 2
        flipped = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        (newest / name).write_bytes({"truncated": data[:half], "emptied": b"", "flipped": flipped}[how])
    said = error(train(run, "--resume", "--name", "a"))
    assert str(newest.relative_to(run)) in said
    way_out = "fastgpt train --resume-from runs/a/checkpoints/step-00000002"
    assert way_out in said
    done = train(run, *way_out.split()[2:])
    assert done.code == 0, done.err
    assert "set-aside-step-00000003" in done.err
    assert checkpoints(run) == ["set-aside-step-00000003", "step-00000002", "step-00000003"]
    assert train(run, "--resume", "--name", "a").code == 0


def test_resume_from_gives_the_same_bits(run):
    path = run / "runs" / "a" / "checkpoints" / "step-00000003"
    before, log = load_file(path / "model.safetensors"), read_metrics(run / "runs" / "a" / "metrics.jsonl")
    assert train(run, "--resume-from", str(path.with_name("step-00000002"))).code == 0
    for tensor_name, tensor in load_file(path / "model.safetensors").items():
        assert torch.equal(tensor, before[tensor_name])
    assert [line["loss"] for line in read_metrics(run / "runs" / "a" / "metrics.jsonl")] == [x["loss"] for x in log]


def test_resume_from_what_is_no_checkpoint_of_the_run(run):
    shutil.copytree(run / "runs" / "a", run / "runs" / "b")
    said = error(train(run, "--resume-from", "runs/b/checkpoints/step-00000002", "--name", "a"))
    assert said.startswith("--name a is not where --resume-from runs/b/checkpoints/step-00000002 lies (b)")
    assert "nowhere is no checkpoint of a run, so nothing to resume" in error(train(run, "--resume-from", "nowhere"))
    said = error(train(run, "--resume-from", "runs/a/checkpoints/step-00000009"))
    assert "step-00000009: not a training checkpoint" in said
    assert said.endswith("; those of this run: " + ", ".join(f"runs/a/checkpoints/{name}" for name in checkpoints(run)))


def test_every_checkpoint_damaged(run):
    for path in (run / "runs" / "a" / "checkpoints").iterdir():
        (path / "model.safetensors").write_bytes(b"")
    assert "there is none before it: restore it from a copy" in error(train(run, "--resume", "--name", "a"))


def test_a_checkpoint_half_written_is_none(run):
    root = run / "runs" / "a" / "checkpoints"
    shutil.copytree(root / "step-00000002", root / ".writing-0123abcd")
    assert train(run, "--resume", "--name", "a", "--steps", "4", "--allow-changes").code == 0
    assert checkpoints(run) == ["step-00000003", "step-00000004"]


# ---- other weights to start from -----------------------------------------------------------------------------------


def test_init_from_takes_shape_and_tokenizer_from_the_model(run):
    few = ["--data", "a.txt", "--val-fraction", "0.2", "--batch-size", "2", "--steps", "2", "--no-tensorboard"]
    done = train(run, *few, "--init-from", "runs/a", "--dropout", "0.1", "--device", "cpu", "--name", "b")
    assert done.code == 0, done.err
    made = run / "runs" / "b" / "checkpoints" / "step-00000002"
    config = json.loads((made / "config.json").read_text())
    assert (config["d_model"], config["max_len"], config["dropout"]) == (16, 16, 0.1)
    assert Tokenizer.from_pretrained(made) == Tokenizer.named("shakespeare")
    same = ["--n-layers", "1", "--d-model", "16", "--tokenizer", "shakespeare"]
    assert train(run, *few, "--init-from", "runs/a", *same, "--device", "cpu", "--name", "c").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n-layers", "2"], ("--n-layers 2 is not what the model in ", " (1), which decides")),
        (["--d-model", "32"], ("--d-model 32 is not what", " (16)")),
        (["--max-len", "8"], ("--max-len 8 is not what", " (16)")),
        (["--no-bias"], ("--no-bias", "(True)")),
        (["--gelu", "tanh"], ("--gelu tanh is not what", "(none)")),
        (["--preset", "gpt2"], ("--preset gpt2 has ", "n_layers 12 (the model: 1)")),
        (["--tokenizer", "gpt2"], ("--tokenizer gpt2 is another tokenizer", "(shakespeare)")),
    ],
)
def test_init_from_conflicts_are_refused_by_name(run, options, words):
    few = ["--data", "a.txt", "--val-fraction", "0.2", "--init-from", "runs/a", "--device", "cpu", "--name", "b"]
    said = error(train(run, *few, *options))
    for word in words:
        assert word in said
    assert not (run / "runs" / "b").exists()


def test_init_from_a_model_without_a_tokenizer(here):
    tiny_model(vocab_size=300).save_pretrained(here / "m")
    said = error(train(here, "--data", "a.txt", "--init-from", "m"))
    assert "--tokenizer gpt2 has 50257 token ids, the model in m 300" in said


def test_resume_with_init_from(run):
    few = ["--data", "a.txt", "--val-fraction", "0.2", "--batch-size", "2", "--steps", "2", "--no-tensorboard"]
    assert train(run, *few, "--init-from", "runs/a", "--device", "cpu", "--name", "b").code == 0
    shutil.rmtree(run / "runs" / "a")  # the weights come from the checkpoint
    assert train(run, "--resume", "--name", "b", "--steps", "3", "--allow-changes").code == 0
    assert train(run, "--resume", "--name", "b", "--init-from", "runs/a").code == 0  # as it was
    said = error(train(run, "--resume", "--name", "b", "--init-from", "runs/c"))
    assert said.startswith("--init-from runs/c cannot be given to a run that is resumed")


ONE_HEAD = [
    "--data", "a.txt", "--val-fraction", "0.2", "--preset", "one-head", "--tokenizer", "shakespeare", "--d-model", "8",
    "--max-len", "16", "--batch-size", "2", "--steps", "3", "--no-tensorboard", "--device", "cpu", "--name", "one",
]  # fmt: skip


def test_one_head(run):
    done = train(run, *ONE_HEAD, "--lr", "0.05")
    assert done.code == 0, done.err
    kept = run / "runs" / "one" / "checkpoints" / "step-00000003"
    assert json.loads((kept / "config.json").read_text())["model_type"] == "fastgpt-one-head"
    assert train(run, "--resume", "--name", "one", "--steps", "5", "--allow-changes").code == 0
    few = ["--data", "a.txt", "--val-fraction", "0.2", "--batch-size", "2", "--steps", "1", "--device", "cpu"]
    assert train(run, *few, "--init-from", "runs/one", "--name", "two").code == 0
    said = error(train(run, *few, "--init-from", "runs/one", "--name", "three", "--n-kv-heads", "1"))
    assert "--n-kv-heads 1 is not what the model in " in said
    said = error(train(run, *few, "--init-from", "runs/one", "--name", "three", "--preset", "gpt2"))
    assert said.startswith("--preset gpt2 has a GPT (the model: OneHead), ")
    said = error(train(run, *few, "--init-from", "runs/a", "--name", "three", "--preset", "one-head"))
    assert said.startswith("--preset one-head has a OneHead (the model: GPT), ")


@pytest.mark.parametrize("options", [["--n-layers", "2"], ["--dropout", "0.1"], ["--attn-impl", "sdpa"], ["--no-bias"]])
def test_one_head_has_not_all_settings(here, options):
    said = error(train(here, *ONE_HEAD, *options))
    assert said.startswith(options[0])
    assert "is no setting of preset one-head, which has vocab_size, d_model, max_len; leave it out" in said


def test_a_text_too_short(here):
    (here / "b.txt").write_text("x")
    said = error(train(here, *TINY, "--data", "b.txt"))
    assert "--val-fraction 0.2 splits the 2 tokens of b.txt into 1 to learn from and 1 to validate with" in said


def test_checkpoint_error_is_a_runtime_error():
    assert issubclass(CheckpointError, RuntimeError)
