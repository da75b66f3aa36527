"""Faults of what goes in and comes out beside the model: token ids, outputs, OneHeadLM, settings and presets."""

from __future__ import annotations

from ..plant import Mutant

_MODEL = "tests/fastgpt/model/test_model.py::test_"
_IMPL = "tests/fastgpt/nn/test_impl.py::test_"
_OUTPUT = "tests/fastgpt/model/test_output.py::test_"
_ONE_HEAD = "tests/fastgpt/model/test_one_head.py::test_"
_CONFIG = "tests/fastgpt/model/test_config.py::test_"
_TOKENS = "tests/fastgpt/model/test_token_ids.py::test_"
_EFFECTS = "tests/fastgpt/model/test_model_effects.py::test_"

MUTANTS = (
    # --- token ids and targets ----------------------------------------------------------------------------------------
    Mutant(
        "tokens-one-past-the-vocabulary-pass",
        "fastgpt/model/token_ids.py",
        "high >= vocab_size",
        "high > vocab_size",
        _TOKENS + "bad_ids_are_named_at_every_entrance",
        "checked_ids",
    ),
    Mutant(
        "tokens-targets-one-past-the-vocabulary-pass",
        "fastgpt/model/token_ids.py",
        "high >= vocab_size",
        "high > vocab_size",
        _TOKENS + "bad_targets_are_named",
        "checked_targets",
    ),
    Mutant(
        "tokens-negative-targets-pass",
        "fastgpt/model/token_ids.py",
        "low < 0 or high >= vocab_size",
        "high >= vocab_size",
        _TOKENS + "bad_targets_are_named",
        "checked_targets",
    ),
    Mutant(
        "tokens-what-does-not-count-is-minus-one",
        "fastgpt/model/token_ids.py",
        "IGNORE_INDEX = -100",
        "IGNORE_INDEX = -1",
        _TOKENS + "targets_that_do_not_count",
    ),
    Mutant(
        "tokens-longer-than-the-context-pass",
        "fastgpt/model/token_ids.py",
        "idx.shape[1] > max_len",
        "False",
        _TOKENS + "bad_ids_are_named_at_every_entrance",
    ),
    Mutant(
        "tokens-targets-of-another-shape-pass",
        "fastgpt/model/token_ids.py",
        "targets.shape != idx.shape",
        "targets.numel() != idx.numel()",
        _EFFECTS + "targets_of_as_many_numbers_in_another_shape_are_refused",
    ),
    # --- outputs ------------------------------------------------------------------------------------------------------
    Mutant(
        "output-walking-through-it-in-training-computes-logits",
        "fastgpt/model/output.py",
        "not (training and torch.is_grad_enabled())",
        "True",
        _OUTPUT + "who_walks_through_an_output_in_training_computes_no_logits",
    ),
    Mutant(
        "output-logits-computed-again-and-again",
        "fastgpt/model/output.py",
        "self._pending = False",
        "",
        _MODEL + "return_logits_false_still_gives_logits_when_asked",
        "GPTOutput.logits",
    ),
    Mutant(
        "output-loss-and-logits-change-places",
        "fastgpt/model/output.py",
        '_ORDER = ("loss", "logits", "hidden")',
        '_ORDER = ("logits", "loss", "hidden")',
        _OUTPUT + "what_modeloutput_answers",
    ),
    Mutant(
        "output-a-copy-without-logits-gives-none",
        "fastgpt/model/output.py",
        'self._lost = self.hidden is not None and "logits" not in self',
        "",
        _OUTPUT + "a_librarys_copy_without_logits_says_so",
    ),
    Mutant(
        "output-weights-lent-by-functional-call-forgotten",
        "fastgpt/model/output.py",
        "any(now.get(name) is not p for name, p in self.parameters.items())",
        "False",
        _OUTPUT + "functional_call_lends_its_weights_to_logits_computed_later",
    ),
    Mutant(
        "output-of-a-transform-refused-inside-of-it",
        "fastgpt/model/output.py",
        "torch._C._are_functorch_transforms_active()",
        "False",
        _EFFECTS + "logits_asked_for_inside_of_a_transform_are_differentiated",
    ),
    # --- OneHeadLM ----------------------------------------------------------------------------------------------------
    Mutant(
        "one-head-scale-omitted",
        "fastgpt/model/one_head.py",
        "q_BxTxD @ k_BxTxD.transpose(1, 2) / math.sqrt(D)",
        "q_BxTxD @ k_BxTxD.transpose(1, 2)",
        _ONE_HEAD + "every_formula",
    ),
    Mutant(
        "one-head-residual-dropped",
        "fastgpt/model/one_head.py",
        "x_BxTxD + attended_BxTxD",
        "attended_BxTxD",
        _ONE_HEAD + "every_formula",
    ),
    Mutant(
        "one-head-residual-of-the-normed",
        "fastgpt/model/one_head.py",
        "x_BxTxD + attended_BxTxD",
        "h_BxTxD + attended_BxTxD",
        _ONE_HEAD + "every_formula",
    ),
    Mutant(
        "one-head-sees-one-token-ahead",
        "fastgpt/model/one_head.py",
        "diagonal=1",
        "diagonal=2",
        _ONE_HEAD + "nothing_leaks_from_the_future",
    ),
    Mutant(
        "one-head-windows-do-not-slide",
        "fastgpt/model/one_head_base.py",
        "self.config.vocab_size, self.config.max_len",
        "self.config.vocab_size, 2 * self.config.max_len",
        _ONE_HEAD + "generation_is_the_likeliest_token_of_a_plain_forward_past_max_len_too",
    ),
    # --- settings and presets -----------------------------------------------------------------------------------------
    Mutant(
        "presets-gpt2-large-has-other-heads",
        "fastgpt/model/preset_sizes.py",
        "(36, 20, 1280)",
        "(36, 16, 1280)",
        _EFFECTS + "every_number_of_gpt2s_presets",
    ),
    Mutant(
        "presets-gpt2-has-the-exact-gelu",
        "fastgpt/model/preset_sizes.py",
        '1024, _GPT2[key], "tanh"',
        '1024, _GPT2[key], "none"',
        _CONFIG + "gpt2_sizes",
    ),
    Mutant(
        "presets-gpt2-has-half-the-context",
        "fastgpt/model/preset_sizes.py",
        '1024, _GPT2[key], "tanh"',
        '512, _GPT2[key], "tanh"',
        _CONFIG + "gpt2_sizes",
    ),
    Mutant(
        "presets-width-and-heads-change-places",
        "fastgpt/model/preset_sizes.py",
        "n_layers, d_model, n_heads = (int(n) for n in key.removeprefix('depth-').split('x'))",
        "n_layers, n_heads, d_model = (int(n) for n in key.removeprefix('depth-').split('x'))",
        _CONFIG + "depth_study_grid",
    ),
    Mutant(
        "presets-one-head-of-another-width",
        "fastgpt/model/preset_sizes.py",
        '{"vocab_size": GPT2_VOCAB_SIZE, "d_model": 64, "max_len": 128}',
        '{"vocab_size": GPT2_VOCAB_SIZE, "d_model": 128, "max_len": 64}',
        _ONE_HEAD + "presets",
    ),
    Mutant(
        "config-a-new-width-keeps-the-old-ffn",
        "fastgpt/model/config.py",
        'changes.setdefault("d_ff", None)',
        "pass",
        _CONFIG + "replace_moves_dependent_defaults",
    ),
    Mutant(
        "config-dropout-of-everything-passes",
        "fastgpt/model/config.py",
        "check_number('GPTConfig', 'dropout', self.dropout, least=0, below=1)",
        "check_number('GPTConfig', 'dropout', self.dropout, least=0, most=1)",
        _CONFIG + "bad_fields_are_named",
    ),
    Mutant(
        "config-a-set-of-implementations-mixes-two",
        "fastgpt/model/config.py",
        '"sdpa" if part == "attn" else "torch"',
        '"reference" if part == "attn" else "torch"',
        _EFFECTS + "the_sets_of_implementations_are_whole",
    ),
    Mutant(
        "impl-a-head-dim-beyond-the-kernels-passes",
        "kernels/support.py",
        "1 <= head_dim <= MAX_HEAD_DIM",
        "True",
        _IMPL + "auto_on_a_gpu_passes_over_what_kernels_cannot_take",
        "head_dim_why_not",
    ),
    Mutant(
        "impl-float64-goes-to-the-kernels",
        "kernels/support.py",
        "dtype in KERNEL_DTYPES",
        "True",
        _IMPL + "auto_on_a_gpu_passes_over_what_kernels_cannot_take",
        where="dtype_why_not",
    ),
    Mutant(
        "impl-layers-of-the-table-lose-their-last",
        "fastgpt/nn/implementations.py",
        "spans[-1][1] = n",
        "spans[-1][1] = n - 1",
        _IMPL + "table_names_layer_request_and_reason",
    ),
    Mutant(
        "modes-everything-trains-after-an-evaluation",
        "fastgpt/model/modes.py",
        "for module, training in before:\n    if module.training is not training:\n        module.training = training",
        "model.train(True)",
        "tests/fastgpt/model/test_modes.py::test_modes_are_what_they_were",
    ),
    Mutant(
        "sampling-top-p-one-too-many",
        "fastgpt/model/sampling.py",
        "before >= least",
        "before > least",
        "tests/fastgpt/model/test_sampling.py::test_what_reaches_top_p_exactly_is_enough",
    ),
    Mutant(
        "sampling-top-p-without-its-least",
        "fastgpt/model/sampling.py",
        "0.9 * (1.0 - top_p) / V",
        "2.0 * (1.0 - top_p) / V",
        "tests/fastgpt/model/test_sampling.py::test_the_least_of_what_top_p_keeps_is_drawn",
    ),
)
