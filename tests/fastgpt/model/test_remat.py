"""What blocks keep for the backward: the same numbers bit for bit, the bytes that are counted, where it holds."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import logging
import pickle
import re

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from fastgpt import GPT, GPTConfig, OneHeadLM, implementations, kernels
from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.model import remat
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.tools.memory import PeakMemory, kept_activations, largest_batch, training_step

pytest.importorskip("triton")
SHAPE = {"vocab_size": 101, "max_len": 16, "n_layers": 3, "n_heads": 2, "d_model": 32}
IDX = torch.arange(32).reshape(2, 16) * 7 % 101


def made(name: str = "torch", mode: str = "none", **options) -> GPT:
    torch.manual_seed(0)
    return remat.apply(GPT(GPTConfig(**SHAPE | IMPLEMENTATION_SETS[name] | options)), mode)


def running(name: str) -> contextlib.AbstractContextManager:
    return kernels.interpret() if name == "fastgpt" else contextlib.nullcontext()


def step(model: GPT) -> list[torch.Tensor]:
    """Loss and gradients of a seeded step."""
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(IDX, IDX, return_logits=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def all_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", IMPLEMENTATION_SETS)
def test_losses_and_gradients_are_those_of_none_bit_for_bit(name, dropout):
    with running(name):
        none, selective, full = (step(made(name, mode, dropout=dropout, n_layers=2)) for mode in remat.MODES)
    assert all_equal(none, selective)
    assert all_equal(none, full)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_dropout_of_others_modules_draws_the_same_again(mode):
    """A module that somebody has put into a block, with dropout of its own."""

    def adapted(mode: str) -> GPT:
        model = made(mode=mode)
        for block in model.blocks:
            block.attn.out_proj = torch.nn.Sequential(block.attn.out_proj, torch.nn.Dropout(0.3))
        return model

    assert all_equal(step(adapted("none")), step(adapted(mode)))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch", "fastgpt"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_same_bits_on_a_gpu(name, dropout):
    """torch's attention draws its mask on the GPU while it runs, ours is given a seed."""

    def found(mode: str) -> list[torch.Tensor]:
        model = made(name, mode, dropout=dropout, d_model=128).cuda()
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(IDX.cuda(), IDX.cuda(), return_logits=False).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters())]

    none, selective, full = (found(mode) for mode in remat.MODES)
    assert all_equal(none, selective)
    assert all_equal(none, full)


def kept(model: GPT, *, autocast: bool = False) -> int:
    """Bytes that there are between forward and backward, of what the blocks have made."""
    with PeakMemory(launch_code=False) as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = model.hidden_states(IDX)
        gc.collect()  # the interpreter's launches leave cycles
        live = memory.live
    del hidden
    return live


@pytest.mark.parametrize("mode", remat.MODES)
@pytest.mark.parametrize("name", IMPLEMENTATION_SETS)
def test_the_counted_bytes_are_those_of_a_real_step(name, mode):
    with running(name):
        measured = kept(made(name, mode))
    counted = kept_activations(GPTConfig(**SHAPE | IMPLEMENTATION_SETS[name]), *IDX.shape, remat=mode)
    assert measured == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("mode", remat.MODES)
@pytest.mark.parametrize("name", ["torch", "reference"])
def test_the_peak_on_paper_is_a_real_steps(name, mode):
    model = made(name, mode)
    step(model)  # the first call makes what later ones keep
    model.zero_grad()
    with PeakMemory() as memory:
        model(IDX, IDX, return_logits=False).loss.backward()
    paper = training_step(model.config, *IDX.shape, autocast=False, remat=mode)
    assert paper.peak - paper.parameters - paper.optimizer - IDX.nbytes == pytest.approx(memory.peak, rel=0.03)


