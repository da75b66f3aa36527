"""Faults of the judge of what may run here, and of the table that says what does."""

from __future__ import annotations

from ..places import call, choice, collection, comparison, condition, iterated, returned, value
from ..plant import Mutant

_SUPPORT = "tests/kernels/test_support.py::test_"
_TABLE = "tests/fastgpt/nn/test_implementations.py::test_"
_DOES = _TABLE + "a_module_does_what_the_table_says"
_HF = _TABLE + "a_transformers_model_does_what_the_table_says"

MUTANTS = (
    # --- the judge ----------------------------------------------------------------------------------------------------
    Mutant(
        "judge-looks-at-the-first-tensor-only",
        "support.why_not",
        iterated("x").becomes("(first,)"),
        _SUPPORT + "what_tensors_stand_in_the_way",
    ),
    Mutant(
        "judge-takes-different-dtypes-for-alike",
        "support.kinds_why_not",
        condition("alike").never(),
        _SUPPORT + "before_the_tensors_the_answer_is_the_same",
    ),
    Mutant(
        "judge-asks-the-machine-about-shapes",
        "support.kinds_why_not",
        choice("meta").never(),
        _TABLE + "a_module_without_data_does_what_the_table_says",
    ),
    Mutant(
        "judge-lets-an-old-gpu-pass",
        "support._young_enough",
        comparison("MIN_CAPABILITY").always(),
        _SUPPORT + "a_gpu_of_before_turing",
    ),
    # --- the table ----------------------------------------------------------------------------------------------------
    Mutant(
        "table-takes-a-module-for-one-without-parameters",
        "implementations._parameter",
        collection("model").becomes("(model,)"),
        _TABLE + "each_part_of_a_model_has_its_own_dtype",
    ),
    Mutant(
        "table-forgets-torchs-fast-path",
        "implementations._parts",
        choice("bypassed").never(),
        _TABLE + "torchs_encoder_layer_may_pass_our_modules_by",
    ),
    Mutant(
        "table-says-fast-path-with-gradients",
        "implementations._bypassed",
        value("differentiated").never(),
        _TABLE + "torchs_encoder_layer_may_pass_our_modules_by",
    ),
    Mutant(
        "table-says-that-kernels-take-tangents",
        "impl._explained",
        condition("tangents").never(),
        _TABLE + "by_name_in_forward_mode_it_is_said_that_tangents_have_no_way",
    ),
    Mutant(
        "table-asks-of-a-norm-without-its-parameters",
        "LayerNorm.choice",
        value("obstacle").becomes("support.kinds_why_not(device, dtype)"),
        _TABLE + "one_parameter_of_another_dtype_is_seen",
    ),
    Mutant(
        "table-passes-the-settings-of-attention-over",
        "FlashMultiheadAttention.choice",
        value("obstacle").becomes("support.kinds_why_not(device, dtype)"),
        _DOES,
    ),
    Mutant(
        "table-says-a-loss-with-an-adapter-is-torchs",
        "LinearCrossEntropyLoss.choice",
        choice("triton").never(),
        _DOES,
    ),
    Mutant(
        "table-says-gpt2s-loss-is-fused-in-evaluation",
        "interop.GPT2LMHeadModel.choice",
        condition("training").never(),
        _HF,
    ),
    Mutant("table-passes-capped-scores-over", "attention_registry._RegisteredName", condition("extra").never(), _HF),
    Mutant(
        "table-passes-a-position-bias-over",
        "_why_not_this_model",
        condition("has_relative_attention_bias").never(),
        _HF,
    ),
    Mutant("table-passes-wide-heads-over", "_why_not_this_model", condition("keys").never(), _HF),
    # --- dropout of everything, which torch takes ---------------------------------------------------------------------
    Mutant(
        "attention-raises-where-everything-is-dropped",
        "FlashMultiheadAttention._why_torchs_ever",
        returned("dropout_why_not").becomes("obstacle"),
        _DOES,
    ),
    Mutant(
        "attention-of-transformers-raises-where-everything-is-dropped",
        "attention_registry._why_torchs",
        call("dropout_why_not").becomes("None"),
        _HF,
    ),
)
