"""The rehearsal of a GPU session, whose kernels are executed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from scripts.gpu import rehearse

ROOT = Path(__file__).parents[2]

CODE = """
from fastgpt.kernels import flash_attention, layer_norm  # which imports torch, as the session's summary does
from fastgpt.tools.rounding import deviations
import torch

x = torch.randn(64, 768, device="cuda", requires_grad=True)
y = layer_norm(x, (768,))
y.square().sum().backward()
assert y.is_cuda and x.grad.is_cuda
torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (768,)))
assert not x.grad.isnan().any()
assert x.to(device="cpu", dtype=torch.float16).dtype == torch.float16
few = lambda x: torch.softmax(x * torch.arange(5, device="cuda"), -1)  # noqa: E731
(moved,) = deviations(few, [x[:, :5].half()], [few(x[:, :5].half().double())])
assert 2.0**-13 < moved.abs().max() < 2.0**-9
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


def session(folder: Path, steps: str = "tests: exit 1 after 9 s", **rows: Any) -> Path:
    """What a session leaves where all went well, and these rows."""
    for name in ("findings", "headline", "sweep", "tests", "errors"):
        lines = [json.dumps(row) + "\n" for row in rows.get(name, [])]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "log.txt").write_text("")
    (folder / "steps.txt").write_text(f"verify: exit 0 after 9 s (of 99)\n{steps}\n")
    return folder


VERIFIED = {"kind": "verify", "kernel": "ffn", "label": "x", "dtype": "fp16", "problem": "", "ok": True}
PASSED = {"test": "t", "outcome": "passed", "message": ""}
ERROR = {"test": "t", "name": "out", "dtype": "float32", "norm": "max", "used": 0.9, "ok": True}


def test_a_session_that_went_well(tmp_path, capsys):
    session(tmp_path, headline=[VERIFIED], tests=[PASSED], errors=[ERROR],
            sweep=[{"workload": "w", "tile": {}, "error": None}])  # fmt: skip
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
        ({"errors": [ERROR | {"used": 1.5, "ok": False}]}, "error: t out float32 max: 1.5 of its limit"),
        ({"steps": "sweep: exit 1 after 3 s (of 9)"}, "sweep: exit 1 after 3 s"),
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
