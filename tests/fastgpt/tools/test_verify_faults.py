"""The self-check is itself put to the test: each of these faults, planted above the device code, makes it fail.

Faults of device code are planted by tests/mutants; those of the layers above it are planted here, by wrapping what
`fastgpt.kernels` exports, or what an operator's autograd calls.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path

import pytest
import torch

from fastgpt import kernels
from fastgpt.kernels import reference
from fastgpt.tools import verify
from tests.mutants import plant
from tests.mutants.faults import MUTANTS

pytest.importorskip("triton")

from fastgpt.kernels.attention import op as attention
from fastgpt.kernels.ffn import op as ffn
from fastgpt.kernels.layer_norm import op as norm
from fastgpt.kernels.linear_cross_entropy import logits_op
from fastgpt.kernels.linear_cross_entropy import op as loss

cpu = torch.device("cpu")


def first_failure(kernel: str, dtype: str = "float32") -> verify.Row | None:
    """The first row of a kernel's self-check that is not ok, in one dtype: a fault need not be noticed twice."""
    with kernels.interpret(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        torch.manual_seed(0)
        rows = (verify._checked(case, dtype, cpu) for case in list(verify.CASES[kernel](1)))
        return next((row for row in rows if not row.ok), None)


class Wrong(torch.autograd.Function):
    """The identity, whose backward hands what it gets through `change`."""

    @staticmethod
    def forward(ctx, change, *tensors):
        ctx.change = change
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        return None, *ctx.change(*grads)


def given(**changes):
    """Arguments replaced, where they are given: by a value, or by a function of the old one and of all others."""

    def wrap(right, **arguments):
        new = {k: v(arguments) if callable(v) else v for k, v in changes.items() if k in arguments}
        return right(**arguments | new)

    return wrap


def gradient(change, *names):
    """What `change` makes of the gradients of these arguments, as far as they are given."""

    def wrap(right, **arguments):
        found = [name for name in names if name in arguments]
        passed = Wrong.apply(change, *(arguments[name] for name in found))
        return right(**arguments | dict(zip(found, passed)))

    return wrap


def result(change):
    """The first result, and the arguments, through `change`."""

    def wrap(right, **arguments):
        out = right(**arguments)
        return (change(out[0], arguments), *out[1:]) if isinstance(out, tuple) else change(out, arguments)

    return wrap


def second_result(change):
    def wrap(right, **arguments):
        out = right(**arguments)
        return (out[0], change(out[1])) if isinstance(out, tuple) else out

    return wrap


def zero(*grads):
    return tuple(torch.zeros_like(g) for g in grads)


def swap(a, b):
    return b, a


def of_float16(change):
    """Only where the inputs are float16."""
    return result(lambda out, arguments: change(out) if out.dtype == torch.float16 else out)


def reseeded(right, **arguments):
    torch.manual_seed(1)
    return right(**arguments)


def no_maximum(right, **arguments):
    """Softmax as it is written: exp overflows."""
    if not arguments.get("return_lse"):
        return right(**arguments)
    out, lse = right(**arguments)
    return out * torch.where(lse[..., None] > 88, torch.inf, 1.0).to(out.dtype), lse


def heads_by_turns(x):
    """Key head h % H_kv in the place of h // group."""
    k, h = x
    return k.repeat(1, h // k.shape[1], 1, 1)


def by_turns(right, **arguments):
    names = ("q", "k", "v") if "q" in arguments else ("query", "key", "value")
    h = arguments[names[0]].shape[1]
    return right(**arguments | {n: heads_by_turns((arguments[n], h)) for n in names[1:] if n in arguments})


def three_times_the_error(right, **arguments):
    """2.9 times as far from float64 as the larger of torch and of roundings."""
    name = right.__name__
    exact = getattr(reference, name)(**{k: v.double() for k, v in arguments.items()})
    torchs = getattr(reference, name)(**arguments)
    size = max((torchs - exact).abs().max().item(), 2.0**-24 * exact.abs().max().item())
    return (exact + 2.9 * size * torch.sign(torchs.double())).to(torchs.dtype)


def by_torch(right, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Causal, aligned bottom-right."""
    return kernels.flash_attention(query, key, value, causal=is_causal, dropout_p=dropout_p, softmax_scale=scale)


def in_place_only(right, **arguments):
    return (gradient(zero, "logits") if "inplace" in arguments else given())(right, **arguments)


PUBLIC = {
    "flash_attention": {
        "dropout ignored": given(dropout_p=0.0),
        "dropout of another share": given(dropout_p=0.31),
        "what dropout keeps is not scaled": result(lambda out, a: out * (1 - a.get("dropout_p", 0.0))),
        "the seed ignored": reseeded,
        "window off by one": given(window=lambda a: a["window"] + 1 if isinstance(a["window"], int) else a["window"]),
        "window's left end off by one": given(window=lambda a: (3, 0) if a["window"] == (4, 0) else a["window"]),
        "window ignored": given(window=None),
        "groups of heads by turns": by_turns,
        "documents leak": given(document_ids=None),
        "documents end to end leak": given(cu_seqlens=None),
        "key_lengths ignored": given(key_lengths=None),
        "key_starts ignored": given(key_starts=None),
        "causal for all": given(causal=True),
        "scale ignored": given(softmax_scale=None),
        "lse in base 2": second_result(lambda lse: lse * 1.4427),
        "lse has no gradient": second_result(torch.Tensor.detach),
        "lse's gradient is 0": second_result(lambda lse: Wrong.apply(zero, lse)[0]),
        "heads of 64 wrong": result(lambda out, a: out * (1.1 if a["q"].shape[-1] == 64 else 1)),
        "gradient of heads of 128 wrong": gradient(lambda g: (g * (1.1 if g.shape[-1] == 128 else 1),), "k"),
        "no maximum subtracted": no_maximum,
        "float16 overflows": of_float16(lambda out: out * 60000 * 60000 / 60000 / 60000),
        "no gradient of v": given(v=lambda a: a["v"].detach()),
        "gradient of k is 0": gradient(zero, "k"),
        "gradients of k and v swapped": gradient(swap, "k", "v"),
        "gradients of groups not summed": gradient(lambda g: (g / 2 if g.shape[1] == 2 else g,), "k"),
    },
    "scaled_dot_product_attention": {
        "dropout ignored": given(dropout_p=0.0),
        "causal, aligned bottom-right": by_torch,
        "causal ignored": given(is_causal=False),
        "attn_mask ignored": given(attn_mask=None),
        "scale ignored": given(scale=None),
        "groups of heads by turns": by_turns,
        "no gradient of value": given(value=lambda a: a["value"].detach()),
    },
    "attention_weights": {
        "no gradient": result(lambda out, a: out.detach()),
        "no gradient of q": given(q=lambda a: a["q"].detach()),
        "no gradient through lse": given(lse=lambda a: a["lse"].detach()),
        "gradient of k is 0": gradient(zero, "k"),
        "window ignored": given(window=None),
        "documents leak": given(document_ids=None),
        "key_lengths ignored": given(key_lengths=None),
        "key_starts ignored": given(key_starts=None),
        "documents end to end leak": given(cu_seqlens=None),
        "causal for all": given(causal=True),
        "heads in another order": given(heads=lambda a: a["heads"][::-1]),
        "rows off by one": given(rows=lambda a: slice(3, None, 3)),
        "scale ignored": given(softmax_scale=None),
    },
    "layer_norm": {
        "bias ignored": given(bias=None),
        "weight ignored": given(weight=None),
        "eps ignored": given(eps=1e-5),
        "rows of 1024 and more wrong": result(lambda y, a: y * (1.1 if a["x"].shape[-1] > 1023 else 1)),
        "bias has no gradient": given(bias=lambda a: a["bias"].detach()),
        "gradients of weight and bias swapped": gradient(swap, "weight", "bias"),
        "squares overflow in float16": result(lambda y, a: y + 0 * (a["x"] * a["x"]).to(y.dtype)),
        "out_dtype ignored, of float16": given(out_dtype=None),
        "three times torch's error": three_times_the_error,
    },
    "add_layer_norm": {
        "dropout ignored": given(dropout_p=0.0),
        "the seed ignored": reseeded,
        "the sum has no gradient": second_result(torch.Tensor.detach),
        "the sum's gradient is 0": second_result(lambda new: Wrong.apply(zero, new)[0]),
        "x and residual change places": lambda right, **a: right(**a | {"x": a["residual"], "residual": a["x"]}),
        "the sum rounded to 16 bits": second_result(lambda new: new.half().to(new.dtype)),
        "bias ignored": given(bias=None),
    },
    "linear_gelu": {
        "bias ignored": given(b=None),
        "erf for tanh": given(approximate="none"),
        "no gradient of w": given(w=lambda a: a["w"].detach()),
        "one path wrong": result(lambda out, a: out * 1.01 if a.get("path") == "cublas" else out),
    },
    "gelu_ffn": {
        "dropout ignored": given(dropout_p=0.0),
        "the seed ignored": reseeded,
        "residual ignored": given(residual=lambda a: torch.zeros_like(a["residual"])),
        "gradient of residual is 0": gradient(zero, "residual"),
        "gradient of b2 is 0": gradient(zero, "b2"),
        "b1 ignored": given(b1=None),
        "erf for tanh": given(approximate="none"),
    },
    "linear_cross_entropy": {
        "bias ignored": given(bias=None),
        "smoothing ignored": given(label_smoothing=0.0),
        "z-loss ignored": given(z_loss=0.0),
        "softcap ignored": given(softcap=None),
        "softcap's slope ignored": gradient(lambda g: (g * 1.5 if g.dim() == 2 else g,), "x"),
        "ignored rows count": given(ignore_index=-7),
        "sum for mean": given(reduction="sum"),
        "no gradient of the bias": given(bias=lambda a: a["bias"].detach()),
        "lse's gradient is 0": second_result(lambda lse: Wrong.apply(zero, lse)[0]),
        "the upstream gradient ignored": result(lambda out, a: Wrong.apply(lambda g: (torch.ones_like(g),), out)[0]),
    },
    "cross_entropy": {
        "smoothing ignored": given(label_smoothing=0.0),
        "z-loss ignored": given(z_loss=0.0),
        "softcap ignored": given(softcap=None),
        "mean for sum": given(reduction=lambda a: "mean" if a["reduction"] == "sum" else a["reduction"]),
        "lse has no gradient": second_result(torch.Tensor.detach),
        "no maximum subtracted": result(lambda out, a: out * (torch.inf if a["logits"].abs().max() > 88 else 1)),
        "in place, a gradient of 0": in_place_only,
    },
}  # fmt: skip


@pytest.mark.parametrize(("kernel", "fault"), [(k, f) for k, faults in PUBLIC.items() for f in faults])
def test_a_fault_of_a_public_function_is_noticed(kernel, fault, monkeypatch):
    right = getattr(kernels, kernel)

    @functools.wraps(right)
    def wrong(*args, **arguments):
        if kernel == "scaled_dot_product_attention":
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        else:
            names = {"attention_weights": ("q", "k", "lse"), "flash_attention": ("q", "k", "v")}.get(kernel, ("x",))
            names = ("logits", "target") if kernel == "cross_entropy" else names
        arguments = dict(zip(names, args)) | arguments
        return PUBLIC[kernel][fault](right, **arguments)

    monkeypatch.setattr(kernels, kernel, wrong)
    assert first_failure(kernel, "float16" if "float16" in fault else "float32") is not None


def other_seed(at):
    def wrap(right, *args):
        args = list(args)
        args[at] = None if args[at] is None else args[at] + 1
        return right(*args)

    return wrap


def without(at):
    """An argument of the backward operator ignored."""
    return lambda right, *args: right(*args[:at], None, *args[at + 1 :])


# (module, name of an operator in it): faults of what autograd does with it
OPERATORS = {
    "attention: backward draws another mask": ("flash_attention", attention, "attention_bwd", other_seed(10)),
    "attention: backward without a mask": ("flash_attention", attention, "attention_bwd", without(10)),
    "attention: backward forgets padding": ("flash_attention", attention, "attention_bwd", without(8)),
    "attention: backward forgets lse's gradient": ("flash_attention", attention, "attention_bwd", without(1)),
    "norm: backward draws another mask": ("add_layer_norm", norm, "_add_layer_norm_bwd", other_seed(4)),
    "norm: backward forgets the sum's gradient": ("add_layer_norm", norm, "_add_layer_norm_bwd", without(1)),
    "ffn: backward draws another mask": ("gelu_ffn", ffn, "_gelu_ffn_bwd", other_seed(6)),
    "ffn: recomputed from something else": (
        "gelu_ffn", ffn, "_gelu_ffn_bwd",
        lambda right, d, x, *a: right(d, x + (0.1 if a[3] is None else 0.0), *a),
    ),
    "loss: written over the logits, but wrong": (
        "cross_entropy", logits_op, "_overwriting_op", lambda right, rows, *a: right(rows * 1.1, *a)
    ),
    "loss: backward forgets lse's gradient": ("linear_cross_entropy", loss, "_backward_op", without(1)),
    "loss: upstream gradient ignored": (
        "linear_cross_entropy", loss, "_scale_op", lambda right, g, *a: right(torch.ones_like(g), *a)
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", OPERATORS)
def test_a_fault_of_an_operators_backward_is_noticed(fault, monkeypatch):
    kernel, module, name, wrap = OPERATORS[fault]
    monkeypatch.setattr(module, name, functools.partial(wrap, getattr(module, name)))
    assert first_failure(kernel) is not None


@pytest.mark.parametrize("kernel", ["add_layer_norm", "cross_entropy"])
def test_without_a_fault_nothing_is_noticed(kernel):
    assert first_failure(kernel) is None


def test_a_fault_of_device_code_is_noticed():
    """One of those that tests/mutants plants, in a copy of the tree: there, the self-check is not without failures."""
    (fault,) = (mutant for mutant in MUTANTS if mutant.name == "loss-padding-columns-in-the-softmax")
    check = (
        f"{Path(__file__).relative_to(plant.ROOT)}::{test_without_a_fault_nothing_is_noticed.__name__}[cross_entropy]"
    )
    with plant.copy_of_tree() as tree:
        verdict = plant.judge(dataclasses.replace(fault, tests=check), tree)
    assert verdict.outcome == "caught", verdict
