"""Memory counted on paper under autocast: against a real step under torch's own, and against the tensors by hand."""

from __future__ import annotations

import pytest
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.kernels import flash_attention
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.tools.memory import PeakMemory, largest_batch, peak_bytes, training_step

pytest.importorskip("triton")
B, T, D = 16, 64, 64


def config(n_layers: int, implementation: str) -> GPTConfig:
    parts = IMPLEMENTATION_SETS[implementation]
    return GPTConfig(vocab_size=101, max_len=T, n_layers=n_layers, n_heads=2, d_model=D, **parts)


@pytest.mark.parametrize(("name", "within"), [("torch", 0.01), ("reference", 0.06)])
def test_paper_equals_a_real_step_under_autocast(name, within):
    """A CPU's autocast differs from a GPU's in what it does in float32, by less than the half that bfloat16 saves."""
    made = config(3, name)
    model, idx = GPT(made), torch.randint(101, (B, T))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(idx, idx, return_logits=False).loss
        loss.backward()

    step()  # the first call makes what later ones keep
    model.zero_grad()
    with PeakMemory() as memory:
        step()
    paper = training_step(made, B, T)
    assert paper.peak - paper.parameters - paper.optimizer - idx.nbytes == pytest.approx(memory.peak, rel=within)
    assert training_step(made, B, T, autocast=False).peak > 1.25 * paper.peak


@pytest.mark.parametrize("autocast", [True, False])
def test_a_layer_keeps_the_tensors_that_its_kernels_save(autocast):
    """Per token: the residual stream twice, in float32; two normalized inputs, q, k, v, out and the pre-activation
    (4 D) in the dtype of the products; mean and rstd twice, lse for each head. And the weights' copies in bfloat16."""
    kept = training_step(config(4, "fastgpt"), B, T, autocast=autocast).activations
    kept -= training_step(config(3, "fastgpt"), B, T, autocast=autocast).activations
    itemsize = 2 if autocast else 4
    tensors = B * T * (2 * 4 * D + (2 + 4 + 4) * itemsize * D + (4 + 2) * 4)
    copies = 2 * 12 * D * D if autocast else 0
    assert kept == pytest.approx(tensors + copies, rel=2e-3)


@pytest.mark.parametrize("autocast", [True, False])
def test_the_largest_batch_is_that_of_the_dtype(autocast):
    made = config(1, "torch")
    most = training_step(made, 9, T, autocast=autocast).peak
    found = largest_batch(made, T, most, autocast=autocast)
    sizes = [training_step(made, batch, T, autocast=autocast).peak for batch in (found, found + 1)]
    assert sizes[0] <= most < sizes[1]


def test_what_a_launch_needs_besides_its_results_counts():
    """In attention's backward: out, dout, the three gradients and lse; and delta, which is no result."""
    shape = {"dtype": torch.bfloat16, "device": "meta", "requires_grad": True}
    q, k, v = (torch.empty(1, 4, 512, 64, **shape) for _ in range(3))
    a_row = 4 * 512 * 4  # a float32 for each query of each head
    assert peak_bytes(flash_attention, [q, k, v]) >= 5 * q.nbytes + 2 * a_row
