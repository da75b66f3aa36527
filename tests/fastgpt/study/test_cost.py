"""The cost study: exponents of known growth, bytes beside the memory counter, limits beside brute force, a clock."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.study.cost import CostConfig, exponents, memory_cost, memory_limits, step_times, timing
from fastgpt.study.cost.config import Point
from fastgpt.study.cost.growth import joint
from fastgpt.study.cost.limits import largest
from fastgpt.tools import memory

pytest.importorskip("triton")
SMALL = CostConfig(
    layers=(1, 2, 3), seq_lens=(32, 64), widths=(16, 32), base=(2, 32, 16), heads=2, batch_size=3, vocab_size=101,
    dtype="float32", gpu="0.0015", margin=0.0,
)  # fmt: skip


def test_the_grid_is_three_lines_through_the_base():
    assert SMALL.axes == ["layers", "seq_len", "width"]
    assert SMALL.points() == [(1, 32, 16), (2, 32, 16), (3, 32, 16), (2, 64, 16), (2, 32, 32)]
    assert dataclasses.replace(SMALL, seq_lens=(64,)).axes == ["layers", "width"]
    model = SMALL.model(Point(3, 64, 32), IMPLEMENTATION_SETS["torch"])
    assert (model.n_layers, model.max_len, model.d_model, model.attn_impl) == (3, 64, 32, "sdpa")


def test_known_growth_is_found_over_each_axis_and_over_all():
    def bytes_at(point):
        return 3.0 * point.layers * point.seq_len**2 * math.sqrt(point.width)

    config = CostConfig()
    rows = [{"implementation": "torch", **p._asdict(), "peak": bytes_at(p)} for p in config.points()]
    found = {fit["over"]: fit for fit in exponents(config, rows, ["peak"])}
    assert {axis: fit["exponent"] for axis, fit in found.items()} == pytest.approx(
        {"layers": 1, "seq_len": 2, "width": 0.5}
    )
    assert [fit["points"] for fit in found.values()] == [4, 5, 4]
    assert found["layers"]["factor"] == pytest.approx(3.0 * 1024**2 * math.sqrt(512))
    assert all(low <= fit["exponent"] <= high for fit in found.values() for low, high in [fit["interval"]])
    (whole,) = joint(config, rows, ["peak"])
    assert whole["exponents"] == pytest.approx({"layers": 1, "seq_len": 2, "width": 0.5})
    assert (whole["factor"], whole["r2"], whole["points"]) == pytest.approx((3.0, 1.0, 11))


def test_two_points_have_no_interval_and_one_no_exponent():
    rows = [{"implementation": "torch", **p._asdict(), "peak": float(p.layers)} for p in SMALL.points()]
    rows = [row for row in rows if row["layers"] > 1]  # as where the smallest is left out
    found = {fit["over"]: fit for fit in exponents(SMALL, rows, ["peak"])}
    assert found["layers"]["interval"] is None
    assert found["layers"]["exponent"] == pytest.approx(1.0)
    rows = [row for row in rows if row["seq_len"] == 32]
    assert [fit["over"] for fit in exponents(SMALL, rows, ["peak"])] == ["layers", "width"]
    assert joint(SMALL, rows, ["peak"]) == []


def test_bytes_are_those_of_the_memory_counter():
    rows = memory_cost(SMALL)
    assert [row["implementation"] for row in rows[::5]] == list(IMPLEMENTATION_SETS)
    row = rows[8]
    assert (row["implementation"], row["layers"], row["seq_len"], row["width"]) == ("torch", 2, 64, 16)
    model = SMALL.model(Point(2, 64, 16), IMPLEMENTATION_SETS["torch"])
    step = memory.training_step(model, 3, 64, autocast=False)
    assert row["peak"] == step.peak
    assert row["working"] == step.activations + step.transient
    assert row["weights"] == 4 * step.parameters  # weights, gradients, two moments
    kept = [memory.kept_activations(model, batch, 64) for batch in (3, 6)]
    assert row["activations"] == kept[1] - kept[0]


def test_activations_leave_out_what_does_not_grow_with_the_batch():
    """Under autocast blocks keep copies of their weights in bfloat16: of a batch twice as large, as many."""
    config = dataclasses.replace(SMALL, dtype="bfloat16", layers=(1, 2), widths=(16, 64))
    once, twice = (memory_cost(dataclasses.replace(config, batch_size=n)) for n in (4, 8))
    assert [2 * row["activations"] for row in once] == [row["activations"] for row in twice]
    single = memory_cost(dataclasses.replace(config, dtype="float32"))
    pairs = [(a["activations"], b["activations"]) for a, b in zip(once, single) if a["implementation"] != "reference"]
    assert all(a < 0.85 * b for a, b in pairs)  # plain attention keeps its T x T weights in float32


def test_what_must_hold_on_paper():
    """The papers' O(L·T·D) of activations, but for plain attention, which keeps T x T weights for every head."""
    config = CostConfig(layers=(8, 16), seq_lens=(2048, 4096, 8192), widths=(32, 64), base=(2, 2048, 32), heads=8,
                        batch_size=1, vocab_size=101)  # fmt: skip
    fits = {
        (fit["implementation"], fit["over"]): fit["exponent"]
        for fit in exponents(config, memory_cost(config), ["activations"])
    }
    assert 1.95 < fits["reference", "seq_len"] < 2.0
    assert fits["torch", "seq_len"] == pytest.approx(1.0, abs=0.01)
    assert fits["fastgpt", "seq_len"] == pytest.approx(1.0, abs=0.01)
    assert all(0.9 < fits[name, "layers"] < 1.01 for name in IMPLEMENTATION_SETS)
    assert 0.8 < fits["fastgpt", "width"] < 1.0
    assert fits["reference", "width"] < 0.1  # T x T does not know of D


