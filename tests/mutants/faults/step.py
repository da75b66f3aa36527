"""Faults of one step of the trainer: gradient, clipping, schedule, optimizer."""

from __future__ import annotations

from ..plant import Mutant

_TRAINER = "fastgpt/train/trainer.py"
_OPTIM = "fastgpt/train/optim.py"
_PLAIN = "tests/fastgpt/model/test_plain_loop.py::test_"
_STEPS = _PLAIN + "every_step_is_the_plain_loops"
_WEIGHTS = _PLAIN + "the_weights_and_the_moments_are_the_plain_loops"
_TESTS = "tests/fastgpt/train/test_trainer.py::test_"
_OPTIM_TESTS = "tests/fastgpt/train/test_optim.py::test_"
_GUARDS = "tests/fastgpt/train/test_trainer_guards.py::test_"
_SETTINGS = "tests/fastgpt/train/test_trainer_settings.py::test_"

MUTANTS = (
    # --- one step -----------------------------------------------------------------------------------------------------
    Mutant(
        "trainer-clipping-removed",
        _TRAINER,
        "torch.nn.utils.clip_grad_norm_(self._trained, clip)",
        "torch.nn.utils.clip_grad_norm_(self._trained, math.inf)",
        _STEPS,
    ),
    Mutant(
        "trainer-clip-of-0-clips-all",
        _TRAINER,
        "math.inf if self.config.grad_clip == 0 else self.config.grad_clip",
        "self.config.grad_clip",
        _SETTINGS + "a_clip_of_0_is_none",
    ),
    Mutant(
        "trainer-norm-unchecked",
        _TRAINER,
        "math.isfinite(loss) and math.isfinite(norm)",
        "math.isfinite(loss)",
        _GUARDS + "what_is_not_finite_changes_nothing",
    ),
    Mutant(
        "trainer-loss-unchecked",
        _TRAINER,
        "math.isfinite(loss) and math.isfinite(norm)",
        "math.isfinite(norm)",
        _GUARDS + "what_is_not_finite_changes_nothing",
    ),
    Mutant(
        "trainer-norm-after-clipping-is-logged",
        _TRAINER,
        "norm.to(shares[0])",
        "norm.clamp(max=clip).to(shares[0])",
        _STEPS,
    ),
    Mutant(
        "trainer-schedule-one-step-ahead",
        _TRAINER,
        """
        learning_rate(
            self.step, steps=config.steps, peak=config.lr, warmup_fraction=config.warmup_fraction,
            final_fraction=config.final_lr_fraction,
        )
        """,
        """
        learning_rate(
            self.step + 1, steps=config.steps, peak=config.lr, warmup_fraction=config.warmup_fraction,
            final_fraction=config.final_lr_fraction,
        )
        """,
        _STEPS,
    ),
    Mutant(
        "trainer-final-lr-fraction-ignored",
        _TRAINER,
        "final_fraction=config.final_lr_fraction",
        "",
        _STEPS,
    ),
    Mutant(
        "trainer-warmup-fraction-ignored",
        _TRAINER,
        "warmup_fraction=config.warmup_fraction",
        "",
        _STEPS,
    ),
    Mutant(
        "trainer-lr-of-one-group-only",
        _TRAINER,
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        """,
        """
        for group in self.optimizer.param_groups[:1]:
            group["lr"] = lr
        """,
        _WEIGHTS,
    ),
    Mutant(
        "trainer-betas-swapped",
        _TRAINER,
        "(config.beta1, config.beta2)",
        "(config.beta2, config.beta1)",
        _STEPS,
    ),
    Mutant(
        "trainer-betas-ignored",
        _TRAINER,
        "betas=(config.beta1, config.beta2)",
        "",
        _STEPS,
    ),
    Mutant(
        "trainer-weight-decay-ignored",
        _TRAINER,
        "weight_decay=config.weight_decay",
        "",
        _STEPS,
    ),
    Mutant(
        "trainer-accumulation-unweighted",
        _TRAINER,
        "loss * (count / sum(counts))",
        "loss / len(counts)",
        _STEPS,
    ),
    Mutant(
        "trainer-accumulation-summed",
        _TRAINER,
        "loss * (count / sum(counts))",
        "loss * 1.0",
        _STEPS,
    ),
    Mutant(
        "trainer-ignored-targets-weigh",
        _TRAINER,
        "(targets != IGNORED).sum()",
        "targets.numel()",
        _STEPS,
    ),
    Mutant(
        "trainer-last-micro-batch-left-out",
        _TRAINER,
        "range(self.config.grad_accum)",
        "range(max(1, self.config.grad_accum - 1))",
        _STEPS,
    ),
    Mutant(
        "trainer-gradients-left-in",
        _TRAINER,
        "self.optimizer.zero_grad(set_to_none=True)",
        "",
        "tests/fastgpt/train/test_trainer_step.py::test_gradients_that_others_left_do_not_count",
        "Trainer._gradient",
    ),
    Mutant(
        "trainer-gradients-of-frozen-parameters-count",
        _TRAINER,
        "torch.nn.utils.clip_grad_norm_(self._trained, clip)",
        "torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)",
        "tests/fastgpt/train/test_trainer_step.py::test_gradients_that_others_left_do_not_count",
    ),
    Mutant(
        "trainer-stays-in-eval-mode",
        _TRAINER,
        "self.model.train()",
        "",
        _GUARDS + "a_model_in_eval_mode_is_trained_with_dropout",
    ),
    Mutant(
        "trainer-thaws-parts-in-eval-mode",
        _TRAINER,
        "not self.model.training",
        "True",
        _GUARDS + "parts_in_eval_mode_stay_so",
    ),
    Mutant(
        "trainer-autocast-left-out",
        _TRAINER,
        "autocast(self.device, self.dtype)",
        "__import__('contextlib').nullcontext()",
        _TESTS + "autocast_to_bfloat16_keeps_float32_weights",
    ),
    Mutant(
        "trainer-failed-step-keeps-its-position",
        _TRAINER,
        "self.sampler.position = position",
        "",
        _TESTS + "a_step_that_fails_leaves_the_trainer_as_it_was",
    ),
    Mutant(
        "trainer-failed-step-keeps-its-random-numbers",
        _TRAINER,
        "checkpoint.set_rng(random_state)",
        "",
        _TESTS + "a_step_that_fails_leaves_the_trainer_as_it_was",
    ),
    Mutant(
        "trainer-failed-step-is-swallowed",
        _TRAINER,
        "raise",
        "return math.nan, math.nan, lr",
        _TESTS + "a_step_that_fails_leaves_the_trainer_as_it_was",
        "Trainer.train_step",
    ),
    Mutant(
        "trainer-goes-on-from-half-an-update",
        _TRAINER,
        "self._in_update = True",
        "self._in_update = False",
        "tests/fastgpt/train/test_trainer_step.py::test_a_broken_off_update_is_not_gone_on_from",
        "Trainer.train_step",
    ),
    Mutant(
        "trainer-seed-ignored-by-the-data",
        _TRAINER,
        "seed=config.seed",
        "",
        _STEPS,
    ),
    Mutant(
        "trainer-seed-ignored-by-dropout",
        _TRAINER,
        "torch.manual_seed(self.config.seed)",
        "",
        _STEPS,
    ),
    # --- optimizer ----------------------------------------------------------------------------------------------------
    Mutant(
        "optim-biases-decay",
        _OPTIM,
        "p.dim() >= 2",
        "p.dim() >= 1",
        _OPTIM_TESTS + "only_matrices_decay",
    ),
    Mutant(
        "optim-frozen-parameters-too",
        _OPTIM,
        "[p for p in model.parameters() if p.requires_grad]",
        "list(model.parameters())",
        _OPTIM_TESTS + "nothing_to_train",
    ),
    Mutant(
        "optim-eps-ignored",
        _OPTIM,
        "eps=eps",
        "",
        _OPTIM_TESTS + "update_is_adamw_in_float64",
    ),
    Mutant(
        "optim-decay-into-the-gradient",
        _OPTIM,
        "torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=can_fuse(parameters))",
        "torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=can_fuse(parameters))",
        _OPTIM_TESTS + "update_is_adamw_in_float64",
    ),
    Mutant(
        "optim-amsgrad",
        _OPTIM,
        "eps=eps",
        "eps=eps, amsgrad=True",
        _STEPS,
        "build_adamw",
    ),
    Mutant(
        "optim-not-fused",
        _OPTIM,
        "fused=can_fuse(parameters)",
        "fused=False",
        _OPTIM_TESTS + "fused_where_torch_has_it",
    ),
    Mutant(
        "optim-a-state-of-other-shapes-loads",
        _OPTIM,
        "value.shape != shape",
        "False",
        _OPTIM_TESTS + "a_state_of_other_shapes_is_refused",
    ),
    Mutant(
        "optim-warm-up-from-0",
        _OPTIM,
        "step + 1",
        "step",
        _STEPS,
    ),
    Mutant(
        "optim-warm-up-one-shorter",
        _OPTIM,
        "step < warmup",
        "step < warmup - 1",
        _STEPS,
    ),
    Mutant(
        "optim-warm-up-rounded-down",
        _OPTIM,
        "round(warmup_fraction * steps)",
        "int(warmup_fraction * steps)",
        _SETTINGS + "the_warm_up_is_rounded_to_the_nearest",
    ),
    Mutant(
        "optim-cosine-ends-one-late",
        _OPTIM,
        "steps - 1 - warmup",
        "steps - warmup",
        _STEPS,
    ),
    Mutant(
        "optim-cosine-is-a-line",
        _OPTIM,
        "(1.0 + math.cos(math.pi * progress)) / 2.0",
        "1.0 - progress",
        _STEPS,
    ),
    Mutant(
        "optim-cosine-rises-again",
        _OPTIM,
        "min(1.0, (step - warmup) / falls) if falls > 0 else 1.0",
        "(step - warmup) / falls if falls > 0 else 1.0",
        _OPTIM_TESTS + "learning_rate_curve",
    ),
    Mutant(
        "optim-a-run-of-two-steps-ends-at-its-peak",
        _OPTIM,
        "min(1.0, (step - warmup) / falls) if falls > 0 else 1.0",
        "min(1.0, (step - warmup) / max(1, falls))",
        _OPTIM_TESTS + "the_ends_of_the_schedule_for_every_number_of_steps",
    ),
    Mutant(
        "trainer-validation-on-the-training-data-is-not-said",
        _TRAINER,
        "val_data.sha256 == train_data.sha256",
        "False",
        "tests/fastgpt/train/test_alone.py::test_validation_data_that_is_the_training_data",
    ),
)
