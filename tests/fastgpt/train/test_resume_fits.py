"""What a checkpoint must have in common with the model that goes on from it, and what it need not."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.base import files
from fastgpt.model.formats.tensor_file import write_safetensors
from fastgpt.train import checkpoint
from fastgpt.train.checkpoint import CheckpointError

from ..training import VOCAB_SIZE, tiny_model, tiny_trainer


class WithSpare(GPT):
    """A GPT with a part that trains from the `starts`-th call of forward on, and without a config.json."""

    def __init__(self, starts: int) -> None:
        shape = {"max_len": 16, "n_layers": 1, "n_heads": 2, "d_model": 16}
        super().__init__(GPTConfig(vocab_size=VOCAB_SIZE, **shape))
        self.spare = nn.Linear(16, 1)
        self.starts, self.calls = starts, 0

    def forward(self, *args, **options):
        found = super().forward(*args, **options)
        self.calls += 1
        if self.calls < self.starts:
            return found
        return SimpleNamespace(loss=found.loss + self.spare.weight.square().sum() + self.spare.bias.square().sum())

    def save_pretrained(self, folder):
        state = {name: tensor for name, tensor in self.state_dict().items() if name != "head.weight"}
        write_safetensors(folder / "model.safetensors", state)


def trainer_with_spare(folder, starts: int, frozen: tuple[str, ...] = ()):
    torch.manual_seed(0)
    model = WithSpare(starts)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return tiny_trainer(folder, model=model, name="a", val=False, steps=4, save_every=2)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("starts", [99, 4, 1])
def test_a_parameter_without_a_gradient_does_not_stop_a_resume(tmp_path, starts, recorded):
    """Never; in the last step only, after the checkpoint; always."""
    whole = trainer_with_spare(tmp_path, starts)
    losses = whole.fit().losses
    old = tmp_path / "a" / "checkpoints" / "step-00000002"
    if not recorded:  # as earlier versions wrote it
        resign(old, **{"training.json": lambda state: state.pop("trained")})
    again = trainer_with_spare(tmp_path, starts)
    again.model.calls = 2
    assert again.fit(resume=old).losses == losses[2:]
    for mine, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_another_implementation_is_no_other_model(tmp_path):
    tiny_trainer(tmp_path, name="a", val=False, steps=2, model=tiny_model(attn_impl="sdpa")).fit()
    again = tiny_trainer(tmp_path, name="a", val=False, steps=2, model=tiny_model(attn_impl="auto"))
    assert again.fit(resume=True).step == 2


def test_other_frozen_parameters_are_refused(tmp_path):
    trainer_with_spare(tmp_path, 99, frozen=("spare.bias",)).fit()
    for frozen, words in (
        ((), r"spare\.bias trained now and not there; resume with the same parameters frozen"),
        (("spare.bias", "ln_f.bias"), r"ln_f\.bias trained there and not now"),
        (("spare.weight",), r"spare\.weight trained there and not now; spare\.bias trained now"),
    ):
        with pytest.raises(CheckpointError, match=words):
            trainer_with_spare(tmp_path, 99, frozen).fit(resume=tmp_path / "a" / "checkpoints" / "step-00000002")


def test_other_frozen_parameters_of_an_old_checkpoint(tmp_path):
    trainer_with_spare(tmp_path, 1).fit()
    old = tmp_path / "a" / "checkpoints" / "step-00000002"
    resign(old, **{"training.json": lambda state: state.pop("trained")})
    with pytest.raises(CheckpointError, match=r"spare\.bias trained there and not now"):
        trainer_with_spare(tmp_path, 1, ("spare.bias",)).fit(resume=old)


def resign(folder, **edits) -> None:
    """Edit files of JSON in a checkpoint, whose hashes then are those of the new text."""
    sums = json.loads((folder / "checksums.json").read_text())
    for name, edit in edits.items():
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))
        sums[name] = files.sha256(folder / name)
    (folder / "checksums.json").write_text(json.dumps(sums))


def test_a_checkpoint_without_a_file_and_its_hash_is_none(tmp_path):
    """Of each that a training checkpoint has to have: model.safetensors, training.json, training.safetensors."""
    tiny_trainer(tmp_path, name="a", val=False, steps=1).fit()
    whole = tmp_path / "a" / "checkpoints" / "step-00000001"
    for name in ("model.safetensors", "training.json", "training.safetensors"):
        folder = shutil.copytree(whole, tmp_path / name / whole.name)
        (folder / name).unlink()
        sums = json.loads((folder / "checksums.json").read_text())
        del sums[name]
        (folder / "checksums.json").write_text(json.dumps(sums))
        with pytest.raises(CheckpointError, match=rf"{name}: missing, so step-00000001 is no training checkpoint"):
            checkpoint.verify(folder)


def test_weights_of_another_dtype_are_refused(tmp_path):
    tiny_trainer(tmp_path, name="a", val=False, steps=1).fit()
    folder = tmp_path / "a" / "checkpoints" / "step-00000001"
    checkpoint.check_fits(folder, tiny_model())
    with pytest.raises(CheckpointError, match="F32 against the model's F64"):
        checkpoint.check_fits(folder, tiny_model().double())


# ---- the same shapes, another model --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_heads": 4}, "n_heads 2, the model's is 4; n_kv_heads 2, the model's is 4"),
        ({"gelu": "tanh"}, "gelu none, the model's is tanh"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-05, the model's is 1e-06"),
    ],
)
def test_a_model_that_computes_something_else_is_refused_whatever_is_allowed(tmp_path, options, words):
    tiny_trainer(tmp_path, name="a", steps=1, val=False).fit()
    model = tiny_model(**options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"config\.json: made by another model: {words}\. Build the model from"):
        tiny_trainer(tmp_path, model=model, name="a", val=False).fit(resume=True, allow_changes=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_implementations_and_dropout_may_change(tmp_path):
    tiny_trainer(tmp_path, name="a", steps=1, val=False).fit()
    model = tiny_model(dropout=0.0, attn_impl="reference", norm_impl="torch")
    assert tiny_trainer(tmp_path, model=model, name="a", steps=2, val=False).fit(resume=True, allow_changes=True)


def test_a_one_head_model_resumes(tmp_path):
    def make(steps: int):
        torch.manual_seed(0)
        return tiny_trainer(tmp_path, model=OneHeadLM(VOCAB_SIZE, 16, 16), name="a", steps=steps, val=False)

    make(1).fit()
    assert make(2).fit(resume=True, allow_changes=True).step == 2


# ---- the optimizer's state -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_trainer(folder, name="a", steps=1, val=False).fit()
    return folder / "a" / "checkpoints" / "step-00000001"


NAME = "optimizer/blocks.0.ffn.0.weight"
WRONG = {
    "transposed": ("exp_avg_sq", lambda x: x.T.contiguous(), r"exp_avg_sq for .* has shape \(16, 64\), the parameter"),
    "0-d": ("exp_avg", lambda x: x[0, 0].clone(), r"exp_avg for .* has shape \(\), the parameter \(64, 16\)"),
    "one number": ("exp_avg", lambda x: x[:1, 0], r"exp_avg for .* has shape \(1,\), the parameter \(64, 16\)"),
    "counters": ("step", lambda x: x.repeat(2), r"step for .* has shape \(2,\), a counter \(\)"),
    "bfloat16": ("exp_avg", lambda x: x.bfloat16(), r"exp_avg for .* is bfloat16, and should be float32"),
    "integer counter": ("step", lambda x: x.long(), r"step for .* is int64, and should be float32"),
    "nan": ("exp_avg_sq", lambda x: x * float("nan"), r"exp_avg_sq for .* holds numbers that are NaN or infinite"),
    "inf": ("exp_avg", lambda x: x + float("inf"), r"exp_avg for .* holds numbers that are NaN or infinite"),
    "missing": ("exp_avg", None, r"state for .* is exp_avg_sq, step, and should be exp_avg, exp_avg_sq, step"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_moment_that_is_none_of_this_parameter_is_named(tmp_path, saved, wrong):
    kind, change, words = WRONG[wrong]
    folder = tmp_path / "a" / "checkpoints" / saved.name
    shutil.copytree(saved, folder)
    tensors = safetensors.torch.load((folder / "training.safetensors").read_bytes())
    found = tensors.pop(f"{NAME}/{kind}")
    if change is not None:
        tensors[f"{NAME}/{kind}"] = change(found)
    write_safetensors(folder / "training.safetensors", tensors)
    model = tiny_model()
    before = model.ln_f.weight.clone()
    trainer = tiny_trainer(tmp_path, model=model, name="a")
    with pytest.raises(CheckpointError, match=rf"the optimizer's {words}"):
        checkpoint.restore(folder, trainer.model, trainer.optimizer)
    assert torch.equal(model.ln_f.weight, before)  # all or nothing
    assert not trainer.optimizer.state
