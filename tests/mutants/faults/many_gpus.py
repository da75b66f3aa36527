"""Faults of `fastgpt plan` on many GPUs."""

from __future__ import annotations

from ..places import call, choice, literal, value
from ..plant import Mutant

_MOMENTS = "tests/fastgpt/tools/test_moments.py::test_"
_TRAFFIC = "tests/fastgpt/tools/test_rank_traffic.py::test_"
_RANKS = "tests/fastgpt/tools/test_many_gpus.py::test_"

MUTANTS = (
    Mutant(
        "many-gpus-rows-rounded-down",
        "rank_memory.part",
        call("math.ceil").becomes("(shape[0] // ranks)"),
        _RANKS + "a_part_is_a_number_of_rows_rounded_up",
    ),
    Mutant(
        "many-gpus-one-moment-only",
        "rank_memory.rank_memory",
        value("fixed").operand(1).becomes("3"),
        _RANKS + "the_peak_is_that_of_a_real_step",
    ),
    Mutant(
        "many-gpus-blocks-gathered-once",
        "rank_traffic.messages",
        value("inside").becomes("part(block, n)"),
        _TRAFFIC + "fsdp_gathers_twice_and_reduces_once_a_micro_batch",
    ),
    Mutant(
        "many-gpus-all-reduce-half",
        "rank_traffic.messages",
        literal(2, nth=-3).becomes("1"),
        _TRAFFIC + "ddp_reduces_once_an_update",
    ),
    Mutant(
        "many-gpus-ring-sends-once",
        "rank_traffic.messages",
        value("forwards").choice().always(),
        _TRAFFIC + "keys_and_values_go_round_the_ring",
    ),
    Mutant(
        "many-gpus-adapters-not-shared",
        "Message.seconds",
        value("sharing").choice().always(),
        _TRAFFIC + "seconds",
    ),
    Mutant(
        "many-gpus-overlap-is-the-sum",
        "many_gpus._time",
        call("max").becomes("computing + sending"),
        _TRAFFIC + "a_bound_on_time",
    ),
    Mutant(
        "many-gpus-gradients-of-a-block-at-once",
        "moments._laid_out",
        choice("by_block", nth=1).never(),
        _MOMENTS + "gradients_of_a_block_are_there_together",
    ),
    Mutant(
        "many-gpus-auto-never-shares",
        "placement.place",
        value("strategy").choice().always(),
        "tests/fastgpt/tools/test_placement.py::test_auto_is_ddp_where_a_whole_copy_fits_one_gpu",
    ),
)
