"""torch.library.opcheck of every registered operator, in every variant that its schema knows.

Each operator has one set of arguments, with every option given, and what its variants change. A test fails where an
operator has none, or where some argument of its schema is never left out, never flipped, or misses one of its choices.
"""

import pytest
import torch
from torch import Tensor

import fastgpt.kernels  # noqa: F401 (registers the operators)
from fastgpt.kernels import _library

pytest.importorskip("triton")

fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16
CHOICES = {
    "reduction": ("mean", "sum", "none"), "approximate": ("none", "tanh"), "path": ("auto", "triton", "cublas"),
}  # fmt: skip


class Case:
    """An operator's arguments by name, and its variants: name -> the arguments that differ.

    A function changes the argument. "dtype" is not an argument, but what all tensors are converted to, except those
    that are float32 always. Variants named "recorded ..." are recorded by autograd, as "everything" is.
    """

    def __init__(self, arguments, **variants):
        self.arguments, self.variants = arguments, {"everything": {}, **variants}

    def __call__(self, name, variant, device):
        torch.manual_seed(0)
        changes = {**self.variants[variant]}
        convert = changes.pop("dtype", None)
        arguments = self.arguments()
        for n in arguments.keys() & changes.keys():
            arguments[n] = changes[n](arguments[n]) if callable(changes[n]) else changes[n]
        recorded = "everything" in variant or convert is not None or "recorded" in variant
        for n, x in arguments.items():
            if isinstance(x, Tensor):
                x = x.to(device)
                x = x.to(convert) if convert is not None and x.is_floating_point() and n not in KEPT_IN_FP32 else x
                arguments[n] = x.requires_grad_(recorded) if x.is_floating_point() and name in DIFFERENTIABLE else x
        return [arguments[a.name] for a in schema(name).arguments]


KEPT_IN_FP32 = ("stats", "lse", "dlse", "dlosses", "dloss")
DIFFERENTIABLE = (
    "attention_fwd", "attention_weights", "layer_norm_fwd", "add_layer_norm_fwd", "linear_gelu_fwd", "gelu_ffn_fwd",
    "cross_entropy", "linear_cross_entropy",
)  # fmt: skip


def schema(name):
    return getattr(torch.ops.fastgpt, name).default._schema


f = torch.randn
KEY = torch.tensor([123, 456])


