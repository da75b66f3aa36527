"""What a figure claims: its floor and the rates behind that, whose time it holds, and that no query can cost it."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import headline, measure, models, report
from benchmarks.measure import Work
from fastgpt import GPT, GPTConfig

BF16 = torch.bfloat16


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that copies 4 TB/s and multiplies bfloat16 at 800 TFLOP/s, as far as `benchmarks.measure` asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100")
    rates = {"copy": 4e12, "bfloat16": 8e14, "float16": 8e14, "float32": 4e13}
    monkeypatch.setattr(measure, "_ceilings", rates)
    measure.gpu_state.cache_clear()
    yield rates
    measure.gpu_state.cache_clear()


def figure(work: Work, times=(1.0, 2.0, 3.0), **given) -> dict:
    about = {"op": "o", "impl": "i", "dtype": BF16, "shape": {}, "mode": "m", "version": None, "peak_bytes": None}
    return measure.figure(times, work=work, **about, **given)


# ---- the environment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["No devices were found\n", "", "1980 MHz, 40\n", "a, b, c, d, e, f\n"])
def test_another_answer_of_nvidia_smi_costs_no_row(gpu, monkeypatch, tmp_path, said):
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    measure.append_row(tmp_path / "rows.jsonl", {"a": 1})
    first, row = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert row == {"a": 1}
    assert first["environment"]["gpu_state"] == {"nvidia-smi": said.strip()}


def test_nvidia_smi_that_gives_no_text_costs_no_row(gpu, monkeypatch):
    def run(*_, **__):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr(measure.subprocess, "run", run)
    assert measure.gpu_state() == {}


def test_a_ceiling_that_fails_costs_the_fractions_that_need_it_and_is_said(gpu, monkeypatch, capsys):
    del gpu["copy"], gpu["float16"]

    def out_of_memory(*_, **__):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(measure, "median_seconds", out_of_memory)
    monkeypatch.setattr(measure, "device", lambda: torch.device("meta"))
    environment = measure.environment()
    assert environment["copy_bandwidth_gb_s"] is None
    assert environment["gemm_tflop_s"] == {"bfloat16": 800.0, "float32": 40.0, "float16": None}
    assert "no ceiling of copy: OutOfMemoryError: no room" in capsys.readouterr().err
    assert "copy not measured, matrix product bfloat16 800 TFLOP/s" in report.environment_line(environment)
    assert "float16 not measured" in report.environment_line(environment)
    both = figure(Work(flops=8e14, bytes=4e12))
    assert both["of_floor"] is None
    assert report.floor_text(both) == "-"
    assert figure(Work(flops=8e14))["of_floor"] == 0.5


def test_a_ceiling_is_measured_once(monkeypatch):
    monkeypatch.setattr(measure, "_ceilings", {})
    asked = []
    monkeypatch.setattr(measure, "median_seconds", lambda run: asked.append(1) or 1.0)
    assert measure.copy_bandwidth() == measure.copy_bandwidth() > 0
    assert measure.gemm_rate(BF16) == measure.gemm_rate(BF16) > 0
    assert len(asked) == 2


def test_what_another_process_left_of_its_answer_costs_no_row(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "_nvidia_smi", lambda: {"clocks.sm": "1980 MHz"})
    for number, file in enumerate((tmp_path / "cut", tmp_path / "no" / "folder")):
        if not number:
            file.write_text('{"clocks.sm": "19')
        monkeypatch.setenv("FASTGPT_GPU_STATE", str(file))
        measure.gpu_state.cache_clear()
        assert measure.gpu_state() == {"clocks.sm": "1980 MHz"}


def test_processes_that_write_to_one_file_have_one_floor(gpu, tmp_path):
    """The peers are measured by several, and only the first one's ceilings stand in the file."""
    file = tmp_path / "rows.jsonl"

    def of_floor() -> float:
        benchmark = SimpleNamespace(disabled=False, extra_info={}, pedantic=lambda *_, **__: None)
        benchmark.stats = SimpleNamespace(stats=SimpleNamespace(sorted_data=[1.0, 2.0, 3.0]))
        run = measure.Measure(benchmark, quick=True, rows=[], rows_file=file)
        run._peak_bytes = lambda run: None
        run(lambda: None, op="o", impl="i", dtype=BF16, work=Work(flops=8e14), shape={})
        return benchmark.extra_info["of_floor"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "median_seconds", lambda *_, **__: 1.0)
        assert of_floor() == 0.5
        gpu["bfloat16"] = 4e14  # as another process measures it
        assert of_floor() == 0.5
        for left in ('{"environment": {"gpu', '{"environment": {}}\n', ""):
            file.write_text(left)
            gpu["bfloat16"] = 4e14
            assert of_floor() == 1.0


# ---- the floor -------------------------------------------------------------------------------------------------------


def test_the_floor_is_the_larger_time(gpu):
    assert Work(flops=8e14, bytes=8e12).floor_seconds(BF16) == 2.0
    assert Work(flops=8e14).floor_seconds(BF16) == 1.0
    assert Work(tokens=3).floor_seconds(BF16) is None


def test_a_training_step_has_half_the_square_as_its_floor_and_all_of_it_in_its_mfu(gpu):
    config = GPTConfig(vocab_size=61, max_len=64, n_layers=2, n_heads=2, d_model=32)
    work = models.step_work(GPT(config), tokens=10)
    square = 12 * config.n_layers * config.d_model * config.max_len * 10
    assert work.model_flops - work.flops == square / 2
    row = figure(work)
    assert row["mfu"] / row["of_floor"] == pytest.approx(work.model_flops / work.flops)
    assert row["of_floor"] == pytest.approx(work.flops / 8e14 / 2.0)
    assert report.notes(row | {"spread": 0.1, "mfu": 0.456}) == [
        "MFU 45.6%, by the convention that counts all of the T x T square"
    ]