def of_a_block(name: str, mode: str, *, autocast: bool, seq_len: int = 1024, **options) -> float:
    """Bytes that a further block keeps of a further token, by d_model: without what does not grow with both."""

    def bytes_of(n_layers: int, batch: int) -> int:
        shape = {"vocab_size": 101, "max_len": seq_len, "n_layers": n_layers, "n_heads": 12, "d_model": 768}
        config = GPTConfig(**shape | IMPLEMENTATION_SETS[name] | options)
        return kept_activations(config, batch, seq_len, autocast=autocast, remat=mode)

    more = bytes_of(3, 4) - bytes_of(2, 4) - bytes_of(3, 2) + bytes_of(2, 2)
    return more / (2 * seq_len * 768)


def test_the_table_is_what_is_counted():
    rows = re.findall(r"^ +(\w+)? +(bfloat16|float32)((?: +\d+\.\d\d){3})", inspect.getdoc(remat), re.MULTILINE)
    assert len(rows) == 6
    names = [name for name in IMPLEMENTATION_SETS for _ in range(2)]
    for name, (written, dtype, numbers) in zip(names, rows):
        assert written in (name, "")
        found = [of_a_block(name, mode, autocast=dtype == "bfloat16") for mode in remat.MODES]
        assert [float(number) for number in numbers.split()] == [round(one, 2) for one in found]


def test_torchs_attention_that_draws_its_mask_is_computed_again():
    """Passed over, it would leave the random state where it was, and the next LayerNorm would drop other elements."""
    without = of_a_block("torch", "selective", autocast=True)
    assert of_a_block("torch", "selective", autocast=True, dropout=0.1) == pytest.approx(without - 2 - 4 * 12 / 768)
    ours = of_a_block("fastgpt", "selective", autocast=True)
    assert of_a_block("fastgpt", "selective", autocast=True, dropout=0.1) == pytest.approx(ours)


def test_a_larger_batch_fits():
    config = GPTConfig(**SHAPE | {"vocab_size": 11} | IMPLEMENTATION_SETS["torch"])
    none, selective, full = (largest_batch(config, 16, 4 << 20, remat=mode) for mode in remat.MODES)
    assert none < selective < full


# --- where it holds ---------------------------------------------------------------------------------------------------


def calls(model: GPT, function) -> int:
    """How often `function` runs the first module of the first block."""
    seen = []
    hook = model.blocks[0].ln1.register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        function()
    finally:
        hook.remove()
    return len(seen)


@pytest.mark.parametrize(("mode", "times"), [("none", 1), ("selective", 2), ("full", 2)])
def test_blocks_run_again_in_the_backward_only(mode, times):
    model = made(mode=mode)
    assert calls(model, lambda: step(model)) == times
    with torch.no_grad():
        assert calls(model, lambda: model(IDX)) == 1
    assert calls(model.eval(), lambda: model.generate(IDX[:, :4], 3)) == 3


def test_without_gradients_nothing_goes_through_torchs_checkpoint(monkeypatch):
    model = made(mode="full")
    monkeypatch.setattr(remat.torch_checkpoint, "checkpoint", None)  # whose call would raise
    with torch.no_grad():
        model(IDX)
    model.generate(IDX[:, :4], 2)
    with pytest.raises(TypeError):
        model(IDX)


def test_in_eval_mode_with_gradients_it_holds_too():
    """Whoever freezes blocks by eval mode still trains what is below them."""
    model = made(mode="full", dropout=0.1).eval()
    assert calls(model, lambda: step(model)) == 2
    assert all_equal(step(model), step(made(dropout=0.1).eval()))


def test_names_copies_and_pickles_stay():
    plain, model = made(), made(mode="full")
    assert list(model.state_dict()) == list(plain.state_dict())
    assert repr(model) == repr(plain)
    assert implementations(model) == implementations(plain)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [block.remat for block in other.blocks] == ["full"] * 3
        with torch.no_grad():
            other.token_emb.weight.add_(1.0)
        assert not torch.equal(step(other)[0], step(model)[0])  # of the copy's own weights
    assert all_equal(step(model), step(plain))


def test_it_can_be_taken_back():
    model = remat.apply(made(mode="full"), "none")
    assert calls(model, lambda: step(model)) == 1


