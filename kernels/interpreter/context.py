"""`interpret()`: a context in which every @triton.jit kernel runs on CPU tensors, checked for stray memory accesses.

TRITON_INTERPRET=1 decides for a whole process, before triton is imported. This context decides for a block of code and
leaves the process able to compile and launch afterwards, so that one test run can interpret kernels and compile them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import _runtime, support


class OutOfBounds(RuntimeError):
    """A kernel read or wrote outside the storage of every tensor that it was given."""


# Python function -> Triton's InterpretedFunction of it; to hash a JITFunction would walk its source.
_interpreted: dict[Callable[..., Any], Any] = {}

# The interpreter has one place for the indices of the program that runs, and one language to patch: kernels of two
# threads at once would read and write each other's memory. Reentrant: a launch comes through here twice.
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def interpret(*, check_bounds: bool = True, target: _runtime.Target | None = None) -> Iterator[None]:
    """Run Triton kernels on CPU tensors inside this block.

    Args:
        check_bounds: raise `OutOfBounds` when an unmasked access leaves every tensor argument's storage. The
            interpreter itself performs such accesses silently.
        target: the GPU that tile choice sees (default: a small sm_80). The interpreter ignores what only a compiler
            knows (registers, shared memory), so any target may be tried.

    Raises:
        RuntimeError: triton is not installed.
    """
    if not support.has_triton():
        raise RuntimeError("interpret: triton is not installed; `pip install triton` (Linux)")
    pretended = contextlib.nullcontext() if target is None else _runtime.pretend(target)
    if _runtime.INTERPRETED_PROCESS:
        prepare_process()
        with pretended:
            yield
        return
    with pretended, _patched(check_bounds):
        yield


def prepare_process() -> None:
    """Mend the interpreter: `interpret()` does, and so does `fastgpt.kernels` in a process with TRITON_INTERPRET=1."""
    with _one_at_a_time:
        _mend()


@functools.cache
def _mend() -> None:
    # Triton imports this at the first launch, when the language is patched; Python 3.10 cannot inspect the patches.
    import triton.experimental.gluon  # noqa: F401

    from . import bfloat16, tf32

    bfloat16.install()
    tf32.install()
    _mend_index()
    _mend_run()


def _mend_run() -> None:
    """Let a launch wait for those of other threads."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def mended(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _one_at_a_time:
            return run(self, *args, **kwargs)

    InterpretedFunction.run = mended


def _mend_index() -> None:
    """Let a scalar of a kernel be a Python integer: `range(n)`, an index, a slice.

    The interpreter's scalars are arrays of one element. Triton 3.6 gives them to int(), and numpy 2.4 and later refuse
    arrays that have a dimension there. The language is patched anew at every launch and call of a device function.
    """
    import triton.language as tl
    from triton.runtime import interpreter as upstream

    patch_lang = upstream._patch_lang

    def mended(fn: Callable[..., Any]) -> Any:
        scope = patch_lang(fn)
        scope.set_attr(tl.tensor, "__index__", _as_int)
        return scope

    upstream._patch_lang = mended


def _as_int(scalar: Any) -> int:
    """The Python integer in a tensor of one element."""
    return int(scalar.handle.data.item())


_blocks = 0  # how many `interpret()` are open, nested or in several threads
_undo = contextlib.ExitStack()


@contextlib.contextmanager
def _patched(check_bounds: bool) -> Iterator[None]:
    """The first block patches for all that are open meanwhile, and the last one to end takes the patches off."""
    global _blocks, _undo
    with _one_at_a_time:
        if not _blocks:
            _undo = _patch(check_bounds)
        _blocks += 1
    try:
        yield
    finally:
        with _one_at_a_time:
            _blocks -= 1
            if not _blocks:
                _undo.close()


