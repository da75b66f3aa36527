"""GPT in the hands of FSDP2, DDP, Accelerate and transformers' Trainer: what they find in an output, and its logits."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastgpt import GPT, GPTConfig
from fastgpt.model.output import GPTOutput

SHAPE = {"vocab_size": 31, "max_len": 8, "n_layers": 2, "n_heads": 2, "d_model": 16}
IDX = torch.arange(16).view(2, 8)
TARGETS = IDX.roll(-1, 1)


@pytest.fixture(scope="module")
def alone():
    """A process group of one."""
    if dist.is_initialized():
        pytest.skip("this process is in a group already")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def model(seed):
    return GPT(GPTConfig(**SHAPE)).train()


def sharded(model, reshard=None, mixed=False):
    """fully_shard on every block and the whole; mixed: bfloat16 inside, a float32 output."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh, inside = init_device_mesh("cpu", (1,)), torch.bfloat16 if mixed else None
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(inside))
    policy = MixedPrecisionPolicy(inside, output_dtype=torch.float32 if mixed else None)
    return fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)


def twin(model):
    other = GPT(model.config)
    other.load_state_dict(model.state_dict())
    return other.train()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("reshard", [None, True])
def test_fsdp2_trains_as_without_and_hooks_do_not_pile_up(alone, model, reshard):
    plain = twin(model)
    wrapped = sharded(model, reshard)
    assert wrapped.head.weight is wrapped.token_emb.weight
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (wrapped, plain)]
    hooks, parameters = [], len(list(wrapped.parameters()))
    for _ in range(12):
        losses = []
        for m in (wrapped, plain):
            out = m(IDX, TARGETS, return_logits=False)
            if m is wrapped:
                hooks.append(len(out.head_weight._backward_hooks or {}))
            if len(hooks) % 2:  # on every other step; it must make no difference to the gradients
                torch.testing.assert_close(out.logits, plain(IDX).logits)
            out.loss.backward()
            losses.append(out.loss.item())
        torch.testing.assert_close(*losses)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert set(hooks) == {0}
    assert len(list(wrapped.parameters())) == parameters


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("when", ["after the forward", "after the backward", "under no_grad"])
@pytest.mark.parametrize("mixed", [False, True])
def test_fsdp2_logits_computed_later(alone, model, mixed, when):
    plain = twin(model)
    wrapped = sharded(model, True, mixed)
    with torch.set_grad_enabled(when != "under no_grad"):
        out = wrapped(IDX, TARGETS, return_logits=False)
    assert type(out) is GPTOutput
    if when == "after the backward":
        out.loss.backward()
    expected = plain.to(torch.bfloat16)(IDX).logits if mixed else plain(IDX).logits
    torch.testing.assert_close(out.logits.detach(), expected.detach())


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_fsdp2_loads_a_state_dict_and_stays_tied(alone, model):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    source = GPT(model.config)
    wrapped = sharded(model)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(wrapped, source.state_dict(), options=options)
    assert wrapped.head.weight is wrapped.token_emb.weight
    state = get_model_state_dict(wrapped, options=options)
    for name, tensor in source.state_dict().items():
        assert torch.equal(state[name], tensor), name
    wrapped.load_state_dict(wrapped.state_dict(), assign=True)
    assert wrapped.head.weight is wrapped.token_emb.weight
    torch.testing.assert_close(wrapped(IDX).logits, source(IDX).logits)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}])
def test_ddp(alone, model, options):
    plain = twin(model)
    wrapped = nn.parallel.DistributedDataParallel(model, **options)
    for _ in range(2):
        for m in (wrapped, plain):
            out = m(IDX, TARGETS, return_logits=False)
            torch.testing.assert_close(out.logits, plain(IDX).logits)
            out.loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.needs("accelerate")
def test_accelerates_conversions(model):
    """bfloat16 training with Accelerate walks through every output, and rebuilds it as type(out)({...})."""
    from accelerate.utils import convert_outputs_to_fp32, send_to_device

    def forward(**kwargs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(**kwargs)

    out = convert_outputs_to_fp32(forward)(idx=IDX, targets=TARGETS, return_logits=False)
    assert type(out) is GPTOutput
    assert out.computed_logits is None
    assert {value.dtype for value in out.values()} == {torch.float32}
    model.eval()
    out = convert_outputs_to_fp32(forward)(idx=IDX, targets=TARGETS, return_logits=False)
    assert list(out) == ["loss", "logits", "hidden"]
    assert out.logits.dtype == torch.float32
    assert send_to_device(out, "meta").logits.device.type == "meta"


@pytest.mark.needs("accelerate")
def test_accelerates_states(seed, tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(GPT(GPTConfig(**SHAPE)))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accelerator.save_state(tmp_path)
    with torch.no_grad():
        model.token_emb.weight.add_(1.0)
    accelerator.load_state(tmp_path)
    assert torch.equal(model.head.weight, weights["head.weight"])
    assert model.head.weight is model.token_emb.weight


class Sequences(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        idx = (torch.arange(8) + i) % 31
        return {"idx": idx, "targets": (idx + 1) % 31}


@pytest.mark.needs("transformers", "accelerate")
@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_of_transformers(seed, tmp_path, bf16):
    from transformers import Trainer, TrainingArguments

    predictions = []

    def accuracy(prediction):
        predictions.append(prediction.predictions)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    model = GPT(GPTConfig(**SHAPE))
    arguments = TrainingArguments(
        tmp_path / "out", max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True, bf16=bf16,
        report_to=[], label_names=["targets"], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Sequences(), eval_dataset=Sequences(), compute_metrics=accuracy
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert predictions[0].shape == (8, 8, 31)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(GPT.from_pretrained(tmp_path / "model").head.weight, model.head.weight)
