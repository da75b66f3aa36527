"""Attention inside torch: compile, export, opcheck, autocast, fake tensors, checkpointing, CUDA graphs, copies."""

import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fastgpt.kernels import attention_weights, flash_attention, reference, scaled_dot_product_attention
from fastgpt.kernels._random import new_seed
from tests.support.launches import launches_skipped

FWD, BWD = torch.ops.fastgpt.attention_fwd.default, torch.ops.fastgpt.attention_bwd.default


def qkv(device, T=9, B=2, H=2, H_kv=2, D=16, T_k=None, requires_grad=False, dtype=torch.float32):
    T_k = T if T_k is None else T_k
    shapes = (B, H, T, D), (B, H_kv, T_k, D), (B, H_kv, T_k, D)
    return [torch.randn(s, device=device, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


class Compilations:
    """A backend for torch.compile that counts how often it is asked to compile."""

    def __init__(self, name):
        self.count = 0
        self.backend = torch._dynamo.lookup_backend(name)

    def __call__(self, graph, inputs):
        self.count += 1
        return self.backend(graph, inputs)


class SeenOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------------------------------- compile and export


def _causal_loss(q, k, v):
    return flash_attention(q, k, v).square().sum()


def _sdpa_loss(q, k, v):
    return scaled_dot_product_attention(q, k, v, is_causal=True).square().sum()


def _weights_loss(q, k, v):
    out, lse = flash_attention(q, k, v, return_lse=True, window=10)
    return out.sum() + attention_weights(q, k, lse, window=10).square().sum()


@pytest.mark.parametrize(
    ("loss", "backend"), [(_causal_loss, "eager"), (_sdpa_loss, "aot_eager"), (_weights_loss, "aot_eager")]
)
def test_fullgraph_compile_with_dynamic_length_compiles_twice_at_most(device, seed, loss, backend):
    """Once for the first T, once for "any T": from 25 to 48 nothing is compiled."""
    torch._dynamo.reset()
    counter = Compilations(backend)
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for n, T in enumerate((24, 25, 48)):
        inputs = qkv(device, T, B=1, requires_grad=True)
        ours, expected = compiled(*inputs), loss(*inputs)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs))
        assert counter.count <= min(n + 1, 2), f"compiled anew at T = {T}"


def test_marked_dynamic_compiles_once(device, seed):
    torch._dynamo.reset()
    counter = Compilations("eager")
    compiled = torch.compile(
        lambda q, k, v, lengths: flash_attention(q, k, v, dropout_p=0.1, key_lengths=lengths),
        backend=counter, fullgraph=True, dynamic=True,
    )  # fmt: skip
    for T in (24, 25, 48):
        lengths = torch.tensor([T - 3, T], device=device)
        assert compiled(*qkv(device, T), lengths).shape == (2, 2, T, 16)
    assert counter.count == 1


def test_compile_with_documents(device, seed):
    torch._dynamo.reset()
    q, k, v = qkv(device, 20, B=1)
    starts = torch.tensor([0, 7, 20], dtype=torch.int32, device=device)
    ids = (torch.arange(20, device=device) >= 7).int()[None]
    expected = reference.flash_attention(q, k, v, cu_seqlens=starts)
    for options in ({"cu_seqlens": starts}, {"document_ids": ids}):
        compiled = torch.compile(
            lambda q, k, v, options=options: flash_attention(q, k, v, **options), backend="aot_eager", fullgraph=True
        )
        torch.testing.assert_close(compiled(q, k, v), expected)


@pytest.mark.gpu
def test_inductor_with_dynamic_length(device, seed):
    torch._dynamo.reset()
    counter = Compilations("inductor")
    compiled = torch.compile(lambda q, k, v: flash_attention(q, k, v) * 2, backend=counter, fullgraph=True)
    for T in (512, 513, 1024):
        q, k, v = qkv(device, T)
        torch.testing.assert_close(compiled(q, k, v), flash_attention(q, k, v) * 2)
    assert counter.count <= 2


