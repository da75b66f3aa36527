"""Faults of checkpoints: hashes, and what is in them."""

from __future__ import annotations

from ..places import call, choice, comparison, condition, item, name, statement, value
from ..plant import Mutant

_SAVED = "tests/fastgpt/train/test_checkpoint.py::test_"
_ON_DISK = "tests/fastgpt/base/test_files.py::test_"
_WHOLE = "tests/fastgpt/train/test_checkpoint_state.py::test_"
_RESUMED = "tests/fastgpt/train/test_trainer.py::test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit"

MUTANTS = (
    # --- hashes -------------------------------------------------------------------------------------------------------
    Mutant(
        "checksums-of-nothing",
        "base._read",
        condition("lacking").never(),
        "tests/fastgpt/base/test_checksums.py::test_a_record_of_nothing_verifies_nothing",
    ),
    Mutant(
        "checksums-not-compared",
        "base._check_file",
        value("is_other").never(),
        _SAVED + "corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "checksums-of-some-files-only",
        "base.write",
        call("rglob").becomes("folder.rglob('*.json')"),
        _SAVED + "corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "files-hash-of-the-first-block",
        "base.sha256",
        statement("while").becomes("digest.update(file.read(1 << 20))"),
        _WHOLE + "every_byte_counts_in_a_hash",
    ),
    Mutant(
        "files-hash-without-the-last-block",
        "base.sha256",
        condition("read").becomes("len(it) == 1 << 20"),
        _WHOLE + "every_byte_counts_in_a_hash",
    ),
    Mutant(
        "checksums-a-missing-file-is-whole",
        "base._check_file",
        statement("try", "stat").statement("raise").becomes("return"),
        _SAVED + "truncated_and_missing_files",
    ),
    Mutant(
        "checksums-what-is-read-is-not-hashed",
        "base.check",
        choice("hashed").never(),
        "tests/fastgpt/base/test_checksums.py::test_damage_behind_an_unchanged_stamp_is_seen_by_who_reads_and_by_a_whole_look",
    ),
    Mutant(
        "checksums-stamps-altered",
        "base._read",
        condition("_hash").becomes("stamps.pop('sha256', None) is None"),
        "tests/fastgpt/base/test_checksums.py::test_any_bit_of_the_files_of_text",
    ),
    Mutant(
        "checksums-a-known-file-by-its-name",
        "base._sha256",
        value("stamp").becomes("(found.st_dev, found.st_ino)"),
        "tests/fastgpt/base/test_checksums.py::test_what_is_not_read_is_believed_by_its_stamp",
    ),
    Mutant(
        "checksums-time-stamp-alone",
        "base._check_file",
        comparison("stamp").becomes("stamp is not None"),
        "tests/fastgpt/base/test_checksums.py::test_what_is_not_read_is_believed_by_its_stamp",
    ),
    Mutant(
        "interop-hash-not-compared",
        "formats.read_safetensors",
        comparison("HASH").never(),
        _ON_DISK + "four_bytes_overwritten_anywhere_are_found",
    ),
    Mutant(
        "interop-hash-without-shapes",
        "formats._update",
        item("shape").dropped(),
        _ON_DISK + "tensors_come_back_and_their_hash_is_written",
    ),
    Mutant(
        "interop-hash-without-dtypes",
        "formats._update",
        call("str").dropped(),
        _ON_DISK + "tensors_come_back_and_their_hash_is_written",
    ),
    Mutant(
        "interop-hash-without-names",
        "formats._update",
        name("name").dropped(),
        _WHOLE + "names_count_in_the_hash_of_tensors",
    ),
    Mutant(
        "checkpoint-the-way-out-is-damaged-too",
        "train.instead",
        call("_is_whole").always(),
        "tests/fastgpt/commands/test_train_command.py::test_every_checkpoint_damaged",
    ),
    # --- what is in it ------------------------------------------------------------------------------------------------
    Mutant("checkpoint-random-numbers-not-restored", "train.restore", call("set_rng").dropped(), _RESUMED),
    Mutant("checkpoint-moments-not-restored", "train.restore", call("load_state_dict", "state").dropped(), _RESUMED),
    Mutant("checkpoint-weights-not-restored", "train.restore", call("model.load_state_dict").dropped(), _RESUMED),
    Mutant(
        "checkpoint-weights-before-all-is-checked",
        "train.restore",
        statement("if", "in_parts").followed_by("model.load_state_dict(loaded, strict=False)"),
        "tests/fastgpt/train/test_resume_fits.py::test_a_moment_that_is_none_of_this_parameter_is_named",
    ),
    Mutant(
        "checkpoint-moments-in-bfloat16",
        "train.optimizer_tensors",
        call("detach").becomes("it.bfloat16()"),
        _WHOLE + "all_of_the_state_comes_back",
    ),
    Mutant(
        "checkpoint-moments-without-the-step",
        "train.optimizer_tensors",
        call("items").becomes("list(it)[1:]"),
        _WHOLE + "all_of_the_state_comes_back",
    ),
    Mutant(
        "checkpoint-moments-of-another-shape",
        "train._check_moment",
        condition("shape").never(),
        "tests/fastgpt/train/test_resume_fits.py::test_a_moment_that_is_none_of_this_parameter_is_named",
    ),
    Mutant(
        "checkpoint-moments-of-another-dtype",
        "train._check_moment",
        condition("value.dtype").never(),
        "tests/fastgpt/train/test_resume_fits.py::test_a_moment_that_is_none_of_this_parameter_is_named",
    ),
    Mutant(
        "checkpoint-moments-that-are-not-finite",
        "train._check_moment",
        condition("isfinite").never(),
        "tests/fastgpt/train/test_resume_fits.py::test_a_moment_that_is_none_of_this_parameter_is_named",
    ),
    Mutant(
        "checkpoint-of-another-model-of-the-same-shapes",
        "train.check_fits",
        call("_check_config").dropped(),
        "tests/fastgpt/train/test_resume_fits.py::test_a_model_that_computes_something_else_is_refused_whatever_is_allowed",
    ),
    Mutant(
        "checkpoint-of-other-frozen-parameters",
        "train._check_trained",
        condition().never(),
        "tests/fastgpt/train/test_resume_fits.py::test_other_frozen_parameters_are_refused",
    ),
    Mutant(
        "checkpoint-of-other-shapes",
        "train.check_fits",
        condition("shapes").operand("shapes").dropped(),
        _SAVED + "checkpoint_of_another_shape",
    ),
    Mutant(
        "checkpoint-of-more-layers",
        "train.check_fits",
        condition("shapes").operand("unknown").dropped(),
        _SAVED + "fewer_layers_than_the_checkpoint",
    ),
    Mutant(
        "checkpoint-of-fewer-layers",
        "train.check_fits",
        condition("shapes").operand("absent").dropped(),
        _SAVED + "checkpoint_of_another_shape",
    ),
    Mutant(
        "checkpoint-lives-in-its-files",
        "train.fitting_moments",
        call("clone").unwrapped(),
        _WHOLE + "what_was_loaded_does_not_change_with_the_files",
    ),
    Mutant(
        "checkpoint-a-file-and-its-hash-may-lack",
        "train.verify",
        condition("names").never(),
        "tests/fastgpt/train/test_resume_fits.py::test_a_checkpoint_without_a_file_and_its_hash_is_none",
    ),
    Mutant(
        "checkpoint-weights-of-any-dtype",
        "train.check_fits",
        item("dtype_name").becomes("stored[name][0]"),
        "tests/fastgpt/train/test_resume_fits.py::test_weights_of_another_dtype_are_refused",
    ),
)
