"""Faults of memory on paper."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    choice,
    comparison,
    condition,
    context,
    literal,
    name,
    returned,
    value,
)
from ..plant import Mutant

_AUTOCAST = "tests/fastgpt/tools/test_memory_autocast.py::test_"
_SIZE = "tests/fastgpt/model/test_size.py::test_"
_ROOM = "tests/fastgpt/train/test_room.py::test_"

MUTANTS = (
    # --- memory on paper ----------------------------------------------------------------------------------------------
    Mutant(
        "memory-plan-blind-to-autocast",
        "tools.training_step",
        choice("autocast").never(),
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-kernels-blind-to-autocast",
        "tools.autocast_on_paper",
        value("token").argument(1).becomes("None"),
        _AUTOCAST + "a_layer_keeps_the_tensors_that_its_kernels_save",
    ),
    Mutant(
        "memory-torch-blind-to-autocast",
        "tools.autocast_on_paper",
        context().becomes("contextlib.nullcontext()"),
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-largest-batch-blind-to-autocast",
        "memory.largest_batch.peak",
        argument("autocast").dropped(),
        _AUTOCAST + "the_largest_batch_is_that_of_the_dtype",
    ),
    Mutant(
        "memory-losses-in-bfloat16",
        "tools._Autocast.__torch_function__",
        name("float32").becomes("self.dtype"),
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-one-moment-only",
        "tools.training_step",
        call("range").becomes("range(1)"),
        "tests/fastgpt/tools/test_memory.py::test_paper_equals_a_real_step",
    ),
    Mutant(
        "memory-what-is-freed-stays",
        "PeakMemory._forget",
        assignment("live").dropped(),
        "tests/fastgpt/tools/test_memory.py::test_storages_are_counted_once_and_forgotten",
    ),
    Mutant(
        "memory-workspaces-forgotten",
        "PeakMemory.__torch_dispatch__",
        condition("func").never(),
        _AUTOCAST + "what_a_launch_needs_besides_its_results_counts",
    ),
    Mutant(
        "memory-largest-batch-one-too-large",
        "tools.largest_batch_of",
        returned("low").becomes("it + 1"),
        "tests/fastgpt/tools/test_memory.py::test_largest_batch_is_the_largest",
    ),
    Mutant(
        "memory-sdpa-by-the-plain-formula",
        "tools._FlashSdpa.__torch_function__",
        condition().always(),
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-gradients-in-the-activations",
        "tools.training_step",
        condition("grad").operator("is"),
        "tests/fastgpt/tools/test_memory.py::test_where_activations_are_few_the_peak_is_at_the_end_of_the_backward",
    ),
    # --- what surely does not fit -------------------------------------------------------------------------------------
    Mutant(
        "memory-of-a-container-forgotten",
        "base.host_room",
        call("_group_limits").becomes("()"),
        "tests/fastgpt/base/test_machine.py::test_ram_and_swap_as_far_as_a_container_may",
    ),
    Mutant(
        "memory-swap-forgotten",
        "base.host_room",
        value("most").operand("SwapTotal").dropped(),
        "tests/fastgpt/base/test_machine.py::test_ram_and_swap_as_far_as_a_container_may",
    ),
    Mutant(
        "memory-ulimit-forgotten",
        "base.host_room",
        returned("may_map").choice().always(),
        "tests/fastgpt/base/test_machine.py::test_ulimit",
    ),
    Mutant(
        "memory-tied-head-counted-twice",
        "model.count_parameters",
        choice().never(),
        _SIZE + "parameters_are_those_of_the_model",
    ),
    Mutant(
        "memory-grouped-keys-counted-as-all",
        "model.count_parameters",
        value("qkv").becomes("3 * d"),
        _SIZE + "parameters_are_those_of_the_model",
    ),
    Mutant(
        "memory-what-just-fits-refused",
        "model.check_fits",
        comparison("n_bytes", nth=1).operator("<"),
        _SIZE + "weights_that_just_fit_are_made",
    ),
    Mutant(
        "memory-of-weights-on-paper-counted",
        "model.check_can_be_made",
        value("room").becomes("machine.host_room()"),
        _SIZE + "what_takes_no_memory_is_made_whatever_its_size",
    ),
    Mutant(
        "memory-of-fake-weights-counted",
        "model.check_can_be_made",
        comparison("Parameter").always(),
        _SIZE + "what_takes_no_memory_is_made_whatever_its_size",
    ),
    Mutant(
        "memory-of-a-blocks-objects-overestimated",
        "model.BLOCK_OBJECTS",
        literal(12).becomes("64"),
        _SIZE + "a_block_takes_more_than_its_objects_are_counted_as",
    ),
    Mutant(
        "memory-most-one-too-many",
        "model.largest",
        returned().becomes("high"),
        _SIZE + "the_most_that_could_fit_does_and_one_more_does_not",
    ),
    Mutant(
        "memory-layers-of-a-file-gone-through",
        "model.check_enough_weights",
        condition().never(),
        _SIZE + "a_file_of_fewer_tensors_than_layers",
    ),
    Mutant(
        "memory-of-attention-maps-not-looked-at",
        "model.check_maps_fit",
        condition().never(),
        _SIZE + "attention_maps",
    ),
    Mutant(
        "memory-logits-kept-by-the-fused-loss",
        "model.kept_for_backward",
        choice().never(),
        _ROOM + "no_implementation_keeps_less_for_the_backward",
    ),
    Mutant(
        "memory-of-frozen-weights-as-if-trained",
        "train.check_room_of",
        call("all").becomes("True"),
        _ROOM + "models_that_are_not_trained_as_a_whole_are_let_through",
    ),
    Mutant(
        "memory-of-a-batch-not-looked-at",
        "BatchSampler.__init__",
        call("_check_room").becomes("None"),
        "tests/fastgpt/data/test_sampler.py::test_a_batch_that_no_memory_holds",
    ),
    Mutant(
        "memory-trainer-does-not-look",
        "Updates.__init__",
        call("check_room_of").becomes("None"),
        _ROOM + "a_trainer_says_so_before_it_trains",
    ),
)
