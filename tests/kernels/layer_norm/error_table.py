"""Print kernels/layer_norm/ERRORS.md: our errors against float64 beside torch's own.

python -m tests.kernels.layer_norm.error_table > kernels/layer_norm/ERRORS.md
"""

from __future__ import annotations

import contextlib
import itertools

import torch
import torch.nn.functional as F

from fastgpt.kernels import interpret, layer_norm, reference
from tests.support.budget import errors

from .cases import bf16, converted, evaluate, fp16, fp32, parameters

# Rows and columns, and the dtypes of (x, weight): a short row, one that the backward holds, and the longest held one.
CASES = (
    (256, 768, ((fp32, fp32), (fp16, fp16), (bf16, bf16), (bf16, fp32))),
    (16, 12288, ((fp32, fp32), (bf16, bf16))),
    (2, 65536, ((fp32, fp32), (bf16, bf16))),
)
HEADING = """\
# layer_norm: errors against float64

Maximum and RMS of |error|, divided by the largest exact value: ours / torch's own. Ours on {where}, torch's
on the CPU. Written by `python -m tests.kernels.layer_norm.error_table`.

torch's CPU backward sums dweight and dbias in the inputs' precision, which is why those are so much worse.

| rows x columns | dtype | input | result | max: ours / torch | RMS: ours / torch |
|---|---|---|---|---|---|"""


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU interpreter"
    print(HEADING.format(where=where))
    for M, N, dtypes in CASES:
        for (dtype, weight_dtype), mean in itertools.product(dtypes, (0, 1000)):
            for name, ours, torchs in compare(M, N, dtype, weight_dtype, mean, device):
                kind = name_of(dtype) + (f", weight {name_of(weight_dtype)}" if weight_dtype != dtype else "")
                print(
                    f"| {M} x {N} | {kind} | mean {mean} | {name} | {ours.max:.1e} / {torchs.max:.1e} "
                    f"| {ours.rms:.1e} / {torchs.rms:.1e} |"
                )


def compare(M, N, dtype, weight_dtype, mean, device):
    """(result, our errors, torch's errors) for y and the three gradients, relative to the largest exact value."""
    torch.manual_seed(0)
    x = (mean + torch.randn(M, N)).to(device, dtype)
    inputs = [t.requires_grad_() for t in (x, *parameters(N, weight_dtype, device))]
    dy = torch.randn(M, N).to(device, dtype)
    with interpret() if device.type == "cpu" else contextlib.nullcontext():
        ours = evaluate(lambda x, w, b: layer_norm(x, N, w, b), inputs, [dy])
    torchs = evaluate(lambda x, w, b: F.layer_norm(x, (N,), w, b), converted(inputs), [dy.cpu()])
    exact = evaluate(lambda x, w, b: reference.layer_norm(x, N, w, b), converted(inputs, torch.float64), [dy.cpu()])
    flat = (r.outputs + r.gradients for r in (ours, torchs, exact))
    for name, a, b, c in zip(("y", "dx", "dweight", "dbias"), *flat):
        scale = c.abs().max()
        yield name, errors(a.double().cpu() / scale, c / scale), errors(b.double() / scale, c / scale)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
