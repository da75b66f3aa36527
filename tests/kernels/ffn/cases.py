"""Inputs, gradients and exact results that the FFN's tests share."""

import torch

from fastgpt.kernels import gelu_ffn, linear_gelu, reference
from tests.support.budget import exactly

NAMES = ("out", "dx", "dw1", "db1", "dw2", "db2")


def ffn_inputs(device, dtype=torch.float32, shape=(2, 19, 40), d_hidden=72, d_out=24, biases=(True, True), grad=True):
    """[x, w1, b1, w2, b2] of about unit-sized results."""
    d_in = shape[-1]
    x = torch.randn(shape)
    w1, b1 = torch.randn(d_hidden, d_in) / max(d_in, 1) ** 0.5, torch.randn(d_hidden)
    w2, b2 = torch.randn(d_out, d_hidden) / max(d_hidden, 1) ** 0.5, torch.randn(d_out)
    tensors = [x, w1, b1 if biases[0] else None, w2, b2 if biases[1] else None]
    return [t if t is None else t.to(device, dtype).requires_grad_(grad) for t in tensors]


def copies(tensors, dtype):
    """Leaves of another dtype with the same values."""
    return [None if t is None else t.detach().to(dtype).clone().requires_grad_(t.requires_grad) for t in tensors]


def out_and_grads(function, tensors, dout, *args, **options):
    """[out, a gradient or None for each tensor]."""
    out = function(*tensors, *args, **options)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, dout.to(out.dtype)))
    return [out, *(next(grads) if t is not None and t.requires_grad else None for t in tensors)]


def three_ways(tensors, dout, *args, reference_options=None, function="gelu_ffn", **options):
    """(ours, torch in the same dtype, exactly): out and gradients of each."""
    ours_function = {"gelu_ffn": gelu_ffn, "linear_gelu": linear_gelu}[function]
    plain = getattr(reference, function)
    told = options if reference_options is None else reference_options
    told = {k: v for k, v in told.items() if k not in ("path", "recompute")}

    def eager(tensors, dout, told):
        return out_and_grads(plain, tensors, dout, *args, **told)

    ours = out_and_grads(ours_function, tensors, dout, *args, **options)
    return ours, eager(tensors, dout, told), exactly(eager, tensors, dout, told)


def exactly_ffn(tensors, dout):
    """Out and gradients of the plain layer."""
    return exactly(lambda tensors, dout: out_and_grads(reference.gelu_ffn, tensors, dout), tensors, dout)