def test_transforms_and_export_go_without():
    model, plain = made(mode="selective"), made()

    def gradients(model: GPT) -> dict[str, torch.Tensor]:
        def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(model, parameters, (IDX, IDX)).loss

        return torch.func.grad(loss)(dict(model.named_parameters()))

    found, wanted = gradients(model), gradients(plain)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    program = torch.export.export(model, (IDX,))
    assert not any("checkpoint" in str(node.target) for node in program.graph.nodes)


def test_what_has_no_blocks_of_a_gpt_is_told_so():
    one_head = OneHeadLM(101, 16, 16)
    assert remat.apply(one_head, "none") is one_head
    with pytest.raises(
        SettingError, match=r'remat.apply\(\): remat=\'full\' must be "none": a OneHeadLM has no blocks'
    ):
        remat.apply(one_head, "full")
    others = torch.nn.Module()
    others.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(SettingError, match="no blocks of a GPT"):
        remat.apply(others, "selective")


def test_unknown_modes():
    with pytest.raises(SettingError, match="must be one of none, selective, full"):
        remat.apply(made(), "some")
    with pytest.raises(SettingTypeError):
        remat.apply(made(), True)
    with pytest.raises(SettingError, match="must be one of none, selective, full"):
        training_step(made().config, 1, 8, remat="all")


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dynamo():
    """torch._dynamo's counters, from nothing."""
    import torch._dynamo.utils

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def check_compiled(backend: str, counters) -> None:
    for mode in remat.MODES:
        plain = made(mode=mode, dropout=0.1 if backend == "aot_eager" else 0.0)
        model = copy.deepcopy(plain)
        assert remat.compile_blocks(model, backend)
        assert list(model.state_dict()) == list(plain.state_dict())
        counters.clear()
        found = step(model)
        if backend == "aot_eager":
            assert all_equal(found, step(plain))
        else:
            torch.testing.assert_close(found, step(plain))
        assert counters["stats"]["unique_graphs"] == 2  # the first block's, and that of the others
        step(model)
        with torch.no_grad():
            model(IDX)
        model.generate(IDX[:, :4], 2)
        assert counters["stats"]["unique_graphs"] == counters["frames"]["total"] == 2
        assert not counters["graph_break"]
        pickle.dumps(model)
        torch._dynamo.reset()


def test_blocks_are_compiled_once(dynamo):
    check_compiled("aot_eager", dynamo)


@pytest.mark.slow
def test_blocks_are_compiled_once_by_inductor(dynamo):
    check_compiled("inductor", dynamo)


def test_kernels_are_compiled_around(dynamo):
    with kernels.interpret():
        none, full = made("fastgpt", dropout=0.1, n_layers=2), made("fastgpt", "full", dropout=0.1, n_layers=2)
        wanted = step(none)
        remat.compile_blocks(full, "aot_eager")
        assert all_equal(wanted, step(full))
    assert not dynamo["graph_break"]


def test_compiled_blocks_keep_less(dynamo):
    def saved(mode: str) -> int:
        """Bytes of what autograd saves, without the weights."""
        model = made(mode=mode)
        remat.compile_blocks(model, "aot_eager")
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        found: dict[int, torch.Tensor] = {}
        with saved_tensors_hooks(lambda t: found.setdefault(t.untyped_storage()._cdata, t), lambda t: t):
            model.hidden_states(IDX)
        return sum(t.untyped_storage().nbytes() for key, t in found.items() if key not in weights)

    none, selective, full = (saved(mode) for mode in remat.MODES)
    assert full < selective < none


def test_torch_gives_no_advice_that_is_no_users(dynamo, caplog):
    torch._logging._internal.warning_once.cache_clear()  # else it is given once a process
    model = made(mode="selective", n_layers=1)
    remat.compile_blocks(model, "aot_eager")
    step(model)
    assert dynamo["stats"]["unique_graphs"] == 1
    log = logging.getLogger("torch._higher_order_ops.wrap")
    log.warning("something else")
    told = [record.getMessage() for record in caplog.records if record.name == log.name]
    assert told == ["something else"]


def test_a_model_without_blocks_is_left_alone():
    assert not remat.compile_blocks(OneHeadLM(101, 16, 16))
    assert not remat.compile_blocks(torch.nn.Linear(2, 2))
