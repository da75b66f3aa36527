"""Faults of one step of the trainer: gradient, clipping, schedule, optimizer."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    comparison,
    condition,
    context,
    iterated,
    name,
    operation,
    statement,
    subscript,
    value,
)
from ..plant import Mutant

_PLAIN = "tests/fastgpt/model/test_plain_loop.py::test_"
_STEPS = _PLAIN + "every_step_is_the_plain_loops"
_WEIGHTS = _PLAIN + "the_weights_and_the_moments_are_the_plain_loops"
_TESTS = "tests/fastgpt/train/test_trainer.py::test_"
_OPTIM_TESTS = "tests/fastgpt/train/test_optim.py::test_"
_GUARDS = "tests/fastgpt/train/test_trainer_guards.py::test_"
_SETTINGS = "tests/fastgpt/train/test_trainer_settings.py::test_"

MUTANTS = (
    # --- one step -----------------------------------------------------------------------------------------------------
    Mutant("trainer-clipping-removed", "Updates._gradient", name("most").becomes("math.inf"), _STEPS),
    Mutant(
        "trainer-clip-of-0-clips-all",
        "Updates._gradient",
        value("most").choice().never(),
        _SETTINGS + "a_clip_of_0_is_none",
    ),
    Mutant(
        "trainer-norm-unchecked",
        "Updates._apply",
        subscript("values").becomes("values[:, :1]"),
        _GUARDS + "what_is_not_finite_changes_nothing",
    ),
    Mutant(
        "trainer-loss-unchecked",
        "Updates._apply",
        subscript("values").becomes("values[:, 1:2]"),
        _GUARDS + "what_is_not_finite_changes_nothing",
    ),
    Mutant(
        "trainer-norm-after-clipping-is-logged",
        "Updates._gradient",
        call("to").receiver().becomes("it.clamp(max=most)"),
        _STEPS,
    ),
    Mutant(
        "trainer-schedule-one-step-ahead",
        "Updates.begin_step",
        call("learning_rate").argument(1).becomes("it + 1"),
        _STEPS,
    ),
    Mutant("trainer-final-lr-fraction-ignored", "Updates.begin_step", argument("final_fraction").dropped(), _STEPS),
    Mutant("trainer-warmup-fraction-ignored", "Updates.begin_step", argument("warmup_fraction").dropped(), _STEPS),
    Mutant("trainer-lr-of-one-group-only", "Updates.begin_step", iterated().becomes("it[:1]"), _WEIGHTS),
    Mutant("trainer-betas-swapped", "Updates.__init__", argument("betas").swapped(), _STEPS),
    Mutant("trainer-betas-ignored", "Updates.__init__", argument("betas").dropped(), _STEPS),
    Mutant("trainer-weight-decay-ignored", "Updates.__init__", argument("weight_decay").dropped(), _STEPS),
    Mutant(
        "trainer-accumulation-unweighted",
        "Updates._backward",
        value("share").becomes("loss / len(batches)"),
        _STEPS,
    ),
    Mutant("trainer-accumulation-summed", "Updates._share_of_all", operation("/", nth=1).becomes("1.0"), _STEPS),
    Mutant("trainer-ignored-targets-weigh", "data._make", call("sum").becomes("targets.numel()"), _STEPS),
    Mutant(
        "trainer-last-micro-batch-left-out",
        "Updates._gradient",
        name("grad_accum").becomes("max(1, it - 1)"),
        _STEPS,
    ),
    Mutant(
        "trainer-gradients-left-in",
        "Updates._backward",
        call("zero_grad").dropped(),
        "tests/fastgpt/train/test_trainer_step.py::test_gradients_that_others_left_do_not_count",
    ),
    Mutant(
        "trainer-gradients-of-frozen-parameters-count",
        "Updates._gradient",
        name("_trained").becomes("self.model.parameters()"),
        "tests/fastgpt/train/test_trainer_step.py::test_gradients_that_others_left_do_not_count",
    ),
    Mutant(
        "trainer-stays-in-eval-mode",
        "Updates._backward",
        call("train").dropped(),
        _GUARDS + "a_model_in_eval_mode_is_trained_with_dropout",
    ),
    Mutant(
        "trainer-thaws-parts-in-eval-mode",
        "Updates._backward",
        condition("model").always(),
        _GUARDS + "parts_in_eval_mode_stay_so",
    ),
    Mutant(
        "trainer-autocast-left-out",
        "Updates._backward",
        context("autocast").becomes("__import__('contextlib').nullcontext()"),
        _TESTS + "autocast_to_bfloat16_keeps_float32_weights",
    ),
    Mutant(
        "trainer-failed-step-keeps-its-position",
        "Updates._go_back",
        assignment("self.sampler.position").dropped(),
        _TESTS + "a_step_that_fails_leaves_the_trainer_as_it_was",
    ),
    Mutant(
        "trainer-failed-step-keeps-its-random-numbers",
        "Updates._go_back",
        call("set_rng").dropped(),
        _TESTS + "a_step_that_fails_leaves_the_trainer_as_it_was",
    ),
    Mutant(
        "trainer-failed-step-is-swallowed",
        "Updates.begin_step",
        statement("try").statement("raise").becomes("return None"),
        _TESTS + "a_step_that_fails_leaves_the_trainer_as_it_was",
    ),
    Mutant(
        "trainer-goes-on-from-half-an-update",
        "Updates.begin_step",
        value("_in_update", nth=1).never(),
        "tests/fastgpt/train/test_trainer_step.py::test_a_broken_off_update_is_not_gone_on_from",
    ),
    Mutant("trainer-seed-ignored-by-the-data", "Updates.__init__", argument("seed").dropped(), _STEPS),
    Mutant("trainer-seed-ignored-by-dropout", "Trainer._start", call("begin_rng").dropped(), _STEPS),
    # --- optimizer ----------------------------------------------------------------------------------------------------
    Mutant(
        "optim-biases-decay",
        "train.decay_groups",
        comparison(nth=1).becomes("p.dim() >= 1"),
        _OPTIM_TESTS + "only_matrices_decay",
    ),
    Mutant(
        "optim-frozen-parameters-too",
        "train.decay_groups",
        value("parameters").becomes("list(model.parameters())"),
        _OPTIM_TESTS + "nothing_to_train",
    ),
    Mutant(
        "optim-eps-ignored",
        "train.build_adamw",
        argument("eps").dropped(),
        _OPTIM_TESTS + "update_is_adamw_in_float64",
    ),
    Mutant(
        "optim-decay-into-the-gradient",
        "train.build_adamw",
        value("optimizer").name("AdamW").becomes("torch.optim.Adam"),
        _OPTIM_TESTS + "update_is_adamw_in_float64",
    ),
    Mutant(
        "optim-amsgrad",
        "train.build_adamw",
        value("optimizer").name("AdamW").becomes("lambda *groups, **options: it(*groups, amsgrad=True, **options)"),
        _STEPS,
    ),
    Mutant(
        "optim-not-fused",
        "train.build_adamw",
        argument("fused").never(),
        _OPTIM_TESTS + "fused_where_torch_has_it",
    ),
    Mutant(
        "optim-a-state-of-other-shapes-loads",
        "train._check_shapes",
        comparison("shape").never(),
        _OPTIM_TESTS + "a_state_of_other_shapes_is_refused",
    ),
    Mutant("optim-warm-up-from-0", "train.learning_rate", operation("+", "step").becomes("step"), _STEPS),
    Mutant(
        "optim-warm-up-one-shorter",
        "train.learning_rate",
        comparison("step", "warmup").operand("warmup").becomes("it - 1"),
        _STEPS,
    ),
    Mutant(
        "optim-warm-up-rounded-down",
        "train.learning_rate",
        name("round").becomes("int"),
        _SETTINGS + "the_warm_up_is_rounded_to_the_nearest",
    ),
    Mutant("optim-cosine-ends-one-late", "train.learning_rate", value("falls").becomes("steps - warmup"), _STEPS),
    Mutant("optim-cosine-is-a-line", "train.learning_rate", value("cosine").becomes("1.0 - progress"), _STEPS),
    Mutant(
        "optim-cosine-rises-again",
        "train.learning_rate",
        call("min").becomes(operation("/")),
        _OPTIM_TESTS + "learning_rate_curve",
    ),
    Mutant(
        "optim-a-run-of-two-steps-ends-at-its-peak",
        "train.learning_rate",
        value("progress").becomes("min(1.0, (step - warmup) / max(1, falls))"),
        _OPTIM_TESTS + "the_ends_of_the_schedule_for_every_number_of_steps",
    ),
    Mutant(
        "trainer-validation-on-the-training-data-is-not-said",
        "train._check_data",
        comparison("sha256").never(),
        "tests/fastgpt/train/test_alone.py::test_validation_data_that_is_the_training_data",
    ),
)
