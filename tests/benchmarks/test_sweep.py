"""The tile sweep, without timing: which tiles it tries, that they reach the launch, and what becomes of the figures."""

import contextlib
import functools
import importlib.util
import itertools
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from benchmarks import sweep
from fastgpt.kernels import layer_norm
from fastgpt.kernels._runtime import KNOWN_TARGETS
from fastgpt.kernels.attention.hopper.launch import plan_of
from fastgpt.tools.memory import on_paper

SCRIPT = Path(__file__).parents[2] / "scripts" / "fold_results.py"


@pytest.fixture
def fold():
    spec = importlib.util.spec_from_file_location("fold_results", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(work: sweep.Workload) -> list:
    """The table's answers while `work` runs on paper."""
    with sweep.answering(work, None) as given, on_paper():
        sweep.make(work, torch.device("meta"))()
    return given


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()][1:]


own_tile = functools.cache(sweep.own_tile)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A sweep whose compiler and GPU are simulated: 30 ms a tile in 12 processes, 1 ms a figure; yields its file."""
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(sweep, "compilers", ThreadPoolExecutor)
    monkeypatch.setattr(sweep, "own_tile", own_tile)
    monkeypatch.setattr(sweep, "_compile", lambda *_: time.sleep(0.03))
    monkeypatch.setattr(sweep, "_measure", lambda *_: (time.sleep(0.001), 1e-3))
    return tmp_path / "sweep.jsonl"


def test_a_short_time_gives_figures_of_every_workload(quick):
    plans = Counter((c.work.name, c.work.shape) for c in sweep.planned(quick, None, "sm_90", None))
    assert plans.total() > 1500  # of which the time is enough for a few
    start = time.monotonic()
    count = sweep.sweep(quick, 1.0, None, "sm_90")
    assert time.monotonic() - start < 10.0
    found = rows(quick)
    assert len(found) == count
    counts = Counter((row["workload"], tuple(row["shape"])) for row in found)
    assert set(counts) == {(work.name, work.shape) for work in sweep.workloads()}
    assert all(count >= min(plans[key], max(counts.values()) - 2) for key, count in counts.items())
    assert all(any(r["default"] for r in found if (r["workload"], tuple(r["shape"])) == key) for key in counts)


def test_a_slow_compilation_holds_up_no_other(quick, monkeypatch):
    slow = next(work for work in sweep.workloads() if work.family == "attention")
    monkeypatch.setattr(sweep, "_compile", lambda work, *_: time.sleep(1.5 if work == slow else 0.01))
    sweep.sweep(quick, 1.0, "attention", "sm_90", 4)
    counts = Counter((row["workload"], tuple(row["shape"])) for row in rows(quick))
    assert set(counts.values()) == {4}
    assert len(counts) == 11


def test_most_valuable_workloads_first(quick):
    first = list(itertools.islice(sweep.planned(quick, None, "sm_90", 2), 15))
    families = ["attention/hopper"] * 6 + ["attention"] * 6 + ["ffn"] * 2 + ["linear_cross_entropy"]
    assert [c.work.family for c in first] == families
    assert all(c.default and ("attention" not in c.work.family or c.work.shape[2] == 4096) for c in first)


def test_hoppers_tiles_are_for_hopper_alone(quick):
    planned = {arch: {c.work.family for c in sweep.planned(quick, None, arch, 1)} for arch in ("sm_80", "sm_90")}
    assert planned["sm_90"] - planned["sm_80"] == {"attention/hopper"}


def test_a_tile_of_hoppers_kernels_is_what_the_launch_takes_and_then_no_more():
    """The launch remembers its plans."""
    (work,) = [w for w in sweep.workloads() if w.name == "attention/hopper.tile.forward" and w.shape[-1] == 64]
    own = sweep.own_tile(work, "sm_90")
    other = next(tile for tile in work.candidates(own)[1:] if tile.stages != own.stages)
    plan = functools.partial(
        plan_of, "forward", KNOWN_TARGETS["sm_90"], work.shape, work.shape, True, -1, -1, False, False
    )
    assert plan().tile == own
    with sweep.answering(work, other):
        assert plan().tile == other
    assert plan().tile == own


def test_a_workload_that_fails_costs_no_other(quick, monkeypatch):
    failing = sweep.workloads()[3]

    def own(work, arch):
        if work == failing:
            raise RuntimeError("out of memory")
        return own_tile(work, arch)

    monkeypatch.setattr(sweep, "own_tile", own)
    assert sweep.sweep(quick, 20.0, None, "sm_90", 1) == len(sweep.workloads()) - 1
    (row,) = [row for row in rows(quick) if row["error"]]
    assert (row["workload"], row["error"]) == (failing.name, "RuntimeError: out of memory")


@pytest.mark.parametrize("silent", [False, True])
def test_a_tile_that_breaks_the_context_costs_no_other(quick, monkeypatch, silent):
    """Told by an error, or as where the process just ends: the next call goes on behind it."""
    measured = []

    class Ended(BaseException): ...

    def measure(work, tile, compare):
        measured.append((work, tile))
        if len(measured) != 3:
            return None, 1e-3
        if silent:
            raise Ended
        return "RuntimeError: CUDA error: misaligned address", None

    monkeypatch.setattr(sweep, "_measure", measure)
    monkeypatch.setattr(sweep, "fatal", lambda: len(measured) == 3)
    with pytest.raises(Ended if silent else sweep.ContextLost):
        sweep.sweep(quick, 20.0, "ffn", "sm_90", 2)
    assert sweep.sweep(quick, 20.0, "ffn", "sm_90", 2) == 5
    found = rows(quick)
    assert len(measured) == len(found) == 8
    assert len({json.dumps([r["workload"], r["shape"], r["tile"]]) for r in found}) == 8
    assert [r["error"] for r in found if r["error"]] == [
        "the process ended here" if silent else "RuntimeError: CUDA error: misaligned address"
    ]
    assert sweep.sweep(quick, 20.0, "ffn", "sm_90", 2) == 0
    assert [p.name for p in quick.parent.iterdir()] == [quick.name]


def test_a_kernel_that_never_ends_ends_the_process(monkeypatch):
    ended = []
    work = sweep.workloads()[0]
    monkeypatch.setattr(sweep, "HANGS", 0.05)
    monkeypatch.setattr(sweep.os, "_exit", ended.append)
    monkeypatch.setattr(sweep, "make", lambda *_: None)
    monkeypatch.setattr(sweep, "median_seconds", lambda *_, **__: time.sleep(0.5))
    sweep._measure(work, None, False)
    assert ended == [sweep.LOST]
    monkeypatch.setattr(sweep, "median_seconds", lambda *_, **__: 1e-3)
    assert sweep._measure(work, None, False) == (None, 1e-3)
    time.sleep(0.1)
    assert ended == [sweep.LOST]


def test_a_broken_context_is_told_by_the_exit_status(monkeypatch, capsys):
    def lost(*_):
        raise sweep.ContextLost("ffn with Tile()")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(sweep, "sweep", lost)
    assert sweep.main([]) == sweep.LOST
    assert "call this again" in capsys.readouterr().err


def test_a_tile_is_compared_with_the_tables_own_where_that_runs(quick, monkeypatch):
    """Where it does not, to run it for each of its neighbours might end as many processes."""
    broken = next(work for work in sweep.workloads() if work.family == "attention")
    asked_of = []

    def measure(work, tile, compare):
        default = tile == own_tile(work, "sm_90")
        asked_of.append((work, default, compare))
        return ("RuntimeError: no", None) if default and work == broken else (None, 1e-3)

    monkeypatch.setattr(sweep, "_measure", measure)
    sweep.sweep(quick, 20.0, "attention", "sm_90", 1)
    sweep.sweep(quick, 20.0, "attention", "sm_90", 3)  # as after a broken context: which ran is in the file
    assert len(asked_of) == 3 * len({work for work, *_ in asked_of})
    assert all(compare == (not default and work != broken) for work, default, compare in asked_of)
    assert [row["compared"] for row in rows(quick)] == [compare for *_, compare in asked_of]

    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 1)  # one after the other
    asked_of.clear()
    sweep.sweep(quick, 20.0, "linear_cross_entropy", "sm_90", 3)
    assert [compare for *_, compare in asked_of] == [False, True, True]


def test_a_compiler_that_dies_is_replaced(quick, monkeypatch):
    pools = []

    class Dying(ThreadPoolExecutor):
        def submit(self, *args):
            future = super().submit(*args)
            if len(pools) == 1:
                future.result()
                future._exception = sweep.BrokenProcessPool()
            return future

    monkeypatch.setattr(sweep, "compilers", lambda workers: pools.append(Dying(1)) or pools[-1])
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 2)
    assert sweep.sweep(quick, 20.0, "ffn", "sm_90", 1) == 2
    assert Counter(row["error"] for row in rows(quick)) == {None: 2, "a compiler's process died": 2}


def test_neighbours_come_first():
    work = next(w for w in sweep.workloads() if w.name == "layer_norm.forward_tile")
    own = asked(work)[0]
    tiles = work.candidates(own)
    differences = [sum(a != b for a, b in zip(sweep._as_dict(t).values(), sweep._as_dict(own).values())) for t in tiles]
    assert differences == sorted(differences)
    assert differences[0] == 0
    assert differences[-1] == 2
    assert len({str(t) for t in tiles}) == len(tiles)


def test_a_candidate_reaches_the_launch_and_computes_the_same(device, seed):
    x = torch.randn(7, 48, device=device)
    expected = layer_norm(x, (48,))
    work = next(w for w in sweep.workloads() if w.name == "layer_norm.forward_tile")
    with sweep.answering(work, None) as given:
        layer_norm(x, (48,))
    other = next(t for t in work.candidates(given[0]) if t.block_m != given[0].block_m)
    with sweep.answering(work, other) as given:
        result = layer_norm(x, (48,))
    assert given == [other]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("work", {w.name: w for w in sweep.workloads()}.values(), ids=lambda w: w.name)
def test_every_workload_asks_its_table(work):
    """A renamed table function, or one that is asked no more, would silently sweep nothing."""
    given = asked(work)
    assert given
    assert set(work.fields) <= set(sweep._as_dict(given[0]))


def test_no_gpu_is_said(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sweep.main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err


ENVIRONMENT = {"environment": {"gpu": "NVIDIA H200", "date": "2026-01-01", "commit": "abc"}}


def figure(seconds: float | None, tile: dict, *, default: bool = False, workload: str = "w", shape=(1,)) -> dict:
    error = None if seconds else "out of resources"
    return {
        "workload": workload, "shape": shape, "arch": "sm_90", "tile": tile, "seconds": seconds, "default": default,
        "error": error, "compared": not default,
    }  # fmt: skip


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Interpreted, at sizes that this can bear: LayerNorm's forward and backward, and the loss with its gradients."""
    from fastgpt.kernels import interpret

    monkeypatch.setattr(sweep, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(sweep, "median_seconds", lambda run, rounds: 1e-3)
    with interpret():
        yield [
            sweep.Workload("layer_norm", "forward_tile", ("num_warps",), (4, 32), "forward"),
            sweep.Workload("layer_norm", "backward_tile", ("num_warps",), (4, 32), "backward"),
            sweep.Workload("linear_cross_entropy", "whole_row", ("num_warps",), (4, 16, 37), "forward"),
        ]


def test_a_tile_that_computes_the_same_is_measured_and_another_is_an_error(on_a_cpu, monkeypatch):
    from fastgpt import kernels

    for work in on_a_cpu:
        tile = sweep._replaced(asked(work)[-1], {"num_warps": 2})
        assert sweep._measure(work, tile, True) == (None, 1e-3)
        own, right = getattr(work.tiles, work.function), getattr(kernels, work.family)

        def wrong(*args, work=work, own=own, right=right, **kwargs):
            return right(*args, **kwargs) * (1.0 if getattr(work.tiles, work.function) is own else 1.1)

        def answering(work, tile, original=sweep.answering):
            return original(work, tile) if tile is not None else contextlib.nullcontext()

        with monkeypatch.context() as patch:
            patch.setattr(kernels, work.family, wrong)
            patch.setattr(sweep, "answering", answering)
            error, seconds = sweep._measure(work, tile, True)
            assert seconds is None
            assert "differs from the table's own tile's in" in error
            assert sweep._measure(work, tile, False) == (None, 1e-3)


@pytest.mark.parametrize("wrong", [0.0, float("nan"), 1.2])
def test_one_row_that_is_wrong_is_noticed_and_another_order_of_sums_is_not(wrong):
    x = torch.randn(64, 512)
    terms = torch.randn(64, 512, 300)
    own = terms.sum(-1).bfloat16()
    sweep.agree([x, terms.flip(-1).sum(-1).bfloat16()], [x, own])
    other = own.clone()
    other[17] *= wrong
    with pytest.raises(ValueError, match="result 1 differs"):
        sweep.agree([x, other], [x, own])


def test_fold_takes_no_winner_that_nobody_compared(fold):
    own, fast = figure(2.0, {"block_m": 64}, default=True), figure(1.0, {"block_m": 128})
    assert fold.best_tiles([own, fast])[0].best == {"block_m": 128}
    assert fold.best_tiles([own, fast | {"compared": False}])[0].best == {"block_m": 64}
    assert fold.best_tiles([own, {k: v for k, v in fast.items() if k != "compared"}])[0].best == {"block_m": 64}


def test_fold_names_the_winner(fold, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fold, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    rows = [figure(2.0, {"block_m": 64}, default=True), figure(1.0, {"block_m": 128}), figure(None, {"block_m": 256})]
    lines = [json.dumps(r) for r in (ENVIRONMENT, *rows)]
    (tmp_path / "sweep.jsonl").write_text("\n".join(lines) + '\n{"workload": "cut')
    assert fold.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "2.00x with {'block_m': (64, 128)}" in said.out
    assert "line 5 is cut off" in said.err
    assert (tmp_path / "results" / "sweep-gpu-nvidia-h200-2026-01-01-abc.jsonl").is_file()


@pytest.mark.parametrize("name", ["attention.forward", "attention.dkdv", "attention.dq", "ffn.product_tile.up"])
def test_apply_changes_the_entry_that_answered_and_no_other(fold, tmp_path, monkeypatch, name):
    work = next(w for w in sweep.workloads() if w.name == name)
    own = sweep._as_dict(asked(work)[0])
    best = own | {"num_stages": own["num_stages"] + 1}
    family = tmp_path / "kernels" / work.family
    family.mkdir(parents=True)
    old = (SCRIPT.parents[1] / "kernels" / work.family / "tiles.py").read_text()
    (family / "tiles.py").write_text(old)
    monkeypatch.setattr(fold, "ROOT", tmp_path)
    rows = [figure(2.0, own, default=True, workload=name, shape=work.shape)]
    rows += [figure(1.0, best, workload=name, shape=work.shape)]
    fold.apply(fold.best_tiles(rows))
    new = (family / "tiles.py").read_text()
    before, after = ({}, {})
    for source, names in ((old, before), (new, after)):
        module = type(work.tiles)(work.tiles.__name__)
        module.__package__ = work.tiles.__package__
        exec(compile(source, "tiles.py", "exec"), module.__dict__)
        names.update(module.__dict__)
    # As the launch asks: through a module that holds the new table.
    monkeypatch.setattr(work.tiles, work.function, after[work.function])
    assert sweep._as_dict(asked(work)[0]) == best
    changed = [(a, b) for a, b in zip(old.splitlines(), new.splitlines()) if a != b]
    assert len(changed) == 1
    assert len(old.splitlines()) == len(new.splitlines())


def test_fold_refuses_an_empty_folder(fold, tmp_path, capsys):
    assert fold.main([str(tmp_path)]) == 2
    assert "holds none of" in capsys.readouterr().err
