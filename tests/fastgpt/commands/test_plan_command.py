"""`fastgpt plan` and `fastgpt bench`: what they take, what they print at any width, what they say of mistakes."""

from __future__ import annotations

import json

import pytest
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.base.settings import SettingError
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.tools.gpus import GPUS, find_gpu
from fastgpt.tools.memory import training_step
from tests.support import command

pytest.importorskip("triton")
pytest.importorskip("tyro")
from fastgpt.commands import bench as bench_command

pytestmark = pytest.mark.needs("rich")
SMALL = GPTConfig(vocab_size=101, max_len=32, n_layers=2, n_heads=2, d_model=32)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    GPT(SMALL).save_pretrained(tmp_path / "model")
    return "model"


def figures(text):
    """{row: [numbers]} of the table in a text."""
    rows = {}
    for line in text.splitlines():
        name, *cells = [cell for cell in line.replace(",", "").split("  ") if cell.strip()] or [""]
        if cells and all(cell.strip().replace(".", "").isdigit() for cell in cells):
            rows[name.strip()] = [float(cell) for cell in cells]
    return rows


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_plan_prints_parts_that_add_up(tmp_path, columns):
    options = ("--batch-size", "300", "--seq-len", "64", "--gpu", "rtx 3090")
    done = command.run("plan", "depth-2x256x4", *options, cwd=tmp_path, COLUMNS=columns)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert lines[0] == "depth-2x256x4: 300 x 64 tokens, bfloat16; in MiB"
    assert lines[1] == "rtx3090: 24.0 GiB, less a margin of 1.5: 22.5 GiB"
    assert lines[3].split() == list(IMPLEMENTATION_SETS)
    rows = figures(done.out)
    parts = [rows[name] for name in ("parameters", "AdamW's state", "gradients", "activations", "transient")]
    assert [sum(column) for column in zip(*parts)] == rows["peak their sum"]
    assert len(rows["largest batch"]) == 3
    assert "0.5 to 1.5 GiB" in " ".join(done.out.split())


def test_plan_as_json_leaves_the_margin_free(model, tmp_path):
    def plan(*options):
        done = command.run("plan", model, "--gpu", "2", "--json", *options, cwd=tmp_path)
        assert done.code == 0, done.err
        return json.loads(done.out)

    found = plan()
    assert found["gpu"] == {"name": "2 GiB", "memory": 2 * 2**30, "arch": "sm_90"}
    assert found["margin"] == 1.5 * 2**30
    assert found["seq_len"] == 32
    for name, one in found["implementations"].items():
        config = SMALL.replace(**IMPLEMENTATION_SETS[name])
        peak = [training_step(config, one["largest_batch"] + n, 32).peak for n in (0, 1)]
        assert peak[0] <= 2**29 < peak[1]
        assert one["fits"] == (one["largest_batch"] >= 8)
        assert sum(one[part] for part in one if part not in ("peak", "fits", "largest_batch")) == one["peak"]
    wider = plan("--margin", "0")["implementations"]
    assert all(wider[name]["largest_batch"] > one["largest_batch"] for name, one in found["implementations"].items())


