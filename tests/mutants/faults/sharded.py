"""Faults of checkpoints that many ranks write and read."""

from __future__ import annotations

from ..places import call, condition, returned, statement, value
from ..plant import Mutant

_SHARDED = "tests/fastgpt/train/test_sharded.py::test_"
_EVERY = _SHARDED + "every_way_to_save_is_read_by_every_other_to_the_bit"
_EXPORT = "tests/fastgpt/commands/test_export_command.py::test_"
_ELASTIC = "tests/fastgpt/train/test_elastic.py::test_"
_NO_COPY = (
    "type('Same', (), {'stage': lambda self, state: state, 'close': lambda self: None, "
    "'should_synchronize_after_execute': False})()"
)

MUTANTS = (
    Mutant(
        "sharded-saves-what-comes-later",
        "sharded.Group.save",
        call("async_save").argument("async_stager").becomes(_NO_COPY),
        _EVERY,
    ),
    Mutant(
        "sharded-one-random-state-for-all",
        "train.rank_rng_tensors",
        value("tensors", nth=1).becomes("{'rng/0/cpu': torch.get_rng_state()}"),
        _EVERY,
    ),
    Mutant(
        "sharded-new-ranks-draw-the-same-numbers",
        "train.restore",
        call("begin_rng").argument(2).becomes("0"),
        _EVERY,
    ),
    Mutant(
        "sharded-the-tied-head-twice",
        "training_state.weights",
        call("setdefault").becomes("found.setdefault(name, (name, tensor))"),
        _EVERY,
    ),
    Mutant("sharded-without-its-step", "Writer.finish", call("describe").dropped(), _SHARDED + "layout"),
    Mutant(
        "sharded-pieces-may-lack",
        "formats.sharded.stored",
        condition("sum").never(),
        _SHARDED + "pieces_that_are_missing_where_no_hashes_tell",
    ),
    Mutant(
        "sharded-reads-the-files-of-others",
        "formats.sharded.tensor_files",
        returned("_PLAIN").becomes("sorted(folder.glob('*.safetensors'))"),
        _SHARDED + "tensors_of_a_trainer_of_one_process_are_read_by_the_same_reader",
    ),
    Mutant(
        "sharded-hashes-of-every-second-file",
        "train.verify",
        call("checksums.check", "sorted").dropped(),
        _SHARDED + "the_ranks_share_the_hashing",
    ),
    Mutant(
        "export-over-what-is-there",
        "export.Command._checked",
        condition("iterdir").never(),
        _EXPORT + "an_empty_folder_is_filled_and_a_full_one_stays",
    ),
    Mutant(
        "export-leaves-half-of-it",
        "export.Command._write",
        call("working_folder").becomes("__import__('contextlib').nullcontext(files.make_folder(out) or out)"),
        _EXPORT + "of_a_full_disk_nothing_stays",
    ),
    Mutant(
        "elastic-a-rank-believes-an-earlier-round",
        "round._follow",
        condition("len").never(),
        "tests/fastgpt/parallel/test_round.py::test_every_round_has_a_part_of_its_own",
    ),
    Mutant(
        "elastic-takes-up-whatever-run-is-there",
        "elastic._newest_own",
        returned("job").becomes("newest"),
        _ELASTIC + "the_run_of_another_job_is_not_taken_up",
    ),
    Mutant(
        "elastic-overwrites-what-it-has-saved",
        "elastic.resume_of",
        statement("return", nth=3).becomes("return True, overwrite"),
        _ELASTIC + "overwrite_counts_until_the_job_has_saved",
    ),
    Mutant(
        "elastic-a-restart-does-not-wait-for-the-lock",
        "elastic.locked",
        value("end").becomes("time.monotonic()"),
        _ELASTIC + "a_restart_waits_for_the_lock_of_a_process_that_ends",
    ),
    Mutant(
        "sharded-drops-the-old-before-the-new-is-whole",
        "Saver.prune",
        condition("_pending").never(),
        _SHARDED + "every_rank_is_told_of_one_that_fails",
    ),
)
