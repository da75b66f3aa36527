"""Which kernels a call takes, and why: plain facts of the call, asked without launching any."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from fastgpt.kernels import _notice, _runtime
from fastgpt.kernels.attention.hopper import choice

HOPPER = _runtime.KNOWN_TARGETS["sm_90"]


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """As on a machine with a GPU, whatever variables this process started with."""
    monkeypatch.setattr(choice, "setting", "auto")
    monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(_notice, "_said", set())
    choice._version_why_not.cache_clear()
    caplog.set_level(logging.INFO, "fastgpt")
    yield caplog
    choice._version_why_not.cache_clear()


def heads(B=1, H=2, T=128, D=64, dtype=torch.bfloat16):
    return torch.empty(B, T, H, D, dtype=dtype).transpose(1, 2)


def takes(*tensors, target=HOPPER, dropout_p=0.0):
    return choice.takes_gluon(target, dropout_p, *(tensors or [heads()] * 3))


def test_on_hopper_sixteen_bits_take_gluon():
    assert takes()
    assert takes(*[heads(dtype=torch.float16)] * 3)


@pytest.mark.parametrize("head_dim", [8, 64, 72, 80, 96, 128, 192, 256])
def test_head_dims_of_whole_16_bytes(head_dim):
    assert takes(*[heads(D=head_dim)] * 3)


@pytest.mark.parametrize("arch", [arch for arch in _runtime.KNOWN_TARGETS if arch != "sm_90"])
def test_other_gpus_take_the_portable_kernels(arch):
    assert not takes(target=_runtime.KNOWN_TARGETS[arch])


ODD_LAYOUTS = {
    "head_dim is not contiguous": heads(T=64, D=64).transpose(2, 3),
    "rows 72 bytes apart": torch.empty(1, 2, 128, 36, dtype=torch.bfloat16)[..., :32],
    "the first element at 2 bytes": torch.empty(2 * 128 * 64 + 1, dtype=torch.bfloat16)[1:].view(1, 2, 128, 64),
    "every row the same": torch.empty(1, 2, 1, 64, dtype=torch.bfloat16).expand(1, 2, 128, 64),
}


@pytest.mark.parametrize("name", ODD_LAYOUTS)
@pytest.mark.parametrize("place", range(3))
def test_layouts_that_no_tensor_map_describes(name, place):
    tensors = [heads(H=x.shape[1], T=x.shape[2], D=x.shape[3]) for x in [ODD_LAYOUTS[name]] * 3]
    assert takes(*tensors)
    tensors[place] = ODD_LAYOUTS[name]
    assert not takes(*tensors)


def test_a_dimension_of_one_may_have_any_stride():
    odd = torch.empty(128 * 64, dtype=torch.bfloat16).as_strided((1, 1, 128, 64), (7, 3, 64, 1))
    assert takes(odd, odd, odd)
    two = torch.empty(128 * 64 + 7, dtype=torch.bfloat16).as_strided((2, 1, 128, 64), (7, 3, 64, 1))
    assert not takes(two, two, two)


@pytest.mark.parametrize(
    ("reason", "call"),
    [
        ("float32", {"tensors": [heads(dtype=torch.float32)] * 3}),
        ("dropout", {"dropout_p": 0.1}),
        ("head_dim in multiples of 8, not 36", {"tensors": [heads(H=1, D=36)] * 3}),
        ("need a key", {"tensors": [heads(), heads(T=0), heads(T=0)]}),
        ("k begins at", {"tensors": [heads(), ODD_LAYOUTS["the first element at 2 bytes"], heads()]}),
        ("gradient of out has .*multiples of 16 bytes", {"tensors": [*[heads()] * 3, heads(D=1).expand_as(heads())]}),
        ("sm_80", {"target": _runtime.KNOWN_TARGETS["sm_80"]}),
    ],
)
def test_what_stands_in_the_way_is_silent_in_auto_and_an_error_where_gluon_is_asked_for(reason, call, log, monkeypatch):
    tensors = call.pop("tensors", ())
    assert not takes(*tensors, **call)
    assert not log.records
    monkeypatch.setattr(choice, "setting", "gluon")
    with pytest.raises(ValueError, match=rf"FASTGPT_ATTENTION=gluon, but .*{reason}.*FASTGPT_ATTENTION=auto"):
        takes(*tensors, **call)


def test_the_interpreter_takes_the_portable_kernels(monkeypatch):
    monkeypatch.setattr(_runtime, "is_interpreting", lambda: True)
    assert not takes()
    monkeypatch.setattr(choice, "setting", "gluon")
    with pytest.raises(ValueError, match="interpreter"):
        takes()


@pytest.mark.parametrize(("T_q", "T_k"), [(1, 128), (128, 1), (63, 64)])
def test_few_rows_are_left_to_the_portable_kernels_unless_asked_otherwise(T_q, T_k, monkeypatch):
    few = heads(T=T_q), heads(T=T_k), heads(T=T_k)
    assert not takes(*few)
    monkeypatch.setattr(choice, "setting", "gluon")
    assert takes(*few)


def test_triton_is_a_setting_too(monkeypatch):
    monkeypatch.setattr(choice, "setting", "triton")
    assert not takes()


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0+git1234"])
def test_another_triton_gets_the_portable_kernels_and_one_line_why(version, log, monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    assert not takes()
    assert not takes()
    assert not takes(*[heads(T=256)] * 4)
    assert [record.levelname for record in log.records] == ["WARNING"]
    assert f"Triton {version}" in log.text
    assert "3.7" in log.text
    monkeypatch.setattr(choice, "setting", "gluon")
    with pytest.raises(ValueError, match=version.replace("+", r"\+")):
        takes()


def test_another_triton_is_not_named_where_it_changes_nothing(log, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", "3.10.0")
    takes(dropout_p=0.1), takes(target=_runtime.KNOWN_TARGETS["sm_100"]), takes(*[heads(dtype=torch.float32)] * 3)
    takes(*[heads(T=1)] * 3)
    assert not log.records


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.7.0+git1234"])
def test_versions_that_are_known(version, log, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", version)
    assert takes()
    assert not log.records


@pytest.mark.parametrize(("value", "setting"), [(None, "auto"), ("", "auto"), ("triton", "triton"), ("gluon", "gluon")])
def test_the_variable(value, setting):
    assert choice.setting_in({} if value is None else {"FASTGPT_ATTENTION": value}) == setting


def test_a_wrong_value_is_named_with_those_that_it_may_have():
    with pytest.raises(ValueError, match="FASTGPT_ATTENTION=cutlass must be one of auto, triton, gluon"):
        choice.setting_in({"FASTGPT_ATTENTION": "cutlass"})


def test_the_choice_imports_no_gluon():
    program = (
        "import sys, fastgpt.kernels.attention.hopper.choice\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'triton']"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
