"""Faults of the command line: what options do, what is printed and where, exit statuses; settings, verify, the demo."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    choice,
    comparison,
    condition,
    index,
    item,
    literal,
    name,
    operand,
    operation,
    returned,
    statement,
    then,
    value,
)
from ..plant import Mutant

_EFFECTS = "tests/fastgpt/commands/test_command_effects.py::test_"
_CLI = "tests/fastgpt/commands/test_cli.py::test_"
_LINE = "tests/fastgpt/commands/test_command_line.py::test_"
_SETTINGS = "tests/fastgpt/base/test_settings.py::test_"
_VERIFY = "tests/fastgpt/tools/test_verify.py::test_"
_DEMO = "tests/fastgpt/study/test_demo_command.py::test_"
_SAMPLE = _EFFECTS + "sample_is_generate_with_the_same_settings"
_EVAL = _EFFECTS + "eval_is_evaluate_of_the_validation_split"
_INSPECT = _EFFECTS + "inspect_draws_the_layers_and_heads_asked_for_under_their_names"
_PLAN = _EFFECTS + "plan_prints_what_was_counted_for_what_was_asked"
_TIMES = _EFFECTS + "bench_takes_medians_of_the_timed_steps"
_BENCH = _EFFECTS + "bench_prints_what_was_measured_for_what_was_asked"
_DEVICE = _EFFECTS + "the_device_asked_for_is_the_one_that_computes"

MUTANTS = (
    # --- sample -------------------------------------------------------------------------------------------------------
    Mutant("sample-seed-ignored", "sample.Command.run", argument("seed").dropped(), _SAMPLE),
    Mutant("sample-temperature-ignored", "sample.Command.run", argument("temperature").dropped(), _SAMPLE),
    Mutant("sample-top-k-ignored", "sample.Command.run", argument("top_k").dropped(), _SAMPLE),
    Mutant("sample-top-p-for-top-k", "sample.Command.run", argument("top_p").dropped(), _SAMPLE),
    Mutant("sample-prompt-stripped", "sample.Command.run", value("ids").argument(1).becomes("it.strip()"), _SAMPLE),
    Mutant("sample-reads-the-beginning-of-a-long-prompt", "sample.Command.run", index().becomes(":max_len"), _SAMPLE),
    Mutant("sample-prompt-not-printed", "sample.Command.run", call("print", "prompt").dropped(), _SAMPLE),
    Mutant(
        "sample-padding-of-the-vocabulary-decoded",
        "sample.Command.run",
        value("visible").becomes("(min(token, tokenizer.end_of_text - 1) for token in new)"),
        _EFFECTS + "sample_stops_at_the_end_unless_told_to_go_on",
    ),
    Mutant(
        "sample-never-stops-at-the-end",
        "sample.Command.run",
        value("stream").choice().never(),
        _EFFECTS + "sample_stops_at_the_end_unless_told_to_go_on",
    ),
    Mutant(
        "sample-prompt-of-stdin-stripped",
        "commands.read_prompt",
        then().becomes("it.strip()"),
        _EFFECTS + "a_prompt_from_stdin_keeps_its_white_space",
    ),
    Mutant("sample-device-ignored", "sample.Command.run", name("self.device").becomes("'cpu'"), _DEVICE),
    # --- eval ---------------------------------------------------------------------------------------------------------
    Mutant("eval-on-the-training-split", "eval.Command.run", argument(2, "val").becomes("'train'"), _EVAL),
    Mutant("eval-window-ignored", "eval.Command.run", value("seq_len").choice().always(), _EVAL),
    Mutant("eval-bytes-not-counted", "eval.Command.run", argument("tokenizer").dropped(), _EVAL),
    Mutant(
        "eval-dtype-ignored",
        "eval.Command.run",
        argument("dtype").dropped(),
        _EFFECTS + "eval_in_bfloat16_is_asked_for_and_scores_windows_of_max_len",
    ),
    Mutant(
        "eval-nan-is-a-success",
        "eval.Command.run",
        statement("if", "loss").returned().becomes("0"),
        _EFFECTS + "a_loss_that_is_none_is_exit_status_1_and_on_stderr",
    ),
    Mutant(
        "eval-nan-is-said-on-stdout",
        "eval.Command.run",
        argument("file").becomes("sys.stdout"),
        _EFFECTS + "a_loss_that_is_none_is_exit_status_1_and_on_stderr",
    ),
    Mutant(
        "eval-loss-in-bits",
        "Command._print",
        literal("loss").becomes("f'loss           {found.loss / math.log(2):.4f} nats/token'"),
        _EVAL,
    ),
    Mutant(
        "eval-shards-of-another-tokenizer-pass",
        "commands._open_shards",
        condition().never(),
        _EFFECTS + "shards_made_with_another_tokenizer_are_refused",
    ),
    Mutant("eval-device-ignored", "eval.Command.run", name("self.device").becomes("'cpu'"), _DEVICE),
    # --- inspect ------------------------------------------------------------------------------------------------------
    Mutant("inspect-layers-ignored", "inspect.Command.run", operand("layers").dropped(), _INSPECT),
    Mutant("inspect-heads-ignored", "inspect.Command.run", call("list", "heads").dropped(), _INSPECT),
    Mutant(
        "inspect-heads-numbered-from-the-first",
        "inspect.Command.run",
        value("heads").becomes("list(range(len(self.heads) or config.n_heads))"),
        _INSPECT,
    ),
    Mutant(
        "inspect-a-layer-beyond-the-last-passes",
        "inspect.Command._check",
        comparison().operator("<=", 2),
        _EFFECTS + "inspect_refuses_layers_and_heads_that_are_not_there",
    ),
    Mutant("inspect-device-ignored", "inspect.Command.run", name("self.device").becomes("'cpu'"), _DEVICE),
    # --- plan and bench -----------------------------------------------------------------------------------------------
    Mutant(
        "plan-in-megabytes",
        "commands._rounded",
        operation("-").becomes("round(b / 10 ** 6) - round(a / 10 ** 6)"),
        _PLAN,
    ),
    Mutant("plan-margin-ignored", "Command._count", call("int").dropped(), _PLAN),
    Mutant("plan-fits-by-the-parameters", "Command._count", item("fits").becomes("step.parameters <= room"), _PLAN),
    Mutant("plan-dtype-ignored", "Command._count", item("autocast").always(), _PLAN),
    Mutant("plan-for-another-gpu", "Command._count", value("options").choice().never(), _PLAN),
    Mutant("plan-window-ignored", "plan.Command.run", choice("seq_len").always(), _PLAN),
    Mutant("plan-one-implementation-for-all", "Command._count", value("step").argument(1).becomes("config"), _PLAN),
    Mutant(
        "bench-warm-up-counts",
        "commands._time_steps",
        statement("if", "step").becomes("seconds.append(time.perf_counter() - start)"),
        _TIMES,
    ),
    Mutant("bench-unsorted-median", "commands._time_steps", call("sort").dropped(), _TIMES),
    Mutant("bench-tokens-of-one-row", "commands._time_steps", operand("batch_size").dropped(), _TIMES),
    Mutant("bench-flops-of-max-len", "commands._time_steps", argument(1, "seq_len").dropped(), _TIMES),
    Mutant("bench-all-out-of-memory-is-a-success", "bench.Command.run", choice("found").always(), _BENCH),
    Mutant("bench-never-compiles", "bench.Command.run", name("compile").never(), _BENCH),
    Mutant("bench-times-the-default-implementations", "bench.Command.run", call("replace").becomes("config"), _BENCH),
    Mutant("bench-device-ignored", "bench.Command.run", name("self.device").becomes("'cpu'"), _DEVICE),
    # --- verify -------------------------------------------------------------------------------------------------------
    Mutant(
        "verify-a-kernel-that-is-off-is-a-success",
        "verify.Command.run",
        choice("ok").always(),
        _EFFECTS + "verify_checks_the_kernels_asked_for_and_fails_where_one_is_off",
    ),
    Mutant(
        "verify-checks-all-whatever-was-asked",
        "verify.Command.run",
        name("only").becomes("()"),
        _EFFECTS + "verify_checks_the_kernels_asked_for_and_fails_where_one_is_off",
    ),
    Mutant("verify-device-ignored", "verify.Command.run", name("device").becomes("'cpu'"), _DEVICE),
    Mutant(
        "verify-gradients-not-compared",
        "Case.run",
        condition("wanted").always(),
        _VERIFY + "a_wrong_kernel_is_noticed",
    ),
    # --- the demo -----------------------------------------------------------------------------------------------------
    Mutant(
        "demo-that-learned-nothing-is-a-success",
        "demo.Command.run",
        returned("ok").becomes("run_demo(self.demo) and 0"),
        _EFFECTS + "a_demo_that_is_off_is_exit_status_1",
    ),
    Mutant(
        "demo-terminated-is-a-success",
        "commands.status_of",
        returned("STATUS").becomes("0"),
        _DEMO + "a_signal_while_training_keeps_the_model",
    ),
    Mutant(
        "demo-steps-do-not-follow-the-time",
        "study.make_trainer",
        call("int").becomes("config.max_steps"),
        _DEMO + "demo_fits_its_steps_into_the_time",
    ),
    # --- the words of a line ------------------------------------------------------------------------------------------
    Mutant(
        "cli-mistakes-end-with-status-0",
        "cli._fail",
        returned().becomes("0"),
        _EFFECTS + "mistakes_are_on_stderr_with_exit_status_2",
    ),
    Mutant(
        "cli-mistakes-on-stdout",
        "cli._fail",
        argument("file").becomes("sys.stdout"),
        _EFFECTS + "mistakes_are_on_stderr_with_exit_status_2",
    ),
    Mutant(
        "cli-failures-of-a-command-forgotten",
        "cli._run",
        statement("return", "run").becomes("command.run()\nreturn 0"),
        _EFFECTS + "a_loss_that_is_none_is_exit_status_1_and_on_stderr",
    ),
    Mutant(
        "cli-a-bug-is-the-users-mistake",
        "cli._run",
        condition("error").always(),
        _LINE + "a_bug_keeps_its_traceback",
    ),
    Mutant(
        "cli-debugging-hides-the-traceback",
        "cli._run",
        call("get").never(),
        _CLI + "debugging_shows_the_traceback",
    ),
    Mutant("cli-a-full-disk-is-a-success", "cli.main", operation("or").becomes("0"), _CLI + "stdout_on_a_full_disk"),
    Mutant(
        "words-the-first-of-two-counts",
        "Reader._set",
        assignment("values").becomes("self.given.values.setdefault(option.name, value)"),
        _LINE + "options_in_any_order_and_spelling",
    ),
    Mutant(
        "words-no-flag-means-yes",
        "Reader._option",
        argument(2, "negated").always(),
        _LINE + "options_in_any_order_and_spelling",
    ),
    Mutant(
        "words-negative-numbers-are-options",
        "commands._looks_like_an_option",
        operation("not", "word").always(),
        _LINE + "options_in_any_order_and_spelling",
    ),
    Mutant(
        "words-what-a-list-took-is-not-given-back",
        "Reader.read",
        call("_give_back").dropped(),
        _LINE + "options_in_any_order_and_spelling",
    ),
    Mutant(
        "words-a-loose-word-too-many-is-dropped",
        "Reader._place",
        statement("raise").dropped(),
        _EFFECTS + "a_word_too_many_is_not_dropped",
    ),
    Mutant(
        "settings-file-before-the-words",
        "commands.read",
        assignment("values").dropped(),
        _CLI + "config_file_and_overrides",
    ),
    Mutant(
        "settings-file-with-a-key-twice-passes",
        "commands.read_settings",
        condition("seen").never(),
        _EFFECTS + "values_of_another_type_in_a_file_of_settings_are_refused",
    ),
    Mutant(
        "options-values-of-another-type-pass",
        "Option.accepts",
        comparison("type").always(),
        _EFFECTS + "values_of_another_type_in_a_file_of_settings_are_refused",
    ),
    Mutant(
        "options-missing-ones-pass",
        "Given.make",
        statement("raise").dropped(),
        _EFFECTS + "mistakes_are_on_stderr_with_exit_status_2",
    ),
    Mutant(
        "mistakes-name-no-option",
        "commands._setting",
        statement("if", "words").returned().becomes("error.need"),
        _SETTINGS + "the_command_line_names_the_option",
    ),
    # --- checks of settings -------------------------------------------------------------------------------------------
    Mutant(
        "settings-true-is-an-integer",
        "base.check_integer",
        statement("if", "bool").dropped(),
        _SETTINGS + "integers",
    ),
    Mutant(
        "settings-nan-is-a-number",
        "base.check_number",
        operation("not", "number").becomes("math.isinf(number)"),
        _SETTINGS + "numbers",
    ),
    Mutant(
        "settings-below-is-at-most",
        "base.check_number",
        comparison("number", "below").operator(">"),
        _SETTINGS + "numbers",
    ),
    Mutant(
        "settings-most-is-not-looked-at",
        "base.check_integer",
        condition("end").never(),
        _SETTINGS + "integers",
    ),
    Mutant(
        "settings-integers-have-no-end",
        "base._MOST_INTEGER",
        literal(63).becomes("2000"),
        _SETTINGS + "integers_have_an_end_where_nothing_else_bounds_them",
    ),
    Mutant("settings-any-choice-passes", "base.check_choice", condition("choices").never(), _SETTINGS + "choices"),
)