@pytest.mark.parametrize(
    "peak",
    [lambda n: 7 * n + 5, lambda n: n * n + 3, lambda n: n // 4 * 100, lambda n: max(50, 3 * n),
     lambda n: 2 * n if n < 30 else math.inf],
)  # fmt: skip
@pytest.mark.parametrize("start", [1, 5, 64])
def test_the_largest_that_fits_is_that_of_brute_force(peak, start):
    for room in (0, 4, 49, 50, 100, 333, 1000):
        expected = max((n for n in range(1, 65) if peak(n) <= room), default=0)
        assert largest(peak, room, start, 64) == expected


def test_limits_are_counted_on_both_sides():
    config = dataclasses.replace(SMALL, vocab_size=31)
    room = int(0.0015 * 2**30)
    limits = memory_limits(config)
    assert [limit["over"] for limit in limits[:3]] == ["layers", "seq_len", "batch_size"]
    assert len(limits) == 9
    for limit in limits:
        parts = IMPLEMENTATION_SETS[limit["implementation"]]
        if limit["over"] == "batch_size":
            model = config.model(config.base_point, parts)
            assert limit["largest"] == memory.largest_batch(model, 32, room, autocast=False)
        elif limit["is_bound"]:
            sizes = []
            for value in (limit["largest"], limit["largest"] + 1):
                point = config.base_point._replace(**{limit["over"]: value})
                sizes.append(memory.training_step(config.model(point, parts), 3, point.seq_len, autocast=False).peak)
            assert sizes[0] == limit["peak"] <= room < sizes[1]


def test_the_margin_stays_free():
    from fastgpt.study.cost.counting import Paper

    config = dataclasses.replace(SMALL, gpu="h100", margin=1.5, dtype="auto")
    paper = Paper.of(config)
    assert paper.room(config) == paper.gpu.memory - 3 * 2**29
    assert paper.options == {"autocast": True, "arch": "sm_90"}
    assert Paper.of(dataclasses.replace(config, gpu="t4")).options == {"autocast": False, "arch": "sm_75"}


def test_nothing_fits_a_gpu_that_is_too_small():
    found = memory_limits(dataclasses.replace(SMALL, gpu="0.0001"))
    assert {(limit["largest"], limit["peak"], limit["is_bound"]) for limit in found} == {(0, None, True)}


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"gpu": "v100-16gb", "margin": 1.0}, "sm_70"), ({"widths": (16, 1024)}, "give more heads")],
)
def test_kernels_that_cannot_run_are_left_out(changes, why):
    from fastgpt.study.cost.counting import Paper, left_out

    config = dataclasses.replace(SMALL, layers=(1,), seq_lens=(32,), **{"widths": (16, 32), **changes})
    assert why in left_out(config, Paper.of(config))["fastgpt"]
    assert {row["implementation"] for row in memory_cost(config)} == {"torch", "reference"}


@pytest.mark.parametrize(
    ("changes", "name", "need"),
    [
        ({"layers": (0, 1)}, "layers", "at least 1"),
        ({"layers": ()}, "layers", "is empty"),
        ({"widths": (16, 16)}, "widths", "twice"),
        ({"base": (2, 32)}, "base", "three numbers"),
        ({"heads": 3}, "heads", "must divide each width, 16 too; choose from 1, 2, 4, 8, 16"),
        ({"batch_size": 0}, "batch_size", "at least 1"),
        ({"vocab_size": 0}, "vocab_size", "at least 1"),
        ({"dtype": "float64"}, "dtype", "one of"),
        ({"margin": -1.0}, "margin", "at least 0"),
        ({"layers": (2,), "seq_lens": (32,), "widths": (16,)}, "layers", "no growth to fit"),
    ],
)
def test_grids_that_cannot_be(changes, name, need):
    with pytest.raises(SettingError, match=need) as caught:
        dataclasses.replace(SMALL, **changes)
    assert caught.value.name == name


