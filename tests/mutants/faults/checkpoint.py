"""Faults of checkpoints: hashes, and what is in them."""

from __future__ import annotations

from ..plant import Mutant

_CHECKPOINT = "fastgpt/train/checkpoint.py"
_FILES = "fastgpt/base/files.py"
_SAVED = "tests/fastgpt/train/test_checkpoint.py::test_"
_ON_DISK = "tests/fastgpt/base/test_files.py::test_"
_WHOLE = "tests/fastgpt/train/test_checkpoint_state.py::test_"
_RESUMED = "tests/fastgpt/train/test_trainer.py::test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit"
_CHECKSUMS = "fastgpt/base/checksums.py"
_TENSOR_FILE = "fastgpt/model/formats/tensor_file.py"

MUTANTS = (
    # --- hashes -------------------------------------------------------------------------------------------------------
    Mutant(
        "checksums-of-nothing",
        _CHECKSUMS,
        "lacking or not found",
        "False",
        "tests/fastgpt/base/test_checksums.py::test_a_record_of_nothing_verifies_nothing",
    ),
    Mutant(
        "checksums-not-compared",
        _CHECKSUMS,
        "_sha256(path, found) != expected",
        "False",
        _SAVED + "corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "checksums-of-some-files-only",
        _CHECKSUMS,
        "sorted(folder.rglob('*'))",
        "sorted(folder.rglob('*.json'))",
        _SAVED + "corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "files-hash-of-the-first-block",
        _FILES,
        """
        while block := file.read(1 << 20):
            digest.update(block)
            if on_read is not None:
                on_read(file.tell())
        """,
        "digest.update(file.read(1 << 20))",
        _WHOLE + "every_byte_counts_in_a_hash",
    ),
    Mutant(
        "files-hash-without-the-last-block",
        _FILES,
        "block := file.read(1 << 20)",
        "len(block := file.read(1 << 20)) == 1 << 20",
        _WHOLE + "every_byte_counts_in_a_hash",
    ),
    Mutant(
        "checksums-a-missing-file-is-whole",
        _CHECKSUMS,
        'raise DamagedFile(path, f"missing from the checkpoint ({files.reason(error)})") from None',
        "return",
        _SAVED + "truncated_and_missing_files",
    ),
    Mutant(
        "checksums-what-is-read-is-not-hashed",
        _CHECKSUMS,
        "None if name in hashed else stamps.get(name)",
        "stamps.get(name)",
        "tests/fastgpt/base/test_checksums.py::test_damage_behind_an_unchanged_stamp_is_seen_by_who_reads_and_by_a_whole_look",
    ),
    Mutant(
        "checksums-stamps-altered",
        _CHECKSUMS,
        "not isinstance(stamps, dict) or stamps.pop('sha256', None) != _hash(stamps)",
        "stamps.pop('sha256', None) is None",
        "tests/fastgpt/base/test_checksums.py::test_any_bit_of_the_files_of_text",
    ),
    Mutant(
        "checksums-a-known-file-by-its-name",
        _CHECKSUMS,
        "(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)",
        "(found.st_dev, found.st_ino)",
        "tests/fastgpt/base/test_checksums.py::test_what_is_not_read_is_believed_by_its_stamp",
    ),
    Mutant(
        "checksums-time-stamp-alone",
        _CHECKSUMS,
        "found.st_size >= _QUICK_FROM and _stamp(found) == stamp",
        "found.st_size >= _QUICK_FROM and stamp is not None",
        "tests/fastgpt/base/test_checksums.py::test_what_is_not_read_is_believed_by_its_stamp",
    ),
    Mutant(
        "interop-hash-not-compared",
        _TENSOR_FILE,
        "metadata.get(HASH) != tensors_sha256(tensors)",
        "False",
        _ON_DISK + "four_bytes_overwritten_anywhere_are_found",
    ),
    Mutant(
        "interop-hash-without-shapes",
        _TENSOR_FILE,
        "[name, str(tensor.dtype), list(tensor.shape)]",
        "[name, str(tensor.dtype)]",
        _ON_DISK + "tensors_come_back_and_their_hash_is_written",
    ),
    Mutant(
        "interop-hash-without-dtypes",
        _TENSOR_FILE,
        "[name, str(tensor.dtype), list(tensor.shape)]",
        "[name, list(tensor.shape)]",
        _ON_DISK + "tensors_come_back_and_their_hash_is_written",
    ),
    Mutant(
        "interop-hash-without-names",
        _TENSOR_FILE,
        "[name, str(tensor.dtype), list(tensor.shape)]",
        "[str(tensor.dtype), list(tensor.shape)]",
        _WHOLE + "names_count_in_the_hash_of_tensors",
    ),
    Mutant(
        "checkpoint-the-way-out-is-damaged-too",
        "fastgpt/train/step_folders.py",
        "_is_whole(other)",
        "True",
        "tests/fastgpt/commands/test_train_command.py::test_every_checkpoint_damaged",
    ),
    # --- what is in it ------------------------------------------------------------------------------------------------
    Mutant(
        "checkpoint-random-numbers-not-restored",
        _CHECKPOINT,
        "set_rng(tensors)",
        "",
        _RESUMED,
        "restore",
    ),
    Mutant(
        "checkpoint-moments-not-restored",
        _CHECKPOINT,
        'optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})',
        "",
        _RESUMED,
    ),
    Mutant(
        "checkpoint-weights-not-restored",
        _CHECKPOINT,
        "model.load_state_dict(weights, strict=False)",
        "",
        _RESUMED,
    ),
    Mutant(
        "checkpoint-weights-before-all-is-checked",
        _CHECKPOINT,
        "moments = fitting_moments(folder, model, optimizer, tensors, trained)",
        """
        model.load_state_dict(weights, strict=False)
        moments = fitting_moments(folder, model, optimizer, tensors, trained)
        """,
        "tests/fastgpt/train/test_resume_fits.py::test_a_moment_that_is_none_of_this_parameter_is_named",
    ),
    Mutant(
        "checkpoint-moments-in-bfloat16",
        "fastgpt/train/training_state.py",
        "value.detach()",
        "value.detach().bfloat16()",
        _WHOLE + "all_of_the_state_comes_back",
    ),
    Mutant(
        "checkpoint-moments-without-the-step",
        "fastgpt/train/training_state.py",
        "optimizer.state.get(parameter, {}).items()",
        "list(optimizer.state.get(parameter, {}).items())[1:]",
        _WHOLE + "all_of_the_state_comes_back",
    ),
    Mutant(
        "checkpoint-moments-of-another-shape",
        "fastgpt/train/training_state.py",
        "value.shape != shape",
        "False",
        "tests/fastgpt/train/test_resume_fits.py::test_a_moment_that_is_none_of_this_parameter_is_named",
    ),
    Mutant(
        "checkpoint-moments-of-another-dtype",
        "fastgpt/train/training_state.py",
        "value.dtype != dtype",
        "False",
        "tests/fastgpt/train/test_resume_fits.py::test_a_moment_that_is_none_of_this_parameter_is_named",
    ),
    Mutant(
        "checkpoint-moments-that-are-not-finite",
        "fastgpt/train/training_state.py",
        "not value.isfinite().all()",
        "False",
        "tests/fastgpt/train/test_resume_fits.py::test_a_moment_that_is_none_of_this_parameter_is_named",
    ),
    Mutant(
        "checkpoint-of-another-model-of-the-same-shapes",
        _CHECKPOINT,
        "_check_config(folder, model)",
        "",
        "tests/fastgpt/train/test_resume_fits.py::test_a_model_that_computes_something_else_is_refused_whatever_is_allowed",
    ),
    Mutant(
        "checkpoint-of-other-frozen-parameters",
        "fastgpt/train/training_state.py",
        "only_before or only_now",
        "False",
        "tests/fastgpt/train/test_resume_fits.py::test_other_frozen_parameters_are_refused",
    ),
    Mutant(
        "checkpoint-of-other-shapes",
        _CHECKPOINT,
        "shapes or unknown or absent",
        "unknown or absent",
        _SAVED + "checkpoint_of_another_shape",
    ),
    Mutant(
        "checkpoint-of-more-layers",
        _CHECKPOINT,
        "shapes or unknown or absent",
        "shapes or absent",
        _SAVED + "fewer_layers_than_the_checkpoint",
    ),
    Mutant(
        "checkpoint-of-fewer-layers",
        _CHECKPOINT,
        "shapes or unknown or absent",
        "shapes or unknown",
        _SAVED + "checkpoint_of_another_shape",
    ),
    Mutant(
        "checkpoint-lives-in-its-files",
        "fastgpt/train/training_state.py",
        "value.clone()",
        "value",
        _WHOLE + "what_was_loaded_does_not_change_with_the_files",
    ),
    Mutant(
        "checkpoint-a-file-and-its-hash-may-lack",
        _CHECKPOINT,
        "name not in names",
        "False",
        "tests/fastgpt/train/test_resume_fits.py::test_a_checkpoint_without_a_file_and_its_hash_is_none",
        "verify",
    ),
    Mutant(
        "checkpoint-weights-of-any-dtype",
        _CHECKPOINT,
        "(dtype_name(own[name].dtype), *own[name].shape)",
        "(stored[name][0], *own[name].shape)",
        "tests/fastgpt/train/test_resume_fits.py::test_weights_of_another_dtype_are_refused",
    ),
)
