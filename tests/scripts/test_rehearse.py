"""The rehearsal of a GPU session, whose kernels are executed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from scripts.gpu import rehearse

ROOT = Path(__file__).parents[2]

CODE = """
import torch
from fastgpt.kernels import flash_attention, layer_norm

x = torch.randn(64, 768, device="cuda", requires_grad=True)
y = layer_norm(x, (768,))
y.square().sum().backward()
assert y.is_cuda and x.grad.is_cuda
torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (768,)))
assert not x.grad.isnan().any()
q, k, v = (torch.randn(1, 2, 300, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))  # by TMA
exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
torch.testing.assert_close(flash_attention(q, k, v, causal=True), exact, rtol=2e-2, atol=2e-2)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is there")
def test_kernels_are_executed_on_the_gpu_that_is_not_there(tmp_path):
    environment = os.environ | {
        "FASTGPT_FAKE_GPU": f"execute:{tmp_path / 'findings.jsonl'}", "TRITON_INTERPRET": "0",
        "PYTHONPATH": str(ROOT / "scripts" / "gpu" / "site"),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "findings.jsonl").exists() or not (tmp_path / "findings.jsonl").read_text()


def session(folder: Path, **rows: list[dict]) -> Path:
    """What a session leaves where all went well, and these rows."""
    for name in ("findings", "headline", "sweep", "tests"):
        lines = [json.dumps(row) + "\n" for row in rows.get(name, [])]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "log.txt").write_text("")
    return folder


VERIFIED = {"kind": "verify", "kernel": "ffn", "label": "x", "dtype": "fp16", "problem": "", "ok": True}
PASSED = {"test": "t", "outcome": "passed", "message": ""}


def test_a_session_that_went_well(tmp_path, capsys):
    session(tmp_path, headline=[VERIFIED], tests=[PASSED], sweep=[{"workload": "w", "tile": {}, "error": None}])
    assert rehearse.report(tmp_path) == 0
    assert "wrong: 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"findings": [{"kernel": "up_kernel", "finding": "race: read after write"}] * 3}, "up_kernel: race: .* (3)"),
        ({"headline": [VERIFIED | {"ok": False}]}, "verify: ffn x fp16: wrong"),
        ({"headline": [{"kind": "failed", "section": "loss", "error": "ValueError: no"}]}, "loss: ValueError: no"),
        ({"headline": [{"kind": "skipped", "op": "ffn", "impl": "eager", "mode": "forward", "reason": "no memory"}]},
         "ffn eager forward: no memory"),
        ({"sweep": [{"workload": "w", "tile": {"block_m": 64}, "error": "result 0 differs"}]}, "sweep: w .*differs"),
        ({"tests": [PASSED | {"outcome": "failed", "message": "AssertionError: 3 != 4"}]}, "t: AssertionError"),
    ],
)  # fmt: skip
def test_what_went_wrong_is_named(tmp_path, capsys, rows, said):
    session(tmp_path, **{"tests": [PASSED]} | rows)
    assert rehearse.report(tmp_path) == 1
    out = capsys.readouterr().out
    assert "wrong: 1" in out
    words = said.replace("(", r"\(").replace(")", r"\)")
    assert re.search(f"WRONG {words}", out), out


def test_what_no_cpu_has_is_not_wrong(tmp_path, capsys):
    skipped = {"kind": "skipped", "op": "attention", "impl": "sdpa-cudnn", "mode": "forward", "reason": "no cudnn here"}
    session(tmp_path, headline=[skipped], tests=[PASSED])
    assert rehearse.report(tmp_path) == 0
    assert "1 not done, as they cannot be here: the CPU has no cuDNN" in capsys.readouterr().out
