"""transformers' Trainer and Accelerate from the first step to the last: checkpoints, resuming, predictions."""

import pytest
import torch
from torch import nn

import fastgpt
from fastgpt import GPT, GPTConfig
from tests.fastgpt.hf_models import hf_model

pytestmark = pytest.mark.needs("transformers", "accelerate")

SHAPE = {"vocab_size": 31, "max_len": 8, "n_layers": 1, "n_heads": 2, "d_model": 16}


def gpt_rows():
    idx = (torch.arange(8) + torch.arange(8)[:, None]) % 31
    return [{"idx": row, "targets": (row + 1) % 31} for row in idx]


def gpt2_rows():
    idx = (torch.arange(8) + torch.arange(8)[:, None]) % 60 + 3
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in idx]


def bert_rows():
    rows = []
    for i, row in enumerate(gpt2_rows()):
        kept = torch.ones_like(row["input_ids"])
        kept[8 - i % 4 :] = 0
        rows.append({"input_ids": row["input_ids"], "attention_mask": kept, "labels": torch.tensor(i % 3)})
    return rows


def patched(kind):
    model = hf_model(kind)
    fastgpt.patch(model)
    return model


def untied():
    return GPT(GPTConfig(**SHAPE, tie_weights=False))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.gpt = GPT(GPTConfig(**SHAPE))
        self.config = self.gpt.config  # where Trainer learns which outputs are no predictions

    def forward(self, idx, targets=None):
        return self.gpt(idx, targets)


CASES = {  # {name: (model, rows, shape of the predictions, the labels' name)}
    "GPT": (lambda: GPT(GPTConfig(**SHAPE)), gpt_rows, (8, 8, 31), "targets"),
    "untied GPT": (untied, gpt_rows, (8, 8, 31), "targets"),
    "GPT in a module": (Wrapped, gpt_rows, (8, 8, 31), "targets"),
    "patched GPT-2": (lambda: patched("gpt2"), gpt2_rows, (8, 8, 64), "labels"),
    "patched BERT classifier": (lambda: patched("bert_classifier"), bert_rows, (8, 3), "labels"),
}


def trainer_of(make, rows, labels, folder, **settings):
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(3)
    settings = {
        "max_steps": 3, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "per_device_train_batch_size": 2,
        "learning_rate": 1e-2, "use_cpu": True, "report_to": [], "label_names": [labels], "disable_tqdm": True,
    } | settings  # fmt: skip

    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    return Trainer(
        make(), TrainingArguments(folder, **settings), train_dataset=rows(), eval_dataset=rows(),
        compute_metrics=accuracy,
    )  # fmt: skip


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_training_ends_where_the_whole_one_does(case, tmp_path):
    make, rows, shape, labels = CASES[case]
    whole = trainer_of(make, rows, labels, tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_loss")
    before = whole.evaluate()
    assert 0.0 <= before["eval_accuracy"] <= 1.0
    whole.train()
    after = whole.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{i}" for i in (1, 2, 3)}
    prediction = whole.predict(rows())
    assert prediction.predictions.shape == shape
    assert prediction.metrics["test_loss"] == pytest.approx(after["eval_loss"])

    resumed = trainer_of(make, rows, labels, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], expected, msg=name)


def test_a_checkpoint_of_the_trainer_is_a_file_of_ours(tmp_path):
    """With the config beside it; and outside of a checkpoint, the state dict has both names."""
    from safetensors.torch import load_file

    make, rows, _, labels = CASES["GPT"]
    trainer = trainer_of(make, rows, labels, tmp_path, save_strategy="no", eval_strategy="no")
    trainer.train()
    trainer.save_model(tmp_path / "theirs")
    trainer.model.save_pretrained(tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "head.weight" not in theirs
    assert "head.weight" in trainer.model.state_dict()


@pytest.mark.parametrize("case", CASES)
def test_accelerates_states(case, tmp_path):
    """Model, optimizer and all: the steps after a load are the steps after the save."""
    from accelerate import Accelerator

    make, rows, _, _ = CASES[case]
    torch.manual_seed(3)
    accelerator = Accelerator(cpu=True)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    batch = {name: torch.stack([row[name] for row in rows()]) for name in rows()[0]}

    def step():
        optimizer.zero_grad()
        loss = model.eval()(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        return loss.item()

    step()
    accelerator.save_state(tmp_path)
    expected = [step(), step()]
    accelerator.load_state(tmp_path)
    assert [step(), step()] == pytest.approx(expected, rel=1e-5)
