"""Our attention inside of transformers' models: their masks, caches, weights and extras, against their own "eager"."""

import contextlib
import copy
import pickle
from types import SimpleNamespace

import pytest
import torch

from fastgpt.interop import attention_registry, key_mask
from fastgpt.interop.key_mask import KeyMask
from fastgpt.interop.plain_attention import plain_attention
from fastgpt.kernels import interpret
from tests.fastgpt.hf_models import hf_pair
from tests.support.budget import assert_within_budget, exactly

pytestmark = pytest.mark.needs("transformers")

PADDING = {  # {row: positions that are padding}
    "none": {},
    "left": {0: slice(0, 3)},
    "right": {1: slice(6, 10)},
    "both": {0: slice(0, 2), 2: slice(8, 10)},
    "hole": {2: slice(3, 5)},
    "nothing": {1: slice(0, 10)},
}


def padding_mask(padding, length=10):
    kept = torch.ones(3, length, dtype=torch.long)
    for row, gap in PADDING[padding].items():
        kept[row, gap] = 0
    return kept


# ---- masks ---------------------------------------------------------------------------------------------------------


FUNCTIONS = (
    "causal", "window", "window of all but one", "wide window", "bidirectional", "bidirectional window",
    "bidirectional window of all but one", "causal or more", "chunked",
)  # fmt: skip


def functions():
    from transformers import masking_utils as m

    made = {
        "causal": m.causal_mask_function,
        "window": m.sliding_window_causal_mask_function(4),
        "window of all but one": m.sliding_window_causal_mask_function(9),
        "wide window": m.sliding_window_causal_mask_function(40),
        "bidirectional": m.bidirectional_mask_function,
        "bidirectional window": m.sliding_window_bidirectional_mask_function(2),
        "bidirectional window of all but one": m.sliding_window_bidirectional_mask_function(8),
        "causal or more": m.or_masks(m.causal_mask_function, lambda b, h, q, k: k < 2),
        "chunked": m.chunked_causal_mask_function(4, torch.zeros(3, dtype=torch.long)),
    }
    assert tuple(made) == FUNCTIONS
    return made


# (q_length, kv_length, q_offset, kv_offset): whole, decoding, a chunk, a sliding cache, a static cache, its tensor
PLACES = [(10, 10, 0, 0), (1, 10, 9, 0), (4, 10, 6, 0), (2, 6, 8, 4), (6, 14, 0, 0), (4, 14, torch.tensor(6), 0)]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("padding", PADDING)
def test_every_mask_is_the_one_that_transformers_builds(function, padding):
    """Also where the padding mask ends before the keys do (a static cache), or after them (a chunk of a prompt)."""
    from transformers.masking_utils import sdpa_mask

    for q_length, kv_length, q_offset, kv_offset in PLACES:
        for width in (None, 6, 10, 20):
            kept = None
            if width is not None:
                kept = torch.nn.functional.pad(padding_mask(padding), (0, 10), value=1)[:, :width].bool()
            call = {"mask_function": functions()[function], "q_offset": q_offset, "kv_offset": kv_offset}
            call |= {"batch_size": 3, "q_length": q_length, "kv_length": kv_length, "attention_mask": kept}
            call |= {"local_size": 2} if function.startswith("bidirectional window") else {}
            theirs = sdpa_mask(**call, allow_is_causal_skip=False)
            for skips in (True, False):
                skip = "allow_is_bidirectional_skip" if "bidirectional" in function else "allow_is_causal_skip"
                ours = key_mask.mask(**call, **{skip: skips})
                if ours is None:
                    assert skips
                    aligned = q_offset + q_length == kv_offset + kv_length
                    assert aligned or "bidirectional" in function
                    causal = torch.ones(q_length, kv_length).tril(kv_length - q_length).bool()
                    assert (
                        theirs.all()
                        if "bidirectional" in function
                        else torch.equal(theirs, causal.expand(theirs.shape))
                    )
                else:
                    assert torch.equal(ours & True, theirs), (q_length, kv_length, q_offset, kv_offset, width)


