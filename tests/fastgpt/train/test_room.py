"""What a training step surely takes: never more than it does, refused where there is less, and who is to blame."""

from __future__ import annotations

import pytest
import torch

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.base import machine
from fastgpt.base.settings import SettingError
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.model.size import count_parameters, kept_for_backward
from fastgpt.train.room import check_room, check_room_of
from tests.fastgpt.training import tiny_model, tiny_trainer

CONFIG = GPTConfig(vocab_size=101, max_len=32, n_layers=2, n_heads=2, d_model=32)
N = count_parameters(CONFIG.to_dict())
STEP = {"batch_size": 2, "seq_len": 8, "device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def room(monkeypatch):
    """Sets what there is on this machine, in bytes."""
    return lambda n_bytes: monkeypatch.setattr(machine, "host_room", lambda: machine.Room(n_bytes, "it has"))


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", IMPLEMENTATION_SETS)
def test_no_implementation_keeps_less_for_the_backward(name, autocast, remat):
    pytest.importorskip("triton")
    from fastgpt.tools.memory import training_step

    config = CONFIG.replace(**IMPLEMENTATION_SETS[name], vocab_size=30_000)
    fused = name == "fastgpt"
    least = kept_for_backward(config.to_dict(), 32 * 32, 32, fused_loss=fused, remat=remat)
    least *= 2 if autocast else 4
    step = training_step(config, 32, 32, autocast=autocast, remat=remat)
    assert 0.1 * step.peak < least if not fused else least > 0
    assert least + step.parameters <= step.peak


def test_one_head_keeps_no_less():
    pytest.importorskip("triton")
    from fastgpt.tools.memory import on_paper

    with on_paper() as memory:
        model = OneHeadLM(500, 8, 64)
        memory.forget_peak()
        before = memory.live
        idx = torch.empty(3, 64, dtype=torch.int64)
        loss = model(idx, idx).loss
        kept = memory.live - before
        del loss
    assert 4 * kept_for_backward(model.config.to_dict(), 3 * 64, 64, fused_loss=False) <= kept


def test_weights_gradients_and_moments_that_just_fit(room):
    room(16 * N)
    check_room(CONFIG, **STEP)
    room(16 * N - 1)
    with pytest.raises(SettingError, match=r"weights, gradients and AdamW's moments take .*, and it has .*; lower it"):
        check_room(CONFIG, **STEP)
    room(8 * N)
    check_room(CONFIG, **STEP, weight_bytes=2)


@pytest.mark.parametrize(("loss", "kept"), [("torch", 2 * 128 + 101), ("reference", 2 * 128 + 101)])
def test_a_batch_that_just_fits(room, loss, kept):
    config = CONFIG.replace(loss_impl=loss)
    room(4 * N + 4 * kept * 1000 * 8)
    check_room(config, **STEP | {"batch_size": 1000})
    with pytest.raises(SettingError, match=r"batch_size=1001 is too large: .* 1,001 x 8 tokens.*: at most 1,000 could"):
        check_room(config, **STEP | {"batch_size": 1001})
    with pytest.raises(SettingError, match=r"batch_size=1100 is too large: .*: at most 1,000 could"):
        check_room(config, **STEP | {"batch_size": 1100})
    with pytest.raises(SettingError, match=r"seq_len=9000 is too large: .* 1 x 9,000 tokens.*: at most 8,000 could"):
        check_room(config, **STEP | {"batch_size": 1, "seq_len": 9000})
    with pytest.raises(SettingError, match=r"batch_size=100000 is too large: .*: and seq_len \(--seq-len\) too$"):
        check_room(config, **STEP | {"batch_size": 100000, "seq_len": 100000})


def test_updates_tokens_that_just_fit(room):
    room(100 * (2 * 8 * 16 + 512) + 16 * N)
    check_room(CONFIG, **STEP, grad_accum=100)
    with pytest.raises(SettingError, match=r"grad_accum=1000000 is too large: .*1,000,000 x 2 x 8, take .*; lower it"):
        check_room(CONFIG, **STEP, grad_accum=10**6)


def test_not_known(monkeypatch):
    monkeypatch.setattr(machine, "host_room", lambda: None)
    check_room(CONFIG.replace(n_layers=10**9), **STEP)


def test_a_gpus_memory_counts_on_a_gpu(room, monkeypatch):
    monkeypatch.setattr(machine, "room_on", lambda device: machine.Room(16 * N - 1, f"{device} has"))
    with pytest.raises(SettingError, match=r"moments take .*, and cuda:1 has "):
        check_room(CONFIG, **STEP | {"device": torch.device("cuda:1")})


def test_models_that_are_not_trained_as_a_whole_are_let_through(room):
    whole, frozen, grown, other = GPT(CONFIG), GPT(CONFIG), GPT(CONFIG), torch.nn.Linear(1000, 1000)
    frozen.token_emb.requires_grad_(False)
    grown.more = torch.nn.Linear(1, 1)
    room(10**4)
    for model in (frozen, grown, other):
        check_room_of(model, **STEP, grad_accum=1)
    with pytest.raises(SettingError, match="AdamW"):
        check_room_of(whole, **STEP, grad_accum=1)
    whole.bfloat16()
    room(8 * N)
    check_room_of(whole, **STEP, grad_accum=1)


def test_a_trainer_says_so_before_it_trains(room, tmp_path):
    model = tiny_model()
    needs = 16 * sum(p.numel() for p in model.parameters())
    room(needs - 1)
    with pytest.raises(SettingError, match="AdamW's moments"):
        tiny_trainer(tmp_path, model=model, batch_size=1, seq_len=2)
    room(needs)
    tiny_trainer(tmp_path, model=model, batch_size=1, seq_len=2)
    for setting in ({"batch_size": 4000}, {"grad_accum": 10**7}):
        with pytest.raises(SettingError, match=f"{next(iter(setting))}={next(iter(setting.values()))} is too large"):
            tiny_trainer(tmp_path, model=model, **setting)
    assert not list(tmp_path.iterdir())