@pytest.mark.parametrize("figures", list(headline.FIGURES.values()))
def test_only_what_counts_all_of_its_bytes_has_any(figures):
    """Four tensors are what attention's forward moves; its backward moves more, and GB/s of those four say nothing."""
    for f in figures():
        assert (f.work.bytes > 0) == (f.op.endswith("layer_norm") or (f.op, f.mode) == ("attention", "forward"))


# ---- whose time ------------------------------------------------------------------------------------------------------


@pytest.fixture
def events(gpu, monkeypatch):
    """CUDA events; of each round's first one the GPU has passed what the list says, when all has been queued."""
    passed = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            pass

        def synchronize(self):
            pass

        def query(self):
            return passed.pop(0)

        def elapsed_time(self, end):
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(measure, "prepare_round", lambda flush=True: None)
    return passed


@pytest.mark.parametrize(("passed", "share"), [([False] * 4, 0.0), ([True, False] * 2, 0.5), ([True] * 4, 1.0)])
def test_a_round_whose_start_the_gpu_passed_too_early_is_told(events, passed, share):
    events[:] = passed
    call, late = measure.watched(lambda: None)
    row = figure(Work(flops=1.0), measure.round_seconds(call, 4), late=late)
    assert row["late"] == share
    assert any("Python's time" in note for note in report.notes(row)) == (share >= 0.5)
    assert ("Python's" in report.cells(report.with_ratios([row])[0])[2]) == (share >= 0.5)


def test_pytest_benchmarks_rounds_are_watched_too_and_its_warm_up_is_not(events):
    def pedantic(run, rounds, warmup_rounds, **_):
        for _ in range(warmup_rounds + rounds):
            measure.CudaInstant()
            run()

    benchmark = SimpleNamespace(disabled=False, extra_info={}, pedantic=pedantic)
    benchmark.stats = SimpleNamespace(stats=SimpleNamespace(sorted_data=[1.0, 2.0, 3.0]))
    run = measure.Measure(benchmark, quick=True, rows=[])
    run._peak_bytes = lambda run: None
    about = {"op": "o", "impl": "i", "dtype": BF16, "work": Work(flops=1.0), "shape": {}}
    events[:] = [True] * 3 + [False] * 1000  # three to warm up
    run(lambda: None, **about)
    assert benchmark.extra_info["late"] == 0.0
    run(lambda: None, **about, flush=False)  # the GPU is not kept waiting: nothing to be late for
    assert benchmark.extra_info["late"] is None


def test_without_a_gpu_nothing_is_watched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = lambda: None  # noqa: E731
    assert measure.watched(run) == (run, [])


# ---- how it is timed -------------------------------------------------------------------------------------------------


def test_the_gpu_waits_between_the_flush_and_the_first_event(monkeypatch):
    """Without the wait, Python's time to launch is part of the figure."""
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")

        def synchronize(self):
            told.append("wait")

        def elapsed_time(self, end):
            return 2.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append("sleep"))
    monkeypatch.setattr(measure, "_l2_filler", lambda: SimpleNamespace(zero_=lambda: told.append("flush")))
    assert measure.round_seconds(lambda: told.append("run"), 2) == [2e-3, 2e-3]
    assert told == ["flush", "sleep", "event", "run", "event"] * 2 + ["wait"] * 2


def test_pytest_benchmark_prepares_each_round_in_the_same_way(monkeypatch):
    seen = {}
    stats = SimpleNamespace(stats=SimpleNamespace(sorted_data=[1.0, 2.0, 3.0, 4.0]))
    benchmark = SimpleNamespace(
        disabled=False, extra_info={}, stats=stats, pedantic=lambda run, **given: seen.update(given)
    )
    run = measure.Measure(benchmark, quick=True, rows=[])
    given = {"op": "o", "impl": "i", "dtype": torch.float32, "work": measure.Work(bytes=1.0), "shape": {}}
    monkeypatch.setattr(measure, "gemm_rate", lambda dtype: 1.0)
    monkeypatch.setattr(measure, "copy_bandwidth", lambda: 1.0)
    run(lambda: None, **given)
    assert seen["setup"] is measure.prepare_round
    assert benchmark.extra_info["seconds"] == 2.5
    assert "gpu_state" not in benchmark.extra_info
    run(lambda: None, **given, flush=False)
    assert seen["setup"] is None


@pytest.mark.parametrize("shared", [False, True])
def test_nvidia_smi_is_asked_once(monkeypatch, tmp_path, shared):
    """By a process; where a file is named, by all of them together."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answer = SimpleNamespace(stdout="1980 MHz, 2619 MHz, 40, 300 W, 580.1\n")
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: calls.append(1) or answer)
    if shared:
        monkeypatch.setenv("FASTGPT_GPU_STATE", str(tmp_path / "state.json"))
    measure.gpu_state.cache_clear()
    try:
        first = measure.gpu_state()
        assert first == measure.gpu_state()
        assert first["clocks.sm"] == "1980 MHz"
        assert len(calls) == 1
        measure.gpu_state.cache_clear()  # as in another process
        assert measure.gpu_state() == first
        assert len(calls) == (1 if shared else 2)
    finally:
        measure.gpu_state.cache_clear()


def test_what_nvidia_smi_may_say_instead_costs_no_figure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answer = SimpleNamespace(stdout="No devices were found\n")
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: answer)
    measure.gpu_state.cache_clear()
    try:
        assert measure.gpu_state() == {"nvidia-smi": "No devices were found"}
    finally:
        measure.gpu_state.cache_clear()