@pytest.mark.parametrize(
    ("function", "padding", "kind"),
    [
        ("causal", "none", None), ("causal", "left", KeyMask), ("causal", "hole", torch.Tensor),
        ("window", "none", KeyMask), ("window", "both", KeyMask), ("wide window", "none", None),
        ("bidirectional", "none", None), ("bidirectional", "right", KeyMask), ("bidirectional window", "none", KeyMask),
        ("causal or more", "none", torch.Tensor), ("chunked", "none", torch.Tensor),
    ],
)  # fmt: skip
def test_which_masks_the_kernels_take(function, padding, kind):
    for q_length, q_offset in ((10, 0), (4, 6)):
        found = key_mask.mask(
            3, q_length, 10, q_offset, 0, functions()[function], padding_mask(padding).bool(),
            allow_is_bidirectional_skip="bidirectional" in function,
        )  # fmt: skip
        assert found is None if kind is None else type(found) is kind


def test_a_mask_that_a_model_works_on_is_an_ordinary_mask():
    found = key_mask.mask(3, 4, 10, 6, 0, None, padding_mask("both"))
    whole = found & True
    q, k = torch.empty(3, 2, 4, 8), torch.empty(3, 2, 10, 8)
    assert type(found) is KeyMask
    assert (found.dim(), found.dtype, found.shape) == (4, torch.bool, (3, 1, 4, 10))
    assert found._elements is not None
    assert found.describes(q, k)
    assert not found.describes(q, k[:, :, 1:])
    assert not found.all()
    assert found.describes(q, k), "it was only read"
    for name, work in {
        "slice": lambda m: m[:, :, :, :7], "cast": lambda m: m.float(), "join": lambda m: torch.cat([m, m], -1),
        "where": lambda m: torch.where(m, 0.0, -1e9), "invert": lambda m: ~m, "copy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)), "expand": lambda m: m.expand(-1, 2, -1, -1),
    }.items():  # fmt: skip
        assert type(work(found)) is torch.Tensor, name
        assert torch.equal(work(found), work(whole)), name
    assert "key_starts" in repr(found)
    found = key_mask.mask(3, 4, 10, 6, 0, None, padding_mask("both"))
    found[:, :, :, 9] = False
    whole[:, :, :, 9] = False
    assert not found.describes(q, k)
    assert torch.equal(found & True, whole)


# ---- the attention function ----------------------------------------------------------------------------------------


def qkv(T_q=6, T_k=10, H=4, H_kv=2):
    return [torch.randn(3, heads, T, 8, requires_grad=True) for heads, T in ((H, T_q), (H_kv, T_k), (H_kv, T_k))]


