"""Faults of the pages that show a model's steps, and of the commands that write them."""

from __future__ import annotations

from ..places import argument, call, condition, operation
from ..plant import Mutant

_ONE = "tests/fastgpt/study/test_one_head_page.py::test_"
_SMALL = "tests/fastgpt/study/test_small_models.py::test_"
_SHOW = "tests/fastgpt/commands/test_show_commands.py::test_"

MUTANTS = (
    Mutant(
        "show-statistics-of-a-sample",
        "study.statistics_of",
        argument("unbiased").becomes("True"),
        _ONE + "statistics_are_those_that_layer_norm_divides_by",
    ),
    Mutant(
        "show-a-token-ends-the-data",
        "study.step_page",
        call("sub").becomes("json.dumps(data)"),
        _ONE + "a_token_ends_no_script",
    ),
    Mutant(
        "show-likeliest-of-the-logits",
        "study.likeliest",
        call("softmax").becomes("logits"),
        _ONE + "the_likeliest_tokens_are_those_of_the_whole_softmax",
    ),
    Mutant(
        "show-residual-twice",
        "study.one_head_steps",
        operation("+").becomes("rows['x'] + 2 * rows['attended']"),
        _ONE + "every_step_in_float64",
    ),
    Mutant(
        "show-small-model-moves-the-random-state",
        "study.trained.start",
        call("fork_rng").becomes("contextlib.nullcontext()"),
        _SMALL + "it_learns_and_the_seed_decides",
    ),
    Mutant(
        "show-anybodys-file-replaced",
        "commands.check_page_file",
        condition("mark").never(),
        _SHOW + "files_that_are_not_ours_stay_and_ctrl_c_leaves_none",
    ),
)
