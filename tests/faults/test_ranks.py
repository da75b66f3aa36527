"""A sample of `make faults-ranks`, and that the harness sees what it is to see."""

from __future__ import annotations

import dataclasses

import pytest

from . import shim
from .rank_jobs import Done
from .rank_worker import CALLS, FUNCTIONS, Fault
from .ranks import KILLS, STEPS, Bench, Verdict, kills, looked, stops, table

pytestmark = pytest.mark.needs("tyro")

CALLED = {0: ["open a", *["rename a"] * 4], 1: ["open b"] * 3}


@pytest.mark.timeout(600)  # 30 s, but on a machine with other work to do
def test_killed_ranks_cost_nothing(tmp_path):
    if why := shim.missing():
        pytest.skip(why)
    bench = Bench(tmp_path, shim.build(tmp_path))
    try:
        cases = {case.what: case for case in kills(bench.calls(), 0)}
        for what in ("while files are written", "during the restart"):
            verdict = bench.judge(dataclasses.replace(cases[what], strategy="fsdp"))
            assert not verdict.problems, f"{verdict.case.name}: {verdict.problems}\n{verdict.said}"
        # What cannot pass: a moment that does not come, in a job that is none the worse for it.
        never = dataclasses.replace(cases["between steps"], strategy="fsdp", faults=(Fault(0, 0, "step", STEPS + 1),))
        found = bench.judge(never).problems
        assert found == ["fault 0 was not reached", "the ranks were started 1 times"]
    finally:
        bench.close()


def test_twenty_moments_are_drawn():
    cases = kills(CALLED, 0)
    assert len(cases) == 20
    assert kills(CALLED, 0) == cases != kills(CALLED, 1)
    assert {case.strategy for case in cases} == {"ddp", "fsdp"}
    assert {fault.rank for case in cases for fault in case.faults} == {0, 1}
    moments = {fault.moment for case in cases for fault in case.faults}
    assert moments <= {CALLS, *FUNCTIONS}
    assert {moment for _, moment, *_ in KILLS} <= moments
    assert all(fault.at <= len(CALLED[fault.rank]) for case in cases for fault in case.faults if fault.moment == CALLS)
    assert [len(case.faults) for case in stops(0)] == [2, 2]


def test_what_is_wrong_with_a_job_is_seen():
    done = Done(0, "", "", "", 2, 1.0, [], [0], {})
    assert looked(done, 1) == []
    assert looked(dataclasses.replace(done, code=None, orphans=[7]), 1) == ["it hung", "1 processes outlived it"]
    assert looked(dataclasses.replace(done, code=1), 1) == ["exit status 1"]
    assert looked(done, 1, ends=False) == ["exit status 0"]
    said = "fastgpt train: error: a\nfastgpt train: error: b\nTraceback"
    assert looked(dataclasses.replace(done, err=said), 1) == ["a traceback", "2 errors are told of 1 faults"]


def test_the_table_has_a_line_for_each():
    case = kills(CALLED, 0)[0]
    text = table([Verdict(case, [], 1.0, ""), Verdict(case, ["it hung"], 1.0, "")])
    assert text.count("| between steps | ddp | SIGKILL of rank 0: step ") == 2
    assert text.endswith("| it hung |\n")
