"""`fastgpt plan --gpus`: what it prints, what JSON has, sizes by option."""

from __future__ import annotations

import json
import math
import re

import pytest

from fastgpt import GPTConfig
from fastgpt.model import presets
from tests.support import command

pytest.importorskip("triton")
pytest.importorskip("tyro")
from fastgpt.commands.plan import SIZES, Command

pytestmark = pytest.mark.needs("tyro", "rich")
SMALL = ("--layers", "3", "--d-model", "64", "--heads", "4", "--vocab-size", "512", "--max-len", "128", "--gpu", "2")
HSDP = ("--gpus", "16", "--strategy", "hsdp", "--shard-ranks", "4", "--global-batch-size", "128", "--link", "pcie5")


def plan(tmp_path, *options: str):
    done = command.run("plan", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.err == ""
    return done.out


def as_json(tmp_path, *options: str) -> dict:
    return json.loads(plan(tmp_path, *options, "--json"), parse_constant=pytest.fail)


def test_the_issues_own_command(tmp_path):
    """Large as it is, in seconds, and no wider than 100 columns."""
    sizes = ("--layers", "64", "--d-model", "8192", "--heads", "64")
    text = plan(tmp_path, *sizes, "--gpus", "256", "--strategy", "fsdp", "--batch-size", "1")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "gpt-64x8192x64: 51,974,922,240 parameters on 256 GPUs (32 machines of 8)"
    assert lines[1] == "fsdp: 256 ranks share the model"
    assert lines[2] == "an update: 256 ranks x 1 x 1 sequences of 2,048 = 524,288 tokens, bfloat16"
    whole = 4 * 51_974_922_240 / 256 / 2**20  # and part of a row
    rows = {name: cells.split() for name, cells in re.findall(r"^(\S.*?)  +([\d,. ]+)$", text, re.MULTILINE)}
    assert {int(cell) for cell in rows["parameters"]} == {math.ceil(whole)} == {775}
    assert rows["gradients"] == rows["parameters"]
    assert rows["AdamW's state"] == ["1,549"] * 3
    assert "Counted, not measured" in text
    assert all(name in text for name in ("1910.02054", "2304.11277", "Patarasu & Yuan 2009"))


def test_json_has_everything_in_bytes_and_seconds(tmp_path):
    found = as_json(tmp_path, *SMALL, *HSDP, "--network", "1")
    assert found["placement"] == {
        "gpus": 16, "strategy": "hsdp", "shard_ranks": 4, "context_parallel": 1, "gpus_per_node": 8, "why": ""
    }  # fmt: skip
    assert (found["batch_size"], found["accumulation"], found["global_batch_size"]) == (8, 1, 128)
    assert found["tokens_per_update"] == 128 * 128
    one = found["implementations"]["fastgpt"]
    parts = {"parameters", "gradients", "optimizer", "activations", "gathered", "loss", "block", "peak"}
    assert parts | {"fits", "largest_batch"} == one.keys()
    assert 4 * one["parameters"] == 4 * found["n_parameters"]  # four parts are a whole, of float32
    assert [message["ranks"] for message in found["sent"]] == [4, 4, 4, 4]
    assert [message["crosses_nodes"] for message in found["sent"]] == [False, False, False, True]
    assert (found["link"]["bytes_per_second"], found["network"]["bytes_per_second"]) == (64e9, 1e9)
    assert found["time"]["sending"] == pytest.approx(sum(message["seconds"] for message in found["sent"]))


def test_without_a_strategy_it_says_which_and_why(tmp_path):
    small, large = plan(tmp_path, *SMALL, "--gpus", "2"), plan(tmp_path, "gpt-64x4096x32", "--gpus", "8")
    assert "ddp: each of 2 ranks holds a whole copy\na whole copy fits one GPU: " in small
    assert "fsdp: 8 ranks share the model\na whole copy does not fit one GPU: " in large
    assert "take 195.2 GiB, a GPU has 140.4 GiB" in " ".join(large.split())


def test_a_gpu_that_the_kernels_do_not_run_on(tmp_path):
    text = plan(tmp_path, *SMALL, "--gpus", "2", "--gpu", "v100-16gb")
    assert "torch  reference" in text
    assert "fastgpt  " not in text
    assert "how many a second is not known of this GPU and dtype" in text
    assert "v100-16gb is sm_70: fastgpt's kernels need sm_75 or newer" in " ".join(text.split())


def test_groups_of_gpus_share_sequences(tmp_path):
    text = plan(tmp_path, *SMALL, "--gpus", "8", "--context-parallel", "4", "--global-batch-size", "32")
    assert "ddp: each of 8 ranks holds a whole copy; 4 ranks share each sequence" in text
    assert "an update: 2 groups x 2 x 8 sequences of 128 = 4,096 tokens" in text
    assert re.search(r"^keys, values, forward, bfloat16 +6 ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "name", "base"),
    [
        ({"layers": 32, "d_model": 4096, "heads": 32}, "gpt-32x4096x32", "gpt-32x4096x32"),
        ({"model": "gpt-32x4096x32"}, "gpt-32x4096x32", "gpt-32x4096x32"),
        ({"layers": 32, "d_model": 4096, "heads": 32, "n_kv_heads": 8, "d_ff": 100},
         "gpt-32x4096x32, n-kv-heads 8, d-ff 100", "gpt-32x4096x32"),
        ({"layers": 3}, "gpt2-124m, layers 3", "gpt2"),
        ({"model": "depth-2x256x4", "d_model": 64, "max_len": 99}, "depth-2x256x4, d-model 64, max-len 99",
         "depth-2x256x4"),
        ({}, "gpt2-124m", "gpt2"),
    ],
)  # fmt: skip
def test_sizes_by_option(options, name, base):
    """Of MODEL those that are not given; layers, width and heads together need none."""
    command = Command(**options)
    config = command._config()
    assert command._named(config) == name
    fields = {SIZES[option]: value for option, value in options.items() if option != "model"}
    assert config == GPTConfig.preset(base).replace(**fields)


def test_sizes_by_option_on_one_gpu(tmp_path):
    found = as_json(tmp_path, *SMALL)
    assert found["model"] == "gpt-3x64x4, max-len 128, vocab-size 512"
    assert found["seq_len"] == 128
    assert "placement" not in found
    assert found["implementations"]["torch"]["parameters"] == 4 * (12 * 3 * 64**2 + 640 * 64 + 3 * 13 * 64 + 2 * 64)


def test_help_names_the_large_presets():
    assert "gpt-{32,64,96}x{4096x32,6144x48,8192x64}" in presets.described()


MISTAKES = {
    "--gpus 0": "--gpus 0 must be an integer, at least 1",
    "--gpus 12": "--gpus 12 must be whole machines of 8 (--gpus-per-node); take 8 or 16",
    "--gpus 8 --strategy zero": "--strategy zero must be one of auto, ddp, fsdp, hsdp",
    "--strategy fsdp": "--strategy fsdp is of many GPUs; say how many: --gpus 8, or leave it out",
    "--link ndr": "--link ndr is of many GPUs; say how many: --gpus 8, or leave it out",
    "--gpus 8 --shard-ranks 4": "--shard-ranks 4 belongs to hsdp; take --strategy hsdp, or leave it out",
    "--gpus 8 --strategy hsdp --shard-ranks 3": "--shard-ranks 3 must divide the 8 GPUs (--gpus); take 1 or 2 or 4",
    "--gpus 8 --context-parallel 3": "--context-parallel 3 must divide the 8 GPUs (--gpus); take 1 or 2 or 4",
    "--gpus 8 --context-parallel 8 --seq-len 1000": "--seq-len 1000 must be a multiple of 16: 8 ranks",
    "--gpus 8 --global-batch-size 65": "--global-batch-size 65 must be a multiple of 64, 8 (--batch-size) x 8 ranks; ",
    "--gpus 8 --link fast": "--link fast must be GB/s in one direction, at most 10,000, or one of nvlink5, nvlink4, ",
    "--gpus 8 --network 0": "--network 0 must be GB/s in one direction",
    "--gpus 8 --gpus-per-node 0": "--gpus-per-node 0 must be an integer, at least 1",
    "--gpus 8 --batch-size 99999999999999": "--batch-size 99999999999999 is too large: ",
    "--layers 0": "--layers 0 must be an integer, at least 1",
    "--layers 2 --d-model 100 --heads 3": "--heads 3 must divide d_model (100); take d_model 99",
    "--d-model 100": "MODEL gpt2-124m has n_heads 12, which must divide d_model (100)",
    "gpt-32x4096x64 --gpus 8": "MODEL gpt-32x4096x64: no such folder, and no preset; did you mean 'gpt-32x4096x32'?",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(line, tmp_path):
    done = command.run("plan", *line.split(), cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith(f"fastgpt plan: error: {MISTAKES[line]}"), done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
