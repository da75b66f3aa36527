"""torch's default device and dtype are the user's: what takes tensors goes by the tensors."""

import pytest
import torch

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.model.sampling import SamplingConfig, sample

CONFIG = GPTConfig(vocab_size=31, max_len=8, n_layers=2, n_heads=2, d_model=16, n_kv_heads=1)
IDX = torch.arange(8).view(2, 4)
PLAIN = CONFIG.replace(**{f"{part}_impl": "reference" for part in ("attn", "norm", "ffn", "loss")})
LOGITS = torch.linspace(-1, 1, 31).expand(2, 31)


@pytest.fixture(params=["device", "float64", "bfloat16"])
def default(request):
    """Sets the default for the time between the calls of what it returns."""

    def switch(on):
        if request.param == "device":
            torch.set_default_device("meta" if on else None)
        else:
            torch.set_default_dtype(getattr(torch, request.param) if on else torch.float32)

    yield switch
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


CALLS = {
    "logits": lambda m, folder: m(IDX).logits,
    "loss": lambda m, folder: m(IDX, IDX).loss,
    "generate": lambda m, folder: m.generate(IDX, 7, seed=1, top_k=9, top_p=0.9, eos=30),
    "generate by torch's own numbers": lambda m, folder: m.generate(IDX, 3, use_cache=False),
    "attention_maps": lambda m, folder: m.attention_maps(IDX)[1],
    "narrow ids": lambda m, folder: m(IDX.to(torch.uint8), IDX.to(torch.int16)).loss,
    "later": lambda m, folder: m(IDX, IDX, return_logits=False).logits,
    "from_pretrained": lambda m, folder: GPT.from_pretrained(folder)(IDX).logits,
    "from_pretrained elsewhere": lambda m, folder: GPT.from_pretrained(folder, device="cpu", dtype=torch.float32)(IDX)[
        0
    ],
    "moments": lambda m, folder: m.double()(IDX, IDX).loss,
}


@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["auto", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_gpt(seed, default, name, config, tmp_path):
    model = GPT(config).eval()
    model.save_pretrained(tmp_path)
    answers = []
    for on in (False, True):
        torch.manual_seed(3)
        default(on)
        answers.append(CALLS[name](model, tmp_path))
        default(False)
        model.float()
    assert answers[0].dtype == answers[1].dtype
    assert torch.equal(*answers)


def test_saving(seed, default, tmp_path):
    model = GPT(CONFIG)
    default(True)
    model.save_pretrained(tmp_path)
    default(False)
    assert torch.equal(GPT.from_pretrained(tmp_path).token_emb.weight, model.token_emb.weight)


def test_sample(default):
    settings = SamplingConfig(temperature=0.7, top_k=9, top_p=0.8)
    expected = sample(LOGITS, settings, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    default(True)
    assert torch.equal(sample(LOGITS, settings, generator), expected)


def test_one_head(seed, default):
    model = OneHeadLM(31, 16, max_len=8)
    expected = model(IDX)
    default(True)
    answer = model(IDX)
    default(False)
    for ours, theirs in zip(answer[:4], expected[:4]):
        assert torch.equal(ours, theirs)


def test_models_are_made_as_the_defaults_say(default):
    default(True)
    model = GPT(CONFIG)
    like = torch.empty(0)
    assert (model.token_emb.weight.device, model.token_emb.weight.dtype) == (like.device, like.dtype)


def test_from_pretrained_follows_the_default_device(seed, tmp_path, monkeypatch):
    GPT(CONFIG).save_pretrained(tmp_path)
    made = []
    monkeypatch.setattr(GPT, "to_empty", lambda self, *, device: made.append(torch.device(device)) or self)
    monkeypatch.setattr(GPT, "load_state_dict", lambda self, state: None)
    for default_, expected in ((None, "cpu"), ("cuda:0", "cuda:0"), ("meta", "cpu")):
        torch.set_default_device(default_)
        try:
            GPT.from_pretrained(tmp_path)
        finally:
            torch.set_default_device(None)
        assert made.pop() == torch.device(expected)
