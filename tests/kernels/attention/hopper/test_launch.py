"""Calls that take Hopper's kernels, and the same calls of the portable ones: both within the budget of float64."""

from __future__ import annotations

import pytest
import torch

from fastgpt.kernels import flash_attention
from fastgpt.kernels.attention.hopper import choice
from tests.kernels.attention.support import check, random_qkv

GLUON = ["hopper_forward_kernel", "attention_delta_kernel", "hopper_dkdv_kernel", "hopper_dq_kernel"]
PORTABLE = ["attention_forward_kernel", "attention_delta_kernel", "attention_dkdv_kernel", "attention_dq_kernel"]


@pytest.fixture(params=["triton", "gluon"])
def setting(request, monkeypatch):
    monkeypatch.setattr(choice, "setting", request.param)
    return request.param


def lengths(*values):
    return torch.tensor(values)


CASES = {
    "causal": {"causal": True},
    "full": {"causal": False},
    "fp16": {"causal": True, "dtype": torch.float16},
    "grouped": {"causal": True, "H": 6, "H_kv": 2},
    "fewer queries than keys": {"causal": True, "T_q": 70, "T_k": 300},
    "more queries than keys": {"causal": True, "T_q": 300, "T_k": 70},
    "a scale of 0": {"causal": True, "softmax_scale": 0.0},
    "window": {"causal": True, "window": 50},
    "window on both sides": {"window": (40, 90)},
    "key lengths": {"key_lengths": lengths(150, 64)},
    "no key at all": {"causal": True, "key_lengths": lengths(200, 0)},
    "key starts": {"causal": True, "key_starts": lengths(0, 77)},
    "key starts, full tiles after them": {"T_q": 70, "T_k": 400, "key_starts": lengths(0, 77)},
    "documents": {"causal": True, "document_ids": torch.arange(200).expand(2, 200) // 60},
    "documents in any order": {"document_ids": torch.arange(200).expand(2, 200) % 3},
}
HEAD_DIMS = (8, 32, 64, 80, 96, 112, 128, 192, 256)


def qkv_and_arguments(device, name, head_dim=64):
    case = {"T_q": 200, "T_k": 200, "H": 2, "H_kv": None, "dtype": torch.bfloat16} | CASES[name]
    T_q, T_k, H, H_kv, dtype = (case.pop(key) for key in ("T_q", "T_k", "H", "H_kv", "dtype"))
    qkv = random_qkv(device, 2, H, T_q, T_k, head_dim, H_kv=H_kv, dtype=dtype)
    return qkv, {key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in case.items()}


@pytest.mark.parametrize("name", CASES)
def test_both_paths_are_within_the_budget(hopper, seed, setting, launched, name):
    qkv, arguments = qkv_and_arguments(hopper, name)
    check(hopper, qkv, **arguments)
    kernels = [kernel for kernel in launched if kernel != "document_ranges_kernel"]
    assert kernels == (PORTABLE if setting == "triton" else GLUON)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims(hopper, seed, launched, head_dim):
    qkv, arguments = qkv_and_arguments(hopper, "causal", head_dim)
    check(hopper, qkv, **arguments)
    assert launched == GLUON


@pytest.mark.parametrize(
    "call", [{"dtype": torch.float32}, {"dropout_p": 0.5}, {"T": 40}], ids=["float32", "dropout", "few rows"]
)
def test_what_gluon_cannot_take_is_taken_by_the_portable_kernels(hopper, seed, launched, call, caplog):
    q, k, v = random_qkv(hopper, 1, 2, call.get("T", 128), 128, 64, dtype=call.get("dtype", torch.bfloat16))
    flash_attention(q, k, v, dropout_p=call.get("dropout_p", 0.0)).sum().backward()
    assert launched == PORTABLE
    assert not caplog.records


def test_a_tiny_scale_of_huge_scores(hopper, seed, monkeypatch):
    """No masked score may become 0 · -inf, and no other may be scaled by more than was asked for."""
    monkeypatch.setattr(choice, "setting", "gluon")
    q, k, v = random_qkv(hopper, 1, 1, 64, 64, 64, dtype=torch.bfloat16)
    check(hopper, ((q * 1e17).detach().requires_grad_(), (k * 1e17).detach().requires_grad_(), v), softmax_scale=1e-35)


def test_where_gluon_is_asked_for_and_cannot_be_is_an_error(hopper, launched, monkeypatch):
    monkeypatch.setattr(choice, "setting", "gluon")
    q, k, v = random_qkv(hopper, 1, 2, 128, 128, 64)
    with pytest.raises(ValueError, match=r"flash_attention: FASTGPT_ATTENTION=gluon, but .*float32"):
        flash_attention(q, k, v)
    assert not launched


def test_no_import_of_gluon_where_it_is_not_taken():
    """In a process of its own, since this one may have taken it."""
    import subprocess
    import sys

    program = (
        "import sys, fastgpt.kernels.attention.launch\n"
        "assert 'fastgpt.kernels.attention.hopper.choice' in sys.modules\n"
        "assert 'fastgpt.kernels.attention.hopper.launch' not in sys.modules\n"
        "assert 'triton.experimental.gluon.language.nvidia.hopper.tma' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
