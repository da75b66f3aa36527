"""Faults of the way from texts to shards: sources, preparation, shards."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    choice,
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

_DATA = "tests/fastgpt/data/test_data.py::test_"
_STREAM = "tests/fastgpt/data/test_token_stream.py::test_"
_DURABLE = "tests/fastgpt/train/test_durability.py::test_"

MUTANTS = (
    # --- shards -------------------------------------------------------------------------------------------------------
    Mutant(
        "shards-hash-not-compared",
        "shard_checks._check_hash",
        comparison("found").never(),
        "tests/fastgpt/data/test_shards.py::test_a_flipped_bit_is_noticed_wherever_it_is",
    ),
    Mutant(
        "shards-documents-hash-not-compared",
        "data.check_unaltered",
        choice().never(),
        _STREAM + "other_documents_than_were_written_are_refused",
    ),
    Mutant(
        "shards-remembered-by-size-alone",
        "data._state",
        returned().becomes("[entry['sha256'], found.st_size]"),
        "tests/fastgpt/data/test_shards.py::test_what_is_remembered_is_of_these_bytes",
    ),
    Mutant(
        "shards-remembered-whatever-its-hash",
        "data._state",
        item("entry").becomes("''"),
        _STREAM + "what_is_remembered_is_a_hash_and_not_a_file",
    ),
    Mutant(
        "shards-what-is-remembered-is-forgotten",
        "data.check_unaltered",
        call("_remember").dropped(),
        "tests/fastgpt/data/test_shards.py::test_a_copy_is_read_once_and_remembered",
    ),
    Mutant(
        "shards-whole-is-ignored",
        "data.check_unaltered",
        operand("whole").dropped(),
        "tests/fastgpt/data/test_shards.py::test_a_bit_that_flipped_on_the_disk_is_found_by_verify",
    ),
    Mutant(
        "shards-time-stamp-not-compared",
        "data._in_time",
        returned().always(),
        "tests/fastgpt/data/test_shards.py::test_a_flipped_bit_is_noticed_wherever_it_is",
    ),
    Mutant(
        "shards-size-not-compared",
        "data.open_shard",
        condition().operator("<"),
        _STREAM + "a_shard_of_another_length_is_refused",
    ),
    Mutant("shards-truncated-is-taken", "data.open_shard", condition().operator(">"), _DATA + "truncated_shard"),
    Mutant(
        "shards-count-not-compared",
        "data._check_header",
        condition("count").never(),
        _DATA + "shard_of_another_set",
    ),
    Mutant("shards-version-not-looked-at", "data._check_header", comparison("version").never(), _DATA + "newer_shard"),
    Mutant(
        "shards-header-read-as-tokens",
        "data.open_shard",
        argument(4, "size").becomes("0"),
        _STREAM + "every_part_of_the_stream_reads_the_same",
    ),
    Mutant(
        "shards-documents-unchecked",
        "data.open_documents",
        operation("and").always(),
        _STREAM + "documents_that_do_not_rise_are_refused",
    ),
    Mutant(
        "shards-documents-may-repeat",
        "data.open_documents",
        comparison("diff").operator(">="),
        _STREAM + "documents_that_do_not_rise_are_refused",
    ),
    Mutant(
        "shards-documents-beyond-the-end",
        "data.open_documents",
        comparison("n_tokens").operator("<="),
        _STREAM + "documents_that_do_not_rise_are_refused",
    ),
    Mutant(
        "shards-names-anywhere",
        "data.read_manifest",
        operand("NAME").always(),
        _DATA + "a_manifest_cannot_name_files_elsewhere",
    ),
    Mutant(
        "shards-that-do-not-add-up",
        "data._check_values",
        condition("n_tokens").never(),
        "tests/fastgpt/data/test_shards.py::test_a_value_that_cannot_be_is_refused",
    ),
    Mutant(
        "shards-manifest-altered-by-hand",
        "data.read_manifest",
        operation("and").never(),
        "tests/fastgpt/data/test_shards.py::test_a_manifest_altered_by_hand_is_refused",
    ),
    Mutant(
        "shards-one-token-too-many",
        "ShardWriter.write",
        condition("_count").operator(">"),
        _STREAM + "shards_are_full_and_hashed",
    ),
    Mutant(
        "shards-hash-of-the-last-part",
        "ShardWriter.write",
        call("update", "_hash").becomes("self._hash = hashlib.sha256(data)"),
        _STREAM + "shards_are_full_and_hashed",
    ),
    Mutant(
        "shards-count-of-the-last-part",
        "ShardWriter.write",
        assignment("_count").becomes("self._count = len(part)"),
        _STREAM + "shards_are_full_and_hashed",
    ),
    Mutant(
        "shards-fsync-of-the-files-removed",
        "data.new_set",
        call("flush_all").dropped(),
        _DURABLE + "token_shards",
    ),
    Mutant(
        "shards-fsync-of-the-folder-above-removed",
        "data.new_set",
        call("flush", "parent").dropped(),
        _DURABLE + "token_shards",
    ),
    Mutant(
        "shards-fsync-of-a-replaced-set-removed",
        "data.new_set",
        statement("with").call("flush").dropped(),
        _DURABLE + "token_shards",
    ),
    Mutant(
        "shards-of-the-old-set-stay",
        "data.new_set",
        argument("gone").becomes("[]"),
        _DATA + "only_files_that_the_manifest_names_are_replaced",
    ),
    Mutant(
        "shards-a-foreign-folder-is-overwritten",
        "data.check_target",
        condition("is_shards").never(),
        _DATA + "a_folder_that_is_not_ours_is_never_touched",
    ),
    Mutant(
        "shards-overwrite-without-being-asked",
        "data.check_target",
        condition("overwrite").never(),
        _DATA + "existing_folder_is_kept_unless_overwritten",
    ),
    # --- preparation --------------------------------------------------------------------------------------------------
    Mutant("preparation-end-of-text-missing", "data._batches", condition("ends").never(), _DATA + "folder_of_sources"),
    Mutant(
        "preparation-end-of-text-after-every-piece",
        "data._batches",
        operand("ends").dropped(),
        _STREAM + "a_long_document_is_one",
    ),
    Mutant(
        "preparation-end-of-text-twice",
        "data._batches",
        operation("not", "piece").dropped(),
        _STREAM + "a_separator_at_the_end_ends_once",
    ),
    Mutant(
        "preparation-documents-start-at-the-separator",
        "data._write",
        call("close").operand(2).dropped(),
        _DATA + "end_of_text_separates_only_when_asked",
    ),
    Mutant(
        "preparation-positions-within-the-batch",
        "data._write",
        call("ends.append").operand("writer").dropped(),
        _STREAM + "a_long_document_is_one",
    ),
    Mutant(
        "preparation-bytes-are-characters",
        "data._Batch.add",
        value("n_bytes").choice().always(),
        _STREAM + "the_manifest_says_what_is_there",
    ),
    Mutant(
        "preparation-separators-always",
        "data._batches",
        condition(nth=1).never(),
        _DATA + "end_of_text_separates_only_when_asked",
    ),
    Mutant(
        "preparation-last-batch-dropped",
        "data._tokenized",
        statement("for", "ids").dropped(),
        _DATA + "folder_of_sources",
    ),
    Mutant(
        "preparation-batches-out-of-order",
        "data._tokenized",
        value("ids").becomes("waiting.pop()"),
        "tests/fastgpt/data/test_preparation.py::test_the_tokens_are_those_of_each_document_alone",
    ),
    Mutant("preparation-no-text-is-a-dataset", "data._write", condition().never(), _DATA + "bad_source"),
    # --- sources ------------------------------------------------------------------------------------------------------
    Mutant(
        "sources-last-piece-dropped",
        "data._with_end",
        statement("if", nth=-1).dropped(),
        _DATA + "every_kind_of_source",
    ),
    Mutant(
        "sources-last-line-without-a-newline-dropped",
        "data._json_texts",
        call("strip").becomes("it and data.endswith(b'\\n')"),
        _STREAM + "a_last_line_without_a_newline_counts",
    ),
    Mutant(
        "pretokens-cut-inside-a-word",
        "data._ends_pretoken",
        returned("after").becomes("before != 'space'"),
        "tests/fastgpt/data/test_pretokens.py::test_every_place_that_may_be_cut",
    ),
    Mutant(
        "pretokens-contractions-are-cut",
        "data._ends_pretoken",
        operation("not", "after").always(),
        "tests/fastgpt/data/test_pretokens.py::test_every_place_that_may_be_cut",
    ),
    Mutant(
        "sources-byte-order-mark-is-text",
        "data._unmarked",
        returned().becomes("start"),
        _DATA + "every_kind_of_source",
    ),
    Mutant(
        "sources-what-is-not-utf-8-is-replaced",
        "data._plain_text",
        literal("strict").becomes("'replace'"),
        _DATA + "bad_source",
    ),
    Mutant(
        "sources-line-ends-are-translated",
        "data._plain_text",
        returned().becomes("it.replace('\\r\\n', '\\n')"),
        _DATA + "pieces_give_the_tokens_of_the_whole",
    ),
    Mutant(
        "sources-line-ends-in-json-are-translated",
        "data._json_text",
        returned().becomes("it.replace('\\r\\n', '\\n')"),
        _STREAM + "line_ends_are_kept",
    ),
    Mutant(
        "sources-hidden-files-are-read",
        "data._inside",
        operation("not", "folder").always(),
        _DATA + "folder_of_sources",
    ),
    Mutant(
        "sources-in-the-order-of-the-disk",
        "data._inside",
        value("inside").becomes("list(reversed(it))"),
        _DATA + "folder_of_sources",
    ),
    Mutant(
        "sources-the-same-file-twice",
        "data.find_sources",
        condition("first").never(),
        _DATA + "prepare_refuses_before_the_work",
    ),
    Mutant("sources-binary-is-text", "data._plain_text", condition("data").never(), _DATA + "bad_source"),
    Mutant(
        "sources-nul-in-json-is-text",
        "data._json_text",
        comparison("text").never(),
        "tests/fastgpt/data/test_sources.py::test_a_line_that_is_refused_is_named",
    ),
    Mutant(
        "sources-a-character-cut-between-blocks-is-lost",
        "data._plain_text",
        operand("used").dropped(),
        "tests/fastgpt/data/test_sources.py::test_plain_text_is_kept_byte_for_byte",
    ),
    Mutant(
        "sources-a-damaged-archive-is-its-beginning",
        "data.read_pieces",
        statement("raise", nth=1).becomes("return"),
        _DATA + "bad_source",
    ),
)
