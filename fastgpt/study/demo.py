"""The demo: train a small GPT on Shakespeare, sample from it, look into it, check the kernels, report.

result = run_demo(DemoConfig())
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.settings import SettingError
from ..data import TokenDataset, shakespeare_tokens
from ..data.tokenizer import Tokenizer
from ..kernels import support
from ..model.config import GPTConfig
from ..model.gpt import GPT
from ..nn.implementations import Implementations, implementations
from ..pages.charts import Chart, in_a_row, picture
from ..pages.figures import duration, thinned
from ..pages.page import Page
from ..tools import verify
from ..train import run_record
from ..train.metrics import read_metrics
from ..train.run_record import REPORT
from ..train.run_report import said
from ..train.trainer import TrainConfig, Trainer, TrainResult, Validation, resolve_device
from . import attention_maps, explorer
from .demo_config import DemoConfig
from .interrupted import Interrupted

MARGIN = 0.3  # nats per token below the unigram entropy that count as having learned to use context

EVAL_BATCHES = 16  # of the validations on the way

MIN_STEPS = 300  # fewer do not show what the model can learn, however slow the machine is


@dataclass(frozen=True)
class Setting:
    """Model and batch that suit a device. lr: peak learning rate."""

    n_layers: int
    n_heads: int
    d_model: int
    max_len: int
    dropout: float
    batch_size: int
    lr: float


SETTINGS = {
    "cpu": Setting(n_layers=4, n_heads=4, d_model=128, max_len=128, dropout=0.0, batch_size=8, lr=3e-3),
    "cuda": Setting(n_layers=6, n_heads=6, d_model=384, max_len=256, dropout=0.2, batch_size=64, lr=1e-3),
}


@dataclass(frozen=True)
class Attended:
    """What the model's heads attend to in its sample: weights by layer, its T tokens as text, and their ids (T,)."""

    maps: dict[int, torch.Tensor]
    tokens: list[str]
    ids: torch.Tensor


@dataclass(frozen=True)
class DemoResult:
    """Losses in nats per token; `unigram_entropy` is the validation text's: the best loss without any context."""

    before: Validation
    after: Validation
    unigram_entropy: float
    steps: int
    sample: str
    table: Implementations
    self_check: verify.Report | None
    seconds: float
    report: Path
    picture: Path

    @property
    def margin(self) -> float:
        """How far the loss is below the unigram entropy."""
        return self.unigram_entropy - self.after.loss

    @property
    def ok(self) -> bool:
        return self.margin >= MARGIN and (self.self_check is None or self.self_check.ok)


def run_demo(config: DemoConfig, say: Callable[[str], None] = print) -> DemoResult:
    """Run everything in a new folder; `say` receives what the demo tells on the way.

    Raises:
        SettingError, SettingTypeError: a setting that cannot be, a `runs_dir` that cannot be written to.
        Interrupted: SIGINT, or SIGTERM or SIGHUP while training.
    """
    began = time.perf_counter()
    config.check()
    device = resolve_device(config.device)
    with _new_folder(config) as folder:
        if folder.name != "demo":
            say(f"{folder.with_name('demo')} is there already and stays as it is; this demo writes {folder}\n")
        tokenizer = Tokenizer.named("shakespeare")
        train_data, val_data = (shakespeare_tokens(split, tokenizer) for split in ("train", "val"))
        trainer = make_trainer(config, folder.name, device, tokenizer, train_data, val_data)
        model = trainer.model
        say(
            f"A GPT with {model.num_parameters():,} parameters, {len(train_data):,} tokens of Shakespeare, "
            f"{trainer.config.steps} steps on {trainer.device}\n"
        )
        table = implementations(model)
        say(f"{table}\n")
        before = trainer.validate(whole=True)
        assert before is not None  # there is validation data
        say(f"validation loss before training  {before.loss:.4f} nats/token, on all {before.tokens:,} tokens")
        trained = trainer.fit()
        if trained.stopped_by is not None:
            raise Interrupted(
                f"stopped at step {trained.step} of {trainer.config.steps}: the model so far is in "
                f"{trained.checkpoint}, the report of its training in {folder / REPORT}; "
                f"fastgpt train --resume --name {folder.name}"
                f"{'' if config.runs_dir == DemoConfig.runs_dir else f' --runs-dir {config.runs_dir}'} goes on",
                trained.stopped_by,
            )
        assert trained.validation is not None  # nothing stopped the last one
        try:
            return _look_into(config, trainer, before, trained.validation, table, say, began)
        except KeyboardInterrupt:
            kept = f"the trained model is in {trained.checkpoint}, the report of its training in {folder / REPORT}"
            raise Interrupted(kept) from None


