"""Bad input raises before anything is launched, and says which argument, what it is and what to do."""

import pytest
import torch

from fastgpt.kernels import gelu_ffn, linear_gelu, reference
from tests.kernels.ffn.cases import ffn_inputs
from tests.support.launches import launches_skipped

SHAPES = {"x": (3, 8), "w1": (12, 8), "b1": (12,), "w2": (6, 12), "b2": (6,)}


def call(device="cpu", dtype=torch.float32, **changed):
    options = {k: v for k, v in changed.items() if k not in SHAPES}
    tensors = {name: torch.zeros(shape, device=device, dtype=dtype) for name, shape in SHAPES.items()}
    return gelu_ffn(**{**tensors, **{k: v for k, v in changed.items() if k in SHAPES}}, **options)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.zeros(3, 9)}, ValueError, r"w1 has shape \(12, 8\).*\(any, 9\)"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x of shape \(\)"),
        ({"w1": torch.zeros(8)}, ValueError, r"w1 has shape \(8,\)"),
        ({"w1": torch.zeros(12, 8, 1)}, ValueError, "w1 has shape"),
        ({"b1": torch.zeros(11)}, ValueError, r"b1 has shape \(11,\), expected \(12,\)"),
        ({"b1": torch.zeros(1, 12)}, ValueError, "b1 has shape"),
        ({"w2": torch.zeros(12, 6)}, ValueError, r"w2 has shape \(12, 6\).*\(any, 12\)"),
        ({"b2": torch.zeros(5)}, ValueError, r"b2 has shape \(5,\)"),
        ({"residual": torch.zeros(6)}, ValueError, r"residual has shape \(6,\), expected \(3, 6\)"),
        ({"residual": torch.zeros(3, 6, dtype=torch.float16)}, TypeError, "residual is torch.float16"),
        ({"x": torch.zeros(3, 8, dtype=torch.float16)}, TypeError, "w1 is torch.float32 but x is torch.float16"),
        ({"w2": torch.zeros(6, 12).bfloat16()}, TypeError, "w2 is torch.bfloat16"),
        ({"b2": torch.zeros(6).half()}, TypeError, "b2 is torch.float16"),
        ({"dtype": torch.float64}, TypeError, "float64.*reference.gelu_ffn"),
        ({"dtype": torch.int64}, TypeError, "int64"),
        ({"dtype": torch.complex64}, TypeError, "complex64"),
        ({"approximate": "erf"}, ValueError, "approximate must be one of 'none', 'tanh', got 'erf'"),
        ({"approximate": None}, ValueError, "approximate must be"),
        ({"path": "fast"}, ValueError, "path must be one of"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p"),
        ({"dropout_p": -0.1}, ValueError, "dropout_p"),
        ({"w1": torch.zeros(12, 8, device="meta")}, ValueError, "w1 is on meta but x is on cpu"),
        ({"b2": torch.zeros(6, device="meta")}, ValueError, "b2 is on meta"),
        ({"residual": torch.zeros(3, 6, device="meta")}, ValueError, "residual is on meta"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else None,
)
def test_gelu_ffn(changed, error, message):
    with launches_skipped() as launched, pytest.raises(error, match=message) as raised:
        call(**changed)
    assert str(raised.value).startswith("gelu_ffn: ")
    assert not launched


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((torch.zeros(3, 8), torch.zeros(4, 7)), ValueError, r"w has shape \(4, 7\)"),
        ((torch.zeros(3, 8), torch.zeros(4, 8), torch.zeros(8)), ValueError, r"b has shape \(8,\)"),
        ((torch.zeros(3, 8), torch.zeros(4, 8).half()), TypeError, "w is torch.float16"),
        ((torch.zeros(3, 8).double(), torch.zeros(4, 8).double()), TypeError, "reference.linear_gelu"),
        ((torch.zeros(3, 8), torch.zeros(4, 8), None, "sigmoid"), ValueError, "approximate"),
        ((torch.zeros(3, 8), torch.zeros(4, 8, device="meta")), ValueError, "w is on meta"),
    ],
)
def test_linear_gelu(args, error, message):
    with launches_skipped() as launched, pytest.raises(error, match=message) as raised:
        linear_gelu(*args)
    assert str(raised.value).startswith("linear_gelu: ")
    assert not launched


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_cpu_without_interpreter_names_the_way_out(monkeypatch):
    monkeypatch.setattr("fastgpt.kernels._runtime.is_interpreting", lambda: False)
    for run in (call, lambda: linear_gelu(torch.zeros(3, 8), torch.zeros(4, 8))):
        with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET=1|not installed"):
            run()


def test_double_backward_names_the_reference(device, seed):
    for run in (lambda *t: gelu_ffn(*t), lambda *t: linear_gelu(*t[:3])):
        tensors = ffn_inputs(device)
        (dx,) = torch.autograd.grad(run(*tensors).square().sum(), tensors[0], create_graph=True)
        with pytest.raises(RuntimeError, match="once"):
            dx.sum().backward()
    tensors = [t.detach().double().requires_grad_() for t in ffn_inputs(device, shape=(2, 3), d_hidden=4, d_out=2)]
    assert torch.autograd.gradgradcheck(reference.gelu_ffn, tensors)


@pytest.mark.parametrize("path", ["triton", "cublas"])
def test_more_tokens_than_the_kernels_can_number_are_refused(path):
    pytest.importorskip("triton")
    from fastgpt.kernels._runtime import KNOWN_TARGETS, pretend
    from fastgpt.kernels.ffn import launch

    def huge(tokens):
        return torch.empty(1, device="meta").expand(tokens, 8), torch.empty(4, 8, device="meta")

    with pretend(KNOWN_TARGETS["sm_90"]), launches_skipped() as launched:
        launch._plan("up", path, *huge(launch.LARGEST), 4, False, out_tma=False)
        with pytest.raises(ValueError, match=r"\(2147483648, 8\) and \(4, 8\).*split the batch"):
            launch.up(*huge(2**31), None, False, None, path)
    assert not launched