def test_export_with_a_dynamic_length(device, seed):
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return flash_attention(q, k, v, return_lse=True)

    q, k, v = qkv(device, 12)
    T = torch.export.Dim("T", min=2, max=4096)
    program = torch.export.export(Attention(), (q, k, v), dynamic_shapes=({2: T},) * 3)
    assert any(node.target == FWD for node in program.graph.nodes)
    for inputs in ((q, k, v), qkv(device, 17)):
        torch.testing.assert_close(program.module()(*inputs), flash_attention(*inputs, return_lse=True))


# ------------------------------------------------------------------------------------------------------- operators


def fwd_arguments(device, everything, requires_grad):
    """Arguments of attention_fwd without, or with every, option."""
    q, k, v = qkv(device, 9, H_kv=1, requires_grad=requires_grad)
    if not everything:
        return (q, k, v, None, None, None, None, 0.25, 0.0, True, -1, -1)
    starts, lengths = torch.tensor([0, 2], device=device), torch.tensor([5, 9], device=device)
    documents = (torch.arange(18, device=device).view(2, 9) // 5).int()
    return (q, k, v, starts, lengths, documents, new_seed(device), 0.25, 0.3, False, 6, 4)


@pytest.mark.parametrize("everything", [False, True])
def test_opcheck_forward(device, seed, everything):
    torch.library.opcheck(FWD, fwd_arguments(device, everything, requires_grad=True))


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(("need_dq", "need_dkdv"), [(True, True), (True, False), (False, True)])
def test_opcheck_backward(device, seed, everything, need_dq, need_dkdv):
    arguments = fwd_arguments(device, everything, requires_grad=False)
    out, lse = FWD(*arguments)
    d_out, d_lse = torch.randn_like(out), torch.randn_like(lse) if everything else None
    torch.library.opcheck(
        BWD,
        (d_out, d_lse, *arguments[:3], out, lse, *arguments[3:], need_dq, need_dkdv),
        test_utils=(
            "test_schema",
            "test_faketensor",
        ),  # traced together with the forward above
    )


def test_opcheck_weights(device, seed):
    q, k, v = qkv(device, 9, H_kv=1, requires_grad=True)
    lse = flash_attention(q, k, v, return_lse=True)[1].detach().requires_grad_()
    operator = torch.ops.fastgpt.attention_weights.default
    torch.library.opcheck(operator, (q, k, lse, [1, 0, 1], 2, 3, 2, None, None, None, 0.25, 4, 0))


# ----------------------------------------------------------------------------------------------- tensors of all kinds


@pytest.mark.parametrize("function", [flash_attention, scaled_dot_product_attention])
def test_autocast(device, seed, function):
    q, k, v = qkv(device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        out = function(q, k.bfloat16(), v)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert q.grad.dtype == torch.float32
    assert torch.equal(out, function(q.bfloat16(), k.bfloat16(), v.bfloat16()))


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_without_values(kind):
    mode = FakeTensorMode() if kind == "fake" else torch.device("meta")
    with mode:
        q, k, v = qkv("meta" if kind == "meta" else "cpu", 4096, H=8, H_kv=2, D=64, dtype=torch.bfloat16)
        for x in (q, k, v):
            x.requires_grad_()
        out, lse = flash_attention(q, k, v, dropout_p=0.1, return_lse=True)
        assert (out.shape, out.dtype) == (q.shape, q.dtype)
        assert out.transpose(1, 2).is_contiguous()
        assert (lse.shape, lse.dtype) == (q.shape[:3], torch.float32)
        assert attention_weights(q, k, lse, rows=slice(-3, None)).shape == (2, 8, 3, 4096)
        assert scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).shape == q.shape
        (out.sum() + lse.sum()).backward()
        assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]
        assert q.grad.device == q.device


