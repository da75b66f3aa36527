"""The GPU session's script, without a GPU: its steps and limits, what it writes, and what is made of that."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import headline, measure
from scripts.gpu import cache, summary
from tests import conftest

ROOT = Path(__file__).parents[2]
SESSION = ROOT / "scripts" / "gpu_session.sh"


def python_that(folder: Path, does: str) -> Path:
    """A `python` that writes its arguments to calls.txt, and then does this."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls.txt"\n{does}\n')
    path.chmod(0o755)
    return path


def session(folder: Path, does: str, *arguments: str, **environment: str) -> tuple[list[str], list[str]]:
    """(the lines of steps.txt, the calls of python)"""
    python = python_that(folder, does)
    environment = os.environ | {"PYTHON": str(python), "TRITON_CACHE_DIR": str(folder / "cache")} | environment
    out = folder / "out"
    subprocess.run([SESSION, out, *(arguments or ["300"])], env=environment, capture_output=True, check=True)
    return (out / "steps.txt").read_text().splitlines(), (folder / "calls.txt").read_text().splitlines()


STEPS = ["cache", "verify", "headline", "tests", "peers", "peers-compiled", "sweep"]


def test_no_failure_stops_the_steps_after_it(tmp_path):
    steps, calls = session(tmp_path, "exit 3")
    order = ["cache", "verify", "headline", "headline-again", "tests", "peers", "peers-compiled", "sweep"]
    assert [line.split(":")[0] for line in steps] == order
    assert all("exit 3 after" in line for line in steps)
    assert all("kernels compiled: 0, launchers built: 0" in line for line in steps[1:])
    assert "--only verify" in calls[1]
    tests = calls[4].split()
    assert tests[tests.index("-n") + 1] == "12"
    assert "gpu and not slow" in calls[4]
    files = [word for word in calls[5].split() if word.endswith(".py") and word.startswith("benchmarks/")]
    assert sorted(files) == sorted(f"benchmarks/{file.name}" for file in (ROOT / "benchmarks").glob("test_*.py"))
    assert not [word for word in tests if word in ("-x", "--exitfirst") or word.startswith("--maxfail")]


def test_a_step_that_went_well_is_not_tried_again(tmp_path):
    steps, _ = session(tmp_path, "exit 0")
    assert [line.split(":")[0] for line in steps] == STEPS


def test_a_headline_with_nothing_left_to_do_is_not_tried_again(tmp_path, monkeypatch):
    """A kernel of the last section broke the context, say."""
    monkeypatch.setattr(measure, "environment", lambda: {})
    headline.Session(tmp_path / "begun", headline.SECTIONS[-1], 1).write("begin")
    does = f'case "$*" in *benchmarks.headline*) cp "{tmp_path}/begun" "{tmp_path}/out/headline.jsonl"; exit 1;; esac'
    steps, _ = session(tmp_path, does)
    assert [line.split(":")[0] for line in steps] == STEPS


@pytest.mark.parametrize("status", [70, 139])
def test_what_goes_on_is_called_again_when_the_context_is_lost(tmp_path, status):
    does = (
        f'case "$*" in *benchmarks.sweep*|*--begun*) echo x >>"{tmp_path}/n"; '
        f'[ $(($(wc -l <"{tmp_path}/n") % 3)) = 0 ] || exit {status};; esac'
    )
    steps, calls = session(tmp_path, does)
    names = [line.split(":")[0] for line in steps]
    assert names[4:] == [n for name in STEPS[4:] for n in (name, f"{name}-again", f"{name}-again")]
    assert calls[4] == calls[5] == calls[6]


def test_the_shares_add_up_and_what_is_left_goes_to_the_next(tmp_path):
    """A step's limit is what is left until it is due: where all is quick, the shares before it and its own."""
    steps, calls = session(tmp_path, "exit 0", "405")
    limits = [int(line.split("(of ")[1].split(")")[0]) for line in steps]
    for limit, due in zip(limits, (15, 50, 155, 275, 335, 370, 405), strict=True):
        assert due - 10 <= limit <= due
    allowed = int(calls[2].split("--seconds ")[1].split()[0])
    assert allowed == limits[2] - 8
    assert limits[-1] - 8 == int(calls[6].split("--seconds ")[1].split()[0])