def attention(**more):
    q, k, v = f(2, 2, 5, 16), f(2, 1, 6, 16), f(2, 1, 6, 16)
    masks = {
        "key_starts": torch.tensor([0, 2]), "key_lengths": torch.tensor([4, 6]),
        "document_ids": (torch.arange(12).view(2, 6) // 3).int(),
    }  # fmt: skip
    numbers = {"softmax_scale": 0.25, "dropout_p": 0.3, "causal": False, "left": 3, "right": 2}
    return {"q": q, "k": k, "v": v, **masks, "seed": KEY, **numbers, **more}


def attention_backward():
    a = attention(need_dq=True, need_dkdv=True)
    heads_last = f(2, 5, 2, 16).transpose(1, 2)
    return {**a, "dout": f(2, 2, 5, 16), "dlse": f(2, 2, 5), "out": heads_last, "lse": f(2, 2, 5) + 5}


def empty(dim=0):
    return lambda x: x.narrow(dim, 0, 0).clone()


UNMASKED = {"key_starts": None, "key_lengths": None, "document_ids": None}
NO_DROPOUT = {"seed": None, "dropout_p": 0.0}
PLAIN = {**UNMASKED, **NO_DROPOUT, "causal": True, "left": -1, "right": -1}
NO_BATCH = {n: empty() for n in ("q", "k", "v", "key_starts", "key_lengths", "document_ids")}
NO_BATCH_BACKWARD = {**NO_BATCH, **{n: empty() for n in ("dout", "dlse", "out", "lse")}}


def weights_of_attention():
    a = attention()
    kept = ("q", "k", "key_starts", "key_lengths", "document_ids", "softmax_scale", "left", "right")
    rows = {"heads": [1, 0], "row_start": 1, "row_count": 2, "row_step": 2}
    return {**{n: a[n] for n in kept}, "lse": f(2, 2, 5) + 5, **rows}


def norm():
    return {"x": f(2, 3, 17), "weight": f(17), "bias": f(17), "d": 1, "eps": 1e-5, "out_dtype": fp32}


def norm_backward():
    return {
        "dy": f(2, 3, 17), "x": f(2, 3, 17), "weight": f(17), "stats": torch.rand(2, 6), "d": 1, "need_dx": True,
        "need_dweight": True, "dbias_dtype": fp32,
    }  # fmt: skip


def add_norm():
    return {**norm(), "residual": f(2, 3, 17), "seed": KEY, "dropout_p": 0.5}


def add_norm_backward():
    return {
        **norm_backward(), "dnew_residual": f(2, 3, 17), "new_residual": f(2, 3, 17), "seed": KEY, "dropout_p": 0.5,
        "dx_dtype": fp32, "need_dresidual": True,
    }  # fmt: skip


def ffn(**more):
    options = {"approximate": "none", "path": "triton"}
    return {"x": f(2, 5, 16), "w1": f(24, 16), "b1": f(24), "w2": f(8, 24), **options, **more}


def ffn_forward():
    return ffn(b2=f(8), residual=f(2, 5, 8), seed=KEY, dropout_p=0.25, save_pre=True, overwrite_pre=False)


def ffn_backward():
    return ffn(dout=f(2, 5, 8), pre=f(10, 24), seed=KEY, dropout_p=0.25, grads=[True] * 5)


def linear(**more):
    return {"x": f(2, 5, 16), "w": f(24, 16), "b": f(24), "approximate": "none", **more}


def linear_forward():
    return linear(save_pre=False, path="triton")


def linear_backward():
    return linear(dact=f(2, 5, 24), pre=f(10, 24), grads=[True] * 3)


SETTINGS = {"ignore_index": -100, "label_smoothing": 0.1, "z_loss": 0.1, "softcap": 9.0}
TARGET = torch.tensor([3, 32, -100, 0, 7, 1])


def logits(**more):
    loss = {"reduction": "mean", "return_lse": True, "inplace": False}
    return {"logits": f(6, 33), "target": TARGET, **SETTINGS, **loss, **more}


def logits_backward():
    return logits(dlosses=f(6), dlse=f(6), stats=torch.rand(2, 6) + 3)


def loss(**more):
    options = {"reduction": "mean", "return_lse": True, "num_chunks": 2}
    return {"x": f(6, 8), "weight": f(33, 8), "bias": f(33), "target": TARGET, **SETTINGS, **options, **more}


def loss_with_gradients():
    return loss(need_dx=True, need_dweight=True, need_dbias=True)


def loss_backward():
    return {**loss_with_gradients(), "dlosses": f(6), "dlse": f(6), "stats": torch.rand(2, 6) + 3}


REDUCTIONS = {
    "sum": {"reduction": "sum"}, "recorded none": {"reduction": "none"}, "no lse": {"return_lse": False},
    "uncapped": {"softcap": None},
}  # fmt: skip
WANTED = {
    "dx only": {"need_dweight": False, "need_dbias": False},
    "dweight only": {"need_dx": False, "need_dbias": False},
    "dbias only": {"need_dx": False, "need_dweight": False},
}
# The mean over no rows is NaN, which opcheck takes for a difference.
NO_ROWS = {**{n: empty() for n in ("x", "target", "logits")}, "reduction": "sum"}
LOW = {"half": {"dtype": fp16}, "bfloat16": {"dtype": bf16}}
APPROXIMATELY = {
    "tanh": {"approximate": "tanh"}, "recorded auto": {"path": "auto"}, "recorded cublas": {"path": "cublas"},
}  # fmt: skip


def only(n, of):
    return {"grads": [i == n for i in range(of)]}


CASES = {
    "attention_fwd": Case(
        attention, plain=PLAIN, recorded_plain=PLAIN, starts={**PLAIN, "key_starts": torch.tensor([0, 2])},
        lengths={**PLAIN, "key_lengths": torch.tensor([4, 6])}, window={**PLAIN, "left": 3},
        dropout={**PLAIN, "seed": KEY, "dropout_p": 0.5}, documents={**NO_DROPOUT, "causal": True}, empty=NO_BATCH,
        **LOW,
    ),
    "attention_bwd": Case(
        attention_backward, plain={**PLAIN, "dlse": None}, dq={"need_dkdv": False, **NO_DROPOUT},
        dkdv={"need_dq": False, **UNMASKED}, neither={"need_dq": False, "need_dkdv": False}, empty=NO_BATCH_BACKWARD,
        **LOW,
    ),
    "attention_weights": Case(
        weights_of_attention, plain={**UNMASKED, "left": -1, "right": 0}, unbounded={"right": -1, **UNMASKED},
        one_head={"heads": [1]}, no_head={"heads": []}, twice={"heads": [1, 1]},
        empty={n: empty() for n in ("q", "k", "lse", "key_starts", "key_lengths", "document_ids")}, **LOW,
    ),
    "layer_norm_fwd": Case(
        norm, bare={"weight": None, "bias": None}, recorded_scale={"bias": None}, recorded_shift={"weight": None},
        to_bfloat16={"out_dtype": bf16}, empty={"x": empty()},
        two_dimensions={"x": f(2, 3, 17), "weight": f(3, 17), "bias": f(3, 17), "d": 2},
        **LOW,
    ),
    "layer_norm_bwd": Case(
        norm_backward, bare={"weight": None, "need_dweight": False},
        dx_only={"need_dweight": False, "dbias_dtype": None}, dweight_only={"need_dx": False, "dbias_dtype": None},
        dbias_only={"need_dx": False, "need_dweight": False},
        nothing={"need_dx": False, "need_dweight": False, "dbias_dtype": None}, dbias_in_half={"dbias_dtype": fp16},
        empty={"x": empty(), "dy": empty(), "stats": empty(1)}, **LOW,
    ),
    "add_layer_norm_fwd": Case(
        add_norm, bare={"weight": None, "bias": None}, recorded_no_dropout=NO_DROPOUT, to_half={"out_dtype": fp16},
        empty={"x": empty(), "residual": empty()}, **LOW,
    ),
    "add_layer_norm_bwd": Case(
        add_norm_backward, bare={"weight": None, "need_dweight": False},
        no_stream={"dnew_residual": None, **NO_DROPOUT},
        dx_only={"need_dresidual": False, "need_dweight": False, "dbias_dtype": None},
        dresidual_only={"dx_dtype": None, "need_dweight": False, "dbias_dtype": None},
        dweight_only={"dx_dtype": None, "need_dresidual": False, "dbias_dtype": None}, dx_in_half={"dx_dtype": fp16},
        empty={n: empty() for n in ("dy", "dnew_residual", "new_residual")} | {"stats": empty(1)}, **LOW,
    ),
    "linear_gelu_fwd": Case(
        linear_forward, recorded_save={"save_pre": True}, save={"save_pre": True}, recorded_no_bias={"b": None},
        empty={"x": empty()}, **APPROXIMATELY, **LOW,
    ),
    "linear_gelu_bwd": Case(
        linear_backward, **{f"gradient {n} only": only(n, 3) for n in range(3)}, recompute={"pre": None},
        no_bias={"b": None}, tanh={"approximate": "tanh"},
        empty={"x": empty(), "dact": empty(), "pre": empty()}, **LOW,
    ),
    "gelu_ffn_fwd": Case(
        ffn_forward, recompute={"save_pre": False}, recorded_recompute={"save_pre": False},
        recorded_overwriting={"overwrite_pre": True}, overwriting={"overwrite_pre": True},
        recorded_bare={"b1": None, "b2": None, "residual": None, **NO_DROPOUT},
        empty={"x": empty(), "residual": empty()}, **APPROXIMATELY, **LOW,
    ),
    "gelu_ffn_bwd": Case(
        ffn_backward, **{f"gradient {n} only": only(n, 5) for n in range(5)}, recompute={"pre": None},
        bare={"b1": None, **NO_DROPOUT}, empty={"x": empty(), "dout": empty(), "pre": empty()}, **APPROXIMATELY, **LOW,
    ),
    "gelu_ffn_bwd_": Case(
        ffn_backward, **{f"gradient {n} only": only(n, 5) for n in range(5)}, bare={"b1": None, **NO_DROPOUT},
        empty={"x": empty(), "dout": empty(), "pre": empty()}, **APPROXIMATELY, **LOW,
    ),
    "cross_entropy_with_stats": Case(logits, inplace={"inplace": True}, empty=NO_ROWS, **REDUCTIONS, **LOW),
    "cross_entropy": Case(logits, inplace={"inplace": True}, empty=NO_ROWS, **REDUCTIONS, **LOW),
    "cross_entropy_bwd": Case(
        logits_backward, no_lse={"dlse": None}, uncapped={"softcap": None},
        of_the_sum={"dlosses": torch.ones(1).expand(6)},
        empty={**NO_ROWS, "dlosses": empty(), "dlse": empty(), "stats": empty(1)}, **LOW,
    ),
    "cross_entropy_bwd_": Case(
        logits_backward, no_lse={"dlse": None}, uncapped={"softcap": None},
        of_the_sum={"dlosses": torch.ones(1).expand(6)},
        empty={**NO_ROWS, "dlosses": empty(), "dlse": empty(), "stats": empty(1)}, **LOW,
    ),
    "linear_cross_entropy_with_gradients": Case(
        loss_with_gradients, no_bias={"bias": None, "need_dbias": False}, empty=NO_ROWS, **WANTED, **REDUCTIONS, **LOW,
    ),
    "linear_cross_entropy_bwd": Case(
        loss_backward, no_bias={"bias": None, "need_dbias": False}, no_lse={"dlse": None},
        uncapped={"softcap": None},
        empty={**NO_ROWS, "dlosses": empty(), "dlse": empty(), "stats": empty(1)}, **WANTED, **LOW,
    ),
    "linear_cross_entropy_scale": Case(
        lambda: {"dloss": f(()), "counts": torch.tensor([5, 1]), "gradient": f(6, 8), "dtype": fp32},
        no_counts={"counts": None}, empty={"gradient": empty()},
    ),
    "linear_cross_entropy": Case(
        loss, recorded_no_bias={"bias": None}, automatic={"num_chunks": 0}, empty=NO_ROWS, **REDUCTIONS, **LOW,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, case in CASES.items() for v in case.variants])
def test_opcheck(device, name, variant):
    arguments = CASES[name](name, variant, device)
    report = torch.library.opcheck(getattr(torch.ops.fastgpt, name).default, arguments)
    assert set(report.values()) == {"SUCCESS"}
    assert len(report) == 4


def test_every_operator_is_checked():
    assert set(CASES) == set(_library.launches)


@pytest.mark.parametrize("name", CASES)
def test_every_variant_is_checked(name):
    """What is optional is given and left out, every switch is thrown, every choice taken, every tensor empty once."""
    samples = [CASES[name](name, variant, torch.device("cpu")) for variant in CASES[name].variants]
    for position, argument in enumerate(schema(name).arguments):
        values, kind = [s[position] for s in samples], str(argument.type)
        if kind.startswith("Optional"):
            assert any(v is None for v in values), f"{argument.name} is always given"
            assert any(v is not None for v in values), f"{argument.name} is never given"
        if kind == "bool":
            assert {*values} == {True, False}, argument.name
        if kind == "List[bool]":
            for column in zip(*values):
                assert {*column} == {True, False}, argument.name
        if kind == "str":
            assert {*values} == {*CHOICES[argument.name]}, argument.name
        if argument.name in ("left", "right", "dropout_p"):
            assert len({*values}) > 1, argument.name
    assert any(any(isinstance(x, Tensor) and x.numel() == 0 for x in s) for s in samples)
    assert any(x.requires_grad for s in samples for x in s if isinstance(x, Tensor)) == (name in DIFFERENTIABLE)