@contextlib.contextmanager
def _new_folder(config: DemoConfig) -> Iterator[Path]:
    """<runs_dir>/demo, or the first of demo-2, demo-3, ... that is not there: what is there may be anyone's work."""
    root = Path(config.runs_dir)
    missing = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = root / ("demo" if number == 1 else f"demo-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()  # by which it is this demo's, whoever else starts one now
                break
    except OSError as error:
        need = f"must be a folder that can be written to ({error.strerror}); name another"
        raise SettingError("DemoConfig", "runs_dir", config.runs_dir, need) from None
    try:
        yield folder
    except BaseException as error:
        nothing = not any(folder.iterdir())
        for path in (folder, *missing) if nothing else ():
            with contextlib.suppress(OSError):  # not empty: another demo's
                path.rmdir()
        if nothing and isinstance(error, KeyboardInterrupt):
            raise Interrupted("nothing was written") from None
        raise


def _look_into(
    config: DemoConfig,
    trainer: _Trainer,
    before: Validation,
    after: Validation,
    table: Implementations,
    say: Callable[[str], None],
    began: float,
) -> DemoResult:
    """What follows training and its last validation: sample, self-check, attention maps, report."""
    model, tokenizer, folder = trainer.model, trainer.tokenizer, trainer.config.folder
    entropy = trainer.val_data.unigram_entropy()
    say(f"unigram entropy of that text     {entropy:.4f} nats/token: the model is {_beside(after.loss, entropy)} it\n")
    sample = write_sample(model, tokenizer, config)
    say(f"{sample}\n")
    self_check = None
    if support.has_triton():
        say("checking the kernels ...")
        self_check = verify.verify(trainer.device)
        say(f"{self_check.brief}\n")
    else:
        say("triton is not installed, so there are no kernels to check\n")
    ids = tokenizer.encode(sample)[:48]
    maps = model.attention_maps(torch.tensor([ids], device=trainer.device))
    tokens = attention_maps.token_labels(tokenizer, ids)
    result = DemoResult(
        before, after, entropy, trainer.step, sample, table, self_check, time.perf_counter() - began,
        folder / REPORT, folder / "demo.svg",
    )  # fmt: skip
    curve = loss_curve(result, read_metrics(folder / "metrics.jsonl"))
    draw_picture(result, curve, maps, say)
    make_report(result, trainer, curve, Attended(maps, tokens, torch.tensor(ids))).save(result.report)
    kernels = "kernels not checked" if self_check is None else self_check.verdict
    learned = f"{before.loss:.2f} → {after.loss:.2f} nats/token, {_beside(after.loss, entropy)} the unigram entropy"
    say(f"{learned}; {kernels}; {result.seconds:.0f} s")
    say(f"{result.report} and {result.picture}")
    return result


def _beside(loss: float, entropy: float) -> str:
    return f"{abs(entropy - loss):.4f} nats {'below' if loss < entropy else 'ABOVE'}"


class _Trainer(Trainer):
    """Its last validation, the one that counts, is over the whole text; those on the way are over a part.

    Of a signal, `Interrupted` tells, once.
    """

    model: GPT
    val_data: TokenDataset
    tokenizer: Tokenizer

    def fit(self, **options: Any) -> TrainResult:
        def is_running(record: logging.LogRecord) -> bool:
            return self._signals.stopped_by is None

        log = logging.getLogger("fastgpt")
        log.addFilter(is_running)
        try:
            return super().fit(**options)
        finally:
            log.removeFilter(is_running)

    def validate(self, *, whole: bool = False, interruptible: bool = False) -> Validation | None:
        return super().validate(whole=whole or self.step == self.config.steps, interruptible=interruptible)


def make_trainer(
    config: DemoConfig,
    name: str,
    device: torch.device,
    tokenizer: Tokenizer,
    train_data: TokenDataset,
    val_data: TokenDataset,
) -> _Trainer:
    """The run, with as many steps as fit into `config.seconds`: a few steps of a throw-away copy are timed first."""
    setting = SETTINGS[device.type]

    def make(steps: int) -> _Trainer:
        torch.manual_seed(config.seed)
        shape = (setting.max_len, setting.n_layers, setting.n_heads, setting.d_model)
        model = GPT(GPTConfig(tokenizer.vocab_size, *shape, dropout=setting.dropout))
        train = TrainConfig(
            name=name, runs_dir=config.runs_dir, steps=steps, batch_size=setting.batch_size, lr=setting.lr,
            eval_every=max(1, steps // 5), eval_batches=EVAL_BATCHES, save_every=0, keep=1, seed=config.seed,
            device=str(device), tensorboard=False,
        )  # fmt: skip
        # What `fastgpt train --resume` needs to go on with it.
        options = {k: v for k, v in model.config.to_dict().items() if k != "layer_norm_eps"}
        settings = {"tokenizer": tokenizer.name, "model": options, "train": dataclasses.asdict(train)}
        return _Trainer(model, train_data, train, val_data=val_data, tokenizer=tokenizer, settings=settings)

    if config.steps is not None:
        return make(config.steps)
    probe, times = make(config.max_steps), []
    for _ in range(6):
        start = time.perf_counter()
        probe.train_step()
        times.append(time.perf_counter() - start)
    typical = sorted(times)[len(times) // 2]  # the first steps warm up
    return make(int(min(config.max_steps, max(MIN_STEPS, config.seconds / typical))))  # the quotient may be infinite


def write_sample(model: GPT, tokenizer: Tokenizer, config: DemoConfig) -> str:
    """The prompt and its continuation."""
    device = next(model.parameters()).device
    idx = torch.tensor([tokenizer.encode(config.prompt)], device=device)
    out = model.generate(idx, config.sample_tokens, temperature=0.8, top_k=50, seed=config.seed)
    return tokenizer.decode(out[0].tolist())


def draw_picture(result: DemoResult, curve: Chart, maps: dict[int, torch.Tensor], say: Callable[[str], None]) -> None:
    """The loss and, where matplotlib is installed, some attention heads, as one SVG."""
    parts = [curve.svg(standalone=True)]
    try:
        parts.append(
            picture(attention_maps.png(maps, "what each head attends to", columns=4, most=8, points=13), 520, 320)
        )
    except ImportError as error:
        say(f"no attention maps in the picture: {error}")
    title = f"Shakespeare: {result.before.loss:.2f} → {result.after.loss:.2f} nats per token"
    result.picture.write_text(in_a_row(parts, title), encoding="utf-8")


def loss_curve(result: DemoResult, lines: list[dict[str, Any]]) -> Chart:
    """Training and validation loss beside the unigram entropy."""
    curves = {
        "training": thinned([(line["step"], line["loss"]) for line in lines]),
        "validation": validation_points(result, lines),
    }
    levels = {"unigram entropy": result.unigram_entropy}
    return Chart(curves, "Loss", "step", "loss, nats per token", levels, bold=("validation",))


def make_report(result: DemoResult, trainer: _Trainer, curve: Chart, attended: Attended) -> Page:
    """Loss curve, sample, attention maps, implementations, self-check, where it comes from: one page."""
    report = Page("fastgpt demo: a small GPT on Shakespeare", generator="fastgpt demo")
    report.table(
        ("", "nats per token", "perplexity", "bits per byte"),
        [
            ("validation loss before training", *_figures(result.before)),
            (f"validation loss after {result.steps} steps", *_figures(result.after)),
            ("unigram entropy of the validation text", _figure(result.unigram_entropy, ".4f"), None, None),
            ("margin below the unigram entropy", _figure(result.margin, ".4f"), None, None),
        ],
    )
    report.paragraph(
        f"Trained and measured on {_where(trainer.device)}, in nats per token of the model's own tokenizer. Validation "
        f"before and after: all {result.after.tokens:,} tokens of the validation text, each scored once; on the way: "
        f"{EVAL_BATCHES} batches of them. Training loss: each step's own batch."
    )
    report.heading("Loss")
    report.chart(curve, "The unigram entropy is the best loss without any context.")
    report.heading("Sample")
    report.preformatted(result.sample)
    report.heading("Attention maps")
    explorer.add_explorer(report, attended.maps, attended.tokens, attended.ids)
    report.heading("Implementations")
    report.table(
        ("part", "layers", "requested", "used", "why"),
        [(row.part, row.layers, row.requested, row.used, row.why) for row in result.table],
    )
    report.heading("Self-check of the kernels")
    if result.self_check is None:
        report.paragraph("Triton is not installed, so there are no kernels to check.")
    else:
        report.paragraph(
            f"Each kernel against its reference in float64, {result.self_check.where}: {result.self_check.verdict}. "
            f"{verify.RULE[0].upper()}{verify.RULE[1:]}"
        )
        bad = [n for n, row in enumerate(result.self_check.rows) if not row.ok]
        report.table(verify.Report.HEADER, result.self_check.table(), bad)
    report.heading("Settings")
    settings = dataclasses.asdict(trainer.model.config) | dataclasses.asdict(trainer.config)
    report.table(("setting", "value"), [(name, said(value)) for name, value in settings.items()])
    run = run_record.read(trainer.config.folder)
    report.provenance(
        [
            ("seed", trainer.config.seed),
            ("model size", f"{trainer.model.num_parameters():,} parameters"),
            ("tokens seen", "not recorded" if run.tokens is None else f"{run.tokens:,}"),
            ("time taken", duration(result.seconds)),
        ]
    )
    run_record.keep(report, run.kept)  # for `fastgpt report`, which compares runs
    return report


def _where(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine's CPU"


def validation_points(result: DemoResult, lines: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(step, loss): before, on the way, after."""
    way = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line and line["step"] < result.steps]
    return [(0, result.before.loss), *way, (result.steps, result.after.loss)]


def _figures(found: Validation) -> tuple[tuple[float, str] | None, ...]:
    per_byte = None if found.bits_per_byte is None else _figure(found.bits_per_byte, ".3f")
    return _figure(found.loss, ".4f"), _figure(found.perplexity, ".1f"), per_byte


def _figure(value: float, form: str) -> tuple[float, str]:
    """A cell that is sorted by its value."""
    return value, format(value, form)
