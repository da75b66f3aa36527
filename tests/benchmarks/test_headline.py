"""The headline figures: one floor for a whole file, a profile by kernel, and no failure that costs what it need not."""

import json
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from benchmarks import headline, measure, peers
from benchmarks.ops import bound
from benchmarks.report import read_rows
from fastgpt import GPTConfig
from fastgpt.kernels.attention.hopper import choice
from scripts.gpu import summary

BF16 = torch.bfloat16


def event(key: str, where: DeviceType, microseconds: float, annotation: bool = False) -> FunctionEventAvg:
    found = FunctionEventAvg()
    found.key, found.count, found.device_type, found.is_user_annotation = key, 2, where, annotation
    found.self_device_time_total = microseconds
    return found


class Profiler:
    """Of one step: an operator has the time of its kernels, and an annotation that of all between its ends."""

    def __init__(self, **_) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def key_averages(self) -> list[FunctionEventAvg]:
        return [
            event("aten::mm", DeviceType.CPU, 70.0), event("gemm_kernel", DeviceType.CUDA, 70.0),
            event("fastgpt::attention_fwd", DeviceType.CPU, 30.0), event("attention_kernel", DeviceType.CUDA, 30.0),
            event("Optimizer.step#AdamW.step", DeviceType.CUDA, 100.0, annotation=True),
        ]  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """A training step small enough for a CPU, of torch's own parts under both names."""
    size = {"vocab_size": 61, "max_len": 8, "n_layers": 1, "n_heads": 2, "d_model": 32}
    monkeypatch.setattr(headline, "GPT2_124M", size)
    monkeypatch.setattr(headline, "BATCH", 2)
    from fastgpt.model import config

    monkeypatch.setitem(config.IMPLEMENTATION_SETS, peers.OURS, config.IMPLEMENTATION_SETS["torch"])
    monkeypatch.setattr(measure, "_ceilings", {"copy": 4e12, "bfloat16": 8e14, "float32": 4e13})
    return GPTConfig(**size)


def rows(file: Path, kind: str) -> list[dict]:
    return [row for row in read_rows(file) if row.get("kind") == kind]