@pytest.mark.parametrize("function", ["causal", "window", "bidirectional", "bidirectional window"])
@pytest.mark.parametrize("padding", ["none", "both", "nothing"])
def test_kernels_and_fallback_compute_what_the_mask_says(seed, function, padding, device):
    inputs = [x.detach().to(device).requires_grad_() for x in qkv()]
    given = key_mask.mask(3, 6, 10, 4, 0, functions()[function], padding_mask(padding).bool().to(device))
    dense = functions()[function]
    from transformers.masking_utils import sdpa_mask

    dense = sdpa_mask(3, 6, 10, 4, 0, dense, padding_mask(padding).bool(), allow_is_causal_skip=False).to(device)
    module = SimpleNamespace(is_causal="bidirectional" not in function)

    def results(attend, *inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out, weights = attend(*leaves)
        return [out, weights, *torch.autograd.grad((out * out.detach().cos()).sum() + weights.square().sum(), leaves)]

    def plain(*inputs):
        def attend(q, k, v):
            out, weights = plain_attention(q, k, v, dense.to(q.device))
            return out.transpose(1, 2), weights

        return results(attend, *inputs)

    def ours(q, k, v):
        return attention_registry.attention(module, q, k, v, given, output_attentions=True)

    exact, torchs = exactly(plain, *inputs), plain(*inputs)
    for name, mine, other, true in zip(("out", "weights", "dq", "dk", "dv"), results(ours, *inputs), torchs, exact):
        assert_within_budget(name, mine, other, true, factor=2 if name in ("out", "weights") else 3)
    assert given is None or given._elements is None, "the kernels take the numbers, not the matrix"


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def extras():
    """{what a model passes on: (its module, its name for it, the value)} for 3 rows, 4 heads, 6 queries, 10 keys."""
    return {
        "softcap": ("gemma2", {"softcap": 0.7}, {}),
        "sinks of heads": ("gpt_oss", {"s_aux": (sinks := double(4))}, {"sinks": sinks}),
        "sinks by sigmoid": ("granite_swa", {"s_aux": (sinks := double(4))}, {"sinks": sinks}),
        "sinks of queries": ("inkling2", {"sinks": double(3, 4, 6, 1)}, {}),
        "position bias": ("t5", {"position_bias": double(1, 4, 6, 10)}, {}),
        "none": ("llama", {}, {}),
    }


@pytest.mark.parametrize("extra", extras())
@pytest.mark.parametrize("mask", ["none", "key mask", "bool", "float"])
def test_extras_are_computed_as_the_models_own_eager_does(seed, extra, mask):
    """In float64; transformers takes some of its softmaxes in float32."""
    family, given, of_module = extras()[extra]
    eager = pytest.importorskip(f"transformers.models.{family}.modeling_{family}").eager_attention_forward
    q, k, v = double(3, 4, 6, 8), double(3, 2, 10, 8), double(3, 2, 10, 8)
    if family == "t5":
        k, v = double(3, 4, 10, 8), double(3, 4, 10, 8)
    seen = torch.ones(3, 1, 6, 10, dtype=torch.bool)
    passed = None
    if mask != "none":
        passed = key_mask.mask(3, 6, 10, 4, 0, None, padding_mask("left"))
        seen = passed & True
    if mask == "bool":
        passed = seen
    added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float32).min)
    if mask == "float":
        passed = added
    module = SimpleNamespace(is_causal=False, num_key_value_groups=4 // k.shape[1], training=False, **of_module)
    out, weights = eager(module, q, k, v, added, scaling=0.3, dropout=0.0, **given)
    for wanted in (False, True):
        mine, mine_weights = attention_registry.attention(
            module, q, k, v, passed, scaling=0.3, **given, output_attentions=wanted
        )
        torch.testing.assert_close(mine, out, rtol=0, atol=1e-6)
        assert (mine_weights is not None) == wanted
        if wanted and extra != "sinks by sigmoid":  # granite's eager returns the weights that it does not use
            torch.testing.assert_close(mine_weights, weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("extra", [extra for extra in extras() if extra != "none"])
def test_extras_do_not_reach_the_kernels(seed, extra):
    _, given, _ = extras()[extra]
    q, k, v = double(3, 4, 6, 8), double(3, 2, 10, 8), double(3, 2, 10, 8)
    module = SimpleNamespace(is_causal=False, num_key_value_groups=2)
    expected, _ = attention_registry.attention(module, q, k, v, None, **given)
    given = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    with interpret():
        found, _ = attention_registry.attention(module, q.float(), k.float(), v.float(), None, **given)
    torch.testing.assert_close(found, expected.float())


@pytest.mark.parametrize("interpreted", [True, False], ids=["kernels", "fallback"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_window_without_a_mask_is_not_forgotten(seed, causal, interpreted):
    """Models hand their window on as flash-attn needs it, also where they hand no mask on."""
    q, k, v = [x.detach() for x in qkv()]
    i, j = torch.arange(6)[:, None] + 4, torch.arange(10)
    seen = (j <= i) & (i - j < 3) if causal else (i - j).abs() < 3
    expected, expected_weights = plain_attention(q, k, v, seen)
    module = SimpleNamespace(is_causal=causal, num_key_value_groups=2)
    with interpret() if interpreted else contextlib.nullcontext():
        out, weights = attention_registry.attention(module, q, k, v, None, sliding_window=3, output_attentions=True)
        wide, _ = attention_registry.attention(module, q, k, v, None, sliding_window=10)
    torch.testing.assert_close(out.transpose(1, 2), expected)
    torch.testing.assert_close(weights, expected_weights)
    seen = (j <= i) if causal else torch.ones(6, 10, dtype=torch.bool)
    torch.testing.assert_close(wide.transpose(1, 2), plain_attention(q, k, v, seen)[0])


@pytest.mark.parametrize("padding", ["none", "right"])
def test_a_window_that_its_mask_does_not_need_hides_nothing(seed, padding):
    """T5Gemma's encoder: its masks show 9 keys on each side, and it hands on 9, which flash-attn takes for 8."""
    from transformers import masking_utils

    q, k, v = (torch.randn(3, 4, 10, 8) for _ in range(3))
    function = masking_utils.sliding_window_bidirectional_mask_function(9)
    kept = padding_mask(padding).bool()
    given = key_mask.mask(3, 10, 10, 0, 0, function, kept, allow_is_bidirectional_skip=True)
    module = SimpleNamespace(is_causal=False, num_key_value_groups=1)
    out, _ = attention_registry.attention(module, q, k, v, given, sliding_window=9)
    torch.testing.assert_close(out.transpose(1, 2), plain_attention(q, k, v, kept[:, None, None])[0])


@pytest.mark.parametrize("interpreted", [True, False], ids=["kernels", "fallback"])
@pytest.mark.parametrize("mask", ["none", "padding", "float"])
def test_packed_documents_do_not_see_each_other(seed, mask, interpreted):
    q, k, v = [x.detach()[:1] for x in qkv(T_q=10)]
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    seen = (ids[:, None] == ids) & torch.ones(10, 10).tril().bool()
    passed = None
    if mask != "none":
        seen = seen & (torch.arange(10) > 0)
        passed = key_mask.mask(1, 10, 10, 0, 0, None, padding_mask("left")[2:].index_fill(1, torch.tensor(0), 0))
        passed = passed if mask == "padding" else torch.zeros(1, 1, 10, 10).masked_fill(~passed, -1e30)
    ends = torch.tensor([0, 3, 7, 10], dtype=torch.int32)
    with interpret() if interpreted else contextlib.nullcontext():
        out, _ = attention_registry.attention(
            SimpleNamespace(is_causal=True, num_key_value_groups=2), q, k, v, passed, cu_seq_lens_q=ends,
            cu_seq_lens_k=ends, max_length_q=4, max_length_k=4,
        )  # fmt: skip
    rows = slice(1 if mask == "float" else 0, None)  # the first row sees nothing: 0, or the mean of all
    torch.testing.assert_close(out.transpose(1, 2)[:, :, rows], plain_attention(q, k, v, seen)[0][:, :, rows])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"indices": torch.zeros(3, 6, 2)}, 'attn_implementation="fastgpt" has no indices; use "eager"'),
        ({"block_indices": torch.zeros(3, 2, 6, 2)}, 'has no block_indices; use "eager"'),
        ({"head_mask": torch.ones(4)}, 'has no head_mask; use "eager"'),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 6])}, "cu_seq_lens_q names documents end to end in one row.*got 3 rows"),
    ],
)
def test_what_would_be_ignored_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        attention_registry.attention(SimpleNamespace(is_causal=True), *qkv(), None, **given)


