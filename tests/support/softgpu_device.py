"""The `device` fixture as a simulated GPU: FASTGPT_DEVICE=softgpu pytest tests/kernels/...

Kernels are compiled for a GPU and executed by benchmarks/softgpu, on CPU tensors; tests are the same ones, at the sizes
that they have on a CPU. A test whose launches gave findings fails with them; a summary by kernel ends the run.

    SOFTGPU_ARCH      sm_80 (default), sm_86, sm_89, sm_90, sm_100
    SOFTGPU_SMS       multiprocessors (default: 4)
    SOFTGPU_SCHEDULE  forward (default), backward, turns, random, worst
    SOFTGPU_LANDING   late (default), early, random: when asynchronous copies arrive
    SOFTGPU_APPROX    0 (default), 1, -1, 2: the error of approximate functions (benchmarks/softgpu/engine.py)
    SOFTGPU_SEED      of all that is random (default: 0)
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import pytest
import torch

VARIABLE = "FASTGPT_DEVICE"
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
SIMULATORS = pytest.StashKey[list]()
SUMMARY = "softgpu"  # among a report's user_properties, which travel from xdist's workers
COLUMNS = ("launches", "CTAs", "seconds", "findings")


def chosen(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for `simulate`.

    Raises:
        pytest.UsageError: a variable has a value that it cannot have.
    """
    from benchmarks.softgpu.engine import LANDINGS, SCHEDULES, Settings

    def one_of(name: str, known: tuple[str, ...]) -> str:
        value = environment.get(name) or known[0]
        if value not in known:
            raise pytest.UsageError(f"{name}={value} is none of {', '.join(known)}")
        return value

    def number(name: str, default: int, least: int) -> int:
        value = environment.get(name) or str(default)
        if not value.isdecimal() or int(value) < least:
            raise pytest.UsageError(f"{name}={value} must be a whole number, {least} or more")
        return int(value)

    one_of(VARIABLE, ("softgpu",))
    num_sms = number("SOFTGPU_SMS", 4, 1)
    settings = Settings(
        schedule=one_of("SOFTGPU_SCHEDULE", SCHEDULES), landing=one_of("SOFTGPU_LANDING", LANDINGS),
        approx=int(one_of("SOFTGPU_APPROX", ("0", "1", "-1", "2"))), seed=number("SOFTGPU_SEED", 0, 0),
        num_sms=num_sms,
    )  # fmt: skip
    capability = int(one_of("SOFTGPU_ARCH", ARCHS).removeprefix("sm_"))
    return {"capability": capability, "num_sms": num_sms, "settings": settings}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if torch.cuda.is_available():
        raise pytest.UsageError(f"{VARIABLE}=softgpu simulates a GPU, and this machine has one: unset {VARIABLE}")
    chosen(os.environ)


def pytest_report_header() -> str:
    arguments = chosen(os.environ)
    return f"softgpu: kernels compiled for sm_{arguments['capability']} are executed by {arguments['settings']}"


@pytest.fixture
def simulated_gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, where kernels are executed as a GPU would. Fresh memory is poisoned."""
    pytest.importorskip("triton")
    from benchmarks.softgpu.driver import simulate

    with simulate(**chosen(os.environ)) as gpu:
        request.node.stash.setdefault(SIMULATORS, []).append(gpu)
        yield torch.device("cpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    try:
        result = yield
    finally:
        simulators = item.stash.get(SIMULATORS, [])
        item.stash[SIMULATORS] = []  # pytest keeps the item
        findings = [str(finding) for gpu in simulators for finding in gpu.findings]
        item.user_properties.append((SUMMARY, _by_kernel(simulators)))
        if findings:
            item.add_report_section("call", "softgpu", "\n".join(findings))
    if findings:
        pytest.fail("softgpu:\n" + "\n".join(findings), pytrace=False)
    return result


def _by_kernel(simulators: list[Any]) -> dict[str, list[float]]:
    """COLUMNS for each kernel."""
    table: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0])
    for gpu in simulators:
        for launch in gpu.launches:
            result = launch.result
            row = (1, result.ctas, result.seconds, len(gpu.wrong_with(launch)))
            table[launch.kernel] = [a + b for a, b in zip(table[launch.kernel], row)]
    return dict(table)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    total: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0])
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    for report in reports:
        if getattr(report, "when", None) == "call":
            for kernel, row in dict(report.user_properties).get(SUMMARY, {}).items():
                total[kernel] = [a + b for a, b in zip(total[kernel], row)]
    terminalreporter.section("softgpu: by kernel")
    terminalreporter.line("".join((f"{'kernel':40}", *(f"{column:>10}" for column in COLUMNS))))
    for kernel, (launches, ctas, seconds, findings) in sorted(total.items()):
        terminalreporter.line(f"{kernel:40}{launches:10d}{ctas:10d}{seconds:10.2f}{findings:10d}")