def test_compiled_peers_come_after_the_others_and_cheapest_first(tmp_path):
    _, calls = session(tmp_path, "exit 0")
    plain, compiled = (call for call in calls if "--benchmark " in call)
    assert "-k not compile" in plain
    assert "-k compile and " in compiled
    files = [word for word in compiled.split() if word.startswith("benchmarks/")]
    assert [f.split("test_")[1] for f in files] == [
        "layer_norm.py", "ffn.py", "linear_cross_entropy.py", "train_step.py", "attention.py",
    ]  # fmt: skip


def test_files_of_an_earlier_session_are_put_away(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "tests.jsonl").write_text("old\n")
    (out / "mine.txt").write_text("not of a session")
    session(tmp_path, "exit 0")
    assert not (out / "tests.jsonl").exists()
    assert (out / "mine.txt").exists()
    first = (out / "steps.txt").read_text()
    session(tmp_path, "exit 0")
    assert len((out / "steps.txt").read_text().splitlines()) == len(STEPS)
    with tarfile.open(out / "earlier-1.tar.gz") as tar:
        assert tar.getnames() == ["tests.jsonl"]
    with tarfile.open(out / "earlier-2.tar.gz") as tar:
        assert tar.getnames() == ["steps.txt", "log.txt"]
        assert tar.extractfile("steps.txt").read().decode() == first


def test_what_a_step_compiles_is_counted(tmp_path):
    steps, _ = session(
        tmp_path, 'mkdir -p "$TRITON_CACHE_DIR/$$"; touch "$TRITON_CACHE_DIR/$$/k.cubin" "$TRITON_CACHE_DIR/$$/l.so"'
    )
    assert "kernels: 1, launchers: 1" in steps[0]
    assert all("kernels compiled: 1, launchers built: 1" in line for line in steps[1:])


def test_time_is_kept(tmp_path):
    steps, _ = session(tmp_path, 'case "$*" in *summary*) exit;; esac; sleep 60', "7")
    assert "exit 124 after" in steps[0]
    assert [line.split(": ", 1)[1] for line in steps[1:]] == ["no time left"] * (len(steps) - 1)


def test_the_log_stays_small_enough_to_come_back(tmp_path):
    session(tmp_path, 'case "$*" in *unpack*) echo first;; *sweep*) echo last;; *) head -c 13000000 /dev/zero;; esac')
    log = (tmp_path / "out" / "log.txt").read_bytes()
    assert len(log) < 16 << 20
    assert b"\nfirst\n" in log
    assert log.endswith(b"last\n")
    assert b"cut out" in log
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_nothing_is_installed_and_the_tree_is_found(tmp_path):
    _, calls = session(tmp_path, "exit 0")
    assert not [call for call in calls if "pip" in call.split()]
    code = "import fastgpt, fastgpt.kernels as k; print(fastgpt.__file__, k.__file__)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts" / "gpu" / "site")}
    environment.pop("FASTGPT_FAKE_GPU", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(ROOT / "fastgpt/__init__.py"), str(ROOT / "kernels/__init__.py")], done.stderr


