"""Training: it learns, accumulates as one batch would, logs, resumes bit for bit, and stops on signals."""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from fastgpt import OneHeadLM
from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.data import TokenDataset, shakespeare, shakespeare_tokens
from fastgpt.data.sampler import BatchSampler
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.model import remat
from fastgpt.train import metrics, run_folder
from fastgpt.train.metrics import read_metrics
from fastgpt.train.run_folder import SettingsChanged
from fastgpt.train.stopping import StopSignals
from fastgpt.train.trainer import TrainConfig, Trainer, Validation, evaluate

from ..training import VOCAB_SIZE, tiny_data, tiny_model, tiny_trainer


def weights(trainer) -> dict:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.needs("tiktoken")
def test_loss_falls_below_the_unigram_entropy_of_real_text(tmp_path):
    """Byte by byte, a bigram's knowledge is worth about half a nat: 200 small steps must find it."""
    tokenizer = Tokenizer("bytes", b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256)))
    train, val = TokenDataset.from_documents([tokenizer.encode(shakespeare("val"))], tokenizer).split(0.02)
    model = tiny_model(vocab_size=tokenizer.vocab_size, d_model=64, max_len=32, dropout=0.0)
    config = TrainConfig(
        runs_dir=str(tmp_path), steps=200, batch_size=16, lr=1e-2, eval_every=0, tensorboard=False, device="cpu"
    )
    trainer = Trainer(model, train, config, val_data=val, tokenizer=tokenizer, show_progress=False)
    before = trainer.validate()
    assert before.loss == pytest.approx(math.log(257), rel=0.02)
    after = trainer.fit().validation
    assert after.loss < val.unigram_entropy() - 0.4
    assert after.perplexity == pytest.approx(math.exp(after.loss))


@pytest.mark.needs("tiktoken")
def test_bits_per_byte_is_the_loss_over_the_bytes(tmp_path):
    tokenizer = Tokenizer.named("shakespeare")
    _, data = shakespeare_tokens("val", tokenizer).split(0.005)
    found = evaluate(tiny_model(), data, batch_size=4, seq_len=16, device=torch.device("cpu"), tokenizer=tokenizer)
    text = tokenizer.decode_bytes(t for t in data.read(1, len(data)) if t != tokenizer.end_of_text)
    assert found.tokens == len(data) - 1
    assert found.bits_per_byte == pytest.approx(found.loss * found.tokens / math.log(2) / len(text))
    assert evaluate(tiny_model(), data, batch_size=4, seq_len=16, device=torch.device("cpu")).bits_per_byte is None


@pytest.mark.parametrize("accum", [2, 4])
def test_accumulated_micro_batches_equal_one_batch(tmp_path, accum):
    def after_steps(batch_size: int, grad_accum: int):
        model = tiny_model(dropout=0.0).double()
        trainer = tiny_trainer(
            tmp_path, model=model, batch_size=batch_size, grad_accum=grad_accum, seq_len=13, grad_clip=0.5
        )
        # 700 tokens in windows of 13: the last has 10 targets, so micro-batches differ in their number of tokens.
        return [trainer.train_step()[:2] for _ in range(8)], weights(trainer)

    one, many = after_steps(4 * 3, 1), after_steps(12 // accum, accum)
    torch.testing.assert_close(torch.tensor(one[0]), torch.tensor(many[0]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one[1], many[1], rtol=1e-7, atol=1e-9)


def test_same_seed_same_bits(tmp_path):
    a, b = tiny_trainer(tmp_path, name="a"), tiny_trainer(tmp_path, name="b")
    losses = a.fit().losses
    assert losses == b.fit().losses
    assert_same_bits(weights(a), weights(b))
    other = tiny_trainer(tmp_path, name="c", seed=1)
    assert other.fit().losses != losses


@pytest.mark.parametrize("stop_after", [1, 5])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop_after):
    straight = tiny_trainer(tmp_path, name="straight", eval_every=3)
    losses = straight.fit().losses

    class Stopping(Trainer):
        def begin_step(self):
            result = super().begin_step()
            if self.step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

    first = tiny_trainer(tmp_path, name="broken", eval_every=3)
    first.__class__ = Stopping
    result = first.fit()
    assert (result.step, result.stopped_by) == (stop_after, "SIGTERM")
    torch.manual_seed(999)  # another process starts from another random state
    second = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="broken", eval_every=3)
    rest = second.fit(resume=True)
    assert result.losses + rest.losses == losses
    assert_same_bits(weights(straight), weights(second))
    for (_, p), (_, q) in zip(straight.model.named_parameters(), second.model.named_parameters()):
        for key, value in straight.optimizer.state[p].items():
            assert torch.equal(value, second.optimizer.state[q][key]), key
    logged = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "broken")]
    assert [x["loss"] for x in logged[0]] == [x["loss"] for x in logged[1]]
    assert [x.get("val_loss") for x in logged[0]][stop_after:] == [x.get("val_loss") for x in logged[1]][stop_after:]


