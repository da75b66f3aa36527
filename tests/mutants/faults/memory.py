"""Faults of memory on paper."""

from __future__ import annotations

from ..places import argument, assignment, call, choice, condition, context, name, returned, value
from ..plant import Mutant

_AUTOCAST = "tests/fastgpt/tools/test_memory_autocast.py::test_"

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
        "tools._autocast_on_paper",
        value("token").argument(1).becomes("None"),
        _AUTOCAST + "a_layer_keeps_the_tensors_that_its_kernels_save",
    ),
    Mutant(
        "memory-torch-blind-to-autocast",
        "tools._autocast_on_paper",
        context().becomes("contextlib.nullcontext()"),
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-largest-batch-blind-to-autocast",
        "largest_batch.peak",
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
        "tools.largest_batch",
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
)
