"""A page of several runs: each number that of its run, under a name that no other has."""

from __future__ import annotations

import json

import pytest

from fastgpt.study import compare_runs
from fastgpt.train import run_record
from tests.support.browser import overflow


def write_run(folder, *, steps=10, seq_len=8, lr=0.1, loss=9.0, tokenizer="gpt2", val=True, **more):
    """A run of `steps`, whose loss falls by 0.1 a step from `loss`; validated at the last one, at 100 tokens/s."""
    folder.mkdir(parents=True)
    train = {"name": folder.name, "steps": steps, "batch_size": 2, "grad_accum": 1, "seq_len": seq_len, "lr": lr}
    (folder / "settings.json").write_text(json.dumps({"train": train | more, "tokenizer": tokenizer}))
    lines = [{"step": n, "loss": loss - n / 10, "tokens_per_second": 100.0} for n in range(1, steps + 1)]
    if val:
        lines[-1] |= {"val_loss": loss - 1, "val_perplexity": 321.0, "val_bits_per_byte": 1.5}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_record.read(folder)


def tables(shown):
    """Head -> rows of every table that is open."""
    found = [[row.split("\t") for row in table.inner_text().split("\n")] for table in shown.locator("table").all()]
    return {tuple(rows[0]): rows[1:] for rows in found if rows[0][0]}


def test_a_page_compares_runs(tmp_path, opened):
    runs = compare_runs.named(
        [
            write_run(tmp_path / "a", steps=30),
            write_run(tmp_path / "b", lr=0.2, seq_len=16, loss=8.0),
            write_run(tmp_path / "c <b>", val=False),
        ]
    )
    compare_runs.page_of(runs).save(tmp_path / "page.html")
    shown = opened(tmp_path / "page.html")
    by_head = tables(shown)
    final = next(rows for head, rows in by_head.items() if head[0] == "run")
    # run, parameters, steps, tokens, time, speed, training loss over the last 20 (or all) steps, validation
    assert final == [
        ["a", "", "30", "480", "4.8 s", "100", f"{9 - 20.5 / 10:.4f}", "8.0000", "321", "1.5000"],
        ["b", "", "10", "320", "3.2 s", "100", f"{8 - 5.5 / 10:.4f}", "7.0000", "321", "1.5000"],
        ["c <b>", "", "10", "160", "1.6 s", "100", f"{9 - 5.5 / 10:.4f}", "", "", ""],
    ]
    assert by_head["setting", "a", "b", "c <b>"] == [
        ["lr", "0.1", "0.2", "0.1"], ["seq_len", "8", "16", "8"], ["steps", "30", "10", "10"],
    ]  # fmt: skip
    origins = {row[0]: row[1:] for row in by_head["what", "a", "b", "c <b>"]}
    assert origins["tokens seen"] == ["480", "320", "160"]
    assert origins["machine, versions, command"] == ["not recorded"] * 3
    charts = [svg.get_attribute("aria-label") for svg in shown.locator("svg:visible").all()]
    assert charts == [
        f"{kind} loss over {axis}: a, b, c <b>"
        for kind in ("Validation", "Training")
        for axis in ("steps", "tokens seen")
    ]
    shown.click("button:has-text('training loss')")
    assert tables(shown)[next(head for head in by_head if head[0] == "run")][0][0] == "a"
    assert overflow(shown) == 0
    assert overflow(opened(tmp_path / "page.html", width=400, dark=True)) == 0


def test_curves_over_tokens_are_scaled_by_each_runs_step(tmp_path, opened):
    runs = compare_runs.named([write_run(tmp_path / "a"), write_run(tmp_path / "b", seq_len=16)])
    compare_runs.page_of(runs).save(tmp_path / "page.html")
    shown = opened(tmp_path / "page.html")
    chart = shown.locator("svg[aria-label^='Validation loss over tokens']:visible")
    titles = chart.locator("title").all_text_contents()
    over_tokens = {text.split("\n")[0]: text.split("\n")[1:] for text in titles}
    assert over_tokens == {
        "a": ["tokens seen: 160", "loss, nats per token: 8"], "b": ["tokens seen: 320", "loss, nats per token: 8"],
    }  # fmt: skip


def test_names_tell_runs_apart(tmp_path):
    runs = [write_run(tmp_path / place) for place in ("x/a", "y/a", "y/b")]
    assert list(compare_runs.named(runs[1:])) == ["a", "b"]
    assert list(compare_runs.named(runs)) == ["x/a", "y/a", "y/b"]
    with pytest.raises(ValueError, match="a: given twice"):
        compare_runs.named([runs[0], run_record.read(tmp_path / "x" / ".." / "x" / "a")])


@pytest.mark.parametrize("more", [{"tokenizer": "other"}, {"val_sha256": "f"}])
def test_losses_that_do_not_compare_are_told(tmp_path, more):
    same = {"tokenizer": "gpt2", "val_sha256": "0"}
    runs = compare_runs.named([write_run(tmp_path / "a", **same), write_run(tmp_path / "b", **(same | more))])
    assert "losses and perplexities do not compare" in compare_runs.page_of(runs).html()
    runs = compare_runs.named([write_run(tmp_path / "c", **same), write_run(tmp_path / "d", **same)])
    text = compare_runs.page_of(runs).html()
    assert "do not compare" not in text
    assert "all settings that are recorded are the same" in text
