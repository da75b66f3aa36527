"""GPTOutput: used as transformers' ModelOutput is, with logits that are right whenever they are computed."""

import collections.abc
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils import _pytree

from fastgpt import GPT, GPTConfig
from fastgpt.model.output import GPTOutput

SHAPE = {"vocab_size": 31, "max_len": 8, "n_layers": 1, "n_heads": 2, "d_model": 16}
IDX = torch.arange(16).view(2, 8)


@pytest.fixture
def model(seed):
    return GPT(GPTConfig(**SHAPE)).train()


@pytest.fixture
def pending(model):
    """An output whose logits were not computed, as after the fused loss, and what they must be."""
    return model(IDX, IDX, return_logits=False), model(IDX).logits


def modeloutput():
    """The same three fields as a class of transformers."""
    pytest.importorskip("transformers")
    import dataclasses

    from transformers.utils import ModelOutput

    @dataclasses.dataclass
    class Theirs(ModelOutput):
        loss: torch.Tensor | None = None
        logits: torch.Tensor | None = None
        hidden: torch.Tensor | None = None

    return Theirs


LOSS, LOGITS, HIDDEN = torch.tensor(2.5), torch.ones(1, 2, 3), torch.zeros(1, 2, 4)
WAYS = {
    "number": lambda o: o[0],
    "last": lambda o: o[-1],
    "slice": lambda o: o[:2],
    "rest": lambda o: o[1:],
    "name": lambda o: o["logits"],
    "attribute": lambda o: o.hidden,
    "keys": lambda o: list(o.keys()),
    "values": lambda o: list(o.values()),
    "items": lambda o: list(o.items()),
    "to_tuple": lambda o: o.to_tuple(),
    "two of a tuple": lambda o: o.to_tuple()[:2],
    "dict": lambda o: dict(o),
    "dict display": lambda o: {**o},
    "keywords": lambda o: dict(**o),
    "iteration": lambda o: list(o),
    "reversed names": lambda o: list(o)[::-1],
    "len": len,
    "bool": bool,
    "in": lambda o: ("loss" in o, "logits" in o, "past" in o),
    "get": lambda o: (o.get("loss"), o.get("past"), o.get("past", 3)),
    "is a dict": lambda o: (isinstance(o, dict), isinstance(o, collections.abc.Mapping)),
    "mapping": lambda o: type(o)(dict(o)).to_tuple(),
    "pairs": lambda o: type(o)((k, v) for k, v in o.items()).to_tuple(),
    "copy": lambda o: copy.copy(o).to_tuple(),
    "deepcopy": lambda o: copy.deepcopy(o).to_tuple(),
    "pickle": lambda o: pickle.loads(pickle.dumps(o)).to_tuple() if isinstance(o, GPTOutput) else o.to_tuple(),
    "unpacking": lambda o: [a for a, *_ in [tuple(o)]],
    "pytree": lambda o: _pytree.tree_map(lambda t: t + 1, o).to_tuple(),
    "no such name": lambda o: o["past"],
    "no such number": lambda o: o[3],
    "unpacking two": lambda o: [a for a, b in [o]],
}


@pytest.mark.parametrize("given", [{"loss": LOSS, "logits": LOGITS, "hidden": HIDDEN}, {"logits": LOGITS}])
@pytest.mark.parametrize("way", WAYS)
def test_what_modeloutput_answers(way, given):
    answers = []
    for cls in (modeloutput(), GPTOutput):
        try:
            answers.append(WAYS[way](cls(**given)))
        except (KeyError, IndexError, ValueError) as error:
            answers.append(type(error))
    assert same(*answers), answers


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("write", ["attribute", "item"])
@pytest.mark.parametrize(("name", "value"), [("logits", HIDDEN), ("loss", LOSS + 1), ("extra", LOSS)])
def test_attributes_and_items_are_set_in_step(write, name, value):
    out = GPTOutput(LOSS, None, HIDDEN)
    setattr(out, name, value) if write == "attribute" else out.__setitem__(name, value)
    assert getattr(out, name) is value
    if name in ("loss", "logits") or write == "item":
        assert out[name] is value
        assert list(out) == [n for n in ("loss", "logits", "hidden", "extra") if n in out]
    out.hidden = None
    assert "hidden" not in out
    assert out.hidden is None