def test_log_of_steps_after_the_checkpoint_is_dropped_on_resume(tmp_path):
    trainer = tiny_trainer(tmp_path, name="a", save_every=4)
    trainer.fit()
    log = tmp_path / "a" / "metrics.jsonl"
    before = read_metrics(log)
    with open(log, "a") as file:
        file.write(json.dumps({"step": 9, "loss": 0.0}) + '\n{"step": 1')  # beyond the checkpoint, and cut by a crash
    tiny_trainer(tmp_path, name="a", steps=10).fit(resume=True, allow_changes=True)
    after = read_metrics(log)
    assert [line["step"] for line in after] == list(range(1, 11))
    assert after[:8] == before


def test_lines_that_are_none_cost_the_others_nothing(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(
        b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n3\n\xff\xfe\n{"loss": 1.0}\n{"step": 3, "loss": 1.0}\n'
    )
    assert [line["step"] for line in read_metrics(log)] == [1, 3]


def test_metrics_lines(tmp_path):
    trainer = tiny_trainer(tmp_path, name="a", eval_every=4)
    trainer.fit()
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {"loss", "lr", "grad_norm", "epoch", "tokens_per_second", "mfu", "memory_bytes"} <= lines[0].keys()
    assert all(line["mfu"] is None for line in lines)  # no table row for a CPU
    assert all(line["tokens_per_second"] > 0 and line["memory_bytes"] > 1e6 for line in lines)
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 8]
    assert lines[-1]["epoch"] == pytest.approx(8 * 3 / 44)


def test_tensorboard_scalars(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tiny_trainer(tmp_path, name="a", eval_every=4, tensorboard=True).fit()
    events = event_accumulator.EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    logged = [line["loss"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl")]
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 9))
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(logged)
    assert len(events.Scalars("val_loss")) == 2


def test_without_tensorboard_there_is_a_hint_and_training_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    assert tiny_trainer(tmp_path, name="a", steps=1, tensorboard=True).fit().step == 1
    assert "fastgpt-triton[train]" in caplog.text


@pytest.mark.needs("rich")
def test_progress_bar_says_what_matters(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    trainer = tiny_trainer(tmp_path, name="a", steps=2)
    trainer.show_progress = True
    trainer.fit()
    out = capsys.readouterr().out
    for word in ("loss", "lr", "tokens/s", "MFU n/a", "GB", "ETA", "validation loss", "perplexity"):
        assert word in out


def test_compile_goes_through_torch_compile(tmp_path, monkeypatch):
    """Of a GPT the blocks, of any other model the model."""
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model: seen.append(model) or model)
    model = OneHeadLM(VOCAB_SIZE, 16, 16)
    tiny_trainer(tmp_path, model=model, compile=True).train_step()
    assert seen == [model]
    trainer = tiny_trainer(tmp_path, compile=True)
    assert [block.compile_backend for block in trainer.model.blocks] == ["inductor"] * len(trainer.model.blocks)
    assert seen == [model]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_remat_changes_no_number(tmp_path, mode):
    plain, trainer = tiny_trainer(tmp_path), tiny_trainer(tmp_path, remat=mode)
    assert [block.remat for block in trainer.model.blocks] == [mode] * len(trainer.model.blocks)
    found = []
    for one in (plain, trainer):
        torch.manual_seed(3)
        found.append([one.train_step() for _ in range(2)])
    assert found[0] == found[1]
    with pytest.raises(SettingError, match=rf'TrainConfig: remat=\'{mode}\' must be "none": a OneHeadLM has no blocks'):
        tiny_trainer(tmp_path, model=OneHeadLM(VOCAB_SIZE, 16, 16), remat=mode)


def test_what_the_blocks_keep_already_is_left_alone(tmp_path):
    model = remat.apply(tiny_model(), "full")
    tiny_trainer(tmp_path, model=model).train_step()
    assert model.blocks[0].remat == "full"


def test_autocast_to_bfloat16_keeps_float32_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, dtype="bfloat16")
    loss, _, _ = trainer.train_step()
    exact, _, _ = tiny_trainer(tmp_path).train_step()
    assert loss != exact
    assert loss == pytest.approx(exact, rel=1e-2)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_works_in_another_thread(tmp_path):
    results = []
    trainer = tiny_trainer(tmp_path, name="a", steps=2)
    thread = threading.Thread(target=lambda: results.append(trainer.fit()))
    thread.start()
    thread.join()
    assert results[0].step == 2