def test_the_profile_counts_each_microsecond_once(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    file = tmp_path / "h.jsonl"
    assert headline.run(file, ["train_step"], 60.0, 1) == 0
    (profile,) = rows(file, "profile")
    assert profile["rows"] == [["gemm_kernel", 2, 70.0], ["attention_kernel", 2, 30.0]]
    said = capsys.readouterr().out
    assert "0.10 ms in 4 kernels" in said
    assert "70.0%" in said
    assert read_rows(file)[-1]["kind"] == "profile"  # behind every figure


def test_what_the_profile_asks_of_an_event_torch_has():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(3) + 1
    assert headline.by_kernel(profiler.key_averages()) == []
    (found, *_) = profiler.key_averages()
    assert (found.device_type, found.is_user_annotation, found.self_device_time_total) == (DeviceType.CPU, False, 0)


def test_a_profiler_that_fails_costs_no_figure(tiny, monkeypatch, tmp_path, capsys):
    def fails(**_):
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(torch.profiler, "profile", fails)
    file = tmp_path / "h.jsonl"
    assert headline.run(file, ["train_step"], 60.0, 1) == 0
    assert [row["impl"] for row in rows(file, "figure")] == [peers.OURS, "torch"]
    assert "CUPTI_ERROR" in rows(file, "skipped")[0]["reason"]
    assert "CUPTI_ERROR" in capsys.readouterr().out
    assert any("CUPTI_ERROR" in line for line in summary.headline(read_rows(file)))


def test_every_figure_of_a_file_has_the_floor_that_the_file_tells(monkeypatch, tmp_path, capsys):
    """The self-check writes first, in a process and on a GPU that measure nothing; a second process goes on."""
    from fastgpt.tools import verify

    monkeypatch.setattr(measure, "_ceilings", {})
    monkeypatch.setattr(verify, "verify", lambda device: verify.Report((), "here", 1.0))
    seconds = iter([1.0, 2.0, 4.0, 8.0])
    monkeypatch.setattr(measure, "median_seconds", lambda run: next(seconds))
    file = tmp_path / "h.jsonl"
    headline.run(file, ["verify"], 60.0, 1)
    assert measure._ceilings == {}
    assert not {"copy_bandwidth_gb_s", "gemm_tflop_s"} & set(read_rows(file)[0]["environment"])

    monkeypatch.setattr(headline, "FIGURES", {"a": lambda: iter(()), "b": lambda: iter(())})
    headline.run(file, ["ceilings", "a"], 60.0, 1)
    first = dict(measure._ceilings)
    (row,) = rows(file, "ceilings")
    assert row["copy_bandwidth_gb_s"] * 1e9 == pytest.approx(first["copy"])

    monkeypatch.setattr(measure, "_ceilings", {})  # as another process begins
    headline.run(file, ["ceilings", "a", "b"], 60.0, 1)
    assert measure._ceilings == pytest.approx(first)
    assert rows(file, "ceilings") == [row]


def test_figures_alone_bring_their_ceilings(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "_ceilings", {"copy": 4e12, "bfloat16": 8e14, "float32": None})
    monkeypatch.setattr(headline, "FIGURES", {"a": lambda: iter(())})
    headline.run(tmp_path / "h.jsonl", ["a"], 60.0, 1)
    (row,) = rows(tmp_path / "h.jsonl", "ceilings")
    assert row["gemm_tflop_s"] == {"bfloat16": 800.0, "float32": None}


def test_without_a_ceiling_figures_are_measured_and_shown(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "_ceilings", {"copy": None, "bfloat16": None, "float32": None})
    x = torch.randn(3, 4, dtype=BF16)
    weights = [torch.ones(4, dtype=BF16), torch.zeros(4, dtype=BF16)]
    figure = headline.Figure("layer_norm", "forward", {"M": 3}, measure.Work(bytes=1.0), lambda: [x, *weights], {})
    monkeypatch.setitem(headline.FIGURES, "layer_norm", lambda: iter([figure]))
    monkeypatch.setitem(headline.PEERS, "layer_norm", ("eager", peers.OURS))
    monkeypatch.setitem(peers.PEERS["layer_norm"], peers.OURS, peers.PEERS["layer_norm"]["eager"])
    assert headline.run(tmp_path / "h.jsonl", ["ceilings", "layer_norm"], 60.0, 4) == 0
    assert [row["of_floor"] for row in rows(tmp_path / "h.jsonl", "figure")] == [None, None]
    said = capsys.readouterr().out
    assert "copy not measured, matrix product bfloat16 not measured" in said
    assert "- of the floor" in said
    told = summary.headline(read_rows(tmp_path / "h.jsonl"))
    assert any("copy not measured" in line for line in told)
    assert any("(- of floor, spread" in line for line in told)


def test_a_file_that_refuses_the_first_row_does_not_end_the_process(monkeypatch, tmp_path, capsys):
    ran = []

    def append(file, row, about):
        if (row["section"], row["kind"]) == ("a", "begin"):
            raise OSError("no space left on device")
        file.open("a").write(json.dumps(row) + "\n")

    monkeypatch.setattr(headline, "append_row", append)
    monkeypatch.setattr(headline, "OTHERS", {name: lambda session: ran.append(session.section) for name in "ab"})
    assert headline.run(tmp_path / "h.jsonl", "ab", 60.0, 1) == 1
    assert ran == ["b"]
    assert "a: FAILED: OSError: no space left on device" in capsys.readouterr().out


# ---- the sections of a session ---------------------------------------------------------------------------------------


@pytest.fixture
def sections(monkeypatch):
    """Three sections, of which the second fails as `error` says; yields (names, error, those that ran)."""
    ran, error = [], {}
    monkeypatch.setattr(measure, "environment", lambda: {"gpu": "NVIDIA H100"})

    def section(name):
        def body(session):
            ran.append(name)
            if name == "b" and error:
                raise error["is"]
            session.write("noted")

        return body

    monkeypatch.setattr(headline, "OTHERS", {name: section(name) for name in "abc"})
    return "abc", error, ran


def test_a_failed_section_does_not_stop_the_next(sections, tmp_path, capsys):
    names, error, ran = sections
    error["is"] = ValueError("no such tile")
    assert headline.run(tmp_path / "h.jsonl", names, 60.0, 1) == 1
    assert ran == ["a", "b", "c"]
    rows = read_rows(tmp_path / "h.jsonl")
    assert [r["section"] for r in rows if r.get("kind") == "noted"] == ["a", "c"]
    assert "b: FAILED: ValueError: no such tile" in summary.headline(rows)


@pytest.mark.parametrize(
    "fault", ["an illegal memory access was encountered", "misaligned address", "of a kind unheard"]
)
def test_a_broken_context_ends_the_process_and_the_next_goes_on_behind_it(
    sections, tmp_path, capsys, monkeypatch, fault
):
    names, error, ran = sections
    error["is"] = RuntimeError(f"CUDA error: {fault}")
    monkeypatch.setattr(measure, "fatal", lambda: "b" in ran)
    with pytest.raises(RuntimeError):
        headline.run(tmp_path / "h.jsonl", names, 60.0, 1)
    assert ran == ["a", "b"]
    assert headline.run(tmp_path / "h.jsonl", names, 60.0, 1) == 0
    assert ran == ["a", "b", "c"]


@pytest.mark.parametrize("dead", [False, True])
def test_the_device_is_asked_whether_a_fault_is_fatal(monkeypatch, dead):
    def synchronize():
        if dead:
            raise RuntimeError("CUDA error: hardware stack error")

    assert not measure.fatal()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert measure.fatal() is dead


def test_a_row_that_was_cut_off_costs_no_other(sections, tmp_path, capsys):
    """The session's limit kills a process at any moment, and the next one goes on in the same file."""
    names, _, ran = sections
    file = tmp_path / "h.jsonl"
    measure.append_row(file, {"section": "a", "kind": "begin"})
    with file.open("a") as lines:
        lines.write('{"section": "a", "kind": "fig')
    assert headline.run(file, names, 60.0, 1) == 0
    assert ran == ["b", "c"]
    with file.open("a") as lines:
        lines.write('{"half": 1\n{"half": {"x": 1}}}\n')
    assert headline.begun(file) == {"a", "b", "c"}
    kinds = [(r["section"], r["kind"]) for r in read_rows(file)[1:]]
    assert kinds == [("a", "begin"), ("b", "begin"), ("b", "noted"), ("c", "begin"), ("c", "noted")]


def test_no_section_begins_after_the_time(sections, tmp_path, capsys):
    names, _, ran = sections
    headline.run(tmp_path / "h.jsonl", names, -1.0, 1)
    assert ran == []
    assert capsys.readouterr().out.count("no time left") == 3


def test_headline_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert headline.main([]) == headline.NO_GPU
    assert "no CUDA GPU" in capsys.readouterr().err


def test_headline_covers_what_it_promises():
    figures = [f for make in headline.FIGURES.values() for f in make()]
    attention = {(*f.shape.values(), f.mode) for f in figures if f.op == "attention"}
    modes = ("forward", "forward+backward")
    calls = [(16384 // T, T) for T in (128, 1024, 4096, 16384)] + [(1, 256), (1, 1024), (4, 1024)]
    assert attention == {(B, 2048 // d, T, d, mode) for B, T in calls for d in (64, 128) for mode in modes}
    assert {f.op for f in figures} == set(headline.PEERS)
    assert all({f.mode for f in figures if f.op == op} == set(modes) for op in headline.PEERS)
    assert {"fastgpt", "fastgpt-portable", "sdpa-flash", "sdpa-cudnn"} <= set(headline.PEERS["attention"])


def test_a_figure_of_attention_stands_beside_its_estimate(monkeypatch, tmp_path, capsys):
    """And the other path of ours is no peer that ours could be faster than."""
    impls = ("fastgpt", "fastgpt-portable", "sdpa")
    shape = {"B": 1, "H": 1, "T": 8, "head_dim": 16}
    rows_of_table = [{"impl": impl, "mode": "forward", "shape": shape, "seconds": 0.002} for impl in impls[:2]]
    monkeypatch.setattr(headline, "ESTIMATES", tmp_path / "estimates.json")
    headline.ESTIMATES.write_text(json.dumps([{**rows_of_table[0], "shape": {"B": 2}}, *rows_of_table]))
    settings = []

    def load():
        return lambda q, k, v: settings.append(choice.setting)

    made = {impl: peers.Peer(impl, "torch", load, during=peers.PEERS["attention"][impl].during) for impl in impls[:2]}
    monkeypatch.setitem(peers.PEERS, "attention", made | {"sdpa": peers.Peer("sdpa", "torch", load)})
    monkeypatch.setitem(headline.PEERS, "attention", impls)
    qkv = [torch.zeros(1, 1, 8, 16, dtype=BF16)] * 3
    figure = headline.Figure("attention", "forward", shape, measure.Work(flops=1.0), lambda: qkv, {})
    monkeypatch.setitem(headline.FIGURES, "attention", lambda: iter([figure]))
    monkeypatch.setattr(measure, "_ceilings", {"copy": 4e12, "bfloat16": 8e14, "float32": 4e13})
    monkeypatch.setattr(choice, "setting", "auto")
    seconds = iter([[3.0], [1.0], [6.0]])
    monkeypatch.setattr(measure, "round_seconds", lambda run, *_, **__: (run(), next(seconds))[1])
    assert headline.run(tmp_path / "h.jsonl", ["attention"], 60.0, 1) == 0
    assert [row["estimate"] for row in rows(tmp_path / "h.jsonl", "figure")] == [0.002, 0.002, None]
    assert set(settings) == {"auto", "triton"}
    assert "2.00x of the best peer" in capsys.readouterr().out
    assert "fastgpt 3000.000 ms (estimate 2.000" in summary.headline(read_rows(tmp_path / "h.jsonl"))[-1]


def test_a_figure_takes_gradients_of_every_floating_input():
    x, target = torch.randn(3), torch.zeros(2, dtype=torch.int64)
    seen = []

    def operator(x, target, scale):
        seen.append(x.requires_grad)
        return x * scale

    for mode in ("forward+backward", "forward"):
        bound(operator, [x, target], {"scale": 2.0}, mode)()
    assert seen == [True, False]


def test_the_self_check_of_a_kernel_that_gives_nan_is_told(tmp_path, monkeypatch):
    from fastgpt.tools import verify

    rows = (verify.Row("ffn", "a", "float32", used=float("inf")), verify.Row("ffn", "b", "float32", problem="E: no"))
    monkeypatch.setattr(verify, "verify", lambda device: verify.Report(rows, "here", 1.0))
    monkeypatch.setattr(measure, "environment", lambda: {})
    headline.verify(headline.Session(tmp_path / "h.jsonl", "verify", 1))
    for line in (tmp_path / "h.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    told = summary.headline(read_rows(tmp_path / "h.jsonl"))
    assert told == [
        "verify: ffn a float32: inf of the budget ", "verify: ffn b float32: 0.00 of the budget E: no",
        "verify: FAILED, here, 1.0 s",
    ]  # fmt: skip