def test_what_cannot_be_written_or_told_is_said_and_nothing_is_run(tmp_path):
    """Without a folder to write to, a session that went on would write to /."""
    (tmp_path / "file").touch()
    environment = os.environ | {"PYTHON": str(python_that(tmp_path, "exit 0")), "TRITON_CACHE_DIR": str(tmp_path / "c")}
    for arguments, said in (
        ([tmp_path / "file", "60"], "file, is no folder that can be written to"),
        ([tmp_path / "file" / "below", "60"], "below, is no folder that can be written to"),
        ([tmp_path / "out", "7m"], "SECONDS is 7m, and must be a whole number"),
        ([tmp_path / "out", "0"], "SECONDS is 0"),
    ):
        done = subprocess.run([SESSION, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert said in done.stderr
    assert not (tmp_path / "calls.txt").exists()


def test_relative_folders_are_the_trees_whatever_cdpath_says(tmp_path):
    tree = tmp_path / "tree"
    (tree / "scripts").mkdir(parents=True)
    (tmp_path / "out").mkdir()  # which CDPATH would prefer
    (tree / "scripts" / "gpu_session.sh").write_bytes(SESSION.read_bytes())
    environment = os.environ | {"PYTHON": str(python_that(tmp_path, "exit 0")), "TRITON_CACHE_DIR": str(tmp_path / "c")}
    subprocess.run(
        ["bash", "tree/scripts/gpu_session.sh", "out", "60"], cwd=tmp_path, env=environment | {"CDPATH": str(tmp_path)},
        capture_output=True, check=True,
    )  # fmt: skip
    assert "sweep: exit 0" in (tree / "out" / "steps.txt").read_text()


def test_without_a_gpu_nothing_else_is_tried(tmp_path):
    does = f'case "$*" in *benchmarks.headline*--seconds*) exit {headline.NO_GPU};; esac'
    environment = os.environ | {"PYTHON": str(python_that(tmp_path, does)), "TRITON_CACHE_DIR": str(tmp_path / "c")}
    done = subprocess.run([SESSION, tmp_path / "out", "300"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    steps = (tmp_path / "out" / "steps.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in steps[:-1]] == ["cache", "verify", "headline"]
    assert "no CUDA GPU" in steps[-1]


@pytest.mark.parametrize("given", ["", "told"])
def test_the_commit_is_the_trees_own_before_that_of_the_cache(tmp_path, given):
    tree = tmp_path / "tree"
    for folder in ("scripts", ".gpu-cache", "kernels"):
        (tree / folder).mkdir(parents=True)
    (tree / "scripts" / "gpu_session.sh").write_bytes(SESSION.read_bytes())
    (tree / "kernels" / "some.py").write_text("x = 1\n")
    (tree / "kernels" / "another.py").write_text("")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "c"), "FASTGPT_COMMIT": given}
    environment |= {"PYTHON": str(python_that(tmp_path, 'echo "commit ${FASTGPT_COMMIT-none}"')), "GIT_DIR": "/nowhere"}

    def commit() -> str:
        command = ["bash", tree / "scripts/gpu_session.sh", "out", "60"]
        said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        label = (tree / "out" / "log.txt").read_text().split("commit ")[-1].strip()
        assert f"figures are labelled {'with no commit' if label == 'none' else label}\n" in said
        return label

    assert commit() == (given or "none")
    (tree / ".gpu-cache" / "COMMIT").write_text(f"cached\n{cache.tree_hash(tree)}\n")
    assert commit() == (given or "cached")
    (tree / "kernels" / "some.py").write_text("x = 2\n")
    assert commit() == (given or "cached-changed")
    (tree / ".gpu-cache" / "COMMIT").write_text("cached\n")
    assert commit() == (given or "cached-changed")
    (tmp_path / "git").write_text("#!/bin/sh\necho own\n")
    (tmp_path / "git").chmod(0o755)
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    assert commit() == (given or "own")


# ---- which tests -----------------------------------------------------------------------------------------------------


class Item:
    def __init__(self, nodeid: str, fixtures: tuple[str, ...], *marks: str) -> None:
        self.nodeid, self.fixturenames, self.marks = nodeid, fixtures, list(marks)
        self.module = ModuleType("some_tests")

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks.append(mark.name)


@pytest.mark.parametrize("gpu", [False, True])
def test_gpu_marks(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    kernel = Item("tests/kernels/ffn/test_values.py::test_a", ("device", "seed"))
    interpreted = Item("tests/kernels/ffn/test_values.py::test_b", ("interpreter",))
    fuzz = Item("tests/fuzz/test_ffn.py::test_c", ("device",))
    asked = Item("tests/kernels/ffn/test_saved.py::test_d", (), "gpu")
    conftest.pytest_collection_modifyitems([kernel, interpreted, fuzz, asked])
    assert kernel.marks == ["gpu"]
    assert interpreted.marks == fuzz.marks == []
    assert asked.marks == (["gpu"] if gpu else ["gpu", "skip"])


def test_outcomes_are_written_as_they_come(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'not so'\n"
        "def test_skipped(): pytest.skip('why')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('set-up')\n"
        "def test_error(broken): pass\n"
    )
    plugin = ["-p", "tests.support.as_it_goes", f"--as-it-goes={tmp_path}/tests.jsonl"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, str(tmp_path / "test_some.py")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTEST_ADDOPTS": ""}, capture_output=True, text=True)
    rows = summary.rows(tmp_path / "tests.jsonl")
    assert [(r["test"].split("::")[1], r["outcome"], r["when"]) for r in rows] == [
        ("test_good", "passed", "call"), ("test_bad", "failed", "call"), ("test_skipped", "skipped", "call"),
        ("test_error", "failed", "setup"),
    ], done.stdout  # fmt: skip
    assert "not so" in rows[1]["message"]
    assert "set-up" in rows[3]["message"]
    assert "2 failed, 1 passed, 1 skipped" in summary.tests(tmp_path)[0]


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_the_gpu_waits_between_the_flush_and_the_first_event(monkeypatch):
    """Without the wait, Python's time to launch is part of the figure."""
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")

        def synchronize(self):
            told.append("wait")

        def elapsed_time(self, end):
            return 2.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append("sleep"))
    monkeypatch.setattr(measure, "_l2_filler", lambda: SimpleNamespace(zero_=lambda: told.append("flush")))
    assert measure.round_seconds(lambda: told.append("run"), 2) == [2e-3, 2e-3]
    assert told == ["flush", "sleep", "event", "run", "event"] * 2 + ["wait"] * 2


def test_pytest_benchmark_prepares_each_round_in_the_same_way(monkeypatch):
    seen = {}
    stats = SimpleNamespace(stats=SimpleNamespace(sorted_data=[1.0, 2.0, 3.0, 4.0]))
    benchmark = SimpleNamespace(
        disabled=False, extra_info={}, stats=stats, pedantic=lambda run, **given: seen.update(given)
    )
    run = measure.Measure(benchmark, quick=True, rows=[])
    given = {"op": "o", "impl": "i", "dtype": torch.float32, "work": measure.Work(bytes=1.0), "shape": {}}
    monkeypatch.setattr(measure, "gemm_rate", lambda dtype: 1.0)
    monkeypatch.setattr(measure, "copy_bandwidth", lambda: 1.0)
    run(lambda: None, **given)
    assert seen["setup"] is measure.prepare_round
    assert benchmark.extra_info["seconds"] == 2.5
    assert "gpu_state" not in benchmark.extra_info
    run(lambda: None, **given, flush=False)
    assert seen["setup"] is None


@pytest.mark.parametrize("shared", [False, True])
def test_nvidia_smi_is_asked_once(monkeypatch, tmp_path, shared):
    """By a process; where a file is named, by all of them together."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answer = SimpleNamespace(stdout="1980 MHz, 2619 MHz, 40, 300 W, 580.1\n")
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: calls.append(1) or answer)
    if shared:
        monkeypatch.setenv("FASTGPT_GPU_STATE", str(tmp_path / "state.json"))
    measure.gpu_state.cache_clear()
    try:
        first = measure.gpu_state()
        assert first == measure.gpu_state()
        assert first["clocks.sm"] == "1980 MHz"
        assert len(calls) == 1
        measure.gpu_state.cache_clear()  # as in another process
        assert measure.gpu_state() == first
        assert len(calls) == (1 if shared else 2)
    finally:
        measure.gpu_state.cache_clear()


def test_what_nvidia_smi_may_say_instead_costs_no_figure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answer = SimpleNamespace(stdout="No devices were found\n")
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **__: answer)
    measure.gpu_state.cache_clear()
    try:
        assert measure.gpu_state() == {"nvidia-smi": "No devices were found"}
    finally:
        measure.gpu_state.cache_clear()


# ---- the headline ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sections(monkeypatch):
    """Three sections, of which the second fails as `error` says; yields (names, error, those that ran)."""
    ran, error = [], {}
    monkeypatch.setattr(measure, "environment", lambda: {"gpu": "NVIDIA H100"})

    def section(name):
        def body(session):
            ran.append(name)
            if name == "b" and error:
                raise error["is"]
            session.write("noted")

        return body

    monkeypatch.setattr(headline, "OTHERS", {name: section(name) for name in "abc"})
    return "abc", error, ran


def test_a_failed_section_does_not_stop_the_next(sections, tmp_path, capsys):
    names, error, ran = sections
    error["is"] = ValueError("no such tile")
    assert headline.run(tmp_path / "h.jsonl", names, 60.0, 1) == 1
    assert ran == ["a", "b", "c"]
    rows = summary.rows(tmp_path / "h.jsonl")
    assert [r["section"] for r in rows if r.get("kind") == "noted"] == ["a", "c"]
    assert "b: FAILED: ValueError: no such tile" in summary.headline(rows)


@pytest.mark.parametrize(
    "fault", ["an illegal memory access was encountered", "misaligned address", "of a kind unheard"]
)
def test_a_broken_context_ends_the_process_and_the_next_goes_on_behind_it(
    sections, tmp_path, capsys, monkeypatch, fault
):
    names, error, ran = sections
    error["is"] = RuntimeError(f"CUDA error: {fault}")
    monkeypatch.setattr(measure, "fatal", lambda: "b" in ran)
    with pytest.raises(RuntimeError):
        headline.run(tmp_path / "h.jsonl", names, 60.0, 1)
    assert ran == ["a", "b"]
    assert headline.run(tmp_path / "h.jsonl", names, 60.0, 1) == 0
    assert ran == ["a", "b", "c"]


@pytest.mark.parametrize("dead", [False, True])
def test_the_device_is_asked_whether_a_fault_is_fatal(monkeypatch, dead):
    def synchronize():
        if dead:
            raise RuntimeError("CUDA error: hardware stack error")

    assert not measure.fatal()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert measure.fatal() is dead


def test_a_row_that_was_cut_off_costs_no_other(sections, tmp_path, capsys):
    """The session's limit kills a process at any moment, and the next one goes on in the same file."""
    names, _, ran = sections
    file = tmp_path / "h.jsonl"
    measure.append_row(file, {"section": "a", "kind": "begin"})
    with file.open("a") as lines:
        lines.write('{"section": "a", "kind": "fig')
    assert headline.run(file, names, 60.0, 1) == 0
    assert ran == ["b", "c"]
    with file.open("a") as lines:
        lines.write('{"half": 1\n{"half": {"x": 1}}}\n')
    assert headline.begun(file) == {"a", "b", "c"}
    kinds = [(r["section"], r["kind"]) for r in summary.rows(file)[1:]]
    assert kinds == [("a", "begin"), ("b", "begin"), ("b", "noted"), ("c", "begin"), ("c", "noted")]


def test_no_section_begins_after_the_time(sections, tmp_path, capsys):
    names, _, ran = sections
    headline.run(tmp_path / "h.jsonl", names, -1.0, 1)
    assert ran == []
    assert capsys.readouterr().out.count("no time left") == 3


def test_headline_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert headline.main([]) == headline.NO_GPU
    assert "no CUDA GPU" in capsys.readouterr().err


def test_headline_covers_what_it_promises():
    figures = [f for make in headline.FIGURES.values() for f in make()]
    attention = {(f.shape["T"], f.shape["head_dim"], f.mode) for f in figures if f.op == "attention"}
    modes = ("forward", "forward+backward")
    assert attention == {(T, d, mode) for T in (1024, 4096, 16384) for d in (64, 128) for mode in modes}
    assert {f.op for f in figures} == set(headline.PEERS)
    assert all({f.mode for f in figures if f.op == op} == set(modes) for op in headline.PEERS)
    assert {"sdpa-flash", "sdpa-cudnn"} < set(headline.PEERS["attention"])


def test_a_figure_takes_gradients_of_every_floating_input():
    work = measure.Work(bytes=1.0)
    x, target = torch.randn(3), torch.zeros(2, dtype=torch.int64)
    seen = []

    def operator(x, target, scale):
        seen.append(x.requires_grad)
        return x * scale

    figure = headline.Figure("o", "forward+backward", {}, work, lambda: [x, target], {"scale": 2.0})
    headline.bound(operator, figure)()
    assert seen == [True]
    x.requires_grad_(False)
    headline.bound(operator, headline.Figure("o", "forward", {}, work, lambda: [x, target], {"scale": 2.0}))()
    assert seen == [True, False]


# ---- what becomes of the files ---------------------------------------------------------------------------------------


def fold(out: Path, results: Path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("fold_results", ROOT / "scripts" / "fold_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.RESULTS = results
    return module.main([str(out)])


def write(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_fold_takes_what_the_session_wrote(tmp_path, capsys):
    from benchmarks import report

    environment = {"environment": {"gpu": "NVIDIA H100", "date": "2026-01-01", "commit": "abc"}}
    row = measure.figure(
        [1.0, 2.0, 3.0], op="ffn", impl="fastgpt", dtype=torch.float32, work=measure.Work(flops=1.0, tokens=1.0),
        shape={"M": 1}, mode="forward", version=None, peak_bytes=None,
    )  # fmt: skip
    begin = {"section": "ffn", "kind": "begin"}
    write(tmp_path / "headline.jsonl", environment, begin, {"section": "ffn", "kind": "figure", **row})
    write(tmp_path / "benchmarks.jsonl", environment, row)
    write(tmp_path / "tests.jsonl", {"test": "t::a", "outcome": "failed", "seconds": 1.0, "message": "wrong\nmore"})
    error = {"test": "t::b", "name": "out", "dtype": "float32", "norm": "max", "ok": False, "used": None}
    write(tmp_path / "errors.jsonl", error, error | {"ok": True, "used": 0.5})
    results = tmp_path / "results"
    results.mkdir()
    assert fold(tmp_path, results) == 0
    said = capsys.readouterr().out
    assert "t::a: wrong\n" in said
    assert "2 judged, 1 over their budget, the largest inf" in said
    name = "gpu-nvidia-h100-2026-01-01-abc.jsonl"
    assert sorted(p.name for p in results.iterdir()) == [name, f"peers-{name}"]
    assert report.load(results / name)[1] == report.load(results / f"peers-{name}")[1] == [row]


def test_fold_refuses_what_no_gpu_measured(tmp_path, capsys):
    for gpu in ("a fake H100", None):
        write(tmp_path / "headline.jsonl", {"environment": {"gpu": gpu, "date": "2026-01-01", "commit": "abc"}})
        assert fold(tmp_path, tmp_path) == 2
        assert "says nothing" in capsys.readouterr().err


def test_fold_takes_what_a_cut_session_left(tmp_path, capsys):
    environment = {"environment": {"gpu": "NVIDIA H100", "date": "2026-01-01", "commit": None}}
    results = tmp_path / "results"
    results.mkdir()
    error = {"test": "t::b", "name": "out", "dtype": "float32", "norm": "max", "ok": False, "used": 1.5}
    write(tmp_path / "errors.jsonl", error)
    assert fold(tmp_path, results) == 2
    assert "1 judged, 1 over their budget" in capsys.readouterr().out
    write(tmp_path / "headline.jsonl", environment, {"section": "ffn", "kind": "begin"})
    (tmp_path / "benchmarks.jsonl").write_text('{"environment": {"gpu": "NVI')
    write(tmp_path / "full.jsonl", environment, {"op": "ffn"})
    assert fold(tmp_path, results) == 1
    said = capsys.readouterr()
    assert "benchmarks.jsonl does not begin with an environment line" in said.err
    assert "headline.jsonl: cut before its first figure" in said.out
    assert "1 judged, 1 over their budget" in said.out
    assert [p.name for p in results.iterdir()] == ["full-gpu-nvidia-h100-2026-01-01-unknown.jsonl"]


def test_the_self_check_of_a_kernel_that_gives_nan_is_told(tmp_path, monkeypatch):
    from fastgpt import verify

    rows = (verify.Row("ffn", "a", "float32", used=float("inf")), verify.Row("ffn", "b", "float32", problem="E: no"))
    monkeypatch.setattr(verify, "verify", lambda device: verify.Report(rows, "here", 1.0))
    monkeypatch.setattr(measure, "environment", lambda: {})
    headline.verify(headline.Session(tmp_path / "h.jsonl", "verify", 1))
    for line in (tmp_path / "h.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    told = summary.headline(summary.rows(tmp_path / "h.jsonl"))
    assert told == [
        "verify: ffn a float32: inf of the budget ", "verify: ffn b float32: 0.00 of the budget E: no",
        "verify: FAILED, here, 1.0 s",
    ]  # fmt: skip
