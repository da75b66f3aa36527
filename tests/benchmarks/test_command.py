"""`pip install . pytest pytest-benchmark`, then `pytest benchmarks/ --benchmark`, in a clone: with nothing else there.

And the GPU machine's environment, in which nothing of the command line is installed.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks import peers, summary
from tests.support.bare_environment import ROOT, BareEnvironment, core_requirements

pytest.importorskip("triton")

COMMAND_LINE = {"tyro", "rich", "tiktoken"}  # what the package's core requires, and no kernel
TESTS_ONLY = (
    "pytest_timeout", "xdist", "hypothesis", "matplotlib", "transformers", "accelerate", "peft", "tensorboard",
    "zstandard", "ruff",
)  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What a user has cloned, as far as it is installed and measured."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("kernels", "fastgpt", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory, clone) -> BareEnvironment:
    environment = BareEnvironment(
        tmp_path_factory.mktemp("environment"), [*core_requirements(), "pytest", "pytest-benchmark"]
    )
    environment.install(clone)
    return environment


def missing(environment: BareEnvironment, modules, cwd) -> set[str]:
    code = f"import importlib.util as u; print(*(m for m in {sorted(modules)!r} if u.find_spec(m) is None))"
    return set(environment.run("python", "-c", code, cwd=cwd).stdout.split())


def section(output: str, title: str) -> list[str]:
    """The lines below pytest's heading `title`, down to the next heading."""
    return re.split(r"^=+ .* =+$", re.split(rf"^=+ {title} =+$", output, flags=re.M)[1], flags=re.M)[0].splitlines()


@pytest.mark.parametrize("how", ["--quick", pytest.param("", marks=pytest.mark.slow)])
def test_the_command_ends_with_its_report(installed, clone, how, tmp_path):
    assert missing(installed, TESTS_ONLY, tmp_path) == set(TESTS_ONLY)
    results = tmp_path / "results.json"
    done = installed.run("pytest", "benchmarks/", "--benchmark", *how.split(), f"--benchmark-json={results}", cwd=clone)
    assert done.returncode == 0, done.stdout
    assert f"measured: {clone}/fastgpt with the kernels in {clone}/kernels" in done.stdout
    figures = section(done.stdout, "benchmarks by workload")
    assert max(len(line) for line in figures if str(results) not in line) <= summary.WIDTH
    titles = [line for line in figures if re.match(r"\w+ \S+ b?float(16|32) \w+=", line)]
    assert len(titles) == len(set(titles)) >= 10
    measured = json.loads(results.read_text())["benchmarks"]
    assert sorted(titles) == sorted({b["group"] for b in measured})
    implementations = [(b["group"], b["extra_info"]["impl"]) for b in measured]
    assert len(implementations) == len(set(implementations)) > len(titles)

    # What was skipped: each reason once, and in it each implementation once.
    assert "SKIPPED" not in done.stdout
    left_out = [line for line in section(done.stdout, "not measured") if line.strip()]
    assert len(left_out) <= 8
    text = " ".join(" ".join(left_out).split())
    absent = {
        p.name for found in peers.PEERS.values() for p in found.values() if p.version is None and p.name != peers.OURS
    }
    for name in absent | {"sdpa-flash", "sdpa-cudnn", "fastgpt", "torch-compile"}:
        assert len(re.findall(rf"(?<=[ ,]){name}(?=,| \d| *$)", text)) == 1, (name, text)
    assert sum(int(n) for n in re.findall(r"(?m)^ *(\d+)  \w", "\n".join(left_out))) == skipped(done.stdout)

    report = installed.run("python", "-m", "benchmarks.report", results, cwd=clone)
    assert report.returncode == 0, report.stdout
    plots = len(list((tmp_path / "results").glob("*.svg")))
    assert plots > 0 or how == "--quick"  # one size of each
    assert report.stdout.endswith(f", {plots} plots\n")
    assert "## attention, forward, bfloat16" in (tmp_path / "results" / "report.md").read_text()


def skipped(output: str) -> int:
    return int(re.search(r"(\d+) skipped", output)[1])


