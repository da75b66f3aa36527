"""The judge: what it finds in the way of the kernels, with tensors and before there are any."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastgpt.kernels import support

CPU = torch.device("cpu")
X = torch.zeros(2, 3)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One on which kernels run, so that only tensors are judged."""
    monkeypatch.setattr(support, "machine_why_not", lambda device: None)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((X, X, None), None),
        ((X.half(), X.half()), None),
        ((X.double(),), "the kernels take float32, float16 and bfloat16, not float64; convert by .to()"),
        ((X.int(),), "the kernels take float32, float16 and bfloat16, not int32; convert by .to()"),
        ((X, None, X.double()), "the kernels take float32, float16 and bfloat16, not float64; convert by .to()"),
        ((X, X.half()), "the tensors have different dtypes; convert them"),
        ((X, X.to("meta")), "the tensors are on different devices; move them together"),
        ((X.to_sparse(),), "only dense tensors are supported; call .to_dense()"),
        (
            (torch.nested.nested_tensor([X[0], X[1]]),),
            "nested tensors are not supported; flash_attention takes packed documents by cu_seqlens",
        ),
    ],
)
def test_what_tensors_stand_in_the_way(tensors, reason):
    assert support.why_not(*tensors) == reason


def test_tensors_need_not_be_alike_where_the_kernel_takes_both():
    assert support.why_not(X, X.half(), alike=False) is None
    assert support.kinds_why_not(CPU, torch.float32, torch.float16, alike=False) is None
    assert support.why_not(X, X.double(), alike=False) is not None


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("bfloat16", "bfloat16"), ("float64",), ("half", "double")])
def test_before_the_tensors_the_answer_is_the_same(dtypes, autocast):
    dtypes = [getattr(torch, name) for name in dtypes]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert support.kinds_why_not(CPU, *dtypes) == support.why_not(*(X.to(dtype) for dtype in dtypes))


def test_forward_mode_stands_in_the_way():
    with torch.autograd.forward_ad.dual_level():
        assert support.why_not(X) == support.kinds_why_not(CPU, X.dtype) == support.NO_FORWARD_MODE


def test_shapes_only_are_for_any_machine(monkeypatch):
    monkeypatch.setattr(support, "machine_why_not", lambda device: "no GPU")
    assert support.why_not(X) == "no GPU"
    assert support.why_not(X.to("meta")) is None
    with FakeTensorMode():
        assert support.why_not(torch.zeros(2)) is None
        if not torch.cuda.is_available():
            assert support.why_not(torch.zeros(2, device="cuda")) is None


@pytest.mark.parametrize(("head_dim", "taken"), [(0, False), (1, True), (256, True), (257, False)])
def test_heads_of_each_size(head_dim, taken):
    assert (support.head_dim_why_not(head_dim) is None) == taken


@pytest.mark.parametrize(("dropout_p", "taken"), [(-0.1, False), (0.0, True), (0.999, True), (1.0, False)])
def test_dropout_keeps_something(dropout_p, taken):
    assert (support.dropout_why_not(dropout_p) is None) == taken


def test_a_gpu_of_before_turing(monkeypatch):
    monkeypatch.undo()
    for name, answer in (("is_available", True), ("get_device_capability", (7, 0)), ("get_device_name", "a V100")):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(support, "has_triton", lambda: True)
    support._young_enough.cache_clear()
    reason = support.machine_why_not(torch.device("cuda", 0))
    support._young_enough.cache_clear()
    assert (
        reason == "a V100 is older than sm_75, the oldest GPU that these kernels support; use the torch implementation"
    )
