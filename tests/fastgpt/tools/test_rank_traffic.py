"""Bytes that a rank sends and seconds that it takes at least, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.base.settings import SettingError
from fastgpt.tools import many_gpus
from fastgpt.tools.gpus import GPUS, find_gpu
from fastgpt.tools.links import LINKS, find_link
from fastgpt.tools.placement import Group, place
from fastgpt.tools.rank_memory import tokens_each
from fastgpt.tools.rank_traffic import Message, messages, update_flops

CONFIG = GPTConfig(128, 64, 3, 4, 32, n_kv_heads=2)  # all rows even: nothing is filled up
with torch.device("meta"):
    MODEL = GPT(CONFIG)
ALL = sum(p.numel() for p in MODEL.parameters())
BLOCKS = sum(p.numel() for p in MODEL.blocks.parameters())
LINK, NETWORK = find_link("100", "link"), find_link("10", "network")


def placed(gpus: int, strategy: str, **options: int):
    return place(CONFIG, gpus, 2**30, strategy=strategy, **options)


def test_ddp_reduces_once_an_update():
    (message,) = messages(CONFIG, placed(8, "ddp"), 2, 64, micro_batches=5)
    assert message.sent == message.n_bytes == 2 * 7 * 4 * ALL // 8


@pytest.mark.parametrize(("bfloat16", "itemsize"), [(True, 2), (False, 4)])
def test_fsdp_gathers_twice_and_reduces_once_a_micro_batch(bfloat16, itemsize):
    """Outside of blocks parameters stay from forward to backward."""
    found = messages(CONFIG, placed(8, "fsdp"), 2, 64, micro_batches=5, bfloat16=bfloat16)
    assert [message.times for message in found] == [5, 5, 5]
    assert [message.n_bytes for message in found] == [
        7 * itemsize * ALL // 8, 7 * itemsize * BLOCKS // 8, 7 * 4 * ALL // 8
    ]  # fmt: skip


def test_hsdp_reduces_its_part_between_copies():
    *within, between = messages(CONFIG, placed(16, "hsdp", shard_ranks=4), 2, 64, micro_batches=5)
    alone = messages(CONFIG, placed(4, "fsdp"), 2, 64, micro_batches=5)
    assert [message.sent for message in within] == [message.sent for message in alone]
    assert between.sent == 2 * 3 * 4 * (ALL // 4) // 4  # 4 copies, a quarter of the gradients


def test_keys_and_values_go_round_the_ring():
    """Of 2 sequences, 16 tokens, 2 heads of 8 numbers, k and v; 3 layers and 5 micro-batches."""
    found = messages(CONFIG, placed(8, "ddp", context_parallel=4), 2, 64, micro_batches=5)[1:]
    numbers = 2 * 2 * 16 * 2 * 8
    assert [message.n_bytes for message in found] == [3 * 2 * numbers, 3 * 2 * numbers, 4 * 4 * numbers]
    assert {message.times for message in found} == {15}
    again = messages(CONFIG, placed(8, "ddp", context_parallel=4), 2, 64, micro_batches=5, remat="full")[1:]
    assert [message.times for message in again] == [30, 15, 15]  # the forward twice


def test_one_gpu_sends_nothing():
    assert messages(CONFIG, placed(1, "ddp"), 2, 64, micro_batches=1) == []


@pytest.mark.parametrize(
    ("group", "is_ring", "seconds"),
    [
        (Group(8, 8), False, 10.0),  # within a machine: 1000 GB at 100 GB/s
        (Group(64, 8), False, 12.5),  # eight adapters of 10 GB/s share what one ring carries over a border
        (Group(8, 1), False, 100.0),  # each by its own adapter
        (Group(16, 8), True, 100.0),  # to the next one only
        (Group(4, 4), True, 10.0),
        (Group(64, 16), False, 10.0),  # the links of the machine are slower
    ],
)
def test_seconds(group, is_ring, seconds):
    assert Message("", 4, 250 * 10**9, group, is_ring).seconds(LINK, NETWORK) == pytest.approx(seconds)


def test_flops_are_those_of_the_model():
    """Those that MFU counts, with the half of attention that a causal mask leaves."""
    each = MODEL.flops_per_token(64, causal=True)
    assert update_flops(CONFIG, placed(8, "fsdp"), 32, 64) == each * 32 * 64 // 8
    forward = (each - 6 * CONFIG.vocab_size * CONFIG.d_model) // 3  # of all blocks
    last = 2 * CONFIG.n_layers * CONFIG.d_model * CONFIG.d_ff
    again = update_flops(CONFIG, placed(8, "fsdp"), 32, 64, remat="full")
    assert again == (each + forward - last) * 32 * 64 // 8
    assert update_flops(CONFIG, placed(8, "fsdp"), 32, 64, remat="selective") == each * 32 * 64 // 8
    shared = update_flops(CONFIG, placed(8, "fsdp", context_parallel=4), 32, 64, remat="selective")
    assert shared == (each + 2 * CONFIG.n_layers * CONFIG.d_model * 64) * 32 * 64 // 8


def step(gpu: str, **options: object) -> dict:
    how = {"batch": 2, "seq_len": 64, "room": 2**40, "link": LINK, "network": NETWORK, "implementations": ("torch",)}
    return many_gpus.step(CONFIG, placed(16, "fsdp"), find_gpu(gpu), **how | options)


def test_a_bound_on_time():
    found = step("h100", accumulation=3)
    time = found["time"]
    assert time["flops"] == MODEL.flops_per_token(64, causal=True) * 3 * 2 * 64
    assert time["computing"] == time["flops"] / 989.4e12
    assert time["sending"] == pytest.approx(found["sent_bytes"] / 8 / 10e9)  # eight adapters of 10 GB/s
    assert time["all_overlaps"] == max(time["computing"], time["sending"])
    assert time["nothing_overlaps"] == time["computing"] + time["sending"]
    assert found["sent_bytes"] == sum(one["times"] * one["bytes"] for one in found["sent"])
    assert (found["global_batch_size"], found["tokens_per_update"]) == (3 * 2 * 16, 3 * 2 * 16 * 64)


def test_of_a_gpu_whose_peak_is_not_known():
    time = step("80")["time"]
    assert time["computing"] is time["all_overlaps"] is time["nothing_overlaps"] is None
    assert time["sending"] > 0
    assert step("h100", bfloat16=False)["time"]["computing"] is None


def test_peaks_by_a_gpus_name():
    """Every GPU that the table of peaks knows is found under the name that `plan --gpu` takes."""
    peaks = {name: peak for name, gpu in GPUS.items() if (peak := many_gpus.peak_of(gpu)) is not None}
    assert peaks.keys() == set(GPUS) - {"l40", "a10g", "rtx6000-ada", "rtx5090", "t4", "v100-32gb", "v100-16gb"}
    known = {"h100-nvl": 835.5e12, "rtx4090": 165.2e12, "a6000": 154.8e12, "a100-40gb": 312e12, "h200": 989.5e12}
    assert {name: peaks[name] for name in known} == known


def test_the_most_that_fits():
    """The largest batch fits, and one sequence more does not."""
    most = step("h100", room=2**27)["implementations"]["torch"]["largest_batch"]
    peaks = [step("h100", batch=most + more)["implementations"]["torch"]["peak"] for more in (0, 1)]
    assert peaks[0] <= 2**27 < peaks[1]


def test_micro_batches():
    assert many_gpus.micro_batches(None, 2, placed(16, "fsdp")) == 1
    assert many_gpus.micro_batches(96, 2, placed(16, "fsdp")) == 3
    assert many_gpus.micro_batches(96, 2, placed(16, "fsdp", context_parallel=4)) == 12


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (95, {}, r"global_batch_size=95 must be a multiple of 32, 2 \(--batch-size\) x 16 ranks; take 64 or 96"),
        (3, {}, r"take 32$"),
        (9, {"context_parallel": 4}, r"multiple of 8, 2 \(--batch-size\) x 4 ranks of 4 GPUs; take 8 or 16"),
        (0, {}, "global_batch_size=0 must be an integer, at least 1"),
    ],
)
def test_a_global_batch_that_is_none(asked, options, message):
    with pytest.raises(SettingError, match=message):
        many_gpus.micro_batches(asked, 2, placed(16, "fsdp", **options))


def test_tokens_are_shared_in_two_pieces_each():
    assert tokens_each(64, placed(8, "ddp", context_parallel=4)) == 16
    with pytest.raises(SettingError, match=r"seq_len=63 must be a multiple of 8: .*; 56 or 64 would do"):
        tokens_each(63, placed(8, "ddp", context_parallel=4))
    assert tokens_each(63, placed(8, "ddp")) == 63


def test_the_issues_own_example():
    """64 layers of 8192 on 256 GPUs: 12 · 64 · 8192² and embeddings, in parts of 1/256."""
    config = GPTConfig.preset("gpt-64x8192x64")
    how = {"batch": 1, "seq_len": 2048, "room": 2**37, "link": LINKS["nvlink4"], "network": LINKS["ndr"]}
    one = many_gpus.step(
        config, place(config, 256, 2**37, strategy="fsdp"), GPUS["h200"], implementations=("fastgpt",), **how
    )
    held = one["implementations"]["fastgpt"]
    assert one["n_parameters"] == pytest.approx(12 * 64 * 8192**2 + (50257 + 2048) * 8192, rel=1e-3)
    assert held["parameters"] == held["gradients"] == held["optimizer"] // 2
    assert held["parameters"] == pytest.approx(4 * one["n_parameters"] / 256, rel=1e-3)
    assert held["gathered"] == pytest.approx(2 * (2 * 12 * 8192**2 + (50257 + 2048) * 8192), rel=1e-3)
    assert held["fits"]
    assert one["sent_bytes"] == pytest.approx(2 * 2 * one["n_parameters"] + 4 * one["n_parameters"], rel=2e-2)
    assert math.isclose(one["time"]["computing"], one["time"]["flops"] / 989.5e12)
