"""Faults of the pages that show a model's steps, and of the commands that write them."""

from __future__ import annotations

from ..places import argument, assignment, call, operation, value
from ..plant import Mutant

_ONE = "tests/fastgpt/study/test_one_head_page.py::test_"
_BLOCK = "tests/fastgpt/study/test_block_page.py::test_"
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
        "pages.inside_a_script",
        call("sub").becomes("json_text"),
        _ONE + "a_token_ends_no_script",
    ),
    Mutant(
        "show-likeliest-of-the-logits",
        "study.likeliest",
        call("softmax").becomes("logits"),
        _ONE + "the_likeliest_tokens_are_those_of_the_whole_softmax",
    ),
    Mutant(
        "show-nan-stops-the-page",
        "study.likeliest",
        call("_or_none", "p").becomes("p"),
        _ONE + "what_overflows_is_shown_as_no_number_in_a_colour_of_its_own",
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
        "show-block-key-heads-dealt-in-turn",
        "study.key_head",
        operation("//").becomes("head % config.n_kv_heads"),
        _BLOCK + "query_heads_in_a_row_share_a_key_head",
    ),
    Mutant(
        "show-block-scores-unscaled",
        "study._block",
        operation("/", "sqrt").becomes("q @ keys.transpose(-2, -1)"),
        _BLOCK + "the_numbers_are_those_of_the_forward",
    ),
    Mutant(
        "show-block-ffn-reads-the-stream",
        "study._block",
        value("fed").becomes("block.ffn(middle)"),
        _BLOCK + "the_numbers_are_those_of_the_forward",
    ),
    Mutant(
        "show-block-lens-without-its-norm",
        "study._foretold",
        assignment("hidden").becomes("hidden = stream"),
        _BLOCK + "the_numbers_are_those_of_the_forward",
    ),
    Mutant(
        "show-block-weights-not-counted",
        "study.bytes_of",
        assignment("per_layer", "has_weights").dropped(),
        _BLOCK + "the_size_that_decides_is_the_size_that_comes",
    ),
)