def test_plan_takes_what_open_model_takes(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    hf = transformers.GPT2Config(vocab_size=101, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(hf).save_pretrained(tmp_path / "hf")
    done = command.run("plan", "hf", "--gpu", "l4", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["seq_len"] == 16
    done = command.run("bench", "hf", "--steps", "1", "--batch-size", "1", "--device", "cpu", "--json", cwd=tmp_path)
    assert json.loads(done.out)["seq_len"] == 16, done.err


def test_plan_on_a_gpu_that_the_kernels_do_not_run_on(model, tmp_path):
    done = command.run("plan", model, "--gpu", "v100-16gb", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[3].split() == ["torch", "reference"]
    assert "float32; in MiB" in done.out
    assert "v100-16gb is sm_70: fastgpt's kernels need sm_75 or newer" in " ".join(done.out.split())


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_bench_on_a_cpu(model, tmp_path, columns):
    options = ("--batch-size", "1", "--steps", "2", "--device", "cpu")
    done = command.run("bench", model, *options, cwd=tmp_path, COLUMNS=columns)
    assert done.code == 0, done.err
    assert done.err == ""
    text = " ".join(done.out.split())
    assert text.startswith("On a CPU the Triton kernels run only in the interpreter")
    assert "model: 1 x 32 tokens, float32 on cpu, 2 steps each torch reference median step, ms" in text
    assert max(map(len, done.out.splitlines())) <= int(columns)


def test_bench_as_json(model, tmp_path):
    options = ("--batch-size", "1", "--steps", "2", "--seq-len", "5", "--device", "cpu", "--json")
    done = command.run("bench", model, *options, cwd=tmp_path)
    found = json.loads(done.out, parse_constant=pytest.fail)
    assert (found["seq_len"], found["steps"], found["device"]) == (5, 2, "cpu")
    assert set(found["implementations"]) == {"torch", "reference"}
    assert "interpreter" in found["left_out"]["fastgpt"]
    for one in found["implementations"].values():
        assert one["median_seconds"] > 0
        assert one["peak_bytes"] is None


def test_an_implementation_that_runs_out_of_memory_is_one_column(monkeypatch, capsys):
    def out_of_memory(config, *args):
        if config.attn_impl == "reference":
            raise torch.OutOfMemoryError
        return {
            "median_seconds": 1.0, "iqr_seconds": 0.0, "tokens_per_second": 1.0, "flops_per_second": 1.0,
            "peak_bytes": 2**20,
        }  # fmt: skip

    monkeypatch.setattr(bench_command, "_time_steps", out_of_memory)
    assert bench_command.Command(device="cpu").run() == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["peak", "memory,", "MiB", "1", "out", "of", "memory"] in rows


MISTAKES = {
    "plan gpt5": "MODEL gpt5: no such folder, and no preset; did you mean 'gpt2'?",
    "bench nosuch": "MODEL nosuch: no such folder, and no preset",
    "plan --batch-size 0": "--batch-size 0 must be an integer, at least 1",
    "plan --batch-size 99999999999999": "--batch-size 99999999999999 is too large: ",
    "plan --seq-len 0": "--seq-len 0 must be an integer, at least 1 and at most 1024, the model's max_len",
    "plan --seq-len 9999": "--seq-len 9999 must be an integer, at least 1 and at most 1024, the model's max_len",
    "plan --dtype int4": "--dtype int4 must be one of auto, float32, bfloat16",
    "plan --gpu cray": "--gpu cray must be a number of GiB, at most 1024, or one of gb200, b200, h200, h100",
    "plan --gpu a100": "--gpu a100 is one of several; take a100-80gb or a100-40gb",
    "plan --gpu v100": "--gpu v100 is one of several; take v100-32gb or v100-16gb",
    "plan --gpu -1": "--gpu -1 must be a number of GiB",
    "plan --gpu 0": "--gpu 0 must be a number of GiB",
    "plan --gpu nan": "--gpu nan must be a number of GiB",
    "plan --gpu inf": "--gpu inf must be a number of GiB",
    "plan --margin nan": "--margin nan must be a number, at least 0",
    "plan --margin 500": "--margin 500 must be a number, at least 0 and below 140.4",
    "bench --batch-size 0": "--batch-size 0 must be an integer, at least 1",
    "bench --steps 0": "--steps 0 must be an integer, at least 1",
    "bench --seq-len 0": "--seq-len 0 must be an integer, at least 1 and at most 1024, the model's max_len",
    "bench --seq-len 1025": "--seq-len 1025 must be an integer, at least 1 and at most 1024, the model's max_len",
    "bench --device gpu": "--device gpu must be one of auto, cpu",
    "verify --only rms_norm": "--only rms_norm must be one of ",
    "verify --device gpu": "--device gpu must be one of auto, cpu",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(line, tmp_path):
    done = command.run(*line.split(), cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith(f"fastgpt {line.split()[0]}: error: {MISTAKES[line]}"), done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((name, name) for name in GPUS), *((name.upper(), name) for name in GPUS),
        ("NVIDIA H100", "h100"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("NVIDIA A100-PCIE-40GB", "a100-40gb"), ("RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA RTX A6000", "a6000"), ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"), ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
    ],
)  # fmt: skip
def test_gpus_by_any_name(text, name):
    assert find_gpu(text) is GPUS[name]


@pytest.mark.parametrize(
    ("text", "hint"), [("rtx3080", "did you mean 'rtx3090'"), ("3090", "did you mean 'rtx3090'"), ("b2", "'b200'"),
                       ("h10", "take h100 or h100-nvl"), ("a100-80", "did you mean 'a100-80gb'")],
)  # fmt: skip
def test_what_was_meant(text, hint):
    with pytest.raises(SettingError, match=hint):
        find_gpu(text)
