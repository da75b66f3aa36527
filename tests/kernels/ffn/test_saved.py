"""What the layer keeps between forward and backward, and the most it ever holds."""

import pytest
import torch
from torch._functorch.aot_autograd import aot_function, make_boxed_compiler
from torch._functorch.partitioners import min_cut_rematerialization_partition

from fastgpt.kernels import gelu_ffn, linear_gelu, reference
from fastgpt.tools.memory import PeakMemory
from tests.kernels.ffn.cases import ffn_inputs
from tests.support.launches import launches_skipped

M, D, HIDDEN = 64, 32, 128


def saved_bytes(function, inputs, weights):
    """Bytes of the tensors kept for backward, without weights; two views of one storage count once."""
    known, kept = {w.untyped_storage().data_ptr() for w in weights if w is not None}, {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function(*inputs)
    del out
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", ["triton", "cublas"])
def test_x_and_the_pre_activation_and_nothing_else(device, dtype, path):
    tensors = ffn_inputs(device, dtype, (M, D), HIDDEN, D)
    x, weights = tensors[0], tensors[1:]
    size = dtype.itemsize
    assert saved_bytes(lambda x: gelu_ffn(x, *weights, path=path), [x], weights) == M * (D + HIDDEN) * size
    assert saved_bytes(lambda x: gelu_ffn(x, *weights, path=path, recompute=True), [x], weights) == M * D * size
    assert saved_bytes(lambda x: linear_gelu(x, *weights[:2], path=path), [x], weights) == M * (D + HIDDEN) * size
    eager = saved_bytes(lambda x: reference.gelu_ffn(x, *weights), [x], weights)
    assert eager == M * (D + 2 * HIDDEN) * size
    seed = 2 * 8  # dropout adds its Philox key, not a mask
    assert saved_bytes(lambda x: gelu_ffn(x, *weights, path=path, dropout_p=0.1), [x], weights) == (
        M * (D + HIDDEN) * size + seed
    )
    residual = torch.randn(M, D, device=device, dtype=dtype)
    assert saved_bytes(lambda x: gelu_ffn(x, *weights, path=path, residual=residual), [x], weights) == (
        M * (D + HIDDEN) * size
    )


def test_nothing_hidden_is_saved_when_only_output_bias_learns(device):
    x, w1, b1, w2, b2 = ffn_inputs(device, torch.float32, (M, D), HIDDEN, D, grad=False)
    b2.requires_grad_()
    assert saved_bytes(lambda x: gelu_ffn(x, w1, b1, w2, b2), [x], [w1, b1, w2, b2]) == M * D * 4


def test_no_more_than_the_compilers_partitioner(device):
    """The min-cut partitioner under torch.compile keeps x and the pre-activation at least (it may recompute GELU)."""
    kept = []

    def partition(*args, **kwargs):
        forward, backward = min_cut_rematerialization_partition(*args, **kwargs)
        outputs = next(n for n in forward.graph.nodes if n.op == "output").args[0]
        kept.extend(n for n in outputs[1:] if n is not None)
        return forward, backward

    keep = make_boxed_compiler(lambda graph, _: graph)
    tensors = ffn_inputs(torch.device("cpu"), torch.float32, (M, D), HIDDEN, D)
    run = aot_function(lambda *t: reference.gelu_ffn(*t), fw_compiler=keep, bw_compiler=keep, partition_fn=partition)
    run(*tensors).sum().backward()
    shapes = [tuple(n.meta["val"].shape) for n in kept if hasattr(n, "meta") and "val" in n.meta]
    elements = sum(s[0] * s[1] for s in shapes if M in s)
    assert elements >= M * (D + HIDDEN), shapes
    device_tensors = ffn_inputs(device, torch.float32, (M, D), HIDDEN, D)
    ours = saved_bytes(lambda x: gelu_ffn(x, *device_tensors[1:]), device_tensors[:1], device_tensors[1:])
    assert ours <= elements * 4


def _peak(run):
    with PeakMemory() as memory:
        run()
    return memory.peak


def _bfloat16(*shapes, grad=True):
    return [torch.zeros(shape, dtype=torch.bfloat16, requires_grad=grad) for shape in shapes]


@pytest.mark.parametrize("d", [64, 256])
def test_peak_is_a_third_under_eager(d, monkeypatch):
    """With M = 16 d, as for d = 1024 and 16384 tokens; the kernels are skipped, products are torch's on the CPU."""
    pytest.importorskip("triton")
    from fastgpt.kernels.ffn import tiles

    monkeypatch.setattr(tiles, "_WORTH_HALVING", 1)  # as for layers of that size
    tokens = 16 * d
    tensors = _bfloat16((tokens, d), (4 * d, d), (4 * d,), (d, 4 * d), (d,))
    (dout,) = _bfloat16((tokens, d), grad=False)
    with launches_skipped():
        ours = _peak(lambda: torch.autograd.grad(gelu_ffn(*tensors), tensors, dout))
    eager = _peak(lambda: torch.autograd.grad(reference.gelu_ffn(*tensors), tensors, dout))
    given = sum(t.numel() * t.element_size() for t in (*tensors, dout))
    assert ours + given <= 0.70 * (eager + given), (ours, eager, given)


def test_backward_holds_no_hidden_matrix_that_is_of_no_use():
    """Beside what it returns: gelu_ffn the pre-activation, its gradient in its place, and the activation."""
    pytest.importorskip("triton")
    tokens, d, hidden = 512, 64, 256
    x, w1, w2 = _bfloat16((tokens, d), (hidden, d), (d, hidden))
    dout, dact = _bfloat16((tokens, d), (tokens, hidden), grad=False)
    size, gradients = tokens * hidden * 2, (tokens * d + hidden * d) * 2
    with launches_skipped():
        ffn = _peak(lambda: gelu_ffn(x, w1, None, w2, None).backward(dout))
        linear = _peak(lambda: linear_gelu(x, w1).backward(dact))
    y_and_dw2 = (tokens * d + d * hidden) * 2
    assert ffn <= 2 * size + gradients + y_and_dw2
    assert linear <= 3 * size + gradients  # the result, the pre-activation and its gradient


def test_results_are_allocated_once():
    pytest.importorskip("triton")
    x, w1, w2 = _bfloat16((4, 128, 64), (256, 64), (32, 256), grad=False)
    with launches_skipped():
        assert _peak(lambda: linear_gelu(x, w1)) == 512 * 256 * 2
        assert _peak(lambda: gelu_ffn(x, w1, None, w2, None)) == 512 * (256 + 32) * 2


@pytest.mark.gpu
def test_peak_on_a_gpu():
    d, tokens = 1024, 16384
    tensors = ffn_inputs(torch.device("cuda"), torch.bfloat16, (tokens, d), 4 * d, d)
    dout = torch.randn(tokens, d, device="cuda", dtype=torch.bfloat16)
    peaks = []
    for function in (gelu_ffn, reference.gelu_ffn):
        for t in tensors:
            t.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        function(*tensors).backward(dout)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] <= 0.70 * peaks[1], peaks
