"""A CUDA GPU that is not there, for trying a GPU session on any machine: an H100 whose kernels do nothing.

`install()` makes torch believe in one GPU. Tensors "on" it are CPU tensors that are marked; torch's operations compute
them on the CPU as long as they are small, and leave memory as it comes where they are large. Triton runs as it is, its
own driver and launchers included, over a libcuda that does nothing (`benchmarks/softgpu/libcuda.c`), so that which
kernels are compiled, with which specialisations, and which launchers are built, is exactly what a GPU would see.

Three uses, chosen by the variable FASTGPT_FAKE_GPU:
    1                  run: kernels are compiled, or come from Triton's cache, and do nothing
    record:FOLDER      kernels are not compiled; what would have been is written to FOLDER, for `scripts/gpu/cache.py`
    execute:FILE       kernels are compiled to PTX, and executed by benchmarks/softgpu; what it finds is appended to
                       FILE, for `scripts/gpu/rehearse.py`
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import runpy
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CAPABILITY, SMS = (9, 0), 132
COMPUTED = 1 << 21  # elements of an operation's inputs up to which it is computed
EXECUTED = 1 << 24  # the same where kernels are executed: more than a rehearsal's tensors have
PROPERTIES = types.SimpleNamespace(
    name="a fake H100", major=9, minor=0, multi_processor_count=SMS, total_memory=80 << 30, L2_cache_size=50 << 20,
    warp_size=32, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536,
)  # fmt: skip


def install() -> None:
    import torch._dynamo

    load_driver()
    _patch_tensor()
    patch_cuda()
    _patch_autocast()
    torch.nn.attention._sdpa_kernel = lambda *_, **__: None  # the CPU has none of CUDA's backends to choose from
    _patch_profiler()
    if not __debug__:  # no assertions, so that every launch of a test is reached: then not this one either
        torch.testing.assert_close = lambda *_, **__: None
    _patch_tracers()
    torch.compile = lambda model=None, **_: model if model is not None else (lambda f: f)
    warnings.filterwarnings("ignore", message="CUDA initialization")  # autograd counts GPUs by way of the runtime
    mode, _, where = os.environ.get("FASTGPT_FAKE_GPU", "").partition(":")
    FakeGpu(EXECUTED if mode == "execute" else COMPUTED).__enter__()
    if mode != "execute":
        _let_tokens_be_drawn()
    if mode == "record":
        _record(Path(where))
    elif mode == "execute":
        _execute(Path(where))


def load_driver() -> Path:
    """Load the driver that does nothing, built if that has not been done, for all, and tell Triton where it is."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "softgpu" / "libcuda.py"
    libcuda = types.SimpleNamespace(**runpy.run_path(str(path)))  # by path: the tree's root is not always on sys.path
    libcuda.load()
    os.environ[libcuda.VARIABLE] = str(libcuda.folder())
    return libcuda.folder() / "libcuda.so.1"


# ---- tensors ---------------------------------------------------------------------------------------------------------


