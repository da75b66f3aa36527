"""What a benchmark run prints at its end."""

import pytest

from benchmarks import summary

from .test_report import ENVIRONMENT, row

ROWS = [
    row("sdpa-flash", 2.0e-3), row("fastgpt", 1.0e-3), row("reference", 1.0e-2) | {"spread": 1.2},
    row("sdpa-flash", 1.0e-6, T=1024), row("fastgpt", 2.5e-6, T=1024),
]  # fmt: skip


def below(lines: list[str], title: str) -> list[list[str]]:
    """The cells of each row of the workload `title`."""
    start = lines.index(title) + 1
    end = lines.index("", start)
    return [line.split() for line in lines[start:end]]


def test_ours_is_first_beside_its_peers_by_workload():
    lines = summary.figures(ENVIRONMENT, ROWS)
    short = below(lines, "attention forward bfloat16 T=512 head_dim=64")
    assert [line[0] for line in short] == ["fastgpt", "sdpa-flash", "reference", "^"]
    assert [line[1:3] for line in short[:2]] == [["1", "ms"], ["2", "ms"]]
    assert [line[-2:] for line in short[:3]] == [["2.00x", "-"], ["0.50x", "0.50x"], ["0.10x", "0.10x"]]
    long = below(lines, "attention forward bfloat16 T=1024 head_dim=64")
    assert [(line[0], line[1], line[-2]) for line in long] == [
        ("fastgpt", "2.5", "0.40x"),
        ("sdpa-flash", "1", "2.50x"),
    ]


def test_noise_is_said_below_its_row():
    lines = summary.figures(ENVIRONMENT, ROWS)
    (marked,) = (i for i, line in enumerate(lines) if "spread larger than the median" in line)
    assert "reference" in lines[marked - 1]


def test_what_a_figure_may_hold_besides_is_said_below_its_row():
    lines = summary.figures(ENVIRONMENT, [row("fastgpt", 1e-5) | {"late": 0.7}, row("torch", 1.0) | {"mfu": 0.4321}])
    below_it = {lines[i - 1].split()[0]: line for i, line in enumerate(lines) if line.startswith("      ^ ")}
    assert "may be Python's time" in below_it["fastgpt"]
    assert "MFU 43.2%" in below_it["torch"]
    assert max(map(len, lines)) <= summary.WIDTH


def test_each_version_is_named_once():
    rows = [r | {"version": v} for r, v in zip(ROWS, ("flash-attn 2.8", "fastgpt 1", "torch 2.13", "flash-attn 2.8"))]
    assert "\n".join(summary.figures(ENVIRONMENT, rows)).count("Peers: flash-attn 2.8.") == 1


def test_columns_line_up_and_empty_ones_are_left_out():
    lines = summary.figures(ENVIRONMENT, ROWS)
    head = next(line for line in lines if "implementation" in line)
    assert "peak memory" in head
    assert "vs fastgpt" in head
    assert {len(line) for line in lines if line.rstrip().endswith(("x", " -"))} == {len(head)}
    assert max(map(len, lines)) <= summary.WIDTH
    bare = [r | {"peak_bytes": None, "of_floor": None} for r in ROWS if r["impl"] != "fastgpt"]
    lines = summary.figures(ENVIRONMENT, bare)
    text = "\n".join(lines)
    assert not [name for name in ("peak memory", "of floor", "vs fastgpt") if name in text]


def test_the_longest_names_fit():
    wide = row("fastgpt-compile", 123.4e-6) | {
        "tflop_s": 1234.0, "tokens_s": 123456789.0, "peak_bytes": 80 << 30, "of_floor": 0.99, "spread": 0.123,
        "mode": "forward+backward", "shape": {"B": 16, "H": 32, "T": 131072, "head_dim": 128},
    }  # fmt: skip
    rows = [wide, wide | {"impl": "fastgpt"}, wide | {"impl": "sdpa-efficient"}]
    assert max(map(len, summary.figures(ENVIRONMENT, rows))) <= 120


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.2345e-7, "0.1235 µs"), (9.99994e-4, "1000 µs"), (1e-3, "1 ms"), (0.0123456, "12.35 ms"), (2.0, "2 s")],
)
def test_time_has_a_unit(seconds, text):
    assert summary.time_text(seconds) == text


def test_what_was_left_out_is_counted_by_reason():
    reasons = [
        "needs a CUDA GPU: b", "needs a CUDA GPU: a", "not installed: c", "needs a CUDA GPU: a", "no reason given",
        "out of memory (attention at T=1; tried to allocate 3 GiB): reference",
    ]  # fmt: skip
    assert summary.left_out(reasons) == [
        "     3  needs a CUDA GPU: a, b",
        "     1  not installed: c",
        "     1  no reason given",
        "     1  out of memory (attention at T=1; tried to allocate 3 GiB): reference",
    ]