def test_not_a_number_stops_before_the_weights_change(tmp_path):
    trainer = tiny_trainer(tmp_path, name="a")
    with torch.no_grad():
        trainer.model.pos_emb.weight[3] = math.nan
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match=r"at step 3, the last of 3 in a row .*lower lr \(0.01\)"):
        trainer.fit()
    torch.testing.assert_close(weights(trainer), before, rtol=0, atol=0, equal_nan=True)


def test_existing_run_is_not_overwritten_by_accident(tmp_path):
    tiny_trainer(tmp_path, name="a", steps=2).fit()
    with pytest.raises(FileExistsError, match=r"holds a run of 2 steps.*--resume.*--overwrite"):
        tiny_trainer(tmp_path, name="a", steps=2).fit()
    tiny_trainer(tmp_path, name="a", steps=3).fit(overwrite=True)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        tiny_trainer(tmp_path, name="b").fit(resume=True)


def test_no_two_train_in_one_folder(tmp_path):
    first = tiny_trainer(tmp_path, name="a", steps=2)
    with run_folder.alone(first.config):  # by another open file, as another process has
        for how in ({}, {"overwrite": True}):
            with pytest.raises(FileExistsError, match="another process is training there"):
                tiny_trainer(tmp_path, name="a", steps=2).fit(**how)
        tiny_trainer(tmp_path, name="b", steps=1).fit()
    first.fit()
    with run_folder.alone(first.config), pytest.raises(FileExistsError, match="another process is training there"):
        tiny_trainer(tmp_path, name="a", steps=2).fit(resume=True)


_RUN = """
    import sys
    from tests.fastgpt.training import tiny_trainer
    trainer = tiny_trainer(sys.argv[1], name="killed", steps=100000)
    print("ready", flush=True)
    result = trainer.fit()
    print(result.stopped_by, result.step, result.checkpoint, flush=True)
"""


def test_a_signal_saves_first(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_RUN), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        log, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 60
        while not (log.exists() and len(read_metrics(log)) >= 3):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stopped_by, step, _ = process.communicate(timeout=60)[0].split()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert stopped_by == "SIGTERM"
    assert int(step) == len(read_metrics(log)) < 100000
    again = tiny_trainer(tmp_path, name="killed", steps=int(step) + 2)
    assert again.fit(resume=True, allow_changes=True).step == int(step) + 2


@pytest.mark.parametrize("default", ["meta", torch.float64, torch.bfloat16])
def test_what_the_user_set_as_default_does_not_matter(tmp_path, default):
    plain = tiny_trainer(tmp_path, name="plain", eval_every=3).fit()
    models = tiny_model(), tiny_model(seed=7)
    (torch.set_default_device if default == "meta" else torch.set_default_dtype)(default)
    try:
        found = tiny_trainer(tmp_path, model=models[0], name="a", save_every=4, eval_every=3).fit()
        resumed = tiny_trainer(tmp_path, model=models[1], name="a").fit(
            resume=tmp_path / "a" / "checkpoints" / "step-00000004"
        )
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert (found.losses, found.validation) == (plain.losses, plain.validation)
    assert resumed.losses == plain.losses[4:]


