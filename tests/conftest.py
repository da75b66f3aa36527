"""Fixtures that every test file shares.

`device` is where kernels run: a CUDA GPU if there is one, else the CPU with Triton's interpreter (and its memory
checker) switched on for the test, or with FASTGPT_DEVICE=softgpu the kernels compiled for a GPU and executed here
(tests/support/softgpu_device.py). The same test files serve all.
"""

from __future__ import annotations

import os
import signal
import tempfile
import zlib
from types import ModuleType

import pytest
import torch

from fastgpt.tools.budget import REPORT
from tests.support.browser import browser, opened  # noqa: F401 (fixtures)
from tests.support.dead_gpu import pytest_runtest_logfinish, pytest_runtest_logreport  # noqa: F401 (hooks)

# The interpreter's many small matrix products run slower, not faster, on contending BLAS threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
torch.set_num_threads(1)

_CACHE = tempfile.TemporaryDirectory(prefix="fastgpt-tests-")  # not the user's; removed when pytest ends
os.environ["FASTGPT_CACHE"] = _CACHE.name

# What a shell's background (SIGINT) or nohup (SIGHUP) has programs ignore stays ignored while training; here it counts.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)

DEVICE = os.environ.get("FASTGPT_DEVICE")  # "softgpu": the simulated GPU
TIMEOUT = 300.0  # seconds of one test, where the plugin is installed and nobody asked for another limit


def pytest_report_header() -> list[str]:
    report = os.environ.get(REPORT)
    return [f"{REPORT}: no verdict of the error budget fails; all are written to {report}"] if report else []


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get(REPORT):  # some tests change the folder
        os.environ[REPORT] = os.path.abspath(os.environ[REPORT])
    if DEVICE:
        config.pluginmanager.import_plugin("tests.support.softgpu_device")
    config.addinivalue_line("markers", "needs(*modules): skipped where one of these cannot be imported")
    # Not in pyproject.toml, where pytest without the plugin stops at an option that it does not know.
    if not hasattr(config.option, "timeout"):  # the plugin's
        config.addinivalue_line("markers", "timeout(seconds): of one test, where pytest-timeout is installed")
        return
    asked = config.option.timeout is not None or "PYTEST_TIMEOUT" in os.environ or config.getini("timeout")
    if not asked:
        config.option.timeout = TIMEOUT


ON_A_GPU = ("tests/kernels/", "tests/fastgpt/")  # whose results on a GPU say what the interpreter's cannot


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and this machine has none"))
        elif "device" in getattr(item, "fixturenames", ()) and item.nodeid.startswith(ON_A_GPU):
            item.add_marker(pytest.mark.gpu)
        if item.nodeid.split("[")[0] in QUICK or item.nodeid.split("::")[0] in QUICK:
            item.add_marker(pytest.mark.quick)
        if not item.module.__name__.startswith(BESIDE_THE_POINT) and _uses_the_budget(item.module):
            item.add_marker(pytest.mark.numeric)


# What `make check` runs: of each promise a test or a file that says soonest that it is broken. 20 s on two cores.
QUICK = frozenset(
    f"tests/{name}"
    for name in (
        "test_arrows.py", "test_docs.py", "test_prose.py", "fastgpt/test_surface.py",
        "kernels/attention/test_flash_attention.py::test_dtypes",
        "kernels/attention/test_flash_attention.py::test_lengths",
        "kernels/attention/test_flash_attention.py::test_grouped_queries",
        "kernels/attention/test_sdpa.py::test_causal_is_aligned_top_left",
        "kernels/attention_weights/test_weights.py::test_every_mask",
        "kernels/layer_norm/test_add_layer_norm.py::test_dtypes",
        "kernels/layer_norm/test_add_layer_norm.py::test_dropout_is_exact",
        "kernels/layer_norm/test_bad_input.py",
        "kernels/ffn/test_values.py::test_ffn",
        "kernels/ffn/test_values.py::test_dropout_and_residual",
        "kernels/linear_cross_entropy/test_values.py::test_loss_and_gradients",
        "kernels/linear_cross_entropy/test_values.py::test_cross_entropy_of_logits",
        "kernels/test_arguments.py",
        "fastgpt/nn/test_impl.py::test_auto_without_a_gpu_falls_back_and_says_why_once",
        "fastgpt/model/test_config.py", "fastgpt/model/test_tied.py",
        "fastgpt/model/test_model.py::test_equals_the_reference_model",
        "fastgpt/model/test_model.py::test_nothing_leaks_from_the_future",
        "fastgpt/model/test_one_head.py", "fastgpt/model/test_plain_loop.py",
        "fastgpt/data/test_sampler.py", "fastgpt/data/test_prefetch.py", "fastgpt/data/test_token_stream.py",
        "fastgpt/train/test_trainer.py::test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
        "fastgpt/train/test_optim.py", "fastgpt/train/test_train_config.py",
        "fastgpt/commands/test_command_line.py::test_help_and_mistakes_load_nothing_heavy",
    )
)  # fmt: skip

BESIDE_THE_POINT = (  # no result of a kernel is judged there
    "tests.benchmarks.",
    "tests.fastgpt.base.",
    "tests.fastgpt.tools.test_budget",
    "tests.fastgpt.tools.test_rounding",
)
JUDGES = {
    "assert_within_budget", "assert_all_within_budget", "assert_results_within_budget",
    "check",  # what folders call their own judge
}  # fmt: skip


def _uses_the_budget(module: ModuleType) -> bool:
    """Whether this file holds results to the error budget, itself or by a function of the files beside it."""
    for value in vars(module).values():
        home = str(getattr(value, "__module__", None))
        called = getattr(getattr(value, "__code__", None), "co_names", ())
        if home == "fastgpt.tools.budget" or (home.startswith("tests.") and not JUDGES.isdisjoint(called)):
            return True
    return False


@pytest.hookimpl(tryfirst=True)  # before fixtures, which may import them
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for module in marker.args:
            pytest.importorskip(module, reason=f"needs {module}, which is not installed here")


def pytest_runtest_teardown() -> None:
    # A GPU session runs a dozen processes on one GPU: what torch keeps of a large test would be missing to the others.
    if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > 2 << 30:
        torch.cuda.empty_cache()


@pytest.fixture
def interpreter():
    """The CPU, with the interpreter: on a GPU machine too, for what a GPU cannot show. Fresh memory is poisoned."""
    pytest.importorskip("triton")
    from fastgpt.kernels import interpret

    with poisoned_memory(), interpret():
        yield torch.device("cpu")


@pytest.fixture
def device(request: pytest.FixtureRequest):
    """Kernels run on this device: "cuda", or "cpu" through the interpreter. Fresh memory is poisoned with NaN."""
    if DEVICE:
        yield request.getfixturevalue("simulated_gpu")
        return
    if not torch.cuda.is_available():
        yield request.getfixturevalue("interpreter")
        return
    with poisoned_memory():
        yield torch.device("cuda")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed fixed by the test's own name, printed when the test fails; torch is seeded with it."""
    value = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(value)
    print(f"seed {value}")
    return value


class poisoned_memory:
    """torch.empty and its kin hand out NaN (integers: the largest value), so that a kernel that leaves a hole shows."""

    def __enter__(self) -> None:
        self.saved = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        )
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True

    def __exit__(self, *exc: object) -> None:
        torch.use_deterministic_algorithms(self.saved[0], warn_only=self.saved[1])
        torch.utils.deterministic.fill_uninitialized_memory = self.saved[2]
