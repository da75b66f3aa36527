"""Faults of the command line: what options do, what is printed and where, exit statuses; settings, verify, the demo."""

from __future__ import annotations

from ..plant import Mutant

_EFFECTS = "tests/fastgpt/commands/test_command_effects.py::test_"
_CLI = "tests/fastgpt/commands/test_cli.py::test_"
_LINE = "tests/fastgpt/commands/test_command_line.py::test_"
_SETTINGS = "tests/fastgpt/base/test_settings.py::test_"
_VERIFY = "tests/fastgpt/tools/test_verify.py::test_"
_DEMO = "tests/fastgpt/tools/test_demo_command.py::test_"
_SAMPLE = _EFFECTS + "sample_is_generate_with_the_same_settings"
_EVAL = _EFFECTS + "eval_is_evaluate_of_the_validation_split"
_INSPECT = _EFFECTS + "inspect_draws_the_layers_and_heads_asked_for_under_their_names"
_PLAN = _EFFECTS + "plan_prints_what_was_counted_for_what_was_asked"
_TIMES = _EFFECTS + "bench_takes_medians_of_the_timed_steps"
_BENCH = _EFFECTS + "bench_prints_what_was_measured_for_what_was_asked"
_DEVICE = _EFFECTS + "the_device_asked_for_is_the_one_that_computes"