# ---- errors --------------------------------------------------------------------------------------------------------


def failing_at(monkeypatch, owner, name: str, error: Exception, call: int) -> list:
    """From its `call`-th call on, owner.name raises."""
    original, calls = getattr(owner, name), []

    def maybe(*args, **options):
        calls.append(args)
        if len(calls) >= call:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(owner, name, maybe)
    return calls


@pytest.mark.parametrize("failing", ["_gradient", "validate"])
def test_an_error_costs_no_whole_update(tmp_path, monkeypatch, caplog, failing):
    straight = tiny_trainer(tmp_path, name="straight", eval_every=1)
    straight.fit()
    trainer = tiny_trainer(tmp_path, name="a", eval_every=1)
    failing_at(monkeypatch, Trainer, failing, RuntimeError("out of memory"), 4)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit()
    monkeypatch.undo()
    step = {"_gradient": 3, "validate": 4}[failing]
    assert f"an error ends the run at step {step}; {tmp_path}/a/checkpoints/step-0000000{step} is kept" in caplog.text
    assert len(read_metrics(tmp_path / "a" / "metrics.jsonl")) == step
    again = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="a", eval_every=1)
    torch.manual_seed(999)
    assert again.fit(resume=True).losses == straight_losses(tmp_path, "straight")[step:]
    assert_same_bits(weights(straight), weights(again))


def straight_losses(folder, name: str) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / name / "metrics.jsonl")]


def test_a_step_that_fails_leaves_the_trainer_as_it_was(tmp_path, monkeypatch):
    straight, trainer = tiny_trainer(tmp_path, name="straight"), tiny_trainer(tmp_path, name="a")
    torch.manual_seed(5)
    expected = [straight.train_step() for _ in range(3)]
    torch.manual_seed(5)
    steps = [trainer.train_step()]
    failing_at(monkeypatch, torch.nn.utils, "clip_grad_norm_", RuntimeError("once"), 1)
    with pytest.raises(RuntimeError, match="once"):  # after the batch was drawn, and dropout, and the backward pass
        trainer.train_step()
    monkeypatch.undo()
    steps += [trainer.train_step() for _ in range(2)]
    assert steps == expected
    assert_same_bits(weights(straight), weights(trainer))