def test_mistakes_that_counting_finds():
    for changes, name in (({"gpu": "h2000"}, "gpu"), ({"margin": 1.0}, "margin"), ({"layers": (1, 1001)}, "layers")):
        with pytest.raises(SettingError) as caught:
            memory_cost(dataclasses.replace(SMALL, **changes))
        assert caught.value.name == name
    with pytest.raises(SettingTypeError, match="tuple of integers"):
        CostConfig(layers=3)
    with pytest.raises(SettingError) as caught:
        memory_cost(dataclasses.replace(SMALL, layers=(1,), seq_lens=(32,), widths=(16, 2**31 - 2)))
    assert (caught.value.name, caught.value.value) == ("widths", 2**31 - 2)


# ---- time ------------------------------------------------------------------------------------------------------------


class Clock:
    """Steps of known length: a microsecond an operation for torch, two for the reference; nothing is computed."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing, "_steps", self.steps)
        monkeypatch.setattr(timing.memory, "training_step", lambda *_, **__: memory.StepMemory(600, 0, 0, 0, 0))
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        self.calls = []

    def steps(self, turn, batch, device, dtype):
        self.calls.append((turn.name, turn.point))
        a_step = turn.flops * (2e-6 if turn.name == "reference" else 1e-6)
        turn.seconds += [a_step, 1.5 * a_step, 0.5 * a_step]
        self.now += 4 * a_step


def test_all_points_take_turns_and_medians_are_kept(monkeypatch):
    clock = Clock(monkeypatch)
    times = step_times(SMALL, "cpu", limit=1e9)
    assert (times.device, times.dtype, times.left_out) == ("cpu", "float32", [])
    assert len(times.rows) == 10
    turns = clock.calls[1:]  # behind a first step that is not counted
    assert turns[:10] == turns[10:20] == turns[20:]
    for row in times.rows:
        point = Point(row["layers"], row["seq_len"], row["width"])
        model = memory_model(point)
        a_step = (
            model.flops_per_token(point.seq_len) * point.seq_len * (2e-6 if row["implementation"][0] == "r" else 1e-6)
        )
        assert (row["low"], row["seconds"], row["high"]) == pytest.approx((0.5 * a_step, a_step, 1.5 * a_step))
        assert row["measured_peak"] is None
    fits = exponents(SMALL, times.rows, ["seconds", "measured_peak"])
    assert {fit["quantity"] for fit in fits} == {"seconds"}


def memory_model(point):
    from fastgpt import GPT

    return GPT(SMALL.model(point, IMPLEMENTATION_SETS["reference"]))


def test_what_would_take_longer_than_the_limit_is_left_out(monkeypatch):
    Clock(monkeypatch)
    everything = step_times(SMALL, "cpu", limit=1e9)
    total = sum(4 * 3 * row["seconds"] for row in everything.rows)
    times = step_times(SMALL, "cpu", limit=total / 2)
    assert 0 < len(times.rows) < 10
    assert len(times.rows) + len(times.left_out) == 10
    assert {row["why"] for row in times.left_out} == {"would take longer than the time limit"}
    assert sum(4 * 3 * row["seconds"] for row in times.rows) <= total / 2
    slowest = max(row["seconds"] for row in times.rows if row["implementation"] == "torch")
    assert slowest < max(row["seconds"] for row in everything.rows if row["implementation"] == "torch")


def test_what_the_memory_does_not_hold_is_left_out(monkeypatch):
    clock = Clock(monkeypatch)
    steps = clock.steps

    def full(turn, *more):
        if turn.name == "reference" and turn.point.seq_len == 64:
            raise torch.OutOfMemoryError
        steps(turn, *more)

    monkeypatch.setattr(timing, "_steps", full)
    times = step_times(SMALL, "cpu", limit=1e9)
    (row,) = times.left_out
    assert (row["implementation"], row["seq_len"], row["why"]) == ("reference", 64, "out of memory on cpu")
    assert len(times.rows) == 9
    monkeypatch.setattr(timing.memory, "training_step", lambda *_, **__: memory.StepMemory(2**60, 0, 0, 0, 0))
    times = step_times(SMALL, "cpu", limit=1e9)
    assert times.rows == []
    assert {row["why"] for row in times.left_out} == {"does not fit this machine's memory"}


def test_real_steps_take_time():
    config = dataclasses.replace(SMALL, layers=(1, 2), seq_lens=(32,), widths=(16,))
    times = step_times(config, "cpu", limit=600)
    assert len(times.rows) == 4
    assert all(0 < row["low"] <= row["seconds"] <= row["high"] for row in times.rows)
    with pytest.raises(SettingError, match="above 0"):
        step_times(config, "cpu", limit=0)