def test_keys_shared_by_a_batch_go_to_torch(seed):
    """As models with learned queries have it."""
    q, k, v = double(1, 4, 6, 8), double(3, 4, 10, 8), double(3, 4, 10, 8)
    with interpret():
        out, _ = attention_registry.attention(SimpleNamespace(is_causal=False), q.float(), k.float(), v.float(), None)
    torch.testing.assert_close(out.double(), plain_attention(q, k, v)[0].transpose(1, 2), rtol=1e-5, atol=1e-5)


# ---- whole models --------------------------------------------------------------------------------------------------

CAUSAL = ["gpt2", "llama", "mistral", "gemma2", "gpt_oss"]


@pytest.fixture(scope="module")
def pairs():
    made = {}

    def pair(kind):
        if kind not in made:
            made[kind] = hf_pair(kind)
        return made[kind]

    return pair


def tokens(rows=3, T=10):
    return torch.randint(3, 64, (rows, T), generator=torch.Generator().manual_seed(3))


def assert_same_attention(ours, eager, pick, kernels=False):
    """Through torch, or the kernels too. A key seen or not moves these outputs by 0.01 to 1, rounding by 1e-6."""
    with torch.no_grad():
        theirs = pick(eager)
        for interpreted in (False, True)[: 1 + kernels]:
            with interpret() if interpreted else contextlib.nullcontext():
                mine = pick(ours)
            assert len(mine) == len(theirs)
            for a, b in zip(mine, theirs):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", ["exact", "whole"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_chunked_prompts(pairs, kind, width):
    """With the padding mask of the chunk, or the whole batch's from the start: longer than the keys seen so far."""
    from transformers import DynamicCache

    eager, ours = pairs(kind)
    idx, kept = tokens(), padding_mask("left")
    seen = kept.bool()

    def pick(model):
        cache = DynamicCache(config=model.config)
        calls = []
        for start, end in ((0, 4), (4, 9), (9, 10)):
            mask = kept if width == "whole" else kept[:, :end]
            calls.append(model(idx[:, start:end], attention_mask=mask, past_key_values=cache, output_attentions=True))
        weights = [w.transpose(1, 2)[seen[:, 4:9]] for w in calls[1].attentions]
        assert len(weights) == 2
        return [torch.cat([call.logits for call in calls], 1)[seen], *weights]

    assert_same_attention(ours, eager, pick, kernels=(kind, width) == ("llama", "whole"))