def test_an_error_in_the_middle_of_an_update_is_not_saved(tmp_path, monkeypatch, caplog):
    trainer = tiny_trainer(tmp_path, name="a", save_every=2)
    failing_at(monkeypatch, torch.optim.AdamW, "step", RuntimeError("half of them"), 4)
    with pytest.raises(RuntimeError, match="half of them"):
        trainer.fit()
    assert "step-00000002 is kept, what follows it is lost" in caplog.text
    assert [p.name for p in (tmp_path / "a" / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, value):
    trainer = tiny_trainer(tmp_path, name="a", save_every=1, keep=1, val=False)
    step = torch.optim.AdamW.step

    def poisoned(self, *args):
        step(self, *args)
        if trainer.step == 2:
            with torch.no_grad():
                trainer.model.ln_f.weight[0] = value

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    with pytest.raises(
        FloatingPointError, match=r"not finite after step 3, so they are not saved.*step-00000002 is kept"
    ):
        trainer.fit()
    assert [p.name for p in (tmp_path / "a" / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("what", ["tensorboard", "progress", "metrics"])
def test_reports_that_fail_are_said_once_and_training_goes_on(tmp_path, monkeypatch, caplog, what):
    trainer = tiny_trainer(tmp_path, name="a", tensorboard=True)
    full = OSError(28, "No space left on device")
    if what == "tensorboard":
        failing_at(monkeypatch, metrics.Scalars, "write", ValueError("protobuf"), 3)
    elif what == "progress":
        trainer.show_progress = "lines"
        monkeypatch.setattr("builtins.print", lambda *a, **k: (_ for _ in ()).throw(BrokenPipeError(32, "Broken pipe")))
    else:
        flush, calls = metrics.MetricsLog._flush, []

        def failing(self):
            calls.append(1)
            if len(calls) in (3, 4):
                raise full
            flush(self)

        monkeypatch.setattr(metrics.MetricsLog, "_flush", failing)
    assert trainer.fit().step == 8
    said = {"tensorboard": "TensorBoard: protobuf", "progress": "progress: Broken pipe", "metrics": "No space left"}
    assert caplog.text.count("training goes on") == 1
    assert said[what] in caplog.text
    # What the disk had no room for at first is written later.
    assert [line["step"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl")] == list(range(1, 9))


def test_a_tensorboard_that_cannot_be_opened(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tensorboard").write_text("a file")
    assert tiny_trainer(tmp_path, name="a", steps=1, tensorboard=True).fit().step == 1
    assert "TensorBoard: " in caplog.text


def test_old_checkpoints_stay_until_the_new_one_is_seen_to_be_a_number(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, name="a", steps=3, save_every=1, keep=1)
    bad = Validation(math.nan, math.nan, None, 1)
    monkeypatch.setattr("fastgpt.train.trainer.evaluate", lambda *a, **k: bad)
    with pytest.raises(
        FloatingPointError, match=r"validation loss is nan at step 3.*step-00000003 is kept, and before it"
    ):
        trainer.fit()
    assert sorted(p.name for p in (tmp_path / "a" / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]["val_loss"] is None


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP])  # of a background job, by nohup
def test_what_a_parent_ignores_stays_ignored(tmp_path, ignored):
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), ignored)
            assert signals.stopped_by is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.stopped_by == "SIGTERM"
        assert signal.getsignal(ignored) is signal.SIG_IGN
    finally:
        signal.signal(ignored, before)


# ---- resuming ------------------------------------------------------------------------------------------------------


def test_resume_with_other_settings(tmp_path):
    tiny_trainer(tmp_path, name="a", steps=2).fit()
    changed = {"lr": 0.5, "batch_size": 4, "weight_decay": 0.0, "steps": 4}
    model = tiny_model(seed=7, dropout=0.2)
    trainer = tiny_trainer(tmp_path, model=model, name="a", **changed)
    before = weights(trainer)
    with pytest.raises(SettingsChanged, match=r"resume=True, allow_changes=True") as caught:
        trainer.fit(resume=True)
    assert caught.value.differences == {
        "dropout": (0.1, 0.2), "lr": (0.01, 0.5), "batch_size": (3, 4), "weight_decay": (0.1, 0.0), "steps": (2, 4),
    }  # fmt: skip
    assert_same_bits(before, weights(trainer))  # refused before anything was changed
    assert trainer.fit(resume=True, allow_changes=True).step == 4


def test_resume_on_other_data(tmp_path):
    tiny_trainer(tmp_path, name="a", steps=4).fit()
    trainer = tiny_trainer(tmp_path, name="a", steps=4)
    trainer.train_data = tiny_data(900)
    trainer.sampler = BatchSampler(trainer.train_data, 3, 16)
    with pytest.raises(SettingsChanged, match=r"n_tokens=700, now 900 \(of the training data\)"):
        trainer.fit(resume=True)
    trainer.load(tmp_path / "a" / "checkpoints" / "step-00000004", allow_changes=True)
    assert trainer.sampler.epoch == pytest.approx(4 * 3 / 44, abs=0.02)  # the same part of the epoch


def test_resume_and_overwrite(tmp_path):
    with pytest.raises(ValueError, match=r"resume .* overwrite .*choose one of them"):
        tiny_trainer(tmp_path, name="a").fit(resume=True, overwrite=True)
    with pytest.raises(SettingTypeError, match=r"Trainer: resume=3 must be True, False or the folder of a checkpoint"):
        tiny_trainer(tmp_path, name="a").fit(resume=3)


def test_a_finished_run_is_left_alone(tmp_path, caplog):
    first = tiny_trainer(tmp_path, name="a", steps=2).fit()
    (tmp_path / "a" / "settings.json").chmod(0o600)
    trainer = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="a", steps=2)
    result = trainer.fit(resume=True)
    assert (result.step, result.losses, result.validation, result.checkpoint) == (2, [], None, first.checkpoint)
    assert "2 of 2 steps are done, so there is nothing to do" in caplog.text
    assert not list((tmp_path / "a").glob("tensorboard"))
    assert trainer.validate() == first.validation  # the weights are there
