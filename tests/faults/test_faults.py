"""A seeded sample of `make faults`, and that the harness sees what it is to see."""

from __future__ import annotations

import pytest

from . import shim
from .__main__ import sample, table
from .cases import SCENARIOS, Case, every_case, phase_of
from .checks import Done
from .server import Server, Verdict
from .shim import KINDS, Plan

pytestmark = [pytest.mark.needs("tyro", "tiktoken", "tensorboard"), pytest.mark.xdist_group("faults")]

if why := shim.missing():
    pytest.skip(why, allow_module_level=True)

CASES, SEED = 40, 14


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(shim.build(tmp_path_factory.mktemp("shim")))
    yield server
    server.close()


def test_a_sample_of_all_faults(server):
    for case in sample(every_case(server.calls, SEED), CASES, SEED):
        verdict = server.judge(case)
        assert not verdict.problems, f"{case.name} [{verdict.phase}]: {verdict.problems}\n{verdict.err}"


def test_calls_of_python_and_of_libraries_are_seen(server):
    calls = server.calls("train")
    for file in ("model.safetensors", "training.safetensors", "checksums.json", "metrics.jsonl", "settings.json"):
        for kind in ("open", "write"):
            assert any(found == kind and path.endswith(f"/{file}") for found, path in calls), (file, kind)
    assert sum(kind == "rename" and path.endswith("/checkpoints/step-00000006") for kind, path in calls) == 1
    assert any(kind == "write" and "tfevents" in path for kind, path in server.calls("train --tensorboard"))
    assert any(path.endswith("/documents.npy") for kind, path in server.calls("prepare") if kind == "write")
    for kind, path in calls:
        assert kind in KINDS
        assert path.startswith("/runs")
        assert phase_of(kind, path) in ("settings", "metrics", "save", "checkpoints", "prune", "run folder")


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case("train", (Plan(("write",), 1000, error="EIO"),)), "the fault was not reached"),
        (Case("Tokenizer.save", (Plan(("open",), 1, error="EIO"),), moment=None), None),
    ],
)
def test_a_fault_that_is_not_reached_is_no_success(server, case, told):
    assert server.judge(case).problems == ([told] if told else [])


def test_cases_are_many_their_names_differ_and_rows_take_turns(server):
    cases = every_case(server.calls, 0)
    assert len(cases) > 2000
    assert len({case.name for case in cases}) > 0.99 * len(cases)  # of seeded ones some may meet
    assert {case.scenario for case in cases} == set(SCENARIOS)
    chosen = sample(cases, 60, seed=1)
    assert len({(case.scenario, *case.row) for case in chosen}) == 60
    assert chosen == sample(cases, 60, seed=1) != sample(cases, 60, seed=2)
    assert sum("SIGKILL" in case.signals for case in cases) >= 200


def test_the_table_counts(server):
    case = Case("train", (Plan(("write",), 1, error="EIO"),))
    verdicts = [Verdict(case, "save", problems, 0.1, "") for problems in ([], ["a traceback"], [])]
    assert table(verdicts).splitlines()[-1] == "| train | save | write | EIO | 3 | 2 |"
    assert Done(0, "", "", []).code == 0
