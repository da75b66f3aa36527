"""Faults of files and folders: what is on the disk, what is renamed, locks and permissions."""

from __future__ import annotations

from ..places import argument, call, caught, condition, item, literal, name, operand, operation, statement
from ..plant import Mutant

_DURABLE = "tests/fastgpt/train/test_durability.py::test_"
_SAVED = "tests/fastgpt/train/test_checkpoint.py::test_"
_ON_DISK = "tests/fastgpt/base/test_files.py::test_"
_WHOLE = "tests/fastgpt/train/test_checkpoint_state.py::test_"

MUTANTS = (
    # --- to the disk --------------------------------------------------------------------------------------------------
    Mutant(
        "checkpoint-fsync-of-the-files-removed",
        "train.atomic_folder",
        call("flush_all").dropped(),
        _DURABLE + "a_checkpoint",
    ),
    Mutant(
        "checkpoint-fsync-of-the-folder-removed",
        "train.replace",
        call("flush").dropped(),
        _DURABLE + "a_checkpoint",
    ),
    Mutant("files-fsync-removed", "base.flush", call("fsync").dropped(), _DURABLE + "one_file"),
    Mutant(
        "files-fsync-of-what-replaces-removed",
        "base.replace_files",
        call("flush_all").dropped(),
        _DURABLE + "one_file",
    ),
    Mutant("files-fsync-of-the-folder-removed", "base.replace_files", call("flush").dropped(), _DURABLE + "one_file"),
    Mutant(
        "files-fsync-of-a-model-in-its-folder-removed",
        "base.replace_files",
        call("flush").dropped(),
        _DURABLE + "a_model",
    ),
    Mutant("files-fsync-of-folders-only", "base.flush_all", statement("for").dropped(), _DURABLE + "several_files"),
    Mutant(
        "files-fsync-of-files-only",
        "base.flush_all",
        call("flush", "work").dropped(),
        _DURABLE + "the_listener_itself",
    ),
    Mutant(
        "files-fsync-of-a-file-may-fail",
        "base.flush",
        condition().never(),
        _WHOLE + "an_fsync_that_fails_is_an_error",
    ),
    Mutant(
        "interop-nanogpt-written-in-place",
        "formats.save",
        call("replace_file").becomes("torch.save(checkpoint, path / 'ckpt.pt')"),
        _DURABLE + "a_model",
    ),
    Mutant(
        "interop-model-written-in-place",
        "formats.save",
        call("replace_files").becomes("write(path)"),
        _DURABLE + "a_model",
    ),
    Mutant(
        "run-folder-settings-written-in-place",
        "train.write_settings",
        call("replace_file").becomes("(folder / 'settings.json').write_text(text, encoding='utf-8')"),
        _DURABLE + "a_run_and_the_folders_that_it_makes",
    ),
    # --- folders and names --------------------------------------------------------------------------------------------
    Mutant(
        "checkpoint-newest-by-name",
        "train.all_checkpoints",
        argument("key").becomes("str"),
        _WHOLE + "checkpoints_go_by_their_number",
    ),
    Mutant("checkpoint-oldest-is-newest", "train.latest", operation("-").becomes("0"), _SAVED + "layout"),
    Mutant(
        "checkpoint-files-are-checkpoints",
        "train.all_checkpoints",
        condition("_STEP").becomes("_STEP.fullmatch(p.name) and (p.is_file() or _holds_any(p))"),
        _WHOLE + "checkpoints_go_by_their_number",
    ),
    Mutant(
        "checkpoint-what-begins-so-is-one",
        "train.all_checkpoints",
        name("fullmatch").becomes("_STEP.match"),
        _WHOLE + "checkpoints_go_by_their_number",
    ),
    Mutant(
        "checkpoint-empty-folders-are-checkpoints",
        "train.all_checkpoints",
        call("_holds_any").dropped(),
        "tests/fastgpt/train/test_step_folders.py::test_what_is_no_checkpoint_is_not_taken_for_the_newest",
    ),
    Mutant(
        "checkpoint-prune-keeps-one-fewer",
        "step_folders.prune",
        literal(1).becomes("2"),
        _SAVED + "only_the_newest_are_kept",
    ),
    Mutant(
        "checkpoint-prune-keeps-one-more",
        "step_folders.prune",
        literal(1).dropped(),
        _SAVED + "only_the_newest_are_kept",
    ),
    Mutant(
        "checkpoint-prune-takes-the-newest-first",
        "step_folders.prune",
        name("before", nth=1).becomes("it[::-1]"),
        _SAVED + "only_the_newest_are_kept",
    ),
    Mutant(
        "checkpoint-prune-takes-what-was-just-saved",
        "step_folders.prune",
        condition().operator("<="),
        _SAVED + "only_the_newest_are_kept",
    ),
    Mutant(
        "checkpoint-prune-takes-later-steps",
        "step_folders.prune",
        condition().becomes("path != newest"),
        "tests/fastgpt/train/test_step_folders.py::test_pruning_deletes_nothing_of_later_steps",
    ),
    Mutant(
        "checkpoint-prune-that-fails-ends-the-run",
        "train._delete_or_warn",
        call("say_once").becomes("raise"),
        "tests/fastgpt/train/test_step_folders.py::test_pruning_forgives_what_it_cannot_delete",
    ),
    Mutant(
        "checkpoint-sets-itself-aside",
        "train.set_aside_after",
        condition().operator(">="),
        _SAVED + "corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "checkpoint-sets-nothing-aside",
        "train.set_aside_after",
        condition().never(),
        _SAVED + "corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "checkpoint-failed-save-leaves-the-old-one-away",
        "train.replace",
        call("replaced.rename").dropped(),
        _WHOLE + "a_rename_that_fails_puts_the_old_one_back",
    ),
    Mutant(
        "overwritten-metrics-are-left-behind",
        "train._texts",
        item("metrics.jsonl").dropped(),
        "tests/fastgpt/train/test_overwrite.py::test_a_new_run_that_comes_to_nothing_leaves_the_old_one",
    ),
    Mutant(
        "overwritten-the-old-run-stays-for-ever",
        "overwritten.settle",
        operation("and").never(),
        "tests/fastgpt/train/test_overwrite.py::test_the_new_run_takes_the_place_of_the_old_one_and_of_nothing_else",
    ),
    Mutant(
        "overwritten-the-old-run-goes-at-once",
        "overwritten.settle",
        call("all_checkpoints").dropped(),
        "tests/fastgpt/train/test_overwrite.py::test_a_new_run_that_comes_to_nothing_leaves_the_old_one",
    ),
    Mutant(
        "checkpoint-a-full-disk-is-swallowed",
        "train.atomic_folder",
        caught().becomes(item(2)),
        _SAVED + "full_disk_leaves_the_earlier_checkpoints_intact",
    ),
    # --- locks and permissions ----------------------------------------------------------------------------------------
    Mutant(
        "files-lock-not-taken",
        "base.locked",
        call("flock", "LOCK_EX").dropped(),
        "tests/fastgpt/train/test_trainer.py::test_no_two_train_in_one_folder",
    ),
    Mutant(
        "files-lock-is-shared",
        "base.locked",
        operand("LOCK_EX").becomes("fcntl.LOCK_SH"),
        "tests/fastgpt/train/test_trainer.py::test_no_two_train_in_one_folder",
    ),
    Mutant(
        "files-lock-is-not-let-go",
        "base.locked",
        call("flock", "LOCK_UN").dropped(),
        _WHOLE + "a_lock_is_let_go_though_a_child_has_it_open",
    ),
    Mutant(
        "files-what-a-killed-process-left-stays",
        "base.remove_left_behind",
        call("rmtree").dropped(),
        _ON_DISK + "what_a_killed_process_left_is_removed_and_a_running_ones_is_not",
    ),
    Mutant(
        "files-a-running-process-loses-its-folder",
        "base.working_folder",
        call("enter_context").dropped(),
        _ON_DISK + "what_a_killed_process_left_is_removed_and_a_running_ones_is_not",
    ),
    Mutant(
        "files-names-of-a-runs-folders-not-flushed",
        "train.make",
        call("make_folder").becomes("path.mkdir(parents=True, exist_ok=True)"),
        _DURABLE + "a_run_and_the_folders_that_it_makes",
    ),
    Mutant(
        "files-names-of-new-folders-not-flushed",
        "base.make_folder",
        call("flush").dropped(),
        _DURABLE + "new_folders_deep_below",
    ),
    Mutant(
        "files-new-ones-stay-when-undone",
        "base.take_places",
        call("unlink").dropped(),
        "tests/fastgpt/base/test_replacing.py::test_a_rename_that_fails_or_ctrl_c_between_two_undoes_those_before",
    ),
    Mutant(
        "files-replacing-is-not-undone",
        "base.take_places",
        statement("try", "unlink").statement("if", "old").dropped(),
        "tests/fastgpt/base/test_replacing.py::test_a_rename_that_fails_or_ctrl_c_between_two_undoes_those_before",
    ),
    Mutant(
        "files-working-folder-stays",
        "base.working_folder",
        call("callback").dropped(),
        _ON_DISK + "a_failure_or_ctrl_c_leaves_the_old_file_and_nothing_else",
    ),
    Mutant(
        "files-folders-for-their-owner-alone",
        "base.working_folder",
        call("mkdir").becomes("work.mkdir(448)"),
        _ON_DISK + "model_files_have_the_users_permissions",
    ),
    Mutant(
        "step-folders-set-aside-under-one-name",
        "step_folders.set_aside",
        condition().always(),
        "tests/fastgpt/train/test_step_folders.py::test_what_is_set_aside_takes_no_others_name",
    ),
    Mutant(
        "overwritten-stays-half-aside",
        "overwritten.set_aside",
        call("settle").dropped(),
        "tests/fastgpt/train/test_overwrite.py::test_a_file_that_cannot_be_set_aside_leaves_all_where_they_were",
    ),
    Mutant(
        "overwritten-scalars-of-nothing-stay",
        "overwritten.settle",
        call("unlink").dropped(),
        "tests/fastgpt/train/test_overwrite.py::test_scalars_of_a_new_run_that_comes_to_nothing_are_gone",
    ),
)
