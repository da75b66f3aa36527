"""What a model takes, counted from its config: never more than it does take, and refused only if there is less."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.base import machine
from fastgpt.base.settings import SettingError
from fastgpt.model import presets, size
from fastgpt.model.one_head_config import OneHeadConfig

SMALL = {"vocab_size": 29, "max_len": 8, "n_layers": 3, "n_heads": 4, "d_model": 16}
CONFIGS = [
    *(GPTConfig(**SMALL, bias=bias, tie_weights=tie) for bias in (True, False) for tie in (True, False)),
    GPTConfig(**SMALL, n_kv_heads=2, d_ff=7),
    GPTConfig(**SMALL, n_kv_heads=1, bias=False),
    OneHeadConfig(29, 16, 8),
    *(presets.config(name) for name in ("gpt2", "gpt2-xl", "depth-12x512x8", "one-head")),
]


@pytest.fixture
def room(monkeypatch):
    """Sets what there is on this machine, in bytes."""
    return lambda n_bytes: monkeypatch.setattr(machine, "host_room", lambda: machine.Room(n_bytes, "it has"))


@pytest.mark.parametrize("config", [c for c in CONFIGS if isinstance(c, GPTConfig)], ids=str)
def test_shapes_are_those_of_the_model(config):
    with torch.device("meta"):
        model = presets.make(config)
    root, block = size.parameter_shapes(config.to_dict())
    named = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    assert root == [shape for name, shape in named if not name.startswith("blocks.")]
    for layer in range(config.n_layers):
        assert block == [shape for name, shape in named if name.startswith(f"blocks.{layer}.")]


def test_a_model_whose_state_just_fits_one_device():
    config = GPTConfig(**SMALL)
    with torch.device("meta"):
        numbers = sum(p.numel() for p in GPT(config).parameters())
    assert size.state_bytes(config.to_dict()) == 16 * numbers  # float32: weight, gradient and two moments
    assert size.fits_one(config, 16 * numbers)
    assert not size.fits_one(config, 16 * numbers - 1)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parameters_are_those_of_the_model(config):
    with torch.device("meta"):
        model = presets.make(config)
    assert size.count_parameters(config.to_dict()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_block_takes_more_than_its_objects_are_counted_as(device):
    code = (
        "import sys, torch\nfrom fastgpt import GPT, GPTConfig\n"
        "def taken(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "with torch.device(sys.argv[1]):\n"
        "    GPT(GPTConfig(2, 1, 9, 1, 1))\n"
        "    before = taken()\n"
        "    model = GPT(GPTConfig(2, 1, 600, 1, 1, bias=False))\n"
        "print((taken() - before) // 600)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, device], capture_output=True, text=True, check=True)
    assert int(done.stdout) > size.BLOCK_OBJECTS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[6]], ids=["GPT", "OneHeadLM"])
def test_weights_that_just_fit_are_made(room, config, dtype):
    least = size.count_parameters(config.to_dict()) * dtype.itemsize
    least += size.BLOCK_OBJECTS * (3 if isinstance(config, GPTConfig) else 0)
    torch.set_default_dtype(dtype)
    try:
        room(least)
        presets.make(config)
        room(least - 1)
        with pytest.raises(SettingError, match=r"makes [\d,]+ parameters: their weights take .* it has .* lower it"):
            presets.make(config)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layers", 10**8), ("d_model", 2**30), ("d_ff", 2**31 - 1), ("vocab_size", 2**31 - 1), ("max_len", 2**31 - 1)],
)
def test_the_setting_to_blame_is_named(name, value):
    with pytest.raises(SettingError) as raised:
        GPT(GPTConfig(**SMALL | {name: value}))
    assert (raised.value.owner, raised.value.name, raised.value.value) == ("GPTConfig", name, value)


@pytest.mark.parametrize(("name", "step"), [("n_layers", 1), ("d_model", 4), ("d_ff", 1), ("vocab_size", 1)])
def test_the_most_that_could_fit_does_and_one_more_does_not(name, step):
    config = GPTConfig(**SMALL | {name: 10**6})
    with_more = machine.Room(12_345_678, "it has")

    def check(n):
        size.check_fits(config.replace(**{name: n}), with_more, lambda s: 4 * size.count_parameters(s), "they")

    with pytest.raises(SettingError, match=rf"{name}=1000000 makes .*; lower it: at most") as raised:
        check(10**6)
    most = int(str(raised.value).split("at most ")[1].split()[0].replace(",", ""))
    check(most)
    with pytest.raises(SettingError):
        check(most + step)


def test_of_two_settings_neither_alone_would_do():
    config = GPTConfig(10, 10, 1, 2**30, 2**30)
    with pytest.raises(SettingError, match=r"d_model=1073741824 .*; lower it, and the model's other sizes$"):
        GPT(config)


def test_what_takes_no_memory_is_made_whatever_its_size(room):
    config = GPTConfig(50304, 1024, 4, 8, 2**17)
    room(2**20)
    with torch.device("meta"):
        assert GPT(config).num_parameters() == size.count_parameters(config.to_dict())
        assert OneHeadLM(10**9, 10**5, 10).num_parameters() > 10**14
    with FakeTensorMode():
        assert GPT(config).token_emb.weight.shape == (50304, 2**17)


def test_what_accelerate_leaves_empty(room):
    accelerate = pytest.importorskip("accelerate")
    room(2**20)
    with accelerate.init_empty_weights():
        assert GPT(GPTConfig(50304, 1024, 1, 4, 64)).head.weight.is_meta


def test_objects_count_where_weights_do_not():
    with torch.device("meta"), pytest.raises(SettingError, match=r"n_layers=100000000 makes .* Python objects alone"):
        GPT(GPTConfig(2, 1, 10**8, 1, 1))


def test_the_look_draws_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    size.check_can_be_made(GPTConfig(**SMALL))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("format", ["fastgpt", "hf", "nanogpt"])
def test_a_file_of_fewer_tensors_than_layers(tmp_path, format):
    """Told before the layers are gone through: a hundred million would fill the memory."""
    GPT(GPTConfig(**SMALL)).save_pretrained(tmp_path, format)
    if format == "nanogpt":
        saved = torch.load(tmp_path / "ckpt.pt")
        saved["model_args"]["n_layer"] = 10**8
        torch.save(saved, tmp_path / "ckpt.pt")
    else:
        path = Path(tmp_path, "config.json")
        fields = json.loads(path.read_text())
        path.write_text(json.dumps(fields | {"n_layer" if format == "hf" else "n_layers": 10**8}))
    with pytest.raises(ValueError, match="tensors cannot be n_layers=100000000 layers; correct the config"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("model", [GPT(GPTConfig(**SMALL)), OneHeadLM(29, 16, 8)], ids=["GPT", "OneHeadLM"])
def test_attention_maps(room, model):
    n_maps = model.config.n_layers * model.config.n_heads
    idx = torch.zeros(2, 5, dtype=torch.int64)
    room(2 * 2 * n_maps * 5 * 5)
    model.attention_maps(idx)
    room(2 * 2 * n_maps * 5 * 5 - 1)
    with pytest.raises(SettingError, match=rf"^attention_maps: idx=\(2, 5\) makes {2 * n_maps} maps of 5 x 5 weights"):
        model.attention_maps(idx)
    if n_maps > 1:
        model.attention_maps(idx, layers=1)
