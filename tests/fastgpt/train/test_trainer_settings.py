"""What a setting of a run asks for is what happens, and a resumed run is held to it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fastgpt.train import pending
from fastgpt.train.checkpoint import CheckpointError
from fastgpt.train.devices import resolve_dtype
from fastgpt.train.evaluation import evaluate
from fastgpt.train.metrics import read_metrics
from fastgpt.train.optim import learning_rate
from fastgpt.train.run_folder import SettingsChanged
from fastgpt.train.trainer import TrainConfig

from ..training import tiny_data, tiny_model, tiny_trainer

CPU = torch.device("cpu")

# Another value of each setting that decides what is computed. The others, below, may differ.
OTHER = {
    "steps": 9, "batch_size": 4, "grad_accum": 2, "seq_len": 8, "lr": 0.5, "warmup_fraction": 0.5,
    "final_lr_fraction": 0.5, "weight_decay": 0.5, "beta1": 0.5, "beta2": 0.5, "grad_clip": 0.5, "eval_batches": 1,
    "seed": 5, "dtype": "bfloat16",
}  # fmt: skip
FREE = {"log_every": 3, "eval_every": 3, "save_every": 3, "keep": 7, "device": "auto", "compile": True,
        "tensorboard": True, "strategy": "auto", "shard_ranks": None, "timeout": 9, "global_batch_size": 3,
        "remat": "full", "spike": 0.0, "context_parallel": 1}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of step 0."""
    return tiny_trainer(tmp_path_factory.mktemp("runs"), name="a").save()


def test_every_setting_is_one_or_the_other():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert fields == OTHER.keys() | FREE.keys() | {"name", "runs_dir"}


@pytest.mark.parametrize("name", OTHER)
def test_what_decides_the_numbers_is_compared_on_resume(saved, tmp_path, name):
    other = tiny_trainer(tmp_path, name="b", **{name: OTHER[name]})
    with pytest.raises(SettingsChanged) as raised:
        other.load(saved)
    assert raised.value.differences.keys() == {name}
    assert raised.value.differences[name][1] == OTHER[name]


def test_what_decides_nothing_may_differ_on_resume(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_trainer(tmp_path, name="b", **FREE).load(saved)


@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.2}, {"gelu": "tanh"}, {"layer_norm_eps": 1e-3}, {"n_heads": 4}],
    ids=lambda o: next(iter(o)),
)
def test_a_model_of_the_same_shapes_is_compared_on_resume(saved, tmp_path, options):
    other = tiny_trainer(tmp_path, model=tiny_model(seed=7, **options), name="b")
    before = other.model.token_emb.weight.clone()
    with pytest.raises((SettingsChanged, CheckpointError), match=next(iter(options))):
        other.load(saved)
    assert torch.equal(before, other.model.token_emb.weight)


def test_a_clip_of_0_is_none(tmp_path):
    def after(clip: float) -> torch.Tensor:
        trainer = tiny_trainer(tmp_path, grad_clip=clip, lr=1.0, warmup_fraction=0.0)
        trainer._gradient()
        return trainer.model.token_emb.weight.grad

    assert after(0.0).norm() > 0.1
    assert torch.equal(after(0.0), after(1e6))
    assert after(0.1).norm() < 0.1


@pytest.mark.parametrize(("steps", "fraction", "warmup"), [(10, 0.26, 3), (10, 0.24, 2), (9, 0.3, 3), (100, 0.0, 1)])
def test_the_warm_up_is_rounded_to_the_nearest(steps, fraction, warmup):
    rates = [learning_rate(n, steps=steps, peak=1.0, warmup_fraction=fraction) for n in range(steps)]
    assert rates[:warmup] == pytest.approx([(n + 1) / warmup for n in range(warmup)])
    assert rates.index(max(rates)) == warmup - 1
    assert rates[-1] == pytest.approx(0.1)


def test_validation_scores_so_many_batches_or_all(tmp_path):
    val = 200 - 1  # tokens that have one before them
    assert tiny_trainer(tmp_path).validate().tokens == val
    few = tiny_trainer(tmp_path, eval_batches=2)
    assert few.validate().tokens == 2 * 3 * 16 - 9  # the last window, of 7 tokens, is among them
    assert few.validate(whole=True).tokens == val


def test_validation_is_in_the_dtype_of_the_run(tmp_path):
    model, data = tiny_model(), tiny_data(200, seed=1)
    low, exact = (tiny_trainer(tmp_path, model=model, dtype=dtype).validate() for dtype in ("bfloat16", "float32"))
    assert low.loss != exact.loss
    for found, dtype in ((low, torch.bfloat16), (exact, torch.float32)):
        assert found == evaluate(model, data, batch_size=3, seq_len=16, device=CPU, dtype=dtype)


def test_speed_counts_the_tokens_of_the_update(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(pending, "perf_counter", lambda: 0.5 * next(clock))
    tiny_trainer(tmp_path, name="a", steps=1, grad_accum=4, batch_size=3, seq_len=8, val=False).fit()
    (line,) = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert line["tokens_per_second"] == 4 * 3 * 8 / 0.5
    assert line["memory_bytes"] > 50e6  # torch alone
    assert math.isfinite(line["loss"])


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_on_gpus_that_compute_in_it(monkeypatch, bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    assert resolve_dtype("auto", torch.device("cuda")) == dtype
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("float32", torch.device("cuda")) == torch.float32
