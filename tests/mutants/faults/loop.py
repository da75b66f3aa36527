"""Faults of the training loop: validation, what is due, what is saved, resuming."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    choice,
    comparison,
    condition,
    context,
    item,
    iterated,
    name,
    operand,
    operation,
    statement,
    subscript,
    value,
)
from ..plant import Mutant

_PLAIN = "tests/fastgpt/model/test_plain_loop.py::test_"
_STEPS = _PLAIN + "every_step_is_the_plain_loops"
_VALIDATIONS = _PLAIN + "the_validations_are_the_plain_loops"
_TESTS = "tests/fastgpt/train/test_trainer.py::test_"
_GUARDS = "tests/fastgpt/train/test_trainer_guards.py::test_"
_SETTINGS = "tests/fastgpt/train/test_trainer_settings.py::test_"

MUTANTS = (
    # --- validation ---------------------------------------------------------------------------------------------------
    Mutant(
        "trainer-validates-on-the-training-text",
        "Trainer.validate",
        name("evaluate").becomes("lambda model, data, **options: it(model, self.train_data, **options)"),
        _VALIDATIONS,
    ),
    Mutant(
        "trainer-eval-batches-ignored",
        "Trainer.validate",
        choice("whole").always(),
        _SETTINGS + "validation_scores_so_many_batches_or_all",
    ),
    Mutant(
        "trainer-whole-ignored",
        "Trainer.validate",
        choice("whole").never(),
        _SETTINGS + "validation_scores_so_many_batches_or_all",
    ),
    Mutant(
        "trainer-validation-in-another-dtype",
        "Trainer.validate",
        argument("dtype").dropped(),
        _SETTINGS + "validation_is_in_the_dtype_of_the_run",
    ),
    Mutant("evaluation-with-dropout", "train.evaluate", context("model").becomes("torch.no_grad()"), _VALIDATIONS),
    Mutant(
        "modes-model-left-in-eval-mode",
        "model.evaluating",
        item("module.training").becomes("it and module is model"),
        _GUARDS + "parts_in_eval_mode_stay_so",
    ),
    Mutant(
        "modes-what-a-method-would-not-set",
        "model.evaluating",
        assignment("training").dropped(),
        "tests/fastgpt/model/test_modes.py::test_a_flag_that_the_method_would_not_set_is_set_back",
    ),
    Mutant(
        "modes-methods-are-not-called",
        "model.evaluating",
        call("train").dropped(),
        "tests/fastgpt/model/test_modes.py::test_methods_that_do_more_than_set_the_flag_are_called",
    ),
    Mutant("evaluation-mean-of-means", "train.evaluate", operand("numel").dropped(), _VALIDATIONS),
    Mutant(
        "evaluation-batches-weigh-the-same",
        "train.evaluate",
        operand("numel").becomes("targets.numel()"),
        _VALIDATIONS,
    ),
    Mutant(
        "evaluation-ignored-tokens-count",
        "train.evaluate",
        value("tokens", "numel").becomes("targets.numel()"),
        _VALIDATIONS,
    ),
    Mutant(
        "evaluation-bytes-of-the-inputs",
        "train.evaluate",
        subscript("lengths").becomes("lengths[idx]"),
        _TESTS + "bits_per_byte_is_the_loss_over_the_bytes",
    ),
    Mutant(
        "evaluation-in-float32-always",
        "train.evaluate",
        call("autocast").argument(2).becomes("torch.float32"),
        _SETTINGS + "validation_is_in_the_dtype_of_the_run",
    ),
    Mutant(
        "evaluation-stop-not-asked",
        "train.evaluate",
        condition("stop").never(),
        _GUARDS + "a_validation_that_is_stopped_gives_none",
    ),
    Mutant(
        "metrics-bits-by-the-wrong-logarithm",
        "train.bits_per_byte",
        call("log").becomes("math.log(10)"),
        "tests/fastgpt/train/test_metrics_log.py::test_per_token_and_per_byte",
    ),
    Mutant(
        "metrics-perplexity-of-bits",
        "train.perplexity",
        call("exp").becomes("2.0 ** loss"),
        "tests/fastgpt/train/test_metrics_log.py::test_per_token_and_per_byte",
    ),
    # --- the loop -----------------------------------------------------------------------------------------------------
    Mutant("trainer-due-one-step-early", "train._due", operand("step").becomes("it + 1"), _VALIDATIONS),
    Mutant(
        "trainer-no-validation-at-the-end", "Loop._step", value("is_due").operand("is_last").dropped(), _VALIDATIONS
    ),
    Mutant(
        "trainer-never-saves-on-the-way",
        "Loop._step",
        operand("save_every").dropped(),
        "tests/fastgpt/train/test_checkpoint.py::test_only_the_newest_are_kept",
    ),
    Mutant("trainer-one-step-too-few", "Loop.run", condition("step").operand("steps").becomes("it - 1"), _STEPS),
    Mutant(
        "trainer-signals-unheard",
        "Loop.run",
        comparison("signals").always(),
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    Mutant(
        "trainer-stop-not-saved",
        "Loop._saved",
        assignment("path", "_save").dropped(),
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    Mutant(
        "trainer-lock-not-taken",
        "Trainer.fit",
        call("held").becomes("__import__('contextlib').nullcontext()"),
        _TESTS + "no_two_train_in_one_folder",
    ),
    Mutant(
        "trainer-validation-of-nan-is-a-success",
        "Loop._account",
        condition("is_finite").never(),
        _TESTS + "old_checkpoints_stay_until_the_new_one_is_seen_to_be_a_number",
    ),
    Mutant(
        "trainer-prunes-before-it-validates",
        "Loop._account",
        call("_save").becomes("(self.trainer.owed, trainer.save())[1]"),
        _TESTS + "old_checkpoints_stay_until_the_new_one_is_seen_to_be_a_number",
    ),
    Mutant(
        "trainer-weights-of-nan-are-saved",
        "Trainer.write",
        condition().never(),
        _TESTS + "weights_that_are_not_finite_are_not_saved",
    ),
    Mutant(
        "trainer-infinite-weights-are-saved",
        "Updates._is_finite",
        call("isfinite").becomes("~t.isnan()"),
        _TESTS + "weights_that_are_not_finite_are_not_saved",
    ),
    Mutant(
        "trainer-infinite-moments-are-saved",
        "Updates._is_finite",
        operand("moments").dropped(),
        "tests/fastgpt/train/test_trainer_guards.py::test_moments_that_are_not_finite_are_not_saved",
    ),
    Mutant(
        "trainer-starts-over-half-way",
        "Trainer.fit",
        operand("overwrite").dropped(),
        "tests/fastgpt/train/test_overwrite.py::test_a_model_that_is_trained_already_does_not_start_over",
    ),
    Mutant(
        "trainer-does-not-know-a-link-to-a-checkpoint",
        "Trainer._resume",
        condition().becomes("root.resolve() != folder.resolve().parent"),
        "tests/fastgpt/train/test_step_folders.py::test_a_link_to_a_checkpoint_kept_elsewhere_is_gone_on_from",
    ),
    Mutant(
        "trainer-checkpoints-cannot-be-written",
        "train.make",
        item("checkpoints").dropped(),
        "tests/fastgpt/train/test_step_folders.py::test_a_place_of_checkpoints_that_takes_none_is_said_before_the_first_step",
    ),
    Mutant(
        "trainer-rescue-saves-nothing",
        "train._rescue",
        assignment("newest", "save").dropped(),
        _TESTS + "an_error_costs_no_whole_update",
    ),
    Mutant(
        "trainer-rescue-saves-half-an-update",
        "Updates.is_whole",
        operation("not").dropped(),
        _TESTS + "an_error_in_the_middle_of_an_update_is_not_saved",
    ),
    Mutant(
        "trainer-epoch-of-the-step-before",
        "Updates.begin_step",
        argument("epoch").becomes("position / self.sampler.n_windows"),
        _TESTS + "metrics_lines",
    ),
    Mutant(
        "trainer-speed-without-accumulation",
        "Updates.begin_step",
        operand("grad_accum").dropped(),
        _SETTINGS + "speed_counts_the_tokens_of_the_update",
    ),
    Mutant(
        "trainer-losses-of-a-finished-run",
        "Loop.run",
        name("losses").becomes("it[:-1]"),
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    # --- resuming -----------------------------------------------------------------------------------------------------
    Mutant(
        "trainer-resume-starts-the-data-over",
        "Trainer._load",
        call("load_state_dict").dropped(),
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    Mutant(
        "trainer-resume-counts-one-more",
        "Trainer._load",
        value("step").becomes("it + 1"),
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    Mutant(
        "trainer-resume-with-another-tokenizer",
        "Trainer._load",
        condition("state").never(),
        "tests/fastgpt/train/test_checkpoint.py::test_other_data_is_refused",
    ),
    Mutant(
        "trainer-resume-compares-nothing",
        "Trainer._load",
        operation("not").never(),
        _TESTS + "resume_with_other_settings",
    ),
    Mutant(
        "trainer-resume-does-not-compare-the-model",
        "Trainer._record",
        operand("model").dropped(),
        _TESTS + "resume_with_other_settings",
    ),
    Mutant(
        "trainer-resume-does-not-compare-the-data",
        "Trainer._record",
        call("len").becomes("700"),
        _TESTS + "resume_on_other_data",
    ),
    Mutant(
        "trainer-resume-leaves-later-checkpoints",
        "Trainer._resume",
        iterated().becomes("()"),
        "tests/fastgpt/train/test_checkpoint.py::test_corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "trainer-log-of-lost-steps-stays",
        "Loop._opened_reports",
        argument("first").becomes("self.config.steps"),
        _TESTS + "log_of_steps_after_the_checkpoint_is_dropped_on_resume",
    ),
    Mutant(
        "trainer-the-training-text-may-be-another",
        "Trainer._record",
        item("train_sha256").becomes("''"),
        "tests/fastgpt/data/test_changed_data.py::test_other_data_of_the_same_length_is_refused",
    ),
    Mutant(
        "trainer-what-is-owed-is-not-saved",
        "Trainer.write",
        item("owed").becomes("{}"),
        "tests/fastgpt/tools/test_made_up.py::test_a_signal_in_a_validation",
    ),
    Mutant(
        "trainer-what-was-due-is-not-made-up",
        "Loop.run",
        statement("if", "unvalidated").dropped(),
        "tests/fastgpt/tools/test_made_up.py::test_a_signal_in_a_validation",
    ),
    Mutant(
        "run-folder-a-setting-is-free",
        "train._FREE",
        item("init_from").becomes("'weight_decay'"),
        _TESTS + "resume_with_other_settings",
    ),
    Mutant(
        "run-folder-seed-is-free",
        "train._FREE",
        item("init_from").becomes("'seed'"),
        _SETTINGS + "what_decides_the_numbers_is_compared_on_resume",
    ),
    Mutant(
        "run-folder-accumulation-is-free",
        "train._FREE",
        item("init_from").becomes("'grad_accum'"),
        _SETTINGS + "what_decides_the_numbers_is_compared_on_resume",
    ),
    Mutant(
        "run-folder-new-run-over-an-old-one",
        "train.check",
        condition("newest", "overwrite").never(),
        _TESTS + "existing_run_is_not_overwritten_by_accident",
    ),
    Mutant(
        "run-folder-settings-forgotten-on-resume",
        "train.write_settings",
        operand("before").dropped(),
        "tests/fastgpt/commands/test_train_command.py::test_a_script_that_goes_on_leaves_the_other_settings",
    ),
    Mutant(
        "run-folder-compares-implementations",
        "train.model_record",
        condition("_impl").always(),
        "tests/fastgpt/train/test_resume_fits.py::test_another_implementation_is_no_other_model",
    ),
    Mutant(
        "run-folder-settings-of-others-are-ours",
        "train._is_ours",
        call("bool").always(),
        "tests/fastgpt/commands/test_train_command.py::test_a_folder_that_is_no_run_is_left_alone",
    ),
)
