"""Tensors on a CUDA GPU that is not there, without data: what torch's tracers see of a call on one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

CUDA = torch.device("cuda", 0)


def fake_cuda(mode: FakeTensorMode, x: Tensor) -> Tensor:
    """Shape, strides and dtype of x, on `CUDA`; it wants no gradient, for which autograd would look for the GPU."""
    with mode:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=CUDA)


@contextlib.contextmanager
def skip_where_torch_cannot() -> Iterator[None]:
    """Skip the test where a torch that was built without CUDA cannot even index such a tensor."""
    try:
        yield
    except Exception as error:
        if torch.version.cuda is None and "not linked with support for cuda" in str(error):
            pytest.skip("this torch was built without CUDA")
        raise


class Called(torch.nn.Module):
    """A function, as torch.export takes it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def compiled(function: Callable[..., Any], *args: Tensor) -> Any:
    """By dynamo, which must get through in one graph; what it returns is called."""
    torch._dynamo.reset()
    return torch.compile(function, backend="eager", fullgraph=True)(*args)


def exported(function: Callable[..., Any], *args: Tensor) -> Any:
    return torch.export.export(Called(function), args, strict=False)


def exported_by_dynamo(function: Callable[..., Any], *args: Tensor) -> Any:
    torch._dynamo.reset()
    return torch.export.export(Called(function), args, strict=True)


def recorded(function: Callable[..., Any], *args: Tensor) -> Any:
    return make_fx(function)(*args)


TRACERS = {f.__name__: f for f in (compiled, exported, exported_by_dynamo, recorded)}
