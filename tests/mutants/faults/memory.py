"""Faults of memory on paper."""

from __future__ import annotations

from ..plant import Mutant

_MEMORY = "fastgpt/tools/memory.py"
_AUTOCAST = "tests/fastgpt/tools/test_memory_autocast.py::test_"

MUTANTS = (
    # --- memory on paper ----------------------------------------------------------------------------------------------
    Mutant(
        "memory-plan-blind-to-autocast",
        _MEMORY,
        "torch.bfloat16 if autocast else None",
        "None",
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-kernels-blind-to-autocast",
        _MEMORY,
        "_runtime.paper_autocast.set(dtype)",
        "_runtime.paper_autocast.set(None)",
        _AUTOCAST + "a_layer_keeps_the_tensors_that_its_kernels_save",
    ),
    Mutant(
        "memory-torch-blind-to-autocast",
        _MEMORY,
        "_Autocast(dtype)",
        "contextlib.nullcontext()",
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-largest-batch-blind-to-autocast",
        _MEMORY,
        "training_step(config, batch, seq_len, autocast=autocast, arch=arch)",
        "training_step(config, batch, seq_len, arch=arch)",
        _AUTOCAST + "the_largest_batch_is_that_of_the_dtype",
    ),
    Mutant(
        "memory-losses-in-bfloat16",
        _MEMORY,
        "torch.float32 if func in self.wide else None",
        "self.dtype if func in self.wide else None",
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-one-moment-only",
        _MEMORY,
        "range(2)",
        "range(1)",
        "tests/fastgpt/tools/test_memory.py::test_paper_equals_a_real_step",
    ),
    Mutant(
        "memory-what-is-freed-stays",
        _MEMORY,
        "self.live -= size",
        "",
        "tests/fastgpt/tools/test_memory.py::test_storages_are_counted_once_and_forgotten",
    ),
    Mutant(
        "memory-workspaces-forgotten",
        _MEMORY,
        'func.namespace == "fastgpt" and self.launch_code',
        "False",
        _AUTOCAST + "what_a_launch_needs_besides_its_results_counts",
    ),
    Mutant(
        "memory-largest-batch-one-too-large",
        _MEMORY,
        "return low",
        "return low + 1",
        "tests/fastgpt/tools/test_memory.py::test_largest_batch_is_the_largest",
    ),
    Mutant(
        "memory-sdpa-by-the-plain-formula",
        _MEMORY,
        "func is not _runtime.torch_attention",
        "True",
        _AUTOCAST + "paper_equals_a_real_step_under_autocast",
    ),
    Mutant(
        "memory-gradients-in-the-activations",
        _MEMORY,
        "p.grad is not None",
        "p.grad is None",
        "tests/fastgpt/tools/test_memory.py::test_where_activations_are_few_the_peak_is_at_the_end_of_the_backward",
    ),
)
