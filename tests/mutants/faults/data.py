"""Faults of the data as training reads it: batches, datasets, the cache of tokens."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    choice,
    collection,
    comparison,
    condition,
    item,
    literal,
    name,
    operand,
    operation,
    returned,
    value,
)
from ..plant import Mutant

_BATCHES = "tests/fastgpt/data/test_sampler.py::test_"
_DATA = "tests/fastgpt/data/test_data.py::test_"
_STREAM = "tests/fastgpt/data/test_token_stream.py::test_"
_CACHED = "tests/fastgpt/data/test_token_cache.py::test_"

_PREFETCH = "tests/fastgpt/data/test_prefetch.py::test_"

MUTANTS = (
    # --- batches ------------------------------------------------------------------------------------------------------
    Mutant(
        "sampler-targets-unshifted",
        "data.window_batch",
        value("targets[row, :n]").becomes("tokens[:-1]"),
        _BATCHES + "targets_are_the_next_tokens",
    ),
    Mutant(
        "sampler-targets-two-ahead",
        "data.window_batch",
        assignment("targets", "tokens").becomes("idx[row, :n], targets[row, : n - 1] = tokens[:-1], tokens[2:]"),
        _BATCHES + "targets_are_the_next_tokens",
    ),
    Mutant(
        "sampler-windows-overlap",
        "data.window_batch",
        value("start").operand("seq_len").becomes("it - 1"),
        _BATCHES + "an_epoch_shows_every_token_once",
    ),
    Mutant(
        "sampler-windows-a-token-apart",
        "data.window_batch",
        operand(3).dropped(),
        _BATCHES + "an_epoch_shows_every_token_once",
    ),
    Mutant(
        "sampler-last-window-dropped",
        "BatchSampler.__init__",
        value("n_windows").becomes("max(1, (len(dataset) - 1) // seq_len)"),
        _BATCHES + "an_epoch_shows_every_token_once",
    ),
    Mutant(
        "sampler-a-window-of-no-target",
        "data.windows_in",
        call("cdiv").argument(0).literal(1).dropped(),
        _BATCHES + "an_epoch_shows_every_token_once",
    ),
    Mutant(
        "sampler-missing-targets-are-token-0",
        "data.window_batch",
        call("full").argument(2).becomes("0"),
        _BATCHES + "an_epoch_shows_every_token_once",
    ),
    Mutant(
        "sampler-order-without-the-seed",
        "BatchSampler._window",
        item("seed").dropped(),
        _BATCHES + "order_is_the_seeds",
    ),
    Mutant(
        "sampler-order-without-the-epoch",
        "BatchSampler._window",
        value("_order").item("epoch").dropped(),
        _BATCHES + "epochs_differ_and_batches_cross_them",
    ),
    Mutant(
        "sampler-order-of-the-first-epoch",
        "BatchSampler._window",
        condition().becomes("self._epoch < 0"),
        _BATCHES + "epochs_differ_and_batches_cross_them",
    ),
    Mutant(
        "sampler-order-of-numpys-global-state",
        "BatchSampler._window",
        call("default_rng").becomes("np.random"),
        _BATCHES + "order_is_the_seeds",
    ),
    Mutant(
        "sampler-windows-drawn-with-replacement",
        "BatchSampler._window",
        value("_order").becomes(
            "np.random.default_rng([self.seed, epoch]).integers(self.n_windows, size=self.n_windows)"
        ),
        _BATCHES + "an_epoch_shows_every_token_once",
    ),
    # --- batches made ahead -------------------------------------------------------------------------------------------
    Mutant(
        "prefetch-position-of-what-was-made-stays",
        "BatchesAhead.take",
        assignment("sampler.position").dropped(),
        _PREFETCH + "the_sampler_s_batches_in_its_order",
    ),
    Mutant(
        "prefetch-hands-out-what-was-made-of-something-else",
        "BatchesAhead._made",
        comparison("expected").always(),
        _PREFETCH + "what_was_made_of_something_else_is_dropped",
    ),
    Mutant(
        "prefetch-of-the-dataset-before",
        "data._depends_on",
        call("id", "dataset").becomes("None"),
        _PREFETCH + "what_was_made_of_something_else_is_dropped[dataset]",
    ),
    Mutant(
        "prefetch-beyond-the-last-step",
        "BatchesAhead.take",
        operand("more").dropped(),
        _PREFETCH + "no_batch_is_made_that_nobody_wants",
    ),
    Mutant(
        "prefetch-thread-never-ends",
        "BatchesAhead._dismissed",
        call("put").dropped(),
        _PREFETCH + "no_thread_outlives_fit",
    ),
    Mutant(
        "prefetch-asks-no-sampler-of-one-s-own",
        "BatchesAhead.take",
        comparison("next_batch").always(),
        _PREFETCH + "a_sampler_of_one_s_own_is_asked_itself",
    ),
    Mutant(
        "prefetch-not-pinned",
        "data._make",
        condition("cuda").never(),
        _PREFETCH + "a_gpu_s_batches_are_pinned_on_its_own_account",
    ),
    Mutant(
        "prefetch-pins-on-gpu-0",
        "data._work",
        call("set_device").dropped(),
        _PREFETCH + "a_gpu_s_batches_are_pinned_on_its_own_account",
    ),
    Mutant(
        "sampler-ranks-see-the-same",
        "BatchSampler.next_batch",
        value("first").becomes("self.position"),
        _BATCHES + "ranks_together_see_what_one_process_sees",
    ),
    Mutant(
        "sampler-ranks-move-on-alone",
        "BatchSampler.next_batch",
        operand("world_size").dropped(),
        _BATCHES + "ranks_together_see_what_one_process_sees",
    ),
    Mutant(
        "sampler-position-of-the-batch-before",
        "BatchSampler.state_dict",
        item("position").becomes("max(0, it - self.batch_size)"),
        _BATCHES + "resume_continues_exactly",
    ),
    Mutant(
        "sampler-changes-unnoticed",
        "BatchSampler.load_state_dict",
        condition("changed").never(),
        _BATCHES + "foreign_state_is_refused",
    ),
    Mutant(
        "sampler-position-not-scaled",
        "BatchSampler.load_state_dict",
        value("position").becomes(operand("state")),
        _BATCHES + "changes_that_are_allowed_go_on_at_the_same_part_of_the_epoch",
    ),
    Mutant(
        "sampler-epoch-of-batches",
        "BatchSampler.epoch",
        returned().operator("//"),
        "tests/fastgpt/train/test_trainer.py::test_metrics_lines",
    ),
    Mutant(
        "sampler-validation-without-its-last-batch",
        "data.sequential_batches",
        call("len", "chosen").becomes("it - batch_size + 1"),
        _BATCHES + "sequential_batches_score_every_token_once",
    ),
    Mutant(
        "sampler-validation-of-the-beginning",
        "data.sequential_batches",
        value("chosen", "round").becomes("chosen[:max_batches * batch_size]"),
        _BATCHES + "sequential_batches_score_every_token_once",
    ),
    Mutant(
        "sampler-validation-of-so-many-windows",
        "data.sequential_batches",
        call("linspace").operand("batch_size").dropped(),
        _BATCHES + "sequential_batches_score_every_token_once",
    ),
    Mutant(
        "sampler-a-batch-size-that-is-none",
        "data.check_dataset",
        literal(2).becomes("1"),
        _BATCHES + "bad_settings",
    ),
    # --- datasets -----------------------------------------------------------------------------------------------------
    Mutant(
        "shards-ids-of-65536-wrap",
        "data.id_dtype",
        operation("<<").becomes("it + 1"),
        _STREAM + "the_largest_ids_survive",
    ),
    Mutant(
        "shards-large-vocabulary-in-uint16",
        "data.id_dtype",
        choice().always(),
        _STREAM + "the_largest_ids_survive",
    ),
    Mutant(
        "shards-small-vocabulary-in-uint32",
        "data.id_dtype",
        comparison().operator("<"),
        _STREAM + "the_largest_ids_survive",
    ),
    Mutant(
        "dataset-end-of-text-missing",
        "TokenDataset.from_documents",
        call("np.append").unwrapped(),
        _STREAM + "documents_in_memory",
    ),
    Mutant(
        "dataset-documents-start-one-early",
        "TokenDataset.from_documents",
        literal(1).dropped(),
        _STREAM + "documents_in_memory",
    ),
    Mutant(
        "dataset-ids-beyond-the-vocabulary",
        "TokenDataset.from_documents",
        comparison("ids.max").operator(">"),
        _STREAM + "ids_are_below_the_vocabulary_and_not_negative",
    ),
    Mutant(
        "dataset-negative-ids",
        "TokenDataset.from_documents",
        comparison("ids.min").dropped(),
        _STREAM + "ids_are_below_the_vocabulary_and_not_negative",
    ),
    Mutant(
        "dataset-read-begins-in-the-next-shard",
        "TokenDataset.read",
        value("number", "_ends").becomes("bisect.bisect_left(self._ends, start) + 1"),
        _DATA + "several_shards_and_reading_across_them",
    ),
    Mutant(
        "dataset-read-writes-over-itself",
        "TokenDataset.read",
        item("part").becomes("max(at, len(part))"),
        _STREAM + "every_part_of_the_stream_reads_the_same",
    ),
    Mutant(
        "dataset-read-beyond-the-end",
        "TokenDataset.read",
        comparison("start", "stop", "len").operand("len").dropped(),
        _DATA + "several_shards_and_reading_across_them",
    ),
    Mutant(
        "dataset-split-takes-the-beginning",
        "TokenDataset.split",
        returned().becomes(
            "(self._slice(len(self) - cut, len(self), 'train'), self._slice(0, len(self) - cut, 'val'))"
        ),
        _DATA + "split_and_unigram_entropy",
    ),
    Mutant(
        "dataset-split-shares-tokens",
        "TokenDataset.split",
        argument(2, "cut").becomes("len(self)"),
        _DATA + "split_and_unigram_entropy",
    ),
    Mutant(
        "dataset-split-documents-of-the-whole",
        "TokenDataset._slice",
        choice().never(),
        _STREAM + "a_split_keeps_the_documents",
    ),
    Mutant(
        "dataset-split-loses-the-document-at-the-cut",
        "TokenDataset._slice",
        call("searchsorted").becomes("np.searchsorted(self.documents, (start, stop), side='right')"),
        _STREAM + "a_split_keeps_the_documents",
    ),
    Mutant(
        "dataset-split-of-shards-at-the-wrong-place",
        "TokenDataset._slice",
        assignment("base", "shard").becomes("base = len(shard)"),
        _STREAM + "a_split_of_shards_loses_nothing",
    ),
    Mutant(
        "dataset-entropy-in-bits",
        "TokenDataset.unigram_entropy",
        call("log").becomes("np.log2(p)"),
        _DATA + "split_and_unigram_entropy",
    ),
    Mutant(
        "dataset-slices-are-known-as-the-whole",
        "TokenDataset._slice",
        returned().becomes("other._known_as(self._known_sha256)"),
        "tests/fastgpt/data/test_shards.py::test_slices_have_an_identity_of_their_own",
    ),
    Mutant(
        "dataset-a-cut-file-is-read",
        "TokenDataset._part",
        call("check_whole").dropped(),
        "tests/fastgpt/data/test_shards.py::test_a_file_that_is_cut_while_in_use_is_an_error",
    ),
    # --- the cache of tokens ------------------------------------------------------------------------------------------
    Mutant(
        "cache-of-another-tokenizer",
        "data.tokenized",
        name("sha256").dropped(),
        _CACHED + "another_tokenizer_is_another_entry",
    ),
    Mutant(
        "cache-of-an-older-text",
        "data.tokenized",
        collection("st_size").becomes("(s.st_size,)"),
        _CACHED + "a_changed_text_is_read_again",
    ),
    Mutant(
        "cache-size-and-time-put-back",
        "data.tokenized",
        item("st_ctime_ns").dropped(),
        _CACHED + "a_changed_text_is_read_again",
    ),
    Mutant(
        "cache-of-other-texts",
        "data.tokenized",
        value("which").comprehension().becomes("[len(files)]"),
        _CACHED + "other_texts_are_another_entry",
    ),
    Mutant(
        "cache-removes-what-is-used",
        "data._tidy",
        comparison("time").operator("<"),
        _CACHED + "what_was_not_used_for_long_goes",
    ),
    Mutant(
        "cache-use-does-not-count",
        "data.tokenized",
        call("utime").dropped(),
        _CACHED + "what_was_not_used_for_long_goes",
    ),
    Mutant(
        "cache-earlier-states-stay",
        "data._tidy",
        comparison("new.name").never(),
        _CACHED + "a_changed_text_is_read_again",
    ),
    Mutant(
        "cache-a-damaged-entry-is-an-error",
        "data._opened",
        name("ShardError").dropped(),
        _CACHED + "a_damaged_entry_is_made_anew",
    ),
    Mutant(
        "dataset-one-id-too-many",
        "TokenDataset._part",
        comparison().operator(">"),
        "tests/fastgpt/data/test_shards.py::test_the_first_id_that_the_tokenizer_has_not_is_refused",
    ),
    Mutant(
        "cache-old-folders-of-others-go",
        "data._tidy",
        operation("not").dropped(),
        "tests/fastgpt/commands/test_files_commands.py::test_entries_that_nobody_used_for_long_go_and_foreign_files_stay",
    ),
)
