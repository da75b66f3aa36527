"""The report: ratios within a run, both file formats, and a clear refusal of anything else."""

import json
import xml.etree.ElementTree as ET

import pytest

from benchmarks import readme, report

ENVIRONMENT = {
    "gpu": "Test GPU", "torch": "2.13", "triton": "3.7", "python": "3.11", "commit": "abc", "date": "2026-01-01",
    "copy_bandwidth_gb_s": 4000.0, "gemm_tflop_s": {"bfloat16": 700.0},
}  # fmt: skip


def row(impl: str, seconds: float, T: int = 512, mode: str = "forward") -> dict:
    return {
        "op": "attention", "impl": impl, "version": None, "mode": mode, "dtype": "bfloat16",
        "shape": {"T": T, "head_dim": 64}, "seconds": seconds, "spread": 0.01, "tflop_s": 1.0, "gb_s": 2.0,
        "tokens_s": 3.0, "of_floor": 0.5, "peak_bytes": 1 << 20,
    }  # fmt: skip


def test_ratio_is_to_the_best_other_of_the_same_work():
    rows = [
        row("fastgpt", 1.0),
        row("slow", 4.0),
        row("good", 2.0),
        row("fastgpt", 9.0, T=1024),
        row("x", 3.0, mode="b"),
    ]
    ratios = {(r["impl"], r["shape"]["T"]): r["ratio"] for r in report.with_ratios(rows)}
    assert ratios == {
        ("fastgpt", 512): 2.0, ("good", 512): 0.5, ("slow", 512): 0.25, ("fastgpt", 1024): None, ("x", 512): None,
    }  # fmt: skip


def test_compiled_and_not_is_one_implementation_and_no_peer_of_itself():
    rows = [row("fastgpt", 2.0), row("fastgpt-compile", 1.0), row("torch", 5.0), row("torch-compile", 4.0)]
    found = {r["impl"]: (r["ratio"], r["vs_ours"]) for r in report.with_ratios(rows)}
    assert found == {
        "fastgpt": (2.0, None), "fastgpt-compile": (4.0, 2.0), "torch": (0.2, 0.4), "torch-compile": (0.25, 0.5),
    }  # fmt: skip


def test_a_spread_beyond_the_median_is_said():
    assert (
        report.cells(report.with_ratios([row("x", 1.0) | {"spread": 1.5}])[0])[3] == "150.0% (larger than the median)"
    )


def test_pythons_time_and_an_mfu_are_said_beside_their_figures():
    cells = report.cells(report.with_ratios([row("x", 1.0) | {"late": 0.5, "mfu": 0.4}])[0])
    assert cells[2] == "1000 ms (may be Python's)"
    assert cells[7] == "50% (MFU 40%)"


def test_depth_fit_recovers_a_line():
    steps = [
        row("fastgpt", 0.010 + 0.002 * n)
        | {"op": "train_step", "mode": "depth", "shape": {"layers": n, "d": 256, "T": 64}}
        for n in (2, 4, 8)
    ]
    (line,) = report.depth_fits(steps)
    assert "10 ms + 2 ms · layers, R² = 1.0000 (3 sizes)" in line
    assert report.depth_fits(steps[:2]) == []


@pytest.fixture
def results(tmp_path):
    rows = [row(i, s, T) for T in (512, 1024) for i, s in (("fastgpt", 1.0), ("peer", 2.0))]
    as_json, as_lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    bench = {"machine_info": {"fastgpt": ENVIRONMENT}, "benchmarks": [{"extra_info": r} for r in rows]}
    as_json.write_text(json.dumps(bench))
    as_lines.write_text("\n".join(json.dumps(line) for line in [{"environment": ENVIRONMENT}, *rows]))
    return as_json, as_lines


def test_both_formats_say_the_same(results):
    assert report.load(results[0]) == report.load(results[1])


def test_files_are_written(results, tmp_path):
    assert report.main([str(results[0]), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Test GPU" in text
    assert "| T=512 head_dim=64 | fastgpt | 1000 ms | 1.0% |" in text
    assert "2.00x" in text
    (plot,) = (tmp_path / "out").glob("*.svg")
    drawn = ET.parse(plot)
    xmlns = "http://www.w3.org/2000/svg"
    assert {"peer", "TFLOP/s", "best other's time / own", "peak bytes", "as fast (1)"} <= {
        text.text for text in drawn.iter(f"{{{xmlns}}}text")
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2.00x" in page
    assert page.count("<svg") == 2 * 3  # speed, ratio, memory: for a screen, and for a phone
    assert "class=strong" in page
    assert "http" not in page.replace(xmlns, "")  # self-contained


def test_the_readme_shows_ours_beside_the_best_peer(results, monkeypatch):
    monkeypatch.setattr(readme, "RESULTS", results[1].parent)
    results[1].rename(results[1].with_name("gpu-a.jsonl"))
    head, rule, *body, _, environment = readme.speed_table().splitlines()
    assert len(body) == 2  # ours at two sizes
    assert {line.count("|") for line in (head, rule, *body)} == {11}
    assert head.endswith("| vs best other |")
    assert all(line.endswith("| 2.00x |") for line in body)
    assert environment.startswith("Test GPU; torch 2.13")


@pytest.mark.parametrize("content", ["", "[]", '{"benchmarks": []}', "not json"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_foreign_file_is_refused(tmp_path, content, suffix, capsys):
    path = tmp_path / f"x{suffix}"
    path.write_text(content)
    assert report.main([str(path)]) == 2
    assert "not a results file" in capsys.readouterr().err
