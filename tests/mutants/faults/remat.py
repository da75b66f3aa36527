"""Faults of activation checkpointing: what is kept, what is computed again, and where."""

from __future__ import annotations

from ..places import call, condition, literal, returned, value
from ..plant import Mutant

_REMAT = "tests/fastgpt/model/test_remat.py::test_"
_TRAINER = "tests/fastgpt/train/test_trainer.py::test_"

MUTANTS = (
    Mutant(
        "remat-compiled-with-advice-that-is-no-users",
        "remat._is_of_use",
        returned("record.msg").becomes("True"),
        _REMAT + "torch_gives_no_advice_that_is_no_users",
    ),
    Mutant(
        "ranks-other-loggers-are-heard",
        "_ranks.quiet",
        call("logging.disable").argument(0).becomes("logging.NOTSET"),
        "tests/fastgpt/commands/test_ranks.py::test_only_the_first_rank_is_heard[1]",
    ),
    Mutant(
        "remat-attention-that-draws-its-mask-is-passed-over",
        "remat._draws",
        returned("dropout_p").becomes("False"),
        _REMAT + "torchs_attention_that_draws_its_mask_is_computed_again",
    ),
    Mutant(
        "remat-products-with-a-bias-are-computed-again",
        "remat._KEPT",
        literal("aten::addmm").becomes('"aten::bmm"'),
        _REMAT + "the_table_is_what_is_counted",
    ),
    Mutant(
        "remat-selective-is-full",
        "remat.apply",
        value("block.remat").becomes('"none" if mode == "none" else "full"'),
        _REMAT + "the_table_is_what_is_counted",
    ),
    Mutant(
        "remat-other-dropout-in-the-backward",
        "remat._checkpointed",
        call("checkpoint", nth=1).argument("use_reentrant").becomes("False, preserve_rng_state=False"),
        _REMAT + "dropout_of_others_modules_draws_the_same_again",
    ),
    Mutant(
        "remat-in-torch-func-too",
        "remat.run",
        call("_transforms.are_on").becomes("False"),
        _REMAT + "transforms_and_export_go_without",
    ),
    Mutant(
        "remat-without-gradients-too",
        "remat.run",
        condition("is_grad_enabled").operand("is_grad_enabled").becomes("False"),
        _REMAT + "without_gradients_nothing_goes_through_torchs_checkpoint",
    ),
    Mutant(
        "remat-blocks-are-not-compiled",
        "remat.compile_blocks",
        value("block.compile_backend").becomes("None"),
        _REMAT + "blocks_are_compiled_once",
    ),
    Mutant(
        "remat-the-trainer-forgets-it",
        "Updates.__init__",
        condition("remat").never(),
        _TRAINER + "remat_changes_no_number",
    ),
    Mutant(
        "remat-plan-computes-again-by-the-plain-formula",
        "tools._on_paper_again",
        call("_FlashSdpa").becomes("contextlib.nullcontext()"),
        _REMAT + "a_larger_batch_fits",
    ),
)
