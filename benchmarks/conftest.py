"""Options and fixtures of the benchmarks.

pytest benchmarks/ --benchmark              everything that this machine can measure
pytest benchmarks/ --benchmark --quick      fewer sizes and rounds (on a CPU: tiny sizes)
pytest benchmarks/                          each file once at tiny sizes: a smoke test, part of `make test`
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import fastgpt
from benchmarks import measure as measuring
from benchmarks import summary

HERE = Path(__file__).parent
ROWS = pytest.StashKey[list[dict]]()  # every figure of this run
# Options of pytest-benchmark that ask for something that only its own tables show.
THEIR_TABLES = ("verbose", "columns", "compare", "compare_fail", "histogram", "cprofile")
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
    config.addinivalue_line("markers", "sizes(names, full, quick, cpu, smoke): parametrize by what is to be measured")
    config.stash[ROWS] = []
    rows_file = config.getoption("--benchmark-rows", default=None)
    if rows_file is not None and (rows_file.is_dir() or not rows_file.parent.is_dir()):
        raise pytest.UsageError(f"--benchmark-rows={rows_file} cannot be written: name a file in a folder that exists")
    measured = config.getoption("--benchmark", default=False)
    if measured and not has_pytest_benchmark(config):
        raise pytest.UsageError("--benchmark needs pytest-benchmark: pip install pytest-benchmark")
    if measured and any(getattr(config.option, name, None) for name in ("numprocesses", "tx")):
        raise pytest.UsageError("--benchmark measures in one process, alone on the machine: leave out xdist's -n")
    if getattr(config.option, "benchmark_only", False) and not measured:
        raise pytest.UsageError("--benchmark-only would measure nothing: these are measured by --benchmark alone")
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # threads that share cores with other processes measure these
    if not measured:
        config.option.benchmark_disable = True
    elif not any(getattr(config.option, f"benchmark_{name}", None) for name in THEIR_TABLES):
        config.option.benchmark_quiet = True  # ours says the same and more
    if only_benchmarks(config):  # `not measured` counts the skipped ones by reason
        config.option.reportchars = config.option.reportchars.replace("a", "xXfE")


def has_pytest_benchmark(config: pytest.Config) -> bool:
    """By an option of its own: under which name a plugin is registered depends on how it was loaded."""
    return hasattr(config.option, "benchmark_save")


def only_benchmarks(config: pytest.Config) -> bool:
    paths = [Path(config.invocation_params.dir, str(argument).split("::")[0]) for argument in config.args]
    return all(path.resolve().is_relative_to(HERE) for path in paths)


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.getoption("--benchmark", default=False):
        return None
    folders = (Path(module.__file__).parent for module in (fastgpt, fastgpt.kernels))
    return "measured: {} with the kernels in {}".format(*folders)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.section("benchmarks by workload")
        for line in summary.figures(measuring.environment(), rows):
            terminalreporter.line(line)
        kept = config.getoption("--benchmark-rows") or config.getoption("--benchmark-json")
        terminalreporter.line(
            f"kept; as a page with plots: python -m benchmarks.report {kept}"
            if kept
            else "not kept; --benchmark-rows=FILE.jsonl keeps them for `python -m benchmarks.report FILE.jsonl`"
        )
    skipped = terminalreporter.stats.get("skipped", ())
    if skipped and only_benchmarks(config):
        terminalreporter.section("not measured" if config.getoption("--benchmark", default=False) else "not run")
        for line in summary.left_out(report.longrepr[2].removeprefix("Skipped: ") for report in skipped):
            terminalreporter.line(line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("sizes")
    if marker is None:
        return
    config = metafunc.config
    full, quick = ("full", "quick") if torch.cuda.is_available() and not measuring.TINY else ("cpu", "smoke")
    if not config.getoption("--benchmark", default=False):
        level = "smoke"
    else:
        level = quick if config.getoption("--quick") else full
    values = marker.kwargs.get(level, marker.kwargs["smoke"])
    metafunc.parametrize(marker.args[0], values)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    impls, dtypes = config.getoption("--impl", default=None), config.getoption("--dtype", default=None)
    kept, dropped = [], []
    known = {str(item.callspec.params["impl"]) for item in items if "impl" in _params(item)}
    unknown = sorted(set(impls or ()) - known)
    if unknown and known:
        raise pytest.UsageError(
            f"--impl {unknown[0]} is none of these benchmarks'; choose from {', '.join(sorted(known))}"
        )
    for item in items:
        params = _params(item)
        wrong_impl = impls and "impl" in params and params["impl"] not in impls
        wrong_dtype = dtypes and "dtype" in params and str(params["dtype"]).removeprefix("torch.") not in dtypes
        (dropped if wrong_impl or wrong_dtype else kept).append(item)
        if "benchmark" not in getattr(item, "fixturenames", ()):
            continue
        if has_pytest_benchmark(config):
            item.add_marker(pytest.mark.benchmark(timer=measuring.timer()))
        else:
            item.add_marker(pytest.mark.skip(reason="needs pytest-benchmark, which is not installed here"))
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _params(item: pytest.Item) -> dict:
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["fastgpt"] = measuring.environment()


@pytest.fixture
def measure(benchmark, request: pytest.FixtureRequest) -> measuring.Measure:
    """Times one callable; see `benchmarks.measure.Measure`."""
    option = request.config.getoption
    return measuring.Measure(
        benchmark, quick=option("--quick", default=False), rows=request.config.stash[ROWS],
        rows_file=option("--benchmark-rows", default=None),
    )  # fmt: skip


@pytest.fixture
def measuring_now(request: pytest.FixtureRequest) -> bool:
    """True under --benchmark, False in a smoke test."""
    return request.config.getoption("--benchmark", default=False)