def test_functional_call_and_grad(device, seed):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(16, 16))

        def forward(self, q, k, v):
            return flash_attention(q @ self.w, k, v)

    module, inputs = Attention().to(device), qkv(device)
    w = torch.randn(16, 16, device=device)
    ours = torch.func.functional_call(module, {"w": w}, tuple(inputs))
    torch.testing.assert_close(ours, flash_attention(inputs[0] @ w, *inputs[1:]))


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_draws_the_same_dropout_again(device, seed, use_reentrant):
    q, k, v = qkv(device, 20, requires_grad=True)
    results = []
    for recompute in (True, False):
        torch.manual_seed(3)
        if recompute:
            out = checkpoint(lambda *x: flash_attention(*x, dropout_p=0.5), q, k, v, use_reentrant=use_reentrant)
        else:
            out = flash_attention(q, k, v, dropout_p=0.5)
        torch.manual_seed(99)  # whoever draws anew in the backward draws something else
        q.grad = k.grad = v.grad = None
        out.sin().sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for a, b in zip(*results):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
def test_only_the_gradients_asked_for_are_computed(device, seed, wanted):
    every = qkv(device, requires_grad=True)
    flash_attention(*every).sin().sum().backward()
    some = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(every)]
    with launches_counted() as kernels:
        flash_attention(*some).sin().sum().backward()
    assert ("attention_dq_kernel" in kernels) == (0 in wanted)
    assert ("attention_dkdv_kernel" in kernels) == (1 in wanted or 2 in wanted)
    for i, (a, b) in enumerate(zip(every, some)):
        assert (b.grad is None) if i not in wanted else torch.equal(a.grad, b.grad)


class launches_counted:
    """The names of the kernels that run inside the block."""

    def __enter__(self):
        from triton.runtime.interpreter import InterpretedFunction
        from triton.runtime.jit import JITFunction

        names, self.patch = [], pytest.MonkeyPatch()
        for owner in (JITFunction, InterpretedFunction):
            run = owner.run
            self.patch.setattr(
                owner,
                "run",
                lambda kernel, *a, run=run, **k: (names.append(kernel.fn.__name__), run(kernel, *a, **k))[1],
            )
        return names

    def __exit__(self, *exc):
        self.patch.undo()


def test_a_frozen_input_saves_nothing(device):
    with torch.no_grad():
        assert flash_attention(*qkv(device, requires_grad=True)).grad_fn is None
    assert flash_attention(*qkv(device)).grad_fn is None


