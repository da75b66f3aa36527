"""What a step holds, moment by moment: as many blocks as there are, multiplied; and as a real step has it."""

from __future__ import annotations

import math

import pytest
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.base.settings import SettingError
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.model.remat import MODES
from fastgpt.model.size import parameter_shapes
from fastgpt.tools import moments
from fastgpt.tools.memory import PeakMemory, kept_activations

pytest.importorskip("triton")
SMALL = {"vocab_size": 101, "max_len": 32, "n_heads": 2, "d_model": 32}


def config(n_layers: int, implementation: str, **changes: object) -> GPTConfig:
    return GPTConfig(**SMALL, n_layers=n_layers, **IMPLEMENTATION_SETS[implementation], **changes)


@pytest.mark.parametrize("name", IMPLEMENTATION_SETS)
def test_multiplied_blocks_are_all_blocks_counted(name, monkeypatch):
    """To the byte, at every moment."""
    tied, untied = (config(7, name, tie_weights=tie) for tie in (True, False))
    how = [
        (tied, 3, 17, {"products": "float32"}),
        (untied, 1, 1, {}),
        (tied, 2, 32, {"products": "bfloat16", "by_block": True}),
        (untied, 2, 8, {"ranks": 4, "remat": "selective", "products": "float32"}),
        (tied, 2, 32, {"products": "bfloat16", "by_block": True, "remat": "full"}),
    ]

    def counted() -> list[moments.Moments]:
        return [moments.moments(*args, **options) for *args, options in how]

    multiplied = counted()
    monkeypatch.setattr(moments, "_LAID_OUT", 7)
    assert counted() == multiplied


def test_a_real_step():
    """Float32, gradients taken away as they come: the peak of a real backward on a CPU."""
    made = config(4, "reference")
    model, idx = GPT(made), torch.randint(101, (3, 32))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))

    def step(memory: PeakMemory) -> tuple[int, int]:
        loss = model(idx, idx, return_logits=False).loss
        forward = memory.peak
        loss.backward()
        return forward, memory.peak

    step(PeakMemory())  # the first call makes what later ones keep
    with PeakMemory() as memory:
        forward, peak = step(memory)
    held = moments.moments(made, 3, 32, products="float32")
    assert max(held.forward, held.loss, held.backward, held.end) == peak + idx.nbytes
    assert held.activations < forward + idx.nbytes <= max(held.forward, held.loss)


def test_gradients_of_a_block_are_there_together():
    """Gathered in bfloat16 a block's gradients wait for its backward's end, and those outside of blocks too."""
    made = config(4, "torch")
    at_once, by_block = (moments.moments(made, 1, 1, products="bfloat16", by_block=way) for way in (False, True))
    assert at_once.activations == by_block.activations
    grown = by_block.backward - at_once.backward
    root, block = (sum(map(math.prod, shapes)) for shapes in parameter_shapes(made.to_dict()))
    assert block < grown <= 2 * (root + block)


def test_what_blocks_compute_again_is_not_kept():
    """As many bytes fewer a block as `kept_activations` says."""
    for name in ("fastgpt", "torch"):
        one, two = config(1, name), config(2, name)
        for mode in MODES:
            by_hand = [kept_activations(c, 3, 32, autocast=True, remat=mode) for c in (one, two)]
            counted = [moments.moments(c, 3, 32, remat=mode).activations for c in (one, two)]
            assert counted[1] - counted[0] == by_hand[1] - by_hand[0]


def test_ranks_that_share_sequences():
    """They keep what their tokens keep alone; round the ring go keys and values, and their gradients in float32."""
    made = config(4, "fastgpt")
    alone, shared = (moments.moments(made, 64, 8, products="float32", ranks=ranks) for ranks in (1, 4))
    assert shared.activations == alone.activations
    keys_values = 2 * 64 * 8 * 32 * 4
    assert shared.of_block >= alone.of_block + keys_values
    others = [moments.moments(config(4, "torch"), 64, 8, ranks=ranks).activations for ranks in (1, 4)]
    assert others[0] == others[1]
    with pytest.raises(SettingError, match=r"dropout=0\.1 must be 0 where ranks share a sequence"):
        moments.moments(made.replace(dropout=0.1), 1, 8, ranks=4)
    with pytest.raises(SettingError, match=r"seq_len=16 must be .* at most 8, the model's max_len"):
        moments.moments(made, 1, 16, ranks=4)


def test_a_large_model_is_counted_at_once():
    large = GPTConfig.preset("gpt-96x8192x64", **IMPLEMENTATION_SETS["torch"])
    held = moments.moments(large, 1, 2048)
    less = moments.moments(large.replace(n_layers=95), 1, 2048)
    assert held.activations - less.activations > 2048 * 8192 * 2 * 10
    assert held.of_loss == less.of_loss
    assert held.of_block == less.of_block


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch": 0}, "batch=0 must be"), ({"seq_len": 33}, "seq_len=33 must be .* at most 32"),
     ({"products": "int8"}, "products='int8' must be one of float32, autocast, bfloat16"),
     ({"arch": "sm_1"}, "arch='sm_1' must be one of")],
)  # fmt: skip
def test_bad_values_are_named(change, message):
    with pytest.raises(SettingError, match=message):
        moments.moments(config(2, "torch"), **{"batch": 1, "seq_len": 8} | change)
