"""Faults of the attention explorer: what its page carries, its colours and pictures, and the scores of heads."""

from __future__ import annotations

from ..places import call, comparison, condition, operation, receiver, returned, subscript, value
from ..plant import Mutant

_SCORES = "tests/fastgpt/study/test_head_scores.py::test_"
_PALETTE = "tests/fastgpt/study/test_palette.py::test_"
_MAPS = "tests/fastgpt/study/test_attention_maps.py::test_"
_EXPLORER = "tests/fastgpt/study/test_explorer.py::test_"
_EFFECTS = "tests/fastgpt/commands/test_command_effects.py::test_"

MUTANTS = (
    Mutant(
        "head-scores-same-token-counts-the-query-itself",
        "head_scores._scores_of",
        value("same").call("tril").argument(0).becomes("0"),
        _SCORES + "chance_is_counted",
    ),
    Mutant(
        "head-scores-what-followed-may-be-the-query",
        "head_scores._scores_of",
        value("after", "tril").argument(0).becomes("0"),
        _SCORES + "a_token_that_comes_twice_in_a_row_followed_itself",
    ),
    Mutant(
        "head-scores-entropy-divided-by-all-keys",
        "head_scores._scores_of",
        operation("/", "entropy").operand("seen").becomes("seen[-1].log()"),
        _SCORES + "chance_is_counted",
    ),
    Mutant(
        "head-scores-the-first-query-looks-at-the-first-token",
        "head_scores._scores_of",
        subscript("a").becomes("a[:, 0]"),
        _SCORES + "chance_is_counted",
    ),
    Mutant(
        "head-scores-queries-count-that-have-no-such-key",
        "head_scores._mean_weight",
        returned().becomes("(a * wanted).sum(-1).mean()"),
        _SCORES + "each_score_is_1_of_the_head_that_does_it",
    ),
    Mutant(
        "head-scores-of-attention-to-the-future",
        "head_scores._check",
        condition("triu").never(),
        _SCORES + "what_are_no_weights_is_refused",
    ),
    Mutant(
        "palette-square-root-is-linear",
        "palette.shade",
        returned("sqrt").becomes("w"),
        _PALETTE + "scales_are_what_they_are_called",
    ),
    Mutant(
        "attention-picture-future-looks-like-0",
        "attention_maps.png",
        call("where").becomes(receiver()),
        _MAPS + "a_picture_shows_weights_tokens_and_scale[sqrt]",
    ),
    Mutant(
        "attention-maps-pixel-is-the-mean",
        "attention_maps.pooled",
        call("max_pool2d").becomes("torch.nn.functional.avg_pool2d(weights[None], k, ceil_mode=True)"),
        _EXPLORER + "small_maps_show_the_largest_weight",
    ),
    Mutant(
        "attention-maps-heads-numbered-anew",
        "study.head_panels",
        value("numbers").choice().never(),
        _MAPS + "heads_have_their_numbers",
    ),
    Mutant(
        "attention-maps-a-token-ends-the-script",
        "explorer._skeleton",
        call("inside_a_script").becomes("json.dumps(data)"),
        _EXPLORER + "a_page_carries_every_weight",
    ),
    Mutant(
        "attention-maps-weights-cut-off",
        "map_storage._codes",
        call("round").unwrapped(),
        _EXPLORER + "long_texts_are_rounded_as_it_is_told",
    ),
    Mutant(
        "attention-maps-rounded-a-token-early",
        "map_storage.stored_as",
        comparison().operator("<"),
        _EXPLORER + "long_texts_are_rounded_as_it_is_told",
    ),
    Mutant(
        "attention-maps-of-any-size-in-a-page",
        "explorer.add_explorer",
        condition("LARGEST").never(),
        _EXPLORER + "what_no_page_can_show_is_refused",
    ),
    Mutant(
        "inspect-scale-is-not-the-pages",
        "inspect.Command.run",
        call("explorer_page").argument("scale").becomes("'sqrt'"),
        _EFFECTS + "inspect_draws_the_layers_and_heads_asked_for_under_their_names",
    ),
    Mutant(
        "inspect-nan-is-blamed-on-the-prompt",
        "inspect.Command.run",
        condition("owner").never(),
        _EFFECTS + "inspect_of_a_model_that_computes_nan_is_one_line_about_the_model",
    ),
)