def _patch(check_bounds: bool) -> contextlib.ExitStack:
    """Let kernels run in the interpreter until what this returns is closed."""
    import triton
    import triton.language as tl
    from triton.runtime import interpreter as upstream
    from triton.runtime.jit import JITFunction

    prepare_process()

    def interpreted(jit: JITFunction) -> Any:
        if jit.fn not in _interpreted:
            _interpreted[jit.fn] = upstream.InterpretedFunction(jit.fn)
        return _interpreted[jit.fn]

    def as_int(v: Any) -> int:
        return _as_int(v) if isinstance(v, tl.tensor) else int(v)

    def tl_range(start: Any, end: Any = None, step: Any = 1, **_hints: Any) -> Iterator[Any]:
        """An int32 tensor per step, as on the GPU; upstream gives Python ints."""
        first, last = (0, start) if end is None else (start, end)
        return (upstream._implicit_cvt(i) for i in range(as_int(first), as_int(last), as_int(step)))

    def run(jit: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        # Only while a kernel runs: a module that is imported meanwhile would keep interpreted functions for good.
        with _one_at_a_time:
            triton.knobs.runtime.interpret = True
            try:
                return interpreted(jit).run(*args, grid=grid, warmup=warmup, **kwargs)
            finally:
                triton.knobs.runtime.interpret = False

    with contextlib.ExitStack() as undo:

        def patch(owner: Any, name: str, value: Any) -> None:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        # Patch the language once, not at every device-function call as upstream does.
        everything = types.FunctionType((lambda: 0).__code__, {"tl": tl, "core": tl.core})
        scope = upstream._patch_lang(everything)
        undo.callback(scope.restore)
        scope.set_attr(tl, "range", tl_range)
        patch(upstream, "_patch_lang", lambda fn: types.SimpleNamespace(restore=lambda: None))
        patch(JITFunction, "__call__", lambda jit, *args, **kwargs: interpreted(jit)(*args, **kwargs))
        patch(JITFunction, "run", run)
        patch(_runtime, "interpreting", True)
        # Raise what happened inside the kernel itself (OutOfBounds, ...), not an InterpreterError of its repr.
        patch(triton.knobs.compilation, "front_end_debugging", True)
        if check_bounds:
            _watch_memory(patch, upstream)
        return undo.pop_all()


def live_addresses(pointers: Any, mask: Any) -> np.ndarray:
    """The addresses that a load or store of the interpreter touches: those of its pointers that are masked in. 1-D."""
    shape = np.broadcast(pointers.data, mask.data).shape
    return np.broadcast_to(pointers.data, shape)[np.broadcast_to(mask.data, shape)]


def _watch_memory(patch: Callable[[Any, str, Any], None], upstream: types.ModuleType) -> None:
    """Compare every masked-in pointer of a load or store with the storages of the launch's tensor arguments."""
    builder = upstream.InterpreterBuilder
    storages: list[tuple[int, int]] = []  # [first byte, one past the last byte)
    load, store = builder.create_masked_load, builder.create_masked_store
    convert, launch = upstream._implicit_cvt, upstream.GridExecutor.__call__

    def check(pointers: Any, mask: Any, what: str) -> None:
        live = live_addresses(pointers, mask)
        if not live.size:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        low, high = int(live.min()), int(live.max()) + size
        if not any(start <= low and high <= end for start, end in storages):
            ranges = ", ".join(f"[{start:#x}, {end:#x})" for start, end in storages)
            raise OutOfBounds(f"{what} of bytes [{low:#x}, {high:#x}) outside every argument's storage: {ranges}")

    def remember(arg: Any) -> Any:
        if hasattr(arg, "untyped_storage"):
            storage = arg.untyped_storage()
            storages.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        return convert(arg)

    def start(executor: Any, *args: Any, **kwargs: Any) -> Any:
        storages.clear()
        return launch(executor, *args, **kwargs)

    def checked_load(self: Any, pointers: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        check(pointers, mask, "load")
        return load(self, pointers, mask, *args, **kwargs)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        check(pointers, mask, "store")
        return store(self, pointers, value, mask, *args, **kwargs)

    patch(builder, "create_masked_load", checked_load)
    patch(builder, "create_masked_store", checked_store)
    patch(upstream, "_implicit_cvt", remember)
    patch(upstream.GridExecutor, "__call__", start)