def test_installed_beside_the_clone_and_not_mixed_with_it(installed, clone, tmp_path):
    """In the clone its own package and kernels, elsewhere the installed ones."""
    code = "import fastgpt, fastgpt.kernels.reference as k; print(fastgpt.__file__); print(k.__file__)"
    for cwd, folders in (
        (clone, [clone / "fastgpt/__init__.py", clone / "kernels/reference.py"]),
        (tmp_path, [installed.site_packages / f"fastgpt/{name}" for name in ("__init__.py", "kernels/reference.py")]),
    ):
        assert installed.run("python", "-c", code, cwd=cwd).stdout.split() == [str(f) for f in folders]


def test_collects_without_the_command_line(tmp_path):
    environment = BareEnvironment(tmp_path, [*core_requirements(), "pytest", "pytest-benchmark"], without=COMMAND_LINE)
    assert missing(environment, COMMAND_LINE, tmp_path) == COMMAND_LINE
    done = environment.run("pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "benchmarks", "tests", cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "tests/kernels/attention/test_flash_attention.py::" in done.stdout
    # Whole files are left out only where they are about what is missing.
    left_out = re.findall(r"^SKIPPED \[\d+\] (\S+?):", done.stdout, re.M)
    assert not [f for f in left_out if f.startswith(("tests/kernels", "benchmarks", "tests/benchmarks"))]


def test_without_pytest_benchmark(tmp_path):
    """Kernels' tests need pytest alone; benchmarks are skipped, or say what --benchmark needs."""
    environment = BareEnvironment(tmp_path, [*core_requirements(), "pytest"], without=COMMAND_LINE)
    options = ("-q", "-p", "no:cacheprovider")
    done = environment.run("pytest", *options, "tests/kernels/test_library.py", "benchmarks/test_ffn.py", cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert re.search(r"SKIPPED \[6\] .*needs pytest-benchmark", done.stdout)
    done = environment.run("pytest", *options, "benchmarks/test_ffn.py", "--benchmark", cwd=ROOT)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "pip install pytest-benchmark" in done.stdout


def test_plugins_may_be_named_one_by_one():
    """As the GPU session does, for which every other plugin's import is time lost."""
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_benchmark.plugin"]
    # Where it thinks that it is a worker of this run's xdist, pytest-benchmark measures nothing.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [*command, "benchmarks/test_layer_norm.py", "--benchmark", "--quick", "--impl", "eager"],
        cwd=ROOT, env=environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "benchmarks by workload" in done.stdout
    assert "12 passed" in done.stdout


def _catches_import_errors(node: ast.AST) -> bool:
    return isinstance(node, ast.Try) and any(
        isinstance(handler.type, ast.Name) and handler.type.id == "ImportError" for handler in node.handlers
    )


@pytest.mark.parametrize("folder", ["kernels", "benchmarks", "tests/kernels", "tests/support"])
def test_nothing_of_the_command_line_is_imported(folder):
    """Inside functions too, where no ImportError is caught."""
    forbidden = {*COMMAND_LINE, *TESTS_ONLY, "fastgpt.cli", "fastgpt.commands", "fastgpt.data.tokenizer"} - {
        "matplotlib"
    }
    for file in (ROOT / folder).rglob("*.py"):
        if file.name == "command.py":  # runs the command line, for its own tests
            continue
        tree = ast.parse(file.read_text())
        tried = {id(node) for block in ast.walk(tree) if _catches_import_errors(block) for node in block.body}
        for node in ast.walk(tree):
            if id(node) in tried:
                continue
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                parts = name.split(".")
                prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
                assert not prefixes & forbidden, f"{file.relative_to(ROOT)}:{node.lineno} imports {name}"


def test_tests_have_a_time_limit(pytestconfig):
    if not hasattr(pytestconfig.option, "timeout"):
        pytest.skip(f"pytest-timeout is not installed beside pytest {metadata.version('pytest')}")
    assert pytestconfig.option.timeout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--benchmark-only"], "--benchmark-only would measure nothing"),
        (["--benchmark", "-n", "2"], "leave out xdist's -n"),
        (["--benchmark", "--tx", "2*popen", "--dist", "load"], "leave out xdist's -n"),
        (["--benchmark", "--impl", "eagre"], "--impl eagre is none of these benchmarks'; choose from compile, eager, "),
        (["--benchmark", "--benchmark-rows=/nowhere/rows.jsonl"], "name a file in a folder that exists"),
    ],
)
def test_what_would_end_well_without_a_figure_is_refused(options, said):
    pytest.importorskip("pytest_benchmark")
    if "-n" in options or "--tx" in options:
        pytest.importorskip("xdist")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/test_ffn.py", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert said in done.stderr + done.stdout
