"""Faults of the strategies: what several ranks make of one run."""

from __future__ import annotations

from ..places import call, condition, returned, value
from ..plant import Mutant

_RUNS = "tests/fastgpt/parallel/test_strategies.py::test_"

MUTANTS = (
    Mutant(
        "parallel-copies-gradients-are-means",
        "strategy.DataParallel.__init__",
        value("share").becomes("1.0"),
        _RUNS + "the_losses_are_those_of_one_process",
    ),
    Mutant(
        "parallel-sharded-gradients-are-means",
        "strategy.Sharded.__init__",
        value("share").becomes("1.0"),
        _RUNS + "the_losses_are_those_of_one_process",
    ),
    Mutant(
        "parallel-each-rank-draws-its-own-weights",
        "initial.keep_part",
        call("part_of").argument(0).becomes("whole + parameter.device_mesh.get_rank()"),
        _RUNS + "a_sharded_model_has_the_bits_of_a_whole_one",
    ),
    Mutant(
        "parallel-torchs-own-draws-are-left-out",
        "initial._DrawnForNobody.__torch_function__",
        condition("is_meta").never(),
        _RUNS + "a_sharded_model_has_the_bits_of_a_whole_one",
    ),
    Mutant(
        "parallel-validation-of-the-first-rank-alone",
        "train.evaluate",
        condition("size").never(),
        _RUNS + "the_validations_are_those_of_one_process",
    ),
    Mutant(
        "parallel-two-ranks-of-a-machine-have-all-of-it-each",
        "placing._each",
        returned("local_size").becomes("room.n_bytes"),
        _RUNS + "what_is_chosen",
    ),
    Mutant(
        "parallel-the-stream-in-bfloat16",
        "strategy.widened",
        returned().becomes("args"),
        _RUNS + "bfloat16_shards_are_gathered_in_it_around_a_float32_stream",
    ),
    Mutant(
        "parallel-each-rank-reports",
        "cli._is_idle_rank",
        returned().becomes("False"),
        "tests/fastgpt/commands/test_many_ranks.py::test_what_is_no_training_one_process_of_a_launcher_does",
    ),
)