def test_entries_are_not_removed():
    out = GPTOutput(LOSS)
    for change in (lambda: out.pop("loss"), lambda: out.update(a=1), lambda: out.setdefault("a", 1), out.clear):
        with pytest.raises(TypeError, match="entries can be set"):
            change()
    with pytest.raises(TypeError, match="entries can be set"):
        del out["loss"]
    assert out.to_tuple() == (LOSS,)


@pytest.mark.parametrize(
    "ask",
    [
        lambda o: o.logits, lambda o: o["logits"], lambda o: o[1], lambda o: o[:2][1], lambda o: o[-2],
        lambda o: o.to_tuple()[1], lambda o: o.get("logits"), lambda o: copy.copy(o).logits,
        lambda o: copy.deepcopy(o.__copy__()).logits if not o.loss.requires_grad else o.logits,
        lambda o: _pytree.tree_map(lambda t: t * 1, o).logits, lambda o: pickle.loads(pickle.dumps(o)).logits,
    ],
)  # fmt: skip
def test_logits_are_computed_when_asked_for_by_name_or_number(pending, ask):
    out, expected = pending
    assert "logits" in out
    torch.testing.assert_close(ask(out), expected)


def test_who_walks_through_an_output_in_training_computes_no_logits(pending):
    out, _ = pending
    for walk in (list, len, dict, repr, str, _pytree.tree_flatten, lambda o: (list(o.items()), list(o.values()))):
        walk(out)
        assert out.computed_logits is None
    assert list(out) == ["loss", "hidden"]
    assert out.logits is out.logits
    assert list(out) == ["loss", "logits", "hidden"]


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_evaluation_finds_logits_among_the_entries(model, how):
    model.train(how != "eval")
    with torch.set_grad_enabled(how != "no_grad"):
        out = model(IDX, IDX, return_logits=False)
        assert out.computed_logits is None
        assert list(out) == ["loss", "logits", "hidden"]
        torch.testing.assert_close(dict(out)["logits"], model(IDX).logits)


def test_printing_is_short(pending):
    out, _ = pending
    assert str(out) == (
        f"GPTOutput(loss={out.loss.item():.6g}, logits=<computed when asked for>, hidden=<(2, 8, 16) float32 cpu>)"
    )
    assert "logits=<(2, 8, 31) float32 cpu>" in repr(GPTOutput(logits=out.logits))