MUTANTS = (
    # --- sample -------------------------------------------------------------------------------------------------------
    Mutant("sample-seed-ignored", "fastgpt/commands/sample.py", "seed=self.seed", "", _SAMPLE),
    Mutant("sample-temperature-ignored", "fastgpt/commands/sample.py", "temperature=self.temperature", "", _SAMPLE),
    Mutant("sample-top-k-ignored", "fastgpt/commands/sample.py", "top_k=self.top_k", "", _SAMPLE),
    Mutant("sample-top-p-for-top-k", "fastgpt/commands/sample.py", "top_p=self.top_p", "", _SAMPLE),
    Mutant(
        "sample-prompt-stripped",
        "fastgpt/commands/sample.py",
        "tokenizer.encode(prompt)",
        "tokenizer.encode(prompt.strip())",
        _SAMPLE,
    ),
    Mutant(
        "sample-reads-the-beginning-of-a-long-prompt",
        "fastgpt/commands/sample.py",
        "ids[-max_len:]",
        "ids[:max_len]",
        _SAMPLE,
    ),
    Mutant(
        "sample-prompt-not-printed",
        "fastgpt/commands/sample.py",
        'print(prompt, end="", flush=True)',
        "",
        _SAMPLE,
    ),
    Mutant(
        "sample-padding-of-the-vocabulary-decoded",
        "fastgpt/commands/sample.py",
        "(token for token in new if token < tokenizer.end_of_text)",
        "(min(token, tokenizer.end_of_text - 1) for token in new)",
        _EFFECTS + "sample_stops_at_the_end_unless_told_to_go_on",
    ),
    Mutant(
        "sample-never-stops-at-the-end",
        "fastgpt/commands/sample.py",
        "tokenizer.end_of_text if self.stop_at_end else None",
        "None",
        _EFFECTS + "sample_stops_at_the_end_unless_told_to_go_on",
    ),
    Mutant(
        "sample-prompt-of-stdin-stripped",
        "fastgpt/commands/_inputs.py",
        "sys.stdin.read()",
        "sys.stdin.read().strip()",
        _EFFECTS + "a_prompt_from_stdin_keeps_its_white_space",
    ),
    Mutant(
        "sample-device-ignored",
        "fastgpt/commands/sample.py",
        "resolve_device(self.device)",
        'resolve_device("cpu")',
        _DEVICE,
    ),
    # --- eval ---------------------------------------------------------------------------------------------------------
    Mutant("eval-on-the-training-split", "fastgpt/commands/eval.py", '"val"', '"train"', _EVAL),
    Mutant(
        "eval-window-ignored",
        "fastgpt/commands/eval.py",
        "max_len if self.seq_len is None else self.seq_len",
        "max_len",
        _EVAL,
    ),
    Mutant("eval-bytes-not-counted", "fastgpt/commands/eval.py", "tokenizer=tokenizer", "", _EVAL),
    Mutant(
        "eval-dtype-ignored",
        "fastgpt/commands/eval.py",
        "dtype=dtype",
        "",
        _EFFECTS + "eval_in_bfloat16_is_asked_for_and_scores_windows_of_max_len",
    ),
    Mutant(
        "eval-nan-is-a-success",
        "fastgpt/commands/eval.py",
        "return 1",
        "return 0",
        _EFFECTS + "a_loss_that_is_none_is_exit_status_1_and_on_stderr",
    ),
    Mutant(
        "eval-nan-is-said-on-stdout",
        "fastgpt/commands/eval.py",
        "file=sys.stderr",
        "file=sys.stdout",
        _EFFECTS + "a_loss_that_is_none_is_exit_status_1_and_on_stderr",
    ),
    Mutant(
        "eval-loss-in-bits",
        "fastgpt/commands/eval.py",
        'print(f"loss           {found.loss:.4f} nats/token")',
        'print(f"loss           {found.loss / math.log(2):.4f} nats/token")',
        _EVAL,
    ),
    Mutant(
        "eval-shards-of-another-tokenizer-pass",
        "fastgpt/commands/_inputs.py",
        "dataset.tokenizer_sha256 != tokenizer.sha256",
        "False",
        _EFFECTS + "shards_made_with_another_tokenizer_are_refused",
    ),
    Mutant(
        "eval-device-ignored",
        "fastgpt/commands/eval.py",
        "resolve_device(self.device)",
        'resolve_device("cpu")',
        _DEVICE,
    ),
    # --- inspect ------------------------------------------------------------------------------------------------------
    Mutant("inspect-layers-ignored", "fastgpt/commands/inspect.py", "list(self.layers) or None", "None", _INSPECT),
    Mutant("inspect-heads-ignored", "fastgpt/commands/inspect.py", "list(self.heads) or None", "None", _INSPECT),
    Mutant(
        "inspect-heads-numbered-from-the-first",
        "fastgpt/commands/inspect.py",
        "[h % config.n_heads for h in self.heads] or list(range(config.n_heads))",
        "list(range(len(self.heads) or config.n_heads))",
        _INSPECT,
    ),
    Mutant(
        "inspect-a-layer-beyond-the-last-passes",
        "fastgpt/commands/inspect.py",
        "-count <= number < count",
        "-count <= number <= count",
        _EFFECTS + "inspect_refuses_layers_and_heads_that_are_not_there",
    ),
    Mutant(
        "inspect-device-ignored",
        "fastgpt/commands/inspect.py",
        "resolve_device(self.device)",
        'resolve_device("cpu")',
        _DEVICE,
    ),
    # --- plan and bench -----------------------------------------------------------------------------------------------
    Mutant(
        "plan-in-megabytes",
        "fastgpt/commands/plan.py",
        "round(b / 2**20) - round(a / 2**20)",
        "round(b / 10**6) - round(a / 10**6)",
        _PLAN,
    ),
    Mutant(
        "plan-margin-ignored",
        "fastgpt/commands/plan.py",
        "gpu.memory - int(self.margin * 2**30)",
        "gpu.memory",
        _PLAN,
    ),
    Mutant(
        "plan-fits-by-the-parameters", "fastgpt/commands/plan.py", "step.peak <= room", "step.parameters <= room", _PLAN
    ),
    Mutant("plan-dtype-ignored", "fastgpt/commands/plan.py", 'dtype == "bfloat16"', "True", _PLAN),
    Mutant(
        "plan-for-another-gpu",
        "fastgpt/commands/plan.py",
        'gpu.arch if gpu.runs_kernels else "sm_90"',
        '"sm_90"',
        _PLAN,
    ),
    Mutant(
        "plan-window-ignored",
        "fastgpt/commands/plan.py",
        "config.max_len if self.seq_len is None else self.seq_len",
        "config.max_len",
        _PLAN,
    ),
    Mutant(
        "plan-one-implementation-for-all",
        "fastgpt/commands/plan.py",
        "memory.training_step(config.replace(**parts), self.batch_size, seq_len, **options)",
        "memory.training_step(config, self.batch_size, seq_len, **options)",
        _PLAN,
    ),
    Mutant(
        "bench-warm-up-counts",
        "fastgpt/commands/bench.py",
        "if step >= WARM_UP:\n    seconds.append(time.perf_counter() - start)",
        "seconds.append(time.perf_counter() - start)",
        _TIMES,
    ),
    Mutant("bench-unsorted-median", "fastgpt/commands/bench.py", "seconds.sort()", "", _TIMES),
    Mutant(
        "bench-tokens-of-one-row",
        "fastgpt/commands/bench.py",
        "batch_size * seq_len / median",
        "seq_len / median",
        _TIMES,
    ),
    Mutant(
        "bench-flops-of-max-len",
        "fastgpt/commands/bench.py",
        "model.flops_per_token(seq_len)",
        "model.flops_per_token()",
        _TIMES,
    ),
    Mutant(
        "bench-all-out-of-memory-is-a-success",
        "fastgpt/commands/bench.py",
        "0 if any(found.values()) else 1",
        "0",
        _BENCH,
    ),
    Mutant(
        "bench-never-compiles",
        "fastgpt/commands/bench.py",
        "self.compile",
        "False",
        _BENCH,
    ),
    Mutant(
        "bench-times-the-default-implementations",
        "fastgpt/commands/bench.py",
        "config.replace(**parts)",
        "config",
        _BENCH,
    ),
    Mutant(
        "bench-device-ignored",
        "fastgpt/commands/bench.py",
        'resolve_device(self.device, owner="bench")',
        'resolve_device("cpu", owner="bench")',
        _DEVICE,
    ),
    # --- verify -------------------------------------------------------------------------------------------------------
    Mutant(
        "verify-a-kernel-that-is-off-is-a-success",
        "fastgpt/commands/verify.py",
        "0 if report.ok else 1",
        "0",
        _EFFECTS + "verify_checks_the_kernels_asked_for_and_fails_where_one_is_off",
    ),
    Mutant(
        "verify-checks-all-whatever-was-asked",
        "fastgpt/commands/verify.py",
        "self.only",
        "()",
        _EFFECTS + "verify_checks_the_kernels_asked_for_and_fails_where_one_is_off",
    ),
    Mutant(
        "verify-device-ignored",
        "fastgpt/commands/verify.py",
        "resolve_device(self.device)",
        'resolve_device("cpu")',
        _DEVICE,
    ),
    Mutant(
        "verify-gradients-not-compared",
        "fastgpt/tools/verify_cases.py",
        "not self.wanted",
        "True",
        _VERIFY + "a_wrong_kernel_is_noticed",
        "Case.run",
    ),
    # --- the demo -----------------------------------------------------------------------------------------------------
    Mutant(
        "demo-that-learned-nothing-is-a-success",
        "fastgpt/commands/demo.py",
        "0 if run_demo(self.demo).ok else 1",
        "run_demo(self.demo) and 0",
        _EFFECTS + "a_demo_that_is_off_is_exit_status_1",
    ),
    Mutant(
        "demo-terminated-is-a-success",
        "fastgpt/commands/demo.py",
        "return STATUS[number]",
        "return 0",
        _DEMO + "a_signal_while_training_keeps_the_model",
    ),
    Mutant(
        "demo-steps-do-not-follow-the-time",
        "fastgpt/tools/demo.py",
        "int(config.seconds / typical)",
        "config.max_steps",
        _DEMO + "demo_fits_its_steps_into_the_time",
    ),
    # --- the words of a line ------------------------------------------------------------------------------------------
    Mutant(
        "cli-mistakes-end-with-status-0",
        "fastgpt/cli.py",
        "return 2",
        "return 0",
        _EFFECTS + "mistakes_are_on_stderr_with_exit_status_2",
        "_fail",
    ),
    Mutant(
        "cli-mistakes-on-stdout",
        "fastgpt/cli.py",
        "file=sys.stderr",
        "file=sys.stdout",
        _EFFECTS + "mistakes_are_on_stderr_with_exit_status_2",
        "_fail",
    ),
    Mutant(
        "cli-failures-of-a-command-forgotten",
        "fastgpt/cli.py",
        "return command.run() or 0",
        "command.run()\nreturn 0",
        _EFFECTS + "a_loss_that_is_none_is_exit_status_1_and_on_stderr",
    ),
    Mutant(
        "cli-a-bug-is-the-users-mistake",
        "fastgpt/cli.py",
        "not _mistakes.is_ours(error)",
        "True",
        _LINE + "a_bug_keeps_its_traceback",
    ),
    Mutant(
        "cli-debugging-hides-the-traceback",
        "fastgpt/cli.py",
        'os.environ.get("FASTGPT_DEBUG")',
        "False",
        _CLI + "debugging_shows_the_traceback",
        "_run",
    ),
    Mutant(
        "cli-a-full-disk-is-a-success",
        "fastgpt/cli.py",
        "return status or 2",
        "return 0",
        _CLI + "stdout_on_a_full_disk",
    ),
    Mutant(
        "words-the-first-of-two-counts",
        "fastgpt/commands/_words.py",
        "self.given.values[option.name] = value",
        "self.given.values.setdefault(option.name, value)",
        _LINE + "options_in_any_order_and_spelling",
    ),
    Mutant(
        "words-no-flag-means-yes",
        "fastgpt/commands/_words.py",
        "self._set(option, not negated, typed)",
        "self._set(option, True, typed)",
        _LINE + "options_in_any_order_and_spelling",
    ),
    Mutant(
        "words-negative-numbers-are-options",
        "fastgpt/commands/_words.py",
        "not _is_number(word)",
        "True",
        _LINE + "options_in_any_order_and_spelling",
    ),
    Mutant(
        "words-what-a-list-took-is-not-given-back",
        "fastgpt/commands/_words.py",
        "self._give_back(greedy)",
        "pass",
        _LINE + "options_in_any_order_and_spelling",
    ),
    Mutant(
        "words-a-loose-word-too-many-is-dropped",
        "fastgpt/commands/_words.py",
        "raise UsageError(self._too_many(self.loose[0]))",
        "pass",
        _EFFECTS + "a_word_too_many_is_not_dropped",
    ),
    Mutant(
        "settings-file-before-the-words",
        "fastgpt/commands/_read.py",
        "given.values |= typed",
        "pass",
        _CLI + "config_file_and_overrides",
    ),
    Mutant(
        "settings-file-with-a-key-twice-passes",
        "fastgpt/commands/_settings_file.py",
        "key in seen",
        "False",
        _EFFECTS + "values_of_another_type_in_a_file_of_settings_are_refused",
    ),
    Mutant(
        "options-values-of-another-type-pass",
        "fastgpt/commands/_options.py",
        "type(value) is self.kind",
        "True",
        _EFFECTS + "values_of_another_type_in_a_file_of_settings_are_refused",
    ),
    Mutant(
        "options-missing-ones-pass",
        "fastgpt/commands/_options.py",
        'raise UsageError(f"{missing[0]} is missing; write {self.usage()}")',
        "pass",
        _EFFECTS + "mistakes_are_on_stderr_with_exit_status_2",
    ),
    Mutant(
        "mistakes-name-no-option",
        "fastgpt/commands/_mistakes.py",
        'f"{given.words[option.name]} {error.need}"',
        "error.need",
        _SETTINGS + "the_command_line_names_the_option",
    ),
    # --- checks of settings -------------------------------------------------------------------------------------------
    Mutant(
        "settings-true-is-an-integer",
        "fastgpt/base/settings.py",
        "if isinstance(value, bool):\n    raise SettingTypeError(owner, name, value, need)",
        "",
        _SETTINGS + "integers",
    ),
    Mutant(
        "settings-nan-is-a-number",
        "fastgpt/base/settings.py",
        "not math.isfinite(number)",
        "math.isinf(number)",
        _SETTINGS + "numbers",
    ),
    Mutant(
        "settings-below-is-at-most",
        "fastgpt/base/settings.py",
        "number >= below",
        "number > below",
        _SETTINGS + "numbers",
    ),
    Mutant(
        "settings-most-is-not-looked-at",
        "fastgpt/base/settings.py",
        "most is not None and number > most",
        "False",
        _SETTINGS + "integers",
        "check_integer",
    ),
    Mutant(
        "settings-any-choice-passes",
        "fastgpt/base/settings.py",
        "value not in choices",
        "False",
        _SETTINGS + "choices",
    ),
)
