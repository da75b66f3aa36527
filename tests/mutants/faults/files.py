"""Faults of files and folders: what is on the disk, what is renamed, locks and permissions."""

from __future__ import annotations

from ..plant import Mutant

_CHECKPOINT = "fastgpt/train/checkpoint.py"
_FILES = "fastgpt/base/files.py"
_FOLDER = "fastgpt/model/formats/folder.py"
_RUN_FOLDER = "fastgpt/train/run_folder.py"
_DURABLE = "tests/fastgpt/train/test_durability.py::test_"
_SAVED = "tests/fastgpt/train/test_checkpoint.py::test_"
_ON_DISK = "tests/fastgpt/base/test_files.py::test_"
_WHOLE = "tests/fastgpt/train/test_checkpoint_state.py::test_"

MUTANTS = (
    # --- to the disk --------------------------------------------------------------------------------------------------
    Mutant(
        "checkpoint-fsync-of-the-files-removed",
        _CHECKPOINT,
        "files.flush_all(work)",
        "",
        _DURABLE + "a_checkpoint",
    ),
    Mutant(
        "checkpoint-fsync-of-the-folder-removed",
        "fastgpt/train/step_folders.py",
        "files.flush(target.parent)",
        "",
        _DURABLE + "a_checkpoint",
    ),
    Mutant(
        "files-fsync-removed",
        _FILES,
        "os.fsync(descriptor)",
        "",
        _DURABLE + "one_file",
    ),
    Mutant(
        "files-fsync-of-what-replaces-removed",
        _FILES,
        "flush_all(work)",
        "",
        _DURABLE + "one_file",
        "replace_files",
    ),
    Mutant(
        "files-fsync-of-the-folder-removed",
        _FILES,
        "flush(folder)",
        "",
        _DURABLE + "one_file",
    ),
    Mutant(
        "files-fsync-of-a-model-in-its-folder-removed",
        _FILES,
        "flush(folder)",
        "",
        _DURABLE + "a_model",
    ),
    Mutant(
        "files-fsync-of-folders-only",
        _FILES,
        """
        for path in work.iterdir():
            flush(path)
        """,
        "",
        _DURABLE + "several_files",
    ),
    Mutant(
        "files-fsync-of-files-only",
        _FILES,
        "flush(work)",
        "",
        _DURABLE + "the_listener_itself",
    ),
    Mutant(
        "files-fsync-of-a-file-may-fail",
        _FILES,
        "not path.is_dir()",
        "False",
        _WHOLE + "an_fsync_that_fails_is_an_error",
        "flush",
    ),
    Mutant(
        "interop-nanogpt-written-in-place",
        _FOLDER,
        'files.replace_file(path / "ckpt.pt", lambda new: torch.save(checkpoint, new))',
        'torch.save(checkpoint, path / "ckpt.pt")',
        _DURABLE + "a_model",
    ),
    Mutant(
        "interop-model-written-in-place",
        _FOLDER,
        'files.replace_files(path, write, says=path / "model.safetensors")',
        "write(path)",
        _DURABLE + "a_model",
    ),
    Mutant(
        "run-folder-settings-written-in-place",
        _RUN_FOLDER,
        "files.replace_file(folder / 'settings.json', lambda new: new.write_text(text, encoding='utf-8'))",
        "(folder / 'settings.json').write_text(text, encoding='utf-8')",
        _DURABLE + "a_run_and_the_folders_that_it_makes",
    ),
    # --- folders and names --------------------------------------------------------------------------------------------
    Mutant(
        "checkpoint-newest-by-name",
        "fastgpt/train/step_folders.py",
        "key=step_of",
        "key=str",
        _WHOLE + "checkpoints_go_by_their_number",
    ),
    Mutant(
        "checkpoint-oldest-is-newest",
        "fastgpt/train/step_folders.py",
        "found[-1]",
        "found[0]",
        _SAVED + "layout",
    ),
    Mutant(
        "checkpoint-files-are-checkpoints",
        "fastgpt/train/step_folders.py",
        "_STEP.fullmatch(p.name) and p.is_dir() and _holds_any(p)",
        "_STEP.fullmatch(p.name) and (p.is_file() or _holds_any(p))",
        _WHOLE + "checkpoints_go_by_their_number",
    ),
    Mutant(
        "checkpoint-what-begins-so-is-one",
        "fastgpt/train/step_folders.py",
        "_STEP.fullmatch(p.name) and p.is_dir() and _holds_any(p)",
        "_STEP.match(p.name) and p.is_dir() and _holds_any(p)",
        _WHOLE + "checkpoints_go_by_their_number",
    ),
    Mutant(
        "checkpoint-empty-folders-are-checkpoints",
        "fastgpt/train/step_folders.py",
        "_STEP.fullmatch(p.name) and p.is_dir() and _holds_any(p)",
        "_STEP.fullmatch(p.name) and p.is_dir()",
        "tests/fastgpt/train/test_step_folders.py::test_what_is_no_checkpoint_is_not_taken_for_the_newest",
    ),
    Mutant(
        "checkpoint-prune-keeps-one-fewer",
        "fastgpt/train/step_folders.py",
        "keep - 1",
        "keep - 2",
        _SAVED + "only_the_newest_are_kept",
    ),
    Mutant(
        "checkpoint-prune-keeps-one-more",
        "fastgpt/train/step_folders.py",
        "keep - 1",
        "keep",
        _SAVED + "only_the_newest_are_kept",
    ),
    Mutant(
        "checkpoint-prune-takes-the-newest-first",
        "fastgpt/train/step_folders.py",
        "before[: max(0, len(before) - (keep - 1))]",
        "before[::-1][: max(0, len(before) - (keep - 1))]",
        _SAVED + "only_the_newest_are_kept",
    ),
    Mutant(
        "checkpoint-prune-takes-what-was-just-saved",
        "fastgpt/train/step_folders.py",
        "step_of(path) < step_of(newest)",
        "step_of(path) <= step_of(newest)",
        _SAVED + "only_the_newest_are_kept",
        "prune",
    ),
    Mutant(
        "checkpoint-prune-takes-later-steps",
        "fastgpt/train/step_folders.py",
        "step_of(path) < step_of(newest)",
        "path != newest",
        "tests/fastgpt/train/test_step_folders.py::test_pruning_deletes_nothing_of_later_steps",
    ),
    Mutant(
        "checkpoint-prune-that-fails-ends-the-run",
        "fastgpt/train/step_folders.py",
        "say_once(f'could not delete the old checkpoint {folder} ({files.reason(error)}); training goes on')",
        "raise",
        "tests/fastgpt/train/test_step_folders.py::test_pruning_forgives_what_it_cannot_delete",
    ),
    Mutant(
        "checkpoint-sets-itself-aside",
        "fastgpt/train/step_folders.py",
        "step_of(path) > step",
        "step_of(path) >= step",
        _SAVED + "corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "checkpoint-sets-nothing-aside",
        "fastgpt/train/step_folders.py",
        "step_of(path) > step",
        "False",
        _SAVED + "corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "checkpoint-failed-save-leaves-the-old-one-away",
        "fastgpt/train/step_folders.py",
        "replaced.rename(target)",
        "pass",
        _WHOLE + "a_rename_that_fails_puts_the_old_one_back",
    ),
    Mutant(
        "overwritten-metrics-are-left-behind",
        "fastgpt/train/overwritten.py",
        '("settings.json", "metrics.jsonl")',
        '("settings.json",)',
        "tests/fastgpt/train/test_overwrite.py::test_a_new_run_that_comes_to_nothing_leaves_the_old_one",
    ),
    Mutant(
        "overwritten-the-old-run-stays-for-ever",
        "fastgpt/train/overwritten.py",
        "(run / _ASIDE).is_dir() and all_checkpoints(run / _CHECKPOINTS)",
        "False",
        "tests/fastgpt/train/test_overwrite.py::test_the_new_run_takes_the_place_of_the_old_one_and_of_nothing_else",
    ),
    Mutant(
        "overwritten-the-old-run-goes-at-once",
        "fastgpt/train/overwritten.py",
        "(run / _ASIDE).is_dir() and all_checkpoints(run / _CHECKPOINTS)",
        "(run / _ASIDE).is_dir()",
        "tests/fastgpt/train/test_overwrite.py::test_a_new_run_that_comes_to_nothing_leaves_the_old_one",
    ),
    Mutant(
        "checkpoint-a-full-disk-is-swallowed",
        _CHECKPOINT,
        "(OSError, SafetensorError)",
        "SafetensorError",
        _SAVED + "full_disk_leaves_the_earlier_checkpoints_intact",
        "atomic_folder",
    ),
    # --- locks and permissions ----------------------------------------------------------------------------------------
    Mutant(
        "files-lock-not-taken",
        _FILES,
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "",
        "tests/fastgpt/train/test_trainer.py::test_no_two_train_in_one_folder",
    ),
    Mutant(
        "files-lock-is-shared",
        _FILES,
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/fastgpt/train/test_trainer.py::test_no_two_train_in_one_folder",
    ),
    Mutant(
        "files-lock-is-not-let-go",
        _FILES,
        "fcntl.flock(descriptor, fcntl.LOCK_UN)",
        "pass",
        _WHOLE + "a_lock_is_let_go_though_a_child_has_it_open",
    ),
    Mutant(
        "files-what-a-killed-process-left-stays",
        _FILES,
        "shutil.rmtree(path, ignore_errors=True)",
        "pass",
        _ON_DISK + "what_a_killed_process_left_is_removed_and_a_running_ones_is_not",
    ),
    Mutant(
        "files-a-running-process-loses-its-folder",
        _FILES,
        "held.enter_context(locked(work, must=False))",
        "pass",
        _ON_DISK + "what_a_killed_process_left_is_removed_and_a_running_ones_is_not",
    ),
    Mutant(
        "files-names-of-a-runs-folders-not-flushed",
        _RUN_FOLDER,
        "files.make_folder(path)",
        "path.mkdir(parents=True, exist_ok=True)",
        _DURABLE + "a_run_and_the_folders_that_it_makes",
    ),
    Mutant(
        "files-names-of-new-folders-not-flushed",
        _FILES,
        "flush(folder.parent)",
        "pass",
        _DURABLE + "new_folders_deep_below",
        "make_folder",
    ),
    Mutant(
        "files-new-ones-stay-when-undone",
        _FILES,
        "(folder / name).unlink(missing_ok=True)",
        "pass",
        "tests/fastgpt/base/test_replacing.py::test_a_rename_that_fails_or_ctrl_c_between_two_undoes_those_before",
    ),
    Mutant(
        "files-replacing-is-not-undone",
        _FILES,
        """
        if os.path.lexists(old / name):
            os.replace(old / name, folder / name)
        elif name not in there:
            (folder / name).unlink(missing_ok=True)
        """,
        "pass",
        "tests/fastgpt/base/test_replacing.py::test_a_rename_that_fails_or_ctrl_c_between_two_undoes_those_before",
    ),
    Mutant(
        "files-working-folder-stays",
        _FILES,
        "held.callback(_remove, work)",
        "",
        _ON_DISK + "a_failure_or_ctrl_c_leaves_the_old_file_and_nothing_else",
    ),
    Mutant(
        "files-folders-for-their-owner-alone",
        _FILES,
        "work.mkdir()",
        "work.mkdir(0o700)",
        _ON_DISK + "model_files_have_the_users_permissions",
    ),
    Mutant(
        "step-folders-set-aside-under-one-name",
        "fastgpt/train/step_folders.py",
        "not os.path.lexists(new)",
        "True",
        "tests/fastgpt/train/test_step_folders.py::test_what_is_set_aside_takes_no_others_name",
    ),
    Mutant(
        "overwritten-stays-half-aside",
        "fastgpt/train/overwritten.py",
        "settle(run)",
        "pass",
        "tests/fastgpt/train/test_overwrite.py::test_a_file_that_cannot_be_set_aside_leaves_all_where_they_were",
        "set_aside",
    ),
    Mutant(
        "overwritten-scalars-of-nothing-stay",
        "fastgpt/train/overwritten.py",
        "path.unlink()",
        "pass",
        "tests/fastgpt/train/test_overwrite.py::test_scalars_of_a_new_run_that_comes_to_nothing_are_gone",
        "settle",
    ),
)
