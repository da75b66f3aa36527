"""TrainConfig: each field is checked, explained once, and named as the option that sets it."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.train.devices import _threads_hint, resolve_device, resolve_dtype
from fastgpt.train.train_config import TrainConfig

BAD = [
    ("steps", 0, "must be an integer, at least 1"),
    ("steps", 1.5, "must be an integer, at least 1"),
    ("steps", True, "must be an integer"),
    ("steps", "10", "must be an integer"),
    ("steps", None, "must be an integer"),
    ("batch_size", 0, "must be an integer, at least 1"),
    ("batch_size", -1, "must be an integer, at least 1"),
    ("grad_accum", 0, "must be an integer, at least 1"),
    ("seq_len", 0, "must be an integer, at least 1"),
    ("lr", "3e-4", "must be a number, at least 0"),
    ("lr", math.nan, "must be a number, at least 0"),
    ("lr", math.inf, "must be a number, at least 0"),
    ("lr", -1.0, "must be a number, at least 0"),
    ("warmup_fraction", 1.5, "must be a number, at least 0 and at most 1"),
    ("final_lr_fraction", -0.5, "must be a number, at least 0 and at most 1"),
    ("weight_decay", -0.1, "must be a number, at least 0"),
    ("beta1", 1, "must be a number, at least 0 and below 1"),
    ("beta2", 1.0, "must be a number, at least 0 and below 1"),
    ("grad_clip", -1, "must be a number, at least 0"),
    ("spike", -1, "must be a number, at least 0"),
    ("log_every", -1, "must be an integer, at least 0"),
    ("eval_every", -1, "must be an integer, at least 0"),
    ("eval_batches", 0, "must be an integer, at least 1"),
    ("save_every", -1, "must be an integer, at least 0"),
    ("keep", 0, "must be an integer, at least 1"),
    ("seed", -1, "must be an integer, at least 0 and at most 18446744073709551615"),
    ("seed", 2**64, "must be an integer, at least 0 and at most 18446744073709551615"),
    ("dtype", "float64", "must be one of auto, float32, bfloat16"),
    ("dtype", torch.float32, "must be one of auto, float32, bfloat16"),
    ("device", 0, "must be a string"),
    ("global_batch_size", 0, "must be an integer, at least 1"),
    ("strategy", "zero", "must be one of auto, ddp, fsdp, hsdp"),
    ("shard_ranks", 2, "is for strategy hsdp, this is auto; leave it out"),
    ("shard_ranks", 0, "must be an integer, at least 1"),
    ("context_parallel", 0, "must be an integer, at least 1"),
    ("timeout", 0, "must be an integer, at least 1 and at most 604800"),
    ("compile", 1, "must be True or False"),
    ("remat", "all", "must be one of none, selective, full"),
    ("remat", None, "must be one of none, selective, full"),
    ("tensorboard", "no", "must be True or False"),
    ("name", "", "must be the plain name of a folder"),
    ("name", ".", "must be the plain name of a folder"),
    ("name", "..", "must be the plain name of a folder"),
    ("name", "a/b", "must be the plain name of a folder"),
    ("name", None, "must be a string"),
    ("runs_dir", "", "must be the path of a folder"),
    ("runs_dir", 3, "must be the path of a folder"),
]


@pytest.mark.parametrize(("name", "value", "need"), BAD)
def test_bad_values(name, value, need):
    with pytest.raises((SettingError, SettingTypeError)) as caught:
        TrainConfig(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"TrainConfig: {name}={value!r} ")
    assert need in message


def test_every_field_is_checked():
    assert {name for name, _, _ in BAD} == {field.name for field in dataclasses.fields(TrainConfig)}


def test_numbers_of_other_libraries_become_plain_ones():
    config = TrainConfig(steps=np.int64(3), lr=np.float32(0.5), runs_dir=Path("a"), weight_decay=0)
    assert [type(v) for v in (config.steps, config.lr, config.weight_decay)] == [int, float, float]
    assert config.folder == Path("a/run")


@pytest.mark.parametrize(("batch", "accum", "ranks", "total", "found"), [
    (4, 1, 1, None, 1), (4, 3, 2, None, 3), (4, 1, 1, 12, 3), (4, 1, 2, 16, 2), (2, 4, 2, 16, 4), (4, 1, 4, 16, 1),
])  # fmt: skip
def test_a_global_batch_sets_the_accumulation(batch, accum, ranks, total, found):
    config = TrainConfig(batch_size=batch, grad_accum=accum, global_batch_size=total).on_ranks(ranks)
    assert (config.batch_size, config.grad_accum, config.global_batch_size) == (batch, found, total)


def test_a_global_batch_that_cannot_be():
    with pytest.raises(SettingError, match=r"must be a multiple of batch_size 4 times 3 ranks, 12; take 12 or 24, or "
                       r"--batch-size 2 or 3 or 6"):  # fmt: skip
        TrainConfig(batch_size=4, global_batch_size=18).on_ranks(3)
    with pytest.raises(SettingError, match=r"must be a multiple of batch_size 4, 4; take 4, or --batch-size 1 or 3"):
        TrainConfig(batch_size=4, global_batch_size=3).on_ranks(1)
    with pytest.raises(SettingError, match=r"must be a multiple of .* 16; take 16$"):
        TrainConfig(batch_size=4, global_batch_size=6).on_ranks(4)
    with pytest.raises(SettingError, match=r"grad_accum=3 is not what global_batch_size 16 asks for, 2"):
        TrainConfig(batch_size=4, grad_accum=3, global_batch_size=16).on_ranks(2)


def test_docstring_explains_every_field_in_order():
    names = re.findall(r"^        (\w+): \S", TrainConfig.__doc__.split("Args:")[1].split("Raises:")[0], re.MULTILINE)
    assert names == [field.name for field in dataclasses.fields(TrainConfig)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_devices_that_are_not_here():
    for name in ("cuda", "cuda:9"):
        with pytest.raises(SettingError, match=rf"device='{name}' cannot be used: torch sees no CUDA GPU"):
            resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda9", "cpu:1", "meta", "", "mps:7"])
def test_devices_that_are_none(name):
    with pytest.raises(SettingError, match=r"must be one of auto, cpu"):
        resolve_device(name)


def test_a_gpu_too_many(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SettingError, match=r"device='cuda:9' must be one of auto, cpu, .*cuda, cuda:0, cuda:1$"):
        resolve_device("cuda:9")


def test_dtypes():
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    for name in ("float64", "no_grad"):
        with pytest.raises(SettingError, match="must be one of auto, float32, bfloat16"):
            resolve_dtype(name, cpu)


def test_hint_of_threads(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert _threads_hint(8, 8, 0.9) is None
    assert _threads_hint(4, 8, 3.5) is None
    assert "with 8 threads, and this machine has 2 free for it (no more may be used)" in _threads_hint(8, 2, 0.0)
    assert "the load is 6.2): " in _threads_hint(8, 8, 6.2)
    assert "--threads 2, or OMP_NUM_THREADS=2" in _threads_hint(8, 8, 6.2)
    assert _threads_hint(1, 8, 100.0) is None
