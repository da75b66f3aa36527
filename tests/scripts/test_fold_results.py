"""What is folded says what was measured: the ceilings behind its floors, and how sure each figure is."""

import torch

from benchmarks import measure, report
from scripts.gpu import summary

from .test_gpu_session import fold, write

ENVIRONMENT = {
    "gpu": "NVIDIA H100", "torch": "2.11", "triton": "3.6", "python": "3.12", "date": "2026-01-01", "commit": "abc",
    "gpu_state": {"temperature.gpu": "20"},
}  # fmt: skip
CEILINGS = {"copy_bandwidth_gb_s": 4000.0, "gemm_tflop_s": {"bfloat16": 700.0}, "gpu_state": {"temperature.gpu": "50"}}
NAME = "gpu-nvidia-h100-2026-01-01-abc.jsonl"


def figure(times=(1.0, 1.0, 1.1), **changes) -> dict:
    found = measure.figure(
        times, op="ffn", impl="fastgpt", dtype=torch.float32, work=measure.Work(flops=1.0), shape={"M": 1},
        mode="forward", version=None, peak_bytes=None,
    )  # fmt: skip
    return found | {"of_floor": 0.5} | changes


def test_the_ceilings_are_those_behind_the_figures(tmp_path, capsys):
    """The process that begins the file, the self-check, measures none; where it did, on a cold GPU, others hold."""
    row = {"section": "ffn", "kind": "figure", **figure()}
    for number, first in enumerate((ENVIRONMENT, ENVIRONMENT | {"copy_bandwidth_gb_s": 1.0, "gemm_tflop_s": {}})):
        out = tmp_path / str(number)
        out.mkdir()
        ceilings = {"section": "ceilings", "kind": "ceilings", **CEILINGS}
        write(out / "headline.jsonl", {"environment": first}, ceilings, row)
        assert fold(out, out) == 0
        environment, rows = report.load(out / NAME)
        assert environment == ENVIRONMENT | CEILINGS
        assert rows == [figure()]
        assert "copy 4000 GB/s, matrix product bfloat16 700 TFLOP/s, measured in this run" in report.environment_line(
            environment
        )


def test_a_run_without_ceilings_says_so(tmp_path):
    write(tmp_path / "headline.jsonl", {"environment": ENVIRONMENT}, {"kind": "figure", **figure(of_floor=None)})
    assert fold(tmp_path, tmp_path) == 0
    assert "copy not measured, matrix product not measured" in report.markdown(*report.load(tmp_path / NAME))


def test_a_line_cut_off_costs_itself_and_is_said_by_all_who_read(tmp_path, capsys):
    for name in ("benchmarks", "headline"):
        write(tmp_path / f"{name}.jsonl", {"environment": ENVIRONMENT | CEILINGS}, figure() | {"kind": "figure"})
        with (tmp_path / f"{name}.jsonl").open("a") as lines:
            lines.write('{"op": "ffn", "se')
    assert report.load(tmp_path / "benchmarks.jsonl")[1] == [figure() | {"kind": "figure"}]
    assert "benchmarks.jsonl: line 3 is cut off, and dropped" in capsys.readouterr().err
    assert fold(tmp_path, tmp_path) == 0
    said = capsys.readouterr().err
    assert "benchmarks.jsonl: line 3 is cut off" in said
    assert "headline.jsonl: line 3 is cut off" in said
    assert report.load(tmp_path / NAME)[1] == [figure()]


def test_the_page_of_a_session_says_how_sure_its_figures_are():
    rows = [
        {"kind": "figure", **figure(late=0.0)}, {"kind": "figure", **figure((1.0, 2.0, 9.0), impl="eager", late=0.9)},
        {"kind": "figure", **figure(impl="torch", op="train_step", mfu=0.4)},
    ]  # fmt: skip
    assert summary.headline(rows) == [
        "ffn forward M=1: fastgpt 1000.000 ms (50% of floor, spread 10%)  "
        "eager 2000.000 ms (50% of floor, spread 400%)",
        "  ^ eager: spread larger than the median: this figure says nothing, measure it again",
        "  ^ eager: Python queued longer than the GPU waited: this figure may be Python's time",
        "train_step forward M=1: torch 1000.000 ms (50% of floor, spread 10%)",
        "  ^ torch: MFU 40.0%, by the convention that counts all of the T x T square",
    ]
