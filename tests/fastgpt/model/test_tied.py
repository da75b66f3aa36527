"""Head and token embedding stay one parameter, and files that hold it under one name are read by everybody."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastgpt import GPT, GPTConfig

SHAPE = {"vocab_size": 31, "max_len": 8, "n_layers": 1, "n_heads": 2, "d_model": 16}
IDX = torch.arange(16).view(2, 8)
NAMES = ("token_emb.weight", "head.weight")


def build(device="cpu", **changes):
    with torch.device(device):
        return GPT(GPTConfig(**SHAPE, **changes))


def clones(model, *, without=None):
    """A state dict as from a file: each name a tensor of its own."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name != without}


def assert_tied(model, like):
    assert model.head.weight is model.token_emb.weight
    assert len(list(model.parameters())) == len(list(like.parameters()))
    assert torch.equal(model(IDX).logits, like(IDX).logits)


class Nested(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = nn.ModuleList([inner])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("without", [None, *NAMES])
def test_any_load_keeps_the_tie(seed, without, strict, device, assign, nested):
    source, model = build(), build(device)
    state = clones(source, without=without)
    if device == "meta" and not assign:
        model.to_empty(device="cpu")
    root = model
    if nested:
        root, state = Nested(model), {f"inner.0.{name}": tensor for name, tensor in state.items()}
    for _ in range(2):
        result = root.load_state_dict(state, strict=strict, assign=assign)
        assert result.unexpected_keys == []
        absent = [] if strict or without is None else [f"inner.0.{without}" if nested else without]
        assert result.missing_keys == absent
        assert_tied(model, source)


def test_what_is_trained_after_an_assigning_load_is_in_the_file(seed, tmp_path):
    model = build("meta")
    model.load_state_dict(clones(build()), assign=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(IDX, IDX).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    assert_tied(GPT.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("strict", [False, True])
def test_two_different_weights_are_refused(seed, strict):
    state = clones(build(tie_weights=False))
    with pytest.raises(RuntimeError, match=r"head.weight differs from token_emb.weight, and this model ties them"):
        build().load_state_dict(state, strict=strict)
    model = build(tie_weights=False)
    model.load_state_dict(state, assign=True)
    assert model.head.weight is not model.token_emb.weight


def test_weights_with_nan_in_both_places_are_equal(seed):
    state = clones(build())
    for name in NAMES:
        state[name][3] = float("nan")
    build().load_state_dict(state)


@pytest.mark.parametrize("without", NAMES)
def test_safetensors_and_from_pretrained_read_a_file_with_either_name(seed, tmp_path, without):
    safetensors = pytest.importorskip("safetensors.torch")
    source = build()
    source.save_pretrained(tmp_path)
    safetensors.save_file(clones(source, without=without), tmp_path / "model.safetensors")
    model = build()
    assert safetensors.load_model(model, tmp_path / "model.safetensors") == (set(), [])
    assert_tied(model, source)
    whole = torch.compile(build(), backend="eager")  # the model is inside of another module then
    safetensors.save_file(
        {f"_orig_mod.{name}": tensor for name, tensor in clones(source, without=without).items()}, tmp_path / "c"
    )
    assert safetensors.load_model(whole, tmp_path / "c") == (set(), [])
    assert_tied(whole._orig_mod, source)
    assert_tied(GPT.from_pretrained(tmp_path), source.eval())


def test_safetensors_save_model_and_load_model(seed, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source, model = build(), build()
    safetensors.save_model(source, tmp_path / "m")
    assert safetensors.load_model(model, tmp_path / "m") == (set(), [])
    assert_tied(model, source)


@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.to_empty(device="cpu").load_state_dict(clones(build())) and None,
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16).float(),
        lambda m: copy.deepcopy(m),
        lambda m: nn.Sequential(m).double()[0],
        lambda m: m.apply(lambda module: None),
    ],
)
def test_moves_keep_the_tie(seed, move):
    model = build()
    model = move(model) or model
    assert model.head.weight is model.token_emb.weight


def test_moves_that_make_new_parameters(seed):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model = build().double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    assert model.head.weight is model.token_emb.weight


@pytest.mark.needs("accelerate")
@pytest.mark.parametrize("without", [None, *NAMES])
def test_accelerates_empty_model(seed, without):
    from accelerate import init_empty_weights

    source = build()
    with init_empty_weights():
        models = [GPT(source.config) for _ in range(2)]
    models[0].load_state_dict(clones(source, without=without), assign=True)
    assert_tied(models[0], source)
    models[1].to_empty(device="cpu").load_state_dict(clones(source, without=without))
    assert_tied(models[1], source)


@pytest.mark.needs("accelerate")
@pytest.mark.parametrize("without", NAMES)
@pytest.mark.parametrize("made", ["here", "empty", "on meta"])
def test_accelerates_loading_of_a_file(seed, tmp_path, made, without):
    """Into a model as it is, torch.distributed loads, which fills in the model's own weight where the file has none."""
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch, load_checkpoint_in_model
    from safetensors.torch import save_file

    source, file = build(), str(tmp_path / "model.safetensors")
    save_file(clones(source, without=without), file)
    if made == "here":
        model = build()
        load_checkpoint_in_model(model, file)
    else:
        with init_empty_weights() if made == "empty" else torch.device("meta"):
            model = GPT(source.config)
        model = load_checkpoint_and_dispatch(model, file, device_map={"": "cpu"})
    assert_tied(model, source)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_by_swapping_tensors(seed, assign):
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        source, model = build(), build()
        model.load_state_dict(clones(source, without="head.weight"), assign=assign)
        assert_tied(model, source)
        assert model.double().head.weight is model.token_emb.weight
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


class Adapted(nn.Module):
    """As peft wraps a Linear: the weight lies one module deeper, and `weight` cannot be set."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x)


def test_an_adapter_around_the_head_keeps_its_tie(seed):
    model = build()
    model.head = Adapted(model.head)
    model.to_empty(device="cpu")
    assert model.head.base_layer.weight is model.token_emb.weight
    source = build()
    state = clones(source, without="head.weight")
    model.load_state_dict(state, assign=True)
    assert model.head.base_layer.weight is model.token_emb.weight
    assert torch.equal(model(IDX).logits, source(IDX).logits)


@pytest.mark.parametrize("swap", ["weight", "module"])
def test_a_head_that_somebody_untied_stays_untied(seed, swap):
    model = build()
    if swap == "weight":
        model.head.weight = nn.Parameter(model.head.weight.detach() * 2)
    else:
        model.head = nn.Linear(16, 31, bias=False)
    head = model.head.weight.detach().clone()
    model.double()
    state = clones(model)
    model.load_state_dict(state, assign=True)
    assert torch.equal(model.head.weight, head.double())
    assert not torch.equal(model.head.weight, model.token_emb.weight)


def test_saving_what_a_file_could_not_hold_is_refused(seed, tmp_path):
    model = build()
    model.head.weight = nn.Parameter(model.head.weight.detach() * 2)
    with pytest.raises(ValueError, match=r"head.weight is no longer token_emb.weight.*replace\(tie_weights=False\)"):
        model.save_pretrained(tmp_path)
    model.config = model.config.replace(tie_weights=False)
    model.save_pretrained(tmp_path)
    assert torch.equal(GPT.from_pretrained(tmp_path).head.weight, model.head.weight)
    model.head = Adapted(model.head)
    with pytest.raises(ValueError, match=r"save_pretrained: .*unexpected head.base_layer.weight"):
        model.save_pretrained(tmp_path)


def test_functional_call_ties(seed):
    model, other = build(), build()
    parameters = dict(other.named_parameters())
    call = torch.func.functional_call
    expected = other(IDX).logits
    assert torch.equal(call(model, parameters, (IDX,)).logits, expected)
    assert torch.equal(call(model, parameters, (IDX,), tie_weights=True).logits, expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_load_for_themselves(seed, duplicate):
    source, first = build(), build()
    weights = first.token_emb.weight.detach().clone()
    model = duplicate(first)
    model.load_state_dict(clones(source, without="token_emb.weight"), assign=True)
    assert_tied(model, source)
    assert torch.equal(first.head.weight, weights)
