"""Faults of jobs that lose a rank."""

from __future__ import annotations

from ..places import call, condition, value
from ..plant import Mutant

_WATCH = "tests/fastgpt/parallel/test_watch.py::test_"
_ALIKE = "tests/fastgpt/train/test_alike.py::test_"

MUTANTS = (
    Mutant(
        "kills-buckets-are-ordered-in-the-midst-of-a-run",
        "strategy.DataParallel.__init__",
        call("_settle_buckets").becomes("None"),
        "tests/fastgpt/parallel/test_buckets.py::test_the_first_step_adds_in_the_order_of_the_others",
    ),
    Mutant(
        "kills-gradients-of-nothing-are-left",
        "strategy.DataParallel._settle_buckets",
        value("parameter.grad").becomes("parameter.grad"),
        "tests/fastgpt/parallel/test_buckets.py::test_the_first_step_adds_in_the_order_of_the_others",
    ),
    Mutant(
        "kills-each-rank-counts-restarts-for-itself",
        "elastic.resume_of",
        condition("any").becomes("not is_restart()"),
        "tests/fastgpt/train/test_elastic.py::test_all_ranks_go_on_where_the_launcher_of_one_has_counted_a_restart",
    ),
    Mutant(
        "kills-who-is-blamed-believes-it",
        "watch.Watch._told",
        condition("blamed").always(),
        _WATCH + "who_is_blamed_looks_for_itself",
    ),
    Mutant(
        "kills-who-knew-earlier-is-not-heard",
        "watch.Watch._found",
        condition("told", nth=1).never(),
        _WATCH + "who_knew_earlier_is_believed",
    ),
    Mutant(
        "kills-ranks-may-differ",
        "run_folder.check_alike",
        call("differences").becomes("{}"),
        _ALIKE + "one_that_differs_is_named",
    ),
    Mutant(
        "kills-fit-does-not-ask-whether-ranks-are-alike",
        "trainer.Trainer.fit",
        call("_record").becomes("{}"),
        _ALIKE + "fit_asks_before_anything_is_written",
    ),
)
