"""`hopper`: where kernels for sm_90 run, in the whole suite too; elsewhere the simulated GPU executes them."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import DEVICE


@pytest.fixture
def hopper(request):
    """An H100's or H200's device, or the CPU inside of a simulated one, which must find nothing wrong."""
    if DEVICE or torch.cuda.is_available():
        device = request.getfixturevalue("device")
        arch = _arch(device)
        if arch != "sm_90":
            pytest.skip(f"these kernels are for sm_90, and this is {arch}")
        yield device
        return
    pytest.importorskip("triton")
    from benchmarks.softgpu.driver import simulate
    from benchmarks.softgpu.engine import Settings

    with simulate(capability=90, num_sms=4, settings=Settings(schedule="worst", seed=1, num_sms=4)) as gpu:
        yield torch.device("cpu")
    # Of the portable kernels, Triton 3.6 leaves out proxy fences.
    findings = [str(finding) for finding in gpu.findings if finding.kernel.startswith("hopper_")]
    assert not findings, "\n".join(findings)


def _arch(device: torch.device) -> str:
    from fastgpt.kernels import _runtime

    return _runtime.target_of(torch.empty(0, device=device)).arch


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are launched, in order."""
    pytest.importorskip("triton")
    from triton.runtime.jit import JITFunction

    names, run = [], JITFunction.run

    def noted(kernel, *arguments, **options):
        names.append(kernel.fn.__name__)
        return run(kernel, *arguments, **options)

    monkeypatch.setattr(JITFunction, "run", noted)
    return names