def test_gradients_flow_through_logits_that_are_computed_later(model):
    gradients = []
    for return_logits in (True, False):
        model.zero_grad()
        out = model(IDX, IDX, return_logits=return_logits)
        (out.loss + out.logits.square().mean()).backward()
        gradients.append(model.token_emb.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_logits_of_changed_weights_are_refused(model):
    out = model(IDX, IDX, return_logits=False)
    out.loss.backward()
    torch.optim.AdamW(model.parameters()).step()
    with pytest.raises(RuntimeError, match=r"weight has changed since .* return_logits=True"):
        out.logits  # noqa: B018
    assert out.loss.item() > 0


def test_a_librarys_copy_without_logits_says_so(pending):
    copied = GPTOutput(dict(pending[0]))
    assert copied.to_tuple() == (pending[0].loss, pending[0].hidden)
    with pytest.raises(AttributeError, match=r"not computed before this copy was made; call .* return_logits=True"):
        copied.logits  # noqa: B018
    with pytest.raises(KeyError, match="not computed before this copy was made"):
        copied["logits"]
    assert copied.get("logits") is None
    copied.logits = LOGITS
    assert copied.logits is LOGITS


class Adapted(nn.Module):
    """A head in other hands: the Linear, and something beside it."""

    def __init__(self, head):
        super().__init__()
        self.base, self.extra = head, nn.Linear(16, 31)

    def forward(self, x):
        return self.base(x) + self.extra(x)


def test_logits_go_through_whatever_the_head_is(model):
    model.head = Adapted(model.head)
    for return_logits in (None, False):
        out = model(IDX, IDX, return_logits=return_logits)
        torch.testing.assert_close(out.logits, model.head(out.hidden))
        assert out.head_weight is None


def test_logits_computed_later_see_what_became_of_the_head(model):
    out = model(IDX, IDX, return_logits=False)
    model.head.register_forward_hook(lambda module, args, result: result * 2)
    torch.testing.assert_close(out.logits, 2 * out.hidden @ model.head.weight.T)


def test_a_hook_on_the_head_is_run(model):
    model.head.register_forward_hook(lambda module, args, result: result * 2)
    out = model(IDX, IDX, return_logits=False)
    torch.testing.assert_close(out.logits, 2 * out.hidden @ model.head.weight.T)


@pytest.mark.parametrize("wrapped", [False, True])
def test_functional_call_lends_its_weights_to_logits_computed_later(model, wrapped):
    if wrapped:
        model.head = Adapted(model.head)
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    call = torch.func.functional_call
    out = call(model, other, (IDX, IDX), {"return_logits": False})
    torch.testing.assert_close(out.logits, call(model, other, (IDX,)).logits)


def test_inside_of_torch_func_and_after(model):
    parameters = dict(model.named_parameters())

    def loss(parameters):
        out = torch.func.functional_call(model, parameters, (IDX, IDX), {"return_logits": False})
        return out.loss, out

    _, out = torch.func.grad(loss, has_aux=True)(parameters)
    torch.testing.assert_close(out.logits, model(IDX).logits)
    many = {name: torch.stack([p, p]).detach() for name, p in parameters.items()}
    _, out = torch.func.vmap(loss)(many)
    with pytest.raises(RuntimeError, match=r"were not computed inside of the torch\.func transform"):
        out.logits  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_computed_later_are_those_of_the_forwards_autocast(model, dtype):
    with torch.autocast("cpu", dtype=dtype):
        out, expected = model(IDX, IDX, return_logits=False), model(IDX).logits
    assert out.logits.dtype == dtype
    assert torch.equal(out.logits, expected)
    out = model(IDX, IDX, return_logits=False)
    with torch.autocast("cpu", dtype=dtype):
        assert out.logits.dtype == torch.float32


def test_no_parameter_is_a_leaf_and_structures_of_equal_outputs_are_equal(model):
    leaves, spec = _pytree.tree_flatten(model(IDX, IDX, return_logits=False))
    assert [tuple(leaf.shape) for leaf in leaves] == [(), (2, 8, 16)]
    torch.optim.SGD(model.parameters(), 1.0).step()
    _, again = _pytree.tree_flatten(model(IDX, IDX, return_logits=False))
    assert spec == again
    assert hash(spec.context) == hash(again.context)
    _, other = _pytree.tree_flatten(copy.deepcopy(model)(IDX, IDX, return_logits=False))
    assert spec != other
    keys, _ = _pytree.tree_flatten_with_path(model(IDX))
    assert [_pytree.keystr(path) for path, _ in keys] == ["['logits']", "['hidden']"]


def test_compiled_whole(model):
    def step(idx):
        out = model(idx, idx, return_logits=False)
        return out.loss + out[1].mean() + len(out), out

    compiled = torch.compile(model, fullgraph=True, backend="eager")
    out = compiled(IDX, IDX, return_logits=False)
    assert type(out) is GPTOutput
    assert out.computed_logits is None
    torch.testing.assert_close(out.logits, model(IDX).logits)
    assert out.head_weight is model.head.weight
    total, out = torch.compile(step, fullgraph=True, backend="eager")(IDX)
    torch.testing.assert_close(total, step(IDX)[0])
    torch.testing.assert_close(out.logits, model(IDX).logits)


def test_exported_programs_carry_their_logits(model, tmp_path):
    program = torch.export.export(model.eval(), (IDX, IDX))
    torch.export.save(program, tmp_path / "program.pt2")
    out = torch.export.load(tmp_path / "program.pt2").module()(IDX, IDX)
    torch.testing.assert_close(out.logits, model(IDX).logits)
    torch.testing.assert_close(out["loss"], model(IDX, IDX).loss)


def test_checkpointed(model):
    from torch.utils.checkpoint import checkpoint

    out = checkpoint(lambda i: model(i, i, return_logits=False), IDX, use_reentrant=False)
    torch.testing.assert_close(out.logits, model(IDX).logits)
