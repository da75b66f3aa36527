"""Faults of what a run reports and of what it hears: metrics, progress, signals, devices, its settings."""

from __future__ import annotations

from ..plant import Mutant

_TESTS = "tests/fastgpt/train/test_trainer.py::test_"
_SETTINGS = "tests/fastgpt/train/test_trainer_settings.py::test_"
_STOPPING = "tests/fastgpt/train/test_stopping.py::test_"
_METRICS = "fastgpt/train/metrics.py"
_REPORTS = "fastgpt/train/reports.py"
_PROGRESS = "fastgpt/base/progress.py"
_PROGRESS_TESTS = "tests/fastgpt/base/test_progress.py::test_"
_CONFIG = "fastgpt/train/train_config.py"
_CONFIG_TESTS = "tests/fastgpt/train/test_train_config.py::test_"

MUTANTS = (
    # --- reports and signals ------------------------------------------------------------------------------------------
    Mutant(
        "metrics-nan-is-written",
        _METRICS,
        "isinstance(v, float) and not math.isfinite(v)",
        "False",
        "tests/fastgpt/train/test_metrics_log.py::test_what_was_written_is_read",
    ),
    Mutant(
        "metrics-lines-of-later-steps-are-kept",
        _METRICS,
        'line["step"] <= keep_steps',
        'line["step"] <= keep_steps + 1',
        "tests/fastgpt/train/test_metrics_log.py::test_lines_after_the_checkpoint_are_dropped",
    ),
    Mutant(
        "metrics-lines-of-the-last-step-are-dropped",
        _METRICS,
        'line["step"] <= keep_steps',
        'line["step"] < keep_steps',
        "tests/fastgpt/train/test_metrics_log.py::test_lines_after_the_checkpoint_are_dropped",
    ),
    Mutant(
        "metrics-a-garbled-line-ends-the-reading",
        _METRICS,
        "[line for _, line in _lines(Path(path).read_bytes()) if line is not None]",
        "list(__import__('itertools').takewhile(bool, (line for _, line in _lines(Path(path).read_bytes()))))",
        _TESTS + "lines_that_are_none_cost_the_others_nothing",
    ),
    Mutant(
        "metrics-what-waits-is-dropped",
        _METRICS,
        "self.waiting.append(line)",
        "self.waiting = [line]",
        "tests/fastgpt/train/test_metrics_log.py::test_half_written_lines_become_whole_ones",
    ),
    Mutant(
        "metrics-fsync-removed",
        _METRICS,
        "os.fsync(self._file.fileno())",
        "",
        "tests/fastgpt/train/test_metrics_log.py::test_sync_has_it_on_the_disk",
    ),
    Mutant(
        "metrics-half-a-line-stays-half",
        _METRICS,
        "self._begun += self._file.write(data[self._begun:])",
        """
        self._file.write(data[self._begun:])
        self._begun = len(data)
        """,
        "tests/fastgpt/train/test_metrics_log.py::test_half_written_lines_become_whole_ones",
    ),
    Mutant(
        "metrics-mfu-over-the-wrong-peak",
        _METRICS,
        "tokens_per_second * flops_per_token / peak",
        "tokens_per_second * flops_per_token / (2 * peak)",
        "tests/fastgpt/train/test_metrics.py::test_mfu_formula",
    ),
    Mutant(
        "reports-an-error-ends-the-run",
        _REPORTS,
        """
        try:
            action()
        except Exception as error:
            self._failed(error)
        """,
        "action()",
        _TESTS + "reports_that_fail_are_said_once_and_training_goes_on",
    ),
    Mutant(
        "reports-said-at-every-step",
        _REPORTS,
        "self.failed = True",
        "",
        _TESTS + "reports_that_fail_are_said_once_and_training_goes_on",
        "_Guarded._failed",
    ),
    Mutant(
        "reports-metrics-given-up",
        _REPORTS,
        "again=True",
        "",
        _TESTS + "reports_that_fail_are_said_once_and_training_goes_on",
    ),
    Mutant(
        "stopping-handlers-not-restored",
        "fastgpt/train/stopping.py",
        "signal.signal(number, handler)",
        "pass",
        _STOPPING + "signals_are_handled_as_before_afterwards",
    ),
    Mutant(
        "stopping-sigterm-unheard",
        "fastgpt/train/stopping.py",
        "(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
        "(signal.SIGINT, signal.SIGHUP)",
        _STOPPING + "signals_are_handled_as_before_afterwards",
    ),
    Mutant(
        "stopping-sighup-unheard",
        "fastgpt/train/stopping.py",
        "(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
        "(signal.SIGINT, signal.SIGTERM)",
        _STOPPING + "signals_are_handled_as_before_afterwards",
    ),
    Mutant(
        "stopping-an-ignored-signal-is-heard",
        "fastgpt/train/stopping.py",
        "signal.getsignal(number) not in (signal.SIG_IGN, None)",
        "True",
        _TESTS + "what_a_parent_ignores_stays_ignored",
    ),
    Mutant(
        "stopping-a-second-ctrl-c-unheard",
        "fastgpt/train/stopping.py",
        "signal.signal(signal.SIGINT, self._before[signal.SIGINT])",
        "pass",
        _STOPPING + "a_ctrl_c_after_the_first_signal_ends_at_once",
    ),
    Mutant(
        "stopping-the-last-signal-is-named",
        "fastgpt/train/stopping.py",
        "self.stopped_by or signal.Signals(number).name",
        "signal.Signals(number).name",
        _STOPPING + "the_first_signal_is_named",
    ),
    Mutant(
        "progress-a-line-one-step-late",
        _PROGRESS,
        "step % self.every == 0",
        "step % self.every == 1 % self.every",
        _PROGRESS_TESTS + "every_so_many_steps_there_is_a_line",
    ),
    Mutant(
        "progress-time-left-with-the-first-step",
        _PROGRESS,
        "a_step = (now - self._first_ended) / others if others > 0 else now - self._began",
        "a_step = (now - self._began) / (others + 1)",
        _PROGRESS_TESTS + "the_time_left_is_that_of_the_steps_after_the_first",
    ),
    Mutant(
        "progress-time-left-of-a-resumed-run",
        _PROGRESS,
        "step - self.done - 1",
        "step - 1",
        _PROGRESS_TESTS + "the_time_left_is_that_of_the_steps_after_the_first",
    ),
    Mutant(
        "progress-time-of-all-steps",
        _PROGRESS,
        "self.total - step",
        "self.total",
        _PROGRESS_TESTS + "the_time_left_is_that_of_the_steps_after_the_first",
    ),
    Mutant(
        "progress-validations-not-shown",
        _PROGRESS,
        "print(describe_validation(line), flush=True)",
        "pass",
        _PROGRESS_TESTS + "a_validation_has_a_line_of_its_own",
    ),
    Mutant(
        "devices-auto-by-emulation",
        "fastgpt/train/devices.py",
        "including_emulation=False",
        "",
        _SETTINGS + "auto_is_bfloat16_on_gpus_that_compute_in_it",
    ),
    Mutant(
        "devices-auto-is-bfloat16-everywhere",
        "fastgpt/train/devices.py",
        "torch.bfloat16 if fits else torch.float32",
        "torch.bfloat16",
        _SETTINGS + "auto_is_bfloat16_on_gpus_that_compute_in_it",
    ),
    Mutant(
        "train-config-betas-of-1",
        _CONFIG,
        "below=1",
        "most=1",
        _CONFIG_TESTS + "bad_values",
    ),
    Mutant(
        "train-config-nothing-kept",
        _CONFIG,
        '("keep", None)',
        '("batch_size", None)',
        _CONFIG_TESTS + "bad_values",
    ),
    Mutant(
        "train-config-a-name-that-is-a-path",
        _CONFIG,
        "Path(self.name).name != self.name",
        "False",
        _CONFIG_TESTS + "bad_values",
    ),
    Mutant(
        "train-config-seeds-that-torch-does-not-take",
        _CONFIG,
        "most=_MOST_SEED",
        "",
        _CONFIG_TESTS + "bad_values",
    ),
    Mutant(
        "metrics-a-step-of-true",
        _METRICS,
        'type(line.get("step")) is int',
        'isinstance(line.get("step"), int)',
        "tests/fastgpt/train/test_metrics_log.py::test_a_step_is_a_number",
    ),
    Mutant(
        "scalars-of-lost-steps-stay",
        _METRICS,
        "self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))",
        "pass",
        "tests/fastgpt/train/test_metrics_log.py::test_scalars_of_a_run_that_goes_on_replace_those_after_its_checkpoint",
    ),
    Mutant(
        "scalars-of-the-checkpoint-go-too",
        _REPORTS,
        "first + 1",
        "first",
        "tests/fastgpt/train/test_metrics_log.py::test_scalars_of_a_run_that_goes_on_replace_those_after_its_checkpoint",
    ),
)
