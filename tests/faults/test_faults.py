"""A seeded sample of `make faults`, and that the harness sees what it is to see."""

from __future__ import annotations

import pytest

from . import shim
from .__main__ import COLUMNS, column, sample, table
from .cases import SCENARIOS, Case, every_case, phase_of
from .server import Server, Verdict
from .shim import KINDS, Plan

pytestmark = pytest.mark.needs("tyro", "tiktoken", "tensorboard")

CASES, SEED = 40, 0  # the first of `python -m tests.faults --sample N`


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if why := shim.missing():
        pytest.skip(why)
    server = Server(shim.build(tmp_path_factory.mktemp("shim")))
    yield server
    server.close()


@pytest.mark.timeout(900)  # 30 s, but on a machine with other work to do
def test_a_sample_of_all_faults(server):
    recorded = {name: server.calls(name) for name in SCENARIOS}
    assert_seen(recorded)
    for case in sample(every_case(recorded.get, SEED), CASES, SEED):
        verdict = server.judge(case)
        assert not verdict.problems, f"{case.name} [{verdict.phase}]: {verdict.problems}\n{verdict.err}"
    # What cannot pass: a fault that no call meets, and a run that a library's writing of a file has damaged.
    assert server.judge(Case("train", (Plan(("write",), 9999, error="EIO"),))).problems == ["the fault was not reached"]


def assert_seen(recorded: dict[str, list[tuple[str, str]]]) -> None:
    """Calls of Python and of libraries are counted, those about a run's files alone, and said to be of their phase."""
    calls = recorded["train"]
    files = (
        "model.safetensors",
        "training.safetensors",
        "checksums.json",
        "metrics.jsonl",
        "settings.json",
        "report.html",
    )
    for file in files:
        for kind in ("open", "write"):
            assert any(found == kind and path.endswith(f"/{file}") for found, path in calls), (file, kind)
    assert sum(kind == "rename" and path.endswith("/checkpoints/step-00000006") for kind, path in calls) == 1
    assert any(kind == "write" and "tfevents" in path for kind, path in recorded["train --tensorboard"])
    assert any(kind == "write" and path.endswith("/documents.npy") for kind, path in recorded["prepare"])
    for kind, path in calls:
        assert kind in KINDS
        if not path:  # the folder of all runs' folders
            continue
        assert path.startswith("/runs")
        phases = ("settings", "metrics", "save", "checkpoints", "prune", "report", "run folder")
        assert phase_of(kind, path) in phases


CALLS = [
    ("mkdir", "/runs/run"), ("open", "/runs/run/a"), *[("write", "/runs/run/a")] * 6, ("fsync", "/runs/run/a"),
    ("rename", "/runs/run/b"), ("unlink", "/runs/run/c"), ("rmdir", "/runs/run"),
]  # fmt: skip


def test_every_call_fails_once_and_rows_take_turns():
    cases = every_case(lambda name: CALLS, 0)
    alone = {case.plans[0] for case in cases if case.scenario == "train" and len(case.plans) == 1 and case.errors}
    for kind in KINDS:
        numbers = {plan.first for plan in alone if plan.kinds == (kind,)}
        assert numbers == set(range(1, sum(found == kind for found, _ in CALLS) + 1)), kind
    assert {case.scenario for case in cases} == set(SCENARIOS)
    assert sum("SIGKILL" in case.signals for case in cases) >= 200
    assert all(Case.from_dict(case.__dict__ | {"plans": [p.__dict__ for p in case.plans]}) == case for case in cases)
    chosen = sample(cases, 60, seed=1)
    assert len({(case.scenario, *case.row) for case in chosen}) == 60
    assert chosen == sample(cases, 60, seed=1) != sample(cases, 60, seed=2)


def test_the_table_counts():
    case = Case("train", (Plan(("write",), 1, error="EIO"),))
    verdicts = [Verdict(case, "save", problems, 0.1, "") for problems in ([], ["a traceback"], [])]
    assert "| train | save |  | 2 of 3 |  |" in table(verdicts)
    assert "| every run | write |  | 2 of 3 |  |" in table(verdicts)


def test_every_fault_has_its_column():
    assert {column(case.row[1]) for case in every_case(lambda name: CALLS, 0)} == set(COLUMNS)
