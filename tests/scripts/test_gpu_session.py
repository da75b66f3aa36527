"""The GPU session's script, without a GPU: its steps and limits, what it writes, and what is made of that."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import headline, measure
from benchmarks.report import read_rows
from scripts import fold_results
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


STEPS = ["cache", "paths", "verify", "headline", "tests", "peers", "peers-compiled", "sweep"]


def test_the_study_is_a_session_of_its_own(tmp_path):
    """It trains elsewhere, and only what it found comes home."""
    found = '[ "$2" != fastgpt ] || { mkdir -p "${18}/study" && echo found > "${18}/study/study.json"; }'
    steps, calls = session(tmp_path, found, "200", "study")
    assert [line.split(":")[0] for line in steps] == ["cache", "study"]
    words = calls[1].split()
    assert words[:4] == ["-m", "fastgpt", "study", "depth"]
    assert str(tmp_path) not in words[words.index("--runs-dir") + 1]
    assert (tmp_path / "out" / "study.json").read_text() == "found\n"


def test_a_study_is_folded_in_where_a_gpu_has_made_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fold_results, "RESULTS", tmp_path)
    path = tmp_path / "out.json"
    path.write_text(json.dumps({"rows": [1, 2], "environment": [["GPU", "none"]]}))
    assert not fold_results.fold_study(path)
    path.write_text(json.dumps({"rows": [1, 2], "environment": [["GPU", "NVIDIA H100"]]}))
    assert fold_results.fold_study(path)
    assert json.loads((tmp_path / "study_gpu.json").read_text())["rows"] == [1, 2]
    assert "2 runs of the depth study" in capsys.readouterr().out


def test_no_failure_stops_the_steps_after_it(tmp_path):
    steps, calls = session(tmp_path, "exit 3")
    assert steps.pop() == "summary: exit 3"
    order = ["cache", "paths", "verify", "headline", "headline-again", "tests", "peers", "peers-compiled", "sweep"]
    assert [line.split(":")[0] for line in steps] == order
    assert all("exit 3 after" in line for line in steps)
    assert all("kernels compiled: 0, launchers built: 0" in line for line in steps[1:])
    paths, tests = calls[1].split(), calls[5].split()
    assert paths[2] == "tests/kernels/attention"
    assert "tests.support.gluon" in paths
    assert "--only verify" in calls[2]
    assert tests[tests.index("-n") + 1] == "12"
    assert "gpu and not slow" in calls[5]
    files = [word for word in calls[6].split() if word.endswith(".py") and word.startswith("benchmarks/")]
    assert sorted(files) == sorted(f"benchmarks/{file.name}" for file in (ROOT / "benchmarks").glob("test_*.py"))
    assert not [word for word in tests if word in ("-x", "--exitfirst") or word.startswith("--maxfail")]


def test_kernels_that_hang_serve_no_later_step(tmp_path):
    does = f'echo "$FASTGPT_ATTENTION" >>"{tmp_path}/settings"; case "$*" in *support.gluon*) exit 124;; esac'
    steps, _ = session(tmp_path, does, FASTGPT_ATTENTION="auto")
    assert steps[1].startswith("paths: exit 124")
    assert "the portable ones serve from here on" in steps[2]
    assert (tmp_path / "settings").read_text().split() == ["auto"] * 2 + ["triton"] * (len(STEPS) - 2 + 1)


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
    assert names[5:] == [n for name in STEPS[5:] for n in (name, f"{name}-again", f"{name}-again")]
    assert calls[5] == calls[6] == calls[7]


def test_the_shares_add_up_and_what_is_left_goes_to_the_next(tmp_path):
    """A step's limit is what is left until it is due: where all is quick, the shares before it and its own."""
    steps, calls = session(tmp_path, "exit 0", "405")
    limits = [int(line.split("(of ")[1].split(")")[0]) for line in steps]
    for limit, due in zip(limits, (15, 60, 95, 205, 310, 365, 395, 405), strict=True):
        assert due - 10 <= limit <= due
    allowed = int(calls[3].split("--seconds ")[1].split()[0])
    assert allowed == limits[3] - 8
    assert limits[-1] - 8 == int(calls[7].split("--seconds ")[1].split()[0])


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
    assert [line.split(":")[0] for line in steps[:-1]] == ["cache", "paths", "verify", "headline"]
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
    rows = read_rows(tmp_path / "tests.jsonl")
    assert [(r["test"].split("::")[1], r["outcome"], r["when"]) for r in rows] == [
        ("test_good", "passed", "call"), ("test_bad", "failed", "call"), ("test_skipped", "skipped", "call"),
        ("test_error", "failed", "setup"),
    ], done.stdout  # fmt: skip
    assert "not so" in rows[1]["message"]
    assert "set-up" in rows[3]["message"]
    assert "2 failed, 1 passed, 1 skipped" in summary.tests(tmp_path, "tests")[0]


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


def test_the_sweep_keeps_to_the_tiles_that_came_with_the_archive(tmp_path):
    for name in ("packed", "one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "packed" / "TILES").write_text("4\n")
    _, calls = session(tmp_path / "one", "exit 0", GPU_CACHE=str(tmp_path / "packed" / "cache.tar.xz"))
    assert calls[-2].endswith("--tiles 4") or calls[-1].endswith("--tiles 4")
    _, calls = session(tmp_path / "two", "exit 0", GPU_CACHE=str(tmp_path / "none" / "cache.tar.xz"))
    assert "--tiles" not in "".join(calls)


def test_what_a_step_compiled_is_named(tmp_path):
    session(
        tmp_path,
        'case "$*" in *tests.jsonl*) mkdir -p "$TRITON_CACHE_DIR" && '
        'echo > "$TRITON_CACHE_DIR/some_kernel.cubin" ;; esac',
    )
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "---- tests compiled:\n      1 some_kernel.cubin\n" in log
