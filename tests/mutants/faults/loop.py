"""Faults of the training loop: validation, what is due, what is saved, resuming."""

from __future__ import annotations

from ..plant import Mutant

_TRAINER = "fastgpt/trainer.py"
_PLAIN = "tests/fastgpt/test_plain_loop.py::test_"
_STEPS = _PLAIN + "every_step_is_the_plain_loops"
_VALIDATIONS = _PLAIN + "the_validations_are_the_plain_loops"
_TESTS = "tests/fastgpt/test_trainer.py::test_"
_GUARDS = "tests/fastgpt/test_trainer_guards.py::test_"
_SETTINGS = "tests/fastgpt/test_trainer_settings.py::test_"
_RUN_FOLDER = "fastgpt/run_folder.py"
_EVALUATION = "fastgpt/evaluation.py"
_METRICS = "fastgpt/metrics.py"

MUTANTS = (
    # --- validation ---------------------------------------------------------------------------------------------------
    Mutant(
        "trainer-validates-on-the-training-text",
        _TRAINER,
        "evaluate",
        "(lambda model, data, **options: evaluate(model, self.train_data, **options))",
        _VALIDATIONS,
    ),
    Mutant(
        "trainer-eval-batches-ignored",
        _TRAINER,
        "None if whole else self.config.eval_batches",
        "None",
        _SETTINGS + "validation_scores_so_many_batches_or_all",
    ),
    Mutant(
        "trainer-whole-ignored",
        _TRAINER,
        "None if whole else self.config.eval_batches",
        "self.config.eval_batches",
        _SETTINGS + "validation_scores_so_many_batches_or_all",
    ),
    Mutant(
        "trainer-validation-in-another-dtype",
        _TRAINER,
        "dtype=self.dtype",
        "",
        _SETTINGS + "validation_is_in_the_dtype_of_the_run",
        "Trainer.validate",
    ),
    Mutant(
        "evaluation-with-dropout",
        _EVALUATION,
        "evaluating(model)",
        "torch.no_grad()",
        _VALIDATIONS,
    ),
    Mutant(
        "modes-model-left-in-eval-mode",
        "fastgpt/modes.py",
        "[(module, module.training) for module in model.modules()]",
        "[(module, module.training and module is model) for module in model.modules()]",
        _GUARDS + "parts_in_eval_mode_stay_so",
    ),
    Mutant(
        "modes-what-a-method-would-not-set",
        "fastgpt/modes.py",
        "module.training = training",
        "pass",
        "tests/fastgpt/test_modes.py::test_a_flag_that_the_method_would_not_set_is_set_back",
    ),
    Mutant(
        "modes-methods-are-not-called",
        "fastgpt/modes.py",
        """
        module.train(training)
        """,
        "pass",
        "tests/fastgpt/test_modes.py::test_methods_that_do_more_than_set_the_flag_are_called",
    ),
    Mutant(
        "evaluation-mean-of-means",
        _EVALUATION,
        "float(loss) * valid.numel()",
        "float(loss)",
        _VALIDATIONS,
    ),
    Mutant(
        "evaluation-batches-weigh-the-same",
        _EVALUATION,
        "float(loss) * valid.numel()",
        "float(loss) * targets.numel()",
        _VALIDATIONS,
    ),
    Mutant(
        "evaluation-ignored-tokens-count",
        _EVALUATION,
        "tokens += valid.numel()",
        "tokens += targets.numel()",
        _VALIDATIONS,
    ),
    Mutant(
        "evaluation-bytes-of-the-inputs",
        _EVALUATION,
        "lengths[valid].sum()",
        "lengths[idx].sum()",
        _TESTS + "bits_per_byte_is_the_loss_over_the_bytes",
    ),
    Mutant(
        "evaluation-in-float32-always",
        _EVALUATION,
        "autocast(device, dtype)",
        "autocast(device, torch.float32)",
        _SETTINGS + "validation_is_in_the_dtype_of_the_run",
    ),
    Mutant(
        "evaluation-stop-not-asked",
        _EVALUATION,
        "stop is not None and stop()",
        "False",
        _GUARDS + "a_validation_that_is_stopped_gives_none",
    ),
    Mutant(
        "metrics-bits-by-the-wrong-logarithm",
        _METRICS,
        "math.log(2)",
        "math.log(10)",
        "tests/fastgpt/test_metrics_log.py::test_per_token_and_per_byte",
    ),
    Mutant(
        "metrics-perplexity-of-bits",
        _METRICS,
        "math.exp(loss)",
        "2.0**loss",
        "tests/fastgpt/test_metrics_log.py::test_per_token_and_per_byte",
    ),
    # --- the loop -----------------------------------------------------------------------------------------------------
    Mutant(
        "trainer-due-one-step-early",
        "fastgpt/training_loop.py",
        "step % every == 0",
        "(step + 1) % every == 0",
        _VALIDATIONS,
    ),
    Mutant(
        "trainer-no-validation-at-the-end",
        "fastgpt/training_loop.py",
        "is_last or _due(trainer.step, config.eval_every)",
        "_due(trainer.step, config.eval_every)",
        _VALIDATIONS,
    ),
    Mutant(
        "trainer-never-saves-on-the-way",
        "fastgpt/training_loop.py",
        "is_last or _due(trainer.step, config.save_every)",
        "is_last",
        "tests/fastgpt/test_checkpoint.py::test_only_the_newest_are_kept",
    ),
    Mutant(
        "trainer-one-step-too-few",
        "fastgpt/training_loop.py",
        "trainer.step < self.config.steps and self.signals.stopped_by is None",
        "trainer.step < self.config.steps - 1 and self.signals.stopped_by is None",
        _STEPS,
    ),
    Mutant(
        "trainer-signals-unheard",
        "fastgpt/training_loop.py",
        "self.signals.stopped_by is None",
        "True",
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    Mutant(
        "trainer-stop-not-saved",
        "fastgpt/training_loop.py",
        "path = self._save()",
        "pass",
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
        "Loop.run",
    ),
    Mutant(
        "trainer-lock-not-taken",
        _TRAINER,
        "run_folder.alone(self.config)",
        "contextlib.nullcontext()",
        _TESTS + "no_two_train_in_one_folder",
    ),
    Mutant(
        "trainer-validation-of-nan-is-a-success",
        "fastgpt/training_loop.py",
        "found is not None and not found.is_finite",
        "False",
        _TESTS + "old_checkpoints_stay_until_the_new_one_is_seen_to_be_a_number",
    ),
    Mutant(
        "trainer-prunes-before-it-validates",
        "fastgpt/training_loop.py",
        "self._save() if saves is True else saves or None",
        "(self.trainer.owed, trainer.save())[1] if saves is True else saves or None",
        _TESTS + "old_checkpoints_stay_until_the_new_one_is_seen_to_be_a_number",
    ),
    Mutant(
        "trainer-weights-of-nan-are-saved",
        _TRAINER,
        "not self._is_finite()",
        "False",
        _TESTS + "weights_that_are_not_finite_are_not_saved",
        "Trainer.write",
    ),
    Mutant(
        "trainer-infinite-weights-are-saved",
        _TRAINER,
        "p.detach().isfinite().all()",
        "(~p.detach().isnan()).all()",
        _TESTS + "weights_that_are_not_finite_are_not_saved",
    ),
    Mutant(
        "trainer-rescue-saves-nothing",
        "fastgpt/training_loop.py",
        "newest = self._save()",
        "pass",
        _TESTS + "an_error_costs_no_whole_update",
    ),
    Mutant(
        "trainer-rescue-saves-half-an-update",
        _TRAINER,
        "not self._in_update and self._is_finite()",
        "self._is_finite()",
        _TESTS + "an_error_in_the_middle_of_an_update_is_not_saved",
    ),
    Mutant(
        "trainer-epoch-of-the-step-before",
        "fastgpt/training_loop.py",
        "trainer.sampler.epoch",
        "(trainer.sampler.position - self.config.batch_size * self.config.grad_accum) / trainer.sampler.n_windows",
        _TESTS + "metrics_lines",
    ),
    Mutant(
        "trainer-speed-without-accumulation",
        "fastgpt/training_loop.py",
        "self.config.batch_size * self.config.grad_accum * trainer.seq_len",
        "self.config.batch_size * trainer.seq_len",
        _SETTINGS + "speed_counts_the_tokens_of_the_update",
    ),
    Mutant(
        "trainer-losses-of-a-finished-run",
        "fastgpt/training_loop.py",
        "TrainResult(trainer.step, self.losses, self.validation, stopped_by, path)",
        "TrainResult(trainer.step, self.losses[:-1], self.validation, stopped_by, path)",
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    # --- resuming -----------------------------------------------------------------------------------------------------
    Mutant(
        "trainer-resume-starts-the-data-over",
        _TRAINER,
        'self.sampler.load_state_dict(state["sampler"], allow_changes=allow_changes)',
        "",
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    Mutant(
        "trainer-resume-counts-one-more",
        _TRAINER,
        "self.step, self.owed = state['step'], Owed.of(state)",
        "self.step, self.owed = state['step'] + 1, Owed.of(state)",
        _TESTS + "interrupted_and_resumed_equals_uninterrupted_bit_for_bit",
    ),
    Mutant(
        "trainer-resume-with-another-tokenizer",
        _TRAINER,
        'state["tokenizer_sha256"] != self.train_data.tokenizer_sha256',
        "False",
        "tests/fastgpt/test_checkpoint.py::test_other_data_is_refused",
    ),
    Mutant(
        "trainer-resume-compares-nothing",
        _TRAINER,
        "not allow_changes",
        "False",
        _TESTS + "resume_with_other_settings",
        "Trainer.load",
    ),
    Mutant(
        "trainer-resume-does-not-compare-the-model",
        _TRAINER,
        "others | run_folder.model_record(self.model) | dataclasses.asdict(self.config) | data",
        "others | dataclasses.asdict(self.config) | data",
        _TESTS + "resume_with_other_settings",
    ),
    Mutant(
        "trainer-resume-does-not-compare-the-data",
        _TRAINER,
        "len(self.train_data)",
        "700",
        _TESTS + "resume_on_other_data",
    ),
    Mutant(
        "trainer-resume-leaves-later-checkpoints",
        _TRAINER,
        "checkpoint.set_aside_after(root, self.step)",
        "()",
        "tests/fastgpt/test_checkpoint.py::test_corrupted_file_is_named_with_the_way_out",
    ),
    Mutant(
        "trainer-log-of-lost-steps-stays",
        "fastgpt/training_loop.py",
        "first=trainer.step - (again is not None)",
        "first=self.config.steps",
        _TESTS + "log_of_steps_after_the_checkpoint_is_dropped_on_resume",
    ),
    Mutant(
        "trainer-the-training-text-may-be-another",
        _TRAINER,
        "self.train_data.sha256",
        "''",
        "tests/fastgpt/test_changed_data.py::test_other_data_of_the_same_length_is_refused",
    ),
    Mutant(
        "trainer-what-is-owed-is-not-saved",
        _TRAINER,
        "self.owed.state()",
        "{}",
        "tests/fastgpt/test_made_up.py::test_a_signal_in_a_validation",
    ),
    Mutant(
        "trainer-what-was-due-is-not-made-up",
        "fastgpt/training_loop.py",
        """
        if again is not None:
            self._account(again, checkpoint.folder_of(self.root, trainer.step))
        """,
        "",
        "tests/fastgpt/test_made_up.py::test_a_signal_in_a_validation",
    ),
    Mutant(
        "run-folder-a-setting-is-free",
        _RUN_FOLDER,
        '"init_from"',
        '"weight_decay"',
        _TESTS + "resume_with_other_settings",
    ),
    Mutant(
        "run-folder-seed-is-free",
        _RUN_FOLDER,
        '"init_from"',
        '"seed"',
        _SETTINGS + "what_decides_the_numbers_is_compared_on_resume",
    ),
    Mutant(
        "run-folder-accumulation-is-free",
        _RUN_FOLDER,
        '"init_from"',
        '"grad_accum"',
        _SETTINGS + "what_decides_the_numbers_is_compared_on_resume",
    ),
    Mutant(
        "run-folder-new-run-over-an-old-one",
        _RUN_FOLDER,
        "newest is not None and not resume and not overwrite",
        "False",
        _TESTS + "existing_run_is_not_overwritten_by_accident",
    ),
    Mutant(
        "run-folder-settings-forgotten-on-resume",
        _RUN_FOLDER,
        "before | settings",
        "settings",
        "tests/fastgpt/test_train_command.py::test_a_script_that_goes_on_leaves_the_other_settings",
    ),
    Mutant(
        "run-folder-compares-implementations",
        _RUN_FOLDER,
        'not k.endswith("_impl")',
        "True",
        "tests/fastgpt/test_resume_fits.py::test_another_implementation_is_no_other_model",
    ),
    Mutant(
        "run-folder-settings-of-others-are-ours",
        _RUN_FOLDER,
        "bool(read_settings(folder))",
        "True",
        "tests/fastgpt/test_train_command.py::test_a_folder_that_is_no_run_is_left_alone",
    ),
)
