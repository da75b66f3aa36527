"""sample, eval, inspect, plan, bench and verify: every option has its effect, and what is printed is what was found."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import time
from types import SimpleNamespace

import pytest
import torch

from fastgpt import GPT, GPTConfig, cli
from fastgpt.data import ShardError, prepare, shakespeare_tokens
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.study import attention_maps, explorer
from fastgpt.tools.gpus import find_gpu
from fastgpt.tools.memory import StepMemory
from fastgpt.train.devices import resolve_device
from fastgpt.train.evaluation import evaluate

pytest.importorskip("tyro")
from fastgpt.commands import _inputs, _read, bench, train
from fastgpt.commands._options import UsageError

pytestmark = pytest.mark.needs("tyro", "tiktoken", "rich")

CPU = ("--device", "cpu")
PROMPT = " To be,\nor not to be, that is the question: whether 'tis nobler in the mind "  # more than max_len tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model far from its initial weights, whose likeliest tokens depend on what they follow."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=4160, max_len=16, n_layers=2, n_heads=2, d_model=16))  # V is padded
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.5)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    Tokenizer.named("shakespeare").save(path)
    return str(path)


@pytest.fixture(scope="module")
def model(folder):
    return GPT.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.named("shakespeare")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert cli.main([*argv, *CPU] if argv[0] != "plan" else list(argv)) == 0
    return capsys.readouterr().out


# ---- sample --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 1.7, "seed": 5},
        {"temperature": 1.0, "top_k": 2, "seed": 5},
        {"temperature": 2.0, "top_p": 0.3, "seed": 6},
        {"temperature": 0.8, "seed": 7},
    ],
)
def test_sample_is_generate_with_the_same_settings(folder, model, tokenizer, capsys, settings):
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    found = said(capsys, "sample", folder, PROMPT, "--max-new-tokens", "12", *words)
    ids = tokenizer.encode(PROMPT)
    assert len(ids) > 16
    out = model.generate(torch.tensor([ids[-16:]]), 12, **settings)[0, 16:].tolist()
    new = tokenizer.decode([token for token in out if token < tokenizer.end_of_text])
    assert found == f"{PROMPT}{new}\n"


def test_sample_draws_anew_without_a_seed_and_at_temperature_0_8(folder, capsys):
    asked = (folder, "To be", "--max-new-tokens", "12")
    assert said(capsys, "sample", *asked) != said(capsys, "sample", *asked)
    assert said(capsys, "sample", *asked, "--seed", "3") == said(
        capsys, "sample", *asked, "--seed", "3", "--temperature", "0.8"
    )


def test_sample_stops_at_the_end_unless_told_to_go_on(folder, tokenizer, capsys, monkeypatch):
    padding = 4100  # of the vocabulary: no token of this tokenizer
    tokens = [*tokenizer.encode("on"), padding, tokenizer.end_of_text, *tokenizer.encode("and on")]
    given = []

    def stream(self, idx, n, eos=None, **settings):
        given.append((idx.tolist(), n, eos))
        for token in tokens:
            yield torch.tensor([token])
            if token == eos:
                return

    monkeypatch.setattr(GPT, "stream", stream)
    assert said(capsys, "sample", folder, "go ") == "go on\n"
    assert said(capsys, "sample", folder, "go ", "--no-stop-at-end", "--max-new-tokens", "9") == "go onand on\n"
    assert given == [([tokenizer.encode("go ")], 200, tokenizer.end_of_text), ([tokenizer.encode("go ")], 9, None)]
    said(capsys, "sample", folder, "")
    assert given[-1][0] == [[tokenizer.end_of_text]], "an empty prompt starts a new document"


def test_a_prompt_from_stdin_keeps_its_white_space(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n go \n"))
    assert said(capsys, "sample", folder, "-", "--max-new-tokens", "0") == "\n go \n\n"


# ---- eval ----------------------------------------------------------------------------------------------------------


def test_eval_is_evaluate_of_the_validation_split(folder, model, tokenizer, capsys):
    options = {"max_batches": 3, "batch_size": 2, "seq_len": 7}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    data = shakespeare_tokens("val", tokenizer)
    expected = evaluate(model, data, device=torch.device("cpu"), tokenizer=tokenizer, **options)
    found = json.loads(said(capsys, "eval", folder, *words, "--json"))
    assert found == {"data": data.name, **dataclasses.asdict(expected)}
    assert said(capsys, "eval", folder, *words).splitlines() == [
        f"{data.name}: {expected.tokens} of {len(data) - 1:,} tokens scored",
        f"loss           {expected.loss:.4f} nats/token",
        f"perplexity     {expected.perplexity:.2f}",
        f"bits per byte  {expected.bits_per_byte:.4f}",
    ]


def test_eval_in_bfloat16_is_asked_for_and_scores_windows_of_max_len(folder, capsys, monkeypatch):
    given = []
    found = SimpleNamespace(loss=1.0, perplexity=2.0, bits_per_byte=3.0, tokens=4)
    monkeypatch.setattr("fastgpt.train.evaluation.evaluate", lambda *args, **options: given.append(options) or found)
    said(capsys, "eval", folder, "--dtype", "bfloat16")
    said(capsys, "eval", folder)
    assert [options["dtype"] for options in given] == [torch.bfloat16, torch.float32]
    assert [options["seq_len"] for options in given] == [16, 16]
    assert given[0]["max_batches"] is None


def test_a_loss_that_is_none_is_exit_status_1_and_on_stderr(folder, capsys, monkeypatch):
    found = SimpleNamespace(loss=float("nan"), perplexity=0.0, bits_per_byte=None, tokens=4)
    monkeypatch.setattr("fastgpt.train.evaluation.evaluate", lambda *args, **options: found)
    assert cli.main(["eval", folder, *CPU]) == 1
    out, err = capsys.readouterr()
    assert (out, err.startswith("fastgpt eval: error: the loss")) == ("", True)


def test_shards_made_with_another_tokenizer_are_refused(here, tokenizer):
    """Their numbers would be other words."""
    (here / "a.txt").write_text("To be, or not to be. " * 9)
    prepare(here / "a.txt", here / "shards", tokenizer, progress=False)
    assert len(_inputs.open_data(["shards"], "val", tokenizer)) > 9
    with pytest.raises(ShardError, match=r"^--data shards: these shards were made with another tokenizer"):
        _inputs.open_data(["shards"], "val", SimpleNamespace(sha256="0" * 64))


# ---- inspect -------------------------------------------------------------------------------------------------------


def test_inspect_draws_the_layers_and_heads_asked_for_under_their_names(
    here, folder, model, tokenizer, capsys, monkeypatch
):
    drawn = []
    monkeypatch.setattr(attention_maps, "save_png", lambda maps, tokens, path, *how: drawn.append((maps, *how)))
    maps = model.attention_maps(torch.tensor([tokenizer.encode(" To be")]))
    labels = attention_maps.token_labels(tokenizer, tokenizer.encode(" To be"))
    for words, layers, heads, scale in (
        (("--layers", "1", "--heads", "-1"), [1], [1], "sqrt"),
        (("--layers", "-2", "--heads", "1", "0", "--scale", "log"), [0], [1, 0], "log"),
        ((), [0, 1], [0, 1], "sqrt"),
    ):
        said(capsys, "inspect", folder, " To be", "--out", "page", *words)
        wanted = {layer: maps[layer][:, heads] for layer in layers}
        ids = torch.tensor(tokenizer.encode(" To be"))
        page = explorer.explorer_page(wanted, labels, ids, f"Attention weights of {folder}", heads, scale=scale)
        shown, _, behind = (here / "page" / "attention.html").read_text().partition("<h2>Where this comes from</h2>")
        assert page.html().startswith(shown), words
        assert f"{folder}, {model.num_parameters():,} parameters" in behind
        torch.testing.assert_close(*({k: v.tolist() for k, v in m.items()} for m in (drawn[-1][0], wanted)))
        assert drawn[-1][1:] == (heads, scale)


def test_inspect_of_a_model_that_computes_nan_is_one_line_about_the_model(here, folder, capsys, monkeypatch):
    def broken(model, idx, layers, heads):
        return {0: torch.full((1, 2, idx.shape[1], idx.shape[1]), torch.nan)}

    monkeypatch.setattr("fastgpt.model.GPT.attention_maps", broken)
    assert cli.main(["inspect", folder, "To be", *CPU]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{folder}: its attention weights must hold finite numbers alone" in err
    assert not (here / "attention").exists()


def test_inspect_refuses_layers_and_heads_that_are_not_there(here, folder, capsys):
    for option, number in (("--layers", 2), ("--layers", -3), ("--heads", 2), ("--heads", -3)):
        assert cli.main(["inspect", folder, "To be", option, str(number), *CPU]) == 2
        out, err = capsys.readouterr()
        assert (out, f"{option} {number} must lie between -2 and 1: there is no" in err) == ("", True), err
    assert not (here / "attention").exists()


# ---- plan and bench ------------------------------------------------------------------------------------------------


def cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(row))
    return line.removeprefix(row).split()


def test_plan_prints_what_was_counted_for_what_was_asked(monkeypatch, capsys):
    """In MiB as text and in bytes as JSON; `--margin` is what the largest batch leaves of the GPU."""
    config, counted = GPTConfig(vocab_size=61, max_len=8, n_layers=1, n_heads=2, d_model=16), []
    step = StepMemory(*(n * 2**20 for n in (1000, 2000, 3, 700, 59)))

    def training_step(config, batch, seq_len, **options):
        counted.append((config.attn_impl, batch, seq_len, options))
        return step

    def largest_batch(config, seq_len, most_bytes, **options):
        counted.append((config.attn_impl, most_bytes, seq_len, options))
        return 1234

    monkeypatch.setattr("fastgpt.commands._inputs.read_config", lambda name: config)
    monkeypatch.setattr("fastgpt.tools.memory.training_step", training_step)
    monkeypatch.setattr("fastgpt.tools.memory.largest_batch", largest_batch)
    text = said(capsys, "plan", "m", "--batch-size", "70", "--gpu", "t4", "--margin", "0.5", "--remat", "full")
    t4 = {"autocast": False, "arch": "sm_75", "remat": "full"}  # a GPU without bfloat16
    room = find_gpu("t4", "test").memory - 2**29
    asked = [one for name in ("triton", "sdpa", "reference") for one in ((name, 70, 8, t4), (name, room, 8, t4))]
    assert counted == asked
    assert text.startswith("m: 70 x 8 tokens, float32, remat full; in MiB\n")
    rows = {"parameters": "1,000", "AdamW's state": "2,000", "gradients": "3", "activations": "700", "transient": "59"}
    for row, cell in (rows | {"peak, their sum": "3,762", "largest batch": "1,234"}).items():
        assert cells(text, row) == [cell] * 3, row
    for margin, fits in (("0.32", "yes"), ("0.33", "no")):  # of 4 GiB: 3762 MiB are 3.674
        asked = ("plan", "m", "--gpu", "4", "--margin", margin, "--seq-len", "5", "--dtype", "bfloat16")
        assert cells(said(capsys, *asked), "fits, with margin") == [fits] * 3
    assert counted[-1] == (
        "reference",
        2**32 - int(0.33 * 2**30),
        5,
        {"autocast": True, "arch": "sm_90", "remat": "none"},
    )
    found = json.loads(said(capsys, *asked, "--json"))
    assert found["implementations"]["torch"] == dataclasses.asdict(step) | {
        "peak": 3762 * 2**20, "fits": False, "largest_batch": 1234
    }  # fmt: skip


def test_bench_takes_medians_of_the_timed_steps(monkeypatch):
    """By a clock that says how long each step took; the first three, of 100 s, do not count."""
    seconds = iter([100.0] * bench.WARM_UP + [0.4, 0.1, 0.2, 0.3, 0.9])
    reading = []

    def say(text):  # before each step
        duration = next(seconds)
        reading[:] = [duration, 0.0]

    monkeypatch.setattr(time, "perf_counter", lambda: reading.pop() if len(reading) > 1 else reading[0])
    idle = SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none: None)
    monkeypatch.setattr(
        "fastgpt.train.optim.build_adamw", lambda model, lr: idle
    )  # torch's own takes seconds to import
    config = GPTConfig(vocab_size=61, max_len=8, n_layers=1, n_heads=2, d_model=16)
    one = bench._time_steps(config, 3, 6, 5, False, torch.device("cpu"), contextlib.nullcontext, say)
    assert one == {
        "median_seconds": 0.3, "iqr_seconds": pytest.approx(0.4 - 0.2), "tokens_per_second": 3 * 6 / 0.3,
        "flops_per_second": GPT(config).flops_per_token(6) * 3 * 6 / 0.3, "peak_bytes": None,
    }  # fmt: skip


def test_bench_prints_what_was_measured_for_what_was_asked(monkeypatch, capsys):
    config, given = GPTConfig(vocab_size=61, max_len=8, n_layers=1, n_heads=2, d_model=16), []
    record = {"median_seconds": 0.25, "iqr_seconds": 0.05, "tokens_per_second": 12345.6, "flops_per_second": 3.21e12}

    def time_steps(*args):
        given.append((args[0].attn_impl, *args[1:6]))
        return record | {"peak_bytes": 7 * 2**20}

    monkeypatch.setattr("fastgpt.commands._inputs.read_config", lambda name: config)
    monkeypatch.setattr(bench, "_time_steps", time_steps)
    text = said(capsys, "bench", "m", "--batch-size", "3", "--seq-len", "6", "--steps", "5", "--compile")
    assert "m: 3 x 6 tokens, float32 on cpu, 5 steps each" in text
    rows = {"median step, ms": "250.00", "spread (IQR)": "20.0%", "tokens/s": "12,346", "model TFLOP/s": "3.21"}
    for row, cell in (rows | {"peak memory, MiB": "7"}).items():
        assert cells(text, row) == [cell] * 2, row
    cpu = torch.device("cpu")
    assert given == [("sdpa", 3, 6, 5, True, cpu), ("reference", 3, 6, 5, True, cpu)]
    said(capsys, "bench", "m")
    assert given[-1] == ("reference", 8, 8, 20, False, cpu)
    monkeypatch.setattr(bench, "_time_steps", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    assert cli.main(["bench", "m", *CPU]) == 1
    assert cells(capsys.readouterr().out, "tokens/s") == ["out", "of", "memory"] * 2


# ---- all of them ---------------------------------------------------------------------------------------------------


class Stopped(ValueError):
    pass


@pytest.mark.parametrize("name", ["sample", "eval", "inspect", "bench", "verify"])
def test_the_device_asked_for_is_the_one_that_computes(here, folder, capsys, monkeypatch, name):
    """Its work is handed the device that `--device` names, "auto" without it."""
    used, asked = [], []
    meta = torch.device("meta")

    def resolve(name, **options):
        asked.append(name)
        return meta if name == "cuda" else resolve_device("cpu")

    def record(device):
        used.append(device)
        raise Stopped("enough")

    monkeypatch.setattr("fastgpt.train.devices.resolve_device", resolve)
    monkeypatch.setattr("fastgpt.interop.open_model", lambda path, *, device, **overrides: record(device))
    monkeypatch.setattr("fastgpt.tools.verify.verify", lambda device, *args: record(device))
    monkeypatch.setattr(GPT, "to", lambda self, device: record(device))
    argv = {"bench": [name, folder], "verify": [name]}.get(name, [name, folder, *(["To be"] * (name != "eval"))])
    for words in ((), ("--device", "cuda")):
        assert cli.main([*argv, *words]) == 2
        assert "enough" in capsys.readouterr().err
    assert asked == ["auto", "cuda"]
    assert used == [torch.device("cpu"), meta]


def test_verify_checks_the_kernels_asked_for_and_fails_where_one_is_off(capsys, monkeypatch):
    given = []
    report = SimpleNamespace(ok=False, record=lambda: {"ok": False})
    monkeypatch.setattr("fastgpt.tools.verify.verify", lambda device, only, say: given.append(only) or report)
    assert cli.main(["verify", "--only", "layer_norm", "gelu_ffn", "--json", *CPU]) == 1
    assert cli.main(["verify", *CPU]) == 1
    assert given == [("layer_norm", "gelu_ffn"), ()]
    report.ok = True
    assert cli.main(["verify", *CPU]) == 0
    assert capsys.readouterr().err == ""


def test_mistakes_are_on_stderr_with_exit_status_2(capsys):
    for argv in (
        ["nosuch"], ["sample"], ["plan", "--nosuch"], ["plan", "--batch-size", "x"], ["--nosuch"],
    ):  # fmt: skip
        assert cli.main(argv) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), argv


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_a_word_too_many_is_not_dropped(capsys, dashes):
    assert cli.main(["sample", *dashes, "m", "two", "words"]) == 2
    assert "unexpected words; a prompt of several words goes in quotes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "need"),
    [
        ("train.batch-size = 4\ntrain.batch_size = 8", "train.batch_size stands there twice"),
        ("train.steps = true", "train.steps = True must be an integer"),
        ("train.steps = 2.5", "train.steps = 2.5 must be an integer"),
        ("train.lr = true", "train.lr = True must be a number"),
        ('model.bias = "yes"', "model.bias = yes must be true or false"),
        ("model.bias = 1", "model.bias = 1 must be true or false"),
        ("train.name = 5", "train.name = 5 must be a text"),
    ],
)
def test_values_of_another_type_in_a_file_of_settings_are_refused(here, line, need):
    (here / "a.toml").write_text(line)
    with pytest.raises(UsageError, match=f"^--config a.toml: {need}"):
        _read.parse(train.Command, ["--config", "a.toml"], "fastgpt train")


def test_a_demo_that_is_off_is_exit_status_1(capsys, monkeypatch):
    result = SimpleNamespace(ok=False)
    monkeypatch.setattr("fastgpt.study.demo.run_demo", lambda config: result)
    assert cli.main(["demo"]) == 1
    result.ok = True
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().err == ""
