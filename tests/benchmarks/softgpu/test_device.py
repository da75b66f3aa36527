"""FASTGPT_DEVICE=softgpu: the `device` fixture is a simulated GPU."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from tests.support import softgpu_device

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU's driver is in this process")


def test_what_is_chosen():
    settings = {"ARCH": "sm_90", "SMS": "7", "SCHEDULE": "random", "APPROX": "-1", "SEED": "3"}
    environment = {f"SOFTGPU_{name}": value for name, value in settings.items()}
    chosen = softgpu_device.chosen({"FASTGPT_DEVICE": "softgpu"} | environment)
    assert (chosen["capability"], chosen["num_sms"]) == (90, 7)
    settings = chosen["settings"]
    assert (settings.schedule, settings.landing, settings.approx, settings.seed) == ("random", "late", -1, 3)
    assert softgpu_device.chosen({"FASTGPT_DEVICE": "softgpu"})["capability"] == 80


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FASTGPT_DEVICE", "cuda", "FASTGPT_DEVICE=cuda is none of softgpu"),
        ("SOFTGPU_ARCH", "sm_120", "SOFTGPU_ARCH=sm_120 is none of sm_80, sm_86, sm_89, sm_90, sm_100"),
        ("SOFTGPU_SCHEDULE", "lockstep", "SOFTGPU_SCHEDULE=lockstep is none of forward, backward,"),
        ("SOFTGPU_LANDING", "never", "SOFTGPU_LANDING=never is none of late,"),
        ("SOFTGPU_APPROX", "3", "SOFTGPU_APPROX=3 is none of 0, 1, -1, 2"),
        ("SOFTGPU_SMS", "0", "SOFTGPU_SMS=0 must be a whole number, 1 or more"),
        ("SOFTGPU_SEED", "x", "SOFTGPU_SEED=x must be a whole number, 0 or more"),
    ],
)
def test_a_bad_value_is_one_line(name, value, said):
    with pytest.raises(pytest.UsageError, match=said):
        softgpu_device.chosen({"FASTGPT_DEVICE": "softgpu", name: value})


TESTS = """
import pytest, torch, triton
import triton.language as tl

@triton.jit
def copy_kernel(Y, X, n):
    i = tl.arange(0, 32)
    tl.store(Y + i, tl.load(X + i, mask=i < n), mask=i < n)

def launched(device, n):
    x, y = torch.randn(20, device=device), torch.zeros(32, device=device)
    copy_kernel[(1,)](y, x, n)
    return torch.equal(x, y[:20])

def test_right(device):
    assert launched(device, 20)

def test_right_but_for_what_it_reads(device):
    assert launched(device, 21)

def test_wrong(device):
    assert not launched(device, 21)

@pytest.mark.skip
def test_skipped(device):
    pass

def test_without_a_device():
    pass
"""


@pytest.mark.parametrize("arguments", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_findings_fail_a_test_and_a_table_ends_the_run(pytester, monkeypatch, arguments):
    if arguments:
        pytest.importorskip("xdist")
    for name, value in (("FASTGPT_DEVICE", "softgpu"), ("PYTHONPATH", str(ROOT)), ("SOFTGPU_ARCH", "sm_90")):
        monkeypatch.setenv(name, value)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-p", "tests.conftest", *arguments)
    result.assert_outcomes(passed=2, failed=2, skipped=1)
    result.stdout.fnmatch_lines(["softgpu: kernels compiled for sm_90*", "*out of bounds in copy_kernel, PTX line *"])
    table = [line.split() for line in result.outlines if line.startswith("copy_kernel ")]
    assert len(table) == 1
    name, launches, ctas, _, findings = table[0]
    assert (launches, ctas) == ("3", "3")
    assert int(findings) >= 2


def test_a_bad_value_ends_the_run(pytester, monkeypatch):
    for name, value in (("FASTGPT_DEVICE", "softgpu"), ("PYTHONPATH", str(ROOT)), ("SOFTGPU_ARCH", "sm_91")):
        monkeypatch.setenv(name, value)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-p", "tests.conftest")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines == ["ERROR: SOFTGPU_ARCH=sm_91 is none of sm_80, sm_86, sm_89, sm_90, sm_100", ""]