@pytest.mark.parametrize("kind", CAUSAL)
def test_static_caches(pairs, kind):
    """Whose keys are as many as they may ever be, and the mask as long as what was seen."""
    from transformers import StaticCache

    eager, ours = pairs(kind)
    idx, kept = tokens(), padding_mask("left")
    seen = kept.bool()

    def pick(model):
        cache = StaticCache(config=model.config, max_cache_len=14)
        logits = [
            model(idx[:, start:end], attention_mask=kept[:, :end], past_key_values=cache).logits
            for start, end in ((0, 4), (4, 9), (9, 10))
        ]
        return [torch.cat(logits, 1)[seen]]

    assert_same_attention(ours, eager, pick)


@pytest.mark.parametrize("padding", ["none", "both", "hole"])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "mistral", "gemma2"])
def test_attention_weights_are_transformers(pairs, kind, padding):
    eager, ours = pairs(kind)
    idx, kept = tokens(), padding_mask(padding)
    seen = kept.bool()

    def pick(model):
        output = model(idx, attention_mask=kept, output_attentions=True)
        assert len(output.attentions) == 2
        assert all(w.dtype == model.dtype for w in output.attentions)
        return [output[0][seen], *(w.transpose(1, 2)[seen] for w in output.attentions)]

    assert_same_attention(ours, eager, pick, kernels=(kind, padding) in (("bert", "both"), ("mistral", "none")))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoders_with_decoders(pairs, kind):
    """Position bias, cross attention, a decoder whose prompt has another length than the encoder's."""
    eager, ours = pairs(kind)
    idx, kept = tokens(), padding_mask("right")

    def pick(model):
        output = model(idx, attention_mask=kept, decoder_input_ids=idx[:, :6], output_attentions=True)
        weights = [*output.decoder_attentions, *output.cross_attentions]
        weights += [w.transpose(1, 2)[kept.bool()] for w in output.encoder_attentions]
        assert len(weights) == 6
        return [output.logits, *weights]

    assert_same_attention(ours, eager, pick)


def test_a_causal_model_made_bidirectional(seed):
    eager, ours = hf_pair("llama")
    for model in (eager, ours):
        model.config.is_causal = False
        for layer in model.model.layers:
            layer.self_attn.is_causal = False
    idx = tokens()
    kept = padding_mask("left")
    assert_same_attention(ours, eager, lambda model: [model(idx).logits])
    assert_same_attention(ours, eager, lambda model: [model(idx, attention_mask=kept).logits[kept.bool()]])
