"""Memory counted on paper: what is counted, the formulas that it must meet, and how it grows with T."""

import pytest
import torch

from benchmarks import memory as table
from fastgpt import GPT, GPTConfig
from fastgpt.base.settings import SettingError
from fastgpt.kernels import add_layer_norm, flash_attention, gelu_ffn, layer_norm, linear_cross_entropy
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.tools.memory import PeakMemory, largest_batch, on_paper, peak_bytes, saved_bytes, training_step

pytest.importorskip("triton")
SMALL = GPTConfig(vocab_size=101, max_len=32, n_layers=2, n_heads=2, d_model=32, **IMPLEMENTATION_SETS["reference"])
BF16 = torch.bfloat16


def meta(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=True)


def test_storages_are_counted_once_and_forgotten():
    with PeakMemory() as memory:
        a = torch.empty(100)
        b = a[:50].view(5, 10)
        assert memory.live == 400
        c = b + 1
        assert memory.live == memory.peak == 600
        del a, b
        assert memory.live == 200
        del c
    assert (memory.live, memory.peak) == (0, 600)


def test_paper_equals_a_real_step():
    """The same step on real CPU tensors has the same peak: nothing is lost by laying it out on paper."""
    model = GPT(SMALL)
    weights = sum(p.nbytes for p in model.parameters())
    idx = torch.randint(101, (3, 32))
    model(idx, idx, return_logits=False).loss.backward()  # the first call makes what later ones keep
    model.zero_grad()
    with PeakMemory() as memory:
        model(idx, idx, return_logits=False).loss.backward()
    paper = training_step(SMALL, 3, 32, autocast=False)
    assert paper.parameters == weights
    assert paper.optimizer == 2 * weights
    assert paper.gradients <= weights
    assert paper.peak - paper.parameters - paper.optimizer - idx.nbytes == memory.peak


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fastgpt", "torch"])
def test_paper_agrees_with_a_gpu(name):
    """GPT-2's width and vocabulary, four layers: allocator and libraries add less than a tenth."""
    config = GPTConfig(50257, 512, 4, 12, 768, **IMPLEMENTATION_SETS[name])
    paper = training_step(config, 8, 512)
    model = GPT(config).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    idx = torch.randint(50257, (8, 512), device="cuda")
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(idx, idx, return_logits=False).loss
        loss.backward()
        measured = torch.cuda.max_memory_allocated()
        optimizer.step()
    assert abs(paper.peak - measured) <= 0.1 * measured


def test_workspaces_count():
    """A launch allocates more than it returns (delta, in attention's backward): the paper must show it."""
    q, k, v = (meta(1, 4, 512, 64) for _ in range(3))
    peak = peak_bytes(flash_attention, [q, k, v])
    outputs = 4 * q.nbytes + 4 * 512 * 4  # out, lse and the three gradients
    assert peak > outputs


@pytest.mark.parametrize(
    ("name", "function", "inputs", "extra"),
    [
        # out and the float32 log-sum-exp
        ("attention", flash_attention, [(2, 4, 128, 64)] * 3, 2 * 4 * 128 * (64 * 2 + 4)),
        # mean and rstd, float32
        ("layer_norm", lambda x, w: layer_norm(x, (64,), w), [(256, 64), (64,)], 256 * 2 * 4),
        # the new residual stream, mean and rstd
        ("add_layer_norm", lambda x, r, w: add_layer_norm(x, r, w)[0], [(256, 64)] * 2 + [(64,)], 256 * (64 * 2 + 8)),
        # the pre-activation
        ("ffn", gelu_ffn, [(256, 64), (128, 64), (128,), (64, 128), (64,)], 256 * 128 * 2),
    ],
)
def test_saved_bytes_follow_the_formula(name, function, inputs, extra):
    assert saved_bytes(function, [meta(*shape) for shape in inputs])["extra"] == extra


def test_attention_grows_with_T():
    lengths = [1024, 8192, 65536]
    assert table.slope(lengths, table.attention_peaks("fastgpt", lengths)) <= 1.05
    assert table.slope(lengths, table.attention_peaks("reference", lengths)) >= 1.9


def test_block_grows_with_T():
    lengths = [1024, 8192, 65536]
    assert table.slope(lengths, table.block_peaks("fastgpt", lengths)) <= 1.05
    assert table.slope(lengths, table.block_peaks("reference", lengths)) >= 1.8  # at 1024 the linear part still counts


