"""Loss spikes: found where the numbers say so, told of once with the text they came from, and nothing else."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from fastgpt.data import TokenDataset, prepare
from fastgpt.data.origins import documents_in
from fastgpt.data.sampler import BatchSampler
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.train import spikes
from fastgpt.train.metrics import read_metrics
from fastgpt.train.spikes import Spikes

from ..training import tiny_data, tiny_model, tiny_trainer


def test_a_spike_is_k_deviations_above_the_mean(tmp_path):
    """Of 50 losses -1 and 1 in turn the mean is 0, and the deviation sqrt(50 / 49)."""
    bound = 6 * math.sqrt(50 / 49)
    for loss, is_one in ((bound - 1e-6, False), (bound + 1e-6, True), (-100.0, False), (math.nan, False)):
        judge = Spikes(tmp_path, 6.0).judge
        assert not any(judge((-1.0) ** n) for n in range(50))
        found = judge(loss)
        assert (found is not None) == is_one
        if found:
            assert found == pytest.approx((loss, 0.0, math.sqrt(50 / 49), 50))


def test_only_the_last_200_finite_ones_count(tmp_path):
    found = Spikes(tmp_path, 6.0)
    for loss in [1000.0, math.nan, *([2.0, 3.0] * 100), math.inf]:
        assert found.judge(loss) is None
    assert found.judge(9.0) == pytest.approx((9.0, 2.5, 0.5 * math.sqrt(200 / 199), 200))


@pytest.mark.parametrize(("k", "before"), [(0.0, 60), (6.0, 49)])
def test_none_where_it_is_off_or_too_early(tmp_path, k, before):
    judge = Spikes(tmp_path, k).judge
    assert not any(judge(loss) for loss in [*[1.0, 2.0] * (before // 2), *[1.0] * (before % 2), 1e9])


def spiking(trainer, *steps: int):
    """`trainer` whose loss is far higher in these updates."""
    forward = trainer._forward

    def higher(*args):
        out = forward(*args)
        if trainer.step + 1 in steps:
            out.loss = out.loss + 50.0
        return out

    trainer._forward = higher
    return trainer


RUN = {"name": "a", "steps": 62, "val": False, "grad_accum": 2, "seq_len": 10}


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "spikes.jsonl").read_text().splitlines()]


def test_a_run_tells_of_its_spikes(tmp_path, caplog):
    trainer = spiking(tiny_trainer(tmp_path, **RUN), 20, 55)
    trainer.fit()
    (line,) = lines_of(tmp_path / "a")  # that of step 20 came too early
    assert line["step"] == 55
    losses = [x["loss"] for x in read_metrics(tmp_path / "a" / "metrics.jsonl")][:54]
    assert line["loss"] > line["mean"] + 6 * line["deviation"]
    assert (line["mean"], line["deviation"]) == pytest.approx((np.mean(losses), np.std(losses, ddof=1)))
    expected = BatchSampler(tiny_data(), 6, 10)
    expected.position = 54 * 6
    assert line["tokens"] == [[*each] for each in expected.ranges(54 * 6, 6)]
    idx, targets = expected.next_batch()
    covered = np.concatenate([tiny_data().read(*each) for each in line["tokens"]])
    assert set(idx.flatten().tolist()) | set(targets.flatten().tolist()) - {-100} == set(covered.tolist())
    assert line["documents"] == [[0, 0, 700, None]]
    (said,) = [r.getMessage() for r in caplog.records if "spike" in r.getMessage()]
    assert said.startswith(f"step 55: loss {line['loss']:.4f} is a spike, over 6 standard deviations")
    assert f"{line['tokens'][0][0]}-{line['tokens'][0][1] - 1}" in said
    assert "document 0 (tokens 0-699)" in said
    report = (tmp_path / "a" / "report.html").read_text()
    assert "loss spikes" in report
    assert "at step 55" in report
    assert "skipped steps" not in report


def test_resume_knows_the_losses_before_and_drops_what_came_after(tmp_path):
    spiking(tiny_trainer(tmp_path, save_every=54, keep=9, **RUN), 55).fit()
    before = (tmp_path / "a" / "spikes.jsonl").read_bytes()
    for steps in ((55,), ()):
        again = spiking(tiny_trainer(tmp_path, model=tiny_model(seed=7), keep=9, **RUN), *steps)
        again.fit(resume=tmp_path / "a" / "checkpoints" / "step-00000054")
        assert (tmp_path / "a" / "spikes.jsonl").read_bytes() == (before if steps else b"")
    tiny_trainer(tmp_path, steps=2, **{k: v for k, v in RUN.items() if k != "steps"}).fit(overwrite=True)
    assert not (tmp_path / "a" / "spikes.jsonl").exists()


def test_skipped_steps_are_counted_on_after_a_resume(tmp_path):
    def bad(trainer, *steps):
        forward = trainer._forward

        def worse(*args):
            out = forward(*args)
            out.loss = out.loss * (math.nan if trainer.step + 1 in steps else 1.0)
            return out

        trainer._forward = worse
        return trainer

    bad(tiny_trainer(tmp_path, name="a", steps=5, val=False), 2, 4, 5).fit()
    again = bad(tiny_trainer(tmp_path, model=tiny_model(seed=7), name="a", steps=9, val=False), 6)
    with pytest.raises(FloatingPointError, match="at step 6, the last of 3 in a row"):
        again.fit(resume=True, allow_changes=True)
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [line.get("skipped") for line in lines] == [None, 1, 1, 2, 3, 4]
    tiny_trainer(tmp_path, model=tiny_model(seed=7), name="a", steps=9, val=False).fit(resume=True, allow_changes=True)
    assert "4, whose loss or gradient was not finite" in (tmp_path / "a" / "report.html").read_text()


def test_what_cannot_be_written_ends_nothing(tmp_path, caplog):
    trainer = spiking(tiny_trainer(tmp_path, **RUN), 55)
    (tmp_path / "a" / "spikes.jsonl").mkdir(parents=True)
    assert trainer.fit().step == 62
    said = [r.getMessage() for r in caplog.records if "spikes.jsonl" in r.getMessage()]
    assert any("training goes on" in text for text in said)
    caplog.clear()
    trainer = spiking(tiny_trainer(tmp_path, **RUN | {"name": "b"}), 55)
    trainer.sampler.ranges = lambda *_: (_ for _ in ()).throw(ValueError("damaged"))
    assert trainer.fit().step == 62
    assert any("a loss spike; damaged; training goes on" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("length", [7, 10, 700])
def test_the_ranges_of_samples_are_what_their_batches_hold(length):
    data = tiny_data()
    sampler = BatchSampler(data, 3, length, rank=1, world_size=2)
    ids = torch.arange(len(data))
    for position in range(0, 120, 6):
        windows = [sampler._window(position + n) for n in range(6)]
        expected = {int(t) for w in windows for t in ids[w * length : w * length + length + 1]}
        found = sampler.ranges(position, 6)
        assert {t for start, stop in found for t in range(start, stop)} == expected
        assert all(stop < after for (_, stop), (after, _) in itertools.pairwise(found))
    assert sampler.position == 0


def test_documents_by_their_starts():
    data = TokenDataset((np.zeros(10, np.uint16), np.zeros(10, np.uint16)), np.array([0, 4, 12]), 50, "x", "of lists")
    numbers = {
        (0, 1): [0], (3, 4): [0], (3, 5): [0, 1], (4, 12): [1], (11, 13): [1, 2], (0, 20): [0, 1, 2], (5, 5): [],
    }  # fmt: skip
    for (start, stop), expected in numbers.items():
        assert [document.number for document in documents_in(data, start, stop)] == expected
    assert documents_in(data, 19, 20) == [(2, 12, 20, None)]
    assert str(documents_in(data, 0, 1)[0]) == "document 0 (tokens 0-3)"
    for part, at in zip(data.split(0.5), (0, 10), strict=True):  # of a part of it: those of the whole
        for n in range(10):
            assert documents_in(part, n, n + 1) == documents_in(data, at + n, at + n + 1)
    with pytest.raises(IndexError, match=r"\[0, 21\) is outside the 20 tokens of of lists"):
        documents_in(data, 0, 21)


@pytest.mark.needs("tiktoken")
@pytest.mark.parametrize("separators", [False, True])
def test_the_file_of_a_document_is_known(tmp_path, separators):
    """Of plain texts, of JSON Lines, and of a text that has separators of its own."""
    tokenizer = Tokenizer.named("shakespeare")
    texts = {
        "a.txt": "one<|endoftext|>two<|endoftext|>" if separators else "one",
        "b.jsonl": '{"text": "three"}\n{"text": "four <|endoftext|> five"}\n',
        "c.txt": "six",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    data = prepare(
        [tmp_path / name for name in texts], tmp_path / "set", tokenizer, separators=separators, progress=False
    )
    found = []
    for document in documents_in(data, 0, len(data)):
        text = tokenizer.decode([int(t) for t in data.read(document.start, document.stop - 1)]).strip()
        found.append((text, document.source.rsplit("/", 1)[1]))
    if separators:
        words = ["one", "two", "three", "four", "five", "six"]
        assert found == list(zip(words, ["a.txt"] * 2 + ["b.jsonl"] * 3 + ["c.txt"], strict=True))
    else:
        words = ["one", "three", "four <|endoftext|> five", "six"]
        assert found == list(zip(words, ["a.txt"] + ["b.jsonl"] * 2 + ["c.txt"], strict=True))
    assert data.renamed("other").sources == data.sources
    assert documents_in(data.split(0.3)[1], 0, 1)[0].source is not None


def test_an_old_folder_has_no_names(tmp_path):
    assert spikes.NAME == "spikes.jsonl"
    assert tiny_data().sources == ()
    from fastgpt.data.shards import sources_of

    assert sources_of({"sources": [{"path": "a.txt", "bytes": 3}]}) == ()
    assert sources_of({}) == ()
    both = [{"path": "b", "first_document": 2}, {"path": "a", "first_document": 0}]
    assert sources_of({"sources": both}) == (("a", 0), ("b", 2))
