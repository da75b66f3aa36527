"""Options and fixtures of the benchmarks.

pytest benchmarks/ --benchmark              everything that this machine can measure
pytest benchmarks/ --benchmark --quick      fewer sizes and rounds
pytest benchmarks/                          each file once at tiny sizes: a smoke test, part of `make test`
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import measure as measuring

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastgpt benchmarks")
    group.addoption("--benchmark", action="store_true", help="measure; without it every benchmark runs once, tiny")
    group.addoption("--quick", action="store_true", help="with --benchmark: fewer sizes, fewer rounds")
    group.addoption(
        "--benchmark-rows", type=Path, metavar="FILE",
        help="append each figure to FILE as a JSON line as soon as it is measured (a cut run keeps what it has)",
    )  # fmt: skip
    group.addoption("--impl", action="append", metavar="NAME", help="only these implementations (may be repeated)")
    group.addoption("--dtype", action="append", choices=sorted(DTYPES), help="only these dtypes (may be repeated)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sizes(names, full, quick, smoke): parametrize by how much is to be measured")
    if not config.getoption("--benchmark", default=False):
        config.option.benchmark_disable = True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("sizes")
    if marker is None:
        return
    config = metafunc.config
    if not config.getoption("--benchmark", default=False):
        level = "smoke"
    elif config.getoption("--quick") or not torch.cuda.is_available():
        level = "quick" if torch.cuda.is_available() else "cpu"
    else:
        level = "full"
    values = marker.kwargs.get(level, marker.kwargs["smoke"])
    metafunc.parametrize(marker.args[0], values)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    impls, dtypes = config.getoption("--impl", default=None), config.getoption("--dtype", default=None)
    kept, dropped = [], []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        wrong_impl = impls and "impl" in params and params["impl"] not in impls
        wrong_dtype = dtypes and "dtype" in params and str(params["dtype"]).removeprefix("torch.") not in dtypes
        (dropped if wrong_impl or wrong_dtype else kept).append(item)
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=measuring.timer()))
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["fastgpt"] = measuring.environment()


@pytest.fixture
def measure(benchmark, request: pytest.FixtureRequest) -> measuring.Measure:
    """Times one callable; see `benchmarks.measure.Measure`."""
    option = request.config.getoption
    return measuring.Measure(
        benchmark, quick=option("--quick", default=False), rows_file=option("--benchmark-rows", default=None)
    )


@pytest.fixture
def measuring_now(request: pytest.FixtureRequest) -> bool:
    """True under --benchmark, False in a smoke test."""
    return request.config.getoption("--benchmark", default=False)
