"""`torchrun -m fastgpt train`: one rank speaks and writes; a mistake is one line, and nothing is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgpt import cli
from fastgpt.train.metrics import read_metrics

pytestmark = pytest.mark.needs("tyro", "rich", "tiktoken")

TINY = [
    "--data", "a.txt", "--val-fraction", "0.2", "--tokenizer", "shakespeare", "--n-layers", "1", "--n-heads", "2",
    "--d-model", "16", "--max-len", "16", "--batch-size", "2", "--steps", "3", "--no-tensorboard", "--device", "cpu",
    "--log-every", "1",
]  # fmt: skip


def two_ranks(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastgpt"]
    environment = os.environ | {
        "FASTGPT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }  # fmt: skip
    return subprocess.run(
        [*command, "train", *TINY, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )


def ours(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the ranks have printed on stderr, without torchrun's own report."""
    return [line for line in done.stderr.splitlines() if line.startswith("fastgpt train: ")]


def test_two_ranks_train_and_one_speaks(tmp_path):
    (tmp_path / "a.txt").write_text("To be, or not to be, that is the question. " * 40)
    done = two_ranks(tmp_path, "--global-batch-size", "8", "--strategy", "fsdp")
    assert done.returncode == 0, done.stderr
    assert ours(done) == []
    lines = done.stdout.splitlines()
    assert lines[1] == "2 ranks, strategy fsdp"
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/3", "2/3", "3/3", "3", "3:"]
    assert len(lines) == 7
    run = tmp_path / "runs" / "run"
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]
    settings = json.loads((run / "settings.json").read_text())["train"]
    assert (settings["grad_accum"], settings["global_batch_size"]) == (1, 8)  # as it was asked for


def test_a_mistake_is_told_once(tmp_path):
    (tmp_path / "a.txt").write_text("To be, or not to be, that is the question. " * 40)
    done = two_ranks(tmp_path, "--global-batch-size", "9")
    assert done.returncode != 0
    assert done.stdout == ""
    assert ours(done) == [
        "fastgpt train: error: --global-batch-size 9 must be a multiple of batch_size 2 times 2 ranks, 4; take 8 or 12"
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["report", "nowhere"], ["train", "--help"], ["--version"], ["nothing"]])
def test_what_is_no_training_one_process_of_a_launcher_does(words, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        try:
            status = cli.main(words)
        except SystemExit as end:
            status = end.code
        said = "".join(capsys.readouterr())
        assert bool(said) == (rank == "0")
        assert rank == "0" or status == 0
