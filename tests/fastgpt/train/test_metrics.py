"""Speed against the hardware's peak."""

from __future__ import annotations

import pytest
import torch

from fastgpt.train import metrics


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("AMD Instinct MI300X", 1307.4e12),
        ("Some GPU of next year", None),
    ],
)
def test_peak_table(name, peak):
    assert metrics.peak_flops(name, torch.bfloat16) == peak
    assert metrics.peak_flops(name, torch.float32) is None


def test_mfu_formula(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    cuda = torch.device("cuda")
    assert metrics.mfu(1e5, 1e9, cuda, torch.bfloat16) == pytest.approx(1e14 / 312e12)
    assert metrics.mfu(1e5, 1e9, torch.device("cpu"), torch.bfloat16) is None
