"""Faults of what a run reports and of what it hears: metrics, progress, signals, devices, its settings."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    comparison,
    condition,
    item,
    literal,
    operand,
    operation,
    returned,
    statement,
    value,
)
from ..plant import Mutant

_TESTS = "tests/fastgpt/train/test_trainer.py::test_"
_SETTINGS = "tests/fastgpt/train/test_trainer_settings.py::test_"
_STOPPING = "tests/fastgpt/train/test_stopping.py::test_"
_PROGRESS_TESTS = "tests/fastgpt/base/test_progress.py::test_"
_CONFIG_TESTS = "tests/fastgpt/train/test_train_config.py::test_"

MUTANTS = (
    # --- reports and signals ------------------------------------------------------------------------------------------
    Mutant(
        "metrics-nan-is-written",
        "train._as_line",
        operation("and").never(),
        "tests/fastgpt/train/test_metrics_log.py::test_what_was_written_is_read",
    ),
    Mutant(
        "metrics-lines-of-later-steps-are-kept",
        "MetricsLog.__init__",
        operand("keep_steps").becomes("it + 1"),
        "tests/fastgpt/train/test_metrics_log.py::test_lines_after_the_checkpoint_are_dropped",
    ),
    Mutant(
        "metrics-lines-of-the-last-step-are-dropped",
        "MetricsLog.__init__",
        condition("keep_steps").operator("<"),
        "tests/fastgpt/train/test_metrics_log.py::test_lines_after_the_checkpoint_are_dropped",
    ),
    Mutant(
        "metrics-a-garbled-line-ends-the-reading",
        "train.read_metrics",
        returned().becomes(
            "list(__import__('itertools').takewhile(bool, (line for _, line in _lines(Path(path).read_bytes()))))"
        ),
        _TESTS + "lines_that_are_none_cost_the_others_nothing",
    ),
    Mutant(
        "metrics-what-waits-is-dropped",
        "MetricsLog.write",
        call("append").becomes("self.waiting = [line]"),
        "tests/fastgpt/train/test_metrics_log.py::test_half_written_lines_become_whole_ones",
    ),
    Mutant(
        "metrics-fsync-removed",
        "MetricsLog.sync",
        call("fsync").dropped(),
        "tests/fastgpt/train/test_metrics_log.py::test_sync_has_it_on_the_disk",
    ),
    Mutant(
        "metrics-half-a-line-stays-half",
        "MetricsLog._flush",
        assignment("_begun", "data").becomes("self._file.write(data[self._begun:])\nself._begun = len(data)"),
        "tests/fastgpt/train/test_metrics_log.py::test_half_written_lines_become_whole_ones",
    ),
    Mutant(
        "metrics-mfu-over-the-wrong-peak",
        "train.mfu",
        operand("peak", nth=-1).becomes("2 * it"),
        "tests/fastgpt/train/test_metrics.py::test_mfu_formula",
    ),
    Mutant(
        "reports-an-error-ends-the-run",
        "train._Guarded.run",
        statement("try").becomes("action()"),
        _TESTS + "reports_that_fail_are_said_once_and_training_goes_on",
    ),
    Mutant(
        "reports-said-at-every-step",
        "train._Guarded._failed",
        assignment("failed").dropped(),
        _TESTS + "reports_that_fail_are_said_once_and_training_goes_on",
    ),
    Mutant(
        "reports-metrics-given-up",
        "train.reports",
        argument("again").dropped(),
        _TESTS + "reports_that_fail_are_said_once_and_training_goes_on",
    ),
    Mutant(
        "stopping-handlers-not-restored",
        "StopSignals.__exit__",
        call("signal").dropped(),
        _STOPPING + "signals_are_handled_as_before_afterwards",
    ),
    Mutant(
        "stopping-sigterm-unheard",
        "train._NUMBERS",
        item("SIGTERM").dropped(),
        _STOPPING + "signals_are_handled_as_before_afterwards",
    ),
    Mutant(
        "stopping-sighup-unheard",
        "train._NUMBERS",
        item("SIGHUP").dropped(),
        _STOPPING + "signals_are_handled_as_before_afterwards",
    ),
    Mutant(
        "stopping-an-ignored-signal-is-heard",
        "StopSignals.__enter__",
        condition("signal").always(),
        _TESTS + "what_a_parent_ignores_stays_ignored",
    ),
    Mutant(
        "stopping-a-second-ctrl-c-unheard",
        "StopSignals._stop",
        call("signal").dropped(),
        _STOPPING + "a_ctrl_c_after_the_first_signal_ends_at_once",
    ),
    Mutant(
        "stopping-the-last-signal-is-named",
        "StopSignals._stop",
        operand("self.number").dropped(),
        _STOPPING + "the_first_signal_is_named",
    ),
    Mutant(
        "command-ctrl-c-at-its-exit-shows-where",
        "_signals.Signals.__exit__",
        call("signal").dropped(),
        "tests/fastgpt/commands/test_signals.py::test_ctrl_c_while_python_ends_is_no_traceback",
    ),
    Mutant(
        "progress-a-line-one-step-late",
        "base._Lines.__call__",
        literal(0).becomes("1 % self.every"),
        _PROGRESS_TESTS + "every_so_many_steps_there_is_a_line",
    ),
    Mutant(
        "progress-time-left-with-the-first-step",
        "base._Lines._left",
        value("a_step").becomes("(now - self._began) / (others + 1)"),
        _PROGRESS_TESTS + "the_time_left_is_that_of_the_steps_after_the_first",
    ),
    Mutant(
        "progress-time-left-of-a-resumed-run",
        "base._Lines._left",
        operand("done").dropped(),
        _PROGRESS_TESTS + "the_time_left_is_that_of_the_steps_after_the_first",
    ),
    Mutant(
        "progress-time-of-all-steps",
        "base._Lines._left",
        value("seconds").operand("step").dropped(),
        _PROGRESS_TESTS + "the_time_left_is_that_of_the_steps_after_the_first",
    ),
    Mutant(
        "progress-validations-not-shown",
        "base._Lines.__call__",
        call("print", "describe_validation").dropped(),
        _PROGRESS_TESTS + "a_validation_has_a_line_of_its_own",
    ),
    Mutant(
        "devices-auto-by-emulation",
        "train.resolve_dtype",
        argument("including_emulation").dropped(),
        _SETTINGS + "auto_is_bfloat16_on_gpus_that_compute_in_it",
    ),
    Mutant(
        "devices-auto-is-bfloat16-everywhere",
        "train.resolve_dtype",
        returned("fits").choice().always(),
        _SETTINGS + "auto_is_bfloat16_on_gpus_that_compute_in_it",
    ),
    Mutant(
        "train-config-betas-of-1",
        "TrainConfig.__post_init__",
        call("check_number", "below").argument("below").becomes("2"),
        _CONFIG_TESTS + "bad_values",
    ),
    Mutant(
        "train-config-nothing-kept",
        "TrainConfig.__post_init__",
        item("keep").becomes("'batch_size'"),
        _CONFIG_TESTS + "bad_values",
    ),
    Mutant(
        "train-config-a-name-that-is-a-path",
        "TrainConfig._check_paths",
        comparison("Path").never(),
        _CONFIG_TESTS + "bad_values",
    ),
    Mutant(
        "train-config-seeds-that-torch-does-not-take",
        "TrainConfig.__post_init__",
        argument("most", "_MOST_SEED").dropped(),
        _CONFIG_TESTS + "bad_values",
    ),
    Mutant(
        "metrics-a-step-of-true",
        "train._parsed",
        comparison().becomes("isinstance(line.get('step'), int)"),
        "tests/fastgpt/train/test_metrics_log.py::test_a_step_is_a_number",
    ),
    Mutant(
        "scalars-of-lost-steps-stay",
        "Scalars.__init__",
        call("_add", "step").dropped(),
        "tests/fastgpt/train/test_metrics_log.py::test_scalars_of_a_run_that_goes_on_replace_those_after_its_checkpoint",
    ),
    Mutant(
        "scalars-of-the-checkpoint-go-too",
        "train.reports",
        literal(1).dropped(),
        "tests/fastgpt/train/test_metrics_log.py::test_scalars_of_a_run_that_goes_on_replace_those_after_its_checkpoint",
    ),
)
