"""Faults of context parallel: who holds which tokens, what travels round the ring, and how its parts are merged."""

from __future__ import annotations

from ..places import call, collection, comparison, condition, operation, value
from ..plant import Mutant

_RING = "tests/fastgpt/parallel/test_ring.py::test_"
_ATTENTION = _RING + "attention_and_its_gradients_are_those_of_one_process"
_PAIRS = (
    "tests/fastgpt/parallel/test_ring_layout.py::test_every_pair_is_computed_once_and_all_ranks_have_the_same_number_at"
    "_every_step"
)
_TRAINING = "tests/fastgpt/train/test_sharing.py::test_"
_PIECES = "tests/fastgpt/parallel/test_ring_pieces.py::test_"

MUTANTS = (
    Mutant(
        "ring-ranks-of-a-ring-see-other-sequences",
        "sharing.place",
        operation("//", "world.rank").becomes("world.rank % (world.size // ring.size)"),
        _TRAINING + "a_run_is_that_of_one_process",
    ),
    Mutant(
        "ring-trains-on-whole-sequences",
        "BatchSampler.next_batch",
        condition("columns").never(),
        _TRAINING + "a_sampler_takes_its_columns",
    ),
    Mutant(
        "ring-batch-of-a-run-counts-ranks-of-a-ring-twice",
        "TrainConfig.on_ranks",
        condition("context_parallel").never(),
        _TRAINING + "what_cannot_be_is_said",
    ),
    Mutant("ring-sees-later-ranks-for-earlier", "ring_layout.piece", comparison("rank", nth=2).operator(">"), _PAIRS),
    Mutant(
        "ring-chunks-in-a-row",
        "ring_layout.positions",
        collection("rank").becomes("[2 * rank, 2 * rank + 1]"),
        _PAIRS,
    ),
    Mutant(
        "ring-parts-merged-by-the-larger-alone",
        "ring._merge",
        value("total").becomes("torch.maximum(lse, part_lse)"),
        _PIECES + "parts_merge_in_any_order",
    ),
    Mutant(
        "ring-gradients-of-keys-stay-where-they-are",
        "ring._backward",
        value("coming_gradients", "pass_on").becomes("lambda here=travelling: here"),
        _ATTENTION + "[two-0]",
    ),
    Mutant(
        "ring-gradient-of-lse-with-the-wrong-sign",
        "ring_pieces.backward",
        value("delta", "dlse").operator("+"),
        _PIECES + "the_plain_formula_over_blocks_of_queries",
    ),
    Mutant(
        "ring-kernels-read-lse-as-it-lies",
        "ring_pieces.backward",
        call("lse.contiguous").becomes("lse"),
        _ATTENTION + "[two-4]",
    ),
    Mutant(
        "ring-tokens-stand-where-one-process-has-them",
        "GPT._positions",
        condition("ring").never(),
        _RING + "a_gpt_is_that_of_one_process[two]",
    ),
    Mutant("ring-drops-nothing-silently", "ring.check_dropout", condition().never(), _RING + "what_cannot_be_is_said"),
    Mutant(
        "ring-holds-all-scores",
        "ring_pieces",
        value("BLOCK").becomes("1 << 20"),
        _PIECES + "no_square_of_the_tokens_is_held",
    ),
)
