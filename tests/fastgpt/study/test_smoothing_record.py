"""What a look at over-smoothing keeps: the sequences, the measures by layer against float64, the file."""

from __future__ import annotations

import json
import math

import pytest
import torch

import fastgpt
from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.study import smoothing_record
from fastgpt.study.measures import attention_entropy, largest_entropy
from fastgpt.study.smoothing_layers import LayerSmoothing, average, residual_streams, smoothing_by_layer
from fastgpt.study.smoothing_record import record_of, row_of, windows
from fastgpt.study.study_folder import write_record

from .smoothing_models import expected_layers, small_model


def close(found, expected) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (None if value is None else pytest.approx(value, rel=2e-4, abs=2e-5)), key


def test_layers_of_a_model_are_those_of_float64(seed):
    model, idx = small_model().train(), torch.randint(31, (3, 9))
    called = []
    row = row_of("mine", model, idx, lambda: called.append(1), seed=5)
    assert model.training
    assert len(called) == 3
    assert (row["name"], row["seed"], row["n_layers"], row["d_model"]) == ("mine", 5, 3, 16)
    for found, expected in zip(row["layers"], expected_layers(model, idx), strict=True):
        close(found, expected)


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_any_implementation(seed, name):
    model, idx = small_model(), torch.randint(31, (2, 9))
    model.use_implementations(attn_impl={"reference": "reference", "torch": "sdpa"}[name])
    for found, expected in zip(row_of("mine", model, idx)["layers"], expected_layers(model, idx), strict=True):
        close(found, expected)


def test_sequences_are_spread_over_the_text_and_do_not_overlap():
    assert windows(range(100), 10, 4).tolist() == [list(range(n, n + 10)) for n in (0, 20, 50, 70)]
    assert windows(range(39), 10, 8).tolist() == [list(range(n, n + 10)) for n in (0, 10, 20)]
    assert windows(range(5), 10, 8).tolist() == [[0, 1, 2, 3, 4]]
    assert windows([3, 4], 2, 1).dtype == torch.int64


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (([], 8, 1), "has 0 tokens: tokens are compared in pairs"),
        (([7], 8, 1), "has 1 token: tokens are compared in pairs"),
        (([1, 2], 1, 1), "seq_len=1 must be an integer, at least 2"),
        (([1, 2], 2, 0), "sequences=0 must be an integer, at least 1"),
    ],
)
def test_what_is_no_text(args, match):
    with pytest.raises(SettingError, match=match):
        windows(*args)


def test_an_average_is_that_of_each_number():
    one = LayerSmoothing(1, 0.0, 1.0, 2.0, 3.0, [1.0, 2.0], [3.0, 4.0])
    two = LayerSmoothing(1, 1.0, 3.0, 5.0, 7.0, [3.0, 8.0], [5.0, 10.0])
    last = LayerSmoothing(2, 0.0, 0.0, 0.0, 0.0, None, None)
    assert average([[one, last], [two, last]]) == [
        LayerSmoothing(1, 0.5, 2.0, 3.5, 5.0, [2.0, 5.0], [4.0, 7.0]),
        last,
    ]


def test_the_largest_entropy_is_that_of_even_attention():
    for count in (1, 2, 17):
        even = torch.ones(count, count, dtype=torch.float64).tril()
        even /= even.sum(-1, keepdim=True)
        assert largest_entropy(count) == pytest.approx(float(attention_entropy(even[None, None])), abs=1e-12)
    with pytest.raises(SettingError, match="count=0 must be an integer, at least 1"):
        largest_entropy(0)


@pytest.mark.parametrize("function", [smoothing_by_layer, residual_streams])
def test_a_model_without_blocks(function):
    model = fastgpt.OneHeadLM(vocab_size=31, d_model=8, max_len=9)
    with pytest.raises(SettingTypeError, match="model='OneHeadLM' must be a GPT: a model without blocks"):
        function(model, torch.zeros(1, 4, dtype=torch.int64))


def test_the_file_is_json_whatever_the_numbers(tmp_path):
    row = {"name": "m", "layers": [{"cosine": math.nan, "energy": [1.0, math.inf]}]}
    record = record_of([row], "a text", 40, torch.zeros(2, 9))
    path = tmp_path / "a.json"
    write_record(path, record)
    found = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert found["rows"][0]["layers"][0] == {"cosine": None, "energy": [1.0, None]}
    assert found["text"] == {"name": "a text", "tokens": 40, "sequences": 2, "seq_len": 9}
    assert {"torch", "CPU"} <= dict(found["environment"]).keys()
    assert {"date", "command", "commit"} <= dict(found["made_by"]).keys()


def test_what_may_be_replaced(tmp_path):
    path = tmp_path / "a.json"
    record = record_of([], "a text", 40, torch.zeros(2, 9))
    for change, ours in (({}, True), ({"recipe": {}}, False), ({"study": "depth"}, False)):
        write_record(path, record | change)
        assert smoothing_record.is_ours(path) is ours
    for text in ("", "[1]", "{"):
        path.write_text(text)
        assert not smoothing_record.is_ours(path)
