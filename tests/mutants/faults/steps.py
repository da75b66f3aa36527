"""Faults of updates that nobody waits for: read late, skipped on the device, made by several ranks, looked at again."""

from __future__ import annotations

from ..places import argument, assignment, call, choice, condition, statement, value
from ..plant import Mutant

_WAITING = "tests/fastgpt/train/test_no_waiting.py::test_"
_SKIPPED = "tests/fastgpt/train/test_skipped_steps.py::test_"
_RANKED = "tests/fastgpt/train/test_ranked_updates.py::test_"
_SPIKES = "tests/fastgpt/train/test_spikes.py::test_"

MUTANTS = (
    # --- no waiting ---------------------------------------------------------------------------------------------------
    Mutant(
        "unwaited-read-at-once",
        "Loop._step",
        condition("saves").always(),
        _WAITING + "a_step_is_read_when_the_next_one_has_begun",
    ),
    Mutant(
        "unwaited-the-update-waits",
        "Updates._apply",
        value("is_bad").becomes("torch.tensor(float(it))"),
        _WAITING + "nothing_is_read_between_two_optimizer_steps",
    ),
    Mutant(
        "unwaited-time-of-the-update-alone",
        "Updates.begin_step",
        argument("done").becomes("Mark(self.device) if pending.step % 2 else since"),
        _WAITING + "the_speed_is_that_of_the_step_though_it_is_read_late",
    ),
    Mutant(
        "unwaited-a-pause-counts",
        "Updates.settle",
        assignment("_flows_from").dropped(),
        _WAITING + "the_speed_is_that_of_the_step_though_it_is_read_late",
    ),
    # --- skipped ------------------------------------------------------------------------------------------------------
    Mutant(
        "unwaited-bad-ones-are-applied",
        "Updates._apply",
        value("is_bad").becomes("it * 0"),
        _SKIPPED + "moments_and_their_steps_are_as_if_it_had_not_been",
    ),
    Mutant(
        "unwaited-skipped-without-end",
        "Updates._settled",
        condition("in_a_row").never(),
        _SKIPPED + "three_in_a_row_are_the_end_and_the_last_good_checkpoint_stays",
    ),
    Mutant(
        "unwaited-a-good-one-between-does-not-count",
        "Updates._settled",
        assignment("in_a_row", nth=1).becomes("last.skipped = self.skipped"),
        _SKIPPED + "three_in_a_row_are_the_end_and_the_last_good_checkpoint_stays",
    ),
    Mutant(
        "unwaited-good-checkpoints-dropped-for-skipped-ones",
        "Loop._prune",
        condition().becomes("self.world.is_first"),
        _SKIPPED + "three_in_a_row_are_the_end_and_the_last_good_checkpoint_stays",
    ),
    Mutant(
        "unwaited-after-a-second-pass-the-next-has-no-gradient",
        "Updates.begin_step",
        statement("if", "_settled").assignment("values").dropped(),
        _SKIPPED + "late_or_at_once_the_bits_are_the_same",
    ),
    Mutant(
        "unwaited-a-second-pass-draws-random-numbers",
        "Updates._explanation",
        call("set_rng", nth=2).dropped(),
        _SKIPPED + "a_second_pass_that_fails_ends_nothing",
    ),
    Mutant(
        "unwaited-diagnosis-hooks-stay",
        "Watch.__enter__",
        call("callback").dropped(),
        _SKIPPED + "a_second_pass_leaves_no_hooks",
    ),
    Mutant(
        "unwaited-diagnosis-hooks-change-what-runs",
        "diagnosis._watchable",
        condition("Head").always(),
        _SKIPPED + "the_second_pass_computes_what_the_first_did",
    ),
    # --- several ranks ------------------------------------------------------------------------------------------------
    Mutant(
        "unwaited-a-rank-counts-its-own-tokens",
        "Updates._share_of_all",
        value("total").becomes("it / self.world.size * 0 + counted * self.world.size"),
        _RANKED + "two_ranks_make_the_updates_of_one",
    ),
    Mutant(
        "unwaited-a-mean-over-no-tokens",
        "Updates._backward",
        choice("counted").always(),
        _RANKED + "two_ranks_make_the_updates_of_one",
    ),
    # --- spikes -------------------------------------------------------------------------------------------------------
    Mutant(
        "unwaited-spikes-judged-by-themselves",
        "Spikes.judge",
        value("before").becomes("[*it, loss]"),
        _SPIKES + "a_spike_is_k_deviations_above_the_mean",
    ),
    Mutant(
        "unwaited-spikes-of-another-batch",
        "Spikes._tell",
        call("ranges").argument(1).becomes("sampler.position"),
        _SPIKES + "a_run_tells_of_its_spikes",
    ),
    Mutant(
        "unwaited-spikes-documents-of-the-slice",
        "TokenDataset.whole",
        condition().always(),
        _SPIKES + "documents_by_their_starts",
    ),
    Mutant(
        "unwaited-spikes-losses-of-lost-steps-count",
        "Loop._go_on",
        call("go_on").argument(1).becomes("10**9"),
        _SPIKES + "resume_knows_the_losses_before_and_drops_what_came_after",
    ),
    Mutant(
        "unwaited-skipped-ones-forgotten-on-resume",
        "Loop._go_on",
        call("from_first").becomes("(trainer.skipped, trainer.in_a_row)"),
        _SPIKES + "skipped_steps_are_counted_on_after_a_resume",
    ),
    Mutant(
        "unwaited-separators-begin-no-document",
        "data._batches",
        condition("separators", nth=2).never(),
        _SPIKES + "the_file_of_a_document_is_known",
    ),
)