@pytest.mark.parametrize("part", ["out", "lse"])
def test_double_backward_raises_and_names_the_way_out(device, seed, part):
    q, k, v = qkv(device, requires_grad=True)
    out, lse = flash_attention(q, k, v, return_lse=True)
    (d_q,) = torch.autograd.grad((out if part == "out" else lse).sin().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable once.*reference"):
        d_q.sum().backward()


def test_saved_for_backward_is_q_k_v_out_and_lse(device, seed):
    B, H, T, D = 2, 4, 30, 16
    q, k, v = qkv(device, T, B=B, H=H, H_kv=2, D=D, requires_grad=True, dtype=torch.bfloat16)
    saved = {}

    def pack(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = flash_attention(q, k, v)
    assert out.grad_fn is not None
    expected = 2 * (2 * q.numel() + 2 * k.numel()) + 4 * B * H * T  # bf16 q, out, k, v; float32 lse
    assert sum(saved.values()) == expected


# ------------------------------------------------------------------------------------------------ copies and overhead


@pytest.mark.parametrize("layout", ["(B, T, 3, H, D)", "(T, B, 3, H, D)", "(B, T, H, D)", "broadcast"])
def test_nothing_is_copied(device, seed, layout):
    """Between the projection and the merged heads, forward, no operator runs but ours and views; backward likewise.

    The gradient of a packed projection has to be put together, which autograd does in one pass (`stack`).
    """
    B, T, H, D = 2, 9, 2, 16
    shape = {"(B, T, 3, H, D)": (B, T, 3 * H * D), "(T, B, 3, H, D)": (T, B, 3 * H * D), "(B, T, H, D)": (B, T, H * D)}
    leaves = [torch.randn(shape.get(layout, (B, H, 1, D)), device=device, requires_grad=True)]
    with SeenOperators() as seen:
        if layout == "(B, T, 3, H, D)":
            q, k, v = (x.transpose(1, 2) for x in leaves[0].view(B, T, 3, H, D).unbind(2))
        elif layout == "(T, B, 3, H, D)":
            q, k, v = (x.permute(1, 2, 0, 3) for x in leaves[0].view(T, B, 3, H, D).unbind(2))
        elif layout == "(B, T, H, D)":
            leaves += [torch.randn(B, T, H * D, device=device, requires_grad=True) for _ in range(2)]
            seen.names.clear()
            q, k, v = (x.view(B, T, H, D).transpose(1, 2) for x in leaves)
        else:
            q, k, v = (leaves[0].expand(B, H, T, D) for _ in range(3))
        merged = flash_attention(q, k, v).transpose(1, 2).view(B, T, H * D)
    assert _work(seen) == ["fastgpt::attention_fwd"]
    d_merged = torch.randn(B, T, 1, device=device).expand(-1, -1, H * D)  # a stride-0 upstream gradient
    with SeenOperators() as seen:
        merged.backward(d_merged)
    work = _work(seen)
    assert work[0] == "fastgpt::attention_bwd"
    if layout == "broadcast":
        assert set(work[1:]) <= {"aten::sum", "aten::add", "aten::add_"}
    else:
        assert work[1:] == (["aten::stack"] if "3" in layout else [])


def _work(seen):
    """The operators that are not views."""
    views = ("view", "_unsafe_view", "permute", "transpose", "expand", "unbind", "select", "detach", "t")
    names = [name.removesuffix(".default") for name in seen.names]
    return [n.split(".")[0] for n in names if n.split("::")[1].split(".")[0] not in views]


def test_python_time_of_a_forward_call(device):
    """With the launch skipped: what a call costs before the GPU has anything to do. The bound is no benchmark."""
    q, k, v = qkv(device, 128, requires_grad=True)
    times = {}
    with launches_skipped() as launches:
        for name, call in {
            "flash_attention, with gradients": lambda: flash_attention(q, k, v),
            "scaled_dot_product_attention, with gradients": lambda: scaled_dot_product_attention(
                q, k, v, is_causal=True
            ),
            "flash_attention, no_grad": torch.no_grad()(lambda: flash_attention(q, k, v)),
        }.items():
            best = float("inf")
            for _ in range(30):
                start = time.perf_counter()
                for _ in range(20):
                    call()
                best = min(best, (time.perf_counter() - start) / 20)
            times[name] = best * 1e6
    assert launches
    for name, microseconds in times.items():
        print(f"{microseconds:6.1f} us  {name}")
    assert max(times.values()) < 1000


# ------------------------------------------------------------------------------------------------------ CUDA graphs


@pytest.mark.gpu
def test_cuda_graph_replays_with_fresh_dropout(device, seed):
    q, k, v = qkv(device, 300, dtype=torch.bfloat16)
    lengths = torch.tensor([200, 300], device=device)
    options = {"key_lengths": lengths, "dropout_p": 0.5}
    flash_attention(q, k, v, **options)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash_attention(q, k, v, **options)
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out)


@pytest.mark.gpu
def test_cuda_graph_of_a_training_step_equals_eager(device, seed):
    inputs = qkv(device, 300, dtype=torch.bfloat16, requires_grad=True)

    def step():
        return torch.autograd.grad(flash_attention(*inputs).float().sin().sum(), inputs)

    expected = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for a, b in zip(captured, expected):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_runs_on_the_device_of_its_inputs_and_on_the_current_stream(device, seed):
    q, k, v = qkv(device, 100)
    expected = reference.flash_attention(q, k, v)
    with torch.cuda.stream(torch.cuda.Stream()):
        ours = flash_attention(q, k, v)
        torch.cuda.current_stream().synchronize()
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2)