def marked(tensor: torch.Tensor) -> bool:
    """Is this tensor "on the GPU"? Views share the storage, and with it the mark; wrappers have neither."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if torch._is_functional_tensor(tensor):
        tensor = torch._from_functional_tensor(tensor)
    try:
        return getattr(tensor.untyped_storage(), "on_fake_gpu", False)
    except (NotImplementedError, RuntimeError):  # a tensor without a storage of its own
        return False


def mark(tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided:
        tensor.untyped_storage().on_fake_gpu = True
    return tensor


class FakeGpu(TorchDispatchMode):
    """Sends operations for the GPU to the CPU, and marks what they return; those of more elements compute nothing."""

    def __init__(self, most: int = COMPUTED) -> None:
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch._C._len_torch_dispatch_stack():  # fake tensors, tracing: shapes only, on any device
            return func(*args, **kwargs)
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        asked = kwargs.get("device")
        if any(t.is_meta or isinstance(t, torch._subclasses.FakeTensor) for t in tensors):
            return func(*args, **kwargs)
        if asked is not None and torch.device(asked).type == "meta":
            return func(*args, **kwargs)
        on_gpu = any(map(marked, tensors)) if asked is None else torch.device(asked).type == "cuda"
        if asked is not None:
            kwargs["device"] = CPU
        if func.namespace == "fastgpt":
            from fastgpt.kernels._library import launches

            with self:  # a launch allocates and calls torch like any other code
                out = launches[func._schema.name.split("::")[1]](*args, **kwargs)
        elif func is torch.ops.aten._assert_async.msg:
            return None  # of what a kernel computed
        elif not func.is_view and _elements(tensors, args) > self.most:
            out = _uncomputed(func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        return tree_map_only(torch.Tensor, mark, out) if on_gpu else out


def _elements(tensors: list[torch.Tensor], args: tuple) -> int:
    if tensors:
        return sum(t.numel() for t in tensors)
    sizes = args[0] if args and isinstance(args[0], list | tuple) else ()
    return functools.reduce(lambda a, b: a * b, (s for s in sizes if isinstance(s, int)), 1)


def _uncomputed(func: Any, args: tuple, kwargs: dict) -> Any:
    """What `func` returns, in shape, dtype and strides; the values are whatever memory holds."""
    schema = func._schema
    if schema.is_mutable:
        bound = dict(zip((a.name for a in schema.arguments), args)) | kwargs
        written = {next(iter(a.alias_info.before_set)): bound.get(a.name) for a in schema.arguments
                   if a.alias_info is not None and a.alias_info.is_write and a.alias_info.before_set}  # fmt: skip
        results = [written[next(iter(r.alias_info.before_set))] for r in schema.returns if r.alias_info is not None]
        if len(results) == len(schema.returns):
            return results[0] if len(results) == 1 else tuple(results) or None
    try:
        meta_kwargs = kwargs | ({"device": "meta"} if "device" in kwargs or not args else {})
        out = func(*tree_map_only(torch.Tensor, _to_meta, args), **tree_map_only(torch.Tensor, _to_meta, meta_kwargs))
    except Exception:
        return func(*args, **kwargs)  # has to know values, or has no meta implementation
    return tree_map_only(
        torch.Tensor, lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="cpu"), out
    )


def _to_meta(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="meta")


def _patch_tensor() -> None:
    """What Python asks of a tensor, and the conversions that torch answers without its dispatcher."""
    base = torch._C.TensorBase
    Tensor = torch.Tensor
    Tensor.device = property(lambda t: GPU if base.device.__get__(t) == CPU and marked(t) else base.device.__get__(t))
    Tensor.is_cuda = property(lambda t: base.is_cuda.__get__(t) or t.device == GPU)
    Tensor.is_cpu = property(lambda t: base.is_cpu.__get__(t) and not marked(t))
    Tensor.get_device = lambda t: 0 if t.is_cuda else -1

    def indexed(value: Any) -> Any:
        """torch asks the CUDA runtime for the index that "cuda" leaves out."""
        if isinstance(value, str) and value.startswith("cuda"):
            return GPU
        return GPU if isinstance(value, torch.device) and value.type == "cuda" else value

    to, cpu = Tensor.to, Tensor.cpu

    def converted(t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args, kwargs = tuple(map(indexed, args)), {k: indexed(v) for k, v in kwargs.items()}
        if CPU in (*args, kwargs.get("device")) or "cpu" in (*args, kwargs.get("device")):
            return to(copied(t), *args, **kwargs)
        return to(t, *args, **kwargs)

    def copied(t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.ops.aten._to_copy(t, device=CPU) if marked(t) else cpu(t)

    Tensor.to, Tensor.cpu = converted, copied
    Tensor.cuda = lambda t, *_, **__: converted(t, GPU)

    def lifted(function: Any) -> Any:
        """torch.tensor and its kin copy to the device with their own call of the CUDA runtime."""

        @functools.wraps(function)
        def make(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
            out = function(*args, **kwargs)
            return mark(out) if device is not None and torch.device(device).type == "cuda" else out

        return make

    torch.tensor, torch.as_tensor, torch.asarray = map(lifted, (torch.tensor, torch.as_tensor, torch.asarray))
    new_tensor = Tensor.new_tensor
    Tensor.new_tensor = lambda t, *a, **k: mark(new_tensor(t, *a, **k)) if marked(t) else new_tensor(t, *a, **k)


# ---- torch.cuda ------------------------------------------------------------------------------------------------------


class FakeEvent:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: FakeEvent) -> float:
        return max((end.at - self.at) * 1e3, 1e-3)

    def synchronize(self) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True


class FakeStream:
    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> FakeEvent:
        return event or FakeEvent()


class FakeGraph:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def replay(self) -> None: ...

    def reset(self) -> None: ...


def patch_cuda() -> None:
    cuda = torch.cuda
    context = lambda *_, **__: contextlib.nullcontext()  # noqa: E731
    nothing = lambda *_, **__: None  # noqa: E731
    answers = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "is_bf16_supported": True, "is_current_stream_capturing": False, "get_device_capability": CAPABILITY,
        "get_device_properties": PROPERTIES, "get_device_name": PROPERTIES.name, "memory_allocated": 0,
        "max_memory_allocated": 1 << 20, "memory_reserved": 0, "max_memory_reserved": 1 << 20,
        "mem_get_info": (80 << 30, 80 << 30), "get_arch_list": ["sm_90"],
    }  # fmt: skip
    for name, value in answers.items():
        setattr(cuda, name, lambda *_, value=value, **__: value)
    for name in (
        "_lazy_init", "init", "synchronize", "empty_cache", "reset_peak_memory_stats", "set_device", "_sleep",
        "manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all", "ipc_collect",
    ):  # fmt: skip
        setattr(cuda, name, nothing)
    cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    cuda.get_rng_state_all = lambda: [cuda.get_rng_state()]
    cuda.Event, cuda.Stream, cuda.CUDAGraph = FakeEvent, FakeStream, FakeGraph
    cuda.current_stream = cuda.default_stream = lambda *_: FakeStream()
    cuda.stream, cuda.graph, cuda.device, cuda.device_of = context, context, context, context
    torch.accelerator.synchronize = nothing
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    torch._C._cuda_getDevice = lambda: 0
    from torch._subclasses import fake_tensor

    fake_tensor.init_gpu_context = nothing


def _patch_autocast() -> None:
    """torch.autocast("cuda") is the CPU's, under the name that was asked for."""
    modes = torch.amp.autocast_mode

    class autocast(modes.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast = torch.amp.autocast = modes.autocast = autocast
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        function = getattr(torch, name)
        mapped = lambda device="cuda", f=function: f("cpu" if device == "cuda" else device)  # noqa: E731
        setattr(torch, name, mapped)


def _patch_profiler() -> None:
    import torch.profiler as profiler

    class profile(profiler.profile):
        def __init__(self, *, activities: Any = None, **kwargs: Any) -> None:
            super().__init__(activities=[profiler.ProfilerActivity.CPU], **kwargs)

    profiler.profile = profile


def _patch_tracers() -> None:
    """What traces with modes of its own, which do not agree with ours: in its place, the launches that it makes."""
    import torch.nn.attention.flex_attention as flex
    from torch.nn.attention.bias import CausalBias

    def called_both_ways(op: Any, args: tuple, kwargs: dict | None = None, **_: Any) -> None:
        outs = op(*args, **(kwargs or {}))
        outs = [t for t in (outs if isinstance(outs, tuple) else (outs,)) if t is not None and t.requires_grad]
        inputs = [t for t in args if isinstance(t, torch.Tensor) and t.requires_grad]
        if outs and inputs:
            torch.autograd.grad(outs, inputs, [torch.ones_like(t) for t in outs], allow_unused=True)

    def no_flex(*_: Any, **__: Any) -> None:
        raise RuntimeError("flex_attention needs torch.compile, which does nothing on a GPU that is not there")

    torch.library.opcheck = called_both_ways
    torch.export.export = lambda module, *_, **__: types.SimpleNamespace(module=lambda: module, graph=None)
    flex.flex_attention = no_flex
    CausalBias.__new__ = lambda cls, *_, **__: torch.Tensor._make_subclass(cls, torch.empty(0))


def _let_tokens_be_drawn() -> None:
    """Where no kernel computes, logits are what memory holds; generate would refuse them, and launch nothing more."""
    from sitecustomize import AfterImport

    def patch(sampling: Any) -> None:
        sampling._refuse = lambda undrawable: None

    sys.meta_path.insert(0, AfterImport("fastgpt.model.sampling", patch))


# ---- recording -------------------------------------------------------------------------------------------------------


class SpecPickler(pickle.Pickler):
    """Kernels among the constants (a device function as an argument) are written by name."""

    def persistent_id(self, value: Any) -> Any:
        from triton.runtime.jit import JITCallable

        return (value.fn.__module__, value.fn.__qualname__) if isinstance(value, JITCallable) else None


class NoKernel:
    """Stands for a compiled kernel; a launch of it does nothing."""

    function = packed_metadata = metadata = None
    launch_metadata = run = staticmethod(lambda *_, **__: None)


def _record(folder: Path) -> None:
    """Write what Triton would compile instead of compiling it, each specialisation once a process."""
    import triton.runtime.jit as jit

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{os.getpid()}-{time.time_ns()}.specs"

    def note(
        self: Any, key: Any, signature: Any, device: Any, constexprs: Any, options: Any, attrs: Any, *_: Any
    ) -> Any:
        self.device_caches[device][0][key] = NoKernel
        target = self.device_caches[device][2]  # not always this GPU: some tests compile for others
        target = (target.backend, target.arch, target.warp_size)
        spec = (self.fn.__module__, self.fn.__qualname__, signature, constexprs, attrs, dict(options.__dict__), target)
        pickled = io.BytesIO()
        SpecPickler(pickled).dump(spec)
        with file.open("ab") as records:
            records.write(len(pickled.getvalue()).to_bytes(8, "big") + pickled.getvalue())
        return NoKernel

    jit.JITFunction._do_compile = note


# ---- executing -------------------------------------------------------------------------------------------------------


_for_good = contextlib.ExitStack()  # never closed


def _execute(file: Path) -> None:
    """Let the machine of benchmarks/softgpu execute what is launched, for as long as this process lives."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.append(root)
    from benchmarks.softgpu.driver import Driver, Settings, Simulator, attached
    from benchmarks.softgpu.storages import poisoned_memory

    class Gpu(Driver):
        def get_active_torch_device(self) -> torch.device:
            return GPU

    def tell(launch: Any) -> None:
        simulator.launches.clear()  # a session makes thousands
        with file.open("a") as lines:
            for finding in simulator.wrong_with(launch):
                lines.write(json.dumps({"kernel": launch.kernel, "finding": str(finding)}) + "\n")

    def target() -> Any:
        from fastgpt.kernels._runtime import Target  # not before: it may be what imports torch just now

        return Target("cuda", f"sm_{10 * CAPABILITY[0] + CAPABILITY[1]}", SMS)

    simulator = Simulator(Settings(num_sms=SMS))
    simulator.on_launch = tell
    _for_good.enter_context(attached(simulator, Gpu(target)))
    _for_good.enter_context(poisoned_memory())
    _patch_roundings()


def _patch_roundings() -> None:
    """A run with roundings sets modes aside, since some show it tensors without memory: not this one."""
    from fastgpt.tools import rounding

    leaf = rounding._leaf

    def on_the_cpu(x: Any, coins: Any) -> Any:
        if isinstance(x, torch.Tensor) and marked(x):
            x = torch.ops.aten._to_copy(x.detach(), device=CPU).requires_grad_(x.requires_grad)
        return leaf(x, coins)

    rounding._disable_current_modes, rounding._leaf = contextlib.nullcontext, on_the_cpu