def test_block_needs_less_than_torchs():
    """At every length, the weights' gradients included."""
    lengths = [512, 1024, 8192]
    assert all(a < b for a, b in zip(table.block_peaks("fastgpt", lengths), table.block_peaks("torch", lengths)))


def test_a_backward_that_writes_over_its_input_does_so_on_paper():
    """Of the hidden size there are two matrices at a time: the pre-activation, whose gradient takes its place, and
    the activation."""
    rows, d, hidden = 4096, 64, 512
    inputs = [meta(*shape) for shape in ((rows, d), (hidden, d), (hidden,), (d, hidden), (d,))]
    assert 2 * rows * hidden * 2 <= peak_bytes(gelu_ffn, inputs) < 2.6 * rows * hidden * 2


def test_model_grows_with_T():
    lengths = [4096, 16384, 131072]
    ours = table.model_peaks("fastgpt", lengths, n_layers=1)
    assert table.slope(lengths, ours) <= 1.05
    plain = table.model_peaks("reference", lengths, n_layers=1)
    assert table.slope(lengths[1:], plain[1:]) >= 1.9
    assert all(a < b for a, b in zip(ours, plain))


def test_loss_needs_a_sixth_of_eager_and_falls_with_chunks():
    peaks = table.loss_peaks((1, 2, 4, 8))
    with torch.device("meta"):
        x, weight = meta(16384, 768), meta(50257, 768)
        target = torch.empty(16384, dtype=torch.int64)
    default = peak_bytes(linear_cross_entropy, [x, weight, target])
    assert default <= peaks["eager"] / 6
    assert peaks["1"] > peaks["2"] > peaks["4"] > peaks["8"]


CONFIGS = [SMALL.replace(**parts) for parts in IMPLEMENTATION_SETS.values()] + [
    GPTConfig(50257, 64, 1, 2, 32, n_kv_heads=1, bias=False, tie_weights=False, **IMPLEMENTATION_SETS["fastgpt"]),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["fastgpt", "torch", "reference", "large vocabulary"])
@pytest.mark.parametrize("seq_len", [1, 32])
def test_largest_batch_is_the_largest(config, seq_len):
    """It fits, and one more does not; whatever the size asked for."""
    size = training_step(config, 20, seq_len).peak
    for most in (size, size - 1, 3 * size, 100 * size):
        found = largest_batch(config, seq_len, most)
        assert found >= (20 if most >= size else 1)
        assert training_step(config, found, seq_len).peak <= most < training_step(config, found + 1, seq_len).peak
    assert largest_batch(config, seq_len, 1000) == 0


@pytest.mark.parametrize("config", CONFIGS, ids=["fastgpt", "torch", "reference", "large vocabulary"])
@pytest.mark.parametrize("batch", [1, 16])
def test_the_parts_add_up_to_what_is_counted(config, batch):
    with on_paper() as memory:
        model = GPT(config)
        state = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        idx = torch.empty(batch, 32, dtype=torch.int64)
        model(idx, idx, return_logits=False).loss.backward()
        gradients = sum(p.grad.nbytes for p in model.parameters())
        weights, optimizer, peak = sum(p.nbytes for p in model.parameters()), sum(t.nbytes for t in state), memory.peak
    step = training_step(config, batch, 32, autocast=False)
    assert (step.parameters, step.optimizer, step.peak) == (weights, optimizer, peak)
    assert 0 <= step.gradients <= gradients
    assert step.activations >= idx.nbytes
    assert step.transient >= 0


def test_where_activations_are_few_the_peak_is_at_the_end_of_the_backward():
    config = GPTConfig(11, 8, 1, 1, 256, **IMPLEMENTATION_SETS["torch"])
    step = training_step(config, 1, 1)
    assert step.gradients > 0.8 * step.parameters
    assert step.activations < 0.01 * step.parameters


def test_bad_input():
    for changed, message in (
        ({"batch": 0}, "batch=0 must be an integer, at least 1"),
        ({"seq_len": 33}, "seq_len=33 must be an integer, at least 1 and at most 32, the model's max_len"),
        ({"arch": "sm_70"}, "arch='sm_70' must be one of sm_75"),
    ):
        with pytest.raises(SettingError, match=message):
            training_step(SMALL, **{"batch": 1, "seq_len": 1} | changed)


def test_nothing_is_left_behind():
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    with on_paper():
        assert JITFunction.run is not run
    assert JITFunction.run is run
    assert torch.empty(1).device.type == "cpu"
